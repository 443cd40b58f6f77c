"""What is compiled for a supervised stage, from shapes alone; see `sail_jax.language.programs`."""

from typing import Any

import jax
import jax.numpy as jnp

from sail_jax.language.abstract import SPLIT, abstract, by_rows, forward_flops, laid_out
from sail_jax.language.model import policy, published, sharding
from sail_jax.language.model.sampler import bucket
from sail_jax.language.sft import learn, task
from sail_jax.language.sft.config import SftRun
from sail_jax.training import devices
from sail_jax.training.checkpoint import abstract_like
from sail_jax.training.program import Program, Programs


def programs(run: SftRun, chips: devices.Chips = None) -> Programs:
    """What is compiled for a run; see `Kind.programs`. Rows are as long as the configuration lets
    them be.

    Raises:
      UserError: the devices do not divide the run; nothing is known of the model.
    """
    mesh = devices.make_mesh(run.prompts_per_update, run.devices, 'prompts_per_update', chips)
    path = run.model.path
    architecture = run.model.architecture if path is None else published.architecture(path)
    decoders = policy.read(run.model, mesh, architecture, length=run.longest)
    optimizer = learn.make_optimizer(run.optimizer, run.updates)
    seed = jax.ShapeDtypeStruct((), jnp.uint32)
    state = jax.eval_shape(lambda p, s: learn.init(p, s, optimizer), decoders.abstract, seed)
    state = state._replace(shared=decoders.abstract_shared)
    state = abstract_like(state, devices.state_sharding(mesh, state, sharding.RULES))
    B, size = run.prompts_per_update, run.data.max_prompt_tokens + run.data.max_response_tokens
    size = bucket(size)
    forward = forward_flops(decoders.architecture, B, 0, 1, size)
    held_out = min(run.evaluation.prompts, B)
    rows = by_rows(mesh, _rows(B, size))
    others = laid_out(_rows(held_out, size), devices.replicated(mesh))
    calls = -(-run.evaluation.prompts // held_out) / run.evaluation.every_updates
    return Programs(
        programs=(
            Program(
                name='learn',
                function=task.make_update(run, decoders, optimizer, mesh),
                arguments=(state, rows),
                batch=rows,
                per_update=1,
                model_flops=forward * (3 if run.model.train == 'full' else 2),
            ),
            Program(
                name='evaluate',
                function=task.make_nats(run, decoders),
                arguments=(state.policy, state.shared, others),
                batch=others,
                per_update=calls,
                evaluation=True,
            ),
        ),
        mesh=mesh,
        resident={
            # The start policy stays, for evaluations.
            'weights': (state.policy, state.policy, state.shared),
            'optimizer': state.optimizer,
            'others': (),
        },
        per_update={'prompts': B, 'tokens': B * size},
        smaller=task.SMALLER,
        split=SPLIT,
    )


def _rows(rows: int, size: int) -> Any:
    return learn.Completions(
        tokens_BxS=abstract((rows, size), jnp.int32),
        lengths_B=abstract((rows,), jnp.int32),
        prompt_lengths_B=abstract((rows,), jnp.int32),
    )
