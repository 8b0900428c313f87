"""A yes or no on a stored run, for CI: good enough, or not worse than before."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fleet_rlm.errors import UsageError
from fleet_rlm.runner.compare import compare
from fleet_rlm.runner.stored import Run, open_run
from fleet_rlm.statistics.clustered import Interval, unseen_share

Verdict = Literal["passed", "failed", "indecisive"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """What was decided, and on which figures."""

    verdict: Verdict
    reason: str
    """One line with the figures that decided."""

    rule: Literal["at least", "not worse"]
    bound: float
    """Score units; for "not worse" the lowest difference allowed, which is not above 0."""

    value: float | None
    """The score, or candidate minus baseline; None when nothing was scored."""

    ci: tuple[float, float] | None
    """Its 95 % interval by context; None with fewer than two contexts."""

    degenerate: bool
    """All contexts are equal: the interval has no width, which is no certainty."""

    n: int
    """Samples that the value is of."""

    p: float | None = None
    """Of the difference, by sign flips of contexts."""

    coverage: float
    """The lowest of the runs'."""


def judge(ci: Interval | None, bound: float, *, only_proven: bool) -> Verdict:
    """Decide on an interval.

    Args:
        ci: the interval of what was measured, in score units.
        bound: what it must reach.
        only_proven: fail only when the whole interval lies below the bound; otherwise pass only
            when none of it does.

    Returns:
        "indecisive" without an interval: one context cannot show how contexts differ.
    """
    if ci is None:
        return "indecisive"
    decisive = ci.high if only_proven else ci.low
    # Sums of binary floats: 0.8 - 0.78 must not miss 0.02 by the last digit.
    return "passed" if decisive >= bound - 1e-12 else "failed"


def gate_score(
    run: Path | str, minimum: float, *, min_coverage: float, only_proven: bool = False
) -> Gate:
    """Whether a run's score is at least `minimum`.

    Args:
        run: its folder.
        minimum: in [0, 1].
        min_coverage: share of samples that must have a score, or nothing is decided.
        only_proven: as in `judge`.

    Raises:
        UsageError: the folder is no run, or `minimum` is no score.
    """
    if not 0 <= minimum <= 1:
        raise UsageError(f"--min must be between 0 and 1, got {minimum}.")
    opened = open_run(run)
    summary = opened.summary
    score = summary["score"]
    ci = None if summary["ci"] is None else Interval(*summary["ci"])
    clusters = sum(task["clusters"] for task in summary["tasks"].values())
    enough = summary["coverage"] >= min_coverage and score is not None
    verdict = judge(ci, minimum, only_proven=only_proven) if enough else "indecisive"
    return Gate(
        verdict=verdict,
        reason=f"score {_estimate(score, ci, clusters)} on {summary['scored']} samples, to reach"
        f" {minimum:g}{_caveat([opened], min_coverage, ci)}",
        rule="at least",
        bound=minimum,
        value=score,
        ci=ci,
        degenerate=_is_degenerate(ci),
        n=summary["scored"],
        coverage=summary["coverage"],
    )


def gate_drop(
    run: Path | str,
    baseline: Path | str,
    max_drop: float,
    *,
    min_coverage: float,
    only_proven: bool = False,
    allow_mixed: bool = False,
) -> Gate:
    """Whether a run is at most `max_drop` worse than a baseline on their common samples.

    Args:
        run: folder of the candidate.
        baseline: folder of a run on the same samples.
        max_drop: in score units, in [0, 1].
        min_coverage: share of samples that must have a score in both, or nothing is decided.
        only_proven: as in `judge`.
        allow_mixed: as in `compare`.

    Raises:
        UsageError: as `compare`, or `max_drop` is no drop.
    """
    if not 0 <= max_drop <= 1:
        raise UsageError(f"--max-drop must be between 0 and 1, got {max_drop}.")
    found = compare(baseline, run, allow_mixed=allow_mixed)
    row = found.row()
    test = row.test
    both = [run for (run,) in found.groups]
    shown = _estimate(test.difference, test.ci, test.clusters, signs=True)
    coverage = min(each.summary["coverage"] for each in both)
    enough = coverage >= min_coverage
    verdict = judge(test.ci, -max_drop, only_proven=only_proven) if enough else "indecisive"
    return Gate(
        verdict=verdict,
        reason=f"{row.candidate.score:.3f} against {row.baseline.score:.3f} of the baseline,"
        f" difference {shown}, p = {test.p:.3g}, on {test.n} common samples in"
        f" {test.clusters} contexts, to stay above {0 - max_drop:+g}"
        f"{_caveat(both, min_coverage, test.ci)}",
        rule="not worse",
        bound=-max_drop,
        value=test.difference,
        ci=test.ci,
        degenerate=test.degenerate,
        n=test.n,
        p=test.p,
        coverage=coverage,
    )


def _is_degenerate(ci: Interval | None) -> bool:
    return ci is not None and not ci.has_width


def _estimate(
    value: float | None, ci: Interval | None, clusters: int, *, signs: bool = False
) -> str:
    if value is None:
        return "unknown"
    shown = "+.3f" if signs else ".3f"
    if ci is None:
        between = "no interval"
    elif ci.has_width:
        between = f"95% CI {ci.low:{shown}} to {ci.high:{shown}}"
    else:
        between = (
            f"the same in all {clusters} contexts, so the interval has no width; up to"
            f" {unseen_share(clusters):.0%} of such contexts may still differ"
        )
    return f"{value:{shown}} ({between})"


def _caveat(runs: list[Run], min_coverage: float, ci: Interval | None) -> str:
    for run in runs:
        if (coverage := run.summary["coverage"]) < min_coverage:
            return f"; coverage of {run.folder} is {coverage:.0%}, below {min_coverage:.0%}"
    return "; one context gives no interval" if ci is None else ""
