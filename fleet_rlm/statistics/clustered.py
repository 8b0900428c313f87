"""The mean of one arm with the uncertainty that shared contexts leave in it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

DISCORDANT_SHARE = 0.2
"""Share of samples on which two arms are assumed to differ before a pair has been run."""


MANY = 200
"""Degrees of freedom from which a t quantile is expanded instead of searched."""

NO_WIDTH = 1e-12
"""Standard errors below this are rounding of equal numbers."""

Clusters = Sequence[str] | NDArray[np.int64]
"""Id of the context of each sample; numbers are sorted faster than names."""


class Interval(NamedTuple):
    """A confidence interval in score units, not clipped to [0, 1]."""

    low: float
    high: float

    @property
    def has_width(self) -> bool:
        """Whether it tells of uncertainty at all: where all contexts are equal it cannot."""
        return self.high - self.low > NO_WIDTH


def clustered_stderr(scores: NDArray[np.float64], clusters: Clusters) -> float | None:
    """Standard error of the mean when samples share a context.

    Args:
        scores: shape (n,), in [0, 1]; one per sample, epochs already averaged.
        clusters: length n, the context id of each sample.

    Returns:
        In score units. None below two clusters: one document cannot show how documents differ.

    Source: Miller 2024, arXiv 2411.00640, appendix A, with the C/(C-1) correction.
    """
    _, index = np.unique(np.asarray(clusters), return_inverse=True)
    count = int(index.max()) + 1 if len(index) else 0
    if count < 2:
        return None
    residuals = np.bincount(index, weights=scores - scores.mean())
    return float(math.sqrt(count / (count - 1) * np.sum(residuals**2)) / len(scores))


def mean_interval(
    scores: NDArray[np.float64], clusters: Clusters, confidence: float = 0.95
) -> Interval | None:
    """Student-t interval of the mean with as many degrees of freedom as contexts less one.

    Args:
        scores: shape (n,), one per sample.
        clusters: length n, the context id of each sample.
        confidence: coverage, in (0, 1).

    Returns:
        None below two clusters.
    """
    stderr = clustered_stderr(scores, clusters)
    if stderr is None:
        return None
    half = t_quantile((1 + confidence) / 2, len(np.unique(clusters)) - 1) * stderr
    mean = float(scores.mean())
    return Interval(mean - half, mean + half)


def unseen_share(clusters: int, confidence: float = 0.95) -> float:
    """Share of contexts that may behave otherwise although none of `clusters` did.

    The exact upper bound after no event in so many independent trials (Clopper and Pearson 1934;
    about 3 / clusters): what an interval without width leaves unsaid.
    """
    return float(1 - (1 - confidence) ** (1 / clusters))


def detectable_difference(n: int, *, alpha: float = 0.05, power: float = 0.8) -> float | None:
    """Smallest paired difference that `n` samples are likely to show, before a pair has been run.

    Solves d = z * sqrt((q - d^2) / n) with z the sum of the two normal quantiles and q the share of
    samples on which the arms differ, assumed to be `DISCORDANT_SHARE`.

    Args:
        n: samples that both arms answer.
        alpha: two-sided significance level.
        power: chance to detect a difference of that size.

    Returns:
        In score units; None for n = 0.
    """
    if n < 1:
        return None
    z = NormalDist().inv_cdf(1 - alpha / 2) + NormalDist().inv_cdf(power)
    return z * math.sqrt(DISCORDANT_SHARE / (n + z * z))


def t_quantile(p: float, df: int) -> float:
    """Quantile of Student's t distribution, for p in (0.5, 1) and df >= 1.

    Bisection on the closed-form distribution function of integer degrees of freedom (Abramowitz and
    Stegun 26.7.3 and 26.7.4), which needs no library beyond this one; above `MANY` degrees their
    expansion around the normal quantile (26.7.5), there exact to nine digits.
    """
    if df > MANY:
        z = NormalDist().inv_cdf(p)
        terms = (
            z,
            (z**3 + z) / 4,
            (5 * z**5 + 16 * z**3 + 3 * z) / 96,
            (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        )
        return math.fsum(term / float(df) ** power for power, term in enumerate(terms))
    low, high = 0.0, 1.0
    while _t_cdf(high, df) < p:
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if _t_cdf(middle, df) < p else (low, middle)
    return (low + high) / 2


def _t_cdf(t: float, df: int) -> float:
    theta = math.atan(t / math.sqrt(df))
    cos_squared = math.cos(theta) ** 2
    odd = df % 2 == 1
    term = math.cos(theta) if odd else 1.0
    total = 0.0
    for k in range(1 if odd else 0, df - 1, 2):
        total += term
        term *= cos_squared * (k + 1) / (k + 2)
    central = 2 / math.pi * (theta + math.sin(theta) * total) if odd else math.sin(theta) * total
    return 0.5 + central / 2
