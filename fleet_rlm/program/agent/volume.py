"""A volume: files that outlive a chat. The protocol, and a folder of this machine behind it."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path, PurePosixPath
from typing import NamedTuple, Protocol, runtime_checkable

from fleet_rlm.program.agent.roots import Refused
from fleet_rlm.sandbox.modal_recipe import LAYOUT

MAX_TEXT = 256 << 20
"""Bytes of one file that is read."""


class Entry(NamedTuple):
    """Something in a folder of a volume."""

    name: str
    type: str
    """"file" or "directory"."""


@runtime_checkable
class Volume(Protocol):
    """Text files below one root, named by relative paths. Safe to use from several threads.

    A path that is absolute, leads upwards or goes through a symbolic link is refused: code of
    models writes here.
    """

    def read(self, path: str) -> str:
        """The text of a file.

        Raises:
            Refused: no such file, not UTF-8, or a path that is refused.
        """

    def write(self, path: str, text: str) -> None:
        """Put a text in place of a file, all of it or nothing; folders are made.

        Raises:
            Refused: a path that is refused, or the file cannot be written.
        """

    def entries(self, path: str = ".") -> list[Entry]:
        """What is in a folder, by name.

        Raises:
            Refused: no such folder, or a path that is refused.
        """

    def commit(self) -> None:
        """Make what was written visible to other holders of the volume."""

    def reload(self) -> None:
        """See what other holders have committed."""


class LocalVolume:
    """A folder of this machine as a volume; made, with its layout, when first used.

    Args:
        root: the folder.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root).resolve()

    def read(self, path: str) -> str:
        file = self._resolve(path)
        if not file.is_file():
            raise Refused(f"File not found: {path}")
        if file.stat().st_size > MAX_TEXT:
            raise Refused(f"{path!r} is larger than {MAX_TEXT:,} bytes.")
        try:
            return file.read_bytes().decode("utf-8")
        except UnicodeDecodeError:
            raise Refused(f"Could not decode '{path}' as UTF-8 text.") from None
        except OSError as error:
            raise Refused(f"Cannot read {path!r}: {error.strerror}.") from error

    def write(self, path: str, text: str) -> None:
        file = self._resolve(path)
        if file.is_dir() or file == self.root:
            raise Refused(f"{path!r} is a folder.")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            # in a file of its own first: whoever reads sees the old text or the new one
            handle, name = tempfile.mkstemp(dir=file.parent, prefix=".writing-")
            part = Path(name)
            try:
                with os.fdopen(handle, "wb") as out:
                    out.write(text.encode("utf-8", "replace"))
                part.replace(file)
            finally:
                part.unlink(missing_ok=True)
        except OSError as error:
            raise Refused(f"Cannot write {path!r}: {error.strerror}.") from error

    def entries(self, path: str = ".") -> list[Entry]:
        folder = self._resolve(path)
        if not folder.is_dir():
            raise Refused(f"{path!r} is not a folder of the volume.")
        return [
            Entry(entry.name, "directory" if entry.is_dir() else "file")
            for entry in sorted(folder.iterdir())
            if not entry.is_symlink() and not entry.name.startswith(".writing-")
        ]

    def commit(self) -> None:
        """Nothing to do: a folder shows at once what was written."""

    def reload(self) -> None:
        """Nothing to do: a folder shows at once what was written."""

    def _resolve(self, path: str) -> Path:
        parts = PurePosixPath(path).parts
        if not path.strip() or "\0" in path or path.startswith("/") or ".." in parts:
            raise Refused(f"{path!r} leads out of the volume: use a relative path inside of it.")
        self._prepare()
        place = self.root
        for part in parts:
            place /= part
            if place.is_symlink():
                raise Refused(f"{path!r} leads through a symbolic link.")
        return place

    def _prepare(self) -> None:
        try:
            for name in LAYOUT:
                (self.root / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise Refused(f"Cannot make the volume {self.root}: {error.strerror}.") from error
