"""Dataset manifests: where rows come from, which columns are read, and which side reads them."""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, ValidationError

from fleet_rlm.errors import UsageError, nearest, not_utf8, unreadable
from fleet_rlm.project import find_content, project_dir
from fleet_rlm.suites.adapters import ADAPTERS, Adapter
from fleet_rlm.suites.table import Name, Table, explain

Value = str | int | bool
Filter = dict[str, Value | list[Value]]
"""Column -> the value, or the values, that a row must have there."""

Format = Literal["parquet", "json", "csv"]
_REVISION = re.compile(r"[0-9a-f]{40}")
FORMATS: dict[str, Format] = {
    ".parquet": "parquet", ".json": "json", ".jsonl": "json", ".csv": "csv",
}  # fmt: skip


class DatasetTable(Table):
    """`[dataset]`."""

    name: Name
    description: str = ""
    licence: str
    homepage: str = ""
    size: str = ""
    """How much there is and how much a fetch reads, in words."""

    adapter: str = "rows"
    """How a row becomes a question; "rows" takes the columns as they are."""

    canary: str | None = None
    """Key of a sealed dataset: its texts are stored as they came and opened in memory only."""


class SourceTable(Table):
    """`[source]` or `[texts.source]`: a Hugging Face dataset, or files of one's own."""

    hub: str | None = None
    revision: str | None = None
    """Commit of the dataset's repository, 40 hex digits."""

    config: list[str] = Field(default_factory=list)
    split: list[str] = Field(default_factory=lambda: ["train"])
    files: list[str] = Field(default_factory=list)
    """Files inside the repository, where it has no configurations."""

    path: str | None = None
    """Files on this machine, a glob seen from the manifest; may hold {config} and {split}."""

    format: Format | None = None


class TextsTable(Table):
    """`[texts]`: a second dataset that holds the contexts."""

    source: SourceTable
    columns: dict[str, str]
    filter: Filter = Field(default_factory=dict)
    sha256: str | None = None
    """Of the text that is to be found there, where there is one only."""


class ManifestFile(Table):
    """The whole file."""

    dataset: DatasetTable
    source: SourceTable
    columns: Annotated[dict[str, str | list[str]], Field(min_length=1)]
    """Role -> column; with [gold] and [filter] all that is ever read."""

    gold: Annotated[dict[str, str | list[str]], Field(min_length=1)]
    """The same for the scorer's side, read by itself."""

    filter: Filter = Field(default_factory=dict)
    texts: TextsTable | None = None


class Part(NamedTuple):
    """One table of rows: a configuration and a split."""

    config: str | None
    split: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """A checked manifest. Made by `load_manifest`."""

    name: str
    path: Path
    file: ManifestFile
    adapter: Adapter
    project: Path

    @property
    def digest(self) -> str:
        """sha256 of all that decides which rows are read and what becomes of them."""
        shaping = self.file.model_dump(mode="json", exclude_none=True)
        for told in ("description", "licence", "homepage", "size"):
            shaping["dataset"].pop(told, None)
        # The revision is the lock's, and where files lie is not what is in them.
        for source in (shaping["source"], shaping.get("texts", {}).get("source", {})):
            for place in ("revision", "path"):
                source.pop(place, None)
        shaping["adapter"] = f"{self.adapter.name}-{self.adapter.version}"
        return hashlib.sha256(json.dumps(shaping, sort_keys=True).encode()).hexdigest()

    @property
    def sealed(self) -> bool:
        """Whether its rows are kept out of logs and traces: it has a canary."""
        return self.file.dataset.canary is not None

    @property
    def is_local(self) -> bool:
        """Whether everything is on this machine, so that no fetch is owed."""
        texts = self.file.texts
        return bool(self.file.source.path) and (texts is None or bool(texts.source.path))

    @property
    def lock_path(self) -> Path:
        """Beside a manifest of the project's own; in ./datasets for a built-in one."""
        inside = self.path.is_relative_to(self.project)
        folder = self.path.parent if inside else self.project / "datasets"
        return folder / f"{self.name}.lock"

    @property
    def local_files(self) -> list[Path]:
        """Every file of one's own that is read, sorted."""
        sources = [self.file.source, *([self.file.texts.source] if self.file.texts else [])]
        found = {
            path
            for source in sources
            for part in parts(source)
            for path in source_files(source, part, self.path)
        }
        return sorted(found)


def parts(source: SourceTable) -> list[Part]:
    """The tables that a source is made of, in order."""
    configs: list[str | None] = [*source.config] or [None]
    return [Part(config, split) for config, split in product(configs, source.split)]


def source_files(source: SourceTable, part: Part, manifest: Path) -> list[Path]:
    """The files of one table of a local source.

    Raises:
        UsageError: there is none.
    """
    if source.path is None:
        return []
    pattern = source.path.format(config=part.config or "", split=part.split)
    place = Path(pattern).expanduser()
    root = place.anchor or manifest.parent
    inside = place.relative_to(place.anchor) if place.anchor else place
    found = sorted(path.resolve() for path in Path(root).glob(str(inside)))
    if not found:
        raise UsageError(f"{manifest}: source.path: no file {pattern!r}", fix="correct the path")
    return found


def source_format(source: SourceTable, manifest: Path) -> Format | None:
    """What the files are, as stated or by their names; None leaves it to `datasets`."""
    names = source.files or ([source.path] if source.path else [])
    found = source.format or (FORMATS.get(Path(names[0]).suffix) if names else None)
    if names and found is None:
        raise UsageError(
            f"{manifest}: source.format: {names[0]!r} does not tell it",
            fix='format = "parquet", "json" (also JSON lines) or "csv"',
        )
    return found


def find_manifest(name: str, project: Path | None = None) -> Manifest:
    """The manifest that a name or path means; a project's hides a built-in one.

    Raises:
        UsageError: there is none, or see `load_manifest`.
    """
    project = project or project_dir(Path.cwd())
    return load_manifest(find_content("datasets", name, project).path, project)


def load_manifest(path: Path, project: Path) -> Manifest:
    """Read and check a manifest.

    Raises:
        UsageError: one line with file, key and mend: unreadable, malformed, an unknown key, no
            source or two, a column that the adapter needs and the manifest does not name.
    """
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise unreadable(f"Manifest {path}", error) from error
    except UnicodeDecodeError as error:
        raise not_utf8(f"Manifest {path}", path, error) from error
    except tomllib.TOMLDecodeError as error:
        raise UsageError(
            f"{path}: not valid TOML: {error}", fix="correct the file there"
        ) from error
    for table in (raw.get("source"), (raw.get("texts") or {}).get("source")):
        _listed(table)
    try:
        file = ManifestFile.model_validate(raw)
    except ValidationError as error:
        raise explain(error, str(path), raw, keys=_keys) from error
    adapter = ADAPTERS.get(file.dataset.adapter)
    if adapter is None:
        hint = nearest(file.dataset.adapter, ADAPTERS)
        raise UsageError(
            f"{path}: dataset.adapter: no adapter {file.dataset.adapter!r}. {hint}",
            fix='adapter = "rows", which takes the columns as they are',
        )
    _check(file, adapter, path)
    return Manifest(
        name=file.dataset.name, path=path.absolute(), file=file, adapter=adapter, project=project
    )


def _keys(place: tuple[str | int, ...], _raw: dict[str, Any]) -> list[str]:
    match place:
        case ("dataset", _):
            return list(DatasetTable.model_fields)
        case ("source", _) | ("texts", "source", _):
            return list(SourceTable.model_fields)
        case ("texts", _):
            return list(TextsTable.model_fields)
        case _:
            return list(ManifestFile.model_fields)


def _listed(source: Any) -> None:
    # One name may stand for a list.
    for key in ("config", "split", "files"):
        if isinstance(source, dict) and isinstance(source.get(key), str):
            source[key] = [source[key]]


def _check(file: ManifestFile, adapter: Adapter, path: Path) -> None:
    sources = {"source": file.source} | ({"texts.source": file.texts.source} if file.texts else {})
    for where, source in sources.items():
        if (source.hub is None) == (source.path is None):
            raise UsageError(
                f"{path}: {where}: give either 'hub' or 'path'",
                fix='hub = "owner/name" of Hugging Face, or path = "../data/file.jsonl"',
            )
        if source.revision is not None and not _REVISION.fullmatch(source.revision):
            raise UsageError(
                f"{path}: {where}.revision: {source.revision!r} is no commit of 40 hex digits",
                fix="copy it from the dataset's history on huggingface.co",
            )
        source_format(source, path)
    for table, known, needed in (
        ("columns", adapter.roles, adapter.needs),
        ("gold", adapter.gold_roles, adapter.gold_needs),
    ):
        given = getattr(file, table)
        missing = [role for role in needed if role not in given]
        if missing:
            raise UsageError(
                f"{path}: {table}.{missing[0]}: is missing",
                fix=f'{missing[0]} = "COLUMN" below [{table}]',
            )
        for role in given:
            if known is not None and role not in known:
                raise UsageError(
                    f"{path}: {table}.{role}: unknown role. {nearest(role, known)}",
                    fix="correct the role, or list the column among tags",
                )
    asked, kept = ({**table, "id": []} for table in (file.columns, file.gold))
    leaked = set(flat(asked)) & set(flat(kept))
    if leaked and not adapter.shares_columns:
        raise UsageError(
            f"{path}: columns: {leaked.pop()!r} is a gold column: the program would read it",
            fix="take it out of [columns]",
        )


def flat(columns: dict[str, Any]) -> list[str]:
    """Every column of a table of roles, once, in order."""
    found: dict[str, None] = {}
    for value in columns.values():
        for column in [value] if isinstance(value, str) else value:
            found[column] = None
    return list(found)


SCAFFOLD = """\
# Data of your own. `fleet-eval fetch {name}` reads it; a suite's task names it: dataset = "{name}".
[dataset]
name = "{name}"
licence = "{licence}"

[source]
{source}

# Role = column: all that the program's side reads. Also: id, kind, options, length (a number of
# tokens), and tags (a list of columns that a task can filter by: where = {{ year = 2024 }}).
[columns]
context = "{context}"
question = "{question}"

# Read by itself, for the scorer.
[gold]
answer = "{answer}"
"""


def is_hub_id(source: str) -> bool:
    """Whether `source` reads as "owner/name" of a Hugging Face dataset, not as files."""
    looks = re.fullmatch(r"[\w.-]*\w/[\w.-]+", source) is not None
    return looks and Path(source).suffix not in FORMATS


def write_manifest(
    folder: Path,
    name: str,
    *,
    source: str,
    revision: str | None = None,
    config: str | None = None,
    split: str | None = None,
    context: str = "context",
    question: str = "question",
    answer: str = "answer",
    licence: str = "unknown",
) -> Path:
    """Write `folder`/NAME.toml for data of one's own.

    Args:
        folder: the project's `datasets` folder; made if absent.
        name: of the dataset.
        source: a path or glob of JSONL, JSON, CSV or Parquet files, seen from `folder`; or a
            Hugging Face dataset, "owner/name", which needs `revision`.
        revision: commit of the Hugging Face dataset.
        config: its configuration, where it has several.
        split: its split; "train" when absent.
        context: column of the text to answer from.
        question: column of the question.
        answer: column of the gold answer, a text or a list of texts.
        licence: of the data.

    Returns:
        The file.

    Raises:
        UsageError: the file exists already, or what was given makes no manifest.
    """
    path = folder / f"{name}.toml"
    if path.exists():
        raise UsageError(f"{path} exists already", fix=f"edit it, or rm {path}")
    if is_hub_id(source):
        told = {"hub": source, "revision": revision, "config": config, "split": split}
        lines = [f"{key} = {json.dumps(value)}" for key, value in told.items() if value]
    else:
        lines = [f"path = {json.dumps(source)}"]
    text = SCAFFOLD.format(
        name=name,
        licence=licence,
        source="\n".join(lines),
        context=context,
        question=question,
        answer=answer,
    )
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    try:
        load_manifest(path, folder.parent)
    except UsageError:
        path.unlink()
        raise
    return path
