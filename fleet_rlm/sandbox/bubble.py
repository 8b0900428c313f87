"""Namespaces around a box: the command line for bubblewrap, https://github.com/containers/bubblewrap.

The box sees the Python installation and the libraries of the system, read-only, four devices, and a
scratch folder in memory. There is no /proc in it, so none that could be read, and none to mount
where a container forbids that.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from fleet_rlm.errors import SandboxError
from fleet_rlm.sandbox import confine

SCRATCH = "/scratch"
"""The one folder of the box that can be written to."""
MAX_SCRATCH = 8 << 30
"""Bytes of all sessions together, or half of this machine's memory if that is less. They lie in
memory, and what one session may hold is looked at separately."""
DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")
ASK_S = 30.0


def wrap(bwrap: str, command: Sequence[str]) -> list[str]:
    """The command that runs `command` in a box.

    Without --die-with-parent: that means the parent *thread*, and a sandbox may be started by a
    thread that ends. The supervisor ends when the host's end of its socket closes.

    Args:
        bwrap: path of the program, version 0.7 or newer.
        command: a Python interpreter, its options and a script of this folder.

    Raises:
        SandboxError: the interpreter does not say what it needs to read.
    """
    size = min(MAX_SCRATCH, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2)
    spaces = ("user", "pid", "net", "ipc", "uts", "cgroup-try")
    arguments = [bwrap, *(f"--unshare-{space}" for space in spaces), "--cap-drop", "ALL"]
    arguments += ["--uid", "1000", "--gid", "1000", "--hostname", "sandbox"]
    for path in DEVICES:
        arguments += ["--dev-bind", path, path]
    arguments += ["--size", str(size), "--tmpfs", SCRATCH]
    # After the tmpfs: what is bound below it would be hidden otherwise.
    python, *paths = _needed_by(command[0])
    for path in _outermost({python, *paths, str(Path(confine.__file__).parent)}):
        arguments += ["--ro-bind", path, path]
    # Not command[0]: that may be a script that starts the interpreter, as those of pyenv are.
    return [*arguments, "--remount-ro", "/", "--chdir", SCRATCH, python, *command[1:]]


@functools.cache
def _needed_by(python: str) -> tuple[str, ...]:
    if python == sys.executable:
        return tuple(confine.needed_paths())
    try:
        done = subprocess.run(
            [python, "-s", "-B", confine.__file__],
            env={"PATH": os.environ.get("PATH", "/usr/bin:/bin")},
            capture_output=True,
            text=True,
            timeout=ASK_S,
            check=True,
        )
        return tuple(json.loads(done.stdout))
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        complaint = (getattr(error, "stderr", "") or str(error)).strip().splitlines()[-1:]
        raise SandboxError(f"{python} did not start. {''.join(complaint)}".rstrip()) from error


def _outermost(paths: set[str]) -> list[str]:
    """Without what lies below another one of them, and without devices."""
    kept: list[str] = []
    for path in sorted(paths - set(DEVICES)):
        if not any(path.startswith(f"{outer}/") for outer in kept):
            kept.append(path)
    return kept
