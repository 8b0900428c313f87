"""Which isolation holds on this machine: asked of the kernel, proved by a self-test, said plainly.

Nothing weaker is ever chosen silently. `unsafe-process` exists by its explicit name only.
"""

from __future__ import annotations

import errno
import functools
import json
import os
import platform
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from fleet_rlm.errors import SandboxUnavailable, UsageError, nearest
from fleet_rlm.sandbox import bubble, confine

ABI_VARIABLE = "FLEET_RLM_LANDLOCK_ABI"
"""Emulates an older kernel: the highest Landlock version to use, 0 for none."""
SELF_TEST_S = 30.0
KILLED = frozenset({-signal.SIGKILL, 128 + signal.SIGKILL})
"""Exit codes of a self-test, and of bwrap around one, that somebody ended, the kernel for want of
memory perhaps: it has proved nothing, and is run once more."""

HELD = {
    "canary": "blocked",
    "write": "blocked",
    "connect": "blocked",
    "fork": "blocked",
    "signal": "blocked",
    "scratch": "not blocked",
}
"""What the self-test must report, word for word."""
HELD_IN_NAMESPACES = HELD | {"canary": "absent", "write": "absent"}
"""The same where files of the host do not even have a name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """How strongly generated code is kept from this machine."""

    name: str
    label: str
    """In plain words, for banners and stored results."""
    isolated: bool
    """False: generated code has the rights of the user."""
    landlock_abi: int = 0
    """Version of Landlock in use, 0 for none."""
    bwrap: str | None = None
    """Path of bubblewrap, where the box has namespaces of its own."""
    advice: str | None = field(default=None, compare=False)
    """Why it is not the strongest level, and what would mend that."""


UNSAFE = Level(
    name="unsafe-process",
    label="NOT ISOLATED: model-written code runs with your rights",
    isolated=False,
)
MODAL = Level(
    name="modal",
    label=(
        "runs in a Modal sandbox of its own: gVisor, no network unless allowed by name, none of "
        "your files and keys"
    ),
    isolated=True,
)
"""Of a sandbox elsewhere, which `choose` never gives."""
LANDLOCK_LABEL = (
    "runs in a locked box on this machine: no network, no access to your files, keys or processes; "
    "can see that files exist (names it guesses, sizes, link targets), not read them; its disk use "
    "is looked at twice a second"
)
BWRAP_LABEL = (
    "runs in a locked box on this machine: no network, no access to your files, keys or processes, "
    "not even to their names; its files lie in memory, and their size is looked at twice a second"
)
NAMES = ("bwrap", "landlock", UNSAFE.name)
"""Levels of this machine."""


class _Unfit(Exception):
    """A level does not hold here.

    Args:
        why: for the message.
        fix: what would mend it.
    """

    def __init__(self, why: str, fix: str) -> None:
        super().__init__(why)
        self.why, self.fix = why, fix


def choose(
    level: str = "auto", *, landlock_abi: int | None = None, env: Mapping[str, str] | None = None
) -> Level:
    """The level to run generated code at, self-tested once per process.

    Args:
        level: "auto" for the strongest that holds, or a name.
        landlock_abi: highest Landlock version to use, 0 for none: emulates an older kernel. The
            variable FLEET_RLM_LANDLOCK_ABI does the same.
        env: the environment to read; that of this process when absent.

    Raises:
        SandboxUnavailable: nothing holds, or the named level does not. Says what was tried, why it
            failed and what would mend it.
        UsageError: no level of that name, or the variable is not a number.
    """
    if level == MODAL.name:
        raise UsageError("modal is no box of this machine", fix="fleet_rlm.ModalInterpreter")
    if level not in ("auto", *NAMES):
        known = ("auto", *NAMES, MODAL.name)
        raise UsageError(
            f"No sandbox level {level!r}. {nearest(level, known)}", fix="--sandbox auto"
        )
    if sys.platform != "linux":
        raise SandboxUnavailable(
            f"No generated code is run here: the sandbox is part of Linux, and this is "
            f"{sys.platform}.",
            fix="--sandbox modal, or the same command on Linux (on Windows: in WSL 2)",
        )
    if level == UNSAFE.name:
        return UNSAFE
    setting = (os.environ if env is None else env).get(ABI_VARIABLE)
    if landlock_abi is None and setting:
        if not setting.isdecimal():
            raise UsageError(f"{ABI_VARIABLE}={setting!r} is not a number", fix=_unset())
        landlock_abi = int(setting)
    with _LOCK:
        try:
            locked = _landlock(landlock_abi)
        except _Unfit as unfit:
            raise _refusal("landlock", unfit) from unfit
        if level == locked.name:
            return locked
        try:
            return _bwrap(locked)
        except _Unfit as unfit:
            if level == "bwrap":
                raise _refusal(level, unfit) from unfit
            advice = f"The stronger level bwrap does not hold: {unfit.why}. Try: {unfit.fix}"
            return replace(locked, advice=advice)


def _refusal(name: str, unfit: _Unfit) -> SandboxUnavailable:
    return SandboxUnavailable(
        f"No isolation holds here, so no generated code is run. Tried {name}: {unfit.why}.",
        fix=f"{unfit.fix} (or, with your own rights at stake: --sandbox {UNSAFE.name})",
    )


def box_environment(scratch: str) -> dict[str, str]:
    """The environment of a box: built from nothing, so there is no secret in it."""
    environment = {
        "PATH": "/usr/bin:/bin",
        "LANG": "C.UTF-8",
        "HOME": scratch,
        "USER": "sandbox",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONHASHSEED": "0",  # sets print in the same order in every session
        "MALLOC_ARENA_MAX": "2",  # address space per thread, measured: 245 threads in 2 GB, not 133
    }
    environment |= {f"{name}_NUM_THREADS": "1" for name in ("OPENBLAS", "OMP", "MKL")}
    if libraries := os.environ.get("LD_LIBRARY_PATH"):  # some Pythons do not start without it
        environment["LD_LIBRARY_PATH"] = libraries
    return environment


_LOCK = threading.Lock()


def _unset() -> str:
    return f"unset {ABI_VARIABLE}"


@functools.cache
def _landlock(cap: int | None) -> Level:
    abi = _kernel_abi()
    if cap is not None:
        abi = min(abi, cap)
    if not abi:
        raise _Unfit(f"{ABI_VARIABLE}=0 hides the kernel's support", _unset())
    _prove(abi)
    return Level(name="landlock", label=LANDLOCK_LABEL, isolated=True, landlock_abi=abi)


@functools.cache
def _bwrap(locked: Level) -> Level:
    """Namespaces around what `locked` does.

    Raises:
        _Unfit: bubblewrap is absent, too old, or may not make namespaces here.
    """
    program = shutil.which("bwrap")
    if program is None:
        raise _Unfit("bubblewrap is not installed", "sudo apt-get install bubblewrap")
    _prove(locked.landlock_abi, bwrap=program)
    return replace(locked, name="bwrap", label=BWRAP_LABEL, bwrap=program)


def _kernel_abi() -> int:
    try:
        confine.filter_program(os.getpid())
        return confine.landlock_abi()
    except OSError as error:
        raise _Unfit(*_explain(error)) from error


def _explain(error: OSError) -> tuple[str, str]:
    """Why the kernel refuses Landlock, and what mends it."""
    release = platform.release()
    if error.errno == errno.EOPNOTSUPP:
        path = Path("/sys/kernel/security/lsm")
        active = path.read_text().strip() if path.exists() else "the modules in use"
        return (
            f"Linux {release} has it switched off",
            f"add lsm=landlock,{active} to the kernel command line and reboot",
        )
    if error.errno == errno.EPERM:
        return (
            "a filter around this process forbids it, that of an old container runtime perhaps",
            "docker run --security-opt seccomp=unconfined ...",
        )
    if "microsoft" in release.lower():
        return f"Linux {release} has none of it", "wsl --update"
    return f"{error.strerror or error} (Linux {release})", "use Linux 5.13 or later"


def _prove(abi: int, *, bwrap: str | None = None) -> None:
    """Start a child that locks itself in as workers do, in namespaces or not, and tries to get out.

    Raises:
        _Unfit: it got out, or could not lock itself in.
    """
    child = _self_test(abi, bwrap)
    if child.returncode in KILLED:
        child = _self_test(abi, bwrap)
    if child.returncode:
        last = (child.stderr.strip().splitlines() or [f"exit code {child.returncode}"])[-1]
        if bwrap and last.startswith("bwrap:"):
            raise _Unfit(last, _bwrap_fix(last))
        raise _Unfit(f"the self-test could not lock itself in: {last}", "fleet-rlm doctor")
    found, held = json.loads(child.stdout), HELD_IN_NAMESPACES if bwrap else HELD
    if found != held:
        wrong = "; ".join(f"{what} {found[what]}" for what in held if found[what] != held[what])
        raise _Unfit(f"the self-test got out: {wrong}", "fleet-rlm doctor")


def _self_test(abi: int, bwrap: str | None) -> subprocess.CompletedProcess[str]:
    with tempfile.TemporaryDirectory(prefix="fleet-rlm-") as folder:
        canary, scratch = Path(folder, "canary"), Path(folder, "scratch")
        canary.write_text(secrets.token_hex())
        scratch.mkdir()
        place = bubble.SCRATCH if bwrap else str(scratch)
        command = [sys.executable, "-s", "-B", confine.__file__, place, str(canary), str(abi)]
        if bwrap:
            command = bubble.wrap(bwrap, command)
        try:
            return subprocess.run(
                command,
                env=box_environment(place),
                capture_output=True,
                text=True,
                timeout=SELF_TEST_S,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise _Unfit(f"the self-test did not run: {error}", "fleet-rlm doctor") from error


def _bwrap_fix(complaint: str) -> str:
    """What mends bubblewrap's complaint. Ubuntu 24.04 forbids namespaces to all but a few programs,
    see containers/bubblewrap#632."""
    if "Unknown option" in complaint:
        return "install bubblewrap 0.7 or newer"
    if Path("/proc/sys/kernel/apparmor_restrict_unprivileged_userns").exists():
        return "sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0"
    return "sudo sysctl -w user.max_user_namespaces=15000"
