"""What a running program tells whoever watches: typed events, sent through a DSPy setting."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import dspy

Kind = Literal[
    "thought",
    "code",
    "stdout",
    "tool_call",
    "tool_result",
    "sub_query",
    "child_start",
    "child_end",
    "usage",
    "final",
    "error",
    "cancelled",
]

EVENTS_SETTING = "fleet_events"
"""DSPy setting with the sink: `with dspy.context(fleet_events=sink): program(...)`."""

DEPTH_SETTING = "fleet_depth"
"""DSPy setting with the depth of the running program in the recursion; 0 at the root."""

CANCEL_SETTING = "fleet_cancel"
"""DSPy setting with the `CancelScope` that a running program obeys."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One thing that happened while a program ran."""

    kind: Kind
    text: str = ""
    """What a person reads: the thought, the code, the printed text, the answer."""

    data: Mapping[str, Any] = field(default_factory=dict)
    """Plain JSON values that go with it: a tool's name and arguments, tokens and dollars."""

    depth: int = 0
    """0 for the root program, 1 for its children."""

    sequence: int = -1
    """Position in its stream, from 0; -1 before a stream has numbered it."""


Sink = Callable[[Event], None]
"""Takes events from any thread; may block to slow the program down, or raise to stop it."""


class Cancelled(BaseException):
    """Whoever watched a program wanted no more of it.

    No `Exception`, for the reason that KeyboardInterrupt is none: neither generated code nor a
    program's own handlers may take it for a failure and go on.
    """


INTERRUPT_EVERY_S = 0.05


class CancelScope:
    """Lets one thread stop a program that runs in others; safe to share between them."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._running: list[Callable[[], None]] = []
        self._lock = threading.Lock()

    def cancel(self) -> None:
        """Refuse every further step, and interrupt the code that is running."""
        self._event.set()
        if self._interrupts():
            threading.Thread(target=self._interrupt, name="fleet-cancel", daemon=True).start()

    @property
    def cancelled(self) -> bool:
        """Whether `cancel` was called."""
        return self._event.is_set()

    def check(self) -> None:
        """Raise when cancelled.

        Raises:
            Cancelled: `cancel` was called.
        """
        if self._event.is_set():
            raise Cancelled("cancelled")

    @contextmanager
    def guard(self, interrupt: Callable[[], None]) -> Iterator[None]:
        """Call `interrupt`, until the block has ended, if the scope is cancelled while it runs."""
        with self._lock:
            self._running.append(interrupt)
        try:
            self.check()
            yield
        finally:
            with self._lock:
                self._running.remove(interrupt)

    def _interrupts(self) -> list[Callable[[], None]]:
        with self._lock:
            return list(self._running)

    def _interrupt(self) -> None:
        # Again and again: the first may arrive before the block's code has begun.
        while running := self._interrupts():
            for interrupt in running:
                interrupt()
            time.sleep(INTERRUPT_EVERY_S)


def cancel_scope() -> CancelScope | None:
    """The scope that the running program obeys, if any."""
    scope: CancelScope | None = dspy.settings.get(CANCEL_SETTING)
    return scope


def check_cancelled() -> None:
    """Stop here if the running program was cancelled.

    Raises:
        Cancelled: it was.
    """
    scope = cancel_scope()
    if scope is not None:
        scope.check()


def emit(kind: Kind, text: str = "", **data: Any) -> None:
    """Tell the watcher of this context, if there is one."""
    sink: Sink | None = dspy.settings.get(EVENTS_SETTING)
    if sink is not None:
        sink(Event(kind=kind, text=text, data=data, depth=depth()))


def depth() -> int:
    """Depth of the running program in the recursion; 0 at the root."""
    return int(dspy.settings.get(DEPTH_SETTING) or 0)
