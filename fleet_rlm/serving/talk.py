"""A chat as a terminal sees it: with an agent in this process, or with a server elsewhere."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING, Any, Protocol

from fleet_rlm.errors import ProviderError, UsageError, one_line
from fleet_rlm.ledger import Ledger
from fleet_rlm.lm.cancel import Cancelled
from fleet_rlm.program.agent.events import TERMINAL, StreamEvent

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from websockets.asyncio.client import ClientConnection

    from fleet_rlm.program.agent.agent import RLMReActChatAgent
    from fleet_rlm.serving.engine import Engine

TRIES = 5
"""Attempts to reach a server that is not there."""

RETRY_S = 2.0
MAX_MESSAGE_BYTES = 64 << 20


class Talk(Protocol):
    """One chat. One turn or command at a time, all from one event loop; `cancel` as well."""

    about: str
    """Program, model and sandbox, on one line."""

    label: str | None
    """The sentence that must stand beside the answers of a simulated model."""

    def turn(self, message: str, *, trace: bool) -> AsyncGenerator[StreamEvent, None]:
        """What happens in a turn; the last event is `final`, `cancelled` or `error`.

        Raises:
            FleetError: the turn cannot begin.
        """

    async def command(self, name: str, args: Mapping[str, Any]) -> dict[str, Any]:
        """The result of a named command.

        Raises:
            FleetError: it is unknown, or failed.
            Cancelled: `cancel` was called.
        """

    def cancel(self) -> None:
        """End the running turn or command."""

    def close(self) -> None:
        """Let go of what the chat holds; called outside of the event loop, at the end."""


class OwnTalk:
    """A chat with an agent in this process.

    Args:
        engine: answers.
        agent: remembers.
    """

    def __init__(self, engine: Engine, agent: RLMReActChatAgent) -> None:
        self._engine = engine
        self._agent = agent
        self.label = engine.label
        self.about = f"{engine.name} · {engine.arm.root.name} · sandbox {engine.level.name}"

    async def turn(self, message: str, *, trace: bool) -> AsyncGenerator[StreamEvent, None]:
        ledger = Ledger()
        with self._engine.running(ledger):
            stream = self._agent.aiter_chat_turn_stream(message, trace=trace)
            async with aclosing(stream):
                async for event in stream:
                    if event.kind in TERMINAL:
                        spent = {role: use.to_json() for role, use in ledger.by_role.items()}
                        event = replace(event, payload={**event.payload, "usage": spent})
                    yield event

    async def command(self, name: str, args: Mapping[str, Any]) -> dict[str, Any]:
        with self._engine.running(Ledger()):
            return await self._agent.execute_command(name, args)

    def cancel(self) -> None:
        self._agent.cancel()

    def close(self) -> None:
        self._agent.shutdown()


class FarTalk:
    """A chat with a server, over its WebSocket; the chat lives there and outlasts a connection.

    Args:
        url: base URL of `fleet-rlm serve-api`.
        token: bearer token; None where the server needs none.
        session: name of the chat, to go on with one; a new one when None.
    """

    def __init__(self, url: str, token: str | None, session: str | None = None) -> None:
        scheme, slashes, rest = url.rstrip("/").partition("://")
        if scheme not in {"http", "https"} or not slashes:
            raise UsageError(f"{url!r} is no address of a server.", fix="http://127.0.0.1:8000")
        self._url = f"{'wss' if scheme == 'https' else 'ws'}://{rest}/ws/chat"
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._session = session or secrets.token_hex(8)
        self._cancelled: asyncio.Event | None = None
        self.about = url
        self.label: str | None = None

    async def greet(self) -> None:
        """Find out who answers there.

        Raises:
            UsageError: nobody does, or the token is not known.
        """
        async with self._connection() as connection:
            response = connection.response
            kind = response.headers.get("x-model-kind") if response else None
        if kind == "simulated":
            from fleet_rlm.lm.simulated import LABEL

            self.label = LABEL

    async def turn(self, message: str, *, trace: bool) -> AsyncGenerator[StreamEvent, None]:
        asked = {"type": "message", "content": message, "trace": trace, "trace_mode": "verbose"}
        messages = self._exchange(asked)
        async with aclosing(messages):
            async for found in messages:
                if found["type"] == "error":
                    raise UsageError(found["message"])
                event = _parse_event(found["data"])
                yield event
                if event.kind in TERMINAL:
                    return

    async def command(self, name: str, args: Mapping[str, Any]) -> dict[str, Any]:
        asked = {"type": "command", "command": name, "args": dict(args)}
        messages = self._exchange(asked)
        async with aclosing(messages):
            async for found in messages:
                if found["type"] == "error":
                    raise UsageError(found["message"])
                result: dict[str, Any] = found["result"]
                if result.get("error") == "cancelled":
                    raise Cancelled("cancelled")
                if result.get("status") == "error":
                    raise UsageError(str(result["error"]))
                return result
        raise ProviderError("The server ended the connection.")

    def cancel(self) -> None:
        if self._cancelled is not None:
            self._cancelled.set()

    def close(self) -> None:
        """Nothing to do: a connection lasts as long as a turn."""

    async def _exchange(self, asked: dict[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        """Send one message, and give what comes; `cancel` sends another."""
        from websockets.exceptions import ConnectionClosed

        cancelled = self._cancelled = asyncio.Event()
        async with self._connection() as connection:

            async def pass_cancel() -> None:
                await cancelled.wait()
                await connection.send('{"type": "cancel"}')

            watching: asyncio.Task[None] | None = None
            try:
                await connection.send(json.dumps({**asked, "session_id": self._session}))
                watching = asyncio.create_task(pass_cancel())
                while True:
                    yield json.loads(await connection.recv())
            except ConnectionClosed as closed:
                raise ProviderError(f"The server ended the connection: {closed}") from None
            finally:
                self._cancelled = None
                if watching is not None:
                    watching.cancel()

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[ClientConnection]:
        from websockets.asyncio.client import connect
        from websockets.exceptions import InvalidStatus, WebSocketException

        for left in range(TRIES - 1, -1, -1):
            try:
                connection = await connect(
                    self._url,
                    additional_headers=self._headers,
                    max_size=MAX_MESSAGE_BYTES,
                    proxy=None,
                )
                break
            except InvalidStatus as refused:
                raise _explain(refused.response.status_code, self._url) from None
            except (OSError, WebSocketException) as error:
                if not left:
                    why = one_line(str(error))
                    raise UsageError(f"Nobody answers at {self._url}: {why}") from None
                await asyncio.sleep(RETRY_S)
        async with connection:
            yield connection


def _explain(status: int, url: str) -> UsageError:
    if status == 401:
        return UsageError(f"{url} needs a token that it knows.", fix="export FLEET_RLM_TOKEN=...")
    return UsageError(f"{url} answers with status {status}.")


def _parse_event(data: Mapping[str, Any]) -> StreamEvent:
    return StreamEvent(
        kind=data["kind"],
        text=data["text"],
        payload=data["payload"],
        timestamp=datetime.fromisoformat(data["timestamp"]),
        sequence=data["sequence"],
    )
