"""Server-sent events: a stream of texts with a sign of life while nothing happens."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from typing import Any

from fastapi.responses import StreamingResponse

BEAT_S = 15.0
"""Proxies close a connection on which nothing moves for a minute."""


def sse_response(pieces: AsyncGenerator[str, None]) -> StreamingResponse:
    """An answer made of `format_event` texts; `pieces` is closed when the client leaves."""
    headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
    return StreamingResponse(_with_beats(pieces), media_type="text/event-stream", headers=headers)


def format_event(data: Mapping[str, Any] | str, *, kind: str = "", number: int = -1) -> str:
    """One event."""
    text = data if isinstance(data, str) else json.dumps(data)
    head = f"event: {kind}\n" if kind else ""
    name = f"id: {number}\n" if number >= 0 else ""
    return f"{head}{name}data: {text}\n\n"


async def _with_beats(pieces: AsyncGenerator[str, None]) -> AsyncIterator[str]:
    async with aclosing(pieces):
        waiting: asyncio.Task[str | None] | None = None
        try:
            while True:
                waiting = waiting or asyncio.ensure_future(anext(pieces, None))
                done, _ = await asyncio.wait({waiting}, timeout=BEAT_S)
                if not done:
                    yield ": still working\n\n"
                    continue
                piece, waiting = waiting.result(), None
                if piece is None:
                    return
                yield piece
        finally:
            if waiting is not None:
                waiting.cancel()
                await asyncio.wait({waiting})
