"""What MLflow shows of a job: the search as one run, its trials inside. Knows no MLflow."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fleet_rlm.errors import UsageError
from fleet_rlm.tracking.content import (
    Content,
    Metric,
    flatten,
    measure,
    run_datasets,
    run_params,
    run_tags,
    safe,
    summary_metrics,
)

JOB_FILE = "job.json"
"""A folder that holds it is a job's."""

FILES = (JOB_FILE, "trials.json", "result.json")

_OF_WINNER = ("score", "score_lo", "score_hi", "score_se", "coverage", "usd_per_sample")
_OBJECTIVES = ("score", "usd", "latency_s")


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A run folder of a job, and what the job says of it."""

    folder: Path
    title: str
    params: dict[str, str] = field(default_factory=dict)
    metrics: list[Metric] = field(default_factory=list)
    tags: dict[str, str] = field(default_factory=dict)


def read_job(job_dir: Path) -> tuple[Content, list[Part]]:
    """Read a job's folder, and which run folders in it are its parts.

    Raises:
        UsageError: a file is missing, or not JSON.
    """
    try:
        lock = json.loads((job_dir / JOB_FILE).read_text("utf-8"))
        study, result = (_read(job_dir / name) for name in FILES[1:])
        rows: list[dict[str, Any]] = study.get("trials") or []
        newest = max((job_dir / n).stat().st_mtime for n in FILES if (job_dir / n).exists())
        recipe, arm = dict(lock["recipe"]), lock["arm"]
        suite = {"name": recipe.pop("suite"), "digest": lock["suite"]}
        params = run_params({"suite": suite, "arm": arm, "recipe": recipe})
        content = Content(
            run=job_dir.name,
            title=job_dir.name,
            started_ms=int((job_dir / JOB_FILE).stat().st_mtime * 1000),
            ended_ms=int(newest * 1000),
            finished=bool(result),
            params=params,
            metrics=[*_result_metrics(result), *_search_metrics(rows)],
            tags=run_tags(job_dir.name, params) | {"fleet.part": "job", "fleet.job": job_dir.name},
            datasets=run_datasets(suite),
            table=_trials_table(rows),
            records=[],
            models={},
        )
        return content, list(_parts(job_dir, rows))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"The job folder {job_dir} cannot be read: {error!r}") from error


def _read(path: Path) -> dict[str, Any]:
    found = json.loads(path.read_text("utf-8")) if path.exists() else {}
    return found if isinstance(found, dict) else {}


def _result_metrics(result: Mapping[str, Any]) -> list[Metric]:
    """The winner's score on the sealed test under the names of every run; what it took, and why."""
    if not result:
        return []
    winner = summary_metrics(result["winner"])
    metrics = [found for found in winner if found.name in _OF_WINNER]
    for name, value in flatten(result["usage"]):
        metrics += measure(safe(name), value)
    for section in ("test", "cost"):
        for name, value in flatten(result.get(section) or {}):
            stem = f"{section}/"
            if name == "ci" and isinstance(value, list) and len(value) == 2:
                metrics += measure(f"{stem}difference_lo", value[0])
                metrics += measure(f"{stem}difference_hi", value[1])
            else:
                metrics += measure(stem + safe(name), value)
    for name, value in flatten(result.get("study") or {}):
        metrics += measure(f"study/{safe(name)}", value)
    return metrics


def _search_metrics(rows: Sequence[Mapping[str, Any]]) -> list[Metric]:
    """Objectives over steps, the step being the trial."""
    return [
        found
        for row in rows
        for name in _OBJECTIVES
        for found in measure(f"trials/{name}", row.get(name), int(row["trial"]))
    ]


def _trials_table(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[object]]:
    flat = [{**{k: v for k, v in row.items() if k != "params"}, **row["params"]} for row in rows]
    names = dict.fromkeys(name for row in flat for name in row)
    return {name: [row.get(name) for row in flat] for name in names}


def _parts(job_dir: Path, rows: Sequence[Mapping[str, Any]]) -> Iterator[Part]:
    seen = set()
    for row in rows:
        folder = job_dir / str(row["run"])
        if folder in seen or not (folder / "run.json").exists():
            continue  # equal candidates share a run
        seen.add(folder)
        number = str(row["trial"])
        yield Part(
            folder=folder,
            title=f"{job_dir.name} trial {number}",
            params={
                "trial": number,
                **{f"space.{safe(k)}": str(v) for k, v in row["params"].items()},
            },
            metrics=[m for n in _OBJECTIVES for m in measure(f"trial/{n}", row.get(n))],
            tags={"fleet.part": "trial", "fleet.outcome": str(row.get("outcome"))},
        )
    for name in ("baseline", "winner"):
        folder = job_dir / name
        if (folder / "run.json").exists():
            yield Part(
                folder=folder,
                title=f"{job_dir.name} test {name}",
                tags={"fleet.part": f"test {name}"},
            )
