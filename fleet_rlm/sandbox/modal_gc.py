"""Finds the Modal sandboxes of this user by their tags, and ends those that nobody needs."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from typing import NamedTuple

from fleet_rlm.errors import SandboxUnavailable
from fleet_rlm.sandbox.modal_create import check_token, import_modal, owner, unavailable
from fleet_rlm.sandbox.modal_link import SdkFailed, wait_for

LIST_S = 120.0
"""Longest wait for all pages of a list, and for all sandboxes of one to end."""


class Own(NamedTuple):
    """A sandbox of this user that lives."""

    id: str
    run: str
    """The run that it was made for; empty for one made from Python."""
    sample: str
    expires: int
    """Unix time after which nobody needs it."""


class Reaped(NamedTuple):
    """What a look at this user's sandboxes found."""

    kept: Sequence[Own]
    ended: Sequence[Own]


def reap(apps: Collection[str], *, run: str | None = None, everything: bool = False) -> Reaped:
    """End sandboxes of this user that nobody needs any more.

    Args:
        apps: names of the apps that they belong to; one that does not exist has none.
        run: those of this run, expired or not, instead of all that have expired.
        everything: all of them.

    Raises:
        SandboxUnavailable: no valid token, or no connection.
    """
    check_token()
    try:
        return wait_for(_reap(apps, run, everything), LIST_S)
    except SdkFailed as failed:
        raise unavailable(failed) or SandboxUnavailable(
            f"Modal did not list its sandboxes: {failed}", fix="the same command again"
        ) from failed


async def _reap(apps: Collection[str], run: str | None, everything: bool) -> Reaped:
    modal = import_modal()
    now = time.time()
    kept, ended = [], []
    for app in dict.fromkeys(apps):
        try:
            app_id = (await modal.App.lookup.aio(app)).app_id
        except modal.exception.NotFoundError:
            continue
        mine = {"project": "fleet-rlm", "owner": owner()} | ({"run": run} if run else {})
        async for sandbox in modal.Sandbox.list.aio(app_id=app_id, tags=mine):
            own = _own(sandbox.object_id, await sandbox.get_tags.aio())
            if everything or run or own.expires < now:
                await sandbox.terminate.aio()
                ended.append(own)
            else:
                kept.append(own)
    return Reaped(kept, ended)


def _own(id_: str, tags: dict[str, str]) -> Own:
    expires = tags.get("expires", "")
    return Own(
        id=id_,
        run=tags.get("run", ""),
        sample=tags.get("sample", ""),
        expires=int(expires) if expires.isdecimal() else 0,
    )
