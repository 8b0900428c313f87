"""Blocking work for an event loop: threads are used again, and never shared."""

import asyncio
import contextvars
import threading
import time

from fleet_rlm.lm.threads import in_thread

NAME = contextvars.ContextVar("NAME", default="")


def test_work_in_turn_uses_one_thread_and_work_at_once_one_each():
    async def drive():
        first = [await in_thread(threading.get_ident) for _ in range(20)]
        barrier = threading.Barrier(8, timeout=20)
        at_once = await asyncio.gather(
            *(in_thread(lambda: (barrier.wait(), threading.get_ident())[1]) for _ in range(8))
        )
        # Whoever stops waiting leaves its thread behind, which blocks nobody.
        left = threading.Event()
        waiting = in_thread(left.wait)
        waiting.cancel()
        began = time.monotonic()
        NAME.set("mine")
        assert await in_thread(NAME.get) == "mine"
        assert time.monotonic() - began < 1
        left.set()
        failed = await asyncio.gather(in_thread(lambda: 1 / 0), return_exceptions=True)
        assert isinstance(failed[0], ZeroDivisionError)
        NAME.set("")
        assert await in_thread(NAME.get) == ""
        return first, at_once

    first, at_once = asyncio.run(drive())
    assert len(set(first)) == 1
    assert len(set(at_once)) == 8
