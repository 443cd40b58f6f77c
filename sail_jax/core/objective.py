"""SAIL-RevKL's preference objective for groups of K responses to one context.

Axes: B contexts (rows), K responses of a group, T steps or tokens of a response. The objective and
its gradient follow SAIL (arXiv 2406.15567) with the reverse-KL penalty of SAIL-RevKL
(arXiv 2606.31524); the pair average and the leave-one-out baseline for K > 2 are ours.

The surrogate's *value* means nothing; its gradient is the estimator.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Preferences(NamedTuple):
    """What a labeller said about the pairs of each group."""

    prob_BxKxK: jax.Array
    """Probability that i is preferred to j; `prob_ij + prob_ji = 1`. Hard labels are 0, 1/2, 1."""
    weight_BxKxK: jax.Array
    """1 where the pair has a label, 0 where it has none (skipped, or the budget is spent)."""


class Route(NamedTuple):
    """Which member of the family each row belongs to: two switches."""

    on_policy_B: jax.Array
    """True: the responses are the policy's own samples. False: they come from the data."""
    policy_label_B: jax.Array
    """True: the policy labels its own pairs. False: the labeller or the data does."""


class Coefficients(NamedTuple):
    """Weights of the terms of the gradient; the theory's values are `response = label = 1`."""

    beta: float
    response: float
    label: float


class Mean(NamedTuple):
    """A mean whose parts can be added up over devices."""

    total: jax.Array
    count: jax.Array

    def value(self) -> jax.Array:
        """NaN of nothing."""
        return self.total / self.count


class Estimate(NamedTuple):
    """One batch's estimate of the preference objective J."""

    value: jax.Array
    """J averaged over the labelled pairs of the batch."""
    surrogate: jax.Array
    """Scalar whose gradient estimates the gradient of J."""
    margin: Mean
    """Mean of the margin `D_ij`, signed so that agreeing with the label is positive."""
    accuracy: Mean
    """Share of decided pairs whose margin has the label's sign; a zero margin counts one half."""


def route(key_B: jax.Array, ddp: float, dpp: float, dpr: float) -> Route:
    """Sends each row to DDP, DPP, DPR or (with what is left of probability) offline DPO.

    Args:
      key_B: one key for each row, so that a row's route is its own.
      ddp: probability of data responses with policy labels.
      dpp: probability of policy responses with policy labels.
      dpr: probability of policy responses with the labeller's labels.
    """
    uniform_B = jax.vmap(jax.random.uniform)(key_B)
    return Route(
        on_policy_B=(uniform_B >= ddp) & (uniform_B < ddp + dpp + dpr),
        policy_label_B=uniform_B < ddp + dpp,
    )


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
    # Not afterwards: 0 * exp(inf) is NaN.
    ratio_BxKxT = jnp.exp(jnp.where(weight_BxKxT == 0, 0, log_ratio_BxKxT))
    term_BxKxT = weight_BxKxT * ratio_BxKxT
    if clip is not None:
        clipped_BxKxT = jnp.clip(ratio_BxKxT, 1 - clip, 1 + clip)
        term_BxKxT = jnp.minimum(term_BxKxT, weight_BxKxT * clipped_BxKxT)
    return term_BxKxT.sum(-1)


def margins(logp_BxK: jax.Array, reference_logp_BxK: jax.Array, beta: float) -> jax.Array:
    """`D_ij = h_i - h_j` with the implicit reward `h = beta * (log pi - log pi_ref)`, [B, K, K]."""
    h_BxK = beta * (logp_BxK - reference_logp_BxK)
    return h_BxK[:, :, None] - h_BxK[:, None, :]


def advantages(f_BxKxK: jax.Array, weight_BxKxK: jax.Array, axis: str | None = None) -> jax.Array:
    """`A_k = 2/K (mean_{j != k} g_kj - mean_{i, j != k} g_ij)`, [B, K], without gradient.

    `g = w (f - b)`, where w is 1 for pairs that have a label. The second mean, over the pairs of
    the group without k, does not depend on response k, so it moves no expectation; for K = 2 there
    is none. The baseline b is the ratio `sum wf / sum w` of the other rows of the batch (of a
    minibatch, where it is split), and -log 2, which is f at a margin of 0, where none of them has
    a label. Where every pair has one, and K >= 3, it cancels.

    Where a labeller leaves pairs out by what they are, as `labellers.Teacher.skip` does, the
    objective is the ratio `J = E[wf] / E[w]`, whose gradient is `E[w (f - J) score] / E[w]`: the
    weights are part of what the responses are paid for, and b stands in for J. A row's own part of
    the numerator is exact for every b that does not depend on the row; the estimate, a ratio of
    sums, is biased by O(1/B). Where weights do not depend on the responses (all labelled, calls of
    "equal", a budget that ends) it is unbiased.

    The scaling is for a mean over the K(K-1)/2 pairs of the row.

    Args:
      f_BxKxK: of each pair, symmetric.
      weight_BxKxK: 1 where it has a label; 0 also on the diagonal.
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
        other_weight_B > 0, other_f_B / jnp.maximum(other_weight_B, 1), -jnp.log(2.0)
    )
    g_BxKxK = f_BxKxK - weight_BxKxK * baseline_B[:, None, None]
    own_BxK = g_BxKxK.sum(-1)
    if K > 2:
        # (K-1)(K-2)/2 pairs are without k, K-1 with it.
        own_BxK = own_BxK - (own_BxK.sum(-1, keepdims=True) / 2 - own_BxK) * 2 / (K - 2)
    return own_BxK * 2 / (K * (K - 1))


def pair_weights(labels: Preferences, route: Route) -> jax.Array:
    """1 for pairs that have a label, the labeller's or the policy's, [B, K, K]."""
    weight_BxKxK = jnp.where(route.policy_label_B[:, None, None], 1, labels.weight_BxKxK)
    return weight_BxKxK * (1 - jnp.eye(weight_BxKxK.shape[-1]))


def count_pairs(labels: Preferences, route: Route) -> jax.Array:
    """How many that are; every pair stands twice in the matrices, at ij and ji."""
    return pair_weights(labels, route).sum() / 2


def preference(
    logp_BxKxT: jax.Array,
    behaviour_logp_BxKxT: jax.Array,
    reference_logp_BxKxT: jax.Array,
    mask_BxKxT: jax.Array,
    labels: Preferences,
    route: Route,
    coefficients: Coefficients,
    clip: float | None = None,
    count: jax.Array | None = None,
    axis: str | None = None,
) -> Estimate:
    """J and the surrogate of its gradient: pathwise, response-score and label-score terms.

    `J = mean over labelled pairs of P_ij logsigmoid(D_ij) + P_ji logsigmoid(D_ji)`.

    * pathwise: autodiff through the margins, samples and labels fixed. It is the DPO loss of a
      fixed batch and is not reweighted when the batch is some gradient steps old.
    * response score, rows with the policy's responses only: `sum_k A_k log pi(y_k)`.
    * label score, rows with the policy's labels only: no label is sampled, `P_ij = sigmoid(D_ij)`
      stands in f and autodiff runs through it.

    Args:
      logp_BxKxT: log-probability of each step under the policy that is differentiated.
      behaviour_logp_BxKxT: the same under the policy that drew the sample.
      reference_logp_BxKxT: the same under the reference.
      mask_BxKxT: 1 for the steps that belong to the response.
      labels: preferences of the labeller; ignored in rows that the policy labels.
      route: the member of the family that each row belongs to.
      coefficients: beta, and the weights of the response- and label-score terms.
      clip: see `score_term`.
      count: the labelled pairs of the batch, where these are the rows of one device of several: all
        that is returned then adds up over the devices.
      axis: see `advantages`. K = 2 needs it there, and labellers that leave pairs out.

    Raises:
      ValueError: if K < 2.
    """
    K = logp_BxKxT.shape[1]
    if K < 2:
        raise ValueError(f'a group needs at least 2 responses to compare, got K = {K}')
    mask_BxKxT = mask_BxKxT.astype(logp_BxKxT.dtype)
    # Masked steps may hold anything, infinities included.
    logp_BxKxT = jnp.where(mask_BxKxT > 0, logp_BxKxT, 0)
    behaviour_logp_BxKxT = jnp.where(mask_BxKxT > 0, behaviour_logp_BxKxT, 0)
    reference_logp_BxKxT = jnp.where(mask_BxKxT > 0, reference_logp_BxKxT, 0)
    logp_BxK = logp_BxKxT.sum(-1)
    reference_logp_BxK = jax.lax.stop_gradient(reference_logp_BxKxT.sum(-1))
    D_BxKxK = margins(logp_BxK, reference_logp_BxK, coefficients.beta)

    own_BxKxK = jax.nn.sigmoid(D_BxKxK)
    own_BxKxK = coefficients.label * own_BxKxK + (1 - coefficients.label) * jax.lax.stop_gradient(
        own_BxKxK
    )
    prob_BxKxK = jnp.where(route.policy_label_B[:, None, None], own_BxKxK, labels.prob_BxKxK)
    weight_BxKxK = pair_weights(labels, route).astype(logp_BxK.dtype)

    f_BxKxK = prob_BxKxK * jax.nn.log_sigmoid(D_BxKxK) + (1 - prob_BxKxK) * jax.nn.log_sigmoid(
        -D_BxKxK
    )
    if count is None:
        count = count_pairs(labels, route)
    # Every pair stands twice in the matrices, at ij and ji.
    count = jnp.maximum(count, 1)
    value = (f_BxKxK * weight_BxKxK).sum() / 2 / count

    advantage_BxK = advantages(f_BxKxK, weight_BxKxK, axis) * route.on_policy_B[:, None]
    score_BxK = score_term(
        advantage_BxK[..., None] * mask_BxKxT, logp_BxKxT, behaviour_logp_BxKxT, clip
    )
    # `advantages` is scaled for the mean over one row's K(K-1)/2 pairs; J is one over all pairs.
    response = score_BxK.sum() * (K * (K - 1) / 2) / count

    sign_BxKxK = jnp.sign(prob_BxKxK - 0.5)
    decided_BxKxK = weight_BxKxK * jnp.abs(sign_BxKxK)
    agreement_BxKxK = (1 + jnp.sign(D_BxKxK) * sign_BxKxK) / 2
    decided = decided_BxKxK.sum()
    return Estimate(
        value=value,
        surrogate=value + coefficients.response * response,
        margin=Mean((decided_BxKxK * D_BxKxK * sign_BxKxK).sum(), decided),
        accuracy=Mean((decided_BxKxK * agreement_BxKxK).sum(), decided),
    )
