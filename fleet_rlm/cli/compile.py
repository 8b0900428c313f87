"""What `fleet-optimize run` and `list` do."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fleet_rlm.cli.listing import print_content
from fleet_rlm.cli.run import relative
from fleet_rlm.config import resolve
from fleet_rlm.errors import Exit
from fleet_rlm.project import Content, find_content, project_dir
from fleet_rlm.report.tables import make_console, print_comparison, print_recipe_list
from fleet_rlm.runner.progress import make_progress
from fleet_rlm.search.job import JobResult, prepare, run_job
from fleet_rlm.search.recipe import load_recipe


def compile_command(
    name: str, flags: Mapping[str, Any], *, out: Path | None, display: str, as_json: bool
) -> int:
    """Run a job and print the comparison; gives the exit code."""
    _fix_hash_seed()
    project = project_dir(Path.cwd())
    recipe = load_recipe(find_content("optimize", name, project).path)
    job = prepare(recipe, resolve(flags, os.environ, project), project, out)
    shown = "none" if as_json else display
    progress = {
        stage: make_progress(shown, f"{recipe.name} {stage}") for stage in ("baseline", "winner")
    }
    if job.arm.label:
        progress["baseline"].say(job.arm.label)
    result = run_job(job, progress)
    if result is None:
        print("interrupted: the same command resumes", file=sys.stderr)
        return Exit.INTERRUPTED
    _show(result, job.arm.label, as_json=as_json)
    return Exit.OK


def print_recipes(start: Path, *, as_json: bool) -> int:
    """Print every recipe; gives the exit code."""

    def describe(content: Content) -> dict[str, Any]:
        shown = {"description", "optimizer", "program", "suite"}
        return load_recipe(content.path).model_dump(include=shown)

    return print_content("optimize", start, describe, print_recipe_list, as_json=as_json)


def _fix_hash_seed() -> None:
    # dspy's bootstrap picks demos by a hash of pickled sets: without a fixed seed every process
    # compiles another program (measured: a swing of 17 points on one and the same data).
    if os.environ.get("PYTHONHASHSEED") is None:
        command = [sys.executable, "-m", "fleet_rlm.cli.optimize", *sys.argv[1:]]
        os.execve(sys.executable, command, {**os.environ, "PYTHONHASHSEED": "0"})


def _show(result: JobResult, label: str | None, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(result.to_json()), flush=True)
        return
    console = make_console(sys.stdout)
    print_comparison(console, result.baseline, result.winner, result.test, label)
    console.print(
        f"demos     {result.demos} worked examples, compiled for ${result.compile_usd:.4f}",
        markup=False,
    )
    bundle = relative(result.bundle)
    console.print(f"bundle    {bundle}", markup=False, soft_wrap=True)
    console.print(f"next      fleet-eval run SUITE --program {bundle}", markup=False)
    console.print(f"          fleet-rlm run --program {bundle} --context FILE --query QUERY")
