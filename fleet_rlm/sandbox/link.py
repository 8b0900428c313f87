"""The host's connections to a box: frames with deadlines, and the link to its supervisor."""

from __future__ import annotations

import itertools
import json
import os
import queue
import select
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

from fleet_rlm.errors import SandboxError
from fleet_rlm.sandbox import driver

ANSWER_S = 30.0
"""Seconds within which a supervisor answers, or is taken for dead."""


class Wire:
    """Frames over one unix socket. Any thread may send; one at a time may receive."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._port = driver.SocketPort(sock)
        self._conn = driver.Conn(self._port)
        self._frames: Iterator[driver.Frame] = iter(())
        self._lock = threading.Lock()
        self._readable, self._writable = select.poll(), select.poll()
        self._readable.register(sock, select.POLLIN)
        self._writable.register(sock, select.POLLOUT)

    def send(
        self,
        sid: int,
        kind: int,
        payload: bytes = b"",
        fds: Sequence[int] = (),
        *,
        timeout_s: float | None = None,
    ) -> None:
        """Send one frame; `fds` are closed in any case.

        Raises:
            OSError: the peer is gone, or did not take the frame in time: the wire is useless then.
        """
        header = driver.HEADER.pack(len(payload), sid, kind, len(fds))
        # one piece when small, so that one call sends it; no copy of a large payload
        pieces = [header + payload] if len(payload) < driver.CHUNK else [header, payload]
        try:
            with self._lock:
                for piece in pieces:
                    self._send_all(memoryview(piece), fds if piece is pieces[0] else (), timeout_s)
        finally:
            for fd in fds:
                os.close(fd)

    def _send_all(self, view: memoryview, fds: Sequence[int], timeout_s: float | None) -> None:
        while view:
            try:
                sent = self._port.write(view, fds)
            except BlockingIOError:
                if not self._writable.poll(None if timeout_s is None else timeout_s * 1000):
                    raise TimeoutError("nobody reads at the other end") from None
                continue
            view, fds = view[sent:], ()

    def receive(self, timeout_s: float | None = None) -> driver.Frame | None:
        """The next frame, None when the time is over.

        Raises:
            EOFError: the peer is gone.
            ValueError: it does not keep to the protocol.
        """
        until = None if timeout_s is None else time.monotonic() + timeout_s
        while (frame := next(self._frames, None)) is None:
            left = None if until is None else max(0.0, until - time.monotonic()) * 1000
            if not self._readable.poll(left):
                return None
            try:
                if not self._conn.feed():
                    raise EOFError
            except BlockingIOError:
                continue
            except OSError as error:
                raise EOFError from error
            self._frames = self._conn.frames()
        return frame

    def hang_up(self) -> None:
        """End the stream in both directions; a thread in `receive` sees its end."""
        try:
            self._sock.shutdown(socket.SHUT_RDWR)
        except OSError:  # the peer was first
            return

    def close(self) -> None:
        """Close the socket; nobody may be in `receive`."""
        with self._lock:  # nor in `send`: the number of a closed descriptor soon means another
            self._sock.close()

    def __del__(self) -> None:
        # A session that was dropped without closing it: its worker sees the end of the stream.
        self._sock.close()


class Link:
    """Requests to one supervisor, its answers, and its news of sessions that ended."""

    def __init__(self, sock: socket.socket) -> None:
        self.lost: str | None = None
        """Why nothing comes from the supervisor any more."""
        self._wire = Wire(sock)
        self._sids = itertools.count(1)
        self._tags = itertools.count(1)
        self._ends: dict[int, queue.SimpleQueue[dict[str, Any]]] = {}
        self._answers: dict[int, queue.SimpleQueue[dict[str, Any] | None]] = {}
        self._ready = threading.Event()
        self._reader = threading.Thread(target=self._read, name="sandbox-link", daemon=True)
        self._reader.start()

    def wait_ready(self, timeout_s: float) -> None:
        """Wait for the supervisor's greeting.

        Raises:
            SandboxError: it did not come.
        """
        if not self._ready.wait(timeout_s) or self.lost:
            raise SandboxError(f"the sandbox did not start: {self.lost or 'no answer'}")

    def open(self, limits: bytes, channel: int) -> tuple[int, queue.SimpleQueue[dict[str, Any]]]:
        """Ask for a session; `channel` is the worker's end of its channel and is closed here.

        Returns:
            Its id, and where the news of its end will be.
        """
        sid = next(self._sids)
        ended: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._ends[sid] = ended
        self.tell(sid, driver.OPEN, limits, [channel])
        return sid, ended

    def tell(self, sid: int, kind: int, payload: bytes = b"", fds: Sequence[int] = ()) -> None:
        """Send a request that has no answer.

        Raises:
            SandboxError: the supervisor is gone.
        """
        try:
            self._wire.send(sid, kind, payload, fds, timeout_s=ANSWER_S)
        except OSError as error:
            raise SandboxError(f"the sandbox is gone: {self.lost or error}") from error

    def ask(self, sid: int, kind: int, **request: Any) -> queue.SimpleQueue[dict[str, Any] | None]:
        """Send a request; the answer will be in the queue, None if the supervisor is gone.

        Raises:
            SandboxError: the supervisor is gone already.
        """
        tag = next(self._tags)
        answer: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._answers[tag] = answer
        self.tell(sid, kind, driver.to_json({**request, "tag": tag}))
        if self.lost:
            answer.put(None)
        return answer

    def close(self) -> None:
        """Hang up and wait for the reader thread."""
        self._wire.hang_up()
        self._reader.join()
        self._wire.close()

    def _read(self) -> None:
        try:
            while frame := self._wire.receive():
                news = json.loads(frame.payload)
                if frame.kind == driver.HELLO:
                    self._ready.set()
                elif frame.kind == driver.REPLY:
                    self._answers.pop(news["tag"]).put(news)
                elif frame.kind == driver.DIED:
                    self._ends.pop(frame.sid).put(news)
        except (EOFError, ValueError) as error:
            self.lost = str(error) or "its process ended"
        self._ready.set()
        for sid in list(self._ends):
            self._ends.pop(sid).put({"error": self.lost})
        for tag in list(self._answers):
            self._answers.pop(tag).put(None)
