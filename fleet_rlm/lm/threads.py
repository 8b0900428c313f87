"""Blocking work beside the caller: each piece in a daemon thread that has no other meanwhile."""

from __future__ import annotations

import asyncio
import contextvars
import os
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from queue import Empty, SimpleQueue
from typing import TypeVar

T = TypeVar("T")

IDLE_S = 10.0
"""How long a thread waits for more work. A new one costs its starter a wait for the interpreter,
which on a busy event loop is a tenth of a chat turn's time."""


def in_thread(work: Callable[[], T]) -> asyncio.Future[T]:
    """Run blocking work in a thread, in a copy of the caller's context.

    There are as many threads as there is work. Whoever stops waiting leaves the thread behind: a
    model call cannot be interrupted, but nobody has to wait for it. It is a daemon, and its result
    is dropped.
    """
    return asyncio.wrap_future(start_in_thread(work))


def start_in_thread(work: Callable[[], T]) -> Future[T]:
    """The same for a caller without an event loop."""
    done: Future[T] = Future()
    context = contextvars.copy_context()

    def run() -> Callable[[], None] | None:
        if not done.set_running_or_notify_cancel():
            return None
        try:
            return partial(done.set_result, context.run(work))
        except BaseException as error:  # noqa: BLE001 -- raised again where the result is awaited
            return partial(done.set_exception, error)

    try:
        _idle.pop().put(run)
    except IndexError:
        name = "fleet-in-thread"
        threading.Thread(target=_serve, args=(run,), name=name, daemon=True).start()
    return done


_Run = Callable[[], Callable[[], None] | None]
"""Does the work; gives what tells of its outcome, unless nobody waits for it."""

_idle: deque[SimpleQueue[_Run]] = deque()
"""Where threads without work are told of some; the last one to get idle is the first to be told."""

os.register_at_fork(after_in_child=_idle.clear)


def _serve(run: _Run) -> None:
    told: SimpleQueue[_Run] = SimpleQueue()
    while True:
        tell = run()
        # Idle before anybody hears of the outcome: whoever has more work then finds this thread.
        _idle.append(told)
        if tell is not None:
            tell()
        del run, tell  # what they held is not kept by a thread that waits
        try:
            run = told.get(timeout=IDLE_S)
        except Empty:
            try:
                _idle.remove(told)
            except ValueError:  # taken in this moment: work is on its way
                run = told.get()
            else:
                return
