"""Which pairs of segments are worth a question, when questions are asked, and where they are kept.

Axes: M members, C candidates, Q questions of a round, N of the run, behind the answers that it
began with.
"""

from functools import partial
from typing import Any, NamedTuple

import sail_jax.control.compat  # noqa: F401

import jax
import jax.numpy as jnp

from sail_jax.control.reward.config import Questions, RewardEnsemble
from sail_jax.control.reward.ensemble import Comparisons, Ensemble, margins
from sail_jax.control.reward.state import LearnedReward, RewardT, Taught, begun_with
from sail_jax.scalars import INT_MAX


class Shown(NamedTuple):
    """Segments as a round finds them, [B, K, T, ...]; or pairs of them, [C, 2, T, ...]."""

    obs: Any
    action: jax.Array
    mask: jax.Array
    true_reward: jax.Array
    """What the teacher goes by."""
    not_finite: jax.Array
    """[B, K]"""
    pose: jax.Array | None = None
    """What people go by, as of `Segments`."""


class Proposal(NamedTuple):
    """A round of questions, Q of them, before anybody has answered."""

    pairs: Shown
    """[Q, 2, T, ...]"""
    margin_Q: jax.Array
    """As of `Taught`."""


def disagreement(prob_MxC: jax.Array) -> jax.Array:
    """The standard deviation of the members' probabilities, [C] (arXiv 1706.03741, section
    2.2.4)."""
    return prob_MxC.std(0)


def entropy(prob_MxC: jax.Array) -> jax.Array:
    """The mean of the members' entropies, nats, [C] (arXiv 2106.05091, section 4.2)."""
    entr = jax.scipy.special.entr
    return (entr(prob_MxC) + entr(1 - prob_MxC)).mean(0)


SCORES = {'disagreement': disagreement, 'entropy': entropy}


def pick(
    settings: Questions, key: jax.Array, margin_MxC: jax.Array, first: jax.typing.ArrayLike
) -> jax.Array:
    """The candidates that are asked about, the most wanted first: their numbers, [Q].

    Args:
      margin_MxC: of the first segment over the second by each member, as of `ensemble.margins`.
      first: whether it is the first round, which takes any.
    """
    score_C = jax.random.uniform(key, margin_MxC.shape[1:])
    if settings.choice != 'uniform':
        wanted_C = SCORES[settings.choice](jax.nn.sigmoid(margin_MxC))
        score_C = jnp.where(first, score_C, wanted_C)
    return jax.lax.top_k(score_C, settings.per_round)[1]


def due(
    settings: Questions, updates: jax.Array, asked: jax.Array, env_steps_per_update: int
) -> jax.Array:
    """How many questions the next update asks, int32.

    Args:
      updates: so far.
      asked: questions so far.
    """
    # Updates are counted in int32, which no run comes to the end of.
    every = min(-(-settings.every_env_steps // env_steps_per_update), INT_MAX)
    left = jnp.minimum(settings.per_round, settings.budget - asked)
    return jnp.where(updates % every == 0, left, 0)


def proposed(
    settings: RewardEnsemble,
    ensemble: Ensemble,
    reward: Taught | LearnedReward,
    candidates: Shown,
    key: jax.Array,
) -> Proposal:
    """The candidates that are worth a question; any, as long as the ensemble knows nothing."""
    margin_MxC = margins(ensemble, reward.fitted.params, unanswered(candidates))
    knows = settings.path is not None or begun_with(settings, reward) > 0
    first = (reward.asked == 0) & (not knows)
    chosen_Q = pick(settings.questions, key, margin_MxC, first)
    pairs = jax.tree.map(lambda x: x[chosen_Q], candidates)
    return Proposal(pairs=pairs, margin_Q=margin_MxC.mean(0)[chosen_Q])


def unanswered(pairs: Shown) -> Comparisons:
    """Pairs of which nothing is said yet."""
    count = len(pairs.mask)
    return Comparisons(
        obs=pairs.obs,
        action=pairs.action,
        mask=pairs.mask,
        prob=jnp.zeros(count),
        weight=jnp.zeros(count),
    )


def placed(
    settings: RewardEnsemble,
    reward: RewardT,
    proposal: Proposal,
    said: tuple[jax.Array, jax.Array] | None,
    number: jax.Array,
) -> RewardT:
    """A round beside the earlier ones.

    Args:
      said: `Comparisons.prob` and `weight`, [Q]; None where nothing is said yet.
      number: questions of the round that are asked, the first; the others have no place.
    """
    new = unanswered(proposal.pairs)
    if said is not None:
        new = new._replace(prob=said[0], weight=said[1])
    number_Q = jnp.arange(len(proposal.margin_Q))
    first, nowhere = begun_with(settings, reward) + reward.asked, len(reward.margin_N)
    put = partial(_put, jnp.where(number_Q < number, first + number_Q, nowhere))
    return reward._replace(
        answers=jax.tree.map(put, reward.answers, new),
        margin_N=put(reward.margin_N, proposal.margin_Q),
        asked=reward.asked + number,
    )


def _put(place_Q: jax.Array, places: jax.Array, new: jax.Array) -> jax.Array:
    """Puts answers in their places, whose segments may be longer, those of a file for example."""
    sizes = (len(new), *places.shape[1:])
    new = jnp.pad(new, [(0, size - now) for size, now in zip(sizes, new.shape, strict=True)])
    return places.at[place_Q].set(new, mode='drop')
