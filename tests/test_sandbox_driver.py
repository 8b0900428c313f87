"""The driver itself: its frames, its cleaning up, and the same box over plain pipes."""

from __future__ import annotations

import ast
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleet_rlm.errors import SandboxUnavailable
from fleet_rlm.sandbox import confine, driver, levels
from fleet_rlm.sandbox.local import LocalSandbox
from fleet_rlm.sandbox.session import SHARED_BYTES, Limits

FRAME = st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 255), st.binary(max_size=300))


@settings(max_examples=60, deadline=None)
@given(st.lists(FRAME, max_size=8), st.lists(st.integers(1, 400), min_size=1, max_size=20))
def test_frames_survive_any_cut(frames: list[tuple[int, int, bytes]], cuts: list[int]) -> None:
    sender, receiver = socket.socketpair()
    out = driver.Conn(driver.SocketPort(sender))
    for frame in frames:
        out.push(*frame)
    assert out.flush()
    sender.close()
    stream = b""
    while data := receiver.recv(1 << 16):
        stream += data
    receiver.close()

    class Pieces:
        read_fd = write_fd = -1

        def read(self) -> tuple[bytes, list[int]]:
            nonlocal stream
            size = cuts.pop() if cuts else 1000
            piece, stream = stream[:size], stream[size:]
            return piece, []

    conn = driver.Conn(Pieces())  # type: ignore[arg-type]
    got = []
    while conn.feed():
        got += [(frame.sid, frame.kind, frame.payload) for frame in conn.frames()]
    assert got == frames


def test_a_header_that_promises_too_much_is_refused() -> None:
    sender, receiver = socket.socketpair()
    sender.send(driver.HEADER.pack(driver.MAX_FRAME + 1, 0, driver.RESULT, 0))
    conn = driver.Conn(driver.SocketPort(receiver))
    conn.feed()
    with pytest.raises(ValueError, match="bytes"):
        list(conn.frames())
    sender.close()
    receiver.close()


def test_erase_follows_no_link_and_minds_no_depth(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("x")
    top = tmp_path / "top"
    top.mkdir()
    (top / "link").symlink_to(outside)
    (top / "closed").mkdir()
    (top / "closed" / "file").write_text("x")
    (top / "closed").chmod(0)
    here = Path.cwd()
    os.chdir(top)
    for _ in range(100):  # beyond the longest path that the kernel takes
        Path("deeper" * 10).mkdir()
        os.chdir("deeper" * 10)
    os.chdir(here)
    driver.erase(str(top))
    assert not top.exists()
    assert (outside / "precious").read_text() == "x"


class Pipes:
    """A host that has nothing but the driver's stdin and stdout."""

    def __init__(self, root: Path, abi: int) -> None:
        options = json.dumps({"root": str(root), "abi": abi, "socket": False})
        self.process = subprocess.Popen(
            [sys.executable, "-s", "-B", driver.__file__, options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={"PATH": "/usr/bin:/bin"},
        )
        assert self.process.stdin
        assert self.process.stdout
        self.conn = driver.Conn(
            driver.PipePort(self.process.stdout.fileno(), self.process.stdin.fileno())
        )
        self.frames: list[driver.Frame] = []

    def send(self, sid: int, kind: int, message: Any = None) -> None:
        self.conn.push(sid, kind, driver.to_json(message))
        while not self.conn.flush():
            pass

    def expect(self, kind: int, sid: int) -> Any:
        """The next frame of this kind for this session; others wait."""
        while True:
            for frame in self.frames:
                if (frame.kind, frame.sid) == (kind, sid):
                    self.frames.remove(frame)
                    return json.loads(frame.payload or b"null")
            assert self.conn.feed(), "the driver ended"
            self.frames += self.conn.frames()

    def cell(
        self,
        sid: int,
        number: int,
        code: str,
        *,
        tools: tuple[str, ...] = (),
        inputs: Sequence[dict[str, Any]] = (),
    ) -> None:
        request = {"id": number, "code": code, "inputs": inputs, "tools": tools}
        bind = [spec["name"] for spec in inputs]
        self.send(sid, driver.EXEC, {**request, "bind": bind, "fields": None, "live": False})

    def close(self) -> int:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.close()
        code = self.process.wait(10)
        self.process.stdout.close()
        return code


@pytest.fixture(params=[1, 0], ids=["confined", "container"])
def pipes(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Pipes]:
    root = tmp_path / "root"
    root.mkdir()
    made = Pipes(root, request.param and confine.landlock_abi())
    made.expect(driver.HELLO, 0)
    yield made
    assert made.close() == 0
    assert not root.exists()


def test_the_same_box_over_pipes(pipes: Pipes) -> None:
    limits = json.loads(Limits().to_json())
    for sid in (1, 2):
        pipes.send(sid, driver.OPEN, limits)
        assert "rlimits" in pipes.expect(driver.READY, sid)["applied"]
    pipes.cell(1, 11, "print('x' * 200_000); tool(3)", tools=("tool",))
    call = pipes.expect(driver.TOOL_CALL, 1)
    assert (call["name"], call["args"]) == ("tool", [3])
    pipes.cell(2, 21, "6 * 7")
    assert pipes.expect(driver.RESULT, 2)["value"] == 42
    pipes.send(1, driver.TOOL_RESULT, {"id": call["id"], "value": "y" * (4 << 20)})
    result = pipes.expect(driver.RESULT, 1)
    assert (result["id"], result["stdout"][2]) == (11, 200_001)
    assert result["text"][0].startswith("'yyy")


def test_interrupt_and_loss_over_pipes(pipes: Pipes) -> None:
    limits = json.loads(Limits().to_json())
    for sid in (1, 2):
        pipes.send(sid, driver.OPEN, limits)
        pipes.expect(driver.READY, sid)
    pipes.cell(1, 11, "print('running', flush=True)\nwhile True: pass")
    pipes.send(1, driver.INTERRUPT, {"grace": 5})
    # an interrupt before the cell has begun is lost, so it is repeated until the grace ends
    assert pipes.expect(driver.RESULT, 1)["kind"] == "interrupted"
    pipes.send(1, driver.CALM, {"tag": 1})
    assert pipes.expect(driver.REPLY, 1)["cpu_s"] > 0
    forge = "import os; os.write(3, b'\\x00\\x00\\x00\\x02\\x00\\x00\\x00\\x02\\x20\\x00{}')"
    pipes.cell(2, 21, forge)  # a DIED frame, which only the supervisor may send
    assert pipes.expect(driver.DIED, 2)["why"] == "protocol"
    pipes.cell(1, 12, "1 + 1")
    assert pipes.expect(driver.RESULT, 1)["value"] == 2
    pipes.send(1, driver.CLOSE)
    assert pipes.expect(driver.DIED, 1)["why"] == "closed"
    pipes.send(1, driver.CALM, {"tag": 7})  # too late, but nobody waits in vain
    assert pipes.expect(driver.REPLY, 1)["tag"] == 7


def test_a_nursery_that_does_not_listen_holds_up_nobody() -> None:
    """It may be waiting for the supervisor at the same moment."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    nursery = driver.Nursery(ours)
    read, write = os.pipe()
    took = [nursery.ask({"sid": n, "text": "x" * 200}, [os.dup(write)]) for n in range(1000)]
    os.close(write)
    assert took[0]
    assert not took[-1]
    assert nursery.hear() is None
    for n in range(1000):
        data, fds, _, _ = socket.recv_fds(theirs, 1 << 16, 9)
        assert json.loads(data)["sid"] == n
        os.close(*fds)
        nursery.flush()
    assert os.read(read, 1) == b""  # no descriptor is left open
    theirs.close()
    with pytest.raises(EOFError):
        nursery.hear()
    assert nursery.ask({"bury": 1})  # the end of the other side is noticed when it is heard
    nursery.close()
    os.close(read)


def test_shared_inputs_over_pipes(pipes: Pipes, tmp_path: Path) -> None:
    blob = tmp_path / "root" / "blob"
    blob.write_text("ein böser Traum")
    large = {"kind": "utf-8", "blob": str(blob), "size": blob.stat().st_size}
    pipes.send(7, driver.SHARE, [large, {**large, "kind": "bytes"}])
    pipes.send(8, driver.SHARE, [{**large, "blob": "none"}])
    limits = json.loads(Limits().to_json())
    for sid, share in ((1, 7), (2, 8), (3, 9)):
        pipes.send(sid, driver.OPEN, {**limits, "share": share})
    assert "error" not in pipes.expect(driver.READY, 1)
    blob.unlink()  # it was read when it came
    given = [{"name": name, "kind": "shared", "index": i} for i, name in enumerate("ab")]
    pipes.cell(1, 11, "[a, b.decode()]", inputs=given)
    assert pipes.expect(driver.RESULT, 1)["value"] == ["ein böser Traum"] * 2
    assert "FileNotFoundError" in pipes.expect(driver.READY, 2)["error"]
    assert pipes.expect(driver.DIED, 3)["why"] == "holder"
    pipes.send(7, driver.UNSHARE)
    pipes.cell(1, 12, "a", inputs=given)  # those that are in it stay
    assert pipes.expect(driver.RESULT, 1)["value"] == "ein böser Traum"
    pipes.send(1, driver.CLOSE)
    assert pipes.expect(driver.DIED, 1)["why"] == "closed"


@pytest.mark.parametrize("module", [driver, confine])
def test_it_needs_nothing_but_an_old_python(module: ModuleType) -> None:
    tree = ast.parse(Path(module.__file__ or "").read_text(), feature_version=(3, 10))
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add((node.module or "").partition(".")[0])
    assert imported <= sys.stdlib_module_names


def pythons() -> Iterator[str]:
    """One interpreter of each version that the driver runs on: from the PATH, or from pyenv."""
    versions = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"), "versions")
    for minor in range(10, 15):
        name = f"python3.{minor}"
        for python in [shutil.which(name), *map(str, versions.glob(f"3.{minor}.*/bin/{name}"))]:
            if python and not subprocess.run([python, "-c", ""], capture_output=True).returncode:
                yield python
                break


@pytest.mark.parametrize("name", ["bwrap", "landlock"])
def test_other_pythons_run_it(name: str) -> None:
    """Every Python that is found here, at both levels."""
    try:
        level = levels.choose(name)
    except SandboxUnavailable as error:
        pytest.skip(str(error))
    for python in pythons():
        with LocalSandbox(level, python=python) as box:
            session = box.open()
            shared = {"context": "ü" * SHARED_BYTES}
            code = (
                "import sys; [context == 'ü' * len(context), sys.version_info[1] in range(10, 15)]"
            )
            assert session.execute(code, shared).value == [True, True]
            value = [1, {"a": "b" * 50_000}]
            assert session.execute("print(x == [1, {'a': 'b' * 50_000}])", {"x": value}).stdout
            assert session.execute("1 / 0").kind == "error"
            assert session.execute("while True: pass", timeout_s=0.1).kind == "interrupted"
