"""What `fleet-eval experiment` does: run every arm on every suite, print what came of it."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from fleet_rlm.cli.compiled import (
    check_apart,
    chosen_models,
    compile_arm,
    compiled,
    make_job,
    seeded,
    spent_usd,
    stored_job,
    told,
)
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

    def job(self, cell: Cell) -> Path:
        """Folder of the job that compiles a cell's arm."""
        assert cell.job is not None
        return self.runs / "jobs" / cell.job

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
    if any(cell.job for cell in planned):
        from fleet_rlm.cli.compile import fix_hash_seed

        fix_hash_seed("fleet_rlm.cli.eval")
    for cell in planned:
        if cell.job:  # before anything is spent
            check_apart(cell, make_job(cell, _flags(cell, request), place.job(cell), None))
    worst: int = Exit.OK
    for number, cell in enumerate(planned, 1):
        print(f"{number}/{len(planned)} {cell.folder}", file=sys.stderr)
        arm = _arm(place, cell, request, planned)
        if arm is None:
            return Exit.INTERRUPTED
        left = _left(place, planned, request.max_usd, place.runs / cell.folder)
        prepared = prepare(_request(place, *arm, request, left))
        finished = execute(prepared)
        code = exit_code(prepared, finished)
        if code in {Exit.BUDGET, Exit.INTERRUPTED}:
            return code
        worst = max(worst, code)
    report_command(request.name, model=request.model, out=request.out)
    return worst


def _arm(
    place: _Place, cell: Cell, request: ExperimentRequest, planned: Sequence[Cell]
) -> tuple[Cell, dict[str, str]] | None:
    """The cell with the program that runs, and its models; None when compiling was interrupted."""
    models = _models(cell, request.model)
    if not cell.job:
        return cell, models
    folder, flags = place.job(cell), _flags(cell, request)
    job = make_job(cell, flags, folder, _left(place, planned, request.max_usd, folder))
    done = compile_arm(job, flags, request.display)
    return None if done is None else (compiled(cell, done), models | chosen_models(done))


def _left(place: _Place, planned: Sequence[Cell], max_usd: float | None, own: Path) -> float:
    """Dollars that a run or job may spend in all of its sessions: what the others have left.

    Raises:
        BudgetExhausted: nothing is left.
    """
    cap = max_usd or place.experiment.max_usd
    runs = {place.runs / cell.folder for cell in planned} - {own}
    jobs = {place.job(cell) for cell in planned if cell.job} - {own}
    spent = sum(read_spent(run).usd for run in runs) + sum(map(spent_usd, jobs))
    if spent >= cap:
        raise BudgetExhausted(
            f"The experiment has spent ${spent:.2f} of ${cap:g}.",
            fix="the same command with a higher --max-usd",
        )
    return cap - spent


def estimate_command(name: str, *, model: str | None, limit: int | None, as_json: bool) -> int:
    """Predict what an experiment will take, run by run; published dollars beside it."""
    from fleet_rlm.cli.estimate import EstimateRequest, predict

    place = _Place.of(name, model, None)
    rows: list[dict[str, Any]] = []
    for cell in cells(place.experiment):
        given = _models(cell, model)
        try:
            if cell.job and all(row["run"] != f"jobs/{cell.job}" for row in rows):
                rows.append(_job_row(cell, place.job(cell), given))
            program = seeded(cell).program if cell.job else cell.arm.program
            found = predict(EstimateRequest(
                suite=cell.suite.suite, program=program, flags=given, price=None, sub_price=None,
                corpus=None, overrides=cell.overrides, limit=_limit(cell, limit),
                epochs=place.experiment.epochs, as_json=as_json,
            ))  # fmt: skip
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


def _job_row(cell: Cell, folder: Path, flags: Mapping[str, str]) -> dict[str, Any]:
    from fleet_rlm.search.plan import plan_job

    plan = plan_job(make_job(cell, flags, folder, None)).to_json()
    return {
        "run": f"jobs/{cell.job}",
        "samples": sum(stage["samples"] for stage in plan["stages"]),
        "calls": [plan["calls"]] * 3,
        "tokens": None,
        "usd": [plan["usd"]] * 3,
        "basis": plan["basis"],
    }


def report_command(name: str, *, model: str | None, out: Path | None) -> int:
    """Write the results page and the lock from the records of the runs."""
    place = _Place.of(name, model, out)
    runs = {cell.folder: _open(place, cell) for cell in cells(place.experiment)}
    found = _compared(place.experiment, runs)
    jobs = _jobs(place)
    place.results.mkdir(parents=True, exist_ok=True)
    page = render_results(
        place.name,
        place.experiment,
        found,
        commands=_commands(place, runs, model),
        plots={suite: _draw(place, suite, own) for suite, own in found.items()},
        jobs=jobs,
    )
    (place.results / "results.md").write_text(page, encoding="utf-8")
    (place.results / "lock.json").write_text(json.dumps(lock(runs, jobs), indent=2) + "\n", "utf-8")
    print(page)
    print(f"written to {relative(place.results / 'results.md')}", file=sys.stderr)
    return Exit.OK


def _jobs(place: _Place) -> dict[str, dict[str, Any]]:
    """What was compiled: the name of an arm's run -> what its job did."""
    found = {}
    for cell in cells(place.experiment):
        if cell.job is None:
            continue
        stored = stored_job(place.job(cell))
        if stored is None or stored.result is None:
            raise _missing(place, f"Job {cell.job}")
        found[cell.folder] = told(stored)
    return found


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
        raise _missing(place, f"Run {cell.folder}") from None


def _missing(place: _Place, what: str) -> UsageError:
    return UsageError(
        f"{what} of experiment {place.name!r} has not been made.",
        fix=f"fleet-eval experiment run {place.name}",
    )


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


def _flags(cell: Cell, request: ExperimentRequest) -> dict[str, Any]:
    return {**request.flags, **_models(cell, request.model)}


def _limit(cell: Cell, given: int | None) -> int | None:
    limits = [limit for limit in (given, cell.suite.limit) if limit is not None]
    return min(limits, default=None)


def _request(
    place: _Place,
    cell: Cell,
    models: Mapping[str, str],
    request: ExperimentRequest,
    max_usd: float,
) -> RunRequest:
    from fleet_rlm.cli.run import RunRequest

    return RunRequest(
        suite=cell.suite.suite,
        program=cell.arm.program,
        flags={**request.flags, **models},
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
        out=place.runs / cell.folder,
        display=request.display,
        as_json=False,
        print_config=False,
    )
