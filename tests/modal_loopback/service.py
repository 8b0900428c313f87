"""Turns `async def NameOfCall(self, request)` into handlers of a gRPC service."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from grpclib import GRPCError, Status
from grpclib.const import Cardinality, Handler


class _Names:
    def __getattr__(self, name: str) -> str:
        return name


class Service:
    """Base of both services. Calls without a method answer UNIMPLEMENTED with their name."""

    base: type
    idempotent: frozenset[str] = frozenset()
    """Calls whose answer is kept for a repetition."""

    def __init__(self, lab: Any) -> None:
        self.lab = lab

    def authorize(self, metadata: Mapping[str, Any]) -> None:
        """Raise GRPCError for a caller that is not known."""

    def __mapping__(self) -> dict[str, Handler]:
        generated = self.base.__mapping__(_Names())  # type: ignore[attr-defined]
        return {
            path: handler._replace(func=self._handler(str(handler.func), handler.cardinality))
            for path, handler in generated.items()
        }

    def _handler(self, name: str, cardinality: Cardinality) -> Callable[[Any], Any]:
        method = getattr(self, name, None)

        async def handle(stream: Any) -> None:
            await self._admit(name, stream.metadata)
            if method is None:
                raise GRPCError(Status.UNIMPLEMENTED, f"the loopback Modal has no {name}")
            if cardinality is Cardinality.STREAM_UNARY:
                await stream.send_message(await method(stream))
                return
            request = await stream.recv_message()
            if cardinality is Cardinality.UNARY_STREAM:
                async for item in method(request):
                    await stream.send_message(item)
                return
            key = stream.metadata.get("x-idempotency-key") if name in self.idempotent else None
            reply = self.lab.replies.get(key) if key else None
            if reply is None:
                reply = await method(request)
                if key:
                    self.lab.replies[key] = reply
            await stream.send_message(reply)

        return handle

    async def _admit(self, name: str, metadata: Mapping[str, Any]) -> None:
        lab = self.lab
        lab.calls[name] += 1
        if delay_s := lab.latency.get(name, lab.latency.get("*", 0.0)):
            await asyncio.sleep(delay_s)
        if lab.faults[name] and (error := lab.faults[name].popleft()):
            raise error
        self.authorize(metadata)
