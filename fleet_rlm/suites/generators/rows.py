"""Dated lines of users, drawn as arrays and written in blocks: the text of `aggregate`, `pairs`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from random import Random
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fleet_rlm.suites.generators.bank import Bank, Picked, Texts, texts
from fleet_rlm.suites.tokens import count_tokens

HEADER = (
    "The following lines contain {n} instances, one per line. Each line has a date, a user and an"
    " instance. Every instance belongs to exactly one of these labels: {labels}."
)
MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
FIRST_YEAR = 2021
MONTH_COUNT = 40
MONTH_DAYS = 28
DAYS = MONTH_COUNT * MONTH_DAYS
_BLOCK = 8192  # lines written at once: some 700 kB

_LINE = re.compile(r"Date: (\w{3}) (\d\d), (\d{4}) \|\| User: (\d+) \|\| Instance: (.+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """All lines of a window."""

    labels: tuple[str, ...]
    users: tuple[int, ...]
    label: NDArray[np.int32]
    """Shape (n,): index into `labels` of each line."""

    user: NDArray[np.int32]
    """Shape (n,): index into `users`."""

    day: NDArray[np.int32]
    """Shape (n,): day since the first of January 2021, of 28 a month."""

    pieces: tuple[Picked, ...]
    """What each line is put together of."""

    head: str

    @property
    def tokens(self) -> int:
        """Length of the text: pieces end where a word ends, so their counts add up."""
        return count_tokens(self.head) + sum(
            int(piece.texts.tokens[piece.chosen].sum()) for piece in self.pieces
        )

    def blocks(self) -> Iterator[str]:
        """The text in order."""
        yield self.head
        for start in range(0, len(self.label), _BLOCK):
            stop = min(start + _BLOCK, len(self.label))
            table = np.empty((stop - start, len(self.pieces)), dtype=object)
            for column, piece in enumerate(self.pieces):
                table[:, column] = piece.texts.text[piece.chosen[start:stop]]
            yield "".join(table.ravel().tolist())


class Cells(NamedTuple):
    """Who writes about what: one entry per line, in the order of the lines."""

    label: NDArray[np.intp]
    user: NDArray[np.intp]


def make_rows(
    rng: Random,
    bank: Bank,
    labels: list[str],
    users: list[int],
    cells: Cells,
    days: NDArray[np.intp] | None = None,
) -> Rows:
    """Lines with an instance for each of `cells`.

    Args:
        rng: draws instances and, unless `days` are given, even days; it is not advanced.
        bank: of the instances.
        labels: of the window.
        users: of the window.
        cells: the lines' users and labels.
        days: the lines' days.
    """
    luck = doubles(rng, len(cells.label) * (bank.width + 1)).reshape(-1, bank.width + 1)
    if days is None:
        days = (luck[:, -1] * DAYS).astype(np.intp)
    # Half of numpy's own width: these arrays live as long as the text is written.
    label, user, day = (some.astype(np.int32) for some in (*cells, days))
    dates, ids = _dates(), texts([f"{user} || Instance:" for user in users])
    head = HEADER.format(n=len(cells.label), labels=", ".join(sorted(labels))) + "\n\n"
    return Rows(
        labels=tuple(labels),
        users=tuple(users),
        label=label,
        user=user,
        day=day,
        pieces=(
            Picked(dates, day),
            Picked(ids, user),
            *bank.pick(labels, cells.label, luck),
        ),
        head=head,
    )


def doubles(rng: Random, count: int) -> NDArray[np.float64]:
    """The next `count` numbers of `rng.random()`, which itself is not advanced.

    numpy's MT19937 makes the same doubles of the same state as Python's, 40 times faster.
    """
    state = rng.getstate()[1]
    generator = np.random.RandomState()
    generator.set_state(("MT19937", np.array(state[:-1], dtype=np.uint32), state[-1], 0, 0.0))
    return generator.random_sample(count)


class Read(NamedTuple):
    """One line as the text has it."""

    day: int
    user: str
    label: str


def read_rows(context: str, bank: Bank) -> list[Read]:
    """The lines of a text, their labels looked up in the bank."""
    months = {name: index for index, name in enumerate(MONTHS)}
    found = []
    for month, day, year, user, text in _LINE.findall(context):
        since = (int(year) - FIRST_YEAR) * 12 + months[month]
        found.append(Read(since * MONTH_DAYS + int(day) - 1, user, bank.label_of(text)))
    return found


def date_text(day: int) -> str:
    """As the lines write it: "Dec 12, 2022"."""
    month, rest = divmod(day, MONTH_DAYS)
    return f"{MONTHS[month % 12]} {rest + 1:02d}, {FIRST_YEAR + month // 12}"


def date_iso(day: int) -> str:
    """ "2022-12-12"."""
    month, rest = divmod(day, MONTH_DAYS)
    return f"{FIRST_YEAR + month // 12}-{month % 12 + 1:02d}-{rest + 1:02d}"


def month_text(month: int) -> str:
    """ "Dec 2022", by months since the first."""
    return f"{MONTHS[month % 12]} {FIRST_YEAR + month // 12}"


@cache
def _dates() -> Texts:
    return texts([f"Date: {date_text(day)} || User: " for day in range(DAYS)])
