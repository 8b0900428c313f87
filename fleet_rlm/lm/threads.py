"""Blocking work for an event loop: each piece in a daemon thread of its own."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


def in_thread(work: Callable[[], T]) -> asyncio.Future[T]:
    """Run blocking work in a thread of its own, in a copy of the caller's context.

    Whoever stops waiting leaves the thread behind: a model call cannot be interrupted, but nobody
    has to wait for it. It is a daemon, and its result is dropped.
    """
    done: Future[T] = Future()
    context = contextvars.copy_context()

    def run() -> None:
        done.set_running_or_notify_cancel()
        try:
            done.set_result(context.run(work))
        except BaseException as error:  # noqa: BLE001 -- raised again where the result is awaited
            done.set_exception(error)

    threading.Thread(target=run, name="fleet-in-thread", daemon=True).start()
    return asyncio.wrap_future(done)
