"""A Modal volume as the volume of a chat: the same files from here and from sandboxes."""

from __future__ import annotations

import io
from collections.abc import Coroutine
from pathlib import PurePosixPath
from typing import Any, TypeVar

from fleet_rlm.errors import SandboxError, SandboxUnavailable
from fleet_rlm.program.agent.roots import Refused
from fleet_rlm.program.agent.volume import MAX_TEXT, Entry
from fleet_rlm.sandbox.modal_create import check_token, import_modal
from fleet_rlm.sandbox.modal_link import SdkFailed, wait_for

T = TypeVar("T")
LOOK_S = 60.0
MOVE_S = 600.0
"""Longest wait for the content of a file, in either direction."""


class ModalVolume:
    """A volume on Modal, by name; made, as version 2, when first used.

    A sandbox that mounts it (`ModalInterpreter(volume_name=...)`) sees what was there when it
    started, and later writes after its `reload`; what it writes is seen here after its `commit`.

    Args:
        name: of the volume.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def read(self, path: str) -> str:
        """The text of the file at `path`, relative to the volume's root.

        Raises:
            Refused: no such file, not UTF-8, too large, or a path that leads upwards.
            SandboxError: no token of Modal, no SDK, or it did not answer.
        """
        place = _inside(path)
        return self._wait(self._read(path, place), MOVE_S)

    def write(self, path: str, text: str) -> None:
        """Put `text` in place of the file at `path`; folders are made, and it is committed.

        Raises:
            Refused: a folder, or a path that leads upwards.
            SandboxError: no token of Modal, no SDK, or it did not answer.
        """
        place = _inside(path)
        if place == "/":
            raise Refused(f"{path!r} is a folder.")
        self._wait(self._write(place, text.encode("utf-8", "replace")), MOVE_S)

    def entries(self, path: str = ".") -> list[Entry]:
        """What is in the folder at `path`, by name.

        Raises:
            Refused: no such folder, or a path that leads upwards.
            SandboxError: no token of Modal, no SDK, or it did not answer.
        """
        place = _inside(path)
        return self._wait(self._entries(path, place), LOOK_S)

    def commit(self) -> None:
        """Nothing to do: what is written from here is committed at once."""

    def reload(self) -> None:
        """Nothing to do: every look from here is at what is committed."""

    def _open(self) -> Any:
        modal = import_modal()
        return modal.Volume.from_name(self.name, create_if_missing=True, version=2)

    async def _read(self, path: str, place: str) -> str:
        found = [entry for entry in await self._list(path, place) if f"/{entry.path}" == place]
        if not found or found[0].type.name != "FILE":
            raise Refused(f"File not found: {path}")
        if found[0].size > MAX_TEXT:
            raise Refused(f"{path!r} is larger than {MAX_TEXT:,} bytes.")
        pieces = [piece async for piece in self._open().read_file.aio(place)]
        try:
            return b"".join(pieces).decode("utf-8")
        except UnicodeDecodeError:
            raise Refused(f"Could not decode '{path}' as UTF-8 text.") from None

    async def _write(self, place: str, data: bytes) -> None:
        async with self._open().batch_upload.aio(force=True) as batch:
            batch.put_file(io.BytesIO(data), place)

    async def _entries(self, path: str, place: str) -> list[Entry]:
        kinds = {"FILE": "file", "DIRECTORY": "directory"}
        return sorted(
            Entry(PurePosixPath(entry.path).name, kinds[entry.type.name])
            for entry in await self._list(path, place)
            if entry.type.name in kinds
        )

    async def _list(self, path: str, place: str) -> list[Any]:
        try:
            return list(await self._open().listdir.aio(place))
        except (import_modal().exception.NotFoundError, FileNotFoundError):
            if place == "/":
                return []
            raise Refused(f"File not found: {path}") from None

    def _wait(self, work: Coroutine[Any, Any, T], timeout_s: float) -> T:
        try:
            check_token()
            return wait_for(work, timeout_s)
        except (SdkFailed, SandboxUnavailable) as failed:
            raise SandboxError(f"volume {self.name!r} on Modal: {failed}") from failed
        finally:
            work.close()


def _inside(path: str) -> str:
    """The path from the volume's root.

    Links are not followed here: the service lists them as such, and they are neither read nor
    shown.
    """
    parts = PurePosixPath(path).parts
    if not path.strip() or "\0" in path or path.startswith("/") or ".." in parts:
        raise Refused(f"{path!r} leads out of the volume: use a relative path inside of it.")
    return "/" + "/".join(parts)
