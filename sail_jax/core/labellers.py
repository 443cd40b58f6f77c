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

Thresholds. B-Pref's code (`reward_model.py`, `get_label`) keeps a query where the larger return is
above `e * R`, if `e * R > 0`, and calls returns equal that differ by less than `e * R`; R is the
mean return of the last training episodes, scaled to a segment. Here R is the mean return of the
batch. `skip` is B-Pref's rule with it: where R is not positive (a reward that is a cost) nothing is
skipped, as "low" then has no scale. `equal` goes by the mean of `|return|`: that is R where returns
are positive, and works where they are negative.

The policy as its own labeller needs no code here: see `objective.Route.policy_label_B`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from sail_jax.config import Teacher
from sail_jax.core.objective import Preferences


def myopic_weights(mask_BxKxT: jax.Array, discount: float) -> jax.Array:
    """Weight `discount^(steps left)` for each step of a segment, [B, K, T], 0 where masked."""
    left_BxKxT = mask_BxKxT.sum(-1, keepdims=True) - jnp.cumsum(mask_BxKxT, -1)
    return mask_BxKxT * discount**left_BxKxT


def compare(
    key_B: jax.Array,
    true_BxK: jax.Array,
    perceived_BxK: jax.Array,
    teacher: Teacher,
    counted_BxK: jax.Array | None = None,
) -> Preferences:
    """Compares all pairs of each group.

    Args:
      key_B: one key for each group; its labels depend on nothing else of the batch, but for the
        thresholds below.
      true_BxK: returns, which decide what the teacher skips or calls equal.
      perceived_BxK: what the teacher goes by: the returns, or the myopic ones.
      teacher: see the module's docstring. The objective's gradient takes the thresholds of `skip`
        and `equal` as given, though they move with the batch.
      counted_BxK: True for the returns that a typical one is the mean of; None is all.

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

    if counted_BxK is None:
        counted_BxK = jnp.ones(true_BxK.shape, bool)
    counted = jnp.maximum(counted_BxK.sum(), 1)
    typical = jnp.where(counted_BxK, true_BxK, 0).sum() / counted
    typical_size = jnp.where(counted_BxK, jnp.abs(true_BxK), 0).sum() / counted
    true_difference_BxKxK = jnp.abs(true_BxK[:, :, None] - true_BxK[:, None, :])
    if teacher.equal > 0:
        close_BxKxK = true_difference_BxKxK < teacher.equal * typical_size
        prob_BxKxK = jnp.where(close_BxKxK, 0.5, prob_BxKxK)
    weight_BxKxK = jnp.ones_like(prob_BxKxK) - jnp.eye(K)[None]
    if teacher.skip > 0:
        best_BxKxK = jnp.maximum(true_BxK[:, :, None], true_BxK[:, None, :])
        low_BxKxK = (typical > 0) & (best_BxKxK <= teacher.skip * typical)
        weight_BxKxK = jnp.where(low_BxKxK, 0, weight_BxKxK)
    return Preferences(prob_BxKxK, weight_BxKxK)


def broken_loses(preferences: Preferences, broken_BxK: jax.Array) -> Preferences:
    """What a segment collected until the simulator broke is no return: it loses to every sound one,
    whatever a labeller made of it, and two of them are not compared."""
    i_BxKxK, j_BxKxK = jnp.broadcast_arrays(broken_BxK[:, :, None], broken_BxK[:, None, :])
    prob_BxKxK = jnp.where(i_BxKxK, 0, jnp.where(j_BxKxK, 1, preferences.prob_BxKxK))
    both_BxKxK = i_BxKxK & j_BxKxK
    return Preferences(
        jnp.where(both_BxKxK, 0.5, prob_BxKxK), jnp.where(both_BxKxK, 0, preferences.weight_BxKxK)
    )


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
