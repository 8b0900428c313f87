"""What came of a run's samples, as arrays: made for a hundred thousand of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fleet_rlm.runner.store import read_columns

Metric = Literal["score", "official", "robust"]
METRICS: tuple[Metric, ...] = ("score", "official", "robust")

FIELDS = ("sample", "task", "cluster", "length", *METRICS, "working_s", "stop", "recursion")
"""What is read of each record, beside its usage."""

RIGHT = 1.0
"""Score from which an attempt is right."""

Floats = NDArray[np.float64]
Numbers = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcomes:
    """The records of a run that count, by sample and by record (sample and epoch)."""

    samples: list[str]
    """Ids, each once, in the order of the file."""

    tasks: list[str]
    clusters: list[str]
    lengths: list[int]
    """Of each sample."""

    scores: dict[Metric, Floats]
    """Of each sample: mean over its scored epochs; NaN where every epoch failed."""

    attempts: Numbers
    """Of each sample: its epochs that have a score."""

    right: Numbers
    """Of each sample: those of them that scored 1."""

    with_zeros: Floats
    """The mean score of each sample with errors counted as 0."""

    sample_of: Numbers
    """Of each record: position of its sample in `samples`."""

    usd: Floats
    tokens: Floats
    """Input and output, all roles, of each record."""

    seconds: Floats
    """Of each record, without waits for a rate limit."""

    stops: NDArray[np.str_]
    """How each record ended; "error" for those without a score."""

    scored: int
    """Records that have a score."""

    recursion: list[Mapping[str, int]]
    """What an RLM did in each record that has it, as `recursion.Recursion`."""

    def cost(self, wanted: NDArray[np.bool_]) -> Cost:
        """What the samples cost that a mask over `samples` picks, and how they ended."""
        records = wanted[self.sample_of]
        seconds = self.seconds[records]
        if not len(seconds):
            return Cost(records=0, usd=0.0, tokens=0.0, p50_s=0.0, p95_s=0.0, stops={})
        p50, p95 = np.quantile(seconds, (0.5, 0.95))
        return Cost(
            records=len(seconds),
            usd=float(self.usd[records].mean()),
            tokens=float(self.tokens[records].mean()),
            p50_s=float(p50),
            p95_s=float(p95),
            stops=dict(Counter(self.stops[records].tolist()).most_common()),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What some records cost and how they ended."""

    records: int
    """Samples times epochs, errors included."""

    usd: float
    """Mean of a record."""

    tokens: float
    """Mean of a record, input and output."""

    p50_s: float
    p95_s: float
    """Quantiles of a record's seconds, without waits for a rate limit."""

    stops: dict[str, int]


def read_outcomes(folders: Sequence[Path]) -> Outcomes:
    """Read the records of one arm; the folders stay as they are.

    Args:
        folders: its runs; a sample that several of them have is one sample with more records.

    Raises:
        UsageError: a line cannot be read.
    """
    columns: dict[str, list[Any]] = {}
    for folder in folders:
        for name, values in read_columns(folder / "records.jsonl", FIELDS).items():
            columns.setdefault(name, []).extend(values)
    ids = columns.get("sample", [])
    place: dict[str, int] = {}
    sample_of = np.fromiter((place.setdefault(i, len(place)) for i in ids), np.int64, len(ids))
    first = np.unique(sample_of, return_index=True)[1]

    def of_sample(name: str) -> list[Any]:
        return [columns[name][row] for row in first]

    def of_record(name: str) -> Floats:
        return np.array(columns.get(name, []), dtype=np.float64)

    scores = {name: _means(of_record(name), sample_of, len(place)) for name in METRICS}
    raw = of_record("score")
    return Outcomes(
        samples=list(place),
        tasks=of_sample("task"),
        clusters=of_sample("cluster"),
        lengths=of_sample("length"),
        scores=scores,
        attempts=np.bincount(sample_of[~np.isnan(raw)], minlength=len(place)),
        right=np.bincount(sample_of[raw >= RIGHT], minlength=len(place)),
        with_zeros=_means(np.nan_to_num(raw), sample_of, len(place)),
        sample_of=sample_of,
        usd=of_record("usd"),
        tokens=of_record("input_tokens") + of_record("output_tokens"),
        seconds=of_record("working_s"),
        stops=np.array(columns.get("stop", []), dtype=np.str_),
        scored=int((~np.isnan(raw)).sum()),
        recursion=[found for found in columns.get("recursion", []) if found],
    )


def codes(values: Sequence[Any]) -> Numbers:
    """A number for each value, equal for equal ones."""
    known: dict[Any, int] = {}
    return np.fromiter((known.setdefault(v, len(known)) for v in values), np.int64, len(values))


def _means(values: Floats, sample_of: Numbers, samples: int) -> Floats:
    known = ~np.isnan(values)
    sums = np.bincount(sample_of[known], weights=values[known], minlength=samples)
    counts = np.bincount(sample_of[known], minlength=samples)
    found: Floats = np.divide(sums, counts, out=np.full(samples, np.nan), where=counts > 0)
    return found
