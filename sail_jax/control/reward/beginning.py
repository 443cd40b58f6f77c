"""What a learned reward begins with: networks, new or of a file, and answers of a file.

Axes: P answers of the file, N with those to come.
"""

from collections.abc import Callable
from typing import Any

import sail_jax.control.compat  # noqa: F401

import jax
import jax.numpy as jnp
import numpy as np
from brax.envs.base import Env

from sail_jax import files
from sail_jax.control import policy as control_policy
from sail_jax.control.reward import answers, state, weights
from sail_jax.control.reward import ensemble as reward_ensemble
from sail_jax.control.reward.answers import Widths
from sail_jax.control.reward.config import RewardEnsemble
from sail_jax.control.reward.ensemble import Ensemble, margins, of_answers
from sail_jax.control.reward.state import LearnedReward, RewardT, Taught, begun_with
from sail_jax.core.types import Metrics

HELD_OUT = 10
"""Of so many answers of a file the last is predicted before it is learned."""


def make_ensemble(settings: RewardEnsemble, env: Env) -> Ensemble:
    """The networks of a run's reward."""
    return reward_ensemble.make(settings, control_policy.observation_shape(env), env.action_size)


def widths(env: Env) -> Widths:
    """What an answered pair of an environment has; its observations are vectors."""
    (obs,) = control_policy.observed(control_policy.observation_shape(env))
    return Widths(obs=obs, action=env.action_size)


def make(run: Any, env: Env, ensemble: Ensemble) -> Callable[[jax.Array], Taught]:
    """Reads the files, and returns `key -> Taught`: before any question.

    Args:
      run: of control or soft actor-critic.

    Raises:
      UserError: a file cannot be used.
    """
    settings: RewardEnsemble = run.reward
    start, prior = None, state.nothing(*widths(env))
    if settings.path is not None:
        abstract = jax.eval_shape(ensemble.init, jax.random.key(0)).params
        start = weights.load(settings.path, abstract, run.env.subject)
    if settings.answers is not None:
        prior = answers.read(settings.answers, widths(env))

    def init(key: jax.Array) -> Taught:
        fitted = ensemble.init(key)
        if start is not None:
            fitted = fitted._replace(params=jax.tree.map(jnp.asarray, start))
        return state.untaught(fitted, prior, settings.questions.budget, run.segment_length)

    return init


def digests(settings: RewardEnsemble) -> dict[str, str]:
    """Of the files; see `Task.digests`."""
    paths = {'reward.path': settings.path, 'reward.answers': settings.answers}
    return {key: files.digest(path, whole=True) for key, path in paths.items() if path is not None}


def foretold(
    settings: RewardEnsemble, ensemble: Ensemble, reward: RewardT, key: jax.Array
) -> RewardT:
    """Before the first question: after a fit on nine of ten answers of the file, and with what it
    then makes of the tenth. A fit on all of them comes after it; later nothing is changed."""
    held_N = held_out(settings, reward)
    if not held_N.any():
        return reward
    now = reward.asked == 0
    others = reward.answers._replace(weight=reward.answers.weight * ~held_N)
    passes = jnp.where(now, settings.passes, 0)  # No `cond`; see `ensemble.fit`.
    # The number after those of a fit's passes.
    fit = ensemble.fit(reward.fitted, others, jax.random.fold_in(key, settings.passes), passes)
    margin_N = margins(ensemble, fit.fitted.params, reward.answers).mean(0)
    margin_N = jnp.where(held_N & now, margin_N, reward.margin_N)
    return reward._replace(fitted=fit.fitted, margin_N=margin_N)


def held_out(settings: RewardEnsemble, reward: Taught | LearnedReward) -> np.ndarray:
    """Which places have answers of the file that are predicted, bool [N]."""
    place_N = np.arange(len(reward.margin_N))
    return (place_N % HELD_OUT == HELD_OUT - 1) & (place_N < begun_with(settings, reward))


def known_before(settings: RewardEnsemble, reward: Taught | LearnedReward) -> Metrics:
    """How well the ensemble knew answers before it had them, `OF_ANSWERS`: those of the run, and of
    the file those that were held out at first. Nothing is learned from these numbers."""
    own_N = np.arange(len(reward.margin_N)) >= begun_with(settings, reward)
    counted_N = reward.answers.weight * (own_N | held_out(settings, reward))
    return of_answers(reward.margin_N, reward.answers.prob, counted_N)
