"""What `fleet-eval report` does."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from fleet_rlm.cli.given import find_runs
from fleet_rlm.errors import Exit, UsageError
from fleet_rlm.project import relative
from fleet_rlm.report.page import render_page
from fleet_rlm.report.plots import render
from fleet_rlm.runner.compare import arm_names, compare_groups
from fleet_rlm.runner.store import write_atomic
from fleet_rlm.runner.stored import open_run
from fleet_rlm.sandbox.redact import Redactor


def report_command(
    folders: Sequence[Path], *, out: Path | None, png: Path | None, allow_mixed: bool
) -> int:
    """Write the page of one or more runs, and its plots as pictures if asked to."""
    runs = [open_run(folder) for folder in find_runs(folders)]
    found = compare_groups([[run] for run in runs], names=arm_names(runs), allow_mixed=allow_mixed)
    page = render_page(found, redactor=Redactor.from_env(os.environ))
    target = out or runs[0].folder / "report.html"
    for folder in (target.parent, png):
        if folder is not None:
            _make(folder)
    write_atomic(target, page.html.encode("utf-8", "replace"))
    print(relative(target))
    if png is not None:
        for name, spec in page.plots.items():
            title = f"{found.suite}: {name.replace('-', ' ')}"
            title += " (simulated model)" if found.label else ""
            write_atomic(png / f"{name}.png", render(spec, "png", title))
            print(relative(png / f"{name}.png"))
    if found.label:
        print(found.label, file=sys.stderr)
    return Exit.OK


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"Cannot write to {folder}: {error.strerror}.", fix="-o FILE") from None
