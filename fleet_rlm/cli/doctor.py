"""What `fleet-rlm doctor` checks, and what it says of each finding."""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from fleet_rlm.config import Resolved, resolve
from fleet_rlm.errors import Exit, FleetError, UsageError
from fleet_rlm.lm.connect import specify_pair
from fleet_rlm.project import project_dir, relative
from fleet_rlm.report.tables import make_console
from fleet_rlm.sandbox import modal_account
from fleet_rlm.sandbox.levels import MODAL, choose
from fleet_rlm.sandbox.modal_recipe import Recipe
from fleet_rlm.suites.shelf import data_dir
from fleet_rlm.tracking.store import can_make, probe_store, resolve_uri, shown

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
    project = project_dir(start)
    try:
        resolved = resolve({}, os.environ, project)
    except UsageError as error:
        yield _finding("sandbox", lambda: _sandbox("auto"))
        yield Finding(name="config", ok=False, detail=error.message, fix=error.fix)
        return
    yield _finding("sandbox", lambda: _sandbox(resolved.config.sandbox))
    yield _finding("model", lambda: _model(resolved))
    yield _finding("price", lambda: _price(resolved))
    yield _finding("modal", lambda: _modal(resolved))
    yield _finding("store", lambda: _store(resolved, project))
    yield _finding("cache", _caches)
    yield _finding("disk", lambda: _disk(resolved, project))


def _python() -> Finding:
    ok = sys.version_info >= OLDEST_PYTHON
    return Finding(
        name="python",
        ok=ok,
        detail=f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        fix=None if ok else "install Python 3.11 or newer",
    )


def _sandbox(wanted: str) -> str:
    if wanted == MODAL.name:  # nothing of this machine is needed; the row "modal" looks there
        return f"{MODAL.name}: {MODAL.label}"
    level = choose(wanted)
    return f"{level.name}: {level.label}" + (f". {level.advice}" if level.advice else "")


def _model(resolved: Resolved) -> str:
    spec, _ = specify_pair(resolved, os.environ, allow_unpriced=True)
    key = "a key is set" if spec.api_key else "no key needed"
    return f"{spec.name} (from {resolved.origin['model']}); {key}" + (
        f"; {spec.label}" if spec.label else ""
    )


def _price(resolved: Resolved) -> str:
    # Without a key, too: its absence is a finding of its own.
    specs = specify_pair(replace(resolved, api_key="none"), os.environ)
    told = {
        spec.name: f"${spec.price.input:g} in, ${spec.price.output:g} out a million tokens"
        for spec in specs
    }
    return "; ".join(f"{name} {price}" for name, price in told.items())


def _modal(resolved: Resolved) -> str:
    place = Path(os.environ.get("MODAL_CONFIG_PATH", "~/.modal.toml")).expanduser()
    wanted = resolved.config.sandbox == MODAL.name
    if not (wanted or "MODAL_TOKEN_ID" in os.environ or place.exists()):
        return "no token; only --sandbox modal needs one (modal token new)"
    recipe = Recipe(**resolved.config.modal.model_dump())
    found = modal_account.examine(recipe)
    name = recipe.image or recipe.image_name
    if found.image:
        image = f"image {name} ({found.image})"
    elif recipe.image:
        raise UsageError(f"no image {name!r} in workspace {found.workspace}", fix="another `image`")
    else:
        image = "no image published, so the first run builds it (fleet-rlm sandbox build)"
    secret = "is there and reaches no sandbox" if found.secret else "is not there, nor needed"
    return f"workspace {found.workspace}; {image}; secret {modal_account.SECRET} {secret}"


def _store(resolved: Resolved, project: Path) -> str:
    if not resolved.config.mlflow:
        return "MLflow is switched off"
    uri = resolve_uri(resolved.config.mlflow_tracking_uri, project, os.environ)
    probe_store(uri)
    is_own = resolved.config.mlflow_tracking_uri is None
    return f"runs are mirrored to {'mlflow.db in the project folder' if is_own else shown(uri)}"


def _caches() -> str:
    """Where datasets and dspy's replies are kept between runs."""
    dspys = Path(os.environ.get("DSPY_CACHEDIR") or Path.home() / ".dspy_cache")
    for folder, variable in ((data_dir(), "FLEET_DATA_DIR"), (dspys, "DSPY_CACHEDIR")):
        if not can_make(folder):
            raise UsageError(
                f"Cannot write to {folder}.", fix=f"export {variable}=A_FOLDER_OF_YOURS"
            )
    return f"datasets in {data_dir()}, dspy's in {dspys}"


def _disk(resolved: Resolved, project: Path) -> str:
    runs = project / resolved.config.runs_dir
    if not can_make(runs):
        raise UsageError(f"Cannot write to {runs}.", fix="--out DIR, or `runs_dir` in fleet.toml")
    there = next(place for place in (runs, *runs.parents) if place.exists())
    free = shutil.disk_usage(there).free
    if free < SMALLEST_DISK:
        raise UsageError(
            f"{free / (1 << 20):,.0f} MiB free for {runs}.",
            fix="make room, or give --out DIR on another disk",
        )
    return f"{free / (1 << 30):.1f} GiB free for {relative(runs)}"


def _finding(name: str, look: Callable[[], str]) -> Finding:
    try:
        return Finding(name=name, ok=True, detail=look())
    except FleetError as error:
        return Finding(name=name, ok=False, detail=error.message, fix=error.fix)
