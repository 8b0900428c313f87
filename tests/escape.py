"""`make escape`: the attack battery, at every level that holds here, as root and as nobody.

    python tests/escape.py            a table; exit code 1 if anything got out
    python tests/escape.py --json     the same for programs

As root it moves into a mount namespace of its own first, which ends with it: what an attack might
mount or write over is not this machine's. Where nothing confines, nothing is attacked.
"""

from __future__ import annotations

import json
import os
import pwd
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from fleet_rlm.errors import SandboxError, SandboxUnavailable
from fleet_rlm.sandbox import driver, levels
from fleet_rlm.sandbox.local import LocalSandbox
from fleet_rlm.sandbox.session import SHARED_BYTES, Limits, Session

HERE = Path(__file__).resolve().parent
ATTACKS = (HERE / "sandbox_attacks.py").read_text(encoding="utf-8")
LIMITS = Limits(
    memory_bytes=512 << 20, file_bytes=64 << 20, scratch_bytes=32 << 20, files=200, grace_s=20.0
)
IMPATIENT = replace(LIMITS, grace_s=0.2)
"""For what never ends by itself. The others have as long as a busy machine may take."""
NAMES = ("bwrap", "landlock")
ABIS = {"newest": 99, "abi 3": 3, "abi 1": 1}
UNPRIVILEGED = "nobody"
CONTEXT = "of another sample " * (SHARED_BYTES // 10)
GROWTH_KB = 20_000
"""What the host may grow by, whatever a session prints."""

Report = dict[str, list[str]]
"""Attack -> its family, BLOCKED or ALLOWED, and what it got or was told."""


class Canaries:
    """What an escaped guest would find: a file, a process, sockets of every kind, a secret."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "canary"
        self.file.write_text("precious")
        self.file.chmod(0o644)
        os.utime(self.file, (10**9, 10**9))
        self.process = subprocess.Popen(["sleep", "600"], env={"CANARY_SECRET": "sk-canary"})
        self.abstract = f"fleet-rlm-test-{random.randrange(1 << 40)}"
        self.sockets = [
            self._listen(socket.AF_INET, ("127.0.0.1", 0)),
            self._listen(socket.AF_UNIX, str(folder / "stream")),
            self._listen(socket.AF_UNIX, "\0" + self.abstract),
        ]
        self.datagrams = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.datagrams.bind(str(folder / "datagram"))
        self.datagrams.setblocking(False)
        self.config = {
            "confined": True,
            "canary": str(self.file),
            "canary_pid": self.process.pid,
            "host_pid": os.getpid(),
            "tcp_port": self.sockets[0].getsockname()[1],
            "unix_path": str(folder / "stream"),
            "unix_abstract": self.abstract,
            "unix_datagram": str(folder / "datagram"),
            "driver": driver.__file__,
            "file_bytes": LIMITS.file_bytes,
        }

    @staticmethod
    def _listen(family: int, address: Any) -> socket.socket:
        server = socket.socket(family)
        server.bind(address)
        server.listen(8)

        def greet() -> None:
            while True:
                try:
                    peer, _ = server.accept()
                except OSError:
                    return
                with peer:
                    peer.sendall(b"HELLO-FROM-HOST")

        threading.Thread(target=greet, daemon=True).start()
        return server

    def harmed(self) -> list[str]:
        harm = []
        if not self.file.exists() or self.file.read_text() != "precious":
            harm.append("the file")
        elif self.file.stat().st_mode & 0o777 != 0o644 or self.file.stat().st_mtime != 10**9:
            harm.append("its metadata")
        if self.process.poll() is not None:
            harm.append("the process")
        with suppress(BlockingIOError):
            harm.append(f"a datagram came out: {self.datagrams.recv(10)!r}")
        return harm + [path.name for path in self.file.parent.glob("pwned*")]

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for server in self.sockets:
            server.shutdown(socket.SHUT_RDWR)
            server.close()
        self.datagrams.close()


class Loss(NamedTuple):
    """An attack that may cost the session that makes it, and nobody else."""

    family: str
    code: str
    ends: bool
    """The session is lost over it; else it goes on, and its cell must not be believed."""
    timeout_s: float = 10.0


FORGE = """
import json, os, struct
def forge(kind, payload, times=1):
    data = json.dumps(payload).encode()
    os.write(3, (struct.pack("!IIBB", len(data), 1, kind, 0) + data) * times)
"""
FORGED = "{'id': 1, 'kind': 'final', 'value': {'output': 'forged'}, 'stdout': ['', '', 0]}"
LOSSES = {
    "fill_the_disk": Loss(
        "disk", "for i in range(40): open(str(i), 'wb').write(b'x' * (1 << 20))\nwait()", True
    ),
    "too_many_files": Loss("disk", "for i in range(300): open(str(i), 'wb').close()\nwait()", True),
    "endless_output": Loss("stdout", "while True: print('z' * 2_000_000)", False, 0.3),
    "endless_output_of_c_code": Loss(
        "stdout", "import os\nfor _ in range(300): os.write(1, b'y' * 65_536)", False
    ),
    "forged_result": Loss("forged frames", f"{FORGE}forge({driver.RESULT}, {FORGED})", False),
    "forged_death_of_others": Loss(
        "forged frames", f"{FORGE}forge({driver.DIED}, {{'why': 'closed'}}, 9)", False
    ),
    "forged_call": Loss(
        "forged frames", f"{FORGE}forge({driver.TOOL_CALL}, {{'id': []}})\nwait()", True
    ),
    "frame_of_4_gb": Loss("forged frames", "import os; os.write(3, b'\\xff' * 10)\nwait()", True),
    "flood_of_frames": Loss(
        "forged frames", f"{FORGE}\nwhile True: forge({driver.RESULT}, {{'id': 1}}, 100)", True
    ),
    "flood_of_calls": Loss(
        "forged frames",
        f"{FORGE}call = dict(id=1, name='hang', args=[], kwargs={{}})\n"
        f"while True: forge({driver.TOOL_CALL}, call)",
        True,
    ),
    "end_the_process": Loss("processes", "import os; os._exit(0)", True),
    "stop_the_process": Loss(
        "processes", "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)", True, 0.3
    ),
    "crash": Loss("processes", "import ctypes; ctypes.string_at(0)", True),
    "swallow_every_interrupt": Loss(
        "processes",
        "import time\nwhile True:\n    try: time.sleep(9)\n    except BaseException: pass",
        True,
        0.3,
    ),
}
if os.uname().machine == "x86_64":
    LOSSES["calls_of_another_architecture"] = Loss(
        "kernel",
        "import ctypes, mmap\n"
        "pages = mmap.mmap(-1, 4096, prot=7)\n"
        "pages.write(bytes.fromhex('b814000000cd80c3'))  # getpid through int 0x80\n"
        "start = ctypes.addressof(ctypes.c_char.from_buffer(pages))\n"
        "ctypes.CFUNCTYPE(ctypes.c_int)(start)()",
        True,
    )


def battery(box: LocalSandbox, found: Canaries) -> Report:
    """Every attack, by one session on another, on the host and on the machine."""
    sibling, session = box.open(), box.open()
    sibling.execute("kept = 1", {"context": CONTEXT})
    # a file that every session may read and none may change: a stand-in under the installation
    readable = session.execute("import os; os.__file__").value
    before = Path(readable).read_bytes()
    config = found.config | {
        "readable": readable,
        "supervisor_pid": box.pid,
        "sibling_pid": sibling.execute("import os; os.getpid()").value,
        "sibling_scratch": sibling.execute("os.getcwd()").value,
    }
    result = session.execute(ATTACKS, {"CFG": config}, timeout_s=60)
    if result.kind != "ok":
        raise SystemExit(f"the attacks did not run: {result.error}")
    report: Report = dict(result.value)
    session.close()
    for name, attack in LOSSES.items():
        session = box.open(IMPATIENT if attack.ends else LIMITS)
        report[name] = [attack.family, *_lose(session, attack)]
    harm = found.harmed()
    if Path(readable).read_bytes() != before:
        harm.append(readable)
    if sibling.execute("kept").value != 1:
        harm.append("another session")
    report["harm_done"] = ["files", "ALLOWED" if harm else "BLOCKED", ", ".join(harm)]
    sibling.close()
    return report


def _lose(session: Session, attack: Loss) -> tuple[str, str]:
    hold = threading.Event()
    tools = {"hang": lambda: hold.wait(20), "wait": lambda: hold.wait(20)}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        result = session.execute(
            attack.code,
            tools=tools,
            invoke=lambda name, *_: tools[name](),
            timeout_s=attack.timeout_s,
        )
        ended, what = False, f"{result.kind}: {result.value!r} {result.error[-60:]}"
        believed = result.value is not None or session.execute("6 * 7").value != 42
    except SandboxError as error:
        ended, believed, what = True, False, error.message
    finally:
        hold.set()
        session.close()
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    if attack.ends is not ended or believed:
        return "ALLOWED", what[:80]
    if attack.family == "stdout" and grown > GROWTH_KB:
        return "ALLOWED", f"the host grew by {grown:,} KB"
    return "BLOCKED", what[:80]


def attack_as_me() -> dict[str, Report | str]:
    """Level -> report, or why it does not hold here."""
    os.environ["CANARY_API_KEY"] = "sk-canary-secret-value"  # no box may have it
    cases = {f"{name} {age}": (name, abi) for name in NAMES for age, abi in ABIS.items()}
    with ThreadPoolExecutor(len(ABIS)) as pool:
        return dict(zip(cases, pool.map(_attack_level, cases.values()), strict=True))


def _attack_level(case: tuple[str, int]) -> Report | str:
    name, abi = case
    try:
        level = levels.choose(name, landlock_abi=abi)
    except SandboxUnavailable as error:
        return error.message
    if not level.isolated:
        raise SystemExit(f"{name} does not confine: nothing is attacked")
    with (
        tempfile.TemporaryDirectory(prefix="canaries-") as folder,
        closing(Canaries(Path(folder))) as canaries,
        LocalSandbox(level, limits=LIMITS) as box,
    ):
        return battery(box, canaries)


def attack_as(user: str) -> dict[str, Report | str]:
    """The same as another user, from a copy that it can read, with a Python that it can run."""
    with tempfile.TemporaryDirectory(prefix="escape-") as folder:
        place = Path(folder)
        shutil.copytree(HERE.parent / "fleet_rlm", place / "fleet_rlm")
        (place / "tests").mkdir()
        for name in ("escape.py", "sandbox_attacks.py"):
            shutil.copy(HERE / name, place / "tests")
        subprocess.run(["chmod", "-R", "a+rX", str(place)], check=True)
        for python in (sys.executable, "/usr/bin/python3", "/usr/local/bin/python3"):
            done = _run(user, place, python, "-B", str(place / "tests" / "escape.py"), "--as-me")
            if done is not None:
                return dict(json.loads(done))
    return {"at all": f"{user} can run no Python from 3.11 on"}


def _run(user: str, place: Path, *command: str) -> str | None:
    """What the command prints; None when the user cannot run its Python, or that is too old."""
    person = pwd.getpwnam(user)
    who: dict[str, Any] = {
        "user": person.pw_uid,
        "group": person.pw_gid,
        "extra_groups": [],
        "cwd": place,
        "env": {"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "PYTHONPATH": str(place)},
        "text": True,
        "check": True,
    }
    probe = "import sys; sys.exit(sys.version_info < (3, 11))"
    try:
        subprocess.run([command[0], "-c", probe], capture_output=True, **who)
    except (OSError, subprocess.CalledProcessError):
        return None
    return str(subprocess.run(command, stdout=subprocess.PIPE, **who).stdout)


def enter_a_throw_away_mount_namespace() -> None:
    """Start anew inside one, if that is possible and was not done."""
    unshare = shutil.which("unshare")
    if os.geteuid() or unshare is None or os.environ.get("ESCAPE_INSIDE"):
        return
    inside = [unshare, "--mount", "--propagation", "private"]
    if subprocess.run([*inside, "true"], capture_output=True, check=False).returncode:
        print("no mount namespace of its own can be made here", file=sys.stderr)
        return
    os.environ["ESCAPE_INSIDE"] = "1"
    os.execv(unshare, [*inside, sys.executable, "-B", *sys.argv])


def table(columns: dict[str, Report | str]) -> str:
    """A row for each family: how many of its attacks were blocked, by level and user."""
    ran = {name: report for name, report in columns.items() if isinstance(report, dict)}
    families = dict.fromkeys(what[0] for report in ran.values() for what in report.values())
    rows = [["", *(name.split(" ", 1)[0] for name in ran)]]
    rows += [["", *(name.split(" ", 1)[1] for name in ran)]]
    for family in [*families, "all"]:
        counts = []
        for report in ran.values():
            told = Counter(what[1] for what in report.values() if family in (what[0], "all"))
            counts.append(f"{told['BLOCKED']} of {told.total()}")
        rows.append([family, *counts])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    lines += [f"not run: {name}: {why}" for name, why in columns.items() if isinstance(why, str)]
    out = list(escapes(columns))
    return "\n".join(["attacks that were blocked", *lines, "", *out, f"{len(out)} escapes"])


def escapes(columns: dict[str, Report | str]) -> Iterator[str]:
    """What got out, in a line each."""
    for column, report in columns.items():
        for name, (_, verdict, what) in report.items() if isinstance(report, dict) else ():
            if verdict != "BLOCKED":
                yield f"ESCAPE {column}: {name}: {what}"


def main(arguments: Sequence[str]) -> int:
    if "--as-me" in arguments:
        print(json.dumps(attack_as_me()))
        return 0
    enter_a_throw_away_mount_namespace()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    users = [pwd.getpwuid(os.geteuid()).pw_name]
    with ThreadPoolExecutor() as pool:
        found = [pool.submit(attack_as_me)]
        if os.geteuid() == 0:
            users.append(UNPRIVILEGED)
            found.append(pool.submit(attack_as, UNPRIVILEGED))
    columns = {
        f"{user} {name}": told
        for user, reports in zip(users, found, strict=True)
        for name, told in reports.result().items()
    }
    print(json.dumps(columns) if "--json" in arguments else table(columns))
    return int(any(escapes(columns)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
