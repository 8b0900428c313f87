"""What `fleet-eval samples` and `trace` do: look at what is stored."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from fleet_rlm.errors import Exit, UsageError, nearest
from fleet_rlm.lm.simulated import LABEL
from fleet_rlm.report.samples import print_samples, sample_rows
from fleet_rlm.report.tables import make_console
from fleet_rlm.report.trace import print_trace
from fleet_rlm.runner.record import Record, last_records
from fleet_rlm.runner.store import read_records, read_trajectory
from fleet_rlm.runner.stored import Run, open_run


def samples_command(
    folder: Path, *, which: Sequence[str], task: str | None, base: Path | None, as_json: bool
) -> int:
    """List the samples of a run."""
    run = open_run(folder)
    records = _records(run)
    tasks = {record.task for record in records}
    if task is not None and task not in tasks:
        raise UsageError(f"{folder} has no task {task!r}. {nearest(task, tasks)}")
    before = None if base is None else _records(open_run(base))
    rows = sample_rows(records, which=which, task=task, base=before)
    if as_json:
        print(json.dumps(rows))
    else:
        _say_label(run)
        print_samples(make_console(sys.stdout), rows)
    return Exit.OK


def trace_command(folder: Path, sample: str, epoch: int, *, as_json: bool) -> int:
    """Show what one answer did."""
    run = open_run(folder)
    record = _find(run, sample, epoch)
    trajectory = read_trajectory(folder, record)
    if as_json:
        print(json.dumps(trajectory | {"record": record.to_json()}))
    else:
        _say_label(run)
        print_trace(make_console(sys.stdout), record, trajectory)
    return Exit.OK


def _records(run: Run) -> list[Record]:
    return list(last_records(read_records(run.folder / "records.jsonl")).values())


def _find(run: Run, sample: str, epoch: int) -> Record:
    records = [record for record in _records(run) if record.epoch == epoch]
    exact = [record for record in records if record.sample == sample]
    begun = exact or [record for record in records if record.sample.startswith(sample)]
    if len(begun) == 1:
        return begun[0]
    if begun:
        some = ", ".join(record.sample for record in begun[:3])
        raise UsageError(f"{len(begun)} samples begin with {sample!r}: {some}, ...")
    known = [record.sample for record in records]
    raise UsageError(
        f"{run.folder} has no sample {sample!r} in epoch {epoch}."
        f" {nearest(sample, known) if len(known) < 20 else ''}".rstrip(),
        fix=f"fleet-eval samples {run.folder}",
    )


def label_of(run: Run) -> str | None:
    """The sentence that must stand beside the numbers of a run, if any."""
    return LABEL if run.lock["arm"]["model_kind"] == "simulated" else None


def _say_label(run: Run) -> None:
    if label := label_of(run):
        print(label, file=sys.stderr)
