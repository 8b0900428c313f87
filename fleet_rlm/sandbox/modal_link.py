"""The stream to a driver in a Modal sandbox: all sessions share it, no call waits without an end.

One event loop in one thread serves every sandbox of the process, however many there are.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import queue
import threading
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from functools import cache
from mmap import PROT_READ, mmap
from typing import Any, TypeVar

from fleet_rlm.errors import FleetError, SandboxError
from fleet_rlm.sandbox import driver
from fleet_rlm.sandbox.link import ANSWER_S, Link, Opened
from fleet_rlm.sandbox.modal_recipe import SHARED
from fleet_rlm.sandbox.values import Shipment

T = TypeVar("T")

PING_S = 20.0
"""A host says this often that it is there."""
SILENCE_S = 90.0
"""A driver that hears nothing for so long ends itself, and with it what keeps its sandbox alive."""
PIECE = 1 << 20
"""Bytes written at a time; the SDK's own buffer ends at 16 MiB."""
MAX_WAITING = 64 << 20
"""Bytes of a session that nobody has read yet, beyond which it floods the host."""
SECONDS_A_BYTE = 1 / (256 << 10)
"""Slowest upload that is not taken for a dead one."""


@cache
def _loop(_pid: int) -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="fleet-modal", daemon=True).start()
    return loop


class SdkFailed(Exception):
    """A call of the SDK failed, or took too long; whoever made it says what that means.

    Attributes:
        cause: what was raised.
    """

    def __init__(self, cause: Exception) -> None:
        super().__init__(describe(cause))
        self.cause = cause


def wait_for(work: Coroutine[Any, Any, T], timeout_s: float) -> T:
    """Run a call of the SDK on the shared loop, and wait for it.

    Raises:
        SdkFailed: it failed, or took longer. Errors of this package pass unchanged.
    """
    limited = asyncio.wait_for(work, timeout_s)
    try:
        return asyncio.run_coroutine_threadsafe(limited, _loop(os.getpid())).result()
    except FleetError:
        raise
    except Exception as error:
        # The one boundary to the SDK: it raises errors of its own, of gRPC, HTTP and sockets.
        raise SdkFailed(error) from error


class _Wire:
    """Frames of one session, out of the shared stream."""

    def __init__(self, link: ModalLink, sid: int) -> None:
        self._link, self._sid = link, sid
        self._frames: queue.SimpleQueue[driver.Frame | None] = queue.SimpleQueue()
        self._waiting = 0
        self._lock = threading.Lock()
        self._flooded = self._ended = False

    def deliver(self, frame: driver.Frame | None) -> None:
        """A frame came in; None for the end. Called by the loop."""
        with self._lock:
            self._waiting += len(frame.payload) if frame else 0
            self._flooded = self._flooded or self._waiting > MAX_WAITING
        if not self._flooded or frame is None:
            self._frames.put(frame)

    def send(
        self,
        sid: int,
        kind: int,
        payload: bytes = b"",
        fds: Sequence[int] = (),
        *,
        timeout_s: float | None = None,
    ) -> None:
        self._link.write(self._sid, kind, payload)

    def receive(self, timeout_s: float | None = None) -> driver.Frame | None:
        if self._flooded:
            raise ValueError("more than the host has room for")
        if self._ended:
            raise EOFError
        try:
            frame = self._frames.get(timeout=timeout_s)
        except queue.Empty:
            return None
        if frame is None:
            self._ended = True
            raise EOFError
        with self._lock:
            self._waiting -= len(frame.payload)
        return frame

    def hang_up(self) -> None:
        self._frames.put(None)

    def close(self) -> None:
        self._link.forget(self._sid)


class ModalLink(Link):
    """A supervisor behind the stdin and stdout of a process in a Modal sandbox."""

    def __init__(
        self, sandbox: Any, process: Any, blobs: str, *, mounted: str | None = None
    ) -> None:
        """Begin to read.

        Args:
            sandbox: a `modal.Sandbox`.
            process: the driver in it, in binary mode.
            blobs: folder for large inputs, by the sha256 of their content.
            mounted: the sha256 of an input that lies in its folder `shared` already.
        """
        super().__init__()
        self.uploaded = 0
        """Bytes of large inputs that went out."""
        self._sandbox, self._process, self._blobs = sandbox, process, blobs
        self._wires: dict[int, _Wire] = {}
        self._there: set[str] = set()
        self._mounted = mounted
        self._carrying = threading.Lock()
        self._writing = threading.Lock()
        loop = _loop(os.getpid())
        self._tasks = [
            asyncio.run_coroutine_threadsafe(work, loop) for work in (self._read(), self._ping())
        ]

    def open(self, limits: bytes) -> Opened:
        sid, ended = self._expect()
        wire = self._wires[sid] = _Wire(self, sid)
        try:
            self.tell(sid, driver.OPEN, limits)
        except SandboxError:
            wire.close()
            raise
        return Opened(sid, ended, wire)

    def forget(self, sid: int) -> None:
        """Nobody reads the frames of that session any more."""
        self._wires.pop(sid, None)

    def carry(self, shipment: Shipment) -> int:
        """Large values become files of the sandbox, named by content: each is sent once."""
        sent = 0
        with self._carrying:
            for spec in shipment.specs:
                if "fd" not in spec:
                    continue
                fd = shipment.fds[spec.pop("fd")]
                name = spec["blob"] = _digest(fd, spec["size"])
                if name == self._mounted:
                    spec["blob"] = f"{SHARED}/{name}"
                elif name not in self._there:
                    self._upload(f"{self._blobs}/{name}", fd, spec["size"])
                    self._there.add(name)
                    sent += spec["size"]
            while shipment.fds:
                os.close(shipment.fds.pop())
        self.uploaded += sent
        return sent

    def _upload(self, path: str, fd: int, size: int) -> None:
        limit_s = ANSWER_S + size * SECONDS_A_BYTE
        try:
            # as a file, which is sent piece by piece: there is no second copy in memory
            file = f"/proc/self/fd/{fd}"
            wait_for(self._sandbox.filesystem.copy_from_local.aio(file, path), limit_s)
        except SdkFailed as failed:
            self._gone(f"an input of {size:,} bytes could not be sent: {failed}")
            raise SandboxError(f"the sandbox is gone: {self.lost}") from failed

    def write(self, sid: int, kind: int, payload: bytes) -> None:
        """Send one frame, whole.

        Raises:
            OSError: it could not be sent.
        """
        if self.lost:
            raise OSError(self.lost)
        data = driver.HEADER.pack(len(payload), sid, kind, 0) + payload
        try:
            with self._writing:
                wait_for(self._write(data), ANSWER_S + len(data) * SECONDS_A_BYTE)
        except SdkFailed as failed:
            self._gone(str(failed))
            raise OSError(self.lost) from failed

    async def _write(self, data: bytes) -> None:
        for start in range(0, len(data), PIECE):
            self._process.stdin.write(data[start : start + PIECE])
            await self._process.stdin.drain.aio()

    def _send(self, sid: int, kind: int, payload: bytes, fds: Sequence[int]) -> None:
        self.write(sid, kind, payload)

    async def _read(self) -> None:
        fed = _Fed()
        buffer = driver.Conn(fed)
        why = ""
        try:
            async for chunk in self._process.stdout:
                fed.chunk = chunk
                buffer.feed()
                for frame in buffer.frames():
                    self._take(frame)
        except Exception as error:  # noqa: BLE001 -- handed to all threads that wait, by `_gone`
            why = describe(error)
        self._gone(why or await self._why_ended())

    def _take(self, frame: driver.Frame) -> None:
        if frame.kind in (driver.HELLO, driver.REPLY, driver.DIED):
            self._news(frame)
        if (wire := self._wires.get(frame.sid)) is not None:
            if frame.kind == driver.DIED:
                wire.deliver(None)
            elif frame.kind != driver.REPLY:
                wire.deliver(frame)

    async def _why_ended(self) -> str:
        with suppress(Exception):  # only the reason is lost with it
            text = await asyncio.wait_for(self._process.stderr.read.aio(), 2.0)
            if lines := text.decode("utf-8", "replace").strip().splitlines():
                return f"its driver ended: {lines[-1]}"
        return "its sandbox or the driver in it has ended"

    async def _ping(self) -> None:
        """Tell the driver that the host is there, and notice when it does not answer."""
        while not self.lost:
            await asyncio.sleep(PING_S)
            try:
                answer = await asyncio.to_thread(self.ask, 0, driver.CPU)
                news = await asyncio.to_thread(answer.get, True, ANSWER_S)
            except (SandboxError, queue.Empty):
                news = None
            if news is None:
                self._gone("it does not answer")

    def _gone(self, why: str) -> None:
        super()._gone(why)
        for wire in list(self._wires.values()):
            wire.deliver(None)

    def close(self) -> None:
        """Stop reading; the sandbox is ended by its owner."""
        self._gone("it was closed")
        for task in self._tasks:
            task.cancel()


class _Fed:
    """A port that reads what it was given."""

    chunk = b""
    read_fd = write_fd = -1

    def read(self) -> tuple[bytes, Sequence[int]]:
        return self.chunk, ()

    def write(self, data: memoryview, fds: Sequence[int]) -> int:
        raise OSError("this end only reads")

    def close(self) -> None: ...


def _digest(fd: int, size: int) -> str:
    with mmap(fd, size, prot=PROT_READ) as pages, memoryview(pages) as view:
        return hashlib.sha256(view).hexdigest()


def describe(error: BaseException) -> str:
    """An error of the SDK in a few words."""
    return f"{type(error).__name__}: {error}".rstrip(": ")
