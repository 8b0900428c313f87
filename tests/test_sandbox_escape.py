"""The box under attack: no attempt to get out of it may succeed, at any age of the kernel."""

from __future__ import annotations

import os
import random
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from fleet_rlm.errors import SandboxError, SandboxUnavailable
from fleet_rlm.sandbox import driver, levels
from fleet_rlm.sandbox.local import LocalSandbox
from fleet_rlm.sandbox.session import Limits, Session

ATTACKS = Path(__file__).with_name("sandbox_attacks.py").read_text(encoding="utf-8")
LIMITS = Limits(memory_bytes=512 << 20, file_bytes=64 << 20, scratch_bytes=32 << 20)


@pytest.fixture(scope="module")
def box() -> Iterator[LocalSandbox]:
    with LocalSandbox(levels.choose("landlock"), limits=LIMITS) as sandbox:
        yield sandbox


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


@pytest.fixture
def canaries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Canaries]:
    monkeypatch.setenv("CANARY_API_KEY", "sk-canary-secret-value")
    made = Canaries(tmp_path)
    yield made
    made.close()


@pytest.mark.parametrize("abi", [99, 3, 1], ids=["newest", "abi3", "abi1"])
@pytest.mark.parametrize("name", ["bwrap", "landlock"])
def test_no_attack_gets_out(name: str, abi: int, canaries: Canaries) -> None:
    try:
        level = levels.choose(name, landlock_abi=abi)
    except SandboxUnavailable as error:
        pytest.skip(str(error))
    assert level.isolated
    with LocalSandbox(level, limits=LIMITS) as box:
        _attack(box, canaries)


def _attack(box: LocalSandbox, canaries: Canaries) -> None:
    sibling, session = box.open(), box.open()
    # a file that every session may read and none may change: a stand-in under the installation
    readable = session.execute("import os; os.__file__").value
    before = Path(readable).read_bytes()
    config = canaries.config | {
        "readable": readable,
        "supervisor_pid": box.pid,
        "sibling_pid": sibling.execute("import os; os.getpid()").value,
        "sibling_scratch": sibling.execute("os.getcwd()").value,
    }
    result = session.execute(ATTACKS, {"CFG": config}, timeout_s=60)
    assert result.kind == "ok", result.error
    report = result.value
    allowed = {name: what for name, (verdict, what) in report.items() if verdict == "ALLOWED"}
    assert allowed == {}
    assert len(report) >= 110
    assert canaries.harmed() == []
    assert Path(readable).read_bytes() == before
    assert sibling.execute("6 * 7").value == 42


def test_attacks_have_teeth(canaries: Canaries) -> None:
    """The harmless ones among them succeed where nothing is locked."""
    with LocalSandbox(levels.UNSAFE) as sandbox:
        session = sandbox.open()
        got = session.execute(
            "import os, socket\n"
            "with socket.create_connection(('127.0.0.1', CFG['tcp_port'])) as s:\n"
            "    hello = s.recv(20)\n"
            "os.kill(CFG['canary_pid'], 0)\n"
            "[open(CFG['canary']).read(), hello.decode(), os.system('exit 7')]",
            {"CFG": canaries.config},
        ).value
        assert got == ["precious", "HELLO-FROM-HOST", 7 << 8]
        with pytest.raises(AssertionError):
            assert session.execute(ATTACKS, {"CFG": canaries.config}).kind == "ok"


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="machine code for x86_64")
def test_calls_of_another_architecture_kill_the_session(box: LocalSandbox) -> None:
    code = (
        "import ctypes, mmap\n"
        "pages = mmap.mmap(-1, 4096, prot=7)\n"
        "pages.write(bytes.fromhex('b814000000cd80c3'))  # getpid through int 0x80\n"
        "start = ctypes.addressof(ctypes.c_char.from_buffer(pages))\n"
        "ctypes.CFUNCTYPE(ctypes.c_int)(start)()"
    )
    with pytest.raises(SandboxError, match="SIGSYS"):
        box.open().execute(code)


def test_the_sum_of_all_files_is_limited(box: LocalSandbox) -> None:
    code = "for i in range(40):\n    open(f'f{i}', 'wb').write(b'x' * (1 << 20))\nimport time\n"
    with pytest.raises(SandboxError, match="size or number"):
        box.open().execute(code + "time.sleep(10)")


def test_number_of_files_is_limited(box: LocalSandbox) -> None:
    code = "for i in range(300): open(str(i), 'w').close()\nimport time; time.sleep(10)"
    with pytest.raises(SandboxError, match="size or number"):
        box.open(Limits(files=200)).execute(code)


def test_nothing_is_left_of_a_session(box: LocalSandbox) -> None:
    session = box.open()
    scratch = Path(
        session.execute(
            "import os\n"
            "top = os.getcwd()\n"
            "for i in range(100):\n    os.mkdir('deep' * 20); os.chdir('deep' * 20)\n"
            "os.mkdir('closed', 0)\n"
            "os.symlink('/etc', 'link')\n"
            "os.chdir(top); open('file', 'w').close(); top"
        ).value
    )
    assert scratch.is_dir()
    session.close()
    for _ in range(100):
        if not scratch.exists():
            break
        threading.Event().wait(0.05)
    assert not scratch.exists()
    assert Path("/etc").is_dir()


def test_sessions_find_nothing_of_each_other_in_memory(box: LocalSandbox) -> None:
    """Whatever one session was sent, the pages that the next one inherits do not hold it."""
    secret = f"needle-{random.randrange(1 << 60)}-"
    first = box.open()
    first.execute("x = secret", {"secret": secret * 1000})
    first.execute("len(tool())", tools=["tool"], invoke=lambda *_: secret * 1000)
    second: Session = box.open()
    scan = (
        "import ctypes, gc\n"
        "found = 0\n"
        "for item in gc.get_objects():\n"
        "    for part in gc.get_referents(item):\n"
        "        if isinstance(part, (str, bytes)) and len(part) < 10**7:\n"
        "            text = part if isinstance(part, str) else part.decode('latin-1')\n"
        "            found += (head + tail) in text\n"
        "address = id(bytearray(8)) & ~0xFFFFF\n"
        "raw = ctypes.string_at(id(gc), 1 << 16)\n"
        "found + ((head + tail).encode() in raw)"
    )
    head, tail = secret[:8], secret[8:]
    assert second.execute(scan, {"head": head, "tail": tail}).value == 0
    first.close()
    second.close()
