"""Reads a dataset onto its shelf, whole or not at all, and holds it to its lock."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fleet_rlm.errors import UsageError
from fleet_rlm.suites.adapters import Item
from fleet_rlm.suites.hub import head_revision, read_rows
from fleet_rlm.suites.manifest import Manifest, SourceTable, TextsTable, flat
from fleet_rlm.suites.seal import Seal
from fleet_rlm.suites.shelf import (
    Lock,
    Shelf,
    Stored,
    data_dir,
    is_fetched,
    read_lock,
    shelf_folder,
    short_digest,
)
from fleet_rlm.suites.tokens import count_tokens

_TABLES = """
CREATE TABLE documents (id TEXT PRIMARY KEY, text TEXT NOT NULL, tokens INTEGER NOT NULL);
CREATE TABLE contexts (id TEXT PRIMARY KEY, documents TEXT NOT NULL, tokens INTEGER NOT NULL);
CREATE TABLE questions (
    n INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, context TEXT NOT NULL, query TEXT NOT NULL,
    answer_type TEXT NOT NULL, options TEXT NOT NULL, kind TEXT NOT NULL,
    length INTEGER NOT NULL, tags TEXT NOT NULL
);
"""
_GOLD_TABLE = "CREATE TABLE gold (id TEXT PRIMARY KEY, answers TEXT NOT NULL)"


def open_shelf(manifest: Manifest) -> Shelf:
    """The fetched data of a manifest; files of one's own are read in when they are not yet.

    Raises:
        UsageError: not fetched, or not what was locked; says the command that mends it.
    """
    lock = read_lock(manifest)
    if lock is None or not is_fetched(manifest):
        if not manifest.is_local:
            what = "was never fetched" if lock is None else "is not on this machine"
            raise UsageError(
                f"Dataset {manifest.name!r} {what}", fix=f"fleet-eval fetch {manifest.name}"
            )
        return fetch(manifest)
    _check_lock(manifest, lock)
    return Shelf(shelf_folder(manifest, lock), lock, Seal(manifest.file.dataset.canary))


def fetch(manifest: Manifest, *, pin: bool = False, relock: bool = False) -> Shelf:
    """Read a dataset onto this machine; the first time write its lock, later hold to it.

    All rows are read and checked before anything is kept.

    Args:
        manifest: what to read.
        pin: take the dataset's current commit where the manifest names none.
        relock: accept what is there now in place of what was locked.

    Raises:
        UsageError: no revision, no network, a missing column, a row or gold answer that cannot be
            read, or other data than was locked.
    """
    old = None if relock else read_lock(manifest)
    revision, texts_revision = _revisions(manifest, old, pin)
    root = data_dir()
    draft = root / f".{manifest.name}.{os.getpid()}"
    shutil.rmtree(draft, ignore_errors=True)
    try:
        draft.mkdir(parents=True)
        lock = _Reader(manifest, draft, revision, texts_revision).read()
        if old is not None:
            _compare(manifest, old, lock)
        else:
            _write_lock(manifest, lock)
        folder = shelf_folder(manifest, lock)
        shutil.rmtree(folder, ignore_errors=True)
        draft.replace(folder)
    except OSError as error:
        raise UsageError(
            f"{error.filename}: {error.strerror}", fix="set FLEET_DATA_DIR to a writable folder"
        ) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return Shelf(folder, lock, Seal(manifest.file.dataset.canary))


class _Reader:
    """Reads one manifest's rows into the two files of a shelf."""

    def __init__(
        self, manifest: Manifest, draft: Path, revision: str | None, texts_revision: str | None
    ) -> None:
        self._manifest = manifest
        self._draft = draft
        self._revision = revision
        self._texts_revision = texts_revision
        self._seal = Seal(manifest.file.dataset.canary)
        self._sizes: dict[str, int] = {}
        self._contexts: dict[str, int] = {}
        self._texts_digest = hashlib.sha256()

    def read(self) -> Lock:
        with closing(sqlite3.connect(self._draft / "questions.sqlite")) as db, db:
            db.executescript(_TABLES)
            common = self._read_texts(db)
            ids, questions = self._read_questions(db, common)
        with closing(sqlite3.connect(self._draft / "gold.sqlite")) as db, db:
            db.execute(_GOLD_TABLE)
            gold = self._read_gold(db, ids)
        manifest = self._manifest
        return Lock(
            dataset=manifest.name,
            manifest=manifest.digest,
            revision=self._revision,
            texts_revision=self._texts_revision,
            rows=len(ids),
            contexts=len(self._contexts),
            tokens=sum(self._contexts.values()),
            questions_sha256=questions,
            gold_sha256=gold,
            files={path.name: _sha256(path) for path in manifest.local_files},
        )

    def _read_texts(self, db: sqlite3.Connection) -> str | None:
        """Store the documents of [texts]; the one context of all rows unless they are composed."""
        texts = self._manifest.file.texts
        if texts is None:
            return None
        count = 0
        found = ""
        for row in self._rows(texts.source, texts.columns, texts.filter, self._texts_revision):
            found = str(row["text"])
            self._store_document(db, str(row["id"]) if "id" in row else short_digest(found), found)
            count += 1
        if self._manifest.adapter.composes:
            return None
        return self._only_text(db, texts, found, count)

    def _only_text(self, db: sqlite3.Connection, texts: TextsTable, found: str, count: int) -> str:
        where = f"{self._manifest.path}: texts"
        if count != 1:
            raise UsageError(
                f"{where}: {count} rows fit its filter, not one", fix="narrow texts.filter"
            )
        digest = hashlib.sha256(found.encode()).hexdigest()
        if texts.sha256 not in (None, digest):
            raise UsageError(
                f"{where}.sha256: the text found has {digest[:12]}…: upstream changed it",
                fix="the revision that it was written for, or the digest of a text you trust",
            )
        return self._store_context(db, [short_digest(found)])

    def _read_questions(self, db: sqlite3.Connection, common: str | None) -> tuple[list[str], str]:
        file = self._manifest.file
        digest, ids = hashlib.sha256(), []
        for n, row in enumerate(self._rows(file.source, file.columns, file.filter, self._revision)):
            with self._row(n):
                item = self._manifest.adapter.item(row)
                context = common or self._context_of(db, item, n)
            name = item.id or str(n)
            length = item.length or _bucket(self._contexts[context])
            stored = Stored(
                name, context, self._seal.close(item.query), item.answer_type, item.options,
                item.kind, length, item.tags,
            )  # fmt: skip
            values = (
                *stored[:4],
                json.dumps(item.options),
                *stored[5:7],
                json.dumps(dict(item.tags)),
            )
            try:
                db.execute("INSERT INTO questions VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", (n, *values))
            except sqlite3.IntegrityError:
                raise UsageError(
                    f"{self._manifest.path}: columns.id: {name!r} stands there twice",
                    fix="name another column, or none",
                ) from None
            digest.update(json.dumps(values).encode())
            ids.append(name)
        if not ids:
            raise UsageError(
                f"{self._manifest.path}: no row fits", fix="correct [filter] or the split"
            )
        digest.update(self._texts_digest.digest())
        return ids, digest.hexdigest()

    def _context_of(self, db: sqlite3.Connection, item: Item, n: int) -> str:
        adapter = self._manifest.adapter
        if adapter.composes:
            return self._store_context(db, self._composed(item, n))
        if item.context is None:
            raise ValueError("no context, and the manifest has no [texts]")
        name = short_digest(item.context)
        if name not in self._sizes:
            self._store_document(db, name, item.context)
        return self._store_context(db, [name])

    def _composed(self, item: Item, n: int) -> list[str]:
        """The documents that the context must hold and others drawn at random, in random order."""
        missing = [doc for doc in item.documents if doc not in self._sizes]
        if missing:
            raise ValueError(f"document {self._seal.close(missing[0])!r} is not in [texts]")
        rng = random.Random(f"{self._manifest.name}/{item.id or n}")
        needed = set(item.documents)
        others = [doc for doc in self._sizes if doc not in needed]
        room = max(0, min(self._manifest.adapter.composes - len(needed), len(others)))
        chosen = [*item.documents, *rng.sample(others, room)]
        rng.shuffle(chosen)
        return chosen

    def _store_document(self, db: sqlite3.Connection, name: str, text: str) -> None:
        tokens = count_tokens(text)
        db.execute("INSERT OR REPLACE INTO documents VALUES (?, ?, ?)", (name, text, tokens))
        self._sizes[name] = tokens
        # Contexts are named by their documents' names, so the texts count by themselves.
        self._texts_digest.update(f"{name}:{hashlib.sha256(text.encode()).hexdigest()}".encode())

    def _store_context(self, db: sqlite3.Connection, documents: list[str]) -> str:
        listed = json.dumps(documents)
        name = short_digest(listed)
        if name not in self._contexts:
            self._contexts[name] = sum(self._sizes[doc] for doc in documents)
            values = (name, self._seal.close(listed), self._contexts[name])
            db.execute("INSERT INTO contexts VALUES (?, ?, ?)", values)
        return name

    def _read_gold(self, db: sqlite3.Connection, ids: list[str]) -> str:
        file = self._manifest.file
        digest, count = hashlib.sha256(), 0
        # The row's own name is read along, to prove that the two reads go in step.
        named = {"id": file.columns["id"]} if "id" in file.columns else {}
        rows = self._rows(file.source, named | file.gold, file.filter, self._revision)
        for count, row in enumerate(rows, 1):
            with self._row(count - 1, flat(file.gold)):
                answers = self._manifest.adapter.gold(row)
                if count > len(ids) or (
                    "id" in row and not ids[count - 1].endswith(str(row["id"]))
                ):
                    raise ValueError("questions and gold answers are not in step")
            stored = json.dumps(answers)
            db.execute("INSERT INTO gold VALUES (?, ?)", (ids[count - 1], self._seal.close(stored)))
            digest.update(json.dumps([ids[count - 1], stored]).encode())
        if count != len(ids):
            raise UsageError(
                f"{self._manifest.path}: {len(ids)} questions, but {count} gold answers",
                fix="fetch again",
            )
        return digest.hexdigest()

    def _rows(
        self, source: SourceTable, columns: Mapping[str, Any], where: Any, revision: str | None
    ) -> Iterator[Mapping[str, Any]]:
        is_texts = (
            self._manifest.file.texts is not None and source is self._manifest.file.texts.source
        )
        rows = read_rows(self._manifest, source, columns, where, revision)
        if is_texts or not self._manifest.sealed:
            yield from rows
            return
        for n, row in enumerate(rows):
            with self._row(n):
                opened = self._seal.opened(row, skip="id")
            yield opened

    @contextmanager
    def _row(self, n: int, columns: Sequence[str] = ()) -> Iterator[None]:
        """Say which row cannot be read, and from which columns where they are few."""
        try:
            yield
        except (ValueError, KeyError, TypeError, IndexError) as error:
            # Of a sealed dataset nothing that was opened may stand in a message.
            what = type(error).__name__ if self._manifest.sealed else str(error)
            where = f" (column {', '.join(columns)})" if columns else ""
            raise UsageError(
                f"{self._manifest.path}: row {n}: {what}{where}",
                fix="correct the columns in the manifest, or the row",
            ) from None


def _revisions(manifest: Manifest, old: Lock | None, pin: bool) -> tuple[str | None, str | None]:
    texts = manifest.file.texts
    sources = [
        ("source", manifest.file.source, old and old.revision),
        ("texts.source", texts.source if texts else None, old and old.texts_revision),
    ]
    found: list[str | None] = []
    for where, source, locked in sources:
        if source is None or source.hub is None:
            found.append(None)
        elif revision := source.revision or locked:
            found.append(revision)
        elif pin:
            found.append(head_revision(source.hub, f"fleet-eval fetch {manifest.name} --pin"))
        else:
            raise UsageError(
                f"{manifest.path}: {where}.revision: is missing and nothing is locked yet",
                fix=f"fleet-eval fetch {manifest.name} --pin, which takes the current commit",
            )
    return found[0], found[1]


def _check_lock(manifest: Manifest, lock: Lock) -> None:
    relock = f"fleet-eval fetch {manifest.name} --relock"
    if lock.manifest != manifest.digest:
        raise UsageError(f"{manifest.path} was changed since {manifest.lock_path.name}", fix=relock)
    texts = manifest.file.texts
    named = (manifest.file.source.revision, texts and texts.source.revision)
    for revision, locked in zip(named, (lock.revision, lock.texts_revision), strict=True):
        if revision not in (None, locked):
            raise UsageError(
                f"{manifest.path} names another revision than {manifest.lock_path.name}", fix=relock
            )
    for path in manifest.local_files:
        if lock.files.get(path.name) != _sha256(path):
            raise UsageError(f"{path} was changed since {manifest.lock_path.name}", fix=relock)


def _compare(manifest: Manifest, old: Lock, new: Lock) -> None:
    for key, was in asdict(old).items():
        now = getattr(new, key)
        if now != was and key != "files":
            raise UsageError(
                f"Dataset {manifest.name!r} is not what {manifest.lock_path} locked:"
                f" {key} was {str(was)[:12]}, is {str(now)[:12]}",
                fix=f"fleet-eval fetch {manifest.name} --relock",
            )


def _write_lock(manifest: Manifest, lock: Lock) -> None:
    path = manifest.lock_path
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(f".lock.{os.getpid()}")
    draft.write_text(json.dumps(asdict(lock), indent=2) + "\n", encoding="utf-8")
    draft.replace(path)


def _bucket(tokens: int) -> int:
    """The power of two at or above `tokens`, at least 1,024."""
    return max(1024, 1 << (tokens - 1).bit_length())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
