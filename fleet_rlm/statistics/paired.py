"""Two arms on the same samples: the difference, its interval, and whether luck explains it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
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
"""A multiple of 8: they are drawn eight bytes at a time."""

NO_SUM = 1e-12
"""Sums of a cluster below this are rounding of differences that cancel."""

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
    differences: NDArray[np.float64], clusters: Clusters, *, seed: int = 0, p: float | None = None
) -> Comparison:
    """Compare two arms by the differences of their common samples.

    Args:
        differences: shape (n,), n > 0: candidate minus baseline of each sample.
        clusters: length n, the context of each sample.
        seed: of the sign patterns, where they are drawn.
        p: of `Flips` that several comparisons share; of patterns of its own when absent.
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
        p=sign_flip_p(differences, clusters, seed=seed) if p is None else p,
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
    everywhere = np.zeros(len(differences), dtype=np.int64)
    flips = Flips(differences[:, None], clusters, everywhere, seed=seed)
    return flips.p(everywhere == 0)


class Flips:
    """Sign patterns for the tests of many overlapping parts of the same samples.

    Each of `DRAWS` patterns gives every cluster one sign, whichever part is tested, so that the
    total of a part is the sum of those of its cells: all parts together cost one drawing, and each
    p is that of `sign_flip_p`, up to which patterns were drawn.
    """

    def __init__(
        self,
        differences: NDArray[np.float64],
        clusters: Clusters,
        cells: Clusters,
        *,
        seed: int = 0,
    ) -> None:
        """Draw nothing yet.

        Args:
            differences: shape (n, m): of each sample by m scores; NaN where it has none.
            clusters: length n, the context of each sample.
            cells: length n; a part that is tested is made of whole cells.
            seed: of the patterns.
        """
        columns = list(np.nan_to_num(differences).T)
        # Equal scores share their totals.
        first = [
            next(n for n, other in enumerate(columns) if np.array_equal(column, other))
            for column in columns
        ]
        kept = sorted(set(first))
        self._column = [kept.index(n) for n in first]
        self._differences = np.stack([columns[n] for n in kept], axis=1)
        self._clusters = np.unique(np.asarray(clusters), return_inverse=True)[1]
        self._cells = np.unique(np.asarray(cells), return_inverse=True)[1]
        self._seed = seed

    def p(self, part: NDArray[np.bool_], score: int = 0) -> float:
        """The p of one part by one of the scores.

        Args:
            part: shape (n,), whole cells.
            score: column of the differences.
        """
        column = self._column[score]
        sums = np.bincount(self._clusters[part], weights=self._differences[part, column])
        sums = sums[np.abs(sums) > NO_SUM]
        if len(sums) == 0:
            return 1.0
        # Totals are summed in another order than the one observed: rounding must not break a tie.
        bound = abs(sums.sum()) - NO_SUM * max(1.0, np.abs(sums).sum())
        if len(sums) <= EXACT_CLUSTERS:
            patterns = (np.arange(2 ** len(sums))[:, None] >> np.arange(len(sums))) & 1
            totals = np.abs((2 * patterns - 1) @ sums)
            return float((totals >= bound).mean())
        totals = np.abs(self._totals[np.unique(self._cells[part]), column].sum(axis=0))
        return (int((totals >= bound).sum()) + 1) / (DRAWS + 1)

    @cached_property
    def _totals(self) -> NDArray[np.float64]:
        """Shape (cells, m, DRAWS): the total of each cell under each pattern."""
        rng = np.random.default_rng(self._seed)
        count, scores = int(self._cells.max()) + 1, self._differences.shape[1]
        totals = np.zeros((count, scores, DRAWS))
        for cells, sums in self._alike():
            shape = (len(cells), scores, DRAWS)
            totals[cells] += _drawn_totals(sums.reshape(len(sums), -1), rng).reshape(shape)
        return totals

    def _alike(self) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float64]]]:
        """Clusters that lie in the same cells: the cells; sums of shape (clusters, cells, m)."""
        count = int(self._cells.max()) + 1
        pairs, pair_of = np.unique(self._clusters * count + self._cells, return_inverse=True)
        columns = [np.bincount(pair_of, weights=column) for column in self._differences.T]
        sums = np.stack(columns, axis=1).astype(np.float64)
        cluster, cell = np.divmod(pairs, count)
        starts = np.flatnonzero(np.diff(cluster, prepend=-1))
        rank = np.arange(len(pairs)) - starts[cluster]
        members = np.full((len(starts), int(rank.max()) + 1), -1)
        members[cluster, rank] = cell
        kinds, kind_of = np.unique(members, axis=0, return_inverse=True)
        kind = kind_of[cluster]
        order = np.argsort(kind, kind="stable")
        parts = np.split(sums[order], np.flatnonzero(np.diff(kind[order])) + 1)
        for own, found in zip(kinds, parts, strict=True):
            cells = own[own >= 0]
            yield cells, found.reshape(-1, len(cells), found.shape[1])


def _drawn_totals(sums: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """Shape (columns, DRAWS): totals of the rows of `sums` under as many patterns of signs, one
    sign a row."""
    sums = np.round(sums, 12)
    # A row and its negative have the same totals.
    leading = np.take_along_axis(sums, (sums != 0).argmax(axis=1)[:, None], axis=1)
    sizes, counts = np.unique(sums * np.sign(leading) + 0.0, axis=0, return_counts=True)
    totals = np.zeros((sums.shape[1], DRAWS))
    # Rows of one size differ in nothing but sign, so the number of plus signs is all that counts:
    # a hundred thousand clusters of right and wrong answers take a few binomial draws.
    common = counts >= 8
    for size, count in zip(sizes[common], counts[common], strict=True):
        if size.any():
            totals += np.outer(size, 2.0 * rng.binomial(count, 0.5, DRAWS) - count)
    rare = np.repeat(sizes[~common], counts[~common], axis=0)
    # Eight rows share one random byte and a table of their 256 signed totals: an eighth of the
    # random bits and additions of sign by sign, and never more than a column of draws in memory.
    # Measured for 20,000: raw bytes take 6 us, bytes as integers 27; take 20 us, an index 60.
    padded = np.zeros((-(-len(rare) // 8) * 8, sums.shape[1]))
    padded[: len(rare)] = rare
    signs = 2.0 * ((np.arange(256)[:, None] >> np.arange(8)) & 1) - 1
    for eight in padded.reshape(-1, 8, sums.shape[1]):
        drawn = rng.bit_generator.random_raw(DRAWS // 8).view(np.uint8)
        for column in np.flatnonzero(eight.any(axis=0)):
            totals[column] += np.take(signs @ eight[:, column], drawn)
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
