"""Confines paths: the folders that tools of the host may read, by real path."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from fleet_rlm.errors import UsageError

MAX_WALKED = 200_000
"""Files looked at by one listing or search."""


class Refused(UsageError, ValueError):
    """An argument that cannot be used as given; nothing was changed."""


class Roots:
    """The folders that may be read, and everything below them. Immutable.

    Args:
        folders: where to read from; relative paths are looked up in this order. None at all means
            that nothing may be read.

    Raises:
        UsageError: one is no folder.
    """

    def __init__(self, folders: Iterable[str | Path]) -> None:
        self.folders = tuple(Path(folder).resolve() for folder in folders)
        for folder in self.folders:
            if not folder.is_dir():
                raise UsageError(f"{str(folder)!r} is not a folder.")

    def resolve(self, path: str) -> Path:
        """The real path of `path`, links followed.

        Raises:
            Refused: it lies outside, whether it exists or not, or nothing is there.
        """
        if not path.strip() or "\0" in path:
            raise Refused(f"{path!r} is not a path.")
        try:
            real = [(root / path).resolve() for root in self.folders]
            inside = [found for found in real if self.holds(found)]
            existing = [found for found in inside if found.exists()]
        except (OSError, RuntimeError) as error:  # a name too long, links in a circle
            raise Refused(f"{path!r} cannot be followed: {error}") from error
        if not inside:
            allowed = ", ".join(map(str, self.folders)) or "none"
            raise Refused(f"{path!r} is outside of the folders that may be read: {allowed}.")
        if not existing:
            raise Refused(f"File not found: {path}")
        return existing[0]

    def resolve_file(self, path: str) -> Path:
        """The real path of a regular file.

        Raises:
            Refused: it lies outside, is missing, or is no regular file.
        """
        real = self.resolve(path)
        if not real.is_file():  # reading a pipe or a device might never end
            raise Refused(f"{path!r} is not a file.")
        return real

    def holds(self, real: Path) -> bool:
        """Whether a real path lies in one of the folders."""
        return any(real.is_relative_to(folder) for folder in self.folders)

    def walk(self, folder: Path, pattern: str) -> Iterator[Path]:
        """Regular files below `folder` that `pattern` matches, in order, without hidden folders.

        Args:
            folder: a real path inside.
            pattern: as `Path.glob` takes it; without a slash it is matched at any depth.

        Raises:
            Refused: a pattern that leads out of the folder.
        """
        matches = _compile_glob(pattern)
        seen = 0
        for place, folders, names in os.walk(folder):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in sorted(names):
                seen += 1
                if seen > MAX_WALKED:
                    return
                path = Path(place, name)
                if matches(path.relative_to(folder).as_posix()) and path.is_file():
                    if path.is_symlink() and not self.holds(path.resolve()):
                        continue
                    yield path


def _compile_glob(pattern: str) -> Callable[[str], Any]:
    if pattern.startswith("/") or ".." in pattern.split("/"):
        raise Refused(f"Pattern {pattern!r} leads out of the folder.")
    if "/" not in pattern:
        pattern = f"**/{pattern or '*'}"
    meaning = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    parts = re.split(r"(\*\*/|\*\*|\*|\?)", pattern)
    expression = "".join(meaning.get(part) or re.escape(part) for part in parts)
    return re.compile(expression, re.S).fullmatch
