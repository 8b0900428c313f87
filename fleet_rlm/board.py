"""Numbers that the processes of one run share: what is spent, what is in flight, the call limit.

A table in shared memory. Each process writes its own row only, so totals need no lock between
processes; the head, which all of them write, has one.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum

WIDTH = 8
"""Numbers in the head and in every row, each a double."""


class Column(IntEnum):
    """Numbers of one process."""

    USD = 0
    TOKENS = 1
    CALLS = 2
    IN_FLIGHT = 3
    """Model calls that wait for their reply."""

    WAITING = 4
    """Model calls that wait for a rate limit."""

    SANDBOXES = 5
    """Sandbox sessions that are open."""

    QUEUED = 6
    """Samples that wait for a sandbox."""


class Head(IntEnum):
    """Numbers of all processes together."""

    LIMIT = 0
    """Model calls that may be in flight; 0 while there is no limit."""

    CUT_UNTIL = 1
    """Monotonic time before which the limit is not cut again."""

    ANSWERED = 2
    """Calls answered since the limit changed last."""

    PEAK = 3
    """Most calls in flight since the limit changed last."""

    CUTS = 4
    """How often the limit was cut."""


class Board:
    """The table, as one process sees it. Safe to use from many threads.

    Args:
        rows: processes that share it.
        row: which of them this is, from 0.
        fd: descriptor of the table that another process made; a new one when absent.
    """

    def __init__(self, rows: int = 1, *, row: int = 0, fd: int | None = None) -> None:
        size = (rows + 1) * WIDTH * 8
        self.rows = rows
        self.fd = os.memfd_create("fleet-rlm-board") if fd is None else fd
        if fd is None:
            os.ftruncate(self.fd, size)
        self._cells = memoryview(mmap.mmap(self.fd, size)).cast("d")
        self._own = (row + 1) * WIDTH
        self._lock = threading.Lock()
        self._head_lock = threading.Lock()

    def add(self, column: Column, amount: float) -> None:
        """Add to a number of this process."""
        with self._lock:
            self._cells[self._own + column] += amount

    def total(self, column: Column) -> float:
        """The sum over all processes."""
        cells = self._cells
        if self.rows == 1:
            return cells[self._own + column]
        return sum(cells[row * WIDTH + column] for row in range(1, self.rows + 1))

    def forget(self, row: int) -> None:
        """A process has ended: nothing of it is in flight any more; what it spent stays."""
        for column in (Column.IN_FLIGHT, Column.WAITING, Column.SANDBOXES, Column.QUEUED):
            self._cells[(row + 1) * WIDTH + column] = 0.0

    def read(self, name: Head) -> float:
        """A number of the head."""
        return self._cells[name]

    @contextmanager
    def head(self) -> Iterator[memoryview[float]]:
        """The head, by `Head`, while no other thread or process changes it."""
        with self._head_lock:
            fcntl.lockf(self.fd, fcntl.LOCK_EX)
            try:
                yield self._cells
            finally:
                fcntl.lockf(self.fd, fcntl.LOCK_UN)
