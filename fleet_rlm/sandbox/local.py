"""A box on this machine: one supervisor process, from which sessions are forked."""

from __future__ import annotations

import atexit
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import weakref
from contextlib import suppress
from typing import Any

from fleet_rlm.errors import SandboxError
from fleet_rlm.sandbox import bubble, driver
from fleet_rlm.sandbox.levels import Level, box_environment
from fleet_rlm.sandbox.link import SocketLink
from fleet_rlm.sandbox.session import Clean, Limits, Session, as_it_is

START_S = 60.0
STOP_S = 5.0


class LocalSandbox:
    """One supervisor. Sessions may be opened and used from any thread.

    Its zygote holds imports only, so it may serve sessions that must know nothing of each other.
    """

    def __init__(
        self, level: Level, *, limits: Limits | None = None, python: str | None = None
    ) -> None:
        """Start it.

        Args:
            level: how sessions are locked in.
            limits: of sessions that bring none of their own.
            python: interpreter of the box; the running one when absent.

        Raises:
            SandboxError: it did not start.
        """
        self.level = level
        self.limits = limits or Limits()
        # -s -B, not -I: that would ignore PYTHONHASHSEED, and the environment is clean anyway
        command = [python or sys.executable, "-s", "-B", driver.__file__]
        if level.bwrap:
            command = bubble.wrap(level.bwrap, command)
        self._root = None if level.bwrap else tempfile.mkdtemp(prefix="fleet-rlm-")
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 -- closed in close()
        self._owner = os.getpid()
        self._sessions: weakref.WeakSet[Session] = weakref.WeakSet()
        root = self._root or bubble.SCRATCH
        options = json.dumps({"root": root, "abi": level.landlock_abi, "socket": True})
        ours, theirs = socket.socketpair()
        try:
            self._process = subprocess.Popen(
                [*command, options],
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                stderr=self._log,
                env=box_environment(root),
                cwd=self._root,
                start_new_session=True,  # Ctrl-C in the terminal is for the host
            )
        except OSError as error:
            ours.close()
            self._log.close()
            if self._root:
                driver.erase(self._root)
            raise SandboxError(f"the sandbox did not start: {error}") from error
        finally:
            theirs.close()
        self._link = SocketLink(ours)
        try:
            self._link.wait_ready(START_S)
        except SandboxError as error:
            complaint = self._last_words()
            self.close()
            raise SandboxError(f"{error.message} {complaint}".rstrip()) from None

    @property
    def alive(self) -> bool:
        """False once the supervisor is gone, and in a process forked from the one that made it."""
        return self._link.lost is None and self._owner == os.getpid()

    @property
    def pid(self) -> int:
        """Process id of the supervisor or, at level bwrap, of what started it; it leads a process
        group of its own, of which every process of the box is a member."""
        return self._process.pid

    def open(self, limits: Limits | None = None, clean: Clean = as_it_is) -> Session:
        """A fresh session; close it when done.

        Args:
            limits: the sandbox's own when absent.
            clean: takes secrets out of what tools are given, and of what they return or raise.

        Raises:
            SandboxError: it could not be started, or is not locked in as the level says.
        """
        session = Session(self._link, limits or self.limits, clean)
        if self.level.isolated and "seccomp" not in session.applied:
            session.close()
            raise SandboxError(f"a session came up with {session.applied} only")
        self._sessions.add(session)
        return session

    def close(self) -> None:
        """End all sessions and the supervisor, and remove their files; may be called again."""
        if self._owner != os.getpid() or self._log.closed:
            return
        for session in list(self._sessions):
            session.close()
        self._link.close()
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._log.close()
        if self._root:
            with suppress(OSError):  # the supervisor removes it itself, unless it was killed
                driver.erase(self._root)

    def _last_words(self) -> str:
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(1)
        self._log.seek(0)
        lines = self._log.read().decode("utf-8", "replace").strip().splitlines()
        return lines[-1] if lines else ""

    def __enter__(self) -> LocalSandbox:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __deepcopy__(self, memo: dict[int, Any]) -> LocalSandbox:
        """A factory that names a sandbox may be copied with its program; the sandbox is one."""
        return self


_SHARED: dict[Level, LocalSandbox] = {}
_LOCK = threading.Lock()


def shared(level: Level) -> LocalSandbox:
    """The sandbox that all sessions of this process at `level` fork from.

    Started on first use, again if it is gone, and closed when the program ends.

    Raises:
        SandboxError: it did not start.
    """
    with _LOCK:
        sandbox = _SHARED.get(level)
        if sandbox is None or not sandbox.alive:
            if sandbox is not None:
                sandbox.close()
            sandbox = _SHARED[level] = LocalSandbox(level)
            atexit.register(sandbox.close)
        return sandbox
