"""Runs the owed samples in parallel threads and hands each result to one writer, each key once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from types import FrameType
from typing import TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")


class StopFlag:
    """Asks a run to start nothing more; what is in flight ends and is recorded."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self.reason = ""

    def set(self, reason: str) -> None:
        """Stop for `reason`; the first reason stays."""
        self.reason = self.reason or reason
        self._event.set()

    def __bool__(self) -> bool:
        return self._event.is_set()


def execute(
    jobs: Sequence[Job],
    work: Callable[[Job], Result],
    on_result: Callable[[Result, int], None],
    *,
    concurrency: int,
    stop: StopFlag,
) -> None:
    """Run every job once, at most `concurrency` at a time.

    Args:
        jobs: started in this order.
        work: called in a worker thread; what it raises ends the run.
        on_result: called in this thread with a result and the number of jobs still in flight.
        concurrency: jobs in flight, at least 1.
        stop: once set, no further job starts.
    """
    queue = iter(jobs)
    running: set[Future[Result]] = set()
    pool = ThreadPoolExecutor(min(concurrency, max(1, len(jobs))), "fleet-sample")
    finished = False
    try:
        while True:
            while not stop and len(running) < concurrency:
                job = next(queue, None)
                if job is None:
                    break
                running.add(pool.submit(work, job))
            if not running:
                finished = True
                return
            # The timeout lets this thread notice a signal's flag while samples are slow.
            done, running = wait(running, timeout=0.5, return_when=FIRST_COMPLETED)
            for future in done:
                on_result(future.result(), len(running))
    finally:
        # A thread cannot be killed: after a failure the caller must not wait for slow samples.
        pool.shutdown(wait=finished, cancel_futures=True)


@contextmanager
def stop_on_signals(stop: StopFlag, say: Callable[[str], None]) -> Iterator[None]:
    """First Ctrl-C or SIGTERM: finish what is in flight. Second: KeyboardInterrupt at once.

    Outside the main thread, where signals cannot be handled, this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(_signum: int, _frame: FrameType | None) -> None:
        if stop:
            raise KeyboardInterrupt
        stop.set("interrupted")
        say("Stopping: finishing what is in flight. Press Ctrl-C again to stop at once.")

    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
