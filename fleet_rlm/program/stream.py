"""`stream`: watch any program while it runs, from a thread or an event loop, and stop it."""

from __future__ import annotations

import asyncio
import contextvars
import queue
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from typing import Any

import dspy
from dspy.utils.callback import BaseCallback

from fleet_rlm.errors import one_line
from fleet_rlm.ledger import Ledger
from fleet_rlm.lm.cancel import CANCEL_SETTING, Cancelled, CancelScope
from fleet_rlm.lm.metered import LEDGER_SETTING, current_ledger
from fleet_rlm.lm.threads import in_thread
from fleet_rlm.program.context_ref import shorten
from fleet_rlm.program.events import EVENTS_SETTING, Event, emit
from fleet_rlm.program.trail import SHOWN_CHARS

WAITING = 256
"""Events that wait for a slow reader before the program itself has to wait."""

POLL_S = 0.1
"""How often a program that waits for its reader looks whether it was cancelled."""

TERMINAL = frozenset({"final", "error", "cancelled"})


class _Stream:
    """A program in a thread of its own, and the bounded queue between it and its reader."""

    def __init__(self, program: dspy.Module, inputs: dict[str, Any]) -> None:
        self.scope = CancelScope()
        self.queue: queue.Queue[Event | None] = queue.Queue(WAITING)
        self._answered: Event | None = None
        context = contextvars.copy_context()
        self._thread = threading.Thread(
            target=context.run, args=(self._run, program, inputs), name="fleet-stream", daemon=True
        )
        self._thread.start()

    def _run(self, program: dspy.Module, inputs: dict[str, Any]) -> None:
        ledger = current_ledger() or Ledger()
        settings = {
            EVENTS_SETTING: self._put,
            CANCEL_SETTING: self.scope,
            LEDGER_SETTING: ledger,
        }
        try:
            with dspy.context(callbacks=[*dspy.settings.callbacks, _ToolEvents()], **settings):
                found = _call(program, inputs)
            last = _final(found, self._answered)
        except Cancelled:
            last = Event(kind="cancelled")
        except Exception as error:  # noqa: BLE001 - whatever ends the program ends its stream
            last = _failed(error)
        spent: dict[str, Any] = {role: usage.to_json() for role, usage in ledger.by_role.items()}
        self._offer(Event(kind="usage", data=spent))
        self._offer(last)
        self._offer(None)

    def _put(self, event: Event) -> None:
        """Take one event of the program; what it submits is kept for the end of the stream."""
        self.scope.check()
        if event.kind in TERMINAL:
            self._answered = event
            return
        self._offer(event)
        self.scope.check()

    def _offer(self, event: Event | None) -> None:
        while True:
            try:
                self.queue.put(event, timeout=POLL_S)
                return
            except queue.Full:
                if self.scope.cancelled:
                    # The reader is gone or wants only the end: make room for it.
                    self.queue.get_nowait()


def stream(program: dspy.Module, **inputs: Any) -> Iterator[Event]:
    """Run a program and yield what happens, as it happens.

    Works for any program: an `RLM` tells its thoughts, code, output, sub-queries and children; one
    that tells nothing still gives its usage and its end. The program runs in a thread under the
    caller's DSPy settings and waits when the reader is slow. Leaving the loop early stops it: no
    further model call starts and running code is interrupted.

    Args:
        program: any `dspy.Module`.
        inputs: what it is called with.

    Yields:
        Events with `sequence` 0, 1, 2, ...; the last one is "final", "error" or "cancelled", and
        there is exactly one of these.
    """
    running = _Stream(program, inputs)
    try:
        sequence = 0
        while (event := running.queue.get()) is not None:
            yield replace(event, sequence=sequence)
            sequence += 1
    finally:
        running.scope.cancel()


async def astream(program: dspy.Module, **inputs: Any) -> AsyncIterator[Event]:
    """`stream` for an event loop, which is never blocked.

    Args:
        program: any `dspy.Module`.
        inputs: what it is called with.
    """
    running = _Stream(program, inputs)
    try:
        sequence = 0
        while (event := await in_thread(running.queue.get)) is not None:
            yield replace(event, sequence=sequence)
            sequence += 1
    finally:
        running.scope.cancel()


class _ToolEvents(BaseCallback):
    """Tells of tools wherever dspy runs them: in an RLM's sandbox or in an agent of dspy's."""

    def on_tool_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        name = str(getattr(instance, "name", "tool"))
        given = inputs.get("kwargs") or {}
        arguments = {key: shorten(str(value), SHOWN_CHARS) for key, value in given.items()}
        emit("tool_call", name, call=call_id, tool=name, arguments=arguments)

    def on_tool_end(
        self, call_id: str, outputs: Any | None, exception: Exception | None = None
    ) -> None:
        text = f"{type(exception).__name__}: {exception}" if exception else str(outputs)
        emit("tool_result", shorten(text, SHOWN_CHARS), call=call_id, failed=exception is not None)


def _call(program: dspy.Module, inputs: dict[str, Any]) -> Any:
    # Of the type: dspy warns whoever looks at it on a module.
    if hasattr(type(program), "forward"):
        return program(**inputs)
    return asyncio.run(program.acall(**inputs))


def _final(found: Any, answered: Event | None) -> Event:
    if answered is not None:
        return answered
    outputs = dict(found.items()) if isinstance(found, dspy.Prediction) else {"answer": found}
    plain = {name: value for name, value in outputs.items() if isinstance(value, _PLAIN)}
    return Event(kind="final", text=str(plain), data={"outputs": plain})


def _failed(error: Exception) -> Event:
    text = one_line(f"{type(error).__name__}: {error}")
    return Event(kind="error", text=text, data={"type": type(error).__name__})


_PLAIN = (str, int, float, bool, list, dict, type(None))
