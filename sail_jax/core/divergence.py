"""KL between policy and reference: closed forms, estimators, and projection of the parameters.

"Reverse KL" names opposite things in the SAIL-RevKL paper and in most of the RLHF literature, so
the direction is always spelled out: `ref_to_policy` is `KL(pi_ref || pi)`, the paper's penalty;
`policy_to_ref` is `KL(pi || pi_ref)`.

Axes: B contexts, L lanes (responses, and possibly one more drawn from the reference), T steps.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from sail_jax.core import score
from sail_jax.core.types import Steps

Direction = Literal['ref_to_policy', 'policy_to_ref']
Reduction = Literal['sum', 'mean']


class Gaussian(NamedTuple):
    """Independent normals over the last axis."""

    loc: jax.Array
    scale: jax.Array


class Penalty(NamedTuple):
    """One batch's estimate of a KL."""

    value: jax.Array
    surrogate: jax.Array
    """Scalar whose gradient estimates the gradient of the KL."""


def gaussian_kl(p: Gaussian, q: Gaussian) -> jax.Array:
    """`KL(p || q)` of independent normals, summed over the last axis.

    For tanh-squashed actions this is the KL of the squashed actions too: KL is invariant under an
    invertible map.
    """
    ratio, shift = p.scale / q.scale, (p.loc - q.loc) / q.scale
    return (0.5 * (ratio**2 + shift**2 - 1) - jnp.log(ratio)).sum(-1)


def categorical_kl(p_logits: jax.Array, q_logits: jax.Array) -> jax.Array:
    """`KL(p || q)` of categoricals over the last axis; a log-probability of -inf under p is 0."""
    p_logp, q_logp = jax.nn.log_softmax(p_logits), jax.nn.log_softmax(q_logits)
    support = jnp.isfinite(p_logp)
    difference = jnp.where(support, p_logp, 0) - jnp.where(support, q_logp, 0)
    return (jnp.exp(p_logp) * difference).sum(-1)


def leave_one_out(x_BxLxT: jax.Array, weight_BxLx1: jax.Array) -> jax.Array:
    """Mean over the other lanes of the row, 0 where there is none: a baseline."""
    other = (x_BxLxT * weight_BxLx1).sum(1, keepdims=True) - x_BxLxT * weight_BxLx1
    count = weight_BxLx1.sum(1, keepdims=True) - weight_BxLx1
    return jnp.where(count > 0, other / jnp.maximum(count, 1), 0)


# parameters: arrays of the batch, and options by name
def penalty(
    kl_BxLxT: jax.Array,
    steps: Steps,
    lane_BxL: jax.Array,
    *,
    reduction: Reduction = 'sum',
    visitation: bool = False,
    clip: float | None = None,
    lanes: jax.Array | None = None,
) -> Penalty:
    """Exact per-step KL, accumulated over the steps of the lanes that count.

    With lanes drawn from the reference (or any distribution that does not depend on the policy)
    the gradient of the `sum` is unbiased for the trajectory's `KL(pi_ref || pi)` as it stands. On
    the policy's own samples the per-step KL also weights the states that the policy visits, so its
    gradient is biased without `visitation`, which adds the score-function part
    `sum_t log pi(a_t) * sum_{t' > t} KL_t'` with a leave-one-out baseline over the row's lanes.

    Args:
      kl_BxLxT: per-step KL in the wanted direction, differentiable in the policy.
      steps: [B, L, T]; the reference's log-probabilities are not used.
      lane_BxL: 1 for lanes whose states count.
      reduction: `sum` over steps is the trajectory KL; `mean` divides each lane by its number of
        steps, so that a coefficient carries over between lengths (and is not the trajectory KL).
      visitation: add the score-function part; only meaningful for the policy's own samples, and
        with `sum`.
      clip: of the score-function part's ratio, as in `score.score_term`: what is bounded is how
        far one batch can lower the KL.
      lanes: how many count in the whole batch, where these are the rows of one device of several:
        what is returned then adds up over the devices. None counts those of `lane_BxL`.

    Raises:
      ValueError: visitation with `mean`.
    """
    if visitation and reduction == 'mean':
        raise ValueError('the score-function part is that of the sum over steps, not of the mean')
    weight_BxLx1 = lane_BxL[..., None].astype(kl_BxLxT.dtype)
    step_BxLxT = _step_weights(steps.mask, weight_BxLx1, reduction)
    kl_BxLxT = jnp.where(step_BxLxT > 0, kl_BxLxT, 0) * step_BxLxT
    lanes = jnp.maximum(lane_BxL.sum() if lanes is None else lanes, 1)
    value = kl_BxLxT.sum() / lanes
    if not visitation:
        return Penalty(value=value, surrogate=value)
    to_come_BxLxT = jnp.flip(jnp.cumsum(jnp.flip(kl_BxLxT, -1), -1), -1) - kl_BxLxT
    score_part = _score_part(to_come_BxLxT, steps, step_BxLxT, weight_BxLx1, clip)
    return Penalty(value=value, surrogate=value + score_part / lanes)


def sampled_penalty(
    steps: Steps,
    lane_BxL: jax.Array,
    direction: Direction,
    reduction: Reduction = 'sum',
    clip: float | None = None,
    lanes: jax.Array | None = None,
) -> Penalty:
    """KL from the drawn actions alone, without the distributions.

    `ref_to_policy` needs lanes drawn from the reference: `E_ref[log pi_ref - log pi]`, and autodiff
    is its gradient. `policy_to_ref` needs the policy's own samples: the value is
    `E_pi[log pi - log pi_ref]` and the gradient its score-function form; autodiff of the value
    alone would have expectation zero. Arguments as in `penalty`.
    """
    weight_BxLx1 = lane_BxL[..., None].astype(steps.logp.dtype)
    step_BxLxT = _step_weights(steps.mask, weight_BxLx1, reduction)
    lanes = jnp.maximum(lane_BxL.sum() if lanes is None else lanes, 1)
    log_ratio_BxLxT = jnp.where(step_BxLxT > 0, steps.reference_logp - steps.logp, 0) * step_BxLxT
    if direction == 'ref_to_policy':
        value = log_ratio_BxLxT.sum() / lanes
        return Penalty(value=value, surrogate=value)
    log_ratio_BxLxT = -log_ratio_BxLxT
    if reduction == 'sum':
        cost_BxLxT = jnp.flip(jnp.cumsum(jnp.flip(log_ratio_BxLxT, -1), -1), -1)
    else:
        # A step's share depends on the response's length, and so on every action: each action is
        # charged with the whole response, also with the steps before it.
        cost_BxLxT = jnp.broadcast_to(log_ratio_BxLxT.sum(-1, keepdims=True), log_ratio_BxLxT.shape)
    value = log_ratio_BxLxT.sum() / lanes
    score_part = _score_part(cost_BxLxT, steps, step_BxLxT, weight_BxLx1, clip) / lanes
    # Under the sum, autodiff of the value has expectation zero and would only add noise.
    surrogate = score_part if reduction == 'sum' else score_part + value
    return Penalty(value=value, surrogate=surrogate)


def _step_weights(
    mask_BxLxT: jax.Array, weight_BxLx1: jax.Array, reduction: Reduction
) -> jax.Array:
    """What a step's KL counts. 0 where it is masked or its lane does not count: what stands there
    may be anything, infinities included."""
    mask_BxLxT = mask_BxLxT.astype(weight_BxLx1.dtype)
    if reduction == 'mean':
        mask_BxLxT = mask_BxLxT / jnp.maximum(mask_BxLxT.sum(-1, keepdims=True), 1)
    return mask_BxLxT * weight_BxLx1


def _score_part(
    cost_BxLxT: jax.Array,
    steps: Steps,
    step_BxLxT: jax.Array,
    weight_BxLx1: jax.Array,
    clip: float | None,
) -> jax.Array:
    """`sum log pi(a_t) cost_t` over the steps that count, the costs centred."""
    centred_BxLxT = cost_BxLxT - leave_one_out(cost_BxLxT, weight_BxLx1)
    gain_BxLxT = -centred_BxLxT * (step_BxLxT > 0)
    # `score_term` bounds as PPO does how far a gain is raised: a cost goes in as a negative gain.
    return -score.score_term(gain_BxLxT, steps.logp, steps.behaviour_logp, clip).sum()
