"""The process that `save` starts to load a bundle afresh: without network, keys, or the program."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fleet_rlm.errors import FleetError, UsageError, one_line

SECONDS = 120.0
KEPT = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH", "DSPY_CACHEDIR")
"""Variables that the child inherits; keys and endpoints are not among them."""


def reload_digest(folder: Path, tools: Iterable[Any], env: Mapping[str, str]) -> str:
    """The state digest of the program that a fresh process loads from `folder`.

    Args:
        folder: a bundle.
        tools: the `dspy.Tool`s that it needs; the child gets stand-ins with the same arguments.
        env: this process's environment.

    Raises:
        UsageError: it cannot be loaded; says why.
    """
    package = Path(__file__).parents[2]
    path = os.pathsep.join(filter(None, [env.get("PYTHONPATH"), str(package)]))
    described = [{"name": tool.name, "desc": tool.desc, "args": tool.args} for tool in tools]
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", __name__, str(folder.absolute())],
            input=json.dumps(described),
            capture_output=True,
            text=True,
            timeout=SECONDS,
            env={name: env[name] for name in KEPT if name in env} | {"PYTHONPATH": path},
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise UsageError(f"A fresh process did not load the bundle in {SECONDS:.0f} s.") from None
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UsageError(f"A fresh process cannot load the bundle: {one_line(last)}")
    return done.stdout.strip().rpartition("\n")[2]


def main() -> int:
    """The child: load the bundle and print its digest."""
    sys.addaudithook(_refuse_network)
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
    warnings.simplefilter("ignore")
    import dspy

    from fleet_rlm.program.bundle import load
    from fleet_rlm.program.state import state_digest

    tools = [dspy.Tool(_stand_in, **described) for described in json.load(sys.stdin)]
    try:
        print(state_digest(load(sys.argv[1], tools=tools)))
    except FleetError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


def _stand_in(**_: Any) -> str:
    return "not available while a bundle is checked"


def _refuse_network(event: str, _: Any) -> None:
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname"):
        raise ConnectionRefusedError("loading a bundle needs no network")


if __name__ == "__main__":
    sys.exit(main())
