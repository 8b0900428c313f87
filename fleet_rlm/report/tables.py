"""The tables that commands print: the result of a run, the list of suites."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from rich import box
from rich.console import Console
from rich.table import Table

from fleet_rlm.statistics.clustered import Interval
from fleet_rlm.suites.conformance import Cell

NARROWEST = 100
"""Columns assumed when the output is not a terminal: a wrapped table cannot be read."""


def make_console(stream: TextIO) -> Console:
    """A console that writes plain text unless `stream` is a terminal."""
    width = None if stream.isatty() else NARROWEST
    return Console(file=stream, highlight=False, width=width, soft_wrap=False)


def print_result(console: Console, summary: Mapping[str, Any], label: str | None) -> None:
    """Print a run's summary: a row a task, a row for all, then what it cost and how samples ended.

    Args:
        console: where to.
        summary: the content of `summary.json`.
        label: the sentence that must stand beside the numbers, if any.
    """
    if label:
        console.print(f"[bold yellow]{label}[/]")
    level = summary["sandbox"]["level"]
    console.print(
        f"[bold]{summary['suite']}[/] · {summary['program']} · {summary['model']}"
        f" · sandbox {level}{' [bold red]NOT ISOLATED[/]' if level == 'unsafe-process' else ''}"
    )
    console.print(_scores(summary))
    _print_lines(console, summary)


def _scores(summary: Mapping[str, Any]) -> Table:
    lengths = sorted({int(n) for task in summary["tasks"].values() for n in task["lengths"]})
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("task")
    for name in ("n", "score", "95% CI", "official", "floor", *map(short_length, lengths)):
        table.add_column(name, justify="right", no_wrap=True)
    for name, task in summary["tasks"].items():
        by_length = [task["lengths"].get(str(length), {}).get("score") for length in lengths]
        table.add_row(
            name,
            str(task["n"]),
            number(task["score"]),
            interval(task["ci"]),
            number(task["official"]),
            number(task["floor"]),
            *map(number, by_length),
        )
    table.add_section()
    table.add_row(
        "all",
        str(summary["scored"]),
        number(summary["score"]),
        interval(summary["ci"]),
        style="bold",
    )
    return table


def _print_lines(console: Console, summary: Mapping[str, Any]) -> None:
    usage = summary["usage"]
    roles = " · ".join(f"{role} ${spent['usd']:.4f}" for role, spent in usage["by_role"].items())
    stops = " · ".join(f"{stop} {count}" for stop, count in summary["stops"].items())
    coverage = f"{summary['coverage']:.0%} of {summary['samples']} samples"
    zeros = number(summary.get("with_errors_as_zero"))
    errors = f", {summary['errors']} errors, score {zeros} with errors as 0"
    errors = errors if summary["errors"] else ""
    tools = " · ".join(
        f"{name} " + ", ".join(f"{n} {judged}" for judged, n in task["tools"].items() if n)
        for name, task in summary["tasks"].items()
        if "tools" in task
    )
    mde = summary["mde"]
    detects = (
        "" if mde is None else f"   detects differences from {mde:.2f} (if 20% of samples differ)"
    )
    rows = {
        "coverage": f"{coverage}{errors}{detects}",
        "usage": _used(usage),
        "cost": f"${usage['usd']:.4f}" + (f"   {roles}" if roles else ""),
        "stops": stops or "none",
        "tools": tools,
        "time": f"{summary['wall_s']:.1f} s",
    }
    rows |= {f"{k} tries": _tries(row) for k, row in summary.get("repeated", {}).items()}
    for name, text in rows.items():
        if not text:
            continue
        console.print(f"{name:<9} {text}", markup=False, soft_wrap=True)


def _used(usage: Mapping[str, Any]) -> str:
    cached = f" ({usage['cached_tokens']:,} cached)" if usage["cached_tokens"] else ""
    hits = f"{usage['cache_hits']:,} calls answered by the cache, ${usage['saved_usd']:.4f} saved"
    return (
        f"{usage['calls']:,} calls · {usage['input_tokens']:,} tokens in{cached}"
        f" · {usage['output_tokens']:,} out" + (f" · {hits}" if usage["cache_hits"] else "")
    )


def _tries(row: Mapping[str, Any]) -> str:
    shown = (
        f"{what} right {number(row[key]['score'])} ({interval(row[key]['ci'])})"
        for what, key in (("any", "any_right"), ("all", "all_right"))
    )
    return f"{' · '.join(shown)} · n = {row['n']} in {row['clusters']} contexts"


def print_suites(console: Console, rows: Sequence[Mapping[str, Any]]) -> None:
    """Print the suites: name, samples, contexts, lengths, where from, what for."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("suite", "samples", "contexts", "lengths", "from", "about"):
        table.add_column(name, justify="right" if name in {"samples", "contexts"} else "left")
    for row in rows:
        ends = dict.fromkeys([*row["lengths"][:1], *row["lengths"][-1:]])
        lengths = " to ".join(map(short_length, ends))
        about = row["description"]
        table.add_row(
            row["name"],
            *(str(row[key] or "-") for key in ("samples", "contexts")),
            lengths,
            row["origin"],
            about,
        )
    console.print(table)
    if not all(row["samples"] for row in rows):
        console.print("-  not on this machine yet: fleet-eval fetch NAME", markup=False)


def print_recipe_list(console: Console, rows: Sequence[Mapping[str, Any]]) -> None:
    """Print the recipes: name, optimizer, program, suite, where from, what for."""
    columns = ("name", "optimizer", "program", "suite", "origin", "description")
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(
            {"name": "recipe", "origin": "from", "description": "about"}.get(column, column)
        )
    for row in rows:
        table.add_row(*(str(row[column]) for column in columns))
    console.print(table)


def print_cells(console: Console, cells: Sequence[Cell]) -> None:
    """Print published figures beside ours from the same model outputs."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("benchmark", "model", "task", "samples", "published", "ours", ""):
        table.add_column(
            name, justify="right" if name in {"samples", "published", "ours"} else "left"
        )
    for cell in cells:
        shown = (
            cell.benchmark,
            cell.model,
            cell.task,
            str(cell.samples),
            cell.published,
            cell.ours,
        )
        table.add_row(*shown, "equal" if cell.equal else "[bold red]DIFFERS[/]")
    console.print(table)


def signed(bounds: Sequence[float]) -> str:
    """An interval of a difference, with signs."""
    return f"{bounds[0]:+.3f} to {bounds[1]:+.3f}"


def number(value: float | None) -> str:
    """A score with three digits, or a dash."""
    return "-" if value is None else f"{value:.3f}"


def interval(bounds: Sequence[float] | None) -> str:
    """The part of a score's interval that a score can take, or a dash without an interval.

    An interval without width says "all equal": contexts that do not differ show no uncertainty,
    which is not the same as certainty.
    """
    if bounds is None:
        return "-"
    if not Interval(*bounds).has_width:
        return "all equal"
    return f"{max(0.0, bounds[0]):.3f}-{min(1.0, bounds[1]):.3f}"


def count(value: float) -> str:
    """12345 -> "12.3k"; a number below a thousand as it is."""
    for unit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= unit:
            return f"{value / unit:.1f}{letter}"
    return f"{value:.0f}"


def short_length(tokens: int) -> str:
    """128000 -> "128k"."""
    if tokens >= 1_000_000:
        return f"{tokens / 1_000_000:.3g}M"
    return f"{tokens / 1000:.3g}k" if tokens >= 1000 else str(tokens)


def print_estimate(console: Console, found: Mapping[str, Any], label: str | None) -> None:
    """Print what a run is expected to take.

    Args:
        console: where to.
        found: an estimate as `fleet-eval estimate --json` prints it.
        label: the sentence that must stand beside the numbers, if any.
    """
    if label:
        console.print(f"[bold yellow]{label}[/]")
    models = found["models"]
    console.print(
        f"{found['suite']} · {found['program']} · {models['root']}, sub {models['sub']}",
        markup=False,
    )
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    for name in ("expected", "from", "to"):
        table.add_column(name, justify="right", no_wrap=True)
    forms = {"calls": "{:,.0f}", "tokens": "{:,.0f}", "usd": "${:,.4f}",
             "sandbox_usd": "${:,.4f}", "wall_s": "{:,.0f} s"}  # fmt: skip
    heads = {"usd": "dollars", "sandbox_usd": "of it sandboxes", "wall_s": "time"}
    for name, form in forms.items():
        if found[name] is not None:
            low, expected, high = found[name]
            table.add_row(heads.get(name, name), *map(form.format, (expected, low, high)))
    console.print(table)
    detects = found["detects"]
    lines = {
        "samples": f"{found['samples']:,}, epochs counted",
        "basis": found["basis"],
        "detects": "-" if detects is None else
        f"differences from {detects:.2f} between two such runs (if 20% of samples differ)",
    }  # fmt: skip
    for name, text in lines.items():
        console.print(f"{name:<9} {text}", markup=False, soft_wrap=True)
