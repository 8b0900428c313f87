"""One answer as a tree: thoughts, code, output, sub-queries and children, indented by depth."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from fleet_rlm.ledger import Usage
from fleet_rlm.report.samples import visible
from fleet_rlm.runner.record import Record, total_usage

MAX_LINES = 12
"""Lines of one text that are shown; the rest is counted."""

_STYLES = {"code": "cyan", "out": "", "said": "italic", "ask": "green", "note": "dim"}


def print_trace(console: Console, record: Record, trajectory: Mapping[str, Any]) -> None:
    """Print what an attempt did.

    Args:
        console: where to.
        record: how it ended and what it cost.
        trajectory: as stored; steps of older runs may lack time, usage and queries.
    """
    for depth, style, text in _lines(record, trajectory):
        console.print(Text("  " * depth + text, style=_STYLES.get(style, style)), soft_wrap=True)


def _lines(record: Record, trajectory: Mapping[str, Any]) -> Iterator[tuple[int, str, str]]:
    score = "no score" if record.score is None else f"score {record.score:.3f}"
    yield 0, "bold", f"{record.sample}, epoch {record.epoch}: {score}, {record.stop}"
    if trajectory.get("query"):
        yield from _block(0, "note", "query  ", str(trajectory["query"]))
    yield from _steps(trajectory.get("steps") or [], 0)
    if record.error:
        yield 0, "red", f"{record.error.boundary} error: {visible(record.error.message)}"
    yield from _block(0, "bold", "answer ", str(trajectory.get("answer") or ""))
    yield 0, "note", f"total   {_cost(total_usage(record.usage), record.seconds)}"


def _steps(steps: Sequence[Mapping[str, Any]], depth: int) -> Iterator[tuple[int, str, str]]:
    for number, step in enumerate(steps, 1):
        yield depth, "bold", f"turn {number}{_spent(step)}"
        if "code" not in step:  # a step of another program: whatever it calls its own
            for name, value in step.items():
                yield from _block(depth + 1, "out", f"{name}  ", str(value))
            continue
        yield from _block(depth + 1, "said", "", step.get("reasoning") or "")
        yield from _block(depth + 1, "code", "> ", step["code"])
        for query in step.get("queries") or []:
            yield from _query(query, depth + 1)
        yield from _block(depth + 1, "out", "", step.get("output") or "")


def _query(query: Mapping[str, Any], depth: int) -> Iterator[tuple[int, str, str]]:
    if query["kind"] == "tool":
        yield depth, "ask", f"tool   {visible(query['name'])}{_spent(query)}"
        yield from _block(depth + 1, "note", "", query["arguments"], lines=3)
        yield from _block(depth + 1, "out", "= ", query.get("error") or query["result"], lines=3)
        return
    if query["kind"] == "rlm":
        yield depth, "ask", f"child  {query['context_chars']:,} characters{_spent(query)}"
        yield from _block(depth + 1, "ask", "query  ", query["query"], lines=3)
        yield from _steps(query["steps"], depth + 1)
        yield from _block(depth + 1, "ask", "answer ", query["answer"], lines=3)
        return
    yield depth, "ask", f"ask    {query['prompt_chars']:,} characters{_spent(query)}"
    yield from _block(depth + 1, "note", "", query["prompt"], lines=3)
    reply = query["reply"] if query["reply_chars"] else query.get("error") or "(no reply)"
    yield from _block(depth + 1, "out", "= ", reply, lines=3)


def _block(
    depth: int, style: str, mark: str, text: str, lines: int = MAX_LINES
) -> Iterator[tuple[int, str, str]]:
    found = visible(text).strip("\n").splitlines()
    for line in found[:lines]:
        yield depth, style, f"{mark}{line}"
    if len(found) > lines:
        yield depth, "note", f"... {len(found) - lines} more lines"


def _spent(part: Mapping[str, Any]) -> str:
    if "usage" not in part:
        return ""
    return f"   {_cost(Usage.from_json(part['usage']), part['seconds'])}"


def _cost(usage: Usage, seconds: float) -> str:
    calls = "1 call" if usage.calls == 1 else f"{usage.calls} calls"
    return f"{seconds:.1f} s · {calls} · {usage.tokens:,} tokens · ${usage.usd:.4f}"
