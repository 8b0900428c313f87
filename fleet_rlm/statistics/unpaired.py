"""The difference between two groups that share no samples."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from fleet_rlm.statistics.clustered import Interval, t_quantile


def difference_interval(
    before: ArrayLike, after: ArrayLike, confidence: float = 0.95
) -> Interval | None:
    """Interval of the mean of `after` less the mean of `before`, each with its own variance.

    Args:
        before: numbers of one group, any unit.
        after: numbers of the other, same unit.
        confidence: of the two-sided interval.

    Returns:
        In the unit of the numbers. None below two numbers in either group, never a width of 0.

    Source: Welch 1947, Biometrika 34; degrees of freedom after Satterthwaite 1946, rounded down.
    """
    groups = [np.asarray(group, dtype=np.float64) for group in (before, after)]
    if min(map(len, groups)) < 2:
        return None
    shares = [float(group.var(ddof=1)) / len(group) for group in groups]
    variance = math.fsum(shares)
    center = float(groups[1].mean() - groups[0].mean())
    if variance == 0:
        return None
    parts = (share**2 / (len(group) - 1) for share, group in zip(shares, groups, strict=True))
    freedom = max(1, math.floor(variance**2 / math.fsum(parts)))
    half = t_quantile((1 + confidence) / 2, freedom) * math.sqrt(variance)
    return Interval(center - half, center + half)
