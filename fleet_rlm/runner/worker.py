"""A shard in a process of its own: both ends of the pipe, and what runs at the far one.

One process feeds about as many samples as one core can prepare calls for; more need more
processes. The child is a fresh interpreter, started while the parent already works. It gets its
setup, the model's key with it, through a socket: nothing of that is on a command line.
"""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from socket import socketpair
from typing import TYPE_CHECKING, Any

import cloudpickle

from fleet_rlm.board import Board
from fleet_rlm.errors import UsageError, one_line

if TYPE_CHECKING:
    from fleet_rlm.ledger import Caps
    from fleet_rlm.runner.arm import Arm
    from fleet_rlm.runner.attempt import Job, Outcome
    from fleet_rlm.runner.budget import Before
    from fleet_rlm.runner.executor import Done
    from fleet_rlm.suites.suite import Suite

START_S = 60.0
STOP_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """All that a worker needs to run samples like its parent."""

    arm: Arm
    suite: Suite
    folder: Path
    caps: Caps
    before: Before
    started: float
    rows: int
    row: int
    contexts: Mapping[str, str]
    """From `share_contexts`."""


class ProcessShard:
    """Samples in another process.

    Args:
        setup: what it runs; its row of the board is the worker's.
        board: shared with the worker.
        results: where a `Done` goes.

    Raises:
        UsageError: the program cannot be sent to another process.
    """

    def __init__(self, setup: Setup, board: Board, results: queue.SimpleQueue[Done]) -> None:
        self.in_flight = 0
        self.ready = False
        self._board, self._row = board, setup.row
        self._results = results
        self._jobs: dict[tuple[str, int], Job] = {}
        self._lock = threading.Lock()
        try:
            content = cloudpickle.dumps(setup)
        except Exception as error:  # the user's classes pickle themselves
            raise UsageError(
                f"The program cannot be sent to another process: {one_line(str(error), 200)}",
                fix="--workers 1",
            ) from error
        ours, theirs = socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "fleet_rlm.runner.worker",
                 str(theirs.fileno()), str(board.fd)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(), board.fd),
                start_new_session=True,  # Ctrl-C in the terminal is for the parent
            )  # fmt: skip
        self._pipe: Connection[Any, Any] = Connection(ours.detach())
        with suppress(OSError):  # it died at once: it never gets ready, and the others do its part
            self._pipe.send(setup.arm.program)
            self._pipe.send_bytes(content)
        threading.Thread(target=self._listen, name="fleet-worker", daemon=True).start()

    @property
    def pid(self) -> int:
        """Process id of the worker."""
        return self._process.pid

    def submit(self, job: Job) -> None:
        with self._lock:
            self._jobs[job.key] = job
        with suppress(OSError):  # it died: `_listen` reports the job as lost
            self._pipe.send(job.key)

    def cancel(self) -> None:
        with suppress(OSError):
            self._pipe.send("cancel")

    def close(self) -> None:
        with suppress(OSError):
            self._pipe.send(None)
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._pipe.close()

    def _listen(self) -> None:
        from fleet_rlm.runner.executor import Done

        try:
            while True:
                message = self._pipe.recv()
                if message == "ready":
                    self.ready = True
                    continue
                key, outcome, error = message
                with self._lock:
                    job = self._jobs.pop(key)
                self._results.put(Done(self, job, outcome, error))
        except (EOFError, OSError, TypeError):
            self.ready = False
            self._board.forget(self._row)
            with self._lock:
                lost, self._jobs = list(self._jobs.values()), {}
            for job in lost:
                self._results.put(Done(self, job, lost=True))


def main() -> None:
    """Run samples until the parent says that it is over, or is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    pipe: Connection[Any, Any] = Connection(int(sys.argv[1]))
    _load_own(pipe.recv())
    setup: Setup = cloudpickle.loads(pipe.recv_bytes())
    board = Board(setup.rows, row=setup.row, fd=int(sys.argv[2]))
    send = _Sender(pipe)
    shard = _make_shard(setup, board, send)
    samples = {sample.id: sample for sample in setup.suite.plan()}
    send("ready")
    from fleet_rlm.runner.attempt import Job

    try:
        while (message := pipe.recv()) is not None:
            if message == "cancel":
                shard.cancel()
            else:
                shard.submit(Job(samples[message[0]], message[1]))
    except (EOFError, OSError):
        shard.cancel()  # the parent is gone: its resumption will run what is unfinished


def _load_own(program: str) -> None:
    """Load the user's file that a program comes from: what refers to it can then be unpickled."""
    from fleet_rlm.program.find import find_program
    from fleet_rlm.program.own import is_own

    if is_own(program):
        find_program(program)


class _Sender:
    """Sends from many threads."""

    def __init__(self, pipe: Connection[Any, Any]) -> None:
        self._pipe = pipe
        self._lock = threading.Lock()

    def __call__(self, message: object) -> None:
        with self._lock, suppress(OSError):
            self._pipe.send(message)


def _make_shard(setup: Setup, board: Board, send: Callable[[object], None]) -> Any:
    from fleet_rlm.runner.budget import RunPurse
    from fleet_rlm.runner.executor import Done, ThreadShard
    from fleet_rlm.runner.run import make_bench, run_tags
    from fleet_rlm.runner.store import write_trajectory
    from fleet_rlm.sandbox.redact import Redactor

    purse = RunPurse(setup.caps, board, setup.before, setup.started)
    bench = make_bench(
        setup.arm,
        Redactor.from_env(os.environ),
        board=board,
        purse=purse,
        tags=run_tags(setup.folder, setup.suite),
        contexts=setup.contexts,
    )

    def finish(outcome: Outcome) -> Outcome:
        return write_trajectory(setup.folder, outcome)

    class Reports(queue.SimpleQueue[Done]):
        def put(self, done: Done, *_: Any) -> None:
            send((done.job.key, done.outcome, done.error))

    return ThreadShard(bench, finish, Reports())


if __name__ == "__main__":
    main()
