"""Chats on disk: one folder each, written whole or not at all, every document once."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError

from fleet_rlm.errors import DataError, UsageError

FILE = "session.json"
ID_CHARS = 128
_UNSAFE = re.compile(r"[^a-zA-Z0-9_.-]")


class SessionKey(NamedTuple):
    """Whose chat, and which one."""

    identity: str
    workspace: str
    session: str


def parse_key(identity: str, workspace: str, session: str) -> SessionKey:
    """A key whose ids are reduced to letters, digits, `_`, `.` and `-`, 128 of them at most.

    Raises:
        UsageError: nothing is left of one.
    """
    ids = [_UNSAFE.sub("", part)[:ID_CHARS] for part in (workspace, session)]
    if not all(ids):
        raise UsageError("An id needs letters or digits.")
    return SessionKey(identity, *ids)


class _Stored(BaseModel):
    """The content of `session.json`."""

    model_config = ConfigDict(extra="forbid")

    format: int
    workspace: str
    session: str
    history: list[dict[str, str]]
    documents: dict[str, str]
    """Alias -> sha256 of the text, which is the name of its file."""

    active_alias: str | None
    document_access_order: list[str]
    core_memory: dict[str, str]


class SessionStore:
    """A folder of chats. Blocking; safe from several threads, one writer per chat.

    Args:
        folder: made when it is not there; one server at a time may use it.

    Raises:
        UsageError: it cannot be written, or another server uses it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock = (folder / "lock").open("w")
        except OSError as error:
            raise UsageError(f"Cannot write to {folder}: {error.strerror}.") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise UsageError(
                f"Another server keeps its chats in {folder}.", fix="--state ANOTHER_FOLDER"
            ) from None

    def close(self) -> None:
        """Let another server use the folder."""
        self._lock.close()

    def read(self, key: SessionKey) -> dict[str, Any] | None:
        """A chat's state as `import_session_state` takes it; None when there is none.

        Raises:
            DataError: its files are damaged.
        """
        place = self._place(key)
        try:
            stored = _Stored.model_validate_json((place / FILE).read_bytes())
            documents = {
                alias: (place / f"{digest}.txt").read_bytes().decode("utf-8", "surrogatepass")
                for alias, digest in stored.documents.items()
            }
        except FileNotFoundError:
            if not (place / FILE).exists():
                return None
            raise DataError(f"Chat {key.session!r} misses a document.") from None
        except (OSError, ValidationError, UnicodeDecodeError) as error:
            raise DataError(f"Chat {key.session!r} cannot be read: {error}") from error
        state = stored.model_dump(exclude={"format", "workspace", "session"})
        return state | {"documents": documents}

    def write(self, key: SessionKey, state: Mapping[str, Any]) -> None:
        """Keep a chat's state, as `export_session_state` gives it.

        Raises:
            DataError: it cannot be written; the earlier state is still there.
        """
        place = self._place(key)
        try:
            place.mkdir(parents=True, exist_ok=True, mode=0o700)
            digests = {}
            for alias, text in state["documents"].items():
                data = text.encode("utf-8", "surrogatepass")
                digests[alias] = hashlib.sha256(data).hexdigest()
                if not (file := place / f"{digests[alias]}.txt").exists():
                    _put(file, data)
            stored = {
                **state,
                "format": 1,
                "workspace": key.workspace,
                "session": key.session,
                "documents": digests,
            }
            _put(place / FILE, json.dumps(stored).encode())
            for file in place.glob("*.txt"):
                if file.stem not in digests.values():
                    file.unlink()
        except OSError as error:
            raise DataError(f"Chat {key.session!r} cannot be kept: {error.strerror}") from error

    def describe(self, identity: str) -> Iterator[dict[str, Any]]:
        """Every chat of an identity, as `/sessions/state` shows it."""
        for file in sorted((self.folder / "chats" / identity).glob(f"*/*/{FILE}")):
            try:
                stored = _Stored.model_validate_json(file.read_bytes())
                changed = file.stat().st_mtime
            except (OSError, ValidationError):
                continue  # deleted meanwhile, or damaged, which `read` tells
            yield {
                "workspace_id": stored.workspace,
                "session_id": stored.session,
                "history_turns": len(stored.history),
                "document_count": len(stored.documents),
                "memory_count": sum(bool(text) for text in stored.core_memory.values()),
                "updated_at": changed,
            }

    def expire(self, before: float) -> list[SessionKey]:
        """Delete the chats that were last changed before a time, in seconds since the epoch."""
        gone = []
        for file in (self.folder / "chats").glob(f"*/*/*/{FILE}"):
            if file.stat().st_mtime < before:
                place = file.parent
                identity = place.parent.parent.name
                gone.append(SessionKey(identity, place.parent.name[2:], place.name[2:]))
                shutil.rmtree(place, ignore_errors=True)
        return gone

    def _place(self, key: SessionKey) -> Path:
        # A prefix, so that no id is "..", and identities cannot be reached by any.
        return self.folder / "chats" / key.identity / f"w-{key.workspace}" / f"s-{key.session}"


def _put(file: Path, data: bytes) -> None:
    handle, name = tempfile.mkstemp(dir=file.parent, prefix=".writing-")
    try:
        with os.fdopen(handle, "wb") as out:
            out.write(data)
        Path(name).replace(file)
    finally:
        Path(name).unlink(missing_ok=True)
