"""What a run with a learned reward carries from one update to the next."""

from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from sail_jax.control.reward.config import RewardEnsemble
from sail_jax.control.reward.ensemble import Comparisons, Fitted
from sail_jax.control.rollout import Contexts


class Taught(NamedTuple):
    """The ensemble, and all that it has been told."""

    fitted: Fitted
    answers: Comparisons
    """Those of `reward.answers`, P of them, then a place for each question of the run, N in all;
    those to come are empty."""
    margin_N: jax.Array
    """By how much the first's return was larger in the ensemble's eyes before it learned the
    answer: when the pair was asked about; of a file's answers see `beginning.foretold`."""
    asked: jax.Array
    """Questions so far, int32."""


class LearnedReward(NamedTuple):
    """The same, of a run whose updates ask."""

    fitted: Fitted
    answers: Comparisons
    margin_N: jax.Array
    update_N: jax.Array
    """The update that asked, from 1 on; 0 of an empty place, and of a pair from a file."""
    asked: jax.Array
    updates: jax.Array
    """So far, int32."""
    accuracy: jax.Array
    """`ensemble.Fit.accuracy` of the newest fit."""
    passes: jax.Array
    """Of the newest update's fit."""


RewardT = TypeVar('RewardT', Taught, LearnedReward)


class ContextsAndReward(NamedTuple):
    """What the next batch of a run with a learned reward depends on, besides its policies."""

    contexts: Contexts
    reward: LearnedReward


class AskedPeople(NamedTuple):
    """Of the questions that people are asked: the newest round, Q of them."""

    pose_Qx2xTxLx7: jax.Array
    """Of the links in both segments, before each step and after the last."""
    waiting: jax.Array
    """Questions that training has no answers to yet, int32."""


class ContextsRewardAndAsked(NamedTuple):
    """As `ContextsAndReward`, of a run that people label."""

    contexts: Contexts
    reward: LearnedReward
    asked: AskedPeople


def with_reward(
    contexts: Contexts, reward: LearnedReward, asked: AskedPeople | None
) -> ContextsAndReward | ContextsRewardAndAsked:
    """What a run carries, by whether people are asked."""
    if asked is None:
        return ContextsAndReward(contexts, reward)
    return ContextsRewardAndAsked(contexts, reward, asked)


def untaught(fitted: Fitted, prior: Comparisons, budget: int, steps: int) -> Taught:
    """Before any question.

    Args:
      prior: answers that there are already, P of them.
      budget: questions to come.
      steps: of their segments.
    """
    P, T = len(prior.weight), max(prior.mask.shape[2], steps)
    N = P + budget

    def places(x: jax.Array) -> jax.Array:
        after = (N, *x.shape[1:2], T, *x.shape[3:]) if x.ndim > 1 else (N,)
        return jnp.pad(x, [(0, size - now) for size, now in zip(after, x.shape, strict=True)])

    return Taught(
        fitted=fitted,
        answers=jax.tree.map(places, prior),
        margin_N=jnp.zeros(N),
        asked=jnp.zeros((), jnp.int32),
    )


def begun(taught: Taught) -> LearnedReward:
    """Before the first update."""
    number = lambda: jnp.zeros((), jnp.int32)  # The state is donated: each has its own.
    return LearnedReward(
        **taught._asdict(),
        update_N=jnp.zeros_like(taught.margin_N, jnp.int32),
        updates=number(),
        accuracy=jnp.zeros(()),
        passes=number(),
    )


def begun_with(settings: RewardEnsemble, reward: Taught | LearnedReward) -> int:
    """Answers that it began with, P."""
    return len(reward.margin_N) - settings.questions.budget


def nothing(width_obs: int, width_action: int) -> Comparisons:
    """No answers."""
    empty = lambda *width: jnp.zeros((0, 2, 0, *width))
    return Comparisons(
        obs=empty(width_obs),
        action=empty(width_action),
        mask=empty(),
        prob=jnp.zeros(0),
        weight=jnp.zeros(0),
    )
