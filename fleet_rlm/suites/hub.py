"""Reads the rows of a manifest through Hugging Face's `datasets`, only the columns it names."""

from __future__ import annotations

import csv
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
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


def head_revision(hub: str, retry: str) -> str:
    """The commit that the main branch of a Hugging Face dataset is at.

    Args:
        hub: "owner/name".
        retry: the command to give again on a machine with network, for messages.

    Raises:
        UsageError: it cannot be reached, or is not there.
    """
    # datasets is built on it, and has no call of its own for this.
    from huggingface_hub import HfApi

    _be_quiet()
    with _reached(hub, retry), boundary(DataError, f"reading {hub}"):
        revision = HfApi().dataset_info(hub).sha
    if not revision:
        raise UsageError(f"{hub} has no commit", fix="name another dataset")
    return revision


def local_columns(path: Path) -> list[str]:
    """The columns of a JSONL, JSON, CSV or Parquet file.

    Raises:
        UsageError: its name tells no format, or it cannot be read as such.
    """
    kind = FORMATS.get(path.suffix)
    if kind is None:
        raise UsageError(f"The name of {path} does not end in {', '.join(FORMATS)}.")
    if kind == "csv":
        return _header(str(path))
    try:
        return _columns(f"reading {path}", path=kind, data_files=str(path), split="train")
    except DataError as error:
        raise UsageError(error.message, fix="correct the file") from error


def hub_columns(hub: str, revision: str, config: str | None, split: str) -> list[str]:
    """The columns of a Hugging Face dataset.

    Args:
        hub: "owner/name".
        revision: its commit.
        config: its configuration, where it has several.
        split: "train", "test" or as its page names it.

    Raises:
        UsageError: it cannot be reached or read, or lacks the configuration or the split.
    """
    _refuse_namesake(hub)
    given = {"path": hub, "name": config, "revision": revision, "split": split}
    try:
        with _reached(hub, f"fleet-eval init {hub}"):
            return _columns(f"reading {hub}", **given)
    except DataError as error:
        raise UsageError(error.message, fix="--config and --split as its page has them") from error


def _columns(doing: str, **given: Any) -> list[str]:
    import datasets

    _be_quiet()
    with boundary(DataError, doing):
        found = datasets.load_dataset(**given, streaming=True)
        return list(found.column_names or next(iter(found), {}))


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
        _refuse_namesake(source.hub)
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


def _refuse_namesake(hub: str) -> None:
    # `datasets` looks here first, and would read a folder of that name without a word.
    if Path(hub).exists():
        raise UsageError(
            f"./{hub} stands in the way of the Hugging Face dataset of that name",
            fix="the same command from another folder, or source.path to read the files here",
        )


def _be_quiet() -> None:
    import datasets
    import huggingface_hub

    # What they log of a broken file or a failed request stands in our one line, too.
    datasets.logging.set_verbosity(logging.CRITICAL)
    huggingface_hub.logging.set_verbosity(logging.CRITICAL)
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
    retry = f"fleet-eval fetch {manifest.name}"
    reached = _reached(source.hub, retry) if source.hub else nullcontext()
    doing = f"{manifest.path}: reading {source.hub or source.path}"
    try:
        with reached, boundary(DataError, doing):
            yield
    except DataError as error:
        raise UsageError(error.message, fix="correct the file or the manifest") from error


@contextmanager
def _reached(hub: str, retry: str) -> Iterator[None]:
    """Tell a dataset that is not there, or not open to us, from a network that is not."""
    try:
        yield
    except DataError as error:
        cause = error.__cause__
        status = getattr(getattr(cause, "response", None), "status_code", None)
        if isinstance(cause, FileNotFoundError) or status in (401, 403, 404):
            raise UsageError(
                error.message,
                fix="correct its name, commit and files; export HF_TOKEN=... for one that is gated",
            ) from error
        if isinstance(cause, OSError):
            raise UsageError(
                f"Dataset {hub} cannot be reached from here",
                fix=f"{retry}, on a machine with network;"
                " or set source.path to a copy in a manifest of your own",
            ) from error
        raise
