"""Rounds of questions about the replay, and the reward that is fitted on the answers (PEBBLE, arXiv
2106.05091).

What the teacher goes by, the true reward, is read here alone, of the pairs that a round asks about.

Axes: C candidates, Q questions of a round, N of the run, M members, T env steps of a segment.
"""

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
from sail_jax.control.sac.networks import seen
from sail_jax.control.sac.replay import Replay, Transition
from sail_jax.control.sac.update import Asked, RewardFunctions
from sail_jax.core import bradley_terry
from sail_jax.core.types import Metrics

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


def make(env: Env, run: SacRun) -> RewardFunctions:
    """The functions of a run whose reward is learned."""
    shape: Any = seen(control_policy.observation_shape(env))
    settings = run.reward.questions
    ensemble = reward_ensemble.make(run.reward, shape, env.action_size)
    every = run.updates_of(settings.every_env_steps)
    rounds_of_run = -(-settings.budget // settings.per_round)

    def init(key: jax.Array) -> Taught:
        N, T = settings.budget, run.reward.segment_length
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

    def predict(taught: Taught, obs: jax.Array, action: jax.Array) -> jax.Array:
        return ensemble.predict(taught.fitted.params, obs, action).mean(0)

    def due(updates: jax.Array) -> jax.Array:
        since = updates - run.reward_updates
        return (since >= 0) & (since % every == 0) & (since // every < rounds_of_run)

    def session(taught: Taught, there: Replay, key: jax.Array) -> Asked:
        show_key, ask_key, fit_key = jax.random.split(key, 3)
        candidates = shown(run, there, show_key)
        number = jnp.minimum(settings.per_round, settings.budget - taught.asked)
        taught = answered(run, ensemble, taught, candidates, ask_key)
        fit = ensemble.fit(taught.fitted, taught.answers, fit_key)
        taught = taught._replace(fitted=fit.fitted)
        numbers = {'fit_accuracy': fit.accuracy, 'fit_passes': fit.passes.astype(jnp.float32)}
        return Asked(taught, number, numbers | metrics(ensemble, taught, candidates))

    return RewardFunctions(init=init, predict=predict, due=due, session=session)


def shown(run: SacRun, there: Replay, key: jax.Array) -> Shown:
    """Candidates of a round, [C, 2, T, ...]: pairs of segments of the newest env steps.

    A segment goes on to the end of its episode, or to where the simulator broke.
    """
    C, T = run.reward.questions.candidates, run.reward.segment_length
    newest = max(run.reward.newest_env_steps // run.rollout.envs, T)
    cut, whole = replay.segments(there, key, 2 * SPARE * C, T, newest)
    pairs: Transition = jax.tree.map(lambda x: x.reshape(SPARE * C, 2, *x.shape[1:]), cut)
    best_C = jnp.argsort(~whole.reshape(-1, 2).all(1), stable=True)[:C]
    pairs = jax.tree.map(lambda x: x[best_C], pairs)
    before = jnp.cumsum(pairs.ended, -1) - pairs.ended
    alive = before == 0
    mask = (alive & pairs.sound).astype(jnp.float32)
    return Shown(
        obs=pairs.obs,
        action=pairs.action,
        mask=mask,
        true_reward=pairs.true_reward * mask,
        not_finite=(alive & ~pairs.sound).any(-1),
    )


def answered(
    run: SacRun, ensemble: Ensemble, taught: Taught, candidates: Shown, key: jax.Array
) -> Taught:
    """The answers of a round beside the earlier ones."""
    pick_key, answer_key = jax.random.split(key)
    nothing = jnp.zeros(len(candidates.mask))
    pairs = Comparisons(
        obs=candidates.obs,
        action=candidates.action,
        mask=candidates.mask,
        prob=nothing,
        weight=nothing,
    )
    margin_MxC = margins(ensemble, taught.fitted.params, pairs)
    first = taught.asked == 0
    chosen_Q = questions.pick(run.reward.questions, pick_key, margin_MxC, first)
    take = lambda tree: jax.tree.map(lambda x: x[chosen_Q], tree)
    any_run: Any = run  # The teacher looks at `labeller` alone.
    prob, weight = rounds.teacher(any_run, answer_key, take(candidates))
    place_Q = taught.asked + jnp.arange(len(chosen_Q))  # None beyond the budget.
    put = lambda places, new: places.at[place_Q].set(new, mode='drop')
    new = take(pairs)._replace(prob=prob, weight=weight)
    asked = jnp.minimum(taught.asked + len(chosen_Q), run.reward.questions.budget)
    return taught._replace(
        answers=jax.tree.map(put, taught.answers, new),
        margin_N=put(taught.margin_N, margin_MxC.mean(0)[chosen_Q]),
        asked=asked,
    )


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
