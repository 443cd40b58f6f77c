"""A supervised stage as the trainer takes it, and what it leaves."""

import contextlib
import shutil
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from sail_jax.core import precision
from sail_jax.core.types import Metrics, State
from sail_jax.errors import UserError
from sail_jax.files import ROOM, writing
from sail_jax.language import export
from sail_jax.language.data import digests
from sail_jax.language.data.dataset import Example
from sail_jax.language.data.reader import Reader
from sail_jax.language.export import OpenedModel
from sail_jax.language.model import sharding, weights
from sail_jax.language.model.policy import Decoders
from sail_jax.language.model.sampler import bucket
from sail_jax.language.supervised import learn
from sail_jax.language.supervised.config import MODEL, SupervisedRun
from sail_jax.language.supervised.learn import StageLoss
from sail_jax.training import checkpoint, devices, hosts
from sail_jax.training.result import Result
from sail_jax.training.shares import SplitRows
from sail_jax.training.task import Evaluate, Task

SMALLER = 'raise optimizer.accumulation, lower prompts_per_update, or set model.remat: true'
"""`Task.smaller`."""


class Stage(NamedTuple):
    """What a supervised stage has of its own."""

    decoders: Decoders
    data: Reader
    loss: StageLoss
    lanes: int
    """Sequences of a row."""
    length: Callable[[Example], int]
    """Of a row's longest sequence."""
    collate: Callable[[Sequence[Example], int], Any]
    """`(rows, places at the least) -> arrays`, padded to a bucket; on the host."""
    evaluate: Evaluate
    watch: dict[str, str]
    """See `Task`."""


def make(run: SupervisedRun, stage: Stage, mesh: Mesh) -> Task:
    """Builds what the trainer needs."""
    decoders = stage.decoders
    optimizer = learn.make_optimizer(run.optimizer, run.updates)
    of_parameter = sharding.of_parameter(mesh)
    return Task(
        workload=None,
        init=lambda start, seed: learn.init(start, seed, optimizer),
        hyper=lambda run: (),
        shardings=partial(devices.state_sharding, mesh, rules=sharding.RULES),
        start=lambda seed: hosts.together(lambda: decoders.start(seed, of_parameter)),
        abstract_policy=decoders.abstract,
        evaluate=stage.evaluate,
        updates=run.updates,
        updates_per_dispatch=1,
        evaluate_every=run.evaluation.every_updates,
        unit='prompts',
        units_per_update=run.prompts_per_update,
        max_labels=None,
        watch={'time/prompts_per_s': 'prompts/s', 'train/loss': 'loss', **stage.watch},
        batch_bytes=lambda: batch_bytes(run, stage),
        smaller=SMALLER,
        best=('-eval/loss',),
        patience=run.evaluation.patience,
        shared=lambda: hosts.together(lambda: decoders.shared(of_parameter)),
        digests=lambda: digests.of_run(run),
        dispatch=make_dispatch(run, stage, mesh),
    )


def batch_bytes(run: SupervisedRun, stage: Stage) -> int:
    """Each layer's inputs, which the backward pass reads, of a part of the first batch."""
    # Its longest row is at least as long as the longest of these.
    data, a = stage.data, stage.decoders.architecture
    examples = data._replace(rows_per_update=min(data.rows_per_update, 256)).examples(0)
    places = bucket(max(map(stage.length, examples)))
    rows = stage.lanes * run.prompts_per_update // run.optimizer.accumulation
    width = a.hidden_size * jnp.dtype(run.model.dtype).itemsize
    return rows * places * a.layers * width


def make_update(
    run: SupervisedRun, loss: StageLoss, mesh: Mesh
) -> Callable[[State, Any], tuple[State, Metrics]]:
    """The compiled program of an update; the state's buffers are donated."""
    optimizer = learn.make_optimizer(run.optimizer, run.updates)
    parts, dropout = run.optimizer.accumulation, run.model.lora.dropout
    learn_pure = learn.make_learn(loss, parts, optimizer, dropout)

    @partial(jax.jit, donate_argnums=0)
    @precision.traced_at(precision.resolved(run))
    def update(state: State, rows: Any) -> tuple[State, Metrics]:
        new, metrics = learn_pure(state, rows)
        layout = devices.state_sharding(mesh, new, sharding.RULES)
        return jax.lax.with_sharding_constraint(new, layout), metrics

    return update


def make_dispatch(
    run: SupervisedRun, stage: Stage, mesh: Mesh
) -> Callable[[State], tuple[State, Metrics]]:
    """One update: the host reads its rows while the device works on those before; of several
    processes each reads those that its devices hold.

    Raises (the function returned):
      UserError: a row cannot be read, in any process; the state is as it was.
    """
    update = make_update(run, stage.loss, mesh)
    split = SplitRows.of(mesh, run.prompts_per_update)
    read = lru_cache(2)(partial(stage.data.examples, rows=split.here))

    def dispatch(state: State) -> tuple[State, Metrics]:
        step = int(state.step)
        examples = hosts.together(lambda: read(step))
        longest = np.int32(max(map(stage.length, examples)))
        rows = stage.collate(examples, int(hosts.gather(longest).max()))
        state, metrics = update(state, split.place(rows))
        with contextlib.suppress(UserError):  # The update that needs them says it.
            read(step + 1)  # While the device works.
        return state, metrics

    return dispatch


def leave_model(run: SupervisedRun, run_dir: Path, result: Result) -> None:
    """Leaves the model of a finished run in `RUN_DIR/model`, with `evaluation.patience` that of its
    best evaluation; of several processes the first does.

    Raises:
      TrainingFailed: it cannot be written.
    """
    policy, path = result.policy, run_dir / MODEL
    if run.evaluation.patience is not None:
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), policy
        )
        policy = checkpoint.restore_policy(run_dir / 'checkpoints', abstract, best=True)
    opened = OpenedModel(run, export.decoders_of(run), policy, result.shared)
    if not hosts.is_main():
        weights.hand_over(opened.merged)
        return
    before = path.with_name(f'{MODEL}.before')  # Of a resumed run; kept until there is another.
    for half in run_dir.glob(f'{MODEL}.*.partial'):  # Of a process that was killed.
        shutil.rmtree(half, ignore_errors=True)
    with writing(path, ROOM):
        if path.exists():
            shutil.rmtree(before, ignore_errors=True)
            path.rename(before)
        export.export(opened, path)
    shutil.rmtree(before, ignore_errors=True)
