"""Who says which of two responses is better.

`Teacher` follows the scripted teachers of B-Pref (Lee et al. 2021, arXiv 2111.03026, section 3.1).
Its six kinds are settings of one function:

| teacher    | setting                                                            |
|------------|--------------------------------------------------------------------|
| oracle     | the defaults: the larger return is preferred                       |
| stochastic | `rationality: b` - Bradley-Terry, `sigmoid(b * (R_i - R_j))`       |
| myopic     | `discount: g` < 1 - a reward t steps before the end counts `g^t`   |
| mistake    | `mistake: e` - a label is turned round with probability e          |
| skip       | `skip: e` - no label where both returns are low                    |
| equal      | `equal: e` - "the same" where the returns are close                |

The policy as its own labeller needs no code here: see `objective.Route.policy_label_B`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from sail_jax.config import Teacher
from sail_jax.objective import Preferences


def myopic_weights(mask_BxKxT: jax.Array, discount: float) -> jax.Array:
    """Weight `discount^(steps left)` for each step of a segment, [B, K, T], 0 where masked."""
    left_BxKxT = mask_BxKxT.sum(-1, keepdims=True) - jnp.cumsum(mask_BxKxT, -1)
    return mask_BxKxT * discount**left_BxKxT


def compare(
    key_B: jax.Array,
    true_BxK: jax.Array,
    perceived_BxK: jax.Array,
    teacher: Teacher,
) -> Preferences:
    """Compares all pairs of each group.

    Args:
      key_B: one key for each group; its labels depend on nothing else of the batch, but for the
        thresholds below.
      true_BxK: returns, which decide what the teacher skips or calls equal.
      perceived_BxK: what the teacher goes by: the returns, or the myopic ones.
      teacher: see the module's docstring. As in B-Pref the thresholds of `skip` and `equal` are in
        units of a typical return, here the mean of `|return|` over the batch.

    Returns:
      Hard labels (0, 1/2, 1), or with `teacher.soft` the probabilities themselves.
    """
    K = true_BxK.shape[1]
    difference_BxKxK = perceived_BxK[:, :, None] - perceived_BxK[:, None, :]
    if teacher.rationality is None:
        prob_BxKxK = (1 + jnp.sign(difference_BxKxK)) / 2
    else:
        prob_BxKxK = jax.nn.sigmoid(teacher.rationality * difference_BxKxK)

    upper_KxK = jnp.triu(jnp.ones((K, K), bool), 1)
    choice_B, mistake_B = jax.vmap(jax.random.split, out_axes=1)(key_B)
    if teacher.soft:
        prob_BxKxK = (1 - teacher.mistake) * prob_BxKxK + teacher.mistake * (1 - prob_BxKxK)
    else:
        draw = jax.vmap(lambda key: jax.random.uniform(key, (K, K)))
        hard_BxKxK = (draw(choice_B) < prob_BxKxK).astype(prob_BxKxK.dtype)
        turned_BxKxK = draw(mistake_B) < teacher.mistake
        hard_BxKxK = jnp.where(turned_BxKxK, 1 - hard_BxKxK, hard_BxKxK)
        # The same draw decides ij and ji.
        hard_BxKxK = jnp.where(upper_KxK, hard_BxKxK, 1 - hard_BxKxK.mT)
        # Not where the probability is 1/2: of a tiny difference it is for ij, and not for ji.
        prob_BxKxK = jnp.where(difference_BxKxK == 0, 0.5, hard_BxKxK)
    # No confident label out of a return that is not finite: the update is skipped and counted.
    prob_BxKxK = jnp.where(jnp.isfinite(difference_BxKxK), prob_BxKxK, jnp.nan)

    typical = jnp.abs(true_BxK).mean()
    true_difference_BxKxK = jnp.abs(true_BxK[:, :, None] - true_BxK[:, None, :])
    if teacher.equal > 0:
        prob_BxKxK = jnp.where(true_difference_BxKxK < teacher.equal * typical, 0.5, prob_BxKxK)
    weight_BxKxK = jnp.ones_like(prob_BxKxK) - jnp.eye(K)[None]
    if teacher.skip > 0:
        best_BxKxK = jnp.maximum(true_BxK[:, :, None], true_BxK[:, None, :])
        weight_BxKxK = jnp.where(best_BxKxK < teacher.skip * typical, 0, weight_BxKxK)
    return Preferences(prob_BxKxK, weight_BxKxK)


class Budget(NamedTuple):
    """Labels after the budget was applied."""

    preferences: Preferences
    asked: jax.Array
    """How many comparisons this batch cost, skipped ones included, int32."""


def within_budget(
    preferences: Preferences, asks_B: jax.Array, spent: jax.Array, max_labels: int | None
) -> Budget:
    """Removes the labels that the budget no longer covers, in the order of rows and pairs.

    Args:
      preferences: labels of the whole batch.
      asks_B: True for rows whose pairs are put to the labeller.
      spent: comparisons asked before this batch.
      max_labels: the budget; None is unlimited.
    """
    K = preferences.prob_BxKxK.shape[-1]
    pairs = K * (K - 1) // 2
    asked = pairs * asks_B.sum(dtype=jnp.int32)
    if max_labels is None:
        return Budget(preferences, asked)
    left = jnp.maximum(max_labels - spent, 0)
    before_B = pairs * (jnp.cumsum(asks_B, dtype=jnp.int32) - asks_B)
    upper_KxK = jnp.triu(jnp.ones((K, K), jnp.int32), 1)
    order_KxK = (jnp.cumsum(upper_KxK.ravel()) - 1).reshape(K, K) * upper_KxK
    order_KxK = order_KxK + order_KxK.T
    covered_BxKxK = before_B[:, None, None] + order_KxK < left
    covered_BxKxK = covered_BxKxK | ~asks_B[:, None, None]
    return Budget(
        preferences._replace(weight_BxKxK=preferences.weight_BxKxK * covered_BxKxK),
        jnp.minimum(asked, left),
    )
