"""The summary of a run, computed from its records alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np

from fleet_rlm.ledger import Usage
from fleet_rlm.runner.outcomes import RIGHT
from fleet_rlm.runner.record import Key, Record, last_records, total_usage
from fleet_rlm.runner.store import Abandoned
from fleet_rlm.scoring import floor
from fleet_rlm.scoring.routing import Taken, verdict
from fleet_rlm.statistics.clustered import (
    clustered_stderr,
    detectable_difference,
    mean_interval,
)
from fleet_rlm.statistics.repeated import repeated


def summarize(
    run: Mapping[str, Any],
    records: Sequence[Record],
    planned: Sequence[Key],
    wall_s: float,
    abandoned: Abandoned | None = None,
) -> dict[str, Any]:
    """Build the content of `summary.json`.

    Args:
        run: the content of `run.json`.
        records: every record of the run, failed attempts included; all of them were paid for.
        planned: the keys that were asked for; coverage is the share of them that ended with a
            score.
        wall_s: seconds that the run took, over all its sessions.
        abandoned: what attempts without a record spent.

    Returns:
        The keys that `fleet-eval run --json` prints; a score is None when nothing was scored.
    """
    wanted = set(planned)
    last = [record for key, record in last_records(records).items() if key in wanted]
    scored = [record for record in last if record.status != "error"]
    arm = run["arm"]
    by_task: dict[str, list[Record]] = {}
    for record in last:
        by_task.setdefault(record.task, []).append(record)
    samples = {key.sample for key in planned}
    return {
        "run": run["run"],
        "suite": run["suite"]["name"],
        "program": arm["program"],
        "model": arm["models"]["root"]["name"],
        "sandbox": arm["sandbox"],
        "settings": arm["settings"],
        "samples": len(samples),
        "scored": len({record.sample for record in scored}),
        "errors": sum(record.status == "error" for record in last),
        "coverage": len(scored) / len(planned) if planned else 0.0,
        **_estimate(scored),
        "with_errors_as_zero": _with_zeros(last),
        **_repeated(scored),
        "tasks": {task: _task(found) | _tools(found, run, task) for task, found in by_task.items()},
        "usage": _usage(records, abandoned or Abandoned()),
        "wall_s": round(wall_s, 3),
        "stops": dict(Counter(record.stop for record in last).most_common()),
        "mde": detectable_difference(len({record.sample for record in scored})),
    }


def sample_means(records: Iterable[Record], field: str = "score") -> dict[str, float]:
    """Sample -> mean over its scored epochs of one of the scores."""
    values: dict[str, list[float]] = {}
    for record in records:
        value = getattr(record, field)
        if value is not None:
            values.setdefault(record.sample, []).append(value)
    # In one order: a sum of floats must not depend on which sample ended first.
    return {sample: fmean(found) for sample, found in sorted(values.items())}


def _with_zeros(records: Iterable[Record]) -> float | None:
    values: dict[str, list[float]] = {}
    for record in records:
        values.setdefault(record.sample, []).append(record.score or 0.0)
    return fmean(map(fmean, values.values())) if values else None


def _repeated(records: Sequence[Record]) -> dict[str, Any]:
    """pass@k and pass^k, by k, where samples were repeated."""
    attempts = Counter(record.sample for record in records)
    right = Counter(record.sample for record in records if (record.score or 0.0) >= RIGHT)
    cluster_of = {record.sample: record.cluster for record in records}
    samples = sorted(attempts)
    found = repeated(
        np.array([attempts[sample] for sample in samples], dtype=np.int64),
        np.array([right[sample] for sample in samples], dtype=np.int64),
        [cluster_of[sample] for sample in samples],
    )
    shown = {
        str(row.k): {
            "n": row.n,
            "clusters": row.clusters,
            "any_right": {"score": row.any_right, "ci": row.any_ci and list(row.any_ci)},
            "all_right": {"score": row.all_right, "ci": row.all_ci and list(row.all_ci)},
        }
        for row in found
    }
    return {"repeated": shown} if shown else {}


def _estimate(records: Sequence[Record]) -> dict[str, Any]:
    means = sample_means(records)
    if not means:
        return {"score": None, "stderr": None, "ci": None}
    cluster_of = {record.sample: record.cluster for record in records}
    scores = np.array(list(means.values()))
    clusters = [cluster_of[sample] for sample in means]
    interval = mean_interval(scores, clusters)
    return {
        "score": float(scores.mean()),
        "stderr": clustered_stderr(scores, clusters),
        "ci": None if interval is None else [interval.low, interval.high],
    }


def _task(records: Sequence[Record]) -> dict[str, Any]:
    scored = [record for record in records if record.status != "error"]
    by_length: dict[int, list[Record]] = {}
    for record in scored:
        by_length.setdefault(record.length, []).append(record)
    return {
        **_estimate(scored),
        "official": _mean(scored, "official"),
        "robust": _mean(scored, "robust"),
        "floor": floor([record.blind for record in scored]),
        "n": len({record.sample for record in scored}),
        "clusters": len({record.cluster for record in scored}),
        "errors": len(records) - len(scored),
        "lengths": {
            str(length): {**_estimate(found), "n": len({record.sample for record in found})}
            for length, found in sorted(by_length.items())
        },
    }


def _tools(records: Sequence[Record], run: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Of a task whose cheapest sufficient tool is known: how often it was taken."""
    tasks = {task["name"]: task for task in run["suite"].get("tasks", ())}
    task = tasks.get(name, {})
    taken = [record.recursion for record in records if record.recursion is not None]
    if task.get("generator") != "routing" or not taken:
        return {}
    wanted = task["params"].get("route", "python")  # a default is not stored
    used = [Taken(found["sub_calls"], found["children"]).route for found in taken]
    counts = Counter(verdict(wanted, route) for route in used)
    return {"tools": {judged: counts[judged] for judged in ("right", "over", "under")}}


def _mean(records: Sequence[Record], field: str) -> float | None:
    means = sample_means(records, field)
    return fmean(means.values()) if means else None


def _usage(records: Iterable[Record], abandoned: Abandoned) -> dict[str, Any]:
    by_role: dict[str, Usage] = {}
    paid = (record.usage for record in records if not record.rescored)
    for usage in (*paid, abandoned.usage):
        for role, spent in usage.items():
            by_role[role] = by_role.get(role, Usage()) + Usage.from_json(spent)
    total = sum(by_role.values(), Usage())
    return {
        **total.to_json(),
        "by_role": {role: usage.to_json() for role, usage in sorted(by_role.items())},
        "abandoned": {
            "attempts": abandoned.attempts,
            "usd": total_usage(abandoned.usage).to_json()["usd"],
        },
    }
