"""A box on Modal: one sandbox with one driver, created with retries and a lease of its own."""

from __future__ import annotations

import atexit
import json
import os
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from typing import Any

from fleet_rlm.errors import SandboxError
from fleet_rlm.sandbox.levels import MODAL
from fleet_rlm.sandbox.link import ANSWER_S
from fleet_rlm.sandbox.modal_create import CREATE_S, Pause, create
from fleet_rlm.sandbox.modal_link import SILENCE_S, ModalLink, SdkFailed, wait_for
from fleet_rlm.sandbox.modal_recipe import BLOBS, HOME, LAYOUT, Recipe
from fleet_rlm.sandbox.session import Clean, Limits, Session, as_it_is

MOVE_S = 120.0
"""Longest wait for a volume."""
OPEN_TRIES = 3
"""A sandbox can be lost while its driver or a session starts; nothing has run yet, so another one
serves."""


class ModalSandbox:
    """One Modal sandbox. Sessions may be opened and used from any thread.

    Its lease: it is tagged in the very call that creates it, it ends at `timeout_s`, its driver
    ends when the host is silent for 90 s, and Modal ends it `idle_s` after that.
    """

    level = MODAL

    def __init__(
        self, recipe: Recipe, *, limits: Limits | None = None, pause: Pause = time.sleep
    ) -> None:
        """Create it, and start its driver.

        Args:
            recipe: how it is made.
            limits: of sessions that bring none of their own.
            pause: sleeps until it is its turn to be created.

        Raises:
            SandboxUnavailable: no Modal token, or it was refused.
            SandboxError: Modal did not start it.
        """
        self.recipe = recipe
        self.limits = limits or Limits(memory_bytes=recipe.memory_mib[1] << 20)
        self._owner = os.getpid()
        self._sessions: weakref.WeakSet[Session] = weakref.WeakSet()
        self._closed = False
        self._sandbox: Any = None
        self._link: ModalLink | None = None
        _OPEN.add(self)
        for tries_left in reversed(range(OPEN_TRIES)):
            self._sandbox = create(recipe, pause)
            _close_at_exit()
            self.started = time.monotonic()
            try:
                self._link = ModalLink(
                    self._sandbox, self._start_driver(), BLOBS, mounted=recipe.context
                )
                self._link.wait_ready(ANSWER_S)
                self._lay_out()
                return
            except SandboxError:
                self._end()
                if not tries_left:
                    self._closed = True
                    raise

    @property
    def id(self) -> str:
        """As Modal names it."""
        return str(self._sandbox.object_id)

    @property
    def alive(self) -> bool:
        """False once it is gone, and in a process forked from the one that made it."""
        link = self._link
        held = not self._closed and self._owner == os.getpid()
        return held and link is not None and link.lost is None

    @property
    def uploaded(self) -> int:
        """Bytes of large inputs that went out."""
        return self._link.uploaded if self._link else 0

    def _start_driver(self) -> Any:
        options = {
            "root": "/box",
            "abi": 0,  # gVisor has no Landlock: the container is the boundary
            "socket": False,
            "blobs": BLOBS,
            "silence_s": SILENCE_S,
        }
        command = ("python", "-u", "-s", "-B", f"{HOME}/driver.py", json.dumps(options))
        environment = {"PYTHONHASHSEED": "0", "MALLOC_ARENA_MAX": "2"}
        try:
            return wait_for(self._sandbox.exec.aio(*command, text=False, env=environment), CREATE_S)
        except SdkFailed as failed:
            raise SandboxError(f"no driver in the Modal sandbox: {failed}") from failed

    def open(self, limits: Limits | None = None, clean: Clean = as_it_is) -> Session:
        """A fresh session; close it when done.

        Args:
            limits: the sandbox's own when absent.
            clean: takes secrets out of what tools are given, and of what they return or raise.

        Raises:
            SandboxError: it could not be started.
        """
        assert self._link is not None
        session = Session(self._link, limits or self.limits, clean)
        self._sessions.add(session)
        return session

    def commit(self) -> None:
        """Make what was written to the volume visible to its other holders.

        Raises:
            SandboxError: there is no volume, or it could not be done.
        """
        self._run("sync", self._volume())

    def reload(self) -> None:
        """See in the volume what its other holders have committed.

        Raises:
            SandboxError: there is no volume, or it could not be done.
        """
        self._volume()
        try:
            wait_for(self._sandbox.reload_volumes.aio(), MOVE_S)
        except SdkFailed as failed:
            raise SandboxError(f"the volume was not reloaded: {failed}") from failed

    def _lay_out(self) -> None:
        if self.recipe.volume_name is not None:
            path = self.recipe.volume_path
            self._run("mkdir", "-p", *(f"{path}/{folder}" for folder in LAYOUT))

    def _volume(self) -> str:
        if self.recipe.volume_name is None:
            raise SandboxError("this sandbox has no volume: ModalInterpreter(volume_name=...)")
        return self.recipe.volume_path

    def _run(self, *command: str) -> None:
        async def run() -> int:
            process = await self._sandbox.exec.aio(*command, text=False)
            return int(await process.wait.aio())

        try:
            code = wait_for(run(), MOVE_S)
        except SdkFailed as failed:
            raise SandboxError(f"{command[0]} in the sandbox: {failed}") from failed
        if code:
            raise SandboxError(f"{command[0]} in the sandbox ended with exit code {code}")

    def close(self) -> None:
        """End all sessions and the sandbox; may be called again."""
        if self._closed or self._owner != os.getpid():
            return
        self._closed = True
        for session in list(self._sessions):
            session.close()
        self._end()

    def _end(self) -> None:
        if self._link is not None:
            self._link.close()
        # What cannot be told to end ends by its lease.
        with suppress(SdkFailed):
            if self._sandbox is not None:
                wait_for(self._sandbox.terminate.aio(), ANSWER_S)

    def __enter__(self) -> ModalSandbox:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __deepcopy__(self, memo: dict[int, Any]) -> ModalSandbox:
        return self


class ModalBoxes:
    """The sandbox of some sessions that belong together: made when one is first opened, and again
    when it is gone.

    Args:
        recipe: how it is made.
        pause: sleeps until it is its turn to be created.
        book: called with the seconds that a sandbox lived since they were last booked.
    """

    def __init__(
        self,
        recipe: Recipe,
        *,
        pause: Pause = time.sleep,
        book: Callable[[float], None] = lambda _: None,
    ) -> None:
        self.recipe = recipe
        self._pause, self._book = pause, book
        self._box: ModalSandbox | None = None
        self._booked_at = 0.0
        self._lock = threading.Lock()

    @property
    def alive(self) -> bool:
        """Whether there is a sandbox."""
        return self._box is not None and self._box.alive

    def open(self, limits: Limits | None, clean: Clean) -> Session:
        """A fresh session in the sandbox; the one that it has, or another when that is gone.

        Raises:
            SandboxUnavailable: no Modal token, or it was refused.
            SandboxError: no sandbox, or no session in it.
        """
        for tries_left in reversed(range(OPEN_TRIES)):
            box = self._take()
            try:
                return box.open(limits, clean)
            except SandboxError:
                if box.alive or not tries_left:
                    raise
        raise AssertionError("unreachable")

    def _take(self) -> ModalSandbox:
        with self._lock:
            if not self.alive:
                self._close()
                self._box = ModalSandbox(self.recipe, pause=self._pause)
                self._booked_at = self._box.started
            assert self._box is not None
            return self._box

    def box(self) -> ModalSandbox:
        """The sandbox itself.

        Raises:
            SandboxError: there is none.
        """
        if self._box is None or not self._box.alive:
            raise SandboxError("there is no sandbox yet: start() makes one")
        return self._box

    def settle(self) -> None:
        """Book the seconds since the last time."""
        with self._lock:
            self._settle()

    def _settle(self) -> None:
        if self._box is not None:
            now = time.monotonic()
            self._book(now - self._booked_at)
            self._booked_at = now

    def close(self) -> None:
        """End the sandbox, if there is one; may be called again."""
        with self._lock:
            self._close()

    def _close(self) -> None:
        if self._box is not None:
            self._box.close()
            self._settle()
            self._box = None

    def __deepcopy__(self, memo: dict[int, Any]) -> ModalBoxes:
        return self


_OPEN: weakref.WeakSet[ModalSandbox] = weakref.WeakSet()


@cache
def _close_at_exit() -> None:
    # After the SDK was imported: its own exit handler ends its loop, and the last one goes first.
    atexit.register(_close_all)


def _close_all() -> None:
    for sandbox in list(_OPEN):
        sandbox.close()
