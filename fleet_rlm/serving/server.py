"""Serves an application until it is told to stop, and lets running turns end first."""

from __future__ import annotations

import asyncio
import logging
import resource
import socket
import sys
from collections.abc import Callable
from types import FrameType

import uvicorn

from fleet_rlm.errors import UsageError
from fleet_rlm.serving.app import Service
from fleet_rlm.serving.gatekeeper import Application

MOST_CONNECTIONS = 4_096
KEEP_ALIVE_S = 75
"""How long a connection without a request is kept: longer than clients (5 s) and proxies (60 s)
keep theirs, or a request is lost now and then on a connection that is just being closed."""


def serve(service: Service, application: Application, ready: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT; a second one cuts off what still runs.

    Args:
        service: address and limits, and the turns that are waited for.
        application: what is served.
        ready: told the base URL, once connections are taken.

    Raises:
        UsageError: the address cannot be used.
    """
    settings = service.settings
    # Each chat has a connection and a sandbox session, each of these a few descriptors.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    listener = listen(settings.host, settings.port, settings.io_timeout_s)
    host, port = listener.getsockname()[:2]
    config = uvicorn.Config(
        application,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=MOST_CONNECTIONS,
        timeout_keep_alive=KEEP_ALIVE_S,
        ws_max_size=settings.max_body_bytes,
        ws_per_message_deflate=False,
        timeout_graceful_shutdown=10,
    )
    shown = f"[{host}]" if ":" in host else host
    server = _Server(config, service, lambda: ready(f"http://{shown}:{port}"))
    server.run([listener])


def log_to_stderr() -> None:
    """Log each request, and what goes wrong, as lines on stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    for name, level in (("fleet_rlm", logging.INFO), ("uvicorn.error", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)


class _Server(uvicorn.Server):
    """Drains before it closes connections: the listener stays open, and new turns get 503."""

    def __init__(self, config: uvicorn.Config, service: Service, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._service = service
        self._ready = ready
        self._drain: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._loop = asyncio.get_running_loop()
        if self.started:
            self._ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._drain is not None or not self.started:
            self.should_exit = True
            return
        self._loop.call_soon_threadsafe(self._begin_drain)

    def _begin_drain(self) -> None:
        self._drain = self._drain or self._loop.create_task(self._end())

    async def _end(self) -> None:
        await self._service.chats.drain(self._service.settings.drain_s)
        self.should_exit = True


def listen(host: str, port: int, io_timeout_s: float) -> socket.socket:
    """A socket that takes connections, whose clients read their answers or are let go.

    Args:
        host: address or name.
        port: 0 for a free one.
        io_timeout_s: how long a connection lasts on which nothing can be sent, where the system
            can end it (Linux: TCP_USER_TIMEOUT). Closing it is not enough: what was written would
            wait in memory for as long as the client likes.

    Raises:
        UsageError: the address cannot be used.
    """
    try:
        (family, *_, address), *_ = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        listener = socket.create_server(address[:2], family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        raise UsageError(f"Port {port} of {host} cannot be used: {error}", fix="--port 0") from None
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        milliseconds = max(1, round(io_timeout_s * 1000))
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
    return listener
