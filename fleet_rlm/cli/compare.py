"""What `fleet-eval compare` does."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from fleet_rlm.cli.given import find_runs
from fleet_rlm.errors import Exit, UsageError
from fleet_rlm.report.comparison import render
from fleet_rlm.runner.compare import compare


def compare_command(
    baseline: Path,
    candidates: Sequence[Path],
    *,
    allow_mixed: bool,
    as_json: bool,
    as_markdown: bool,
) -> int:
    """Print what differs between stored runs."""
    if as_json and as_markdown:
        raise UsageError("--json and --md are two forms of one output.", fix="one of them")
    baseline, *others = find_runs([baseline, *candidates])
    found = compare(baseline, *others, allow_mixed=allow_mixed)
    if as_json:
        print(json.dumps(found.to_json()))
    else:
        sys.stdout.write(render(found, "markdown" if as_markdown else "text") + "\n")
    return Exit.OK
