"""What `fleet-optimize run` and `list` do."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fleet_rlm.cli.listing import print_content
from fleet_rlm.config import Config, resolve
from fleet_rlm.errors import Exit
from fleet_rlm.project import Content, find_content, project_dir, relative
from fleet_rlm.report.job import render_plan, render_result
from fleet_rlm.report.tables import print_recipe_list
from fleet_rlm.runner.progress import make_progress
from fleet_rlm.search.job import Compilation, JobResult, prepare, run_job
from fleet_rlm.search.plan import JobPlan, plan_job
from fleet_rlm.search.promote import judge
from fleet_rlm.search.recipe import SUB_MODEL, load_recipe, make_recipe
from fleet_rlm.tracking import mirrored


def compile_command(
    name: str,
    flags: Mapping[str, Any],
    caps: Mapping[str, float | None],
    *,
    out: Path | None,
    display: str,
    as_json: bool,
    dry_run: bool,
) -> int:
    """Run a job and print the comparison; gives the exit code.

    Args:
        name: of the recipe, or its path.
        flags: settings of `Config` by name; None where the flag was not given.
        caps: keys of the recipe that flags replace; None where the flag was not given.
        out: the job's folder.
        display: how to show progress.
        as_json: print the result as JSON and nothing else on stdout.
        dry_run: only say what the job will take.
    """
    fix_hash_seed("fleet_rlm.cli.optimize")
    project = project_dir(Path.cwd())
    path = find_content("optimize", name, project).path
    recipe = load_recipe(path)
    given = {key: value for key, value in caps.items() if value is not None}
    recipe = make_recipe(recipe.model_dump() | given, str(path))
    resolved = resolve(recipe.flags(flags), os.environ, project)
    job = prepare(recipe, resolved, project, out)
    if dry_run:
        return _show_plan(plan_job(job), job.arm.label, as_json=as_json)

    def show(result: JobResult) -> None:
        _show(result, job.arm.label, as_json=as_json)

    done = compile_job(job, resolved.config, project, "none" if as_json else display, show)
    return Exit.OK if done else Exit.INTERRUPTED


def compile_job(
    job: Compilation,
    config: Config,
    project: Path,
    display: str,
    show: Callable[[JobResult], None] = lambda _: None,
) -> JobResult | None:
    """Run a job and mirror it.

    Args:
        job: what to do.
        config: whether and where it is mirrored.
        project: its folder.
        display: how to show progress.
        show: called with the result, before the mirror is waited for.

    Returns:
        None when it was interrupted, which is said.
    """
    progress = {
        stage: make_progress(display, f"{job.recipe.name} {stage}")
        for stage in ("baseline", "winner")
    }
    if job.arm.label:
        progress["baseline"].say(job.arm.label)
    with mirrored(job.folder, config, project) as write_mirror:
        if job.caps.usd is not None and (warning := plan_job(job).warning):
            progress["baseline"].say(f"warning: {warning}")
        result = run_job(job, progress)
        if result is None:
            print("interrupted: the same command resumes", file=sys.stderr)
            return None
        show(result)
        if problem := write_mirror():
            print(problem, file=sys.stderr)
    return result


def print_recipes(start: Path, *, as_json: bool) -> int:
    """Print every recipe; gives the exit code."""

    def describe(content: Content) -> dict[str, Any]:
        shown = {"description", "optimizer", "program", "suite"}
        return load_recipe(content.path).model_dump(include=shown)

    return print_content("optimize", start, describe, print_recipe_list, as_json=as_json)


def fix_hash_seed(module: str) -> None:
    """Start this command anew with a fixed hash seed, unless it has one.

    Args:
        module: that the command is in.
    """
    # dspy's bootstrap picks demos by a hash of pickled sets: without a fixed seed every process
    # compiles another program (measured: a swing of 17 points on one and the same data).
    if os.environ.get("PYTHONHASHSEED") is None:
        command = [sys.executable, "-m", module, *sys.argv[1:]]
        os.execve(sys.executable, command, {**os.environ, "PYTHONHASHSEED": "0"})


def _show_plan(plan: JobPlan, label: str | None, *, as_json: bool) -> int:
    if as_json:
        print(json.dumps(plan.to_json()))
    else:
        print("\n".join(filter(None, (label, render_plan(plan.to_json())))))
    if plan.warning:
        print(f"warning: {plan.warning}", file=sys.stderr)
    return Exit.OK


def _show(result: JobResult, label: str | None, *, as_json: bool) -> None:
    found = result.to_json()
    if as_json:
        print(json.dumps(found), flush=True)
        return
    verdict = judge(found)
    print(render_result(found, f"{verdict.reason}: {verdict.text}", label))
    if result.bundle is None:
        print(f"state     {relative(result.folder / 'state.json')}: program.load() takes it")
        return
    bundle, sub = relative(result.bundle), result.winner["params"].get(SUB_MODEL)
    with_sub = f" --sub-model {sub}" if sub not in {None, result.winner["model"]} else ""
    print(f"bundle    {bundle}")
    print(f"serve     fleet-rlm serve-api --bundle {bundle}{with_sub}")
    forced = ' --force "why"' if verdict.reason == "unproven" else ""
    promote = f"fleet-optimize promote {relative(result.folder)} --alias champion{forced}"
    print(f"promote   {promote}", flush=True)
