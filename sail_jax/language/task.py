"""A language run as the trainer takes it."""

import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from sail_jax.core import precision, update
from sail_jax.core.types import Metrics, Route, Sampled, State, Workload
from sail_jax.errors import UserError
from sail_jax.language import evaluate, people, scored, workload
from sail_jax.language.config import LanguageRun, check, check_lengths
from sail_jax.language.data import digests, reader, tokens
from sail_jax.language.data.dataset import Example
from sail_jax.language.data.reader import Reader
from sail_jax.language.data.tokens import Tokenizer
from sail_jax.language.model import contrastive, policy, sharding
from sail_jax.language.reward import labels
from sail_jax.language.reward.ensemble import Combined
from sail_jax.language.reward.labels import Rater
from sail_jax.language.reward.protocols import Judge, Reward
from sail_jax.training import devices, hosts
from sail_jax.training.shares import SplitRows
from sail_jax.training.task import HostExchange, Task

WATCH = {
    'time/prompts_per_s': 'prompts/s',
    'eval/reward': 'reward',
    'eval/win_rate': 'wins',
    'eval/kl_policy_to_start': 'KL',
    'train/margin': 'margin',
}

SMALLER = (
    'lower prompts_per_update, group_size, sampling.max_tokens, evaluation.samples or '
    'reward.batch_size, or set model.remat: true'
)
"""`Task.smaller`."""

OFF_POLICY = (
    'sampling: temperature, top_k or top_p draw from another distribution than the policy, so that '
    'training is off-policy by train/sampling_gap nats per token'
)

BROKEN = (
    'rewards or judgements that are not a finite number; a response with such a reward counts as '
    'the worst, such a judgement not at all'
)

log = logging.getLogger(__name__)


def make(
    run: LanguageRun,
    reward: Reward | Mapping[str, Reward] | None = None,
    judge: Judge | None = None,
    run_dir: Path | None = None,
) -> Task:
    """Builds what the trainer needs.

    Args:
      run: the configuration.
      reward: scores responses; see `Reward`; several by their names in `rewards`. With a judge, for
        evaluation only.
      judge: says which of two responses is better; see `Judge`.
      run_dir: of a run that is trained; takes a sample table at each evaluation.

    Raises:
      UserError: settings that do not go together; a checkpoint or data that cannot be used.
    """
    check(run)
    mesh = devices.make_mesh(run.prompts_per_update, run.devices, 'prompts_per_update')
    stays = run.refresh_updates is None
    decoders = policy.read(run.model, mesh, length=run.longest, reference_moves=not stays)
    check_lengths(run, decoders.architecture.longest)
    tokenizer = tokens.load(run.model.path, **run.model.template)
    data = reader.prepare(run, tokenizer)
    rater = labels.make(run, mesh, reward, judge)
    if run_dir is not None:
        labels.check(run, labels.of_training(run, rater))
        if run.samples_policy and not run.sampling.on_policy:
            log.warning(OFF_POLICY)
    functions = workload.make(run, decoders, tokenizer.eos_ids)
    programs = make_programs(run, functions, mesh)
    source = make_source(run, programs, data, mesh)
    label, exchange = make_label(run, tokenizer, rater, mesh), None
    if run.labeller.by_people:
        source, label, exchange = by_people(run, source, tokenizer)
    of_parameter = sharding.of_parameter(mesh)
    return Task(
        workload=functions,
        shardings=partial(devices.state_sharding, mesh, rules=sharding.RULES),
        start=lambda seed: hosts.together(lambda: decoders.start(seed, of_parameter)),
        abstract_policy=decoders.abstract,
        evaluate=evaluate.make(run, decoders, tokenizer, data.held_out, rater, run_dir),
        updates=run.updates,
        updates_per_dispatch=1,
        evaluate_every=run.evaluation.every_updates,
        unit='prompts',
        units_per_update=run.prompts_per_update,
        max_labels=run.labeller.max_labels,
        watch=WATCH,
        best=('eval/reward', 'eval/win_rate', 'eval/pair_accuracy'),
        batch_bytes=lambda: batch_bytes(run, decoders),
        smaller=SMALLER,
        shared=lambda: hosts.together(lambda: decoders.shared(of_parameter)),
        reference_stays=stays,
        digests=lambda: digests.of_run(run),
        broken=BROKEN,
        dispatch=make_dispatch(run, programs, source, label),
        exchange=exchange,
    )


def batch_bytes(run: LanguageRun, decoders: policy.Decoders) -> int:
    """Keys and values of the responses that are drawn at once."""
    a, contrasted = decoders.architecture, run.evaluation.decoding == 'contrastive'
    lanes = contrastive.CANDIDATES if contrasted else run.evaluation.samples
    rows = min(run.prompts_per_update, run.evaluation.prompts) * lanes
    if run.samples_policy:
        rows = max(rows, run.prompts_per_update * run.group_size)
    token = 2 * a.layers * a.kv_heads * a.head_dim * jnp.dtype(run.model.dtype).itemsize
    return rows * run.sampling.max_tokens * token


class Drawn(NamedTuple):
    """What every process's host has to know of all rows of a batch."""

    lengths_BxL: np.ndarray
    route: Route


def pack(lengths_BxL: jax.Array, route: Route) -> jax.Array:
    """What `unpack` makes `Drawn` of, in one array: one collective brings it to every host, and it
    waits for the loop that draws.

    Collectives that do not depend on the loop's own would have no order among them, and CPU devices
    that begin with different ones wait for each other for ever.
    """
    return jnp.concatenate([lengths_BxL, jnp.stack(route, -1).astype(jnp.int32)], -1)


def unpack(packed: Any) -> Drawn:
    on_policy_B, policy_label_B = packed[:, -2:].astype(bool).T
    route = Route(on_policy_B=on_policy_B, policy_label_B=policy_label_B)
    return Drawn(lengths_BxL=packed[:, :-2], route=route)


class UpdatePrograms(NamedTuple):
    """The two compiled programs of an update; the host scores what lies between them."""

    draw: Callable[[State, workload.PromptBatch], tuple[Sampled, jax.Array]]
    """The array is `pack`'s."""
    learn: Callable[[State, Sampled, Any], tuple[State, Metrics]]
    """Takes the labeller's scores too; the state's buffers are donated."""


def make_programs(run: LanguageRun, functions: Workload, mesh: Mesh) -> UpdatePrograms:
    """Compiled at their first call, for each bucket of lengths."""
    learn_pure = update.make_learn(functions, run)
    at_precision = precision.traced_at(precision.resolved(run))
    everywhere: Any = devices.replicated(mesh)
    by_rows: Any = devices.by_rows(mesh)
    layout_of_drawn = Sampled(
        batch=by_rows,
        sampler=everywhere,
        statistics=everywhere,
        labels_asked=everywhere,
        metrics=everywhere,
    )

    @partial(jax.jit, out_shardings=(layout_of_drawn, everywhere))
    @at_precision
    def draw(state: State, rows: workload.PromptBatch) -> tuple[Sampled, jax.Array]:
        sampled = update.draw(functions, state._replace(sampler=rows))
        batch = sampled.batch
        return sampled, pack(batch.mask_BxLxT.sum(-1), batch.route)

    @partial(jax.jit, donate_argnums=0)
    @at_precision
    def learn(state: State, sampled: Sampled, scores: Any) -> tuple[State, Metrics]:
        sampled = workload.labelled(run, state, sampled, scores)
        new, metrics = learn_pure(state, sampled)
        layout = devices.state_sharding(mesh, new, sharding.RULES)
        new = jax.lax.with_sharding_constraint(new, layout)
        metrics = {**metrics, **update.counters(new)}
        return new, jax.tree.map(lambda x: jnp.asarray(x)[None], metrics)

    return UpdatePrograms(draw=draw, learn=learn)


class DrawnBatch(NamedTuple):
    """The responses of an update that nobody has said anything about yet."""

    examples: list[Example]
    """Of the rows that this process's devices hold."""
    sampled: Sampled
    drawn: Drawn
    """On the host."""


class BatchSource(NamedTuple):
    """Where the batches of a run come from."""

    draw: Callable[[State], DrawnBatch]
    """The batch of a state's next update: read on the host, drawn on the device."""
    prefetch: Callable[[int], None]
    """Reads what an update needs, while the device works."""


Label = Callable[[State, DrawnBatch], tuple[Any, dict[str, Any]]]
"""What `workload.labelled` takes as scores, and metrics."""


class ByPeople(NamedTuple):
    """What stands in for the parts of an update where people label."""

    source: BatchSource
    label: Label
    exchange: Callable[[Path], HostExchange]


def make_source(
    run: LanguageRun, programs: UpdatePrograms, data: Reader, mesh: Mesh
) -> BatchSource:
    """Each process reads the rows that its devices hold."""
    split = SplitRows.of(mesh, run.prompts_per_update)
    read = lru_cache(2)(partial(data.examples, rows=split.here))

    def draw(state: State) -> DrawnBatch:
        step = int(state.step)
        examples = hosts.together(lambda: read(step))
        sampled, packed = programs.draw(state, split.place(collate(run, examples)))
        return DrawnBatch(examples, sampled, unpack(jax.device_get(packed)))

    def prefetch(step: int) -> None:
        with contextlib.suppress(UserError):  # The update that needs them says it.
            read(step)

    return BatchSource(draw=draw, prefetch=prefetch)


def make_label(run: LanguageRun, tokenizer: Tokenizer, rater: Rater, mesh: Mesh) -> Label:
    """A reward or a judge: each process has it score what its devices drew.

    Args:
      rater: of evaluations too.

    Raises (the function returned):
      UserError, TrainingFailed: as of `rewards.score`, in all processes.
    """
    split = SplitRows.of(mesh, run.prompts_per_update)
    shares, K = split.shares, run.group_size
    rater = labels.of_training(run, rater)

    def score(batch: DrawnBatch, asked_B: np.ndarray) -> Any:
        rows = np.flatnonzero(np.isin(split.here, shares.rows))
        prompts = [batch.examples[i].row.prompt for i in rows]
        tokens_bxK = split.take(batch.sampled.batch.inputs.tokens_BxLxT)[:, :K]

        def ask() -> Any:
            lengths_bxK = np.asarray(batch.drawn.lengths_BxL)[shares.rows, :K]
            groups = tokenizer.texts(tokens_bxK, lengths_bxK)
            answers = labels.scores(rater, prompts, groups, asked_B[shares.rows], K)
            penalty = np.float32(run.reward.missing_eos_penalty or 0)
            return answers, penalty * ~ended(tokens_bxK, lengths_bxK, tokenizer.eos_ids)

        return jax.tree.map(shares.gather, hosts.together(ask))

    def label(state: State, batch: DrawnBatch) -> tuple[Any, dict[str, Any]]:
        asked_B = asked_rows(run, state, batch.drawn)
        scores, penalty_BxK = score(batch, asked_B)
        if not isinstance(scores, np.ndarray):
            return labels.with_ties(rater, scores)
        parts = rater.parts_of(scores)
        scores, spread_BxK = rater.combined(scores)
        scores = scores - penalty_BxK
        return scores, reward_metrics(scores, spread_BxK, asked_B, parts)

    return label


def by_people(run: LanguageRun, source: BatchSource, tokenizer: Tokenizer) -> ByPeople:
    """Where people label, who read a batch before the update that learns from it."""
    asked = people.ResponseQuestions(run, source.draw, partial(unlabelled, run, tokenizer))
    return ByPeople(source._replace(draw=asked.draw), asked.label, asked.open)


def unlabelled(
    run: LanguageRun, tokenizer: Tokenizer, state: State, batch: DrawnBatch
) -> people.Unlabelled:
    """A batch as people read it, where one process has all of it."""
    K = run.group_size
    tokens_BxK = np.asarray(batch.sampled.batch.inputs.tokens_BxLxT)[:, :K]
    return people.Unlabelled(
        prompts=[example.row.prompt for example in batch.examples],
        groups=tokenizer.texts(tokens_BxK, np.asarray(batch.drawn.lengths_BxL)[:, :K]),
        asked_B=asked_rows(run, state, batch.drawn),
    )


def make_dispatch(
    run: LanguageRun, programs: UpdatePrograms, source: BatchSource, label: Label
) -> Callable[[State], tuple[State, Metrics]]:
    """One update: read on the host, draw on the device, label on the host, learn on the device.

    Raises (the function returned):
      UserError, TrainingFailed: as of `label`; the state is as it was.
    """

    def dispatch(state: State) -> tuple[State, Metrics]:
        step = int(state.step)
        batch = source.draw(state)
        scores, metrics = None, {}
        if run.objective.mixture.dpr > 0:
            scores, metrics = label(state, batch)
        longest = int(batch.drawn.lengths_BxL.max())
        size = reader.places(longest, run.max_response_tokens)
        state, learned = programs.learn(state, workload.trimmed(batch.sampled, size), scores)
        source.prefetch(step + 1)
        return state, {**learned, **metrics}

    return dispatch


def ended(tokens_BxKxT: np.ndarray, lengths_BxK: np.ndarray, eos_ids: Sequence[int]) -> np.ndarray:
    """Whether each response's last token is an end of sequence, [B, K]."""
    last_BxK = np.take_along_axis(tokens_BxKxT, lengths_BxK[..., None] - 1, -1)[..., 0]
    return np.isin(last_BxK, eos_ids)


def collate(run: LanguageRun, examples: Sequence[Example]) -> workload.PromptBatch:
    """The rows of this process as arrays, as long as those of the process with the longest."""
    pairs = [ids for e in examples for ids in (e.chosen, e.rejected) if ids]
    longest = [max(len(example.prompt) for example in examples), max(map(len, pairs), default=0)]
    prompt, pair = hosts.gather(np.asarray(longest, np.int32)).max(0).tolist()
    pair_places = reader.places(pair, run.data.max_response_tokens) if run.reads_pairs else None
    return reader.batch(examples, pair_places, prompt)


def asked_rows(run: LanguageRun, state: State, drawn: Drawn) -> np.ndarray:
    """The rows whose pairs are put to the labeller, [B]."""
    on_policy_B, policy_label_B = map(np.asarray, drawn.route)
    return on_policy_B & affordable(run, ~policy_label_B, state)


def affordable(run: LanguageRun, asks_B: np.ndarray, state: State) -> np.ndarray:
    """The rows with comparisons that the budget still covers: nobody is asked for the others."""
    budget = run.labeller.max_labels
    if budget is None:
        return asks_B
    pairs = run.group_size * (run.group_size - 1) // 2
    before_B = pairs * (np.cumsum(asks_B) - asks_B)
    return asks_B & (before_B < budget - int(state.labels))


def reward_metrics(
    rewards_BxK: np.ndarray,
    spread_BxK: np.ndarray | None,
    asked_B: np.ndarray,
    parts: Mapping[str, Combined],
) -> dict[str, Any]:
    """Of the responses that were scored; none where there are no such.

    Args:
      spread_BxK: of an ensemble.
      parts: several weighted rewards by their names.
    """
    if not asked_B.any():
        return {}
    rewards = rewards_BxK[asked_B]
    finite = np.isfinite(rewards)

    def mean(values: np.ndarray) -> np.ndarray:
        return values[finite].mean()[None] if finite.any() else np.full(1, np.nan)

    metrics = {'reward': mean(rewards), 'not_finite': np.asarray([(~finite).sum()])}
    for key, value in scored.part_numbers(parts, asked_B).items():
        metrics[key] = np.atleast_1d(value)
    return metrics if spread_BxK is None else metrics | {'reward_spread': mean(spread_BxK[asked_B])}
