"""The simulated model as an OpenAI-compatible HTTP/1.1 server on loopback.

Standard library only, so that it starts at once: `python -m fleet_rlm.lm.simulated.server` is what
`launch.py` starts, with its knobs on stdin, and ends when stdin closes.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
import socket
import struct
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

from fleet_rlm.errors import FleetError, UsageError
from fleet_rlm.lm.simulated import PRICES
from fleet_rlm.lm.simulated.knobs import Knobs
from fleet_rlm.lm.simulated.service import Answer, Refused, Service

LOOPBACK = ("127.0.0.1", "::1", "localhost")
MAX_BODY_BYTES = 64 * 2**20
_MAX_HEAD_BYTES = 64 * 2**10
_BACKLOG = 4096
_CHUNK_CHARS = 16  # four tokens an event

_REASONS = {
    200: "OK",
    400: "Bad Request",
    401: "Unauthorized",
    404: "Not Found",
    408: "Request Timeout",
    413: "Content Too Large",
    429: "Too Many Requests",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    503: "Service Unavailable",
}


class _Request(NamedTuple):
    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError) as error:
            raise Refused(400, f"The body is not JSON: {error}") from None

    @property
    def key(self) -> str | None:
        scheme, _, key = self.headers.get("authorization", "").partition(" ")
        return key if scheme.lower() == "bearer" else None


class _Server:
    """One service and the connections to it."""

    def __init__(self, knobs: Knobs) -> None:
        self.service = Service(knobs)
        self.configure(knobs)

    def configure(self, knobs: Knobs) -> None:
        self.service.configure(knobs)
        self.slots = asyncio.Semaphore(knobs.max_num_seqs) if knobs.max_num_seqs else None


class _Connection(asyncio.StreamReaderProtocol):
    """A client; serves its requests one after the other until it leaves."""

    def __init__(self, server: _Server) -> None:
        self._server = server
        self._service = server.service
        self._input = asyncio.StreamReader(limit=_MAX_HEAD_BYTES)
        self._pause: asyncio.Future[None] | None = None
        super().__init__(self._input, self._serve)

    def eof_received(self) -> bool | None:
        self._stop_pause()
        return super().eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_pause()
        super().connection_lost(exc)

    async def _serve(self, _: asyncio.StreamReader, output: asyncio.StreamWriter) -> None:
        self._output = output
        self._service.counts.connections += 1
        output.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            while request := await self._read():
                await self._handle(request)
                if request.headers.get("connection", "").lower() == "close":
                    return
        except Refused as refused:  # by the reader, which is lost in the stream of bytes now
            self._write_error(refused, last=True)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        except asyncio.CancelledError:
            # The server stops. Python 3.11 prints a traceback for a connection that was cancelled.
            pass
        finally:
            output.close()

    async def _read(self) -> _Request | None:
        first = await self._input.read(1)  # a client may idle as long as it likes between requests
        if not first:
            return None
        try:
            async with asyncio.timeout(self._service.knobs.patience_s):
                head = first + await self._input.readuntil(b"\r\n\r\n")
                method, path, headers = _parse_head(head)
                size = _body_size(headers)
                if headers.get("expect", "").lower() == "100-continue":
                    self._output.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                body = await self._input.readexactly(size) if size else b""
        except TimeoutError:
            raise Refused(408, "The request did not arrive in time.") from None
        except asyncio.LimitOverrunError:
            raise Refused(431, f"The head is larger than {_MAX_HEAD_BYTES} bytes.") from None
        return _Request(method, path, headers, body)

    async def _handle(self, request: _Request) -> None:
        route = request.method, request.path.partition("?")[0]
        try:
            match route:
                case "POST", "/v1/chat/completions":
                    await self._chat(request)
                case "GET", "/v1/models":
                    self._write_json(_models())
                case "GET", "/__sim/stats":
                    self._write_json(self._service.counts.to_json())
                case "POST", "/__sim/config":
                    self._configure(request.json())
                    self._write_json({"ok": True})
                case _:
                    raise Refused(404, f"Nothing is at {request.method} {request.path}.")
        except Refused as refused:
            self._write_error(refused)
        await self._output.drain()

    def _configure(self, changes: Any) -> None:
        if not isinstance(changes, dict):
            raise Refused(400, "Knobs are a JSON object.")
        try:
            self._server.configure(self._service.knobs.changed(changes))
        except UsageError as error:
            raise Refused(400, str(error)) from None

    async def _chat(self, request: _Request) -> None:
        clock = asyncio.get_running_loop().time
        self._service.counts.begin(clock())
        try:
            slots = self._server.slots
            if slots is None:
                await self._answer(request)
            else:
                async with slots:
                    await self._answer(request)
        finally:
            self._service.counts.end(clock())

    async def _answer(self, request: _Request) -> None:
        asked = request.json()
        try:
            answer = self._service.answer(asked, request.key)
        except UnicodeEncodeError:
            raise Refused(400, "The messages are no Unicode text.") from None
        if answer.fault == "hang":
            await self._wait(self._service.knobs.hang_s)
            raise ConnectionResetError
        await self._wait(answer.first_token_s)
        if answer.fault == "reset":
            self._reset()
        elif asked.get("stream"):
            await self._stream(answer, asked)
        else:
            await self._wait(answer.token_s * max(0, answer.completion_tokens - 1))
            await self._send(answer)

    async def _send(self, answer: Answer) -> None:
        if answer.fault == "malformed":
            self._write(200, b'{"id": "simulated", "choices": [{"message": {"content": "oops')
            return
        message = {"role": "assistant", "content": answer.text}
        choice = {"index": 0, "message": message, "finish_reason": answer.finish}
        body = _reply(answer, "chat.completion", [choice], usage=answer.usage)
        if answer.fault == "truncate":
            await self._cut(
                _head(200, "application/json", length=len(body)) + body[: len(body) // 2]
            )
        self._write(200, body)
        self._service.sent(answer)

    async def _stream(self, answer: Answer, asked: dict[str, Any]) -> None:
        usage = isinstance(options := asked.get("stream_options"), dict) and options.get(
            "include_usage"
        )
        self._output.write(_head(200, "text/event-stream", length=None))
        self._write_event(_chunk(answer, {"role": "assistant", "content": ""}))
        if answer.fault == "malformed":
            self._write_event(b'{"id": "simulated", "choices": [{"delta": {"content": "oops')
        if answer.fault == "truncate":
            await self._cut(b"")
        for at in range(0, len(answer.text), _CHUNK_CHARS):
            await self._wait(answer.token_s * _CHUNK_CHARS / 4)
            self._write_event(_chunk(answer, {"content": answer.text[at : at + _CHUNK_CHARS]}))
            await self._output.drain()
        self._write_event(_chunk(answer, {}, answer.finish))
        if usage:
            self._write_event(_reply(answer, "chat.completion.chunk", [], usage=answer.usage))
        self._write_event(b"[DONE]")
        self._output.write(b"0\r\n\r\n")
        if not answer.fault:
            self._service.sent(answer)

    async def _wait(self, seconds: float) -> None:
        """Sleep as long as the client is there."""
        if self._input.at_eof():
            raise ConnectionResetError
        if seconds <= 0:
            return
        loop = asyncio.get_running_loop()
        self._pause = loop.create_future()
        alarm = loop.call_later(seconds, _end, self._pause)
        try:
            await self._pause
        finally:
            alarm.cancel()
            self._pause = None

    def _stop_pause(self) -> None:
        if self._pause and not self._pause.done():
            self._pause.set_exception(ConnectionResetError())

    async def _cut(self, data: bytes) -> None:
        self._output.write(data)
        await self._output.drain()
        raise ConnectionResetError

    def _reset(self) -> None:
        # Without lingering, closing sends RST in place of FIN.
        linger = struct.pack("ii", 1, 0)
        self._output.get_extra_info("socket").setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, linger
        )
        self._output.transport.abort()
        raise ConnectionResetError

    def _write_event(self, data: bytes) -> None:
        self._output.write(b"%x\r\ndata: %b\n\n\r\n" % (len(data) + 8, data))

    def _write_json(self, value: Any) -> None:
        self._write(200, json.dumps(value).encode())

    def _write_error(self, refused: Refused, *, last: bool = False) -> None:
        extra = "Connection: close\r\n" if last else ""
        if refused.retry_after is not None:
            extra += f"Retry-After: {refused.retry_after:.3f}\r\n"
        self._write(refused.status, json.dumps(refused.body).encode(), extra)

    def _write(self, status: int, body: bytes, extra: str = "") -> None:
        head = _head(status, "application/json", length=len(body), extra=extra)
        self._output.write(head + body)


async def serve(
    knobs: Knobs,
    *,
    port: int = 0,
    host: str = LOOPBACK[0],
    ready: Callable[[str], None] = lambda _: None,
    parent: int | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT.

    Args:
        knobs: how the service behaves.
        port: 0 for a free one.
        host: a loopback address.
        ready: told the base URL, once connections are taken.
        parent: a descriptor whose end of file stops the server too.

    Raises:
        UsageError: the host is not loopback, or the port is taken.
    """
    if host not in LOOPBACK:
        raise UsageError(
            f"The simulated model is served on this machine only, not on {host!r}.",
            fix=f"--host {LOOPBACK[0]}",
        )
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    server = _Server(knobs)
    try:
        listening = await loop.create_server(
            lambda: _Connection(server), host, port, backlog=_BACKLOG
        )
    except (OSError, OverflowError) as error:
        raise UsageError(f"Port {port} of {host} cannot be used: {error}", fix="--port 0") from None
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    if parent is not None:
        loop.add_reader(parent, _stop_at_end, parent, stop)
    try:
        shown = f"[{host}]" if ":" in host else host
        ready(f"http://{shown}:{listening.sockets[0].getsockname()[1]}/v1")
        await stop.wait()
    finally:
        # `asyncio.run` ends the connections.
        listening.close()


def main() -> None:
    """Serve for a parent process: knobs as a line of JSON on stdin, the base URL on stdout."""
    knobs = Knobs().changed(json.loads(sys.stdin.readline()))
    asyncio.run(serve(knobs, ready=lambda url: print(url, flush=True), parent=sys.stdin.fileno()))


def _parse_head(head: bytes) -> tuple[str, str, dict[str, str]]:
    start, *lines = head.decode("latin-1")[:-4].split("\r\n")
    words = start.split(" ")
    if len(words) != 3 or not words[2].startswith("HTTP/1."):
        raise Refused(400, "The request does not begin like HTTP/1.1.")
    headers = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon:
            raise Refused(400, "A header line has no colon.")
        headers[name.lower()] = value.strip()
    return words[0], words[1], headers


def _body_size(headers: dict[str, str]) -> int:
    if "transfer-encoding" in headers:
        raise Refused(400, "Send a Content-Length; chunked requests are not read.")
    length = headers.get("content-length", "0")
    if not (length.isascii() and length.isdigit()):
        raise Refused(400, "Content-Length is no number.")
    if len(length) > 12 or int(length) > MAX_BODY_BYTES:
        raise Refused(413, f"The body is larger than {MAX_BODY_BYTES} bytes.")
    return int(length)


def _head(status: int, media: str, *, length: int | None, extra: str = "") -> bytes:
    size = "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
    return (
        f"HTTP/1.1 {status} {_REASONS[status]}\r\nContent-Type: {media}\r\nX-Simulated: 1\r\n"
        f"{extra}{size}\r\n\r\n"
    ).encode()


def _reply(answer: Answer, kind: str, choices: list[dict[str, Any]], **more: Any) -> bytes:
    body = {
        "id": answer.id,
        "object": kind,
        "created": answer.created,
        "model": answer.model,
        "system_fingerprint": "simulated",
        "choices": choices,
    }
    return json.dumps(body | more).encode()


def _chunk(answer: Answer, delta: dict[str, str], finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return _reply(answer, "chat.completion.chunk", [choice])


def _models() -> dict[str, Any]:
    models = [
        {"id": name, "object": "model", "created": 0, "owned_by": "simulated"} for name in PRICES
    ]
    return {"object": "list", "data": models}


def _stop_at_end(descriptor: int, stop: asyncio.Event) -> None:
    if not os.read(descriptor, 4096):
        stop.set()


def _end(pause: asyncio.Future[None]) -> None:
    if not pause.done():
        pause.set_result(None)


if __name__ == "__main__":
    try:
        main()
    except FleetError as error:
        sys.exit(f"error: {error}")
