"""What `fleet-eval rescore` does: the stored answers, scored by the rules of now."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from fleet_rlm.cli.given import open_suite, sort_overrides
from fleet_rlm.cli.inspect import label_of
from fleet_rlm.config import parse_overrides
from fleet_rlm.errors import Exit, UsageError
from fleet_rlm.project import project_dir
from fleet_rlm.report.tables import make_console, number, print_result
from fleet_rlm.runner.rescore import rescore
from fleet_rlm.runner.stored import open_run


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
    print_result(make_console(sys.stdout), found.summary, label_of(run))
    after = found.summary["score"]
    print(
        f"rescored  {found.scored} answers, {found.changed} of them changed:"
        f" {number(found.before)} before, {number(after)} now"
    )
    return Exit.OK
