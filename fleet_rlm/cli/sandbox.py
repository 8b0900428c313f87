"""What `fleet-rlm sandbox` and `fleet-eval sandbox` do: publish the image, end what is left."""

from __future__ import annotations

import json
import os
from pathlib import Path

from fleet_rlm.config import resolve
from fleet_rlm.errors import Exit, UsageError
from fleet_rlm.project import project_dir
from fleet_rlm.sandbox.modal_create import publish
from fleet_rlm.sandbox.modal_gc import reap
from fleet_rlm.sandbox.modal_recipe import Recipe


def build_command(*, as_json: bool) -> int:
    """Publish the image that `fleet.toml` describes, unless it is published."""
    recipe = _recipe()
    if recipe.image is not None:
        raise UsageError(
            f"fleet.toml names the image {recipe.image!r}, so there is none to build",
            fix="remove `image` from its table [modal]",
        )
    found = publish(recipe)
    if as_json:
        print(json.dumps(found._asdict()))
    else:
        print(f"{'published' if found.built else 'is published'}  {found.name}  {found.id}")
    return Exit.OK


def gc_command(*, run: Path | None, everything: bool, as_json: bool) -> int:
    """End sandboxes of this user that nobody needs."""
    if run is not None and everything:
        raise UsageError("--run and --all are two answers to one question.", fix="--all alone")
    recipe = _recipe()
    apps = (recipe.app_name, Recipe().app_name)
    found = reap(apps, run=run.name if run else None, everything=everything)
    if as_json:
        shown = {name: [own._asdict() for own in owns] for name, owns in found._asdict().items()}
        print(json.dumps(shown))
    else:
        print(f"{len(found.ended)} ended, {len(found.kept)} still needed")
    return Exit.OK


def _recipe() -> Recipe:
    config = resolve({}, os.environ, project_dir(Path.cwd())).config
    return Recipe(**config.modal.model_dump())
