"""A stored run: what it was, its summary, records and trajectories. Reading needs no dspy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fleet_rlm.errors import UsageError
from fleet_rlm.runner.record import Key, Record, last_records
from fleet_rlm.runner.store import (
    read_abandoned,
    read_columns,
    read_json,
    read_records,
    read_trajectory,
)
from fleet_rlm.runner.summary import summarize

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A stored run."""

    folder: Path
    summary: dict[str, Any]
    """The content of `summary.json`."""

    lock: dict[str, Any]
    """The content of `run.json`: suite, arm, versions, prices."""

    def records(self) -> pandas.DataFrame:
        """One row per sample and epoch: the record that counts, its usage summed over roles."""
        import pandas

        columns = read_columns(self.folder / "records.jsonl")
        return pandas.DataFrame(columns)

    def trajectory(self, sample: str, epoch: int = 0) -> dict[str, Any]:
        """What one attempt did: `steps` as `program.trail.Step`, query, answer and stop.

        Raises:
            UsageError: no such sample, or it has no trajectory.
        """
        records = last_records(read_records(self.folder / "records.jsonl"))
        record = records.get(Key(sample, epoch))
        if record is None:
            raise UsageError(f"{self.folder} has no record of sample {sample!r}, epoch {epoch}.")
        return read_trajectory(self.folder, record)


def open_run(path: Path | str) -> Run:
    """Open a stored run; of one that was killed, the summary is made from its records.

    Args:
        path: the run's folder.

    Raises:
        UsageError: the folder is not a run, or a file of it cannot be read.
    """
    folder = Path(path)
    lock = read_json(folder / "run.json")
    if lock is None:
        raise UsageError(f"{folder} is not the folder of a run.", fix="fleet-eval run")
    summary = read_json(folder / "summary.json") or _summary_of(folder, lock)
    return Run(folder=folder, summary=summary, lock=lock)


def _summary_of(folder: Path, lock: dict[str, Any]) -> dict[str, Any]:
    records = read_records(folder / "records.jsonl")
    return summarize(lock, records, planned_keys(lock, records), 0.0, read_abandoned(folder))


def planned_keys(lock: Mapping[str, Any], records: Iterable[Record]) -> list[Key]:
    """What a stored run was to answer; what has no record yet is known by number only."""
    known = list(last_records(records))
    return known + [Key(f"missing-{n}", 0) for n in range(lock["planned"] - len(known))]
