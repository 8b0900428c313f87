"""Where the processes of a loopback sandbox live: namespaces around a private root, or none."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

SYSTEM = ("bin", "sbin", "lib", "lib32", "lib64", "libx32", "usr", "etc")
PRIVATE = ("opt", "tmp", "root", "home", "var/tmp", "mnt", "run")
FS_TOOL = str(Path(__file__).with_name("fs_tool.py"))
PIPE = asyncio.subprocess.PIPE


class Bind(NamedTuple):
    """A folder of the host inside of a jail."""

    source: Path
    inside: str
    read_only: bool


def namespaces_hold() -> bool:
    """Can this user make namespaces here?"""
    if not all(shutil.which(program) for program in ("unshare", "nsenter", "setpriv")):
        return False
    command = ["unshare", *_user_flags("--map-root-user"), "--mount", "--pid", "--net", "--fork"]
    return subprocess.run([*command, "true"], capture_output=True).returncode == 0


def _user_flags(extra: str) -> list[str]:
    return [] if os.geteuid() == 0 else ["--user", extra]


class PlainJail:
    """No jail: ordinary processes. Absolute paths below `moved` are sent to a private root."""

    moved = ("/opt/fleet", "/box", "/blobs", "/data")

    def __init__(self, root: Path, *, offline: bool) -> None:
        self.root, self.offline = root, offline
        self.processes: list[asyncio.subprocess.Process] = []

    async def start(self, binds: Sequence[Bind]) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        for bind in binds:
            place = self.outside(bind.inside)
            place.parent.mkdir(parents=True, exist_ok=True)
            if not place.exists():
                place.symlink_to(bind.source)

    def outside(self, inside: str) -> Path:
        """Where the host finds a path of the jail."""
        return self.root / inside.lstrip("/")

    async def spawn(
        self, argv: Sequence[str], env: Mapping[str, str], folder: str
    ) -> asyncio.subprocess.Process:
        """Start a process with pipes on its three streams."""
        self.outside(folder).mkdir(parents=True, exist_ok=True)
        process = await asyncio.create_subprocess_exec(
            *self._command(argv, folder),
            env={**env, "MODAL_LOOPBACK_ROOT": self._tool_root()},
            cwd=self._folder(folder),
            stdin=PIPE,
            stdout=PIPE,
            stderr=PIPE,
            start_new_session=True,
        )
        self.processes.append(process)
        return process

    def _tool_root(self) -> str:
        return str(self.root)

    def _folder(self, folder: str) -> Path:
        return self.outside(folder)

    def _command(self, argv: Sequence[str], folder: str) -> list[str]:
        moved = list(argv)
        if FS_TOOL not in argv:  # which finds its root by itself
            for start in self.moved:
                moved = [word.replace(start, f"{self.root}{start}") for word in moved]
        # A killed server takes its sandboxes with it.
        prefix = ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []
        return [*prefix, *moved]

    def destroy(self) -> None:
        """Kill everything inside."""
        for process in self.processes:
            self.kill(process)

    @staticmethod
    def kill(process: asyncio.subprocess.Process) -> None:
        """Kill one process and its group."""
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)

    async def close(self) -> None:
        """Wait for what `destroy` killed."""
        for process in self.processes:
            await process.wait()
            process._transport.close()  # type: ignore[attr-defined]


class NamespaceJail(PlainJail):
    """Namespaces of its own for mounts and processes and, offline, for the network."""

    def __init__(self, root: Path, *, offline: bool) -> None:
        super().__init__(root, offline=offline)
        self._first: asyncio.subprocess.Process | None = None
        self._pid = 0

    async def start(self, binds: Sequence[Bind]) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        python = [Bind(Path(place), place, True) for place in _python_places()]
        net = ["--net"] if self.offline else []
        self._first = await asyncio.create_subprocess_exec(
            *("setpriv", "--pdeathsig", "KILL", "unshare", *_user_flags("--map-root-user")),
            *("--mount", "--pid", "--fork", "--kill-child", "--propagation", "private", *net),
            *("/bin/sh", "-c", self._script([*python, *binds])),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=PIPE,
            stderr=PIPE,
            start_new_session=True,
        )
        assert self._first.stdout
        assert self._first.stderr
        if (await self._first.stdout.readline()).strip() != b"ready":
            raise RuntimeError(f"no jail: {(await self._first.stderr.read()).decode()}")
        pid = self._first.pid
        self._pid = int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])

    def _script(self, binds: Sequence[Bind]) -> str:
        root = shlex.quote(str(self.root))
        lines = ["set -e", f"mount --bind {root} {root}", f"cd {root}"]
        for name in SYSTEM:
            if Path("/", name).is_symlink():
                target = shlex.quote(str(Path("/", name).readlink()))
                lines.append(f"[ -e {name} ] || [ -L {name} ] || ln -s {target} {name}")
            elif Path("/", name).is_dir():
                lines.append(f"mkdir -p {name}; mount --rbind /{name} {name}")
                lines.append(f"mount -o remount,bind,ro {name} 2>/dev/null || true")
        lines.append(f"mkdir -p dev proc {' '.join(PRIVATE)}; chmod 1777 tmp")
        lines.append("mount --rbind /dev dev; mount -t proc proc proc")
        for bind in binds:
            place = shlex.quote(bind.inside.lstrip("/"))
            lines.append(f"mkdir -p {place}; mount --bind {shlex.quote(str(bind.source))} {place}")
            if bind.read_only:
                lines.append(f"mount -o remount,bind,ro {place}")
        # "ready" comes from inside: nsenter copies the root of this process, which before the
        # chroot is still the host's.
        wait = "echo ready; trap : TERM; while :; do sleep 86400 & wait $!; done"
        lines.append(f"exec chroot {root} /bin/sh -c {shlex.quote(wait)}")
        return "\n".join(lines)

    def _tool_root(self) -> str:
        return ""

    def _folder(self, folder: str) -> Path:
        return self.root

    def _command(self, argv: Sequence[str], folder: str) -> list[str]:
        enter = ["nsenter", "-t", str(self._pid), "-m", "-p", "-r", f"--wd={self.root}{folder}"]
        enter += _user_flags("--preserve-credentials")
        return [*enter, *(["-n"] if self.offline else []), "--", *argv]

    def destroy(self) -> None:
        if self._pid:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(self._pid, signal.SIGKILL)  # the namespace's first: all inside die with it
        super().destroy()

    async def close(self) -> None:
        if self._first is not None:
            await self._first.wait()
            self._first._transport.close()  # type: ignore[attr-defined]
        await super().close()


def _python_places() -> list[str]:
    places = dict.fromkeys(os.path.realpath(place) for place in (sys.base_prefix, sys.prefix))
    return [place for place in places if not place.startswith(("/usr", "/lib", "/bin"))]
