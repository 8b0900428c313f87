"""The box under attack: no attempt to get out of it may succeed, at any age of the kernel."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import escape
import pytest
from escape import ATTACKS, LIMITS, Canaries

from fleet_rlm.errors import SandboxError, SandboxUnavailable
from fleet_rlm.sandbox import levels
from fleet_rlm.sandbox.local import LocalSandbox
from fleet_rlm.sandbox.session import Limits, Session


@pytest.fixture(scope="module")
def box() -> Iterator[LocalSandbox]:
    with LocalSandbox(levels.choose("landlock"), limits=LIMITS) as sandbox:
        yield sandbox


@pytest.fixture
def canaries(tmp_path: Path) -> Iterator[Canaries]:
    with closing(Canaries(tmp_path)) as made:
        yield made


def test_no_attack_gets_out() -> None:
    """At every level and age of the kernel that can be had here, as this user and as nobody."""
    command = [sys.executable, "-B", escape.__file__, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout, done.stderr
    columns = json.loads(done.stdout)
    assert list(escape.escapes(columns)) == []
    assert done.returncode == 0
    ran = {name: report for name, report in columns.items() if isinstance(report, dict)}
    for report in ran.values():
        assert len(report) >= 140
    for name in escape.NAMES:
        with suppress(SandboxUnavailable):
            levels.choose(name)
            assert len([column for column in ran if f" {name} " in column]) >= len(escape.ABIS)
    table = escape.table(columns).splitlines()
    assert table[-1] == "0 escapes"
    assert any(line.startswith("forged frames") for line in table)


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
