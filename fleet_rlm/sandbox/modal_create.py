"""Creates Modal sandboxes: paced, tried again, tagged from the start, and never left behind."""

from __future__ import annotations

import asyncio
import getpass
import logging
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from fleet_rlm.errors import SandboxError, SandboxUnavailable
from fleet_rlm.sandbox.modal_link import SdkFailed, wait_for
from fleet_rlm.sandbox.modal_pace import Pace
from fleet_rlm.sandbox.modal_recipe import BLOBS, CONTEXTS, SHARED, Recipe, make_image

CREATE_S = 180.0
"""Longest wait for one create; beyond it Modal itself gives up on a start that is stuck."""
BUILD_S = 900.0
"""Longest wait for an image to be built."""
TRIES = 4
"""Attempts at a create that fails for another reason than lack of room."""
LONGEST_PAUSE_S = 20.0
PATIENCE_S = 900.0
"""How long a create waits in all for a service that has no room."""
SDK_WAIT_S = "5"
"""Seconds that the SDK itself waits where the service asks it to slow down, for ever by default.
Few, so that all creates slow down together instead."""
STARTING = threading.BoundedSemaphore(64)
"""Sandboxes that start at the same time: beyond about 128 in all they wait for each other."""

Pause = Callable[[float], None]
"""Sleeps for some seconds, or raises because whoever waits has given up."""


class Kit(NamedTuple):
    """What all sandboxes of a recipe are made from."""

    app: Any
    image: Any
    published: bool = False


def check_token() -> None:
    """Look for a Modal token, without asking whether it is valid.

    Raises:
        SandboxUnavailable: there is none.
    """
    config = import_modal().config.config
    if not (config.get("token_id") and config.get("token_secret")):
        raise SandboxUnavailable("Modal needs a token, and there is none", fix="modal token new")


def prepare(recipe: Recipe) -> str:
    """Look the app up and have the image ready, once a process; gives the image's id.

    Raises:
        SandboxUnavailable: the token is refused, the service cannot be reached, or the image
            cannot be built.
    """
    check_token()
    try:
        kit = wait_for(_kit(recipe), BUILD_S)
    except SdkFailed as failed:
        raise unavailable(failed) or SandboxUnavailable(
            f"Modal has no image for sandboxes: {failed}", fix="fleet-rlm doctor"
        ) from failed
    return str(kit.image.object_id)


class Published(NamedTuple):
    """An image with a name of its own."""

    name: str
    id: str
    built: bool
    """False when it was published before."""


def publish(recipe: Recipe) -> Published:
    """Build the image of a recipe and publish it by name and digest, unless it is published.

    Raises:
        SandboxUnavailable: the token is refused, the service cannot be reached, or the image
            cannot be built.
    """
    check_token()
    try:
        return wait_for(_publish(recipe), BUILD_S)
    except SdkFailed as failed:
        raise unavailable(failed) or SandboxUnavailable(
            f"Modal did not build the image: {failed}", fix="the same command again"
        ) from failed


async def _publish(recipe: Recipe) -> Published:
    kit = await _make_kit(recipe)
    if not kit.published:
        await kit.image.publish.aio(recipe.image_name)
    return Published(recipe.image_name, str(kit.image.object_id), not kit.published)


def create(recipe: Recipe, pause: Pause = time.sleep) -> Any:
    """Make a sandbox; gives the `modal.Sandbox`.

    Args:
        recipe: how.
        pause: sleeps between attempts, and until it is this create's turn.

    Raises:
        SandboxUnavailable: no Modal token, or it was refused.
        SandboxError: Modal did not make it.
    """
    modal = import_modal()
    pace = Pace(recipe.creates_per_s)
    lasting = (
        modal.exception.InvalidError,
        modal.exception.RemoteError,
        modal.exception.PermissionDeniedError,
    )
    failures, refused_since = 0, 0.0
    while True:
        while wait_s := pace.take():
            pause(wait_s)
        try:
            with STARTING:
                kit = wait_for(_kit(recipe), BUILD_S)
                sandbox = wait_for(_create_once(kit, recipe), CREATE_S)
        except SdkFailed as failed:
            if refusal := unavailable(failed):
                raise refusal from failed
            if isinstance(failed.cause, lasting):
                raise SandboxError(f"Modal refused to make a sandbox: {failed}") from failed
            if isinstance(failed.cause, modal.exception.ResourceExhaustedError):
                pace.refused()
                refused_since = refused_since or time.monotonic()
                waited = time.monotonic() - refused_since
                if waited > PATIENCE_S:
                    raise SandboxError(
                        f"Modal had no room for a sandbox in {waited:.0f} s: {failed}"
                    ) from failed
                continue
            failures += 1
            if failures == TRIES:
                raise SandboxError(f"Modal made no sandbox in {TRIES} tries: {failed}") from failed
            pause(min(LONGEST_PAUSE_S, 0.5 * 4 ** (failures - 1)))
        else:
            pace.made()
            return sandbox


def import_modal() -> Any:
    """The SDK.

    Raises:
        SandboxUnavailable: something else has its name.
    """
    if "modal" in sys.modules and not hasattr(sys.modules["modal"], "Sandbox"):
        path = getattr(sys.modules["modal"], "__file__", "modal.py")
        raise SandboxUnavailable(f"{path} hides the package modal", fix="rename that file")
    os.environ.setdefault("MODAL_MAX_THROTTLE_WAIT", SDK_WAIT_S)
    import modal

    for name in ("modal-client", "modal-utils"):
        logging.getLogger(name).addFilter(_not_of_creates)  # the same one is added once

    return modal


def _not_of_creates(record: logging.LogRecord) -> bool:
    """Whether the SDK may say it: of refused creates the run itself tells, in one line for all."""
    return "/SandboxCreateV2 (" not in record.getMessage()


def unavailable(failed: SdkFailed) -> SandboxUnavailable | None:
    """What to say where no other create would succeed either."""
    if isinstance(failed.cause, import_modal().exception.AuthError):
        return SandboxUnavailable(f"Modal knows no valid token: {failed}", fix="modal token new")
    return None


_KITS: dict[Any, asyncio.Future[Kit]] = {}


async def _kit(recipe: Recipe) -> Kit:
    """The app and the built image of a recipe, made once a process: an image that is made anew
    asks the service about each of its layers."""
    image = recipe.image or (recipe.python, recipe.pip_packages)
    key = (os.getpid(), recipe.app or recipe.app_name, image)
    if key not in _KITS:
        _KITS[key] = asyncio.ensure_future(_make_kit(recipe))
    try:
        return await asyncio.shield(_KITS[key])
    except Exception:  # any: raised again, and the next create tries anew
        _KITS.pop(key, None)
        raise


async def _make_kit(recipe: Recipe) -> Kit:
    modal = import_modal()
    app = recipe.app or await modal.App.lookup.aio(recipe.app_name, create_if_missing=True)
    if recipe.image is None:
        try:
            image = modal.Image.from_name(recipe.image_name)
            return Kit(app, await image.build.aio(app), published=True)
        except modal.exception.NotFoundError:
            pass  # not published: built here
    return Kit(app, await make_image(recipe).build.aio(app))


async def _create_once(kit: Kit, recipe: Recipe) -> Any:
    expires = int(time.time()) + recipe.timeout_s
    tags = {"project": "fleet-rlm", "owner": owner(), "expires": str(expires), **recipe.tags}
    creating = asyncio.ensure_future(
        import_modal().Sandbox.create.aio(
            app=kit.app,
            image=kit.image,
            timeout=recipe.timeout_s,
            idle_timeout=recipe.idle_s,
            cpu=recipe.cpu,
            memory=recipe.memory_mib,
            block_network=not (recipe.domains or recipe.cidrs),
            outbound_domain_allowlist=list(recipe.domains) or None,
            outbound_cidr_allowlist=list(recipe.cidrs) or None,
            volumes=_volumes(recipe),
            workdir="/tmp",
            tags=_valid(tags),
        )
    )
    try:
        # Cut off half way it would leave a sandbox that nobody holds: it goes on, and is ended.
        return await asyncio.shield(creating)
    except asyncio.CancelledError:
        creating.add_done_callback(_end_unheld)
        raise


def _volumes(recipe: Recipe) -> dict[str, Any]:
    find = import_modal().Volume.from_name
    found = {}
    if recipe.volume_name is not None:
        named = find(recipe.volume_name, create_if_missing=True, version=2)
        found[recipe.volume_path] = named
    if recipe.context is not None:
        options = {"read_only": True, "sub_path": f"/{recipe.context}"}
        found[f"{BLOBS}/{SHARED}"] = find(CONTEXTS).with_mount_options(**options)
    return found


def owner() -> str:
    """Whose sandboxes are ours, as their tag says."""
    return getpass.getuser()


def _valid(tags: Mapping[str, str]) -> dict[str, str]:
    """Tags as Modal takes them: letters, digits, dot, dash and underscore, at most 63."""
    return {name: re.sub(r"[^A-Za-z0-9._-]", "-", text)[:63] or "-" for name, text in tags.items()}


_ENDING: set[asyncio.Future[Any]] = set()
"""Kept until done: a loop holds its tasks weakly."""


def _end_unheld(creating: asyncio.Future[Any]) -> None:
    """End a sandbox that came when nobody waited for it any more."""
    if not creating.cancelled() and creating.exception() is None:
        ending = asyncio.ensure_future(creating.result().terminate.aio())
        _ENDING.add(ending)
        ending.add_done_callback(_ENDING.discard)
