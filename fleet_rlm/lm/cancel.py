"""How a running program is stopped from another thread: its calls, its waits and its code."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import dspy

CANCEL_SETTING = "fleet_cancel"
"""DSPy setting with the `CancelScope` that a running program obeys."""


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

    def wait(self, seconds: float) -> None:
        """Sleep, or raise at once when cancelled meanwhile.

        Raises:
            Cancelled: `cancel` was called.
        """
        if self._event.wait(seconds):
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


def pause(seconds: float) -> None:
    """Sleep as long as the running program is not cancelled.

    Raises:
        Cancelled: it was.
    """
    scope = cancel_scope()
    if scope is None:
        time.sleep(seconds)
    else:
        scope.wait(seconds)
