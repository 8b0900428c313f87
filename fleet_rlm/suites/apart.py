"""Reads in data of one's own in a process apart, so that gold never enters one that asks models."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from fleet_rlm.errors import Exit, UsageError, one_line
from fleet_rlm.suites.fetch import fetch
from fleet_rlm.suites.manifest import Manifest, load_manifest


def fetch_apart(manifest: Manifest, env: Mapping[str, str]) -> None:
    """As `fetch`, in a child: columns that are not named, and gold, stay out of this process.

    JSON and CSV are parsed whole before columns are dropped, and Parquet tells the least and the
    greatest value of every column in its footer.

    Args:
        manifest: of files on this machine.
        env: this process's environment.

    Raises:
        UsageError: as `fetch`.
    """
    package = Path(__file__).parents[2]
    path = os.pathsep.join(filter(None, [env.get("PYTHONPATH"), str(package)]))
    done = subprocess.run(
        [sys.executable, "-P", "-m", __name__, str(manifest.path), str(manifest.project)],
        capture_output=True,
        text=True,
        env={**env, "PYTHONPATH": path},
        check=False,
    )
    if done.returncode == Exit.USAGE:
        raise UsageError(**json.loads(done.stdout))
    if done.returncode != Exit.OK:
        last = (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1]
        raise UsageError(
            f"{manifest.path}: reading it in ended early: {one_line(last)}",
            fix=f"fleet-eval fetch {manifest.name}",
        )


def main() -> int:
    """The child: read in what a manifest names; what is wrong is said as JSON."""
    path, project = map(Path, sys.argv[1:])
    try:
        fetch(load_manifest(path, project))
    except UsageError as error:
        print(json.dumps({"message": error.message, "fix": error.fix}))
        return Exit.USAGE
    return Exit.OK


if __name__ == "__main__":
    sys.exit(main())
