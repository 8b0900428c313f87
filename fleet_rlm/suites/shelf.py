"""Fetched datasets on disk: questions in one file, gold answers in another, locked by digest.

A shelf is a folder named by what it holds. `questions.sqlite` is all that the program's side ever
opens; `gold.sqlite` is opened when an answer is scored.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from fleet_rlm.errors import DataError, UsageError
from fleet_rlm.suites.manifest import Manifest
from fleet_rlm.suites.seal import Seal

_BREAK = "\n\n---\n\n"  # between the documents of a composed context


@dataclass(frozen=True, slots=True, kw_only=True)
class Lock:
    """What a manifest's data was at its first fetch. Written beside it, to be committed."""

    dataset: str
    manifest: str
    """Digest of the manifest."""

    revision: str | None
    """Commit of the Hugging Face dataset; None for files of one's own."""

    texts_revision: str | None
    rows: int
    contexts: int
    tokens: int
    """In all contexts."""

    questions_sha256: str
    gold_sha256: str
    files: Mapping[str, str]
    """Name -> sha256 of each file of one's own."""

    @property
    def digest(self) -> str:
        """Identity of the data, questions and gold answers."""
        return hashlib.sha256(f"{self.questions_sha256}{self.gold_sha256}".encode()).hexdigest()


class Stored(NamedTuple):
    """One question as it is stored; `query` is closed when the dataset is sealed."""

    id: str
    context: str
    query: str
    answer_type: str
    options: tuple[str, ...]
    kind: str
    length: int
    tags: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Shelf:
    """A fetched dataset, open for reading. Safe to use from many threads."""

    folder: Path
    lock: Lock
    seal: Seal

    def questions(self) -> list[Stored]:
        """All questions in order, without contexts and gold answers."""
        with self._read("questions") as db:
            rows = db.execute(
                "SELECT id, context, query, answer_type, options, kind, length, tags"
                " FROM questions ORDER BY n"
            ).fetchall()
        return [
            Stored(name, context, query, kind_of, tuple(json.loads(options)), kind, length, tags)
            for name, context, query, kind_of, options, kind, length, tags in (
                (*row[:7], json.loads(row[7])) for row in rows
            )
        ]

    def context(self, name: str) -> tuple[str, int]:
        """Text and tokens of a context.

        Raises:
            DataError: it is not there, or not what was locked.
        """
        with self._read("questions") as db:
            found = db.execute("SELECT documents, tokens FROM contexts WHERE id = ?", (name,))
            row = found.fetchone()
            if row is None:
                raise DataError(f"{self.lock.dataset}: context {name} is not in {self.folder}")
            ids = json.loads(self.seal.open(row[0]))
            texts = [_document(db, doc, self.lock.dataset) for doc in ids]
        text = _BREAK.join(texts)
        if len(ids) == 1 and short_digest(text) != ids[0]:
            raise DataError(f"{self.lock.dataset}: context {name} was changed after it was fetched")
        return text, row[1]

    def gold(self, name: str) -> tuple[str, ...]:
        """The gold answers of a question; for the scorer alone.

        Raises:
            DataError: they are not there.
        """
        with self._read("gold") as db:
            row = db.execute("SELECT answers FROM gold WHERE id = ?", (name,)).fetchone()
        if row is None:
            raise DataError(f"{self.lock.dataset}: no gold answer for {name} in {self.folder}")
        return tuple(json.loads(self.seal.open(row[0])))

    @contextmanager
    def _read(self, part: str) -> Iterator[sqlite3.Connection]:
        path = self.folder / f"{part}.sqlite"
        try:
            with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as db:
                yield db
        except sqlite3.Error as error:
            raise DataError(f"{path} is unreadable: {error}") from error


def data_dir(env: Mapping[str, str] | None = None) -> Path:
    """Where shelves stand: $FLEET_DATA_DIR, else ~/.cache/fleet-rlm/datasets."""
    env = os.environ if env is None else env
    if env.get("FLEET_DATA_DIR"):
        return Path(env["FLEET_DATA_DIR"]).expanduser()
    cache = env.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "fleet-rlm" / "datasets"


def read_lock(manifest: Manifest) -> Lock | None:
    """The lock of a manifest; None before the first fetch.

    Raises:
        UsageError: it cannot be read.
    """
    try:
        return Lock(**json.loads(manifest.lock_path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise UsageError(
            f"Lock {manifest.lock_path} is unreadable: {error}",
            fix=f"fleet-eval fetch {manifest.name} --relock",
        ) from error


def shelf_folder(manifest: Manifest, lock: Lock) -> Path:
    """Where the data that a lock names stands on this machine."""
    return data_dir() / f"{manifest.name}-{lock.digest[:16]}"


def is_fetched(manifest: Manifest) -> bool:
    """Whether the data that a manifest's lock names stands on this machine."""
    lock = read_lock(manifest)
    return lock is not None and shelf_folder(manifest, lock).is_dir()


def _document(db: sqlite3.Connection, name: str, dataset: str) -> str:
    row = db.execute("SELECT text FROM documents WHERE id = ?", (name,)).fetchone()
    if row is None:
        raise DataError(f"{dataset}: a document of the context is missing")
    return str(row[0])


def short_digest(text: str) -> str:
    """Name of a text or list in a shelf."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]
