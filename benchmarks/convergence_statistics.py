"""Statistics over seeds and environments (Agarwal et al. 2021, arXiv 2108.13264)."""

from typing import Any, NamedTuple

import numpy as np
from scipy import stats

RESAMPLES = 2000


class Interval(NamedTuple):
    """A statistic with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return self.rounded(2)

    def rounded(self, digits: int) -> str:
        """With so many decimal places."""
        value, low, high = (f'{x:.{digits}f}' for x in self)
        return f'{value} [{low}, {high}]'


def bootstrap(samples: list[np.ndarray], statistic: Any) -> Interval:
    """Percentile bootstrap; every sample is resampled on its own.

    Args:
      samples: one array of seeds for each stratum.
      statistic: of these arrays, over their last axis.
    """
    value = float(statistic(*samples, axis=-1))
    if min(map(len, samples)) < 2:
        return Interval(value, float('nan'), float('nan'))
    outcome = stats.bootstrap(
        samples,
        statistic,
        n_resamples=RESAMPLES,
        method='percentile',
        rng=np.random.default_rng(0),
    )
    return Interval(value, *map(float, outcome.confidence_interval))


def iqm(*samples: np.ndarray, axis: int = -1) -> np.ndarray:
    """Interquartile mean of all samples together."""
    return stats.trim_mean(np.concatenate(samples, axis), 0.25, axis=axis)


def improvement(*samples: np.ndarray, axis: int = -1) -> np.ndarray:
    """P(X > Y), ties half, averaged over environments; the first half of the samples are X's."""
    half = len(samples) // 2
    wins = [
        (1 + np.sign(x[..., :, None] - y[..., None, :]).mean((-2, -1))) / 2
        for x, y in zip(samples[:half], samples[half:], strict=True)
    ]
    return np.mean(wins, axis=0)


def cohens_d(x: np.ndarray, y: np.ndarray) -> float:
    """Difference of the means over the pooled standard deviation; NaN of fewer than two seeds, and
    where all seeds of both are the same."""
    if min(len(x), len(y)) < 2:
        return float('nan')
    spread = (len(x) - 1) * x.var(ddof=1) + (len(y) - 1) * y.var(ddof=1)
    if spread == 0:
        return float('nan')
    return float((x.mean() - y.mean()) / np.sqrt(spread / (len(x) + len(y) - 2)))


def collapsed(returns: np.ndarray) -> np.ndarray:
    """Seeds that end nearer to their start than to their best, or below their start, [seeds]."""
    start, best, last = returns[:, 0], returns.max(1), returns[:, -1]
    return (last < start) | (last - start < (best - start) / 2)


def array(values: list) -> np.ndarray:
    """Numbers with nulls as NaN."""
    return np.asarray(values, float)
