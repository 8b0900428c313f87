"""What `fleet-eval conformance` prints."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

from fleet_rlm.errors import Exit, UsageError
from fleet_rlm.report.tables import make_console, print_cells
from fleet_rlm.suites.conformance import reproduce


def conformance_command(data: Path, *, as_json: bool) -> int:
    """Compare our scorers with published results; exit code 1 when a cell differs."""
    if not data.is_dir():
        raise UsageError(
            f"No data folder {str(data)!r}",
            fix="git clone https://github.com/OpenBMB/InfiniteBench and pass it as --data",
        )
    cells = reproduce(data)
    equal = sum(cell.equal for cell in cells)
    if as_json:
        shown = {"cells": [asdict(cell) for cell in cells], "equal": equal, "compared": len(cells)}
        print(json.dumps(shown))
    else:
        print_cells(make_console(sys.stdout), cells)
        print(f"{equal} of {len(cells)} published cells reproduced")
    return Exit.OK if equal == len(cells) else Exit.GATE_FAILED
