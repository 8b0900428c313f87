"""The samples of a run, one row each: which failed, which broke, which got worse than before."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Console

from fleet_rlm.errors import one_line
from fleet_rlm.report.tables import number, short_length
from fleet_rlm.runner.record import Record, total_usage
from fleet_rlm.runner.summary import sample_means

_ESCAPES = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b[@-_]|[\x00-\x08\x0b-\x1f\x7f-\x9f]")

WHICH: Mapping[str, Callable[[Record], bool]] = {
    "failed": lambda record: record.score is not None and record.score < 1,
    "errored": lambda record: record.status == "error",
    "limited": lambda record: record.status == "limit",
}
"""What `fleet-eval samples` can be asked for: scored below 1, without a score, ended at a limit."""


NARROWEST_ANSWER = 16
"""Characters below which an answer is not worth its column."""


def visible(text: str) -> str:
    """A model's text without what would steer the terminal."""
    return _ESCAPES.sub("", text)


def sample_rows(
    records: Sequence[Record],
    *,
    which: Sequence[str] = (),
    task: str | None = None,
    base: Sequence[Record] | None = None,
) -> list[dict[str, Any]]:
    """One row per record, in the order of tasks, lengths and samples.

    Args:
        records: those that count, of one run.
        which: names in `WHICH`; a record that any of them takes is shown, all when empty.
        task: only this task.
        base: records of an earlier run; then only samples whose mean score is lower now, with both.
    """
    before = sample_means(base) if base is not None else {}
    after = sample_means(records)
    rows = []
    for record in sorted(records, key=lambda r: (r.task, r.length, r.sample, r.epoch)):
        if task not in (None, record.task):
            continue
        if which and not any(WHICH[name](record) for name in which):
            continue
        row = _row(record)
        if base is not None:
            was, now = before.get(record.sample), after.get(record.sample)
            if was is None or now is None or now >= was:
                continue
            row |= {"before": was, "now": now}
        rows.append(row)
    return rows


def _row(record: Record) -> dict[str, Any]:
    error = record.error
    said = f"{error.boundary}: {error.message}" if error else record.answer or ""
    return {
        "sample": record.sample,
        "epoch": record.epoch,
        "task": record.task,
        "length": record.length,
        "status": record.status,
        "stop": record.stop,
        "score": record.score,
        "usd": total_usage(record.usage).usd,
        "seconds": record.seconds,
        "said": one_line(visible(said), 120),
    }


def print_samples(console: Console, rows: Sequence[Mapping[str, Any]]) -> None:
    """Print the rows of `sample_rows`; the answer gets the width that is left, if that is enough.

    Args:
        console: where to.
        rows: in this order.
    """
    if not rows:
        console.print("no such samples")
        return
    compared = "before" in rows[0]
    heads = ["sample", "length", *(("before", "now") if compared else ("score",)), "$", "s", "stop"]
    lines = [heads, *(_cells(row, compared=compared) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(heads))]
    left = console.width - sum(widths) - 2 * len(widths)
    said = ["answer or error", *(row["said"] for row in rows)]
    for line, text in zip(lines, said, strict=True):
        cells = [
            cell.ljust(width) if head in {"sample", "stop"} else cell.rjust(width)
            for head, cell, width in zip(heads, line, widths, strict=True)
        ]
        shown = [one_line(text, left)] if left >= NARROWEST_ANSWER else []
        console.print("  ".join([*cells, *shown]).rstrip(), markup=False, soft_wrap=True)
    console.print("1 sample" if len(rows) == 1 else f"{len(rows)} samples")


def _cells(row: Mapping[str, Any], *, compared: bool) -> list[str]:
    epoch = f" #{row['epoch']}" if row["epoch"] else ""
    scores = (row["before"], row["now"]) if compared else (row["score"],)
    return [
        f"{row['sample']}{epoch}",
        short_length(row["length"]),
        *map(number, scores),
        f"{row['usd']:.4f}",
        f"{row['seconds']:.1f}",
        row["stop"],
    ]
