"""A run's folder: what ran, one fsynced line per finished sample, and the trajectories."""

from __future__ import annotations

import contextlib
import fcntl
import gzip
import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from fleet_rlm.errors import UsageError, one_line
from fleet_rlm.runner.record import Record

SCHEMA = 1


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

    def append(self, record: Record) -> None:
        """Write one record; it is on disk when this returns.

        Raises:
            UsageError: the disk refused it.
        """
        line = json.dumps(record.to_json(), ensure_ascii=False).encode() + b"\n"
        try:
            self._file.write(line)
            self._file.flush()
            # 0.2 ms on a local disk: a killed run loses at most the line being written.
            os.fsync(self._file.fileno())
        except OSError as error:
            raise _unwritable(self.folder, error) from None
        self._records.append(record)

    def write_trajectory(self, name: str, content: Mapping[str, Any]) -> str:
        """Store one trajectory, compressed; gives its path inside the folder."""
        relative = f"trajectories/{name}.json.gz"
        data = gzip.compress(json.dumps(content, ensure_ascii=False).encode(), mtime=0)
        write_atomic(self.folder / relative, data)
        return relative

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Write `run.json`, `summary.json` and the like, whole or not at all."""
        text = json.dumps(content, ensure_ascii=False, indent=2) + "\n"
        write_atomic(self.folder / name, text.encode())

    def close(self) -> None:
        """Let another process have the folder."""
        if hasattr(self, "_file"):
            self._file.close()
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


def repair_and_read(path: Path) -> list[Record]:
    """Read every record, cutting off a last line that a kill left torn.

    Raises:
        UsageError: a line in the middle cannot be read; it is named by its number.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return []
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        with path.open("r+b") as file:
            file.truncate(len(whole))
            os.fsync(file.fileno())
    records = []
    for number, line in enumerate(whole.splitlines(), 1):
        try:
            records.append(Record.from_json(json.loads(line)))
        except (ValueError, TypeError) as error:
            raise UsageError(
                f"{path}:{number} is not a record of schema {SCHEMA}: {one_line(str(error), 120)}",
                fix=f"move {path.parent} away and run again",
            ) from None
    return records


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
