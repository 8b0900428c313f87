"""What a trial is worth: score, dollars a sample and latency, measured against the baseline."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median

from fleet_rlm.ledger import Usage
from fleet_rlm.runner.record import Record, total_usage

ROUND_S, INPUT_A_S, OUTPUT_A_S = 0.5, 20_000, 80
"""Time that a simulated model is taken to need: a round trip, and tokens a second."""

MAX_FAILED = 0.05
"""Share of failed samples up to which a trial may win."""

FLOOR = 0.1
"""A trial whose score is further below the baseline's cannot win, however cheap."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What a candidate did on validation samples so far; by sample, epochs averaged."""

    score: Mapping[str, float]
    usd: Mapping[str, float]
    seconds: Mapping[str, float]
    failed: int
    """Samples without a score."""

    @property
    def failed_share(self) -> float:
        """Of the samples tried, those without a score: 0 to 1."""
        return self.failed / max(1, self.failed + len(self.score))


@dataclass(frozen=True, slots=True, kw_only=True)
class Values:
    """The objectives of a trial."""

    score: float
    usd: float
    """A sample's, in dollars."""

    latency_s: float
    """Median over samples. Of a simulated model: by its calls and tokens, not by the clock."""

    def beats(self, other: Values) -> bool:
        """Whether it is no worse in each and better in one."""
        mine = (self.score, -self.usd, -self.latency_s)
        theirs = (other.score, -other.usd, -other.latency_s)
        return mine != theirs and all(a >= b for a, b in zip(mine, theirs, strict=True))


def measure(
    records: Iterable[Record], samples: Sequence[str], *, workers: int, is_simulated: bool
) -> Measured:
    """What the last records of these samples say.

    Args:
        records: the record that counts of each sample and epoch.
        samples: ids; others are left out.
        workers: sub-queries in flight at once.
        is_simulated: whether time is told by calls and tokens.
    """
    wanted = set(samples)
    by_sample: dict[str, list[Record]] = {}
    for record in records:
        if record.sample in wanted and record.score is not None:
            by_sample.setdefault(record.sample, []).append(record)

    def mean(value: str, record: Record) -> float:
        if value == "score":
            return record.score or 0.0
        if value == "usd":
            # A judge is the suite's expense, not the program's.
            own = {role: spent for role, spent in record.usage.items() if role != "judge"}
            return total_usage(own).usd
        return pretended_s(record.usage, workers) if is_simulated else record.working_s

    score, usd, seconds = (
        {name: fmean(mean(value, record) for record in found) for name, found in by_sample.items()}
        for value in ("score", "usd", "seconds")
    )
    return Measured(score=score, usd=usd, seconds=seconds, failed=len(wanted) - len(score))


def pretended_s(usage: Mapping[str, Mapping[str, float]], workers: int) -> float:
    """Seconds that a simulated model is taken to need: turns in a row, sub-queries side by side."""
    root = Usage.from_json(usage.get("root", {}))
    sub = Usage.from_json(usage.get("sub", {}))
    waves = math.ceil(sub.calls / workers)
    one_after_another = _seconds(root, root.calls)
    return one_after_another + (_seconds(sub, sub.calls) * waves / sub.calls if sub.calls else 0.0)


def _seconds(usage: Usage, calls: int) -> float:
    return calls * ROUND_S + usage.input_tokens / INPUT_A_S + usage.output_tokens / OUTPUT_A_S


def estimate(found: Measured, baseline: Measured) -> Values:
    """The objectives over all of the validation, from as many samples as a trial has run.

    The baseline has run all of them, so a trial is taken for the baseline plus (score) or times
    (dollars, latency) what they differ by on the samples that both have: luck that the two share
    drops out, and trials that ran different numbers of samples can be compared.

    Args:
        found: of the trial; at least one sample scored.
        baseline: of the baseline, on the whole validation.
    """
    common = sorted(found.score.keys() & baseline.score.keys())
    difference = fmean(found.score[name] - baseline.score[name] for name in common)
    return Values(
        score=fmean(baseline.score.values()) + difference,
        usd=fmean(baseline.usd.values()) * _ratio(found.usd, baseline.usd, common, fmean),
        latency_s=median(baseline.seconds.values())
        * _ratio(found.seconds, baseline.seconds, common, median),
    )


def _ratio(
    mine: Mapping[str, float],
    theirs: Mapping[str, float],
    common: Sequence[str],
    middle: object,
) -> float:
    assert callable(middle)
    below: float = middle([theirs[name] for name in common])
    return float(middle([mine[name] for name in common])) / below if below else 1.0


def violations(
    found: Measured, values: Values, baseline: Values, max_usd: float | None
) -> dict[str, float]:
    """What keeps a trial from winning: each of these must be 0 or below.

    Args:
        found: of the trial.
        values: of the trial.
        baseline: its objectives.
        max_usd: what a sample may cost, in dollars.
    """
    return {
        "failed_share": found.failed_share - MAX_FAILED,
        "score_floor": baseline.score - FLOOR - values.score,
        "price": 0.0 if max_usd is None else values.usd - max_usd,
    }
