"""How a turn is driven: blocking steps for an event loop, an event loop for callers without one."""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

from dspy.utils.callback import BaseCallback

from fleet_rlm.lm.cancel import Cancelled, CancelScope

T = TypeVar("T")


class Stopped(BaseException):
    """A cancelled turn goes no further.

    Not an Exception: neither a tool's own handlers nor code in a sandbox may take it for a failure
    and go on.
    """


class Guard(BaseCallback):
    """Refuses every model call and every cell of a cancelled turn, whoever makes it."""

    def __init__(self, scope: CancelScope) -> None:
        self._scope = scope

    def on_lm_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        self.check()

    def on_interpreter_execute_start(
        self, call_id: str, instance: Any, inputs: dict[str, Any]
    ) -> None:
        self.check()

    def check(self) -> None:
        """Raise when the turn is cancelled.

        Raises:
            Stopped: it is.
        """
        try:
            self._scope.check()
        except Cancelled as error:
            raise Stopped from error


class Mailbox(Generic[T]):
    """Items from any thread, in order, for one reader on the event loop that it is made on.

    A reader that does not wait is not woken, and a burst wakes it once: an event of a chat would
    otherwise cost a task, a timer and a system call.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._items: deque[T] = deque()
        self._news = asyncio.Event()
        self._is_told = False

    def put(self, item: T) -> None:
        """Add an item, from any thread."""
        self._items.append(item)
        self.wake()

    def wake(self) -> None:
        """Let the reader look, from any thread."""
        if not self._is_told:
            self._is_told = True
            with suppress(RuntimeError):  # the loop is gone, and whoever listened with it
                self._loop.call_soon_threadsafe(self._tell)

    def take(self) -> T | None:
        """The next item, if there is one."""
        return self._items.popleft() if self._items else None

    async def wait(self, timeout_s: float | None) -> None:
        """Wait until there may be something, and no longer than so many seconds."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._news.wait()
        self._news.clear()

    def _tell(self) -> None:
        self._is_told = False  # first: what is put from now on tells again
        self._news.set()


def wait_for(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end, for a caller that is not asynchronous.

    Also inside of a running event loop, as in a notebook, which then waits.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return _run(main)
    with ThreadPoolExecutor(1, "fleet-agent") as pool:
        return pool.submit(contextvars.copy_context().run, _run, main).result()


def iterate(stream: AsyncGenerator[T, None], stop: Callable[[], None]) -> Iterator[T]:
    """The items of an asynchronous stream as they come, for a caller that is not asynchronous.

    Args:
        stream: what to iterate over, in a thread of its own.
        stop: makes the stream end soon; called when the caller wants no more.
    """
    items: SimpleQueue[tuple[T] | None] = SimpleQueue()

    async def pump() -> None:
        try:
            async for item in stream:
                items.put((item,))
        finally:
            items.put(None)

    with ThreadPoolExecutor(1, "fleet-agent") as pool:
        done = pool.submit(contextvars.copy_context().run, _run, pump())
        try:
            while (item := items.get()) is not None:
                yield item[0]
        finally:
            stop()
        done.result()


def _run(main: Coroutine[Any, Any, T]) -> T:
    # With a factory the runner leaves the thread's own event loop alone.
    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        return runner.run(main)
