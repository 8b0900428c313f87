"""What a job has spent, written down call by call: a kill loses none of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson

from fleet_rlm.errors import BudgetExhausted
from fleet_rlm.ledger import Caps, Usage, check_caps

SPENDING = "spending.jsonl"


def read_spending(path: Path) -> Usage:
    """What a job has spent so far, its file left as it is; nothing where there is none."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return Usage()
    return sum(map(_usage, _whole_lines(data)), Usage())


class JobPurse:
    """The caps of a job over all of its runs, phases and sessions; see `ledger.Purse`.

    Args:
        path: the file that every call is appended to.
        caps: what the job may use.
        clock: seconds, monotonic.
    """

    def __init__(
        self, path: Path, caps: Caps, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.caps = caps
        self.held = Caps()
        """What the present phase must leave for the phases that follow."""

        self._clock = clock
        self._started = clock()
        self._lock = threading.Lock()
        self._total = Usage()
        self._before_s = 0.0
        session = 0
        sessions: dict[int, float] = {}
        for line in _read(path):
            self._total += _usage(line)
            sessions[line["session"]] = max(line["s"], sessions.get(line["session"], 0.0))
            session = max(session, line["session"])
        self._before_s = sum(sessions.values())
        self._session = session + 1
        self._file = path.open("ab")

    def book(self, usage: Usage) -> None:
        """Take one call's usage out. Not flushed to the disk: only the machine's end loses it."""
        if not usage.calls:
            return
        spent_s = round(self._clock() - self._started, 3)
        line = {"session": self._session, "s": spent_s, "usage": usage.to_json()}
        with self._lock:
            self._total += usage
            self._file.write(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))
            self._file.flush()

    def check(self) -> None:
        """Called before each model call.

        Raises:
            BudgetExhausted: a cap is met, or what is left is held back for later.
        """
        caps, total = self.caps, self._total
        if caps == Caps():
            return
        check_caps(caps, usd=total.usd, tokens=total.tokens, seconds=self.seconds)
        for kind, used, cap, held in (
            ("dollars", total.usd, caps.usd, self.held.usd),
            ("seconds", self.seconds, caps.seconds, self.held.seconds),
        ):
            if cap is not None and held is not None and used >= cap - held:
                raise BudgetExhausted(
                    f"{used:,.4g} of {cap:,.4g} {kind} are spent, and the sealed test needs about"
                    f" {held:,.4g}."
                )

    @property
    def seconds(self) -> float:
        """Seconds of running, of all sessions."""
        return self._before_s + self._clock() - self._started

    @property
    def usage(self) -> Usage:
        """Of all sessions; its seconds are those of `seconds`."""
        with self._lock:
            return replace(self._total, seconds=self.seconds)

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()


def _usage(line: Mapping[str, Any]) -> Usage:
    if "usage" not in line:  # as it was first written: input and output in one number
        return Usage(calls=line["n"], output_tokens=line["tokens"], usd=line["usd"])
    return Usage.from_json(line["usage"])


def _read(path: Path) -> list[dict[str, Any]]:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return []
    # A kill may leave half a line; what it told is lost, what follows must not be glued to it.
    if not data.endswith(b"\n"):
        path.write_bytes(data[: data.rfind(b"\n") + 1])
    return _whole_lines(data)


def _whole_lines(data: bytes) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in data.split(b"\n")[:-1]]
