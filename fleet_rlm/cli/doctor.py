"""What `fleet-rlm doctor` checks, and what it says of each finding."""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from fleet_rlm.config import Resolved, resolve
from fleet_rlm.errors import Exit, FleetError, UsageError
from fleet_rlm.lm.connect import specify_pair
from fleet_rlm.project import project_dir
from fleet_rlm.report.tables import make_console
from fleet_rlm.sandbox.levels import choose

OLDEST_PYTHON = (3, 11)
SMALLEST_DISK = 1 << 30
"""Free bytes: trajectories of a long run and a tracking store fit in a GiB."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One row of the report."""

    name: str
    ok: bool
    detail: str
    fix: str | None = None


def doctor_command(start: Path, *, as_json: bool) -> int:
    """Print every finding; 0 when all is well, 5 when no sandbox holds, 2 otherwise."""
    findings = list(examine(start))
    if as_json:
        print(json.dumps([asdict(finding) for finding in findings]))
    else:
        console = make_console(sys.stdout)
        for finding in findings:
            mark = "[green]ok  [/]" if finding.ok else "[bold red]FAIL[/]"
            console.print(f"{mark}  {finding.name:<8} ", end="")
            console.print(finding.detail, markup=False, soft_wrap=True)
            if finding.fix:
                console.print(f"{'':15}Try: {finding.fix}", markup=False, soft_wrap=True)
    failed = {finding.name for finding in findings if not finding.ok}
    if "sandbox" in failed:
        return Exit.NO_SANDBOX
    return Exit.USAGE if failed else Exit.OK


def examine(start: Path) -> Iterator[Finding]:
    """Look at this machine and project; starts a sandbox for its self-test, calls no model."""
    yield _python()
    yield _finding("sandbox", _sandbox)
    project = project_dir(start)
    try:
        resolved = resolve({}, os.environ, project)
    except UsageError as error:
        yield Finding(name="config", ok=False, detail=error.message, fix=error.fix)
        return
    yield _finding("model", lambda: _model(resolved))
    yield _finding("store", lambda: _store(resolved, project))
    yield _disk(project)


def _python() -> Finding:
    ok = sys.version_info >= OLDEST_PYTHON
    return Finding(
        name="python",
        ok=ok,
        detail=f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        fix=None if ok else "install Python 3.11 or newer",
    )


def _sandbox() -> str:
    level = choose("auto")
    return f"{level.name}: {level.label}" + (f". {level.advice}" if level.advice else "")


def _model(resolved: Resolved) -> str:
    spec, _ = specify_pair(resolved, os.environ)
    key = "a key is set" if spec.api_key else "no key needed"
    return f"{spec.name} (from {resolved.origin['model']}); {key}" + (
        f"; {spec.label}" if spec.label else ""
    )


def _store(resolved: Resolved, project: Path) -> str:
    if not resolved.config.mlflow:
        return "MLflow is switched off"
    uri = resolved.config.mlflow_tracking_uri
    if uri is None:
        if not os.access(project, os.W_OK):
            raise UsageError(f"Cannot write to {project}.", fix=f"chmod u+w {project}")
        uri = "mlflow.db in the project folder"
    return f"runs are mirrored to {uri}"


def _disk(project: Path) -> Finding:
    free = shutil.disk_usage(project).free
    ok = free >= SMALLEST_DISK
    return Finding(
        name="disk",
        ok=ok,
        detail=f"{free / (1 << 30):.1f} GiB free",
        fix=None if ok else "make room, or give --out DIR on another disk",
    )


def _finding(name: str, look: Callable[[], str]) -> Finding:
    try:
        return Finding(name=name, ok=True, detail=look())
    except FleetError as error:
        return Finding(name=name, ok=False, detail=error.message, fix=error.fix)
