"""How fast Modal sandboxes are asked for: one pace for all processes of a user on this machine.

A service that refuses halves the pace, each sandbox that comes brings a tenth of it back: it
settles at what the service takes, whether that limits the rate or the number that live.
"""

from __future__ import annotations

import fcntl
import os
import struct
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

SLOWEST = 1 / 16
"""Part of the pace below which refusals do not bring it."""

GAIN = 0.1
"""Part of the pace that a sandbox brings back."""

BURST_S = 1.0
"""Refusals that come this soon after one that counted are answers to the same burst."""

LONGEST_S = 120.0
"""Longest time between two creates; a place further ahead is of another start of this machine."""

_FORMAT = struct.Struct("ddd")


class _State(NamedTuple):
    next_at: float = 0.0
    """Monotonic time from which a place is free; that clock is the same in every process."""
    part: float = 1.0
    """Part of the full pace that holds."""
    deaf_until: float = 0.0


class Pace:
    """Says who may create now. Safe to use from many threads and processes.

    Args:
        per_s: creates a second while nobody refuses.
        path: where processes share it; a file of this user when absent.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        per_s: float,
        *,
        path: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._per_s = per_s
        self._path = path or Path(tempfile.gettempdir(), f"fleet-rlm-creates-{os.getuid()}")
        self._clock = clock

    def take(self) -> float:
        """Take the place that is free now, and give 0; else the seconds after which to ask again.

        No places ahead are given away: they would be those of a pace that is soon another.
        """
        with self._open() as fd:
            now, state = self._clock(), _read(fd)
            if now < state.next_at <= now + LONGEST_S:
                return state.next_at - now
            _write(fd, state._replace(next_at=now + 1 / (self._per_s * state.part)))
        return 0.0

    def refused(self) -> None:
        """The service wants fewer: go at half the pace, once for each burst of refusals."""
        with self._open() as fd:
            now, state = self._clock(), _read(fd)
            if now < state.deaf_until <= now + BURST_S:
                return
            part = max(SLOWEST, state.part / 2)
            _write(fd, state._replace(part=part, deaf_until=now + BURST_S))

    def made(self) -> None:
        """A sandbox came: a little faster again."""
        with self._open() as fd:
            state = _read(fd)
            if state.part < 1.0:
                _write(fd, state._replace(part=min(1.0, state.part + GAIN)))

    @property
    def part(self) -> float:
        """Part of the full pace that holds now."""
        with self._open() as fd:
            return _read(fd).part

    @contextmanager
    def _open(self) -> Iterator[int]:
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield fd
        finally:
            os.close(fd)


def _read(fd: int) -> _State:
    data = os.pread(fd, _FORMAT.size, 0)
    return _State(*_FORMAT.unpack(data)) if len(data) == _FORMAT.size else _State()


def _write(fd: int, state: _State) -> None:
    os.pwrite(fd, _FORMAT.pack(*state), 0)
