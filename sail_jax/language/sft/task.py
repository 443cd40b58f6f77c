"""A supervised stage as the trainer takes it, and what it leaves."""

import contextlib
import shutil
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from sail_jax.core import precision
from sail_jax.core.types import Metrics, Policy, State
from sail_jax.errors import UserError
from sail_jax.files import ROOM, writing
from sail_jax.language import export
from sail_jax.language.data import digests, reader, tokens
from sail_jax.language.data.dataset import Example
from sail_jax.language.data.tokens import Tokenizer
from sail_jax.language.export import OpenedModel
from sail_jax.language.model import policy, sharding, weights
from sail_jax.language.model.policy import Decoders
from sail_jax.language.model.sampler import bucket
from sail_jax.language.sft import learn
from sail_jax.language.sft.config import MODEL, SftRun, check
from sail_jax.training import devices, hosts
from sail_jax.training.result import Result
from sail_jax.training.shares import SplitRows
from sail_jax.training.task import Evaluate, Task

WATCH = {
    'time/prompts_per_s': 'prompts/s',
    'train/loss': 'loss',
    'eval/loss': 'held-out loss',
    'eval/perplexity': 'perplexity',
}
SMALLER = 'raise optimizer.accumulation, lower prompts_per_update, or set model.remat: true'
"""`Task.smaller`."""


def leave_model(run: SftRun, run_dir: Path, result: Result) -> None:
    """Leaves the model of a finished run in `RUN_DIR/model`; of several processes the first does.

    Raises:
      TrainingFailed: it cannot be written.
    """
    decoders, path = policy.read(run.model, architecture=run.model.architecture), run_dir / MODEL
    opened = OpenedModel(run, decoders, result.policy, result.shared)
    if not hosts.is_main():
        weights.hand_over(opened.merged)
        return
    before = path.with_name(f'{MODEL}.before')  # Of a resumed run; kept until there is another.
    with writing(path, ROOM):
        if path.exists():
            path.rename(before)
        export.export(opened, path)
    shutil.rmtree(before, ignore_errors=True)


def load_tokenizer(run: SftRun) -> Tokenizer:
    """The checkpoint's, or that of the new network.

    Raises:
      UserError: as of `tokens.load`; the new network has not the tokens.
    """
    if run.model.path is not None:
        return tokens.load(run.model.path, **run.model.template)
    assert run.model.tokenizer is not None  # Or the configuration is refused.
    assert run.model.architecture is not None
    tokenizer = tokens.load(run.model.tokenizer, **run.model.template)
    size = run.model.architecture.vocab_size
    if tokenizer.vocab_size > size:
        raise UserError(
            f'model.architecture.vocab_size: {size}; '
            f'{run.model.tokenizer} has {tokenizer.vocab_size} tokens'
        )
    return tokenizer


def make(run: SftRun) -> Task:
    """Builds what the trainer needs.

    Raises:
      UserError: settings that do not go together; a checkpoint, data or a tokeniser that cannot be
        used.
    """
    check(run)
    mesh = devices.make_mesh(run.prompts_per_update, run.devices, 'prompts_per_update')
    decoders = policy.read(run.model, mesh, run.model.architecture, length=run.longest)
    data = reader.prepare(run, load_tokenizer(run), row_type='completion')
    optimizer = learn.make_optimizer(run.optimizer, run.updates)
    of_parameter = sharding.of_parameter(mesh)
    return Task(
        workload=None,
        init=lambda start, seed: learn.init(start, seed, optimizer),
        hyper=lambda run: (),
        shardings=partial(devices.state_sharding, mesh, rules=sharding.RULES),
        start=lambda seed: hosts.together(lambda: decoders.start(seed, of_parameter)),
        abstract_policy=decoders.abstract,
        evaluate=make_evaluate(run, decoders, data.held_out),
        updates=run.updates,
        updates_per_dispatch=1,
        evaluate_every=run.evaluation.every_updates,
        unit='prompts',
        units_per_update=run.prompts_per_update,
        max_labels=None,
        watch=WATCH,
        batch_bytes=lambda: batch_bytes(run, decoders, data),
        smaller=SMALLER,
        best=('-eval/loss',),
        shared=lambda: hosts.together(lambda: decoders.shared(of_parameter)),
        digests=lambda: digests.of_run(run),
        dispatch=make_dispatch(run, decoders, data, optimizer, mesh),
    )


def batch_bytes(run: SftRun, decoders: Decoders, data: reader.Reader) -> int:
    """Each layer's inputs, which the backward pass reads, of a part of the first batch."""
    # Its longest row is at least as long as the longest of these.
    examples = data._replace(rows_per_update=min(data.rows_per_update, 256)).examples(0)
    places = bucket(max(map(len, learn.sequences(examples))))
    rows = run.prompts_per_update // run.optimizer.accumulation
    width = decoders.architecture.hidden_size * jnp.dtype(run.model.dtype).itemsize
    return rows * places * decoders.architecture.layers * width


def make_update(
    run: SftRun, decoders: Decoders, optimizer: optax.GradientTransformation, mesh: Mesh
) -> Callable[[State, learn.Completions], tuple[State, Metrics]]:
    """The compiled program of an update; the state's buffers are donated."""
    learn_pure = learn.make_learn(decoders.policy, run, optimizer)

    @partial(jax.jit, donate_argnums=0)
    @precision.traced_at(precision.resolved(run))
    def update(state: State, rows: learn.Completions) -> tuple[State, Metrics]:
        new, metrics = learn_pure(state, rows)
        layout = devices.state_sharding(mesh, new, sharding.RULES)
        return jax.lax.with_sharding_constraint(new, layout), metrics

    return update


def make_nats(run: SftRun, decoders: Decoders) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """The compiled program of an evaluation: `(policy, shared, rows)`, as of `learn.nats`."""

    @jax.jit
    @precision.traced_at(precision.resolved(run))
    def nats(policy: Policy, shared: Any, rows: learn.Completions) -> tuple[jax.Array, jax.Array]:
        return learn.nats(decoders.policy(policy, shared), rows, 'response')

    return nats


def make_dispatch(
    run: SftRun,
    decoders: Decoders,
    data: reader.Reader,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
) -> Callable[[State], tuple[State, Metrics]]:
    """One update: the host reads its rows while the device works on those before; of several
    processes each reads those that its devices hold.

    Raises (the function returned):
      UserError: a row cannot be read, in any process; the state is as it was.
    """
    update = make_update(run, decoders, optimizer, mesh)
    split = SplitRows.of(mesh, run.prompts_per_update)
    read = lru_cache(2)(partial(data.examples, rows=split.here))

    def dispatch(state: State) -> tuple[State, Metrics]:
        step = int(state.step)
        examples = hosts.together(lambda: read(step))
        longest = np.int32(max(map(len, learn.sequences(examples))))
        rows = learn.collate(examples, int(hosts.gather(longest).max()))
        state, metrics = update(state, split.place(rows))
        with contextlib.suppress(UserError):  # The update that needs them says it.
            read(step + 1)  # While the device works.
        return state, metrics

    return dispatch


def make_evaluate(run: SftRun, decoders: Decoders, held_out: Sequence[Example]) -> Evaluate:
    """Loss and perplexity of the held-out responses, whatever is trained on: per token, and summed
    over each response."""
    size = min(len(held_out), run.prompts_per_update)
    batches = [held_out[first : first + size] for first in range(0, len(held_out), size)]
    nats = make_nats(run, decoders)

    def evaluate(
        policy: Policy, start: Policy, shared: Any, seed: jax.Array, hyper: tuple
    ) -> dict[str, float]:
        parts = [nats(policy, shared, learn.collate(batch)) for batch in batches]
        total, tokens = np.sum(hosts.whole(parts), axis=0)
        return {
            'loss': total / tokens,
            'perplexity': np.exp(total / tokens),
            'response_loss': total / len(held_out),
        }

    return evaluate
