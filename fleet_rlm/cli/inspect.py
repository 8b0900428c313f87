"""What `fleet-eval samples`, `trace`, `rescore` and `estimate` do."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fleet_rlm.cli.run import open_suite, sort_overrides
from fleet_rlm.config import parse_overrides, resolve
from fleet_rlm.errors import Exit, UsageError, nearest
from fleet_rlm.lm.connect import ModelSpec, specify_pair
from fleet_rlm.lm.simulated import LABEL
from fleet_rlm.program.find import find_program, parse_settings
from fleet_rlm.project import project_dir
from fleet_rlm.report.samples import print_samples, sample_rows
from fleet_rlm.report.tables import make_console, number, print_estimate, print_result
from fleet_rlm.report.trace import print_trace
from fleet_rlm.runner import estimate as estimates
from fleet_rlm.runner.evaluate import Run, open_run
from fleet_rlm.runner.record import Record, last_records
from fleet_rlm.runner.rescore import rescore
from fleet_rlm.runner.store import read_records, read_trajectory
from fleet_rlm.statistics.clustered import detectable_difference


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


def rescore_command(folder: Path, *, as_json: bool) -> int:
    """Score the stored answers again."""
    run = open_run(folder)
    command = run.lock.get("command")
    if command is None:
        raise UsageError(
            f"{folder} does not say which suite it ran: it was made from Python or by an older"
            " version.",
            fix="fleet-eval run",
        )
    overrides = sort_overrides(parse_overrides(command["overrides"]))["suite"]
    project = project_dir(Path.cwd())
    suite = open_suite(project, command["suite"], command["corpus"], overrides)
    found = rescore(folder, suite)
    if as_json:
        print(json.dumps(found.summary))
        return Exit.OK
    print_result(make_console(sys.stdout), found.summary, _label(run))
    after = found.summary["score"]
    print(
        f"rescored  {found.scored} answers, {found.changed} of them changed:"
        f" {number(found.before)} before, {number(after)} now"
    )
    return Exit.OK


@dataclass(frozen=True, slots=True, kw_only=True)
class EstimateRequest:
    """The command line, as given."""

    suite: str
    program: str
    flags: Mapping[str, Any]
    price: str | None
    sub_price: str | None
    corpus: str | None
    overrides: list[str]
    limit: int | None
    epochs: int
    as_json: bool


def estimate_command(request: EstimateRequest) -> int:
    """Predict what a run will take."""
    project = project_dir(Path.cwd())
    resolved = resolve(request.flags, os.environ, project)
    overrides = sort_overrides(parse_overrides(request.overrides))
    suite = open_suite(project, request.suite, request.corpus, overrides["suite"])
    plan = suite.plan(limit=request.limit)
    root, sub = _models(request, resolved)
    lengths = [sample.length for sample in plan] * request.epochs
    prices = {"root": root.price, "sub": sub.price}
    history, names = estimates.find_history(project / resolved.config.runs_dir, request.program)
    if history:
        found = estimates.estimate_from_runs(
            lengths, history, prices, concurrency=resolved.config.concurrency, names=names
        )
    else:
        found = estimates.estimate_from_prior(
            lengths,
            _kind(request.program),
            prices,
            max_calls=_max_calls(request.program, overrides["settings"]),
        )
    shown = asdict(found) | {
        "suite": suite.name,
        "program": request.program,
        "models": {"root": root.name, "sub": sub.name},
        "epochs": request.epochs,
        "detects": detectable_difference(len(plan)),
    }
    if request.as_json:
        print(json.dumps(shown))
    else:
        print_estimate(make_console(sys.stdout), shown, root.label or sub.label)
    return Exit.OK


def _models(request: EstimateRequest, resolved: Any) -> tuple[ModelSpec, ModelSpec]:
    # No call is made, so no key is needed.
    env = {"DSPY_LLM_API_KEY": "none", **os.environ}
    keyed = resolve(request.flags, env, project_dir(Path.cwd()))
    return specify_pair(keyed, env, price=request.price, sub_price=request.sub_price)


def _kind(program: str) -> str:
    if program in {"direct", "truncate", "bm25"}:
        return "direct"
    return program if program in estimates.PRIORS else "code"


def _max_calls(program: str, settings: Mapping[str, Any]) -> int | None:
    spec = find_program(program).settings_type.SPEC
    if not {"max_iters", "max_llm_calls"} <= set(spec):
        return None
    chosen = parse_settings(program, settings)
    return chosen["max_iters"] + chosen["max_llm_calls"]


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


def _label(run: Run) -> str | None:
    return LABEL if run.lock["arm"]["model_kind"] == "simulated" else None


def _say_label(run: Run) -> None:
    if label := _label(run):
        print(label, file=sys.stderr)
