"""The score-function part of a gradient: weighted log-probabilities, and what they are weighted by.

Axes: B contexts (rows), K responses of a group, T steps or tokens of a response.
"""

import jax
import jax.numpy as jnp


def score_term(
    weight_BxKxT: jax.Array,
    logp_BxKxT: jax.Array,
    behaviour_logp_BxKxT: jax.Array,
    clip: float | None = None,
) -> jax.Array:
    """`sum_t weight_t * log pi(a_t)` for samples that may be some gradient steps old, shape [B, K].

    Written with the ratio of the policy to the one that drew the sample. Where the two are equal
    the gradient is exactly that of the weighted log-probability. Afterwards each step's ratio is
    clipped as in PPO (arXiv 1707.06347, eq. 7), which bounds how far one batch can move the policy;
    `clip=None` keeps the plain per-step importance weight. Masked steps must have weight 0; what
    their log-probabilities are is of no account, not finite ones and infinite ratios included.
    """
    weight_BxKxT = jax.lax.stop_gradient(weight_BxKxT)
    log_ratio_BxKxT = logp_BxKxT - jax.lax.stop_gradient(behaviour_logp_BxKxT)
    # Before `exp`, not by the weight after it: 0 * exp(inf) is NaN.
    ratio_BxKxT = jnp.exp(jnp.where(weight_BxKxT == 0, 0, log_ratio_BxKxT))
    term_BxKxT = weight_BxKxT * ratio_BxKxT
    if clip is not None:
        clipped_BxKxT = jnp.clip(ratio_BxKxT, 1 - clip, 1 + clip)
        term_BxKxT = jnp.minimum(term_BxKxT, weight_BxKxT * clipped_BxKxT)
    return term_BxKxT.sum(-1)


def advantages(
    f_BxKxK: jax.Array,
    weight_BxKxK: jax.Array,
    indifferent: jax.typing.ArrayLike,
    axis: str | None = None,
) -> jax.Array:
    """`A_k = 2/K (mean_{j != k} g_kj - mean_{i, j != k} g_ij)`, [B, K], without gradient.

    `g = w (f - b)`, where w is 1 for pairs that have a label. The second mean, over the pairs of
    the group without k, does not depend on response k, so it moves no expectation; for K = 2 there
    is none. The baseline b is the ratio `sum wf / sum w` of the other rows of the batch (of a
    minibatch, where it is split), and `indifferent` where none of them has a label. Where every
    pair has one, and K >= 3, it cancels.

    Where a labeller leaves pairs out by what they are, as `labeller.skip` does, the
    objective is the ratio `J = E[wf] / E[w]`, whose gradient is `E[w (f - J) score] / E[w]`: the
    weights are part of what the responses are paid for, and b stands in for J. A row's own part of
    the numerator is exact for every b that does not depend on the row; the estimate, a ratio of
    sums, is biased by O(1/B). Where weights do not depend on the responses (all labelled, calls of
    "equal", a budget that ends) it is unbiased.

    The scaling is for a mean over the K(K-1)/2 pairs of the row.

    Args:
      f_BxKxK: of each pair, symmetric.
      weight_BxKxK: 1 where it has a label; 0 also on the diagonal.
      indifferent: f at a margin of 0.
      axis: of a mesh, where these are the rows of one device of several and b is to be over all;
        None takes b over the rows given.
    """
    f_BxKxK = jax.lax.stop_gradient(f_BxKxK * weight_BxKxK)
    K = f_BxKxK.shape[-1]
    row_2xB = jnp.stack([f_BxKxK.sum((1, 2)), weight_BxKxK.sum((1, 2))])
    total_2x1 = row_2xB.sum(1, keepdims=True)
    if axis is not None:
        total_2x1 = jax.lax.psum(total_2x1, axis)
    other_f_B, other_weight_B = total_2x1 - row_2xB
    baseline_B = jnp.where(
        other_weight_B > 0, other_f_B / jnp.maximum(other_weight_B, 1), indifferent
    )
    g_BxKxK = f_BxKxK - weight_BxKxK * baseline_B[:, None, None]
    advantage_BxK = g_BxKxK.sum(-1)
    if K > 2:
        # (K-1)(K-2)/2 pairs are without k, K-1 with it.
        advantage_BxK = advantage_BxK - (
            advantage_BxK.sum(-1, keepdims=True) / 2 - advantage_BxK
        ) * 2 / (K - 2)
    return advantage_BxK * 2 / (K * (K - 1))
