"""Open chats: each an agent with its memory, read from disk when asked for, kept after a turn."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from fleet_rlm.errors import DataError
from fleet_rlm.lm.threads import in_thread
from fleet_rlm.serving.refusals import Declined
from fleet_rlm.serving.store import SessionKey, SessionStore

if TYPE_CHECKING:
    from fleet_rlm.program.agent.agent import RLMReActChatAgent

logger = logging.getLogger("fleet_rlm.serving")

IDLE_S = 600.0
"""A chat that was not used for this long leaves memory; it is read from disk when it goes on."""

MOST_OPEN = 512
"""Chats in memory; beyond, the one that was used longest ago leaves early."""


class Session:
    """One chat in memory. Used on the event loop only.

    Args:
        key: whose, and which; None for a chat that nobody can go on with.
        agent: answers, and remembers.
    """

    def __init__(self, key: SessionKey | None, agent: RLMReActChatAgent) -> None:
        self.key = key
        self.agent = agent
        self.is_held = False
        self.used_at = time.monotonic()


class Sessions:
    """All chats of a server. Used on the event loop only, which is never blocked.

    Args:
        store: keeps them.
        make_agent: identity -> an agent without memory.
        ttl_s: a chat that was not used for this long is deleted.
        now: seconds since the epoch.
    """

    def __init__(
        self,
        store: SessionStore,
        make_agent: Callable[[str], RLMReActChatAgent],
        *,
        ttl_s: float,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._make_agent = make_agent
        self._ttl_s = ttl_s
        self._now = now
        self._open: dict[SessionKey, Session] = {}
        self._loading: set[SessionKey] = set()

    def __len__(self) -> int:
        return len(self._open)

    @asynccontextmanager
    async def hold(self, identity: str, key: SessionKey | None) -> AsyncIterator[Session]:
        """A chat for one turn, which nobody else can use meanwhile.

        Args:
            identity: who asks.
            key: None for a chat of this one turn.

        Raises:
            Declined: 409, another turn of the chat runs.
            DataError: its files are damaged.
        """
        session = await self._load(identity, key)
        session.is_held = True
        try:
            yield session
        finally:
            session.is_held = False
            session.used_at = time.monotonic()
            if key is None:
                await in_thread(session.agent.shutdown)

    async def keep(self, session: Session) -> None:
        """Put what a chat remembers on disk; when that fails, it is logged."""
        key = session.key
        if key is None:
            return
        state = session.agent.export_session_state
        try:
            await in_thread(lambda: self._store.write(key, state()))
        except DataError as error:
            logger.error("%s", error)

    async def describe(self, identity: str) -> list[dict[str, Any]]:
        """The chats of an identity, as `/sessions/state` shows them."""
        found = await in_thread(lambda: list(self._store.describe(identity)))
        return [
            {
                "key": f"{one['workspace_id']}:{identity}:{one['session_id']}",
                "user_id": identity,
                **one,
                "updated_at": datetime.fromtimestamp(one["updated_at"], UTC).isoformat(),
            }
            for one in found
        ]

    async def sweep(self) -> None:
        """Delete chats past their time, and let idle ones leave memory."""
        gone = await in_thread(lambda: self._store.expire(self._now() - self._ttl_s))
        idle = time.monotonic() - IDLE_S
        free = [s for s in self._open.values() if not s.is_held]
        await self._close(s for s in free if s.key in gone or s.used_at < idle)

    async def close(self) -> None:
        """Close all of them; what was said is on disk."""
        await self._close(list(self._open.values()))
        self._store.close()

    async def _load(self, identity: str, key: SessionKey | None) -> Session:
        if key is None:
            return Session(None, await in_thread(lambda: self._make_agent(identity)))
        session = self._open.get(key)
        if key in self._loading or (session is not None and session.is_held):
            raise Declined(
                HTTPStatus.CONFLICT, "A turn of this chat is running: wait, or cancel it."
            )
        if session is not None:
            return session

        def load() -> RLMReActChatAgent:
            agent = self._make_agent(identity)
            if (state := self._store.read(key)) is not None:
                agent.import_session_state(state)
            return agent

        self._loading.add(key)
        try:
            session = self._open[key] = Session(key, await in_thread(load))
        finally:
            self._loading.discard(key)
        session.is_held = True  # what makes room must not close it
        if len(self._open) > MOST_OPEN:
            free = [s for s in self._open.values() if not s.is_held]
            await self._close(sorted(free, key=lambda s: s.used_at)[:1])
        return session

    async def _close(self, sessions: Any) -> None:
        for session in list(sessions):
            if session.is_held:  # since it was chosen
                continue
            if session.key is not None:
                self._open.pop(session.key, None)
            await in_thread(session.agent.shutdown)
