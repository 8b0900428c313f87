"""The WebSocket: messages, commands and cancel in; events, results and errors out."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Callable
from typing import Any, TypeVar

from fastapi import WebSocket, WebSocketDisconnect
from pydantic import BaseModel, ValidationError

from fleet_rlm.errors import FleetError, UsageError
from fleet_rlm.lm.cancel import Cancelled
from fleet_rlm.serving.bodies import SocketCommand, SocketMessage, TraceMode
from fleet_rlm.serving.chats import Asked, Chats, Running
from fleet_rlm.serving.store import SessionKey, parse_key

Body = TypeVar("Body", bound=BaseModel)

MOST_MALFORMED = 100
"""Messages that are none, before a connection is closed."""

_POLICY = 1008
_HIDDEN: dict[TraceMode, frozenset[str]] = {
    "verbose": frozenset(),
    "compact": frozenset({"trajectory_step"}),
    "off": frozenset({"trajectory_step", "reasoning_step", "status", "tool_call", "tool_result"}),
}


class ChatSocket:
    """One connection: reads all the time, also while a turn runs, so that it can be cancelled.

    Args:
        socket: accepted already.
        chats: runs turns.
        identity: who is connected.
        count: called for each message; raises when there are too many.
    """

    def __init__(
        self, socket: WebSocket, chats: Chats, identity: str, count: Callable[[], None]
    ) -> None:
        self._socket = socket
        self._chats = chats
        self._identity = identity
        self._count = count
        self._own_session = secrets.token_hex(8)
        self._work: asyncio.Task[None] | None = None
        self._running: Running | None = None
        self._command: asyncio.Task[dict[str, Any]] | None = None
        self._is_cancelled = self._is_gone = False

    async def serve(self) -> None:
        """Until the client leaves or sends nothing but nonsense."""
        malformed = 0
        try:
            while malformed < MOST_MALFORMED:
                message = await self._socket.receive()
                if message["type"] == "websocket.disconnect":
                    return
                try:
                    await self._handle(message.get("text") or message.get("bytes") or b"")
                except FleetError as error:
                    malformed += isinstance(error, _Malformed)
                    await self._send({"type": "error", "message": error.message})
            await self._socket.close(_POLICY, "Too many messages that are none.")
        finally:
            self._cancel()
            if self._work is not None:
                await asyncio.wait({self._work})

    def _cancel(self) -> None:
        self._is_cancelled = True  # also what has not got as far as to be running
        if self._running is not None:
            self._running.cancel()
        if self._command is not None:
            self._command.cancel()

    async def _handle(self, text: str | bytes) -> None:
        payload = _parse_json(text)
        kind = payload.get("type")
        if kind == "cancel":
            self._cancel()
            return
        self._count()
        match kind:
            case "message":
                message = _validate(SocketMessage, payload)
                if not message.content.strip():
                    raise _Malformed("Message content cannot be empty")
                self._start(self._turn(message))
            case "command":
                command = _validate(SocketCommand, payload)
                if not command.command.strip():
                    raise _Malformed("Command name cannot be empty")
                self._start(self._obey(command))
            case _:
                raise _Malformed(f"Unknown message type: {str(kind)[:100]}")

    def _start(self, work: Any) -> None:
        if self._work is not None and not self._work.done():
            work.close()
            raise UsageError("A turn of this connection is running: wait, or send cancel.")
        self._is_cancelled = False
        self._work = asyncio.create_task(work)

    async def _turn(self, message: SocketMessage) -> None:
        hidden = _HIDDEN[message.trace_mode]
        try:
            running = await self._chats.begin(
                Asked(
                    identity=self._identity,
                    key=self._key(message.workspace_id, message.session_id),
                    message=message.content,
                    trace=message.trace and "reasoning_step" not in hidden,
                    docs_path=message.docs_path,
                    documents=message.documents,
                )
            )
            self._running = running
            if self._is_cancelled:
                running.cancel()
            async for event in running.events():
                if event.kind not in hidden:
                    await self._send({"type": "event", "data": event.to_json()})
        except FleetError as error:
            await self._send({"type": "error", "message": error.message})
        finally:
            self._running = None

    async def _obey(self, command: SocketCommand) -> None:
        key = self._key(command.workspace_id, command.session_id)
        work = self._command = asyncio.ensure_future(
            self._chats.command(self._identity, key, command.command, command.args)
        )
        try:
            result = await work
        except FleetError as error:
            result = {"status": "error", "error": error.message}
        except (Cancelled, asyncio.CancelledError):
            result = {"status": "error", "error": "cancelled"}
        finally:
            self._command = None
        shown = {"type": "command_result", "command": command.command, "result": result}
        await self._send(shown)

    def _key(self, workspace: str, session: str | None) -> SessionKey:
        return parse_key(self._identity, workspace, session or self._own_session)

    async def _send(self, content: dict[str, Any]) -> None:
        if self._is_gone:
            return
        try:
            await self._socket.send_text(json.dumps(content))
        except (ConnectionError, WebSocketDisconnect, RuntimeError):
            # Left, or does not read: nobody waits for what comes.
            self._is_gone = True
            self._cancel()


class _Malformed(UsageError):
    """Not a message of this protocol."""


def _parse_json(text: str | bytes) -> dict[str, Any]:
    try:
        payload = json.loads(text)
    except (ValueError, RecursionError):
        raise _Malformed("Invalid payload: not JSON") from None
    if not isinstance(payload, dict):
        raise _Malformed("Invalid payload: not an object")
    return payload


def _validate(model: type[Body], payload: dict[str, Any]) -> Body:
    try:
        return model.model_validate(payload)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))[:100]
        raise _Malformed(f"Invalid payload: {place}: {first['msg']}") from None
