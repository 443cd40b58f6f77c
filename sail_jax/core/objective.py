"""SAIL-RevKL's preference objective for groups of K responses to one context.

Axes: B contexts (rows), K responses of a group, T steps or tokens of a response. The objective and
its gradient follow SAIL (arXiv 2406.15567) with the reverse-KL penalty of SAIL-RevKL
(arXiv 2606.31524); the pair average and the leave-one-out baseline for K > 2 are ours.

The surrogate's *value* means nothing; its gradient is the estimator.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from sail_jax import config
from sail_jax.core import pair_losses, score
from sail_jax.core.pair_losses import PairLoss
from sail_jax.core.types import Mean, Preferences, Route, Steps


class Coefficients(NamedTuple):
    """Weights of the terms of the gradient; the theory's values are `response = label = 1`."""

    beta: jax.typing.ArrayLike
    response: jax.typing.ArrayLike
    label: jax.typing.ArrayLike


class Form(NamedTuple):
    """What of the estimate is fixed when it is compiled."""

    pair_loss: PairLoss = pair_losses.dpo
    """The worth of a pair; see `pair_losses`."""
    clip: float | None = None
    """Bound on the ratios of a batch that is some gradient steps old; see `score.score_term`."""
    target_margin: float = 0.0
    """What a margin has to exceed; see `config.Objective`."""
    label_smoothing: float = 0.0
    """See `config.Objective`."""
    opponents: int = 0
    """See `Workload`."""


class Whole(NamedTuple):
    """The batch that the rows are a part of, where each device has some of its rows.

    What is returned is then a part too: the devices' add up to what one would make of all rows.
    """

    pairs: jax.Array | None = None
    """Labelled pairs of all rows, what means are over; None counts those of the rows given."""
    axis: str | None = None
    """The mesh's axis that rows are split over, for baselines over all rows
    (`score.advantages`). Needed for K = 2, and for labellers that leave pairs out."""


DPO, ALL = Form(), Whole()


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


def margins(implicit_reward_BxK: jax.Array, beta: jax.typing.ArrayLike) -> jax.Array:
    """`D_ij = beta * (h_i - h_j)` of implicit rewards h, [B, K, K]."""
    h_BxK = jnp.multiply(beta, implicit_reward_BxK)
    return h_BxK[:, :, None] - h_BxK[:, None, :]


def pair_weights(labels: Preferences, route: Route) -> jax.Array:
    """1 for pairs that have a label, the labeller's or the policy's, [B, K, K]."""
    weight_BxKxK = jnp.where(route.policy_label_B[:, None, None], 1, labels.weight_BxKxK)
    return weight_BxKxK * (1 - jnp.eye(weight_BxKxK.shape[-1]))


def count_pairs(labels: Preferences, route: Route) -> jax.Array:
    """How many pairs have a label; each stands twice in the matrices, at ij and ji."""
    return pair_weights(labels, route).sum() / 2


def worth(
    D_BxKxK: jax.Array, prob_BxKxK: jax.Array, form: Form, beta: jax.typing.ArrayLike
) -> jax.Array:
    """`f_ij = P_ij f(D_ij - m) + P_ji f(D_ji - m)`, m the target margin: [B, K, K], symmetric."""
    f = lambda D: form.pair_loss(D - form.target_margin, beta)
    return prob_BxKxK * f(D_BxKxK) + (1 - prob_BxKxK) * f(-D_BxKxK)


def preference(
    steps: Steps,
    labels: Preferences,
    route: Route,
    coefficients: Coefficients,
    form: Form = DPO,
    whole: Whole = ALL,
) -> Estimate:
    """J and the surrogate of its gradient: pathwise, response-score and label-score terms.

    `J = mean over labelled pairs of P_ij f(D_ij) + P_ji f(D_ji)`; SAIL's f is `log sigmoid`.

    * pathwise: autodiff through the margins, samples and labels fixed; not reweighted when the
      batch is some gradient steps old.
    * response score, rows with the policy's responses only: `sum_k A_k log pi(y_k)`, over those of
      a group that are not the reference's.
    * label score, rows with the policy's labels only: no label is sampled, `P_ij = sigmoid(D_ij)`
      stands in f and autodiff runs through it.

    Args:
      steps: of the K responses of each row, [B, K, T].
      labels: preferences of the labeller; ignored in rows that the policy labels.
      route: the member of the family that each row belongs to.
      coefficients: beta, and the weights of the response- and label-score terms.
      form: the pair loss, and the bound on ratios.
      whole: the batch, where these are the rows of one device of several.

    Raises:
      ValueError: if K < 2.
    """
    K = steps.logp.shape[1]
    if K < 2:
        raise ValueError(f'a group needs at least 2 responses to compare, got K = {K}')
    steps, beta = _without_junk(steps), coefficients.beta
    D_BxKxK = margins(_implicit_rewards(steps, form.pair_loss), beta)
    labels = smoothed(labels, form.label_smoothing)
    prob_BxKxK = _label_probs(D_BxKxK, labels, route, coefficients.label)
    weight_BxKxK = pair_weights(labels, route).astype(steps.logp.dtype)
    f_BxKxK = _worth(D_BxKxK, prob_BxKxK, labels, form, beta)
    pairs = jnp.maximum(count_pairs(labels, route) if whole.pairs is None else whole.pairs, 1)
    # Every pair stands twice in the matrices, at ij and ji.
    value = (f_BxKxK * weight_BxKxK).sum() / 2 / pairs

    indifferent = form.pair_loss(jnp.asarray(-form.target_margin, D_BxKxK.dtype), beta)
    advantage_BxK = score.advantages(f_BxKxK, weight_BxKxK, indifferent, whole.axis)
    advantage_BxK = advantage_BxK * route.on_policy_B[:, None]
    if form.opponents:
        advantage_BxK = jnp.where(jnp.arange(K) < K - form.opponents, advantage_BxK, 0)
    score_BxK = score.score_term(
        advantage_BxK[..., None] * steps.mask, steps.logp, steps.behaviour_logp, form.clip
    )
    # `advantages` is scaled for the mean over one row's K(K-1)/2 pairs; J is one over all pairs.
    response = score_BxK.sum() * (K * (K - 1) / 2) / pairs
    margin, accuracy = _agreement(D_BxKxK, prob_BxKxK, weight_BxKxK)
    return Estimate(
        value=value,
        surrogate=value + coefficients.response * response,
        margin=margin,
        accuracy=accuracy,
    )


def exploration(
    settings: config.Objective, steps: Steps, beta: jax.typing.ArrayLike, rows: jax.Array
) -> jax.Array:
    """`-alpha E[log pi(y)]` (XPO, arXiv 2405.21046, alg. 1) or `-alpha beta E[log pi(y)/pi_ref(y)]`
    (SELM, arXiv 2405.19332, eq. 5), to be maximised.

    The responses are the reference's, whose distribution no gradient goes through, so autodiff of
    the value is all of it.

    Args:
      settings: which of the two, and alpha.
      steps: of the reference's responses, [B, 1, T].
      rows: of the whole batch.

    Raises:
      ValueError: there is no such response.
    """
    if steps.logp.shape[1] != 1:
        raise ValueError('exploration needs one response of the reference to each context')
    steps, scale = _without_junk(steps), settings.alpha or 0.0
    optimism_BxT = steps.logp[:, 0]
    if settings.exploration == 'selm':
        optimism_BxT = beta * (optimism_BxT - steps.reference_logp[:, 0])
    return -scale * optimism_BxT.sum() / rows


def smoothed(labels: Preferences, share: float) -> Preferences:
    """Labels of which that share is taken to be turned round (cDPO, arXiv 2305.18290's authors'
    note; TRL's `label_smoothing`)."""
    if share == 0:
        return labels
    prob_BxKxK = labels.prob_BxKxK
    return labels._replace(prob_BxKxK=(1 - share) * prob_BxKxK + share * (1 - prob_BxKxK))


def _without_junk(steps: Steps) -> Steps:
    """Masked steps may hold anything, infinities included."""
    mask = steps.mask.astype(steps.logp.dtype)
    clean = lambda x: jnp.where(mask > 0, x, 0)
    return Steps(
        logp=clean(steps.logp),
        behaviour_logp=clean(steps.behaviour_logp),
        reference_logp=clean(steps.reference_logp),
        mask=mask,
    )


def _worth(
    D_BxKxK: jax.Array,
    prob_BxKxK: jax.Array,
    labels: Preferences,
    form: Form,
    beta: jax.typing.ArrayLike,
) -> jax.Array:
    """`worth` of the margins, or of what is between them and the differences of the rewards; or the
    pairs' mean rewards."""
    if not pair_losses.needs_rewards(form.pair_loss):
        return worth(D_BxKxK, prob_BxKxK, form, beta)
    r_BxK = labels.reward_BxK
    if r_BxK is None:
        raise ValueError('the loss is of rewards, and the labeller gave preferences alone')
    if isinstance(form.pair_loss, pair_losses.MeanReward):
        return (r_BxK[:, :, None] + r_BxK[:, None, :]) / 2
    return worth(D_BxKxK - margins(r_BxK, 1.0), prob_BxKxK, form, beta)


def _implicit_rewards(steps: Steps, pair_loss: PairLoss) -> jax.Array:
    """Of whole responses, [B, K]; the reference's part is constant."""
    return pair_losses.implicit_reward(pair_loss)(
        steps.logp.sum(-1), jax.lax.stop_gradient(steps.reference_logp.sum(-1)), steps.mask.sum(-1)
    )


def _label_probs(
    D_BxKxK: jax.Array, labels: Preferences, route: Route, label_grad: jax.typing.ArrayLike
) -> jax.Array:
    """The labeller's probabilities or, with their share of the gradient, the policy's own."""
    policy_BxKxK = jax.nn.sigmoid(D_BxKxK)
    policy_BxKxK = label_grad * policy_BxKxK + (1 - label_grad) * jax.lax.stop_gradient(
        policy_BxKxK
    )
    return jnp.where(route.policy_label_B[:, None, None], policy_BxKxK, labels.prob_BxKxK)


def _agreement(
    D_BxKxK: jax.Array, prob_BxKxK: jax.Array, weight_BxKxK: jax.Array
) -> tuple[Mean, Mean]:
    """`Estimate.margin` and `Estimate.accuracy`, over the pairs whose label decides."""
    sign_BxKxK = jnp.sign(prob_BxKxK - 0.5)
    decided_BxKxK = weight_BxKxK * jnp.abs(sign_BxKxK)
    agreement_BxKxK = (1 + jnp.sign(D_BxKxK) * sign_BxKxK) / 2
    decided = decided_BxKxK.sum()
    return (
        Mean(total=(decided_BxKxK * D_BxKxK * sign_BxKxK).sum(), count=decided),
        Mean(total=(decided_BxKxK * agreement_BxKxK).sum(), count=decided),
    )
