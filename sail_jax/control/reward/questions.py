"""Which pairs of segments are worth a question, and when questions are asked.

Axes: M members, C candidates, Q questions.
"""

import jax
import jax.numpy as jnp

from sail_jax.control.reward.config import Questions
from sail_jax.scalars import INT_MAX


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
