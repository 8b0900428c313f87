"""Reads the rows of a manifest through Hugging Face's `datasets`, only the columns it names."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fleet_rlm.errors import DataError, UsageError, boundary, nearest
from fleet_rlm.suites.manifest import (
    FORMATS,
    Filter,
    Manifest,
    Part,
    SourceTable,
    flat,
    parts,
    source_files,
    source_format,
)

Columns = Mapping[str, str | list[str]]


def read_rows(
    manifest: Manifest, source: SourceTable, columns: Columns, where: Filter, revision: str | None
) -> Iterator[dict[str, Any]]:
    """The rows of a source in order, each as role -> value, with "_config" and "_split".

    Parquet files are read by column and row group; of JSON and CSV the rest of a row is dropped as
    soon as it is parsed.

    Args:
        manifest: for messages and places.
        source: what to read.
        columns: role -> column or columns; role "tags" gives column -> value.
        where: rows with other values are left out.
        revision: commit of a Hugging Face dataset.

    Raises:
        UsageError: the source cannot be reached or read, or lacks a column.
    """
    wanted = [*dict.fromkeys([*flat(dict(columns)), *where])]
    for part in parts(source):
        with _readable(manifest, source):
            for row in _open(manifest, source, part, wanted, where, revision):
                if not all(_fits(row.get(name), value) for name, value in where.items()):
                    continue
                yield {role: _value(role, names, row) for role, names in columns.items()} | {
                    "_config": part.config,
                    "_split": part.split,
                }


def head_revision(manifest: Manifest, source: SourceTable) -> str:
    """The commit that the dataset's main branch is at.

    Raises:
        UsageError: it cannot be reached.
    """
    # datasets is built on it, and has no call of its own for this.
    from huggingface_hub import HfApi

    with _readable(manifest, source):
        revision = HfApi().dataset_info(str(source.hub)).sha
    if not revision:
        raise UsageError(f"{manifest.path}: {source.hub} names no commit")
    return revision


def local_columns(path: Path) -> list[str]:
    """The columns of a JSONL, JSON, CSV or Parquet file.

    Raises:
        UsageError: its name tells no format, or it cannot be read as such.
    """
    import datasets

    kind = FORMATS.get(path.suffix)
    if kind is None:
        raise UsageError(f"The name of {path} does not end in {', '.join(FORMATS)}.")
    if kind == "csv":
        return _header(str(path))
    _be_quiet()
    try:
        with boundary(DataError, f"reading {path}"):
            found = datasets.load_dataset(kind, data_files=str(path), split="train", streaming=True)
            return list(found.column_names or next(iter(found), {}))
    except DataError as error:
        raise UsageError(error.message, fix="correct the file") from error


def _open(
    manifest: Manifest,
    source: SourceTable,
    part: Part,
    columns: list[str],
    where: Filter,
    revision: str | None,
) -> Iterator[dict[str, Any]]:
    import datasets

    _be_quiet()
    files = [str(path) for path in source_files(source, part, manifest.path)]
    kind = source_format(source, manifest.path)
    options: dict[str, Any] = {"split": part.split, "streaming": True}
    if source.hub:
        options |= {"path": source.hub, "name": part.config, "revision": revision}
        paths = [name.format(config=part.config or "", split=part.split) for name in source.files]
        options |= {"data_files": paths, "split": "train"} if paths else {}
    else:
        options |= {"path": kind, "data_files": files, "split": "train"}
    if kind == "csv":
        # As texts, so that 007 stays 007; the header is read here, to name what is missing.
        for name in files:
            _check_columns(manifest, source, _header(name), columns)
        texts = datasets.Features({name: datasets.Value("string") for name in columns})
        found = datasets.load_dataset(**options, usecols=columns, features=texts)
    else:
        found = datasets.load_dataset(**options)
        names = found.column_names or list(next(iter(found), {}))
        _check_columns(manifest, source, names, columns)
    if kind == "parquet":
        options |= {"columns": columns, "filters": _pushed(where)}
        found = datasets.load_dataset(**options)
    for row in found:
        yield {name: row.get(name) for name in columns}


def _be_quiet() -> None:
    import datasets

    # What it logs of a broken file stands in our one line, too.
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    # Otherwise every load sends a HEAD request to the Hub, for one's own files too.
    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False


def _header(path: str) -> list[str]:
    with Path(path).open(encoding="utf-8", newline="") as file:
        return next(csv.reader(file), [])


def _check_columns(
    manifest: Manifest, source: SourceTable, names: list[str], columns: list[str]
) -> None:
    if not names:
        raise UsageError(
            f"{manifest.path}: {source.hub or source.path} holds no row",
            fix="name data with rows in its [source]",
        )
    for column in columns:
        if column not in names:
            raise UsageError(
                f"{manifest.path}: column {column!r} is not in the data. {nearest(column, names)}",
                fix=f"correct the column's name in {manifest.path.name}",
            )


def _pushed(where: Filter) -> list[tuple[str, str, Any]] | None:
    pushed = [
        (name, "in", value) if isinstance(value, list) else (name, "==", value)
        for name, value in where.items()
    ]
    return pushed or None


def _fits(found: Any, wanted: Any) -> bool:
    return found in wanted if isinstance(wanted, list) else bool(found == wanted)


def _value(role: str, names: str | list[str], row: Mapping[str, Any]) -> Any:
    if role == "tags":
        return {name: row[name] for name in ([names] if isinstance(names, str) else names)}
    return row[names] if isinstance(names, str) else [row[name] for name in names]


@contextmanager
def _readable(manifest: Manifest, source: SourceTable) -> Iterator[None]:
    try:
        with boundary(DataError, f"{manifest.path}: reading {source.hub or source.path}"):
            yield
    except DataError as error:
        if source.hub and isinstance(error.__cause__, OSError):
            raise UsageError(
                f"Dataset {manifest.name!r} ({source.hub}) cannot be reached from here",
                fix=f"fleet-eval fetch {manifest.name}, on a machine with network;"
                " or set source.path to a copy in a manifest of your own",
            ) from error
        raise UsageError(error.message, fix="correct the file or the manifest") from error
