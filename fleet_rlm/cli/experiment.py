"""What `fleet-eval experiment` does: run every arm on every suite, print what came of it."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from fleet_rlm.cli.listing import print_content
from fleet_rlm.errors import BudgetExhausted, Exit, UsageError
from fleet_rlm.project import Content, find_content, project_dir, relative
from fleet_rlm.report.experiment import lock, render_estimate, render_results
from fleet_rlm.report.grid import Grid
from fleet_rlm.report.plots import plots, render
from fleet_rlm.runner.compare import RunComparison, compare_groups
from fleet_rlm.runner.experiment import Cell, Experiment, cells, dry, load_experiment
from fleet_rlm.runner.store import read_spent
from fleet_rlm.runner.stored import Run, open_run

if TYPE_CHECKING:
    from fleet_rlm.cli.run import RunRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class ExperimentRequest:
    """The command line, as given."""

    name: str
    flags: Mapping[str, Any]
    """Settings of `Config` by name; None where the flag was not given."""

    model: str | None
    """In place of every arm's models."""

    limit: int | None
    max_usd: float | None
    retry_errors: bool
    display: str
    out: Path | None
    """Folder of the results page."""


@dataclass(frozen=True, slots=True)
class _Place:
    """Where an experiment is, and where what it makes goes."""

    name: str
    experiment: Experiment
    runs: Path
    results: Path

    @classmethod
    def of(cls, name: str, model: str | None, out: Path | None) -> _Place:
        project = project_dir(Path.cwd())
        content = find_content("experiments", name, project)
        stem = content.name if model is None else f"{content.name}--{model}"
        stem = stem.replace("/", "-")
        results = out or project / "experiments" / stem
        experiment = load_experiment(content.path)
        if model is not None and model.startswith("sim"):
            experiment = dry(experiment)
        return cls(content.name, experiment, project / "runs" / "experiments" / stem, results)


def list_command(start: Path, *, as_json: bool) -> int:
    """List the experiments of the project and those built in."""

    def describe(content: Content) -> dict[str, Any]:
        found = load_experiment(content.path)
        runs = list(cells(found))
        return {"arms": len(found.arms), "runs": len(runs), "max_usd": found.max_usd,
                "question": found.question}  # fmt: skip

    def show(console: Console, rows: list[dict[str, Any]]) -> None:
        heads = ("experiment", "arms", "runs", "cap $", "from", "question")
        keys = ("name", "arms", "runs", "max_usd", "origin", "question")
        cells_of = [[f"{row[key]:g}" if key == "max_usd" else str(row[key]) for key in keys]
                    for row in rows]  # fmt: skip
        grid = Grid(heads, cells_of, words={"experiment", "from", "question"})
        console.print(grid.to_text(), markup=False, soft_wrap=True)

    return print_content("experiments", start, describe, show, as_json=as_json)


def run_command(request: ExperimentRequest) -> int:
    """Run what is owed of every cell, then print the results; gives the exit code."""
    from fleet_rlm.cli.run import execute, exit_code, prepare

    place = _Place.of(request.name, request.model, request.out)
    planned = list(cells(place.experiment))
    cap = request.max_usd or place.experiment.max_usd
    worst: int = Exit.OK
    for number, cell in enumerate(planned, 1):
        print(f"{number}/{len(planned)} {cell.folder}", file=sys.stderr)
        own = place.runs / cell.folder
        # What the other runs have spent is gone; a run's own cap counts all of its sessions.
        others = sum(read_spent(place.runs / c.folder).usd for c in planned if c != cell)
        if others >= cap:
            raise BudgetExhausted(
                f"The experiment has spent ${others:.2f} of ${cap:g}.",
                fix="the same command with a higher --max-usd",
            )
        prepared = prepare(_request(place, cell, request, own, cap - others))
        finished = execute(prepared)
        code = exit_code(prepared, finished)
        if code in {Exit.BUDGET, Exit.INTERRUPTED}:
            return code
        worst = max(worst, code)
    report_command(request.name, model=request.model, out=request.out)
    return worst


def estimate_command(name: str, *, model: str | None, limit: int | None, as_json: bool) -> int:
    """Predict what an experiment will take, run by run; published dollars beside it."""
    from fleet_rlm.cli.estimate import EstimateRequest, predict

    place = _Place.of(name, model, None)
    rows: list[dict[str, Any]] = []
    for cell in cells(place.experiment):
        given = _models(cell, model)
        request = EstimateRequest(
            suite=cell.suite.suite, program=cell.arm.program, flags=given, price=None,
            sub_price=None, corpus=None, overrides=cell.overrides, limit=_limit(cell, limit),
            epochs=place.experiment.epochs, as_json=as_json,
        )  # fmt: skip
        try:
            found = predict(request)
        except UsageError as error:
            rows.append({"run": cell.folder, "problem": str(error)})
            continue
        kept = ("samples", "calls", "tokens", "usd", "basis")
        rows.append({"run": cell.folder, **{key: found[key] for key in kept}})
    published = {f"{r.arm}: {r.source}": r.total_usd for r in place.experiment.references if r.usd}
    if as_json:
        print(json.dumps({"runs": rows, "max_usd": place.experiment.max_usd,
                          "published_usd": published}))  # fmt: skip
        return Exit.OK
    print(render_estimate(rows, published, place.experiment.max_usd))
    return Exit.OK


def report_command(name: str, *, model: str | None, out: Path | None) -> int:
    """Write the results page and the lock from the records of the runs."""
    place = _Place.of(name, model, out)
    runs = {cell.folder: _open(place, cell) for cell in cells(place.experiment)}
    found = _compared(place.experiment, runs)
    place.results.mkdir(parents=True, exist_ok=True)
    page = render_results(
        place.name,
        place.experiment,
        found,
        commands=_commands(place, runs, model),
        plots={suite: _draw(place, suite, own) for suite, own in found.items()},
    )
    (place.results / "results.md").write_text(page, encoding="utf-8")
    (place.results / "lock.json").write_text(json.dumps(lock(runs), indent=2) + "\n", "utf-8")
    print(page)
    print(f"written to {relative(place.results / 'results.md')}", file=sys.stderr)
    return Exit.OK


def _draw(place: _Place, suite: str, found: RunComparison) -> list[str]:
    """Draw the plots that a page of text lives on; gives their files."""
    drawn = plots(found.arms, found.outcomes)
    simulated = " (simulated model)" if found.label else ""
    made = []
    for name in ("score-by-length", "score-by-cost"):
        if name in drawn:
            file = f"{suite}-{name}.svg"
            title = f"{suite}: {name.replace('-', ' ')}{simulated}"
            (place.results / file).write_bytes(render(drawn[name], "svg", title))
            made.append(file)
    return made


def _compared(experiment: Experiment, runs: Mapping[str, Run]) -> dict[str, RunComparison]:
    found = {}
    for suite in experiment.suites:
        groups = [
            [runs[cell.folder] for cell in cells(experiment) if (cell.suite, cell.arm) == key]
            for key in ((suite, arm) for arm in experiment.ordered)
        ]
        names = [arm.name for arm in experiment.ordered]
        found[suite.title] = compare_groups(groups, names=names)
    return found


def _open(place: _Place, cell: Cell) -> Run:
    try:
        return open_run(place.runs / cell.folder)
    except UsageError:
        raise UsageError(
            f"Run {cell.folder} of experiment {place.name!r} has not been made.",
            fix=f"fleet-eval experiment run {place.name}",
        ) from None


def _commands(place: _Place, runs: Mapping[str, Run], model: str | None) -> list[str]:
    """The commands that make these runs and this page, in full."""
    words = ["--model", model] if model else []
    asked = {cell.folder: cell.suite.limit for cell in cells(place.experiment)}
    given = {name: (run.lock["command"] or {}).get("limit") for name, run in runs.items()}
    lower = {given[name] for name in runs if given[name] != asked[name]}
    limit = ["--limit", str(lower.pop())] if len(lower) == 1 else []
    return [
        shlex.join(["fleet-eval", "experiment", "run", place.name, *words, *limit]),
        shlex.join(["fleet-eval", "experiment", "report", place.name, *words]),
    ]


def _models(cell: Cell, replaced: str | None) -> dict[str, str]:
    if replaced is not None:
        return {"model": replaced}
    models = {"model": cell.arm.model, "sub_model": cell.arm.sub_model}
    return {name: value for name, value in models.items() if value is not None}


def _limit(cell: Cell, given: int | None) -> int | None:
    limits = [limit for limit in (given, cell.suite.limit) if limit is not None]
    return min(limits, default=None)


def _request(
    place: _Place, cell: Cell, request: ExperimentRequest, folder: Path, max_usd: float
) -> RunRequest:
    from fleet_rlm.cli.run import RunRequest

    return RunRequest(
        suite=cell.suite.suite,
        program=cell.arm.program,
        flags={**request.flags, **_models(cell, request.model)},
        price=None,
        sub_price=None,
        judge=cell.arm.judge and (request.model or cell.arm.judge),
        allow_same_judge=request.model is not None,
        corpus=None,
        overrides=cell.overrides,
        limit=_limit(cell, request.limit),
        epochs=place.experiment.epochs,
        iterations=None,
        sub_calls=None,
        wall_s=None,
        working_s=None,
        max_usd=max_usd,
        max_tokens=None,
        max_seconds=None,
        allow_unpriced=False,
        retry_errors=request.retry_errors,
        trace=None,
        out=folder,
        display=request.display,
        as_json=False,
        print_config=False,
    )
