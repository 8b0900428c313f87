"""Plants lines at given depths of running text."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from random import Random
from typing import NamedTuple

from fleet_rlm.errors import DataError
from fleet_rlm.suites.generators.base import Order
from fleet_rlm.suites.passages import Source
from fleet_rlm.suites.tokens import count_tokens


class Line(NamedTuple):
    """A line to plant."""

    depth: float
    """Wanted place, 0.0 first to 1.0 last; lines of one gap keep the order of their depths."""

    text: str


class Planted(NamedTuple):
    """Running text with lines in it."""

    context: str
    tokens: int
    position: dict[str, float]
    """Line text to where it starts, as a share of the context's characters."""


def plant(order: Order, lines: Sequence[Line]) -> Planted:
    """Running text of `order.length` tokens with each of `lines` on a line of its own.

    A line goes into the gap between passages that is nearest to its depth.
    """
    own = sum(count_tokens(f"\n{line.text}\n\n") for line in lines)
    # Counts of joined passages differ from their sum by a token here and there: 0.5 % is kept free.
    passages = order.source.passages(order.rng("text"), order.length - own - order.length // 200)
    ends = list(accumulate((passage.tokens for passage in passages), initial=0))
    gaps: dict[int, list[str]] = {}
    for line in sorted(lines, key=lambda line: line.depth):
        gaps.setdefault(_nearest(ends, line.depth * ends[-1]), []).append(line.text)
    parts: list[str] = []
    position: dict[str, float] = {}
    chars = 0
    for index in range(len(passages) + 1):
        for text in gaps.get(index, ()):
            before = "" if not parts or parts[-1].endswith("\n") else "\n"
            position[text] = chars + len(before)
            after = "\n\n" if not parts or parts[-1].endswith("\n\n") else "\n"
            parts.append(before + text + after)
            chars += len(parts[-1])
        if index < len(passages):
            parts.append(passages[index].text)
            chars += len(parts[-1])
    context = "".join(parts)
    return Planted(context, count_tokens(context), {k: v / chars for k, v in position.items()})


def _nearest(ends: list[int], tokens: float) -> int:
    right = bisect_right(ends, tokens)
    if right == len(ends):
        return right - 1
    return right if ends[right] - tokens < tokens - ends[right - 1] else right - 1


def draw_names(
    rng: Random,
    source: Source,
    count: int,
    make: Callable[[Random], str],
    taken: Iterable[str] = (),
) -> list[str]:
    """`count` different names from `make` that neither `taken` nor the running text holds.

    Raises:
        DataError: the running text holds nearly all names there are.
    """
    names: list[str] = []
    seen = set(taken)
    for _ in range(50 * (count + 1)):
        if len(names) == count:
            return names
        name = make(rng)
        if name not in seen and not source.holds(name):
            seen.add(name)
            names.append(name)
    raise DataError(f"The corpus already holds the names to plant: {len(names)} of {count} found")
