"""Looks at a Modal account: what a run would need there, and whether it is there."""

from __future__ import annotations

from typing import Any, NamedTuple

from fleet_rlm.errors import SandboxUnavailable
from fleet_rlm.sandbox.modal_create import check_token, import_modal, unavailable
from fleet_rlm.sandbox.modal_link import SdkFailed, wait_for
from fleet_rlm.sandbox.modal_recipe import Recipe

LOOK_S = 20.0
SECRET = "LITELLM"
"""Name of a secret that holds model keys, as earlier versions mounted it; no sandbox gets it."""


class Account(NamedTuple):
    """What was found."""

    workspace: str
    image: str | None
    """Id of the published image of a recipe; None where it is not published."""
    secret: bool
    """Whether there is a secret of the name `SECRET`; its values are never read."""


def examine(recipe: Recipe) -> Account:
    """Ask the account for what a recipe needs.

    Raises:
        SandboxUnavailable: no token, one that is refused, or no connection.
    """
    check_token()
    try:
        return wait_for(_examine(recipe), LOOK_S)
    except SdkFailed as failed:
        raise unavailable(failed) or SandboxUnavailable(
            f"Modal cannot be reached: {failed}", fix="fleet-rlm doctor, later"
        ) from failed


async def _examine(recipe: Recipe) -> Account:
    modal = import_modal()
    workspace = modal.Workspace.from_context()
    await workspace.hydrate.aio()
    image = await _image_id(modal, recipe)
    try:
        await modal.Secret.from_name(SECRET).hydrate.aio()
    except modal.exception.NotFoundError:
        return Account(str(workspace.name), image, False)
    return Account(str(workspace.name), image, True)


async def _image_id(modal: Any, recipe: Recipe) -> str | None:
    try:
        app = await modal.App.lookup.aio(recipe.app_name)
        image = modal.Image.from_name(recipe.image or recipe.image_name)
        return str((await image.build.aio(app)).object_id)
    except modal.exception.NotFoundError:
        return None
