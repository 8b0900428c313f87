"""Two stored runs on the same samples: what changed, by task and in all, and what luck explains."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from fleet_rlm.errors import UsageError
from fleet_rlm.lm.simulated import LABEL
from fleet_rlm.runner.evaluate import Run, open_run
from fleet_rlm.runner.record import Record, last_records
from fleet_rlm.runner.store import repair_and_read
from fleet_rlm.runner.summary import sample_means
from fleet_rlm.statistics.paired import Comparison, holm
from fleet_rlm.statistics.paired import compare as compare_scores


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One task, or all of them."""

    name: str
    baseline: float
    """Mean score on the common samples."""

    candidate: float
    test: Comparison
    p_holm: float | None = None
    """p adjusted for the number of tasks (Holm); None for the row of all tasks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunComparison:
    """Candidate against baseline."""

    baseline: Run
    candidate: Run
    rows: tuple[Row, ...]
    """One per task, then "all"."""

    label: str | None
    """The sentence that must stand beside the numbers, if any."""

    def to_json(self) -> dict[str, Any]:
        return {
            "baseline": _cost(self.baseline),
            "candidate": _cost(self.candidate),
            "rows": [asdict(row) for row in self.rows],
        }


def compare(
    baseline: Run | Path | str, candidate: Run | Path | str, *, allow_mixed: bool = False
) -> RunComparison:
    """Compare two runs sample by sample.

    Args:
        baseline: a run or its folder.
        candidate: another arm on the same suite.
        allow_mixed: compare although one was answered by a simulated model and the other was not.

    Raises:
        UsageError: a folder is no run, the runs have other data or no sample in common, or their
            models are of different kinds.
    """
    base, cand = (run if isinstance(run, Run) else open_run(run) for run in (baseline, candidate))
    _check(base, cand, allow_mixed=allow_mixed)
    before, after = _records(base), _records(cand)
    cluster_of = {record.sample: record.cluster for record in (*before, *after)}
    tasks = sorted({r.task for r in before} & {r.task for r in after})
    found = [
        row
        for task in tasks
        if (row := _row(task, _of(before, task), _of(after, task), cluster_of))
    ]
    total = _row("all", before, after, cluster_of)
    if total is None:
        raise UsageError(f"{base.folder} and {cand.folder} have no scored sample in common.")
    adjusted = holm([row.test.p for row in found])
    rows = [replace(row, p_holm=p) for row, p in zip(found, adjusted, strict=True)]
    return RunComparison(
        baseline=base, candidate=cand, rows=(*rows, total), label=_label(base) or _label(cand)
    )


def _check(base: Run, cand: Run, *, allow_mixed: bool) -> None:
    for key in ("name", "digest"):
        was, other = base.lock["suite"][key], cand.lock["suite"][key]
        if was != other:
            raise UsageError(
                f"The runs have different data: suite {key} {was!r} and {other!r}.",
                fix="compare runs of one suite with the same --set and --corpus",
            )
    kinds = [run.lock["arm"]["model_kind"] for run in (base, cand)]
    if kinds[0] != kinds[1] and not allow_mixed:
        raise UsageError(
            f"One run is {kinds[0]} and the other {kinds[1]}: their difference says nothing of"
            " a program.",
            fix="--allow-mixed",
        )


def _records(run: Run) -> list[Record]:
    return list(last_records(repair_and_read(run.folder / "records.jsonl")).values())


def _of(records: list[Record], task: str) -> list[Record]:
    return [record for record in records if record.task == task]


def _row(
    name: str,
    before: list[Record],
    after: list[Record],
    cluster_of: Mapping[str, str],
) -> Row | None:
    first, second = sample_means(before), sample_means(after)
    test = compare_scores(first, second, cluster_of)
    if test is None:
        return None
    common = first.keys() & second.keys()
    return Row(
        name=name,
        baseline=sum(first[sample] for sample in common) / len(common),
        candidate=sum(second[sample] for sample in common) / len(common),
        test=test,
    )


def _label(run: Run) -> str | None:
    return LABEL if run.lock["arm"]["model_kind"] == "simulated" else None


def _cost(run: Run) -> dict[str, Any]:
    kept = ("run", "program", "model", "score", "ci", "coverage", "usage", "wall_s", "stops")
    return {key: run.summary[key] for key in kept}
