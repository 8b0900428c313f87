"""Puts files of this machine into a Modal volume, each once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from fleet_rlm.errors import SandboxError, UsageError
from fleet_rlm.sandbox.modal_create import check_token, import_modal
from fleet_rlm.sandbox.modal_link import SdkFailed, wait_for

UPLOAD_S = 3600.0
"""Longest wait for all files of one upload."""


class Sent(NamedTuple):
    """A file and its place in a volume."""

    source: Path
    place: str


def plan_upload(folders: Mapping[str, str], files: Mapping[str, str]) -> list[Sent]:
    """Every file that is meant, by its place.

    Raises:
        UsageError: a place outside of the volume, or nothing to send at a path here.
    """
    found = []
    for here, there in files.items():
        if not Path(here).is_file():
            raise UsageError(f"There is no file {here!r}.")
        found.append(Sent(Path(here), _place(there)))
    for here, there in folders.items():
        root = Path(here)
        if not root.is_dir():
            raise UsageError(f"There is no folder {here!r}.")
        found.extend(
            Sent(path, _place(f"{there}/{path.relative_to(root)}"))
            for path in sorted(root.rglob("*"))
            if path.is_file() and path.resolve().is_relative_to(root.resolve())
        )
    return found


def upload(volume: str, files: Sequence[Sent]) -> int:
    """Send the files that the volume does not have; gives how many.

    Raises:
        SandboxError: they could not be sent.
    """
    check_token()
    try:
        return wait_for(_upload(volume, files), UPLOAD_S)
    except SdkFailed as failed:
        raise SandboxError(f"nothing was sent to volume {volume!r}: {failed}") from failed


async def _upload(volume: str, files: Sequence[Sent]) -> int:
    modal = import_modal()
    there = modal.Volume.from_name(volume, create_if_missing=True, version=2)
    try:
        held = {f"/{entry.path}" for entry in await there.listdir.aio("/", recursive=True)}
    except modal.exception.NotFoundError:
        held = set()
    missing = [file for file in files if file.place not in held]
    if missing:
        async with there.batch_upload.aio() as batch:
            for file in missing:
                batch.put_file(file.source, file.place)
    return len(missing)


def _place(path: str) -> str:
    parts = PurePosixPath(path).parts
    relative = tuple(part for part in parts if part != "/")
    if ".." in parts or not relative:
        raise UsageError(f"{path!r} is no place inside of a volume.", fix="'knowledge/book.txt'")
    return "/" + "/".join(relative)
