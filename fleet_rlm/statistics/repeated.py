"""What repeated answers to the same questions show: whether any is right, whether all are."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fleet_rlm.statistics.clustered import Clusters, Interval, mean_interval


@dataclass(frozen=True, slots=True, kw_only=True)
class Repeated:
    """Samples under k attempts each."""

    k: int
    n: int
    """Samples that have k attempts with a score."""

    clusters: int
    any_right: float
    """pass@k: mean chance that at least one of k attempts is right."""

    any_ci: Interval | None
    all_right: float
    """pass^k: mean chance that all k attempts are right."""

    all_ci: Interval | None


def repeated(
    attempts: NDArray[np.int64], right: NDArray[np.int64], clusters: Clusters
) -> list[Repeated]:
    """pass@k and pass^k for k = 2, 4, 8, ... and the most attempts that a sample has.

    Args:
        attempts: shape (n,), attempts of each sample that have a score.
        right: shape (n,), how many of them are right.
        clusters: length n, the context of each sample.

    Returns:
        Nothing where no sample has two attempts.
    """
    most = int(attempts.max()) if len(attempts) else 0
    _, index = np.unique(np.asarray(clusters), return_inverse=True)
    return [_of(k, attempts, right, index) for k in _numbers(most)]


def _numbers(most: int) -> Iterator[int]:
    k = 2
    while k < most:
        yield k
        k *= 2
    if most > 1:
        yield most


def _of(
    k: int,
    attempts: NDArray[np.int64],
    right: NDArray[np.int64],
    clusters: NDArray[np.int64],
) -> Repeated:
    able = attempts >= k
    pairs, pair_of = np.unique(
        np.stack([attempts[able], right[able]], axis=1), axis=0, return_inverse=True
    )
    any_right, all_right = (
        np.array([chance(int(n), int(c), k) for n, c in pairs], dtype=np.float64)[pair_of]
        for chance in (pass_at_k, pass_hat_k)
    )
    own = clusters[able]
    return Repeated(
        k=k,
        n=int(able.sum()),
        clusters=len(np.unique(own)),
        any_right=float(any_right.mean()),
        any_ci=mean_interval(any_right, own),
        all_right=float(all_right.mean()),
        all_ci=mean_interval(all_right, own),
    )


def pass_at_k(n: int, correct: int, k: int) -> float | None:
    """Chance that at least one of k attempts is right, unbiased from n; None when k > n.

    Source: Chen et al. 2021, arXiv 2107.03374, equation 1.
    """
    return None if k > n else 1 - math.comb(n - correct, k) / math.comb(n, k)


def pass_hat_k(n: int, correct: int, k: int) -> float | None:
    """Chance that all of k attempts are right, unbiased from n; None when k > n.

    Source: Yao et al. 2024, arXiv 2406.12045 (pass^k).
    """
    return None if k > n else math.comb(correct, k) / math.comb(n, k)
