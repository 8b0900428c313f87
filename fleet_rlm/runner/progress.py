"""What a person sees while a run goes on: a live line on a terminal, plain lines without one."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any, Literal, TextIO

from fleet_rlm.errors import UsageError
from fleet_rlm.runner.record import Record

if TYPE_CHECKING:
    from rich.live import Live

Display = Literal["auto", "live", "plain", "none"]
DISPLAYS: tuple[Display, ...] = ("auto", "live", "plain", "none")

PLAIN_SHARE = 0.1
PLAIN_SECONDS = 30.0


class Tally:
    """The running figures that every display shows."""

    def __init__(self, title: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.title = title
        self.total = self.done = self.errors = self.in_flight = 0
        self.fresh = 0
        self.usd = 0.0
        self.scores: list[float] = []
        self._clock = clock
        self._started = clock()

    def start(self, total: int, settled: Sequence[Record]) -> None:
        self.total = total
        self._started = self._clock()
        for record in settled:
            self._count(record)

    def add(self, record: Record, in_flight: int) -> None:
        self.fresh += 1
        self.in_flight = in_flight
        self._count(record)

    def _count(self, record: Record) -> None:
        self.done += 1
        self.usd += sum(usage["usd"] for usage in record.usage.values())
        if record.score is None:
            self.errors += 1
        else:
            self.scores.append(record.score)

    @property
    def seconds(self) -> float:
        return self._clock() - self._started

    def line(self) -> str:
        """One line: how far, how good, how dear, how long."""
        parts = [f"{self.title}  {self.done}/{self.total}"]
        if self.scores:
            parts.append(f"score {fmean(self.scores):.3f}")
        parts.append(f"${self.usd:.4f}")
        if self.errors:
            parts.append(f"{self.errors} errors")
        if self.in_flight:
            parts.append(f"{self.in_flight} in flight")
        left = self.total - self.done
        if self.fresh and left:
            parts.append(f"eta {_duration(self.seconds / self.fresh * left)}")
        return "  ".join(parts)


class SilentProgress:
    """Says only what must not be missed."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def started(self, total: int, settled: Sequence[Record]) -> None: ...

    def recorded(self, record: Record, in_flight: int) -> None: ...

    def say(self, message: str) -> None:
        print(message, file=self._stream, flush=True)

    def ended(self) -> None: ...


class PlainProgress(SilentProgress):
    """A line every tenth of the run or every 30 seconds: what a log file wants."""

    def __init__(self, tally: Tally, stream: TextIO) -> None:
        super().__init__(stream)
        self._tally = tally
        self._said_done = 0
        self._said_s = 0.0

    def started(self, total: int, settled: Sequence[Record]) -> None:
        self._tally.start(total, settled)
        kept = f", {len(settled)} already done" if settled else ""
        self.say(f"{self._tally.title}: {total} samples{kept}")
        self._said_done = self._tally.done

    def recorded(self, record: Record, in_flight: int) -> None:
        tally = self._tally
        tally.add(record, in_flight)
        if record.error:
            self.say(f"{record.sample}: {record.error.boundary} error: {record.error.message}")
        new = tally.done - self._said_done
        due = new >= PLAIN_SHARE * tally.total or tally.seconds - self._said_s >= PLAIN_SECONDS
        if due or tally.done == tally.total:
            self._said_done, self._said_s = tally.done, tally.seconds
            self.say(tally.line())


class LiveProgress(SilentProgress):
    """One line with a bar, redrawn in place."""

    def __init__(self, tally: Tally, stream: TextIO) -> None:
        super().__init__(stream)
        from rich.console import Console

        self._tally = tally
        self._console = Console(file=stream, highlight=False)
        self._live: Live | None = None

    def started(self, total: int, settled: Sequence[Record]) -> None:
        from rich.live import Live

        self._tally.start(total, settled)
        self._live = Live(console=self._console, get_renderable=self._draw, refresh_per_second=8)
        self._live.start()

    def recorded(self, record: Record, in_flight: int) -> None:
        self._tally.add(record, in_flight)
        if record.error:
            self.say(f"{record.sample}: {record.error.boundary} error: {record.error.message}")

    def say(self, message: str) -> None:
        self._console.print(message, markup=False)

    def ended(self) -> None:
        if self._live:
            self._live.stop()
            self._live = None

    def _draw(self) -> Any:
        from rich.progress_bar import ProgressBar
        from rich.table import Table

        row = Table.grid(padding=(0, 2))
        bar = ProgressBar(total=max(1, self._tally.total), completed=self._tally.done, width=24)
        row.add_row(bar, self._tally.line())
        return row


def make_progress(display: str, title: str, stream: TextIO | None = None) -> SilentProgress:
    """The display that `--display` names; "auto" is live on a terminal and plain without one.

    Raises:
        UsageError: no such display.
    """
    stream = stream or sys.stderr
    if display not in DISPLAYS:
        raise UsageError(f"No display {display!r}. Known: {', '.join(DISPLAYS)}.")
    if display == "auto":
        display = "live" if stream.isatty() else "plain"
    if display == "none":
        return SilentProgress(stream)
    tally = Tally(title)
    return LiveProgress(tally, stream) if display == "live" else PlainProgress(tally, stream)


def _duration(seconds: float) -> str:
    minutes, left = divmod(round(seconds), 60)
    return f"{minutes}m{left:02d}s" if minutes else f"{left}s"
