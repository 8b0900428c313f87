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

import numpy as np

from fleet_rlm.errors import UsageError
from fleet_rlm.statistics.clustered import clustered_stderr, mean_interval

MAX_PARAM_CHARS = 6000
"""MLflow refuses a longer value; the whole one stands in the artifact run.json."""

MAX_DIGEST_CHARS = 36
"""MLflow refuses a longer digest of a dataset; the whole one is a param of the run."""

MAX_CELL_CHARS = 500
"""An answer may be a whole list; the whole one stands in records.jsonl."""

SIMULATED_NOTE = "simulated model: these numbers show the harness, not any model"

_PARAM_NAMES = {
    "arm.models.": "model.",
    "arm.digest": "program.digest",
    "arm.": "",
    "lock.versions.": "version.",
    "lock.": "",
}
# The dashboard draws a chart of each metric, in the section before the slash.
_SECTIONS = {"usage.by_role.": "role/", "usage.": "usage/", "tasks.": "task/", "stops.": "stop/"}
_OF_LENGTHS = "task_by_length/"
_FIRST = ("score", "score_lo", "score_hi", "score_se", "usd_per_sample", "usd", "coverage")
_NO_METRICS = ("settings.", "sandbox.", "schema")  # params already, or no measure
_NO_PARAMS = ("schema", "run", "created", "command")  # the name, a time, or said by the rest
HOST_SIDE = ("feedback", "expected", "trajectory")
"""Fields of a record that no artifact holds: gold, and a path into the folder."""

_TAGS = (
    "suite",
    "suite.version",
    "suite.digest",
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
    """One number of a run in MLflow."""

    name: str
    value: float
    step: int | None = None
    """What the metric is drawn over: a length in tokens, or a trial; None for one number."""


class Dataset(NamedTuple):
    """What a run was scored on, as `mlflow.data` keeps it: by digest, never the texts."""

    name: str
    digest: str
    """As much of it as MLflow takes."""

    source: dict[str, str]
    """How to come by it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """One run folder as MLflow will show it."""

    run: str
    """Name of the folder."""

    title: str
    """What the run is called in MLflow."""

    started_ms: int
    ended_ms: int
    finished: bool
    """False when something planned has no record: the run was interrupted and can be resumed."""

    params: dict[str, str]
    metrics: list[Metric]
    tags: dict[str, str]
    datasets: list[Dataset]
    """The suite, then each dataset that it reads."""

    table: dict[str, list[object]]
    """Columns by name, in the order they are shown; one cell per (sample, epoch)."""

    records: list[Mapping[str, object]]
    """The ones that count, as stored."""

    models: dict[str, str]
    """Role -> name."""


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
        title=run,
        started_ms=_milliseconds(header.get("created")),
        ended_ms=int(newest.stat().st_mtime * 1000),
        finished=summarized and isinstance(planned, int) and len(records) >= planned,
        params=params,
        metrics=[*summary_metrics(summary, _models(header)), *length_metrics(records)],
        tags=run_tags(run, params),
        datasets=run_datasets(_mapping(header.get("suite"))),
        table=records_table(records),
        records=records,
        models=_models(header),
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
    about = {key: value for key, value in header.items() if key not in _NO_PARAMS}
    params = {}
    for name, value in flatten(about):
        # They stand in run.json: the dashboard's comparison would begin with them.
        if name.startswith("lock.prices."):
            continue
        text = value if isinstance(value, str) else json.dumps(value)
        params[_renamed(name, _PARAM_NAMES).removesuffix(".name")] = _cut(text, MAX_PARAM_CHARS)
    return params


def summary_metrics(summary: Mapping[str, object], roles: Iterable[str] = ()) -> list[Metric]:
    """Every number of a summary; an interval `ci` becomes `score_lo` and `score_hi`.

    Args:
        summary: the content of `summary.json`.
        roles: of the arm's models; one that spent nothing is shown with zeros, so that arms with
            and without it have the same metrics.
    """
    metrics = []
    for name, value in flatten(summary):
        if name.startswith(_NO_METRICS):
            continue
        stem, leaf = _sectioned(name)
        if leaf == "ci" and isinstance(value, list) and len(value) == 2:
            metrics += _bounds(stem, value[0], value[1])
        else:
            metrics += measure(stem + ("score_se" if leaf == "stderr" else leaf), value)
    usage = _mapping(summary.get("usage"))
    for role in roles if usage else ():
        if role not in _mapping(usage.get("by_role")):
            metrics += [Metric(f"role/{role}.{name}", 0.0) for name in _USAGE]
    scored, usd = summary.get("scored"), usage.get("usd")
    if isinstance(scored, int) and scored and isinstance(usd, int | float):
        metrics += measure("usd_per_sample", usd / scored)
    # Where the dashboard shows one metric of several runs, it is the first.
    rank = {name: place for place, name in enumerate(_FIRST)}
    return sorted(metrics, key=lambda metric: ("/" in metric.name, rank.get(metric.name, 99)))


def _sectioned(name: str) -> tuple[str, str]:
    """A name of a summary as MLflow has it: what stands before the last part, and that part.

    >>> _sectioned("tasks.needle.lengths.8000.ci")
    ('task_by_length/needle.8000.', 'ci')
    """
    prefix = next((prefix for prefix in _SECTIONS if name.startswith(prefix)), "")
    section = _SECTIONS.get(prefix, "")
    stem, _, leaf = safe(name.removeprefix(prefix)).rpartition(".")
    if section == "usage/" and leaf in _USAGE and not stem:
        return "", leaf
    if section == "task/" and ".lengths." in stem:
        section, stem = _OF_LENGTHS, stem.replace(".lengths.", ".")
    return section + (f"{stem}." if stem else ""), leaf


def length_metrics(records: Iterable[Mapping[str, object]]) -> list[Metric]:
    """Scores and dollars by context length: `length/8000.score`, over steps `score_by_length`.

    Errors are missing data and do not count; epochs are averaged first, as in every score.
    """
    groups: dict[tuple[str, int], list[Mapping[str, object]]] = {}
    for record in records:
        length, score = record.get("length"), record.get("score")
        if isinstance(length, int) and isinstance(score, int | float):
            for stem in ("", f"task/{safe(str(record.get('task')))}."):
                groups.setdefault((stem, length), []).append(record)
    metrics = []
    for (stem, length), found in sorted(groups.items()):
        scores, clusters = _sample_means(found)
        metrics += measure(f"{stem}score_by_length", fmean(scores), step=length)
        if not stem:  # those of a task stand in the summary
            usd = fmean(_spent(record, "usd") for record in found)
            metrics += measure("usd_by_length", usd, step=length)
            metrics += _estimate(f"length/{length}.", scores, clusters)
    return metrics


def _sample_means(records: Iterable[Mapping[str, object]]) -> tuple[list[float], list[str]]:
    """Score and cluster of each sample."""
    epochs: dict[tuple[str, str], list[float]] = {}
    for record in records:
        score = record["score"]
        if isinstance(score, int | float):
            key = (str(record.get("sample")), str(record.get("cluster")))
            epochs.setdefault(key, []).append(score)
    return [fmean(found) for found in epochs.values()], [cluster for _, cluster in epochs]


def _estimate(stem: str, scores: Sequence[float], clusters: Sequence[str]) -> list[Metric]:
    values = np.array(scores)
    interval = mean_interval(values, clusters)
    bounds = _bounds(stem, interval.low, interval.high) if interval else []
    spread = measure(f"{stem}score_se", clustered_stderr(values, clusters))
    return [*measure(f"{stem}score", fmean(scores)), *spread, *bounds]


def _bounds(stem: str, low: object, high: object) -> list[Metric]:
    # No score lies outside: an interval of few contexts would draw out the axis of every chart.
    inside = [
        min(max(float(bound), 0.0), 1.0) for bound in (low, high) if isinstance(bound, int | float)
    ]
    names = (f"{stem}score_lo", f"{stem}score_hi")
    return [metric for pair in zip(names, inside, strict=False) for metric in measure(*pair)]


def run_datasets(suite: Mapping[str, object]) -> list[Dataset]:
    """The suite and the datasets that it reads, with what finds each of them again."""
    if not suite:
        return []
    about = {key: str(suite[key]) for key in ("name", "version", "seed") if key in suite}
    found = {"": _dataset(str(suite.get("name")), str(suite.get("digest")), about)}
    tasks = suite.get("tasks")
    for task in map(_mapping, tasks if isinstance(tasks, list) else ()):
        if isinstance(name := task.get("dataset"), str):
            source = {"fetch": f"fleet-eval fetch {name}", "revision": str(task.get("revision"))}
            found[name] = _dataset(name, str(task.get("data")), source)
    return list(found.values())


def _dataset(name: str, digest: str, source: Mapping[str, str]) -> Dataset:
    return Dataset(name, digest[:MAX_DIGEST_CHARS], {"mlflow.source.name": "fleet-rlm", **source})


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
    for name, value in record.items():
        if isinstance(value, str | int | float) and name not in HOST_SIDE:
            row[name] = _cut(value, MAX_CELL_CHARS) if isinstance(value, str) else value
    for name in _USAGE:
        row[name] = _spent(record, name)
    error = _mapping(record.get("error"))
    if error:
        text = ": ".join(str(error[key]) for key in ("boundary", "type", "message") if key in error)
        row["error"] = _cut(text, MAX_CELL_CHARS)
    return row


def _spent(record: Mapping[str, object], name: str) -> float:
    """Over all roles."""
    roles = map(_mapping, _mapping(record.get("usage")).values())
    return sum(value for role in roles if isinstance(value := role.get(name), int | float))


def _models(header: Mapping[str, object]) -> dict[str, str]:
    models = _mapping(_mapping(header.get("arm")).get("models"))
    return {role: str(_mapping(spec).get("name")) for role, spec in models.items()}


def flatten(value: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    """Dotted names of all values that are not null; a list is one value."""
    for key, inner in value.items():
        name = f"{prefix}{key}"
        if isinstance(inner, Mapping):
            yield from flatten(inner, f"{name}.")
        elif inner is not None:
            yield name, inner


def measure(name: str, value: object, step: int | None = None) -> list[Metric]:
    """The metric, or none for what is no finite number."""
    if isinstance(value, int | float) and math.isfinite(value):
        return [Metric(name[:250], float(value), step)]
    return []


def _renamed(name: str, prefixes: Mapping[str, str]) -> str:
    for prefix, replacement in prefixes.items():
        if name.startswith(prefix):
            return safe(replacement + name.removeprefix(prefix))
    return safe(name)


def safe(name: str) -> str:
    """The name with what MLflow refuses in one replaced."""
    # MLflow takes letters, digits and "_-. "; a slash it reads as a path, which must be normal.
    return re.sub(r"[^\w\-. ]", "_", name)[:250]


def _cut(text: str, limit: int) -> str:
    mark = f"… ({len(text)} characters)"
    return text if len(text) <= limit else text[: limit - len(mark)] + mark


def _mapping(value: object) -> Mapping[str, object]:
    return value if isinstance(value, Mapping) else {}


def _milliseconds(created: object) -> int:
    return int(datetime.fromisoformat(str(created)).timestamp() * 1000)
