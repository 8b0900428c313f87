"""What a person sees while a run goes on: a live line on a terminal, plain lines without one."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from statistics import fmean
from typing import TYPE_CHECKING, Any, Literal, TextIO

import numpy as np

from fleet_rlm.board import Column, Head
from fleet_rlm.errors import UsageError
from fleet_rlm.runner.budget import RunPurse
from fleet_rlm.runner.record import Record, total_usage
from fleet_rlm.statistics.clustered import mean_interval

if TYPE_CHECKING:
    from rich.live import Live

Display = Literal["auto", "live", "plain", "json", "none"]
DISPLAYS: tuple[Display, ...] = ("auto", "live", "plain", "json", "none")

PLAIN_SHARE = 0.1
PLAIN_SECONDS = 30.0
BAR_WIDTH = 24
"""Columns of the bar; a narrow terminal has the figures without it."""

INTERVAL_S = 1.0
"""How often the interval of a running score is computed anew."""


class Tally:
    """The running figures that every display shows."""

    def __init__(self, title: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.title = title
        self.total = self.done = self.errors = self.in_flight = 0
        self.fresh = 0
        self.over = False
        self.usd = 0.0
        self._purse: RunPurse | None = None
        self._scores: dict[str, list[float]] = {}
        self._clusters: dict[str, str] = {}
        self._margin: tuple[float, float | None] = (-INTERVAL_S, None)
        self._clock = clock
        self._started = clock()

    def start(self, total: int, settled: Sequence[Record]) -> None:
        """Count what is done already; the clock runs from here."""
        self.total = total
        self._started = self._clock()
        for record in settled:
            self._count(record)

    def watch(self, purse: RunPurse) -> None:
        self._purse = purse

    def add(self, record: Record, in_flight: int) -> None:
        """Count one more record; `in_flight` samples are being answered then."""
        self.fresh += 1
        self.in_flight = in_flight
        self._count(record)

    def _count(self, record: Record) -> None:
        self.done += 1
        self.usd += total_usage(record.usage).usd
        if record.score is None:
            self.errors += 1
        else:
            self._scores.setdefault(record.sample, []).append(record.score)
            self._clusters[record.sample] = record.cluster

    @property
    def seconds(self) -> float:
        """Since the start."""
        return self._clock() - self._started

    @property
    def score(self) -> float | None:
        """Mean over the samples scored so far."""
        return fmean(map(fmean, self._scores.values())) if self._scores else None

    @property
    def margin(self) -> float | None:
        """Half of the 95 % interval by context; None below two contexts and while all are equal."""
        at, known = self._margin
        if self._clock() - at >= INTERVAL_S or self.done == self.total:
            means = np.array([fmean(found) for found in self._scores.values()])
            interval = mean_interval(means, [self._clusters[name] for name in self._scores])
            tells = interval is not None and interval.has_width
            known = (interval.high - interval.low) / 2 if interval and tells else None
            self._margin = (self._clock(), known)
        return known

    @property
    def eta_s(self) -> float | None:
        """Seconds to the end at the pace so far; None before there is one, and after the end.

        A sample in flight counts as half done, or the first of many would seem to have taken all
        the time for itself.
        """
        if not self.fresh or self.over or self.done == self.total:
            return None
        begun = self.in_flight / 2
        return self.seconds / (self.fresh + begun) * (self.total - self.done - begun)

    def figures(self) -> dict[str, Any]:
        """Everything, for machines."""
        return {
            "done": self.done,
            "total": self.total,
            "errors": self.errors,
            "in_flight": self.in_flight,
            "score": self.score,
            "margin": self.margin if self._scores else None,
            "usd": self._usd,
            "eta_s": None if self.eta_s is None else round(self.eta_s, 1),
            **self._live(),
        }

    def line(self) -> str:
        """One line: how far, how good, how dear, what is open, how long."""
        parts = [f"{self.title}  {self.done}/{self.total}"]
        if (score := self.score) is not None:
            margin = self.margin
            # Two contexts give margins of several points: nothing is known yet.
            known = margin is not None and margin < 1
            parts.append(f"score {score:.3f}" + (f" ±{margin:.3f}" if known else ""))
        cap = self._purse.caps.usd if self._purse else None
        parts.append(f"${self._usd:.4f}" + ("" if cap is None else f" of {cap:g}"))
        if self.errors:
            parts.append(_counted(self.errors, "error", "errors"))
        live = self._live()
        if self.in_flight:
            parts.append(f"{self.in_flight} in flight")
        if live.get("sandboxes"):
            parts.append(_counted(live["sandboxes"], "sandbox", "sandboxes"))
        if live.get("queued"):
            parts.append(f"[{live['queued']} wait for a sandbox]")
        if live.get("call_limit"):
            parts.append(f"[throttled to {live['call_limit']} calls, {live['waiting']} waiting]")
        if (eta_s := self.eta_s) is not None:
            parts.append(f"eta {_duration(eta_s)}")
        return "  ".join(parts)

    @property
    def _usd(self) -> float:
        return self._purse.usd if self._purse else self.usd

    def _live(self) -> dict[str, int]:
        if self._purse is None:
            return {}
        board, calls = self._purse.board, self._purse.calls
        return {
            "calls_in_flight": int(calls.total(Column.IN_FLIGHT)),
            "waiting": int(calls.total(Column.WAITING)),
            "sandboxes": int(board.total(Column.SANDBOXES)),
            "queued": int(board.total(Column.QUEUED)),
            "call_limit": int(calls.read(Head.LIMIT)),
        }


class SilentProgress:
    """Says only what must not be missed."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def started(self, total: int, settled: Sequence[Record]) -> None: ...

    def watch(self, purse: RunPurse) -> None: ...

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

    def watch(self, purse: RunPurse) -> None:
        self._tally.watch(purse)

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
    """One line, redrawn in place; with a bar where there is room for it."""

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

    def watch(self, purse: RunPurse) -> None:
        self._tally.watch(purse)

    def recorded(self, record: Record, in_flight: int) -> None:
        self._tally.add(record, in_flight)
        if record.error:
            self.say(f"{record.sample}: {record.error.boundary} error: {record.error.message}")

    def say(self, message: str) -> None:
        self._console.print(message, markup=False)

    def ended(self) -> None:
        self._tally.over = True
        if self._live:
            self._live.stop()
            self._live = None

    def _draw(self) -> Any:
        from rich.progress_bar import ProgressBar
        from rich.table import Table

        line = self._tally.line()
        width = min(BAR_WIDTH, self._console.width - len(line) - 3)
        if width < BAR_WIDTH // 3:
            return line
        row = Table.grid(padding=(0, 2))
        bar = ProgressBar(total=max(1, self._tally.total), completed=self._tally.done, width=width)
        row.add_row(bar, line)
        return row


class JsonProgress(SilentProgress):
    """One JSON object a line, for programs that watch a run."""

    def __init__(self, tally: Tally, stream: TextIO) -> None:
        super().__init__(stream)
        self._tally = tally

    def started(self, total: int, settled: Sequence[Record]) -> None:
        self._tally.start(total, settled)
        self._print("started", suite=self._tally.title, settled=len(settled))

    def watch(self, purse: RunPurse) -> None:
        self._tally.watch(purse)

    def recorded(self, record: Record, in_flight: int) -> None:
        self._tally.add(record, in_flight)
        kept = ("sample", "epoch", "status", "stop", "score", "seconds")
        about = {name: getattr(record, name) for name in kept}
        error = None if record.error is None else asdict(record.error)
        self._print("record", record=about | {"error": error})

    def say(self, message: str) -> None:
        self._print("message", message=message)

    def ended(self) -> None:
        self._print("ended")

    def _print(self, event: str, **data: Any) -> None:
        line = {"event": event, **data, **self._tally.figures()}
        print(json.dumps(line), file=self._stream, flush=True)


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
    kinds = {"live": LiveProgress, "plain": PlainProgress, "json": JsonProgress}
    return kinds[display](Tally(title), stream)


def _counted(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


def _duration(seconds: float) -> str:
    minutes, left = divmod(round(seconds), 60)
    return f"{minutes}m{left:02d}s" if minutes else f"{left}s"
