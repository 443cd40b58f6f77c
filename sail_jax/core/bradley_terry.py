"""Bradley-Terry's model of labelled pairs: its loss, and how right and how sure it is.

The first of a pair is better with probability `sigmoid(margin)`, the margin being the difference of
two rewards. Labels may be probabilities; 1/2 is "the same".
"""

from typing import Any

import jax

BINS = 10
"""Of the calibration error."""


def cross_entropy(margin: jax.Array, prob: jax.Array) -> jax.Array:
    """Minus the log-likelihood of labels, nats a pair (arXiv 1706.03741, equation 1).

    Args:
      margin: of the first over the second, any shape.
      prob: the label: the probability that the first is better.
    """
    return -(prob * jax.nn.log_sigmoid(margin) + (1 - prob) * jax.nn.log_sigmoid(-margin))


def right(margin: Any, prob: Any) -> Any:
    """The probability that the one of the larger reward is better; equal rewards are right by one
    half. Arrays of NumPy or JAX."""
    xp = margin.__array_namespace__()
    return 0.5 + xp.sign(margin) * (prob - 0.5)


def accuracy(margin: jax.Array, prob: jax.Array, weight: jax.Array) -> jax.Array:
    """The share of pairs whose margin has the sign of their label, equal rewards one half; pairs
    count by how decided their label is, so that "the same" does not. 0 of none."""
    xp = margin.__array_namespace__()
    decided = weight * abs(2 * prob - 1)
    hit = 0.5 + 0.5 * xp.sign(margin) * xp.sign(prob - 0.5)
    total = decided.sum()
    return (decided * hit).sum() / xp.where(total > 0, total, 1)


def calibration(margin_N: Any, prob_N: Any, weight_N: Any) -> dict[str, Any]:
    """How sure the model is, and how far that is from how often it is right; 0 of no pairs.

    Args:
      margin_N, prob_N: as of `cross_entropy`, arrays of NumPy or JAX.
      weight_N: 1 for pairs that count, else 0.

    Returns:
      `confidence`, the mean probability of the one of the larger reward, and `calibration_error`,
      the mean distance, within `BINS` bins of the confidence, from how often that one is better
      (arXiv 1706.04599).
    """
    xp = margin_N.__array_namespace__()
    confidence_N = 1 / (1 + xp.exp(-abs(margin_N)))
    bin_N = xp.minimum(((confidence_N - 0.5) * 2 * BINS).astype(int), BINS - 1)
    in_bin_NxB = (bin_N[:, None] == xp.arange(BINS)) * weight_N[:, None]
    apart_B = abs(((right(margin_N, prob_N) - confidence_N)[:, None] * in_bin_NxB).sum(0))
    total = weight_N.sum()
    total = xp.where(total > 0, total, 1)
    return {
        'confidence': (weight_N * confidence_N).sum() / total,
        'calibration_error': apart_B.sum() / total,
    }
