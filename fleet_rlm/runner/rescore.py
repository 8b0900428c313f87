"""Scores the stored answers of a run again, by the rules of now and without a model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fleet_rlm.errors import SampleError, UsageError
from fleet_rlm.runner.attempt import error_info, score_answer, status_of
from fleet_rlm.runner.record import Record, last_records
from fleet_rlm.runner.run import wall_so_far
from fleet_rlm.runner.store import RunStore, read_trajectory
from fleet_rlm.runner.stored import open_run, planned_keys
from fleet_rlm.runner.summary import summarize
from fleet_rlm.scoring.rules import is_judged
from fleet_rlm.suites.plan import PlannedSample
from fleet_rlm.suites.suite import Suite


@dataclass(frozen=True, slots=True, kw_only=True)
class Rescored:
    """What came of it."""

    scored: int
    """Answers that were scored."""

    changed: int
    """Those whose score is another one now."""

    before: float | None
    """Mean score of the run."""

    summary: dict[str, Any]


def rescore(folder: Path, suite: Suite) -> Rescored:
    """Score every stored answer again; what changed is appended to the run's records.

    The scoring rules may be others now, such as a function of the user's own that was corrected:
    the run then is one of the suite with these.

    Args:
        folder: of the run.
        suite: the suite that it ran.

    Raises:
        UsageError: the suite asks for other samples now, its answers need a judge, or the folder is
            in use.
    """
    run = open_run(folder)
    described = json.loads(json.dumps(suite.describe()))
    if not _has_only_other_rules(run.lock["suite"], described):
        raise UsageError(
            f"Suite {suite.name!r} is not what {folder} ran: its digest is {suite.digest[:12]},"
            f" not {run.lock['suite']['digest'][:12]}.",
            fix="fleet-eval run",
        )
    planned = {sample.id: sample for sample in suite.plan()}
    changed = scored = 0
    with RunStore(folder) as store:
        for record in list(last_records(store.records).values()):
            again = _again(folder, record, planned[record.sample])
            if again is None:
                continue
            scored += 1
            if again != replace(record, rescored=True):
                changed += 1
                store.append(again)
        planned_now = planned_keys(run.lock, store.records)
        wall_s = wall_so_far(folder)
        summary = summarize(run.lock, store.records, planned_now, wall_s, store.abandoned)
        # Last: until then the same command goes on where this one was stopped.
        store.write_json("run.json", run.lock | {"suite": described})
        store.write_json("summary.json", summary)
    return Rescored(scored=scored, changed=changed, before=run.summary["score"], summary=summary)


def _has_only_other_rules(ran: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether two resolved suites hold the same samples, and differ in their rules at most."""
    if ran["digest"] == now["digest"]:
        return True
    rules = [[task.get("rule") for task in suite["tasks"]] for suite in (ran, now)]
    return rules[0] != rules[1] and _unscored(ran) == _unscored(now)


def _unscored(suite: Mapping[str, Any]) -> dict[str, Any]:
    tasks = [{key: task[key] for key in task if key != "rule"} for task in suite["tasks"]]
    aside = ("digest", "origin", "corpus", "tasks")
    return {key: suite[key] for key in suite if key not in aside} | {"tasks": tasks}


def _again(folder: Path, record: Record, planned: PlannedSample) -> Record | None:
    """The record with the score of now; None where there is no answer to score."""
    if record.error and record.error.boundary != "scorer":
        return None
    if is_judged(planned.rule):
        raise UsageError(
            f"Task {planned.task!r} is scored by a judge, which is a model.", fix="fleet-eval run"
        )
    stored = read_trajectory(folder, record)
    kept = replace(record, rescored=True)
    try:
        scores = score_answer(planned, planned.build(), stored["answer"])
    except SampleError as error:
        return replace(
            kept, status="error", stop="error", score=None, official=None, robust=None,
            error=error_info(error),
        )  # fmt: skip
    stop = stored["stop"]
    return replace(kept, status=status_of(None, stop), stop=stop, error=None, **scores)
