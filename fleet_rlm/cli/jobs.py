"""What `fleet-optimize status`, `trials`, `diff`, `export` and `promote` do with a stored job."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fleet_rlm.config import resolve
from fleet_rlm.errors import Exit, UsageError
from fleet_rlm.lm.simulated import LABEL
from fleet_rlm.project import project_dir
from fleet_rlm.report.job import render_diff, render_status, render_trials
from fleet_rlm.search import promote as promotion
from fleet_rlm.search.stored import StoredJob, diff, open_job
from fleet_rlm.tracking.registry import Registry

BUNDLES = "bundles"
"""The project's folder of promoted bundles."""


def status_command(name: str, *, as_json: bool) -> int:
    """Print how far a job is."""
    job = _open(name)
    return _show(job, job.status(), render_status, as_json=as_json)


def trials_command(name: str, *, as_json: bool) -> int:
    """Print the trials of a job."""
    job = _open(name)
    assert job.trials
    return _show(job, dict(job.study or {}), render_trials, as_json=as_json)


def diff_command(name: str, trial: int | None, *, as_json: bool) -> int:
    """Print what a trial changed."""
    job = _open(name)
    return _show(job, diff(job, trial), render_diff, as_json=as_json)


def export_command(name: str, target: Path) -> int:
    """Copy the winner's bundle and print where it is."""
    print(promotion.export(_open(name), target))
    return Exit.OK


def promote_command(name: str, *, alias: str, force: str | None, register: bool) -> int:
    """Give the winner an alias, here and in MLflow's model registry, and print where it is."""
    job, project = _open(name), project_dir(Path.cwd())
    found = promotion.promote(job, project / BUNDLES, alias, force=force)
    why = f"forced: {found.forced}" if found.verdict.reason == "unproven" else found.verdict.reason
    if job.is_simulated:
        print(LABEL)
    print(f"promoted  {found.bundle} to {_here(found.path)} ({why}: {found.verdict.text})")
    print(f"serve     fleet-rlm serve-api --bundle {_here(found.path)}")
    if register:
        _register(project, found.path, job.lock["recipe"]["name"], alias)
    return Exit.OK


def rollback_command(recipe: str, *, register: bool) -> int:
    """Give the alias back to the bundle that was champion before, and print where it is."""
    project = project_dir(Path.cwd())
    link = promotion.rollback(project / BUNDLES, recipe)
    print(f"champion  {link.resolve().name}, {_here(link)}")
    if register:
        _register(project, link, recipe, promotion.CHAMPION)
    return Exit.OK


def _register(project: Path, bundle: Path, name: str, alias: str) -> None:
    """Give the bundle its alias in MLflow's model registry; trouble with it is one line."""
    config = resolve({}, os.environ, project).config
    code = find_spec("fleet_rlm.serving.pyfunc")
    if not config.mlflow or code is None or code.origin is None:
        return
    registry = Registry(project, config.mlflow_tracking_uri)
    try:
        found = registry.register(bundle.resolve(), name, alias=alias, code=Path(code.origin))
    except UsageError as error:
        print(f"MLflow    not registered: {error}", file=sys.stderr)
    else:
        print(f"MLflow    version {found.number}, {found.uri}")


def _open(name: str) -> StoredJob:
    project = project_dir(Path.cwd())
    return open_job(name, project / resolve({}, os.environ, project).config.runs_dir / "jobs")


def _show(
    job: StoredJob,
    found: dict[str, Any],
    render: Callable[[dict[str, Any]], str],
    *,
    as_json: bool,
) -> int:
    if as_json:
        print(json.dumps(found))
    else:
        print("\n".join([LABEL] * job.is_simulated + [render(found)]))
    return Exit.OK


def _here(link: Path) -> Path:
    # Not resolved: an alias is shown as itself, not as what it points at today.
    return link.relative_to(Path.cwd()) if link.is_relative_to(Path.cwd()) else link
