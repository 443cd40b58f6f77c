"""Rounds of questions about the replay, and the reward that is fitted on the answers (PEBBLE, arXiv
2106.05091).

What the teacher goes by, the true reward, is read here alone, of the pairs that a round asks about.
Where people answer instead, `people` has the round.

Axes: C candidates, Q questions of a round, N of the run, M members, T env steps of a segment.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import sail_jax.control.compat  # noqa: F401

import jax
import jax.numpy as jnp
from brax.envs.base import Env

from sail_jax.control.reward import beginning, questions, rounds
from sail_jax.control.reward.ensemble import OF_ANSWERS, Ensemble
from sail_jax.control.reward.questions import Shown
from sail_jax.control.reward.state import Taught
from sail_jax.control.sac import replay
from sail_jax.control.sac.config import SacRun
from sail_jax.control.sac.replay import PosedTransition, Replay
from sail_jax.control.sac.update import Experience, Now, RewardFunctions
from sail_jax.core.types import Metrics, State

SPARE = 2
"""Pairs drawn for each candidate; those within one episode come first."""


class RoundKeys(NamedTuple):
    """Of randomness, for the parts of a round."""

    show: jax.Array
    pick: jax.Array
    answer: jax.Array
    fit: jax.Array


def round_keys(key: jax.Array) -> RoundKeys:
    """Those of `UpdateKeys.ask`."""
    show_key, ask_key, fit_key = jax.random.split(key, 3)
    pick_key, answer_key = jax.random.split(ask_key)
    return RoundKeys(show=show_key, pick=pick_key, answer=answer_key, fit=fit_key)


class Asked(NamedTuple):
    """What a session with the teacher and the fit after it came to."""

    taught: Taught
    labels: jax.Array
    """Comparisons that it cost, int32."""
    metrics: Metrics


class Teaching(NamedTuple):
    """How a reward is learned from a teacher: four pure functions."""

    init: Callable[[jax.Array], Taught]
    """`key -> Taught`: before any question."""
    predict: Callable[[Taught, jax.Array, jax.Array], jax.Array]
    """As of `RewardFunctions`."""
    due: Callable[[jax.Array], jax.Array]
    """Of a number of updates, whether a session comes before the next one."""
    session: Callable[[Taught, Replay, jax.Array, jax.Array], Asked]
    """`(taught, replay, key, updates)`: questions about the replay, answers, and a fit; before the
    first round a fit alone. The whole replay is relabelled afterwards."""


def make(env: Env, run: SacRun) -> RewardFunctions:
    """The functions of a run whose reward is learned from a teacher."""
    teaching = make_teaching(env, run)
    begin = partial(asked_if_due, teaching, run)
    return RewardFunctions(init=teaching.init, predict=teaching.predict, begin=begin)


def make_teaching(env: Env, run: SacRun) -> Teaching:
    """What `make` is made of."""
    settings, ensemble = run.reward.questions, beginning.make_ensemble(run.reward, env)
    rounds_of_run = -(-settings.budget // settings.per_round)

    def due(updates: jax.Array) -> jax.Array:
        since = updates - run.reward_updates
        asks = on_time(run, updates) & (since // every_updates(run) < rounds_of_run)
        return asks | (updates == 0) if run.reward.answers else asks

    def session(taught: Taught, there: Replay, key: jax.Array, updates: jax.Array) -> Asked:
        keys = round_keys(key)
        candidates = shown(run, there, keys.show)
        left = jnp.minimum(settings.per_round, settings.budget - taught.asked)
        number = jnp.where(updates < run.reward_updates, 0, left)
        if settings.budget > 0:
            taught = answered(run, ensemble, taught, candidates, keys, number)
        taught, numbers = refitted(run, ensemble, taught, candidates, keys.fit)
        return Asked(taught, number, numbers)

    return Teaching(
        init=beginning.make(run, env, ensemble),
        predict=partial(predicted, ensemble),
        due=due,
        session=session,
    )


def predicted(ensemble: Ensemble, taught: Taught, obs: jax.Array, action: jax.Array) -> jax.Array:
    """The reward of steps [...]: the members' mean."""
    return ensemble.predict(taught.fitted.params, obs, action).mean(0)


def every_updates(run: SacRun) -> int:
    """Updates from a round to the next."""
    return run.updates_of(run.reward.questions.every_env_steps)


def on_time(run: SacRun, updates: Any) -> Any:
    """Whether so many updates are those of a round, of which there may have been enough."""
    since = updates - run.reward_updates
    return (since >= 0) & (since % every_updates(run) == 0)


def asked_if_due(
    teaching: Teaching, run: SacRun, state: State, now: Now, key: jax.Array
) -> tuple[State, Metrics]:
    """A session where one is due, and the whole replay with the new reward."""
    there: Experience = state.sampler

    def ask(there: Experience) -> tuple[Asked, jax.Array]:
        asked = teaching.session(there.reward, there.replay, key, now.clock)
        filled = now.clock * run.rollout.steps
        predict = partial(teaching.predict, asked.taught)
        return asked, replay.relabelled(there.replay, predict, filled)

    def wait(there: Experience) -> tuple[Asked, jax.Array]:
        metrics = jax.eval_shape(ask, there)[0].metrics
        nothing = {name: jnp.full(x.shape, jnp.nan) for name, x in metrics.items()}
        return Asked(there.reward, jnp.zeros((), jnp.int32), nothing), there.replay.steps.reward

    asked, reward = jax.lax.cond(teaching.due(now.clock), ask, wait, there)
    there = there._replace(reward=asked.taught, replay=replay.with_rewards(there.replay, reward))
    return state._replace(sampler=there, labels=state.labels + asked.labels), asked.metrics


def shown(run: SacRun, there: Replay, key: jax.Array) -> Shown:
    """Candidates of a round, [C, 2, T, ...]: pairs of segments of the newest env steps.

    A segment goes on to the end of its episode, or to where the simulator broke.
    """
    C, T = run.reward.questions.candidates, run.reward.segment_length
    newest = max(run.reward.newest_env_steps // run.rollout.envs, T)
    cut, whole = replay.segments(there, key, 2 * SPARE * C, T, newest)
    pairs: Any = jax.tree.map(lambda x: x.reshape(SPARE * C, 2, *x.shape[1:]), cut)
    best_C = jnp.argsort(~whole.reshape(-1, 2).all(1), stable=True)[:C]
    pairs = jax.tree.map(lambda x: x[best_C], pairs)
    before = jnp.cumsum(pairs.ended, -1) - pairs.ended
    alive = before == 0
    mask = (alive & pairs.sound).astype(jnp.float32)
    pose = None
    if isinstance(pairs, PosedTransition):  # Before the first step, then after each.
        pose = jnp.concatenate([pairs.pose[:, :, :1, 0], pairs.pose[:, :, :, 1]], 2)
    return Shown(
        obs=pairs.obs,
        action=pairs.action,
        mask=mask,
        true_reward=pairs.true_reward * mask,
        not_finite=(alive & ~pairs.sound).any(-1),
        pose=pose,
    )


def answered(
    run: SacRun,
    ensemble: Ensemble,
    taught: Taught,
    candidates: Shown,
    keys: RoundKeys,
    number: jax.Array,
) -> Taught:
    """A round of so many questions, and the teacher's answers, beside the earlier ones."""
    proposal = questions.proposed(run.reward, ensemble, taught, candidates, keys.pick)
    said = rounds.teacher(run.labeller, keys.answer, proposal.pairs)
    return questions.placed(run.reward, taught, proposal, said, number)


def refitted(
    run: SacRun, ensemble: Ensemble, taught: Taught, candidates: Shown, key: jax.Array
) -> tuple[Taught, Metrics]:
    """After a fit on all answers so far, and `SESSION_METRICS`."""
    taught = beginning.foretold(run.reward, ensemble, taught, key)
    fit = ensemble.fit(taught.fitted, taught.answers, key)
    taught = taught._replace(fitted=fit.fitted)
    numbers = {
        'fit_accuracy': jnp.where(fit.passes > 0, fit.accuracy, jnp.nan),
        'fit_passes': fit.passes.astype(jnp.float32),
        **beginning.known_before(run.reward, taught),
        **metrics(ensemble, taught, candidates),
    }
    return taught, numbers


SESSION_METRICS = (
    'fit_accuracy',
    'fit_passes',
    *OF_ANSWERS,
    'reward_spread',
    'reward_correlation',
)
"""In updates that begin with a fit alone."""


def metrics(ensemble: Ensemble, taught: Taught, candidates: Shown) -> Metrics:
    """What the ensemble makes of a round's candidates; NaN of an empty replay's. Nothing is learned
    from these numbers."""
    reward_MxCx2xT = ensemble.predict(taught.fitted.params, candidates.obs, candidates.action)
    reward_MxCx2xT = reward_MxCx2xT * candidates.mask
    predicted_Cx2 = reward_MxCx2xT.mean(0).sum(-1)
    numbers = {
        'reward_spread': reward_MxCx2xT.std(0).sum() / jnp.maximum(candidates.mask.sum(), 1),
        'reward_correlation': rounds.correlation(predicted_Cx2, candidates.true_reward.sum(-1)),
    }
    return {name: jnp.where(candidates.mask.any(), x, jnp.nan) for name, x in numbers.items()}
