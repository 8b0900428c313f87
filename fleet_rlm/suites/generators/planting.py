"""Plants lines at given depths of running text."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate
from random import Random
from typing import NamedTuple

from fleet_rlm.errors import DataError
from fleet_rlm.suites.generators.base import FILL, Order
from fleet_rlm.suites.passages import Passage, Source
from fleet_rlm.suites.tokens import count_tokens

_BLOCK = 512  # passages written at once: some 200 kB


class Line(NamedTuple):
    """A line to plant."""

    depth: float
    """Wanted place, 0.0 first to 1.0 last; lines of one gap keep the order of their depths."""

    text: str


class Planted(NamedTuple):
    """Running text with lines in it, not joined yet."""

    blocks: Iterator[str]
    tokens: int
    position: dict[str, float]
    """Line text to where it starts, as a share of the context's characters."""


def plant(order: Order, lines: Sequence[Line], *, source: Source | None = None) -> Planted:
    """Running text of `order.length` tokens with each of `lines` on a line of its own.

    A line goes into the gap between passages that is nearest to its depth.

    Args:
        order: whose length, source and random stream the text comes from.
        lines: to plant.
        source: of the text, where it is not the order's.
    """
    own = sum(count_tokens(f"\n{line.text}\n\n") for line in lines)
    # Counts of joined passages differ from their sum by a token here and there: 0.5 % is kept free.
    source = source or order.source
    tokens = order.length - own - order.length // 200
    passages = source.passages(order.rng("text"), tokens)
    summed = own + sum(passage.tokens for passage in passages)
    planted = _planted(passages, lines)
    if planted.tokens < FILL * order.length:  # many lines in a short text, each a token less
        tokens += summed - planted.tokens
        planted = _planted(source.passages(order.rng("text"), tokens), lines)
    return planted


def _planted(passages: list[Passage], lines: Sequence[Line]) -> Planted:
    ends = list(accumulate((passage.tokens for passage in passages), initial=0))
    gaps: dict[int, list[str]] = {}
    for line in sorted(lines, key=lambda line: line.depth):
        gaps.setdefault(_nearest(ends, line.depth * ends[-1]), []).append(line.text)
    parts: list[Passage] = []
    position: dict[str, float] = {}
    chars = 0
    for index in range(len(passages) + 1):
        for text in gaps.get(index, ()):
            before = "" if not parts or parts[-1].text.endswith("\n") else "\n"
            position[text] = chars + len(before)
            after = "\n\n" if not parts or parts[-1].text.endswith("\n\n") else "\n"
            whole = before + text + after
            parts.append(Passage(whole, count_tokens(whole)))
            chars += len(whole)
        if index < len(passages):
            parts.append(passages[index])
            chars += len(passages[index].text)
    passages.clear()
    tokens = count_joined(parts)
    return Planted(_blocks(parts), tokens, {k: v / chars for k, v in position.items()})


def count_joined(parts: Sequence[Passage]) -> int:
    """Tokens of all texts joined: counts add up where a line ends and no blank follows.

    What lies between two such places is counted anew.
    """
    total = 0
    run: list[Passage] = []
    for part in parts:
        if run and run[-1].text.endswith("\n") and not part.text[:1].isspace():
            total += _count_run(run)
            run = []
        run.append(part)
    return total + _count_run(run)


def _count_run(run: Sequence[Passage]) -> int:
    if len(run) == 1:
        return run[0].tokens
    return count_tokens("".join(part.text for part in run))


def _blocks(parts: list[Passage]) -> Iterator[str]:
    parts.reverse()  # taken from the end, so that what was written is freed
    while parts:
        yield "".join([parts.pop().text for _ in range(min(_BLOCK, len(parts)))])


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
