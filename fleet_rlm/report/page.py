"""One self-contained page of runs: tables, plots, samples and what each answer did."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

import orjson

from fleet_rlm.errors import UsageError, one_line
from fleet_rlm.report import plots
from fleet_rlm.report.comparison import (
    RECURSION,
    REPEATED,
    arms_grid,
    cost_grid,
    difference_grid,
    notes,
    recursion_grid,
    repeated_grid,
)
from fleet_rlm.report.grid import Grid
from fleet_rlm.report.tables import interval, number
from fleet_rlm.runner.compare import RunComparison
from fleet_rlm.runner.record import Record, last_records, total_usage
from fleet_rlm.runner.store import read_records, read_trajectory
from fleet_rlm.runner.stored import Run
from fleet_rlm.sandbox.redact import Redactor

MAX_TRAJECTORIES = 6_000_000
"""Bytes of packed trajectories in a page; the failed ones go first, the rest are named."""

BLIND = "blind"
"""The program that is asked without the context."""

SAID_CHARS = 160
"""Characters of an answer in the table; all of it is in the trajectory."""


@dataclass(frozen=True, slots=True)
class Page:
    """A report."""

    html: str
    plots: Mapping[str, plots.Spec]
    """Name -> plot, as drawn in it."""

    left_out: int
    """Trajectories that had no room."""


def render_page(
    found: RunComparison, *, redactor: Redactor, max_trajectories: int = MAX_TRAJECTORIES
) -> Page:
    """The report of one or more arms.

    Args:
        found: the arms, compared where there are several.
        redactor: cleans every text of a model once more.
        max_trajectories: bytes of packed trajectories.

    Raises:
        UsageError: a record or trajectory cannot be read.
    """
    records = {
        name: list(last_records(read_records(runs[0].folder / "records.jsonl")).values())
        for name, runs in zip(found.names, found.groups, strict=True)
    }
    runs = {name: group[0] for name, group in zip(found.names, found.groups, strict=True)}
    drawn = plots.plots(found.arms, found.outcomes)
    packed, left_out = _trajectories(runs, records, redactor, max_trajectories)
    samples = [row for name in runs for row in _samples(name, runs[name], records[name], redactor)]
    data = {"plots": drawn, "samples": samples, "trajectories": packed}
    body = "\n".join(_body(found, drawn, left_out))
    return Page(_document(found, body, data), drawn, left_out)


def _document(found: RunComparison, body: str, data: Mapping[str, Any]) -> str:
    import vl_convert

    own = files("fleet_rlm.report")
    style, script = (
        own.joinpath(name).read_text(encoding="utf-8") for name in ("page.css", "page.js")
    )
    # Inside a script element only a closing tag could end the data.
    shown = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    library = vl_convert.javascript_bundle()  # type: ignore[call-arg] # has a default
    library = library.replace("</script", "<\\/script")
    title = escape(f"{found.suite}: {', '.join(found.names)}")
    # Nothing may be fetched, whatever the texts of a model hold.
    policy = (
        "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:"
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
{body}
<script type="application/json" id="data">{shown}</script>
<script>{library}</script>
<script type="module">
{script}</script>
</body>
</html>
"""


def _body(
    found: RunComparison,
    drawn: Mapping[str, plots.Spec],
    left_out: int,
) -> Iterator[str]:
    yield f"<h1>{escape(found.suite)}</h1>"
    yield f"<p class=dim>{escape(' · '.join(_about(found)))}</p>"
    if found.label:
        yield f"<p class=warn>{escape(found.label)}</p>"
    yield arms_grid(found).to_html()
    yield "<h2>Plots</h2>"
    yield from _plots(found, drawn)
    yield "<h2>Tasks</h2>"
    yield _tasks(found).to_html()
    yield (
        "<p class=dim>floor: what the best answer scores that never reads the context. no context:"
        " what the same model scores without it, where a run of <code>--program blind</code> is"
        " among these. An oracle scores 1: every suite's gold answer is right by its own rule"
        " (<code>fleet-eval audit</code>).</p>"
    )
    if tries := repeated_grid(found):
        yield "<h2>Repetitions</h2>"
        yield tries.to_html()
        yield f"<p class=dim>{escape(REPEATED)}</p>"
    if found.rows:
        yield from _comparisons(found)
    if recursion := recursion_grid(found):
        yield "<h2>Recursion</h2>"
        yield recursion.to_html()
        yield f"<p class=dim>{escape(RECURSION)}</p>"
    yield from _sample_table(left_out)


def _about(found: RunComparison) -> Iterator[str]:
    lock = found.groups[0][0].lock
    yield f"version {lock['suite']['version']}"
    yield f"suite digest {lock['suite']['digest'][:12]}"
    yield f"fleet-rlm {lock['lock']['versions'].get('fleet-rlm', 'unknown')}"
    for name, arm in zip(found.names, found.arms, strict=True):
        yield f"{name}: {arm['model']}, {arm['run']}"


_TITLES = {
    "score-by-length": "Score by context length",
    "score-by-cost": "Score by cost; dashed: no arm is better and cheaper",
    "latency": "Seconds of a sample, without waits for a rate limit",
    "cost": "Dollars of a sample",
    "stops": "How samples ended",
}


def _plots(found: RunComparison, drawn: Mapping[str, plots.Spec]) -> Iterator[str]:
    yield "<div class=plots>"
    for name, title in _TITLES.items():
        if name not in drawn:
            continue
        chooser = _chooser(drawn) if name == "score-by-length" else ""
        first = " class=first" if name == "score-by-length" else ""
        yield (
            f"<figure{first}><h3>{escape(title)}{chooser}</h3>"
            f'<div class=plot data-plot="{escape(name)}"></div></figure>'
        )
    yield "</div>"
    yield from (f"<p class=dim>{escape(note)}</p>" for note in plots.notes(found.arms))


def _chooser(drawn: Mapping[str, plots.Spec]) -> str:
    prefix = "score-by-length"
    names = [name for name in drawn if name.startswith(prefix)]
    if len(names) < 2:
        return ""
    options = "".join(
        f'<option value="{escape(name)}">{escape(name[len(prefix) + 1 :] or "all tasks")}</option>'
        for name in names
    )
    return f'<select id=task-of-plot aria-label="task">{options}</select>'


def _tasks(found: RunComparison) -> Grid:
    runs = {name: group[0] for name, group in zip(found.names, found.groups, strict=True)}
    unread = {
        (_root(run), task): own["score"]
        for run in runs.values()
        if run.lock["arm"]["program"] == BLIND
        for task, own in run.summary["tasks"].items()
    }
    rows = [
        (task, name, str(own["n"]), str(own["clusters"]), number(own["score"]),
         interval(own["ci"]), number(own["official"]), number(own["robust"]),
         number(own["floor"]), number(unread.get((_root(run), task))), str(own["errors"]))
        for name, run in runs.items() for task, own in run.summary["tasks"].items()
    ]  # fmt: skip
    rows.sort(key=lambda row: row[0])
    heads = ("task", "arm", "n", "contexts", "score", "95% CI", "official", "robust", "floor",
             "no context", "errors")  # fmt: skip
    return Grid(heads, rows, words={"task", "arm"})


def _root(run: Run) -> str:
    return str(run.lock["arm"]["models"]["root"]["name"])


def _comparisons(found: RunComparison) -> Iterator[str]:
    yield f"<h2>Differences from {escape(found.names[0])}</h2>"
    for name in found.names[1:]:
        rows = [row for row in found.rows if row.arm == name]
        yield f"<h3>{escape(name)} less {escape(found.names[0])}</h3>"
        yield difference_grid([row for row in rows if row.length is None]).to_html()
        yield "<details><summary>by length, and what each took</summary>"
        yield difference_grid([row for row in rows if row.length is not None]).to_html()
        yield cost_grid(rows).to_html()
        yield "</details>"
    yield "".join(f"<p class=dim>{escape(n)}</p>" for n in notes(found, bullet="").splitlines())


def _sample_table(left_out: int) -> Iterator[str]:
    yield "<h2>Samples</h2>"
    if left_out:
        yield (
            f"<p class=dim>{left_out} trajectories had no room here, those of right answers first;"
            " <code>fleet-eval trace RUN SAMPLE</code> shows each.</p>"
        )
    selects = "".join(
        f"<label>{label}<select id={name}></select></label>"
        for name, label in (("arm", "arm"), ("task", "task"), ("stop", "ended"))
    )
    yield (
        f"<div class=filters>{selects}<label>score<select id=which><option value=''>all</option>"
        "<option value=failed>below 1</option><option value=errored>none: error</option>"
        "<option value=right>1</option></select></label>"
        "<label>id or answer has<input id=words type=search></label>"
        "<span id=count class=dim aria-live=polite></span></div>"
    )
    figures = {"epoch", "length", "score", "usd", "seconds"}
    named = {"arm": "arm", "sample": "sample", "epoch": "epoch", "task": "task", "length": "length",
             "stop": "ended", "score": "score", "usd": "$", "seconds": "s",
             "said": "answer or error"}  # fmt: skip
    heads = "".join(
        f"<th{' class=n' if name in figures else ''}><button data-column={name}>{label}</button>"
        "</th>"
        for name, label in named.items()
    )
    yield (
        f"<div class=wide><table><thead><tr>{heads}</tr></thead><tbody id=rows></tbody></table>"
        "</div><p><button id=more hidden>show more</button></p>"
        "<noscript><p>The samples and plots need JavaScript; nothing is loaded from elsewhere."
        "</p></noscript>"
    )


def _samples(
    name: str, run: Run, records: Sequence[Record], redactor: Redactor
) -> Iterator[dict[str, Any]]:
    for record in sorted(records, key=lambda r: (r.task, r.length, r.sample, r.epoch)):
        error = record.error
        said = f"{error.boundary}: {error.message}" if error else record.answer or ""
        yield {
            "key": _key(name, record),
            "run": str(run.folder.name),
            "arm": name,
            "sample": record.sample,
            "epoch": record.epoch,
            "task": record.task,
            "length": record.length,
            "stop": record.stop,
            "score": record.score,
            "usd": round(total_usage(record.usage).usd, 6),
            "seconds": record.seconds,
            "said": one_line(redactor.clean(said), SAID_CHARS),
            "feedback": redactor.clean(record.feedback),
        }


def _key(name: str, record: Record) -> str:
    return f"{name}/{record.sample}/{record.epoch}"


def _trajectories(
    runs: Mapping[str, Run],
    records: Mapping[str, Sequence[Record]],
    redactor: Redactor,
    max_bytes: int,
) -> tuple[dict[str, str], int]:
    """Packed trajectories by key, worst answers first, and how many had no room."""
    wanted = [
        (record.score if record.score is not None else -1.0, name, record)
        for name, own in records.items()
        for record in own
        if record.trajectory
    ]
    wanted.sort(key=lambda one: (one[0], one[2].sample, one[1]))
    packed: dict[str, str] = {}
    size = 0
    for number_packed, (_, name, record) in enumerate(wanted):
        text = _packed(runs[name].folder, record, redactor)
        size += len(text)
        if size > max_bytes:
            return packed, len(wanted) - number_packed
        packed[_key(name, record)] = text
    return packed, 0


def _packed(folder: Path, record: Record, redactor: Redactor) -> str:
    try:
        stored = read_trajectory(folder, record)
    except UsageError as error:
        stored = {"answer": f"({error.message})"}
    clean = redactor.clean_data(stored)
    return base64.b64encode(gzip.compress(orjson.dumps(clean), 6, mtime=0)).decode()
