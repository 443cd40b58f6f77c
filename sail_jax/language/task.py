"""A language run as the trainer takes it."""

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from sail_jax.core import precision, update
from sail_jax.core.types import Metrics, Sampled, State, Workload
from sail_jax.language import evaluate, workload
from sail_jax.language.config import LanguageRun, check, check_lengths
from sail_jax.language.data import digests, reader, tokens
from sail_jax.language.data.dataset import Example
from sail_jax.language.data.reader import Reader
from sail_jax.language.data.tokens import Tokenizer
from sail_jax.language.model import policy, sharding
from sail_jax.language.reward import labels
from sail_jax.language.reward.labels import Rater
from sail_jax.language.reward.protocols import Judge, Reward
from sail_jax.language.schedule import step_size
from sail_jax.training import devices
from sail_jax.training.task import Task

WATCH = {
    'time/prompts_per_s': 'prompts/s',
    'eval/reward': 'reward',
    'eval/win_rate': 'wins',
    'eval/kl_policy_to_ref': 'KL',
    'train/margin': 'margin',
}

SMALLER = (
    'lower prompts_per_update, group_size, sampling.max_tokens, evaluation.samples or '
    'reward.batch_size, or set model.remat: true'
)
"""`Task.smaller`."""

log = logging.getLogger(__name__)


def make(
    run: LanguageRun,
    reward: Reward | None = None,
    judge: Judge | None = None,
    run_dir: Path | None = None,
) -> Task:
    """Builds what the trainer needs.

    Args:
      run: the configuration.
      reward: scores responses; see `Reward`. With a judge, for evaluation only.
      judge: says which of two responses is better; see `Judge`.
      run_dir: of a run that is trained; takes a sample table at each evaluation.

    Raises:
      UserError: settings that do not go together; a checkpoint or data that cannot be used.
    """
    check(run)
    mesh = devices.make_mesh(run.prompts_per_update, run.devices, 'prompts_per_update')
    shardings = partial(devices.state_sharding, mesh, rules=sharding.RULES)
    decoders = policy.read(run.model, mesh)
    check_lengths(run, decoders.architecture.max_positions)
    tokenizer = tokens.load(run.model.path, **run.model.template)
    data = reader.prepare(run, tokenizer)
    rater = labels.make(run, mesh, reward, judge)
    if run_dir is not None:
        labels.check(run, rater)
    if run_dir is not None and run.samples_policy and not run.sampling.on_policy:
        log.warning(
            'sampling: temperature, top_k or top_p draw from another distribution than the policy, '
            'so that training is off-policy by train/sampling_gap nats per token'
        )
    functions = workload.make(run, decoders, tokenizer.eos_ids)
    of_parameter = sharding.of_parameter(mesh)
    return Task(
        workload=functions,
        shardings=shardings,
        start=lambda seed: decoders.start(seed, of_parameter),
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
        shared=lambda: decoders.shared(of_parameter),
        digests=lambda: digests.of_run(run),
        broken='rewards or judgements that are not a finite number; a response with such a reward '
        'counts as the worst, such a judgement not at all',
        dispatch=make_dispatch(run, functions, data, tokenizer, rater, mesh),
    )


def batch_bytes(run: LanguageRun, decoders: policy.Decoders) -> int:
    """Keys and values of the responses that are drawn at once."""
    a, rows = decoders.architecture, run.prompts_per_update * run.group_size
    if not run.samples_policy:
        rows = min(run.prompts_per_update, run.evaluation.prompts) * run.evaluation.samples
    token = 2 * a.layers * a.kv_heads * a.head_dim * jnp.dtype(run.model.dtype).itemsize
    return rows * run.sampling.max_tokens * token


class UpdatePrograms(NamedTuple):
    """The two compiled programs of an update; the host scores what lies between them."""

    draw: Callable[[State, workload.PromptBatch], Sampled]
    learn: Callable[[State, Sampled, Any], tuple[State, Metrics]]
    """Takes the labeller's scores too; the state's buffers are donated."""


def make_programs(run: LanguageRun, functions: Workload, mesh: Mesh) -> UpdatePrograms:
    """Compiled at their first call, for each bucket of lengths."""
    learn_pure = update.make_learn(functions, run)
    share = step_size(run.optimizer, run.updates)
    at_precision = precision.traced_at(precision.resolved(run))

    @jax.jit
    @at_precision
    def draw(state: State, rows: workload.PromptBatch) -> Sampled:
        return update.draw(functions, state._replace(sampler=rows))

    @partial(jax.jit, donate_argnums=0)
    @at_precision
    def learn(state: State, sampled: Sampled, scores: Any) -> tuple[State, Metrics]:
        sampled = workload.labelled(run, state, sampled, scores)
        rate = state.hyper.learning_rate * share(state.step)
        hyper = state.hyper._replace(learning_rate=rate)
        new, metrics = learn_pure(state._replace(hyper=hyper), sampled)
        new = new._replace(hyper=state.hyper)
        layout = devices.state_sharding(mesh, new, sharding.RULES)
        new = jax.lax.with_sharding_constraint(new, layout)
        metrics = {**metrics, 'learning_rate': rate, **update.counters(new)}
        return new, jax.tree.map(lambda x: jnp.asarray(x)[None], metrics)

    return UpdatePrograms(draw=draw, learn=learn)


def make_dispatch(
    run: LanguageRun,
    functions: Workload,
    data: Reader,
    tokenizer: Tokenizer,
    rater: Rater,
    mesh: Mesh,
) -> Callable[[State], tuple[State, Metrics]]:
    """One update: read on the host, draw on the device, score on the host, learn on the device.

    Raises (the function returned):
      UserError, TrainingFailed: as of `rewards.score`; the state is as it was.
    """
    programs = make_programs(run, functions, mesh)
    ahead: dict[int, list[Example]] = {}

    def dispatch(state: State) -> tuple[State, Metrics]:
        step = int(state.step)
        examples = ahead.pop(step, None) or data.examples(step)
        pair_places = None
        if run.reads_pairs:
            longest = max(len(ids) for e in examples for ids in (e.chosen, e.rejected) if ids)
            pair_places = reader.places(longest, run.data.max_response_tokens)
        rows = jax.device_put(reader.batch(examples, pair_places), devices.by_rows(mesh))
        sampled = programs.draw(state, rows)
        ids, mask, route = jax.device_get(
            (sampled.batch.inputs.tokens_BxLxT, sampled.batch.mask_BxLxT, sampled.batch.route)
        )
        lengths = mask.sum(-1)
        scores, metrics = None, {}
        if run.objective.mixture.dpr > 0:
            K = run.group_size
            groups = tokenizer.texts(ids[:, :K], lengths[:, :K])
            asked = route.on_policy_B & affordable(run, ~route.policy_label_B, state)
            prompts = [example.row.prompt for example in examples]
            scores = labels.scores(rater, prompts, groups, asked)
            metrics = reward_metrics(scores, asked)
        size = reader.places(int(lengths.max()), run.max_response_tokens)
        state, learned = programs.learn(state, workload.trimmed(sampled, size), scores)
        ahead[step + 1] = data.examples(step + 1)  # Read while the device works.
        return state, {**learned, **metrics}

    return dispatch


def affordable(run: LanguageRun, asks_B: np.ndarray, state: State) -> np.ndarray:
    """The rows with comparisons that the budget still covers: nobody is asked for the others."""
    budget = run.labeller.max_labels
    if budget is None:
        return asks_B
    pairs = run.group_size * (run.group_size - 1) // 2
    before_B = pairs * (np.cumsum(asks_B) - asks_B)
    return asks_B & (before_B < budget - int(state.labels))


def reward_metrics(scores: Any, asked_B: np.ndarray) -> dict[str, Any]:
    """Of the responses that were scored; a judge gives none."""
    if not isinstance(scores, np.ndarray) or not asked_B.any():
        return {}
    rewards = scores[asked_B]
    finite = rewards[np.isfinite(rewards)]
    return {
        'reward': finite.mean()[None] if finite.size else np.full(1, np.nan),
        'not_finite': np.asarray([rewards.size - finite.size]),
    }
