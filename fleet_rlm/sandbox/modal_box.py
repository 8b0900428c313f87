"""A box on Modal: one sandbox with one driver, created with retries and a lease of its own."""

from __future__ import annotations

import asyncio
import atexit
import getpass
import json
import os
import random
import sys
import time
import weakref
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from fleet_rlm.errors import SandboxError, SandboxUnavailable
from fleet_rlm.sandbox import confine, driver
from fleet_rlm.sandbox.levels import Level
from fleet_rlm.sandbox.link import ANSWER_S
from fleet_rlm.sandbox.modal_link import SILENCE_S, ModalLink, describe, wait_for
from fleet_rlm.sandbox.session import Clean, Limits, Session, as_it_is

HOME = "/opt/fleet"
BLOBS = "/blobs"
CREATE_S = 180.0
"""Longest wait for one create; beyond it Modal itself gives up on a start that is stuck."""
TRIES = 4
LONGEST_PAUSE_S = 20.0
LEVEL = Level(
    name="modal",
    label=(
        "runs in a Modal sandbox of its own: gVisor, no network unless allowed by name, none of "
        "your files and keys"
    ),
    isolated=True,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How a sandbox is made."""

    image: Any = None
    """A `modal.Image`; a plain one with `pip_packages` when None."""
    app: Any = None
    """A `modal.App`; looked up by `app_name` when None."""
    app_name: str = "dspy-rlm-interpreter"
    python: str = "3.12"
    pip_packages: tuple[str, ...] = ("numpy", "pandas")
    timeout_s: int = 900
    """Seconds after which Modal ends it, whatever happens here."""
    idle_s: int = 60
    """Seconds after which Modal ends it when nothing runs in it."""
    cpu: tuple[float, float] = (0.25, 2.0)
    """Cores: requested, limit."""
    memory_mib: tuple[int, int] = (512, 2048)
    """MiB: requested, limit."""
    domains: tuple[str, ...] = ()
    """Domains that code may reach; none by default."""
    cidrs: tuple[str, ...] = ()
    """Address ranges that code may reach; none by default."""
    tags: Mapping[str, str] = field(default_factory=dict)


def make_image(recipe: Recipe) -> Any:
    """The image of a recipe, with the driver in it; nothing is built before it is used."""
    import modal

    image = recipe.image
    if image is None:
        image = modal.Image.debian_slim(python_version=recipe.python)
        if recipe.pip_packages:
            image = image.pip_install(*recipe.pip_packages)
    for file in (driver.__file__, confine.__file__):
        image = image.add_local_file(file, f"{HOME}/{Path(file).name}")
    return image


class ModalSandbox:
    """One Modal sandbox. Sessions may be opened and used from any thread.

    Its lease: it is tagged in the very call that creates it, it ends at `timeout_s`, its driver
    ends when the host is silent for 90 s, and Modal ends it `idle_s` after that.
    """

    level = LEVEL

    def __init__(self, recipe: Recipe, *, limits: Limits | None = None) -> None:
        """Create it, and start its driver.

        Raises:
            SandboxUnavailable: no Modal token, or it was refused.
            SandboxError: Modal did not start it.
        """
        self.recipe = recipe
        self.limits = limits or Limits(memory_bytes=recipe.memory_mib[1] << 20)
        self._owner = os.getpid()
        self._sessions: weakref.WeakSet[Session] = weakref.WeakSet()
        self._closed = False
        self._sandbox = _create(recipe)
        self.started = time.monotonic()
        _OPEN.add(self)
        _close_at_exit()
        try:
            self._link = ModalLink(self._sandbox, self._start_driver(), BLOBS)
            self._link.wait_ready(ANSWER_S)
        except SandboxError:
            self.close()
            raise

    @property
    def id(self) -> str:
        """As Modal names it."""
        return str(self._sandbox.object_id)

    @property
    def alive(self) -> bool:
        """False once it is gone, and in a process forked from the one that made it."""
        return not self._closed and self._link.lost is None and self._owner == os.getpid()

    @property
    def uploaded(self) -> int:
        """Bytes of large inputs that went out."""
        return self._link.uploaded

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
        except Exception as error:
            raise SandboxError(f"no driver in the Modal sandbox: {describe(error)}") from error

    def open(self, limits: Limits | None = None, clean: Clean = as_it_is) -> Session:
        """A fresh session; close it when done.

        Args:
            limits: the sandbox's own when absent.
            clean: takes secrets out of what tools are given, and of what they return or raise.

        Raises:
            SandboxError: it could not be started.
        """
        session = Session(self._link, limits or self.limits, clean)
        self._sessions.add(session)
        return session

    def close(self) -> None:
        """End all sessions and the sandbox; may be called again."""
        if self._closed or self._owner != os.getpid():
            return
        self._closed = True
        for session in list(self._sessions):
            session.close()
        if hasattr(self, "_link"):
            self._link.close()
        # What cannot be told to end ends by its lease.
        with suppress(Exception):
            wait_for(self._sandbox.terminate.aio(), ANSWER_S)

    def __enter__(self) -> ModalSandbox:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __deepcopy__(self, memo: dict[int, Any]) -> ModalSandbox:
        return self


_OPEN: weakref.WeakSet[ModalSandbox] = weakref.WeakSet()


@cache
def _close_at_exit() -> None:
    # After the SDK was imported: its own exit handler ends its loop, and the last one goes first.
    atexit.register(_close_all)


def _close_all() -> None:
    for sandbox in list(_OPEN):
        sandbox.close()


def _create(recipe: Recipe) -> Any:
    if "modal" in sys.modules and not hasattr(sys.modules["modal"], "Sandbox"):
        path = getattr(sys.modules["modal"], "__file__", "modal.py")
        raise SandboxUnavailable(f"{path} hides the package modal", fix="rename that file")
    # Else the SDK waits for ever where the service asks it to slow down.
    os.environ.setdefault("MODAL_MAX_THROTTLE_WAIT", "120")
    import modal

    lasting = (modal.exception.InvalidError, modal.exception.RemoteError)
    for attempt in range(TRIES):
        try:
            return wait_for(_create_once(recipe), CREATE_S)
        except modal.exception.AuthError as error:
            raise SandboxUnavailable(
                f"Modal knows no valid token: {describe(error)}", fix="modal token new"
            ) from error
        except lasting as error:
            raise SandboxError(f"Modal refused to make a sandbox: {describe(error)}") from error
        except Exception as error:
            if attempt == TRIES - 1:
                raise SandboxError(
                    f"Modal made no sandbox in {TRIES} tries: {describe(error)}"
                ) from error
            time.sleep(min(LONGEST_PAUSE_S, 0.5 * 4**attempt) * random.uniform(0.5, 1.0))
    raise AssertionError("unreachable")


async def _create_once(recipe: Recipe) -> Any:
    import modal

    app = recipe.app or await modal.App.lookup.aio(recipe.app_name, create_if_missing=True)
    expires = int(time.time()) + recipe.timeout_s
    creating = asyncio.ensure_future(
        modal.Sandbox.create.aio(
            app=app,
            image=make_image(recipe),
            timeout=recipe.timeout_s,
            idle_timeout=recipe.idle_s,
            cpu=recipe.cpu,
            memory=recipe.memory_mib,
            block_network=not (recipe.domains or recipe.cidrs),
            outbound_domain_allowlist=list(recipe.domains) or None,
            outbound_cidr_allowlist=list(recipe.cidrs) or None,
            workdir="/tmp",
            tags={
                "project": "fleet-rlm",
                "owner": getpass.getuser(),
                "expires": str(expires),
                **recipe.tags,
            },
        )
    )
    try:
        # Cut off half way it would leave a sandbox that nobody holds: it goes on, and is ended.
        return await asyncio.shield(creating)
    except asyncio.CancelledError:
        creating.add_done_callback(_end_unheld)
        raise


_ENDING: set[asyncio.Future[Any]] = set()
"""Kept until done: a loop holds its tasks weakly."""


def _end_unheld(creating: asyncio.Future[Any]) -> None:
    """End a sandbox that came when nobody waited for it any more."""
    if not creating.cancelled() and creating.exception() is None:
        ending = asyncio.ensure_future(creating.result().terminate.aio())
        _ENDING.add(ending)
        ending.add_done_callback(_ENDING.discard)
