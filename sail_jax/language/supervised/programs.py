"""What is compiled for a supervised stage, from shapes alone; see `sail_jax.language.programs`."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from sail_jax.language.abstract import SPLIT, by_rows, laid_out
from sail_jax.language.model import sharding
from sail_jax.language.model.policy import Decoders
from sail_jax.language.model.sampler import bucket
from sail_jax.language.supervised import learn, task
from sail_jax.language.supervised.config import SupervisedRun
from sail_jax.language.supervised.learn import StageLoss
from sail_jax.training import devices
from sail_jax.training.checkpoint import abstract_like
from sail_jax.training.program import Program, Programs, kept_weights


class StageShapes(NamedTuple):
    """What of a `supervised.task.Stage` can be had without data."""

    decoders: Decoders
    loss: StageLoss
    measure: Callable[..., Any]
    """The compiled program of an evaluation: `(policy, shared, rows)`."""
    rows: Callable[[int, int], Any]
    """`(rows, places) -> arrays`, abstract."""
    lanes: int
    """Sequences of a row."""
    flops: Callable[[int, int], float]
    """`(rows, places)`, of a forward pass."""


def of_stage(run: SupervisedRun, stage: StageShapes, mesh: Mesh) -> Programs:
    """What is compiled for a run; see `Kind.programs`. Rows are as long as the configuration lets
    them be."""
    decoders = stage.decoders
    optimizer = learn.make_optimizer(run.optimizer, run.updates)
    seed = jax.ShapeDtypeStruct((), jnp.uint32)
    state = jax.eval_shape(lambda p, s: learn.init(p, s, optimizer), decoders.abstract, seed)
    state = state._replace(shared=decoders.abstract_shared)
    state = abstract_like(state, devices.state_sharding(mesh, state, sharding.RULES))
    B, size = run.prompts_per_update, bucket(run.longest)
    forward = stage.flops(B, size)
    # Backward for what flows through, and for the weights where they are trained.
    backward = {'full': 2, 'lora': 1}.get(run.model.train, 0)
    held_out = min(run.evaluation.prompts, B)
    rows = by_rows(mesh, stage.rows(B, size))
    others = laid_out(stage.rows(held_out, size), devices.replicated(mesh))
    calls = -(-run.evaluation.prompts // held_out) / run.evaluation.every_updates
    return Programs(
        programs=(
            Program(
                name='learn',
                function=task.make_update(run, stage.loss, mesh),
                arguments=(state, rows),
                batch=rows,
                per_update=1,
                model_flops=forward * (1 + backward),
            ),
            Program(
                name='evaluate',
                function=stage.measure,
                arguments=(state.policy, state.shared, others),
                batch=others,
                per_update=calls,
                evaluation=True,
            ),
        ),
        mesh=mesh,
        resident={
            'weights': kept_weights(state, reference_stays=False),  # There is none.
            'optimizer': state.optimizer,
            'others': (),
        },
        per_update={'prompts': B, 'tokens': B * stage.lanes * size},
        smaller=task.SMALLER,
        split=SPLIT,
    )
