"""Contexts that are nothing but lines: as many as fit, counted in batches, written in blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from random import Random

import numpy as np

from fleet_rlm.errors import DataError
from fleet_rlm.suites.generators.base import FILL
from fleet_rlm.suites.tokens import count_tokens

_BATCH = 1024  # lines counted at once, and written at once


def fill(lines: Iterator[str], tokens: int) -> tuple[list[str], int]:
    """The first of `lines` that fit into `tokens`, and how many tokens they take.

    Args:
        lines: each ends in a line end and begins with no blank, so that counts add up.
        tokens: at most so many.

    Raises:
        DataError: the lines end long before.
    """
    taken: list[str] = []
    total = 0
    while batch := list(islice(lines, min(_BATCH, 16 + (tokens - total) // 4))):
        cost = count_tokens("".join(batch))
        if total + cost <= tokens:
            taken += batch
            total += cost
            continue
        for line in batch:
            cost = count_tokens(line)
            if total + cost > tokens:
                return taken, total
            taken.append(line)
            total += cost
    raise DataError(f"the lines there are fill {total} of {tokens} tokens")


def fit(make: Callable[[int], list[str]], tokens: int, units: int) -> tuple[list[str], int]:
    """The lines of `make(units)` for a number of units that fills 95 to 100 % of `tokens`.

    Args:
        make: the whole text, in lines, for a number of units; longer for more of them.
        tokens: to fill.
        units: to begin with.

    Raises:
        DataError: no number of units does.
    """
    for _ in range(8):
        lines = make(units)
        total = sum(
            count_tokens("".join(lines[start : start + _BATCH]))
            for start in range(0, len(lines), _BATCH)
        )
        if FILL * tokens < total <= tokens:
            return lines, total
        units = max(1, int(units * 0.98 * tokens / total))
    raise DataError(f"no number of lines fills {tokens} tokens")


def blocks(head: str, lines: Sequence[str], tail: str = "") -> Iterator[str]:
    """The text of a context, some thousand lines at a time."""
    yield head
    for start in range(0, len(lines), _BATCH):
        yield "".join(lines[start : start + _BATCH])
    yield tail


def position(head: str, lines: Sequence[str], index: int, tail: str = "") -> float:
    """Where line `index` starts, as a share of the characters of the whole."""
    before = len(head) + sum(map(len, lines[:index]))
    return before / (before + sum(map(len, lines[index:])) + len(tail))


def frozen_numpy(rng: Random) -> np.random.RandomState:
    """A numpy stream that `rng` seeds; numpy promises that it never changes."""
    return np.random.RandomState(rng.getrandbits(32))
