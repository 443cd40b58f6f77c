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

from sail_jax.control import policy as control_policy
from sail_jax.control.reward import ensemble as reward_ensemble
from sail_jax.control.reward import questions, rounds
from sail_jax.control.reward.ensemble import Comparisons, Ensemble, Fitted, margins
from sail_jax.control.reward.rounds import Shown
from sail_jax.control.sac import replay
from sail_jax.control.sac.config import SacRun
from sail_jax.control.sac.replay import PosedTransition, Replay
from sail_jax.control.sac.update import Experience, Now, RewardFunctions
from sail_jax.core import bradley_terry
from sail_jax.core.types import Metrics, State

SPARE = 2
"""Pairs drawn for each candidate; those within one episode come first."""


class Taught(NamedTuple):
    """The ensemble, and all that it has been told."""

    fitted: Fitted
    answers: Comparisons
    """A place for each question of the run, N; those to come are empty."""
    margin_N: jax.Array
    """By how much the first's return was larger in the ensemble's eyes when the pair was asked
    about, before it learned the answer."""
    asked: jax.Array
    """Questions so far, int32."""


class Proposal(NamedTuple):
    """A round of questions, Q of them, before anybody has answered."""

    pairs: Shown
    """[Q, 2, T, ...]"""
    margin_Q: jax.Array
    """As of `Taught`."""


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
    session: Callable[[Taught, Replay, jax.Array], Asked]
    """`(taught, replay, key)`: questions about the replay, answers, and a fit. The whole replay is
    relabelled afterwards."""


def make(env: Env, run: SacRun) -> RewardFunctions:
    """The functions of a run whose reward is learned from a teacher."""
    teaching = make_teaching(env, run)
    begin = partial(asked_if_due, teaching, run)
    return RewardFunctions(init=teaching.init, predict=teaching.predict, begin=begin)


def make_teaching(env: Env, run: SacRun) -> Teaching:
    """What `make` is made of."""
    settings, ensemble = run.reward.questions, make_ensemble(env, run)
    rounds_of_run = -(-settings.budget // settings.per_round)

    def due(updates: jax.Array) -> jax.Array:
        since = updates - run.reward_updates
        return on_time(run, updates) & (since // every_updates(run) < rounds_of_run)

    def session(taught: Taught, there: Replay, key: jax.Array) -> Asked:
        show_key, ask_key, fit_key = jax.random.split(key, 3)
        candidates = shown(run, there, show_key)
        number = jnp.minimum(settings.per_round, settings.budget - taught.asked)
        taught = answered(run, ensemble, taught, candidates, ask_key)
        taught, numbers = refitted(ensemble, taught, candidates, fit_key)
        return Asked(taught, number, numbers)

    return Teaching(
        init=partial(untaught, env, run, ensemble),
        predict=partial(predicted, ensemble),
        due=due,
        session=session,
    )


def make_ensemble(env: Env, run: SacRun) -> Ensemble:
    """The networks of a run's reward."""
    shape = control_policy.observation_shape(env)
    return reward_ensemble.make(run.reward, shape, env.action_size)


def untaught(env: Env, run: SacRun, ensemble: Ensemble, key: jax.Array) -> Taught:
    """Before any question."""
    shape: Any = control_policy.observed(control_policy.observation_shape(env))
    N, T = run.reward.questions.budget, run.reward.segment_length
    return Taught(
        fitted=ensemble.init(key),
        answers=Comparisons(
            obs=jnp.zeros((N, 2, T, *shape)),
            action=jnp.zeros((N, 2, T, env.action_size)),
            mask=jnp.zeros((N, 2, T)),
            prob=jnp.zeros(N),
            weight=jnp.zeros(N),
        ),
        margin_N=jnp.zeros(N),
        asked=jnp.zeros((), jnp.int32),
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
        asked = teaching.session(there.reward, there.replay, key)
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


def proposed(
    run: SacRun, ensemble: Ensemble, taught: Taught, candidates: Shown, key: jax.Array
) -> Proposal:
    """The candidates that are worth a question."""
    margin_MxC = margins(ensemble, taught.fitted.params, rounds.unanswered(candidates))
    first = taught.asked == 0
    chosen_Q = questions.pick(run.reward.questions, key, margin_MxC, first)
    pairs = jax.tree.map(lambda x: x[chosen_Q], candidates)
    return Proposal(pairs=pairs, margin_Q=margin_MxC.mean(0)[chosen_Q])


def placed(
    run: SacRun, taught: Taught, proposal: Proposal, prob_Q: jax.Array, weight_Q: jax.Array
) -> Taught:
    """A round beside the earlier ones, with what is said of it so far."""
    new = rounds.unanswered(proposal.pairs)._replace(prob=prob_Q, weight=weight_Q)
    place_Q = taught.asked + jnp.arange(len(weight_Q))  # None beyond the budget.
    put = lambda places, new: places.at[place_Q].set(new, mode='drop')
    return taught._replace(
        answers=jax.tree.map(put, taught.answers, new),
        margin_N=put(taught.margin_N, proposal.margin_Q),
        asked=jnp.minimum(taught.asked + len(weight_Q), run.reward.questions.budget),
    )


def answered(
    run: SacRun, ensemble: Ensemble, taught: Taught, candidates: Shown, key: jax.Array
) -> Taught:
    """A round, and the teacher's answers, beside the earlier ones."""
    pick_key, answer_key = jax.random.split(key)
    proposal = proposed(run, ensemble, taught, candidates, pick_key)
    any_run: Any = run  # The teacher looks at `labeller` alone.
    return placed(run, taught, proposal, *rounds.teacher(any_run, answer_key, proposal.pairs))


def refitted(
    ensemble: Ensemble, taught: Taught, candidates: Shown, key: jax.Array
) -> tuple[Taught, Metrics]:
    """After a fit on all answers so far, and `SESSION_METRICS`."""
    fit = ensemble.fit(taught.fitted, taught.answers, key)
    taught = taught._replace(fitted=fit.fitted)
    numbers = {'fit_accuracy': fit.accuracy, 'fit_passes': fit.passes.astype(jnp.float32)}
    return taught, numbers | metrics(ensemble, taught, candidates)


SESSION_METRICS = (
    'fit_accuracy',
    'fit_passes',
    'answer_accuracy',
    'reward_spread',
    'reward_correlation',
)
"""In updates that begin with a round alone."""


def metrics(ensemble: Ensemble, taught: Taught, candidates: Shown) -> Metrics:
    """How well the ensemble knew the answers before it had them, and what it makes of a round's
    candidates. Nothing is learned from these numbers."""
    answers = taught.answers
    reward_MxCx2xT = ensemble.predict(taught.fitted.params, candidates.obs, candidates.action)
    reward_MxCx2xT = reward_MxCx2xT * candidates.mask
    predicted_Cx2 = reward_MxCx2xT.mean(0).sum(-1)
    return {
        'answer_accuracy': bradley_terry.accuracy(taught.margin_N, answers.prob, answers.weight),
        'reward_spread': reward_MxCx2xT.std(0).sum() / jnp.maximum(candidates.mask.sum(), 1),
        'reward_correlation': rounds.correlation(predicted_Cx2, candidates.true_reward.sum(-1)),
    }
