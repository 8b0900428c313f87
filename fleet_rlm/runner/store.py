"""A run's folder: what ran, one fsynced line per finished sample, and the trajectories."""

from __future__ import annotations

import contextlib
import fcntl
import gc
import gzip
import json
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from operator import itemgetter
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any

import orjson

from fleet_rlm.errors import UsageError, one_line
from fleet_rlm.ledger import Usage
from fleet_rlm.runner.record import FIELDS, Key, Record, migrate, total_usage
from fleet_rlm.runner.record import SCHEMA as RECORD_SCHEMA

if TYPE_CHECKING:
    from fleet_rlm.runner.attempt import Outcome

SCHEMA = 2
"""Version of a run's folder, in `run.json`; a line of `records.jsonl` has its own."""


class RunStore:
    """The one writer of a run folder; a second process that opens the same folder is refused.

    Args:
        folder: the run's folder, made when absent.

    Raises:
        UsageError: the folder cannot be written, is in use, or holds records that cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._records: list[Record] = []
        self.abandoned = Abandoned()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "trajectories").mkdir(exist_ok=True)
            self._lock = (folder / ".lock").open("a")
        except OSError as error:
            raise _unwritable(folder, error) from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            raise UsageError(
                f"Run folder {folder} is in use by another process; wait for it, or use --out."
            ) from None
        try:
            self._records = repair_and_read(folder / "records.jsonl")
            self._file: IO[bytes] = (folder / "records.jsonl").open("ab")
            self.abandoned = read_abandoned(folder)
            self._events: IO[bytes] = (folder / "events.jsonl").open("ab")
        except OSError as error:
            self.close()
            raise _unwritable(folder, error) from None
        except UsageError:
            self.close()
            raise

    @property
    def records(self) -> list[Record]:
        """Every record so far, in the order written."""
        return list(self._records)

    @property
    def ended(self) -> int:
        """Attempts that have ended, with a record or without."""
        return len(self._records) + self.abandoned.attempts

    def append(self, record: Record) -> None:
        """Write one record; it is on disk when this returns.

        Raises:
            UsageError: the disk refused it.
        """
        self._write(self._file, record.to_json())
        self._records.append(record)

    def abandon(self, key: Key, why: str, usage: Mapping[str, Mapping[str, float]]) -> None:
        """Note what an attempt spent that ended without a record; its sample stays owed.

        Raises:
            UsageError: the disk refused it.
        """
        self.note("abandoned", sample=key.sample, epoch=key.epoch, why=why, usage=usage)
        self.abandoned = self.abandoned.add(usage)

    def note(self, event: str, **data: Any) -> None:
        """Write down something that happened to the run.

        Raises:
            UsageError: the disk refused it.
        """
        at = datetime.now(UTC).isoformat(timespec="milliseconds")
        self._write(self._events, {"at": at, "event": event, **data})

    @property
    def spent(self) -> Usage:
        """What all attempts so far have cost, those without a record included."""
        return _spent(self._records, self.abandoned)

    def _write(self, file: IO[bytes], line: Mapping[str, Any]) -> None:
        try:
            file.write(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))
            file.flush()
            # 0.2 ms on a local disk: a killed run loses at most the line being written.
            os.fsync(file.fileno())
        except OSError as error:
            raise _unwritable(self.folder, error) from None

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Write `run.json`, `summary.json` and the like, whole or not at all."""
        text = json.dumps(content, ensure_ascii=False, indent=2) + "\n"
        write_atomic(self.folder / name, text.encode())

    def close(self) -> None:
        """Let another process have the folder."""
        for name in ("_file", "_events"):
            if hasattr(self, name):
                with contextlib.suppress(OSError):  # a full disk has been reported already
                    getattr(self, name).close()
        self._lock.close()

    def __enter__(self) -> RunStore:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


COLUMNS = tuple(name for name in FIELDS if name != "usage")
"""Fields that `read_columns` gives as they are stored."""


def read_spent(folder: Path) -> Usage:
    """What a stored run has cost, whoever is writing it.

    Raises:
        UsageError: a record cannot be read.
    """
    return _spent(read_records(folder / "records.jsonl"), read_abandoned(folder))


def _spent(records: Iterable[Record], abandoned: Abandoned) -> Usage:
    recorded = (total_usage(record.usage) for record in records if not record.rescored)
    return sum(recorded, total_usage(abandoned.usage))


SUMMED = ("calls", "input_tokens", "cached_tokens", "output_tokens", "usd")
"""Usage that it gives summed over roles."""


@dataclass(frozen=True, slots=True)
class Abandoned:
    """What attempts spent that ended without a record: cut off, or over a cap of the run."""

    attempts: int = 0
    usage: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """By role."""

    def add(self, usage: Mapping[str, Mapping[str, float]]) -> Abandoned:
        """With one more attempt."""
        roles = {*self.usage, *usage}
        merged = {
            role: (
                Usage.from_json(self.usage.get(role, {})) + Usage.from_json(usage.get(role, {}))
            ).to_json()
            for role in roles
        }
        return Abandoned(self.attempts + 1, merged)


def read_abandoned(folder: Path) -> Abandoned:
    """What `events.jsonl` says of attempts without a record; lines that a kill tore are skipped."""
    found = Abandoned()
    try:
        lines = (folder / "events.jsonl").read_bytes().splitlines()
    except FileNotFoundError:
        return found
    for line in lines:
        with contextlib.suppress(ValueError, KeyError, TypeError):
            event = orjson.loads(line)
            if event["event"] == "abandoned":
                found = found.add(event["usage"])
    return found


def write_trajectory(folder: Path, outcome: Outcome) -> Outcome:
    """Store what an attempt did, compressed; its record names the file.

    Raises:
        UsageError: the disk refused it.
    """
    if outcome.record is None or outcome.trajectory is None:
        return outcome
    key = outcome.key
    relative = f"trajectories/{key.sample}.{key.epoch}.json.gz"
    # Level 1: a third of the time of level 6 for a tenth more bytes.
    data = gzip.compress(orjson.dumps(outcome.trajectory), compresslevel=1, mtime=0)
    write_atomic(folder / relative, data)
    return replace(outcome, record=replace(outcome.record, trajectory=relative), trajectory=None)


def read_trajectory(folder: Path, record: Record) -> dict[str, Any]:
    """What an attempt did, as stored.

    Raises:
        UsageError: there is none, or it cannot be read.
    """
    if record.trajectory is None:
        raise UsageError(f"Sample {record.sample} of {folder} has no trajectory.")
    path = folder / record.trajectory
    try:
        content: dict[str, Any] = orjson.loads(gzip.decompress(path.read_bytes()))
    except (OSError, EOFError, ValueError) as error:
        raise UsageError(f"Cannot read trajectory {path}: {one_line(str(error), 120)}") from None
    return content


def repair_and_read(path: Path) -> list[Record]:
    """Read every record, cutting off a last line that a kill left torn; for the writer alone.

    Raises:
        UsageError: as `read_records`.
    """
    with contextlib.suppress(FileNotFoundError), path.open("r+b") as file:
        data = file.read()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            file.truncate(whole)
            os.fsync(file.fileno())
    return read_records(path)


def read_records(path: Path) -> list[Record]:
    """Read every whole record; the file stays as it is, also while a run writes it.

    Raises:
        UsageError: a line in the middle cannot be read; it is named by its number.
    """
    records = []
    for number, line in enumerate(_whole_lines(path), 1):
        try:
            records.append(Record.from_json(orjson.loads(line)))
        except (ValueError, TypeError) as error:
            raise UsageError(
                f"{path}:{number} is no record: {one_line(str(error), 120)}",
                fix=f"move {path.parent} away and run again",
            ) from None
    return records


def _whole_lines(path: Path) -> list[bytes]:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return []
    return data[: data.rfind(b"\n") + 1].splitlines()


def read_columns(path: Path, fields: Sequence[str] = COLUMNS) -> dict[str, list[Any]]:
    """The records that count, by field; usage summed over roles, as `SUMMED`.

    Made for a hundred thousand of them: no line outlives its own reading, so that neither memory
    nor the garbage collector grows with what is not asked for.

    Args:
        path: of `records.jsonl`.
        fields: those wanted, of `COLUMNS`.

    Raises:
        UsageError: a line cannot be read; it is named by its number.
    """
    with _without_collection():
        last = _read_rows(path, fields)
    names = (*fields, *SUMMED)
    columns = zip(*last.values(), strict=True) if last else ((),) * len(names)
    return {name: list(column) for name, column in zip(names, columns, strict=True)}


@contextlib.contextmanager
def _without_collection() -> Iterator[None]:
    # Records have no cycles: looking for some takes a third of the time of reading them.
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _read_rows(path: Path, fields: Sequence[str]) -> dict[tuple[str, int], tuple[Any, ...]]:
    last: dict[tuple[str, int], tuple[Any, ...]] = {}
    for number, line in enumerate(_whole_lines(path), 1):
        try:
            found = orjson.loads(line)
            row = found if found.pop("schema", 1) == RECORD_SCHEMA else migrate(found)
            spent = _summed(row["usage"].values())
            last[row["sample"], row["epoch"]] = (*map(row.get, fields), *spent)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise UsageError(f"{path}:{number} is no record: {one_line(str(error), 120)}") from None
    return last


_USAGE = itemgetter(*SUMMED)


def _summed(roles: Collection[Mapping[str, float]]) -> Iterable[float]:
    """What all roles spent together, in the order of `SUMMED`."""
    return map(sum, zip(*map(_USAGE, roles), strict=True)) if roles else [0] * len(SUMMED)


def read_json(path: Path) -> dict[str, Any] | None:
    """The content of `run.json`, `summary.json` and the like; None when there is none.

    Raises:
        UsageError: it cannot be read.
    """
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UsageError(f"Cannot read {path}: {one_line(str(error), 120)}") from None
    return content


def write_atomic(path: Path, data: bytes) -> None:
    """Replace a file, whole or not at all, even under a kill.

    Raises:
        UsageError: the disk refused it.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise _unwritable(path.parent, error) from None


def _unwritable(folder: Path, error: OSError) -> UsageError:
    return UsageError(
        f"Cannot write to run folder {folder}: {error.strerror or error}.", fix="--out DIR"
    )
