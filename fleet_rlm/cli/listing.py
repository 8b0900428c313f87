"""Lists of a project's content: every file that reads, and a line for each that does not."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from fleet_rlm.errors import Exit, UsageError
from fleet_rlm.project import Content, Kind, list_content, project_dir
from fleet_rlm.report.tables import make_console

Row = dict[str, Any]


def print_content(
    kind: Kind,
    start: Path,
    describe: Callable[[Content], Row],
    show: Callable[[Console, list[Row]], None],
    *,
    as_json: bool,
) -> int:
    """Print all content of a kind; a malformed file is named on stderr and gives exit code 2."""
    rows: list[Row] = []
    broken = False
    for content in list_content(kind, project_dir(start)):
        try:
            rows.append({"name": content.name, "origin": content.origin} | describe(content))
        except UsageError as error:
            print(f"error: {error}", file=sys.stderr)
            broken = True
    if as_json:
        print(json.dumps(rows))
    else:
        show(make_console(sys.stdout), rows)
    return Exit.USAGE if broken else Exit.OK
