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
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, Protocol

from fleet_rlm.errors import SandboxError
from fleet_rlm.sandbox import driver
from fleet_rlm.sandbox.values import Inputs, Share, Shares, Shipment

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


class Channel(Protocol):
    """Frames to and from one worker; `Wire` says what its methods promise."""

    def send(
        self,
        sid: int,
        kind: int,
        payload: bytes = b"",
        fds: Sequence[int] = (),
        *,
        timeout_s: float | None = None,
    ) -> None:
        """Send one frame."""

    def receive(self, timeout_s: float | None = None) -> driver.Frame | None:
        """The next frame, None when the time is over."""

    def hang_up(self) -> None:
        """End the stream in both directions."""

    def close(self) -> None:
        """Let go of it."""


class Opened(NamedTuple):
    """A session that was asked for."""

    sid: int
    ended: queue.SimpleQueue[dict[str, Any]]
    """Where the news of its end will be."""
    wire: Channel


class Link(ABC):
    """Requests to one supervisor, its answers, and its news of sessions that ended."""

    def __init__(self) -> None:
        self.lost: str | None = None
        """Why nothing comes from the supervisor any more."""
        self._sids = itertools.count(1)
        self._tags = itertools.count(1)
        self._ends: dict[int, queue.SimpleQueue[dict[str, Any]]] = {}
        self._answers: dict[int, queue.SimpleQueue[dict[str, Any] | None]] = {}
        self._ready = threading.Event()
        self.dropped: deque[tuple[int, Inputs, Share | None]] = deque()
        """Sessions that nobody closed, by their id, with what they hold here and in the box."""
        self._shares = Shares()
        self._share_numbers = itertools.count(1)

    def wait_ready(self, timeout_s: float) -> None:
        """Wait for the supervisor's greeting.

        Raises:
            SandboxError: it did not come.
        """
        if not self._ready.wait(timeout_s) or self.lost:
            raise SandboxError(f"the sandbox did not start: {self.lost or 'no answer'}")

    @abstractmethod
    def open(self, limits: bytes) -> Opened:
        """Ask for a session.

        Raises:
            SandboxError: the supervisor is gone.
        """

    def carry(self, shipment: Shipment) -> int:
        """Bring a shipment's large values to the box; the bytes that this takes."""
        return shipment.size

    def take_share(self, shipment: Shipment) -> tuple[Share, int]:
        """Have the box hold a shipment's large values, unless it holds them for another session.

        Returns:
            The share, to be given back with `release_share`, and the bytes that went out.

        Raises:
            SandboxError: the supervisor is gone.
        """
        share = self._shares.take(list(shipment.large.values()))
        try:
            with share.lock:
                return share, 0 if share.number else self._send_share(share, shipment)
        except BaseException:  # an interrupt, too, leaves no share that nobody gives back
            self._shares.release(share, lost=True)
            raise

    def _send_share(self, share: Share, shipment: Shipment) -> int:
        number = next(self._share_numbers)
        parcel = Shipment(bind=[], large=shipment.large)
        try:
            parcel.pack()
            carried = self.carry(parcel)
        except BaseException:  # nor a descriptor
            parcel.close_fds()
            raise
        specs = [{key: spec[key] for key in spec if key != "name"} for spec in parcel.specs]
        self.tell(number, driver.SHARE, driver.to_json(specs), parcel.fds)
        share.number = number
        return carried

    def release_share(self, share: Share, *, lost: bool = False) -> None:
        """A session has ended that was opened in the share; the box lets go after the last one."""
        if self._shares.release(share, lost=lost) and share.number:
            with suppress(SandboxError):
                self.tell(share.number, driver.UNSHARE)

    def tidy(self) -> None:
        """Close what was dropped. Not for finalizers: they may run inside of any line."""
        while self.dropped:
            sid, inputs, share = self.dropped.popleft()
            with suppress(SandboxError):
                self.tell(sid, driver.CLOSE)
            inputs.close()
            if share is not None:
                self.release_share(share)

    @abstractmethod
    def _send(self, sid: int, kind: int, payload: bytes, fds: Sequence[int]) -> None:
        """Send one frame; raises OSError when it cannot be sent."""

    def _expect(self) -> tuple[int, queue.SimpleQueue[dict[str, Any]]]:
        """The id of a new session, and where the news of its end will be."""
        sid = next(self._sids)
        self._ends[sid] = queue.SimpleQueue()
        return sid, self._ends[sid]

    def tell(self, sid: int, kind: int, payload: bytes = b"", fds: Sequence[int] = ()) -> None:
        """Send a request that has no answer.

        Raises:
            SandboxError: the supervisor is gone.
        """
        try:
            self._send(sid, kind, payload, fds)
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

    def _news(self, frame: driver.Frame) -> None:
        """Act on what the supervisor itself says."""
        news = json.loads(frame.payload)
        if frame.kind == driver.HELLO:
            self._ready.set()
        elif frame.kind == driver.REPLY:
            self._answers.pop(news["tag"]).put(news)
        elif frame.kind == driver.DIED and (ended := self._ends.pop(frame.sid, None)):
            ended.put(news)

    def _gone(self, why: str) -> None:
        """Nothing comes any more: everyone who waits is told."""
        self.lost = self.lost or why
        self._ready.set()
        for sid in list(self._ends):
            self._ends.pop(sid).put({"error": self.lost})
        for tag in list(self._answers):
            self._answers.pop(tag).put(None)


class SocketLink(Link):
    """A supervisor behind a unix socket: each session gets a channel of its own."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__()
        self._wire = Wire(sock)
        self._reader = threading.Thread(target=self._read, name="sandbox-link", daemon=True)
        self._reader.start()

    def open(self, limits: bytes) -> Opened:
        ours, theirs = socket.socketpair()
        wire = Wire(ours)
        sid, ended = self._expect()
        try:
            self.tell(sid, driver.OPEN, limits, [theirs.detach()])
        except SandboxError:
            wire.close()
            raise
        return Opened(sid, ended, wire)

    def _send(self, sid: int, kind: int, payload: bytes, fds: Sequence[int]) -> None:
        self._wire.send(sid, kind, payload, fds, timeout_s=ANSWER_S)

    def close(self) -> None:
        """Hang up and wait for the reader thread."""
        self._wire.hang_up()
        self._reader.join()
        self._wire.close()

    def _read(self) -> None:
        try:
            while frame := self._wire.receive():
                self._news(frame)
                self.tidy()
        except (EOFError, ValueError) as error:
            self._gone(str(error) or "its process ended")
