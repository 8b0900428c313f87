"""Runs the owed samples in threads and processes and hands each outcome to one writer, once."""

from __future__ import annotations

import queue
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Protocol

from fleet_rlm.errors import FleetError
from fleet_rlm.runner.attempt import Attempt, Bench, Job, Outcome

POLL_S = 0.25
"""How often the main thread looks for a signal while samples are slow."""

WATCH_S = 0.2
"""How often attempts are compared with their time limits."""

GRACE_S = 60.0
"""Time after a sample's limit for the extraction of an answer; then its calls are cut off."""

STUCK_S = 10.0
"""Time after that in which a program must end; then its thread is given up."""

HURRY_S = 5.0
"""How long a second Ctrl-C waits for calls and sandboxes to end."""


class StopFlag:
    """Asks a run to start nothing more, and then to cut off what is in flight."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self.reason = ""
        self.error: FleetError | None = None
        """What the run's caller should be told; None for an interruption."""

        self.now = False
        """Whether what is in flight is cut off instead of finished."""

    def set(self, reason: str, error: FleetError | None = None) -> None:
        """Stop for `reason`; the first reason stays."""
        if not self._event.is_set():
            self.reason, self.error = reason, error
            self._event.set()

    def __bool__(self) -> bool:
        return self._event.is_set()


@dataclass(frozen=True, slots=True)
class Done:
    """What a shard reports: an outcome, or why there is none."""

    shard: Shard
    job: Job
    outcome: Outcome | None = None
    error: BaseException | None = None
    """The run cannot go on: the disk is full, or there is an error in the harness itself."""

    lost: bool = False
    """The shard's process died with the job in it: it must be run elsewhere."""


class Shard(Protocol):
    """A place that runs samples: the threads of this process, or another process."""

    in_flight: int
    """Changed by the main thread only."""

    @property
    def ready(self) -> bool:
        """Whether it takes jobs; False while it starts and once it is lost."""

    def submit(self, job: Job) -> None:
        """Start a job; a `Done` follows on the queue that the shard was made with."""

    def cancel(self) -> None:
        """Cut off every job: calls end, sandboxes are freed, outcomes follow without a record."""

    def close(self) -> None:
        """Let go of threads and processes; called when nothing is in flight any more."""


class ThreadShard:
    """Samples in threads of this process, with a watchdog over their time limits.

    Args:
        bench: what every attempt shares.
        finish: called in the sample's thread with each outcome before it is reported: writes the
            trajectory.
        results: where a `Done` goes.
    """

    ready = True

    def __init__(
        self,
        bench: Bench,
        finish: Callable[[Outcome], Outcome],
        results: queue.SimpleQueue[Done],
    ) -> None:
        self.in_flight = 0
        self._bench = bench
        self._finish = finish
        self._results = results
        self._jobs: queue.SimpleQueue[Attempt | None] = queue.SimpleQueue()
        self._running: dict[Attempt, None] = {}
        self._idle = 0
        self._threads = 0
        self._lock = threading.Lock()
        self._closed = threading.Event()
        threading.Thread(target=self._watch, name="fleet-watchdog", daemon=True).start()

    def submit(self, job: Job) -> None:
        """Start a job in a thread that is free, or in a new one."""
        attempt = Attempt(job, self._bench)
        with self._lock:
            self._running[attempt] = None
            if self._idle:
                self._idle -= 1
            else:
                self._threads += 1
                # Daemons: a program that ignores everything must not keep the command from ending.
                threading.Thread(target=self._work, name="fleet-sample", daemon=True).start()
        self._jobs.put(attempt)

    def cancel(self) -> None:
        with self._lock:
            running = list(self._running)
        for attempt in running:
            attempt.cancel()

    def close(self) -> None:
        self._closed.set()
        for _ in range(self._threads):
            self._jobs.put(None)

    def _work(self) -> None:
        while (attempt := self._jobs.get()) is not None:
            outcome, failure = None, None
            try:
                outcome = self._finish(attempt.run())
            except BaseException as error:  # noqa: BLE001 - raised again in the main thread
                failure = error
            if not self._take(attempt):
                return  # given up: another thread has this one's place
            self._report(attempt, outcome, failure)

    def _take(self, attempt: Attempt) -> bool:
        """Whether it is still ours to report; then this thread is free for the next job."""
        with self._lock:
            if attempt not in self._running:
                return False
            del self._running[attempt]
            self._idle += 1
            return True

    def _report(
        self, attempt: Attempt, outcome: Outcome | None, failure: BaseException | None = None
    ) -> None:
        self._results.put(Done(self, attempt.job, outcome, failure))

    def _watch(self) -> None:
        while not self._closed.wait(WATCH_S):
            with self._lock:
                running = list(self._running)
            for attempt in running:
                over_s = attempt.over_s
                if over_s > GRACE_S + STUCK_S:
                    self._give_up(attempt)
                elif over_s > GRACE_S:
                    attempt.time_out()

    def _give_up(self, attempt: Attempt) -> None:
        with self._lock:
            if self._running.pop(attempt, self) is self:
                return
            self._threads -= 1
        self._report(attempt, self._finish(attempt.give_up()))


def execute(
    jobs: Sequence[Job],
    shards: Sequence[Shard],
    results: queue.SimpleQueue[Done],
    on_outcome: Callable[[Outcome, int], None],
    *,
    concurrency: int,
    stop: StopFlag,
    may_start: Callable[[int], bool] = lambda _: True,
) -> None:
    """Run every job once, at most `concurrency` at a time.

    Args:
        jobs: started in this order; one whose process dies is started again elsewhere, once.
        shards: where; the one with the fewest jobs that is ready takes the next.
        results: the queue that the shards report to.
        on_outcome: called in this thread with each outcome and the number of jobs in flight.
        concurrency: jobs in flight, at least 1.
        stop: once set, no further job starts; with `now`, what is in flight is cut off.
        may_start: asked before each start, with the number of jobs in flight; while it says no,
            the run waits for jobs to end, and stops when none is left.

    Raises:
        BaseException: what a shard reports as an error; what is in flight is cut off first.
    """
    waiting = list(reversed(jobs))
    lost_once: set[tuple[str, int]] = set()
    in_flight = 0
    cut_off = False
    try:
        while True:
            while waiting and not stop and in_flight < concurrency and may_start(in_flight):
                shard = min((s for s in shards if s.ready), key=lambda s: s.in_flight)
                shard.submit(waiting.pop())
                shard.in_flight += 1
                in_flight += 1
            if not in_flight:
                return
            if stop.now and not cut_off:
                cut_off = True
                for shard in shards:
                    shard.cancel()
            try:
                done = results.get(timeout=POLL_S)
            except queue.Empty:
                continue
            done.shard.in_flight -= 1
            in_flight -= 1
            if done.lost and done.job.key not in lost_once:
                lost_once.add(done.job.key)
                waiting.append(done.job)
                continue
            if done.error is not None:
                raise done.error
            assert done.outcome is not None
            on_outcome(done.outcome, in_flight)
    finally:
        if in_flight:
            _cut_off(shards, results, in_flight)
        for shard in shards:
            shard.close()


def _cut_off(shards: Sequence[Shard], results: queue.SimpleQueue[Done], in_flight: int) -> None:
    """End what is in flight when its outcomes are of no use any more; wait for it a little."""
    for shard in shards:
        shard.cancel()
    try:
        for _ in range(in_flight):
            results.get(timeout=HURRY_S)
    except queue.Empty:
        pass  # daemons: they end with the process


@contextmanager
def stop_on_signals(stop: StopFlag, say: Callable[[str], None]) -> Iterator[None]:
    """First Ctrl-C or SIGTERM: finish what is in flight. Second: cut it off. Third: at once.

    Outside the main thread, where signals cannot be handled, this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(_signum: int, _frame: FrameType | None) -> None:
        if stop.now:
            raise KeyboardInterrupt
        if stop:
            stop.now = True
            say("Cutting off what is in flight; it stays owed.")
            return
        stop.set("interrupted")
        say("Stopping: finishing what is in flight. Press Ctrl-C again to cut it off.")

    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
