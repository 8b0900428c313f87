"""What MLflow shows of a run folder: params, metrics, tags, a table of records. Knows no MLflow."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from fleet_rlm.errors import UsageError

MAX_PARAM_CHARS = 6000
"""MLflow refuses a longer value; the whole one stands in the artifact run.json."""

MAX_CELL_CHARS = 500
"""An answer may be a whole list; the whole one stands in records.jsonl."""

SIMULATED_NOTE = "simulated model: these numbers show the harness, not any model"

_PARAM_NAMES = {"arm.models.": "model.", "arm.": "", "lock.versions.": "version.", "lock.": ""}
_METRIC_NAMES = {"usage.by_role.": "", "usage.": "", "tasks.": "task.", "stops.": "stop."}
_NO_METRICS = ("settings.", "sandbox.", "schema")  # params already, or no measure
_NO_COLUMNS = ("feedback", "trajectory")  # names the gold answer; means nothing outside the folder
_TAGS = (
    "suite",
    "program",
    "model.root",
    "model.sub",
    "model_kind",
    "sandbox.level",
    "sandbox.backend",
)
_USAGE = ("usd", "calls", "input_tokens", "output_tokens")
_COLUMNS = (
    *("sample", "task", "length", "epoch", "cluster", "status", "score", "official", "robust"),
    *("stop", "answer", "error", "seconds", *_USAGE),
)


class Metric(NamedTuple):
    name: str
    value: float
    step: int
    """0, or the context length in tokens for `score_by_length`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """One run folder as MLflow will show it."""

    run: str
    started_ms: int
    ended_ms: int
    finished: bool
    """False when something planned has no record: the run was interrupted and can be resumed."""

    params: dict[str, str]
    metrics: list[Metric]
    tags: dict[str, str]
    table: dict[str, list[object]]
    """Columns by name, in the order they are shown; one cell per (sample, epoch)."""


def read_content(run_dir: Path) -> Content:
    """Read a run folder.

    Raises:
        UsageError: a file is missing, or not JSON; the torn last line of a killed run is left out.
    """
    try:
        return _read_content(run_dir)
    except (OSError, ValueError) as error:
        raise UsageError(f"The run folder {run_dir} cannot be read: {error}") from error


def _read_content(run_dir: Path) -> Content:
    header = _mapping(json.loads((run_dir / "run.json").read_text("utf-8")))
    summary_file, records_file = run_dir / "summary.json", run_dir / "records.jsonl"
    summarized = summary_file.exists()
    summary = _mapping(json.loads(summary_file.read_text("utf-8"))) if summarized else {}
    text = records_file.read_text("utf-8") if records_file.exists() else ""
    records = parse_records(text.split("\n"))
    newest = summary_file if summarized else run_dir / "run.json"
    run, params = str(header.get("run") or run_dir.name), run_params(header)
    planned = header.get("planned", len(records))
    return Content(
        run=run,
        started_ms=_milliseconds(header.get("created")),
        ended_ms=int(newest.stat().st_mtime * 1000),
        finished=summarized and isinstance(planned, int) and len(records) >= planned,
        params=params,
        metrics=[*summary_metrics(summary), *length_metrics(records)],
        tags=run_tags(run, params),
        table=records_table(records),
    )


def parse_records(lines: Sequence[str]) -> list[Mapping[str, object]]:
    """The last record of each (sample, epoch), in the order in which keys first appear.

    A run killed while it wrote ends in half a line: that one is left out.

    Raises:
        ValueError: another line is not JSON.
    """
    last: dict[tuple[object, object], Mapping[str, object]] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = _mapping(json.loads(line))
        except ValueError as error:
            if number == len(lines):
                break
            raise ValueError(f"records.jsonl line {number} is not a record: {error}") from error
        last[record.get("sample"), record.get("epoch")] = record
    return list(last.values())


def run_params(header: Mapping[str, object]) -> dict[str, str]:
    """Suite, arm and lock as flat text, by the names people look for: `settings.max_iters`."""
    about = {key: value for key, value in header.items() if key not in ("schema", "run", "created")}
    params = {}
    for name, value in _flatten(about):
        text = value if isinstance(value, str) else json.dumps(value)
        params[_renamed(name, _PARAM_NAMES).removesuffix(".name")] = _cut(text, MAX_PARAM_CHARS)
    return params


def summary_metrics(summary: Mapping[str, object]) -> list[Metric]:
    """Every number of a summary; an interval `ci` becomes `score_lo` and `score_hi`."""
    metrics = []
    for name, value in _flatten(summary):
        plain = _renamed(name, _METRIC_NAMES).replace(".lengths.", ".length.")
        stem, _, leaf = plain.rpartition(".")
        stem = f"{stem}." if stem else ""
        if name.startswith(_NO_METRICS):
            continue
        if leaf == "ci" and isinstance(value, list) and len(value) == 2:
            metrics += _metric(f"{stem}score_lo", value[0]) + _metric(f"{stem}score_hi", value[1])
        else:
            metrics += _metric(stem + ("score_se" if leaf == "stderr" else leaf), value)
    return metrics


def length_metrics(records: Iterable[Mapping[str, object]]) -> list[Metric]:
    """Mean scores by context length: as `length.8000.score`, and over steps as `score_by_length`.

    Errors are missing data and do not count; epochs are averaged first, as in every score.
    """
    scores: dict[tuple[str, int], dict[str, list[float]]] = {}
    for record in records:
        length, score = record.get("length"), record.get("score")
        if isinstance(length, int) and isinstance(score, int | float):
            for stem in ("", f"task.{record.get('task')}."):
                of_sample = scores.setdefault((stem, length), {})
                of_sample.setdefault(str(record.get("sample")), []).append(score)
    metrics = []
    for (stem, length), of_sample in sorted(scores.items()):
        mean = fmean(fmean(epochs) for epochs in of_sample.values())
        if not stem:  # those of a task stand in the summary, with their intervals
            metrics += _metric(f"length.{length}.score", mean)
        metrics += _metric(f"{stem}score_by_length", mean, step=length)
    return metrics


def run_tags(run: str, params: Mapping[str, str]) -> dict[str, str]:
    """Tags to filter by. The page of a simulated run says that it is one."""
    tags = {f"fleet.{name}": params[name] for name in _TAGS if params.get(name)}
    tags |= {"fleet.run": run, "mlflow.source.name": "fleet-rlm", "mlflow.source.type": "LOCAL"}
    if "git.revision" in params:
        tags["mlflow.source.git.commit"] = params["git.revision"]
    if params.get("model_kind") == "simulated":
        tags["mlflow.note.content"] = SIMULATED_NOTE
    return tags


def records_table(records: Iterable[Mapping[str, object]]) -> dict[str, list[object]]:
    """Columns of one row per record: usage summed over roles, the error as one text."""
    rows = [_row(record) for record in records]
    present = dict.fromkeys(name for row in rows for name in row)
    names = [*_COLUMNS, *(name for name in present if name not in _COLUMNS)]
    return {name: [row.get(name) for row in rows] for name in names}


def _row(record: Mapping[str, object]) -> dict[str, object]:
    row: dict[str, object] = {}
    roles = [_mapping(usage) for usage in _mapping(record.get("usage")).values()]
    for name, value in record.items():
        if isinstance(value, str | int | float) and name not in _NO_COLUMNS:
            row[name] = _cut(value, MAX_CELL_CHARS) if isinstance(value, str) else value
    for name in _USAGE:
        row[name] = sum(value for role in roles if isinstance(value := role.get(name), int | float))
    error = _mapping(record.get("error"))
    if error:
        text = ": ".join(str(error[key]) for key in ("boundary", "type", "message") if key in error)
        row["error"] = _cut(text, MAX_CELL_CHARS)
    return row


def _flatten(value: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    """Dotted names of all values that are not null; a list is one value."""
    for key, inner in value.items():
        name = f"{prefix}{key}"
        if isinstance(inner, Mapping):
            yield from _flatten(inner, f"{name}.")
        elif inner is not None:
            yield name, inner


def _metric(name: str, value: object, step: int = 0) -> list[Metric]:
    if isinstance(value, int | float) and math.isfinite(value):
        return [Metric(_safe(name), float(value), step)]
    return []


def _renamed(name: str, prefixes: Mapping[str, str]) -> str:
    for prefix, replacement in prefixes.items():
        if name.startswith(prefix):
            return _safe(replacement + name.removeprefix(prefix))
    return _safe(name)


def _safe(name: str) -> str:
    # MLflow takes letters, digits and "_-. "; a slash it reads as a path, which must be normal.
    return re.sub(r"[^\w\-. ]", "_", name)[:250]


def _cut(text: str, limit: int) -> str:
    mark = f"… ({len(text)} characters)"
    return text if len(text) <= limit else text[: limit - len(mark)] + mark


def _mapping(value: object) -> Mapping[str, object]:
    return value if isinstance(value, Mapping) else {}


def _milliseconds(created: object) -> int:
    return int(datetime.fromisoformat(str(created)).timestamp() * 1000)
