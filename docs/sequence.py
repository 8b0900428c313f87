"""Draws Mermaid's sequence diagrams as SVG while the site is built: no script, nothing to load."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from itertools import accumulate, pairwise
from typing import Any, Literal

BLOCK = re.compile(r"^```mermaid\nsequenceDiagram\n(.*?)^```$", re.M | re.S)
PARTICIPANT = re.compile(r"participant (\w+)(?: as (.+))?$")
MESSAGE = re.compile(r"(\w+)(--?)>>(\w+): (.+)$")
NOTE = re.compile(r"Note over (\w+)(?:,(\w+))?: (.+)$")
FRAME = re.compile(r"(loop|opt) (.+)$")

CHAR, ROW, HEAD, PAD = 6.3, 30, 36, 10
"""Pixels: of a letter of 12 px, a step, the names, and what stands beside a text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One line of a diagram; first and last are columns, by number."""

    kind: Literal["call", "answer", "note", "loop", "opt", "end"]
    first: int = 0
    last: int = 0
    text: str = ""

    @property
    def width(self) -> float:
        return len(self.text) * CHAR + 2 * PAD


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called by MkDocs for every page."""
    return BLOCK.sub(lambda found: draw(found[1]), markdown)


def draw(source: str) -> str:
    """The SVG of a diagram.

    Raises:
        ValueError: a line that is none of participant, message, note, loop, opt and end; it ends
            the build.
    """
    names, steps = parse(source)
    at = _columns(names, steps)
    height = HEAD + ROW * len(steps) + PAD
    notes = [at[step.first] + step.width for step in steps if step.kind == "note"]
    right = round(max([at[-1] + _half(list(names.values())[-1]) + PAD, *notes]))
    parts = [*_heads(list(names.values()), at, height), *_body(steps, at, right)]
    label = escape(" ".join(f"{step.text}." for step in steps if step.text))
    return (
        f'<div class="sequence"><svg role="img" aria-label="{label}" width="{right}"'
        f' height="{height}" viewBox="0 0 {right} {height}">{"".join(parts)}</svg></div>'
    )


def parse(source: str) -> tuple[dict[str, str], list[Step]]:
    """Participants by their short name, and steps in order."""
    names: dict[str, str] = {}
    steps: list[Step] = []
    for line in filter(None, map(str.strip, source.splitlines())):
        place = list(names)
        if found := PARTICIPANT.match(line):
            names[found[1]] = found[2] or found[1]
        elif found := MESSAGE.match(line):
            first, last = place.index(found[1]), place.index(found[3])
            kind: Literal["call", "answer"] = "answer" if found[2] == "--" else "call"
            steps.append(Step(kind=kind, first=first, last=last, text=found[4]))
        elif found := NOTE.match(line):
            first, last = place.index(found[1]), place.index(found[2] or found[1])
            steps.append(Step(kind="note", first=first, last=last, text=found[3]))
        elif found := FRAME.match(line):
            steps.append(Step(kind="loop" if found[1] == "loop" else "opt", text=found[2]))
        elif line == "end":
            steps.append(Step(kind="end"))
        else:
            raise ValueError(f"no line of a sequence diagram that is drawn here: {line!r}")
    return names, steps


def _columns(names: dict[str, str], steps: Sequence[Step]) -> list[int]:
    """Where each lifeline stands, so far apart that every message between two has room."""
    halves = [_half(name) for name in names.values()]
    gaps: list[float] = [a + b + PAD for a, b in pairwise(halves)]
    for step in sorted(steps, key=lambda step: abs(step.last - step.first)):
        low, high = sorted((step.first, step.last))
        lack = step.width - sum(gaps[low:high]) if step.kind in ("call", "answer") else 0
        for place in range(low, high):
            gaps[place] += max(0, lack) / (high - low)
    return [round(x) for x in accumulate([halves[0] + PAD, *gaps])]


def _half(name: str) -> int:
    return round(1.15 * len(name) * CHAR / 2) + PAD - 3  # bold


def _heads(names: Sequence[str], at: Sequence[int], height: int) -> Iterator[str]:
    for name, x in zip(names, at, strict=True):
        half = _half(name)
        box = f'x="{x - half}" y="4" width="{2 * half}" height="24"'
        yield f'<line class="life" x1="{x}" x2="{x}" y1="28" y2="{height}"/>'
        yield f'<rect class="head" {box} rx="4"/>'
        yield f'<text class="name" x="{x}" y="20">{escape(name)}</text>'


def _body(steps: Sequence[Step], at: Sequence[int], right: int) -> Iterator[str]:
    frames: list[tuple[int, Step]] = []
    for number, step in enumerate(steps):
        y = HEAD + ROW * number + ROW // 2
        if step.kind in ("loop", "opt"):
            frames.append((y, step))
        elif step.kind == "end":
            top, frame = frames.pop()
            box = f'x="4" y="{top - 12}" width="{right - 8}" height="{y - top + 12}"'
            yield f'<rect class="frame" {box} rx="4"/>'
            yield f'<text class="why" x="12" y="{top + 3}">{escape(frame.text)}</text>'
        elif step.kind == "note":
            x = at[step.first] + PAD // 2
            yield f'<text class="note" x="{x}" y="{y + 4}">{escape(step.text)}</text>'
        else:
            yield _arrow(step, at[step.first], at[step.last], y)


def _arrow(step: Step, start: int, end: int, y: int) -> str:
    back = -8 if end > start else 8
    ends = f'x1="{start}" x2="{end + back // 2}" y1="{y + 6}" y2="{y + 6}"'
    return (
        f'<line class="{step.kind}" {ends}/>'
        f'<path class="tip" d="M{end} {y + 6}l{back} -4v8z"/>'
        f'<text class="said" x="{(start + end) // 2}" y="{y}">{escape(step.text)}</text>'
    )
