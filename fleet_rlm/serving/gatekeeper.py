"""What every request passes before the application sees it: who asks, from where, how much."""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import time
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from http import HTTPStatus
from typing import Any, TypeAlias
from urllib.parse import urlsplit

from fleet_rlm.errors import FleetError, ProgramError, boundary
from fleet_rlm.serving.identity import Identities
from fleet_rlm.serving.metrics import Metrics
from fleet_rlm.serving.refusals import Declined, PlainJSON, body_of, headers_of, status_of
from fleet_rlm.serving.settings import ServerSettings, is_loopback

logger = logging.getLogger("fleet_rlm.serving")

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
Application: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN = frozenset({"/health", "/ready", "/docs", "/scalar", "/openapi.json"})
"""Routes that need no token: they tell nothing about anybody."""

_REQUEST_ID = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_GONE = 499
"""Logged for a client that left before its answer; never sent."""


class Rates:
    """Token buckets: each identity may ask `per_minute` times at once, then steadily.

    Args:
        per_minute: requests.
        clock: seconds, monotonic.
    """

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._most = float(per_minute)
        self._clock = clock
        self._buckets: dict[str, tuple[float, float]] = {}

    def take(self, identity: str) -> None:
        """Count one request.

        Raises:
            Declined: 429, with the seconds until the next one.
        """
        now = self._clock()
        left, since = self._buckets.get(identity, (self._most, now))
        left = min(self._most, left + (now - since) * self._most / 60)
        if left < 1:
            raise Declined(
                HTTPStatus.TOO_MANY_REQUESTS,
                f"More than {self._most:g} requests a minute.",
                retry_after=(1 - left) * 60 / self._most,
            )
        self._buckets[identity] = (left - 1, now)


class Gatekeeper:
    """An ASGI application around another: identifies, limits, logs and counts.

    A request that passes carries `identity` and `request_id` in its state, and its body has
    arrived whole.

    Args:
        app: what is guarded.
        settings: tokens and limits.
        metrics: counts requests.
        rates: counts requests of an identity; messages of a WebSocket count there too.
        headers: go with every answer.
    """

    def __init__(
        self,
        app: Application,
        settings: ServerSettings,
        metrics: Metrics,
        rates: Rates,
        headers: dict[str, str],
    ) -> None:
        self._app = app
        self._settings = settings
        self._metrics = metrics
        self._rates = rates
        self._identities = Identities(settings.tokens)
        self._headers = headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        passage = _Passage(scope, receive, send, self._settings.io_timeout_s, self._headers)
        try:
            with boundary(ProgramError, "serving the request"), suppress(_NotRead):
                await self._pass(passage)
        except FleetError as error:
            if not isinstance(error, Declined):
                logger.error("%s %s", passage.id, error.message, exc_info=error.__cause__)
            await passage.decline(error)
        finally:
            self._account(passage)

    async def _pass(self, passage: _Passage) -> None:
        self._check_origin(passage)
        identity = self._identities.identify(passage.header("authorization"))
        if identity is None and passage.scope["path"] not in OPEN:
            raise Declined(HTTPStatus.UNAUTHORIZED, "A bearer token of this server is needed.")
        passage.identity = identity or ""
        if identity is not None:
            self._rates.take(identity)
        if passage.scope["type"] == "http":
            await passage.read_body(self._settings.max_body_bytes)
        state = passage.scope.setdefault("state", {})
        state["identity"], state["request_id"] = passage.identity, passage.id
        await self._app(passage.scope, passage.receive, passage.send)

    def _check_origin(self, passage: _Passage) -> None:
        """Keep pages of other sites out, also those that use a name of their own for loopback."""
        host = passage.header("host") or ""
        origin = passage.header("origin")
        if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
            raise Declined(HTTPStatus.FORBIDDEN, "Pages of other sites may not ask this server.")
        name = urlsplit(f"//{host}").hostname or ""
        if not self._settings.tokens and not is_loopback(name):
            raise Declined(HTTPStatus.FORBIDDEN, f"This server is not {host!r}: ask 127.0.0.1.")

    def _account(self, passage: _Passage) -> None:
        scope = passage.scope
        method = scope.get("method", "WS")
        route = getattr(scope.get("route"), "path", None) or "other"
        known = method if method in _METHODS else "other"
        self._metrics.requests.labels(route, known, str(passage.status)).inc()
        path = scope.get("raw_path", b"").decode("latin-1") or scope["path"]
        logger.info(
            "%s %s %s %d %.3fs %s",
            passage.id,
            method,
            "".join(c if " " < c < "\x7f" else "?" for c in path)[:200],
            passage.status,
            time.monotonic() - passage.began,
            passage.identity or "-",
        )


_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "WS"})


class _NotRead(ConnectionResetError):
    """A client that does not read its answer is let go."""


class _Passage:
    """One request or connection on its way in, and its answer on the way out."""

    def __init__(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        timeout_s: float,
        headers: dict[str, str],
    ) -> None:
        self.scope = scope
        self.status = _GONE
        self.identity = ""
        self.began = time.monotonic()
        self._receive = receive
        self._send = send
        self._timeout_s = timeout_s
        self._body: bytes | None = None
        given = self.header("x-request-id") or ""
        self.id = given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(4)
        own = {**headers, "x-request-id": self.id, "x-content-type-options": "nosniff"}
        self._own = [(name.encode(), value.encode()) for name, value in own.items()]

    def header(self, name: str) -> str | None:
        """The value of a header that a request has once."""
        key = name.encode()
        found = [value for held, value in self.scope["headers"] if held == key]
        return found[0].decode("latin-1") if len(found) == 1 else None

    async def read_body(self, most: int) -> None:
        """Take the whole body in.

        Raises:
            Declined: larger than `most` bytes, or not there in time.
        """
        too_large = Declined(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"The body is larger than {most:,} bytes."
        )
        length = self.header("content-length") or "0"
        if length.isdecimal() and int(length[:20]) > most:
            raise too_large
        parts: list[bytes] = []
        size, more = 0, True
        try:
            async with asyncio.timeout(self._timeout_s):
                while more:
                    message = await self._receive()
                    if message["type"] != "http.request":
                        raise Declined(HTTPStatus.BAD_REQUEST, "The client left.")
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    if size > most:
                        raise too_large
                    more = message.get("more_body", False)
        except TimeoutError:
            raise Declined(
                HTTPStatus.REQUEST_TIMEOUT, "The request did not arrive in time."
            ) from None
        self._body = b"".join(parts)

    async def receive(self) -> Message:
        """The body in one message, then whatever comes."""
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        return await self._receive()

    async def send(self, message: Message) -> None:
        """Pass a part of the answer on, as long as the client takes it."""
        kind = message["type"]
        if kind in {"http.response.start", "websocket.http.response.start"}:
            self.status = message["status"]
            message = {**message, "headers": [*message.get("headers", ()), *self._own]}
        elif kind == "websocket.accept":
            self.status = HTTPStatus.SWITCHING_PROTOCOLS
            message = {**message, "headers": [*message.get("headers", ()), *self._own]}
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._send(message)
        except TimeoutError:
            # To the application it is as if the client had gone.
            raise _NotRead("the client does not read its answer") from None

    async def decline(self, error: FleetError) -> None:
        """Answer with an error, if nothing was answered yet."""
        if self.status != _GONE:
            return
        status = status_of(error)
        headers = {"content-type": "application/json", **headers_of(error)}
        prefix = "websocket.http" if self.scope["type"] == "websocket" else "http"
        await self.send(
            {
                "type": f"{prefix}.response.start",
                "status": int(status),
                "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
            }
        )
        shown = error.message if isinstance(error, Declined) else "The server failed."
        body = PlainJSON(body_of(shown, status)).body
        await self.send({"type": f"{prefix}.response.body", "body": body})
