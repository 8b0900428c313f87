"""Two arms on the same samples: the difference, its interval, and whether luck explains it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from fleet_rlm.statistics.clustered import (
    NO_WIDTH,
    Clusters,
    Interval,
    clustered_stderr,
    mean_interval,
)

EXACT_CLUSTERS = 14
"""Up to 2**14 sign patterns are enumerated; beyond that they are drawn."""

DRAWS = 20_000

FEWEST_CLUSTERS = 6
"""With fewer non-zero clusters the smallest possible p, 2 / 2**m, is above 0.05."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Candidate minus baseline on their common samples."""

    n: int
    """Common samples."""

    clusters: int
    difference: float
    """Mean of candidate minus baseline, in score units."""

    stderr: float | None
    ci: Interval | None
    degenerate: bool
    """All contexts show the same difference: the interval has no width and shows no certainty."""

    p: float
    """Two-sided, by sign flips of cluster sums; 1.0 when nothing differs."""

    wins: int
    losses: int
    ties: int
    detectable: float | None
    """Difference that this many samples detect with 80 % power at alpha 0.05; None without an
    interval of some width."""

    @property
    def has_too_few_contexts(self) -> bool:
        """Whether no difference whatever could reach p < 0.05 here."""
        return self.clusters < FEWEST_CLUSTERS


def compare(
    baseline: Mapping[str, float],
    candidate: Mapping[str, float],
    cluster_of: Mapping[str, str],
    *,
    seed: int = 0,
) -> Comparison | None:
    """Compare two arms sample by sample.

    Args:
        baseline: sample -> its mean score over epochs, in [0, 1].
        candidate: the same for the other arm.
        cluster_of: sample -> id of its context.
        seed: of the sign patterns, where they are drawn.

    Returns:
        None when the arms have no sample in common.
    """
    common = sorted(baseline.keys() & candidate.keys())
    if not common:
        return None
    differences = np.array([candidate[sample] - baseline[sample] for sample in common])
    clusters = [cluster_of[sample] for sample in common]
    return compare_paired(differences, clusters, seed=seed)


def compare_paired(
    differences: NDArray[np.float64], clusters: Clusters, *, seed: int = 0
) -> Comparison:
    """Compare two arms by the differences of their common samples.

    Args:
        differences: shape (n,), n > 0: candidate minus baseline of each sample.
        clusters: length n, the context of each sample.
        seed: of the sign patterns, where they are drawn.
    """
    stderr = clustered_stderr(differences, clusters)
    degenerate = stderr is not None and stderr < NO_WIDTH
    return Comparison(
        n=len(differences),
        clusters=len(np.unique(clusters)),
        difference=float(differences.mean()),
        stderr=stderr,
        ci=mean_interval(differences, clusters),
        degenerate=degenerate,
        p=sign_flip_p(differences, clusters, seed=seed),
        wins=int((differences > 0).sum()),
        losses=int((differences < 0).sum()),
        ties=int((differences == 0).sum()),
        detectable=None if degenerate else minimum_detectable(stderr),
    )


def sign_flip_p(differences: NDArray[np.float64], clusters: Clusters, *, seed: int = 0) -> float:
    """Share of sign patterns of the cluster sums whose total is at least as far from zero.

    One test for binary, fractional and clustered scores. Clusters whose sum is zero drop out. Exact
    up to `EXACT_CLUSTERS` clusters, else (hits + 1) / (draws + 1) over `DRAWS` seeded patterns.

    Args:
        differences: shape (n,), one per sample.
        clusters: length n, the context id of each sample.
        seed: of the patterns that are drawn.
    """
    _, index = np.unique(np.asarray(clusters), return_inverse=True)
    sums = np.bincount(index, weights=differences).astype(np.float64)
    sums = sums[np.abs(sums) > 1e-12]
    if len(sums) == 0:
        return 1.0
    # Totals are summed in another order than the one observed: rounding must not break a tie.
    bound = abs(sums.sum()) - 1e-12 * max(1.0, np.abs(sums).sum())
    if len(sums) <= EXACT_CLUSTERS:
        patterns = (np.arange(2 ** len(sums))[:, None] >> np.arange(len(sums))) & 1
        totals = np.abs((2 * patterns - 1) @ sums)
        return float((totals >= bound).mean())
    hits = int((np.abs(_drawn_totals(sums, np.random.default_rng(seed))) >= bound).sum())
    return (hits + 1) / (DRAWS + 1)


def _drawn_totals(sums: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """Shape (DRAWS,): the total of all cluster sums under as many patterns of random signs."""
    sizes, counts = np.unique(np.round(np.abs(sums), 12), return_counts=True)
    totals = np.zeros(DRAWS)
    # Sums of one size differ in nothing but sign, so the number of plus signs is all that counts:
    # a hundred thousand clusters of right and wrong answers take a few binomial draws.
    common = counts >= 8
    for size, count in zip(sizes[common], counts[common], strict=True):
        totals += size * (2.0 * rng.binomial(count, 0.5, DRAWS) - count)
    rare = np.repeat(sizes[~common], counts[~common])
    # Eight clusters share one random byte and a table of their 256 signed totals: an eighth of the
    # random bits and additions of sign by sign, and never more than a column of draws in memory.
    padded = np.zeros((-(-len(rare) // 8), 8))
    padded.flat[: len(rare)] = rare
    signs = 2.0 * ((np.arange(256)[:, None] >> np.arange(8)) & 1) - 1
    for eight in padded:
        totals += (signs @ eight)[rng.integers(0, 256, DRAWS, dtype=np.uint8)]
    return totals


def minimum_detectable(
    stderr: float | None, *, alpha: float = 0.05, power: float = 0.8
) -> float | None:
    """Difference that a comparison with this standard error detects; None without one.

    Args:
        stderr: of the paired difference, in score units.
        alpha: two-sided significance level.
        power: chance to detect a difference of that size.
    """
    if stderr is None:
        return None
    return (NormalDist().inv_cdf(1 - alpha / 2) + NormalDist().inv_cdf(power)) * stderr


def holm(ps: Sequence[float]) -> list[float]:
    """Adjusted p values for several comparisons, in the order given (Holm 1979, step-down)."""
    order = sorted(range(len(ps)), key=lambda i: ps[i])
    adjusted = [0.0] * len(ps)
    highest = 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(ps) - rank) * ps[i]))
        adjusted[i] = highest
    return adjusted


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
