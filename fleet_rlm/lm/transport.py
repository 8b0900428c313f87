"""HTTP for thousands of calls in flight: a pool without a cap, a deadline a call, calls that end.

It extends the transport that DSPy's native engine uses (`dspy._vendor.lm15`, pinned with dspy).
"""

from __future__ import annotations

import select
import socket
import threading
from contextlib import suppress
from typing import Any
from urllib.request import getproxies

from dspy._vendor.lm15.transports import StdlibTransport, TransportRequest, TransportResponse
from dspy._vendor.lm15.transports._sync import _SyncConnection

from fleet_rlm.lm.metered import current_ledger

MAX_CONNECTIONS = 100_000
"""As good as none: `throttle.Gate` decides how many calls are in flight."""


class _Connection(_SyncConnection):
    """A socket that knows which thread waits for it."""

    __slots__ = ("owner",)

    def __init__(self, origin: tuple[str, str, int], sock: socket.socket) -> None:
        super().__init__(origin, sock)
        self.owner = 0

    def is_stale(self) -> bool:
        # The parent asks select(2), which fails above descriptor 1,023 and so drops every
        # connection of a large run: 1,619 connections for 3,072 calls at 512 in flight.
        if self.closed:
            return True
        try:
            poll = select.poll()
            poll.register(self.sock, select.POLLIN)
            return bool(poll.poll(0))
        except (OSError, ValueError):
            return True


class Transport(StdlibTransport):
    """Connections of one model service, shared by every thread.

    Proxies are those of the environment at the time it is made: without any, the parent would read
    all variables again for each call, a fifth of the processor time that one takes.

    Args:
        timeout_s: longest wait for the next byte of a reply; a call of a sample that has less time
            left waits no longer than that.
    """

    def __init__(self, *, timeout_s: float) -> None:
        super().__init__(
            read_timeout=timeout_s,
            write_timeout=timeout_s,
            pool_timeout=None,
            max_connections=MAX_CONNECTIONS,
            trust_env=bool(getproxies().keys() - {"no"}),
        )
        self._timeout_s = timeout_s

    def stream(self, request: TransportRequest) -> TransportResponse:
        """Send a request and read the head of its reply."""
        ledger = current_ledger()
        left = None if ledger is None else ledger.seconds_left
        if left is not None:
            # A little more than is left, so that the limit is met when the wait ends.
            request.read_timeout = min(self._timeout_s, left + 0.01)
        return super().stream(request)

    def abort(self, thread: int) -> None:
        """End the call that a thread waits for, from another one; it fails as if cut off.

        Args:
            thread: `threading.get_ident()` of the waiting thread.
        """
        with self._pool._lock:
            waited_for = [conn for conn in self._pool._in_use if conn.owner == thread]
        for connection in waited_for:
            with suppress(OSError):
                connection.sock.shutdown(socket.SHUT_RDWR)

    def _open(self, *args: Any, **kwargs: Any) -> _Connection:
        opened = super()._open(*args, **kwargs)
        return _Connection(opened.origin, opened.sock)

    def _send_request(self, conn: _Connection, *args: Any, **kwargs: Any) -> None:
        conn.owner = threading.get_ident()
        super()._send_request(conn, *args, **kwargs)
