"""Running turns: as many at once as allowed, each with its events, a bill and a way to stop it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Mapping
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, TypeVar

from fleet_rlm.errors import FleetError, LimitReached
from fleet_rlm.ledger import Ledger
from fleet_rlm.lm.cancel import Cancelled, CancelScope
from fleet_rlm.lm.threads import in_thread
from fleet_rlm.program.agent.events import TERMINAL, StreamEvent
from fleet_rlm.program.agent.setup import checked_message
from fleet_rlm.serving.metrics import Metrics
from fleet_rlm.serving.refusals import Declined, check_unicode
from fleet_rlm.serving.sessions import Session, Sessions
from fleet_rlm.serving.store import SessionKey

if TYPE_CHECKING:
    from collections.abc import Iterator

    import dspy

    from fleet_rlm.serving.engine import Engine

logger = logging.getLogger("fleet_rlm.serving")
T = TypeVar("T")

SHARE = 0.5
"""Part of the places that one identity may take when the server has several."""

MOST_CHARS = 200_000_000
"""Characters of all documents of a chat that were sent by its client."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a client wants of a chat."""

    identity: str
    key: SessionKey | None = None
    """None for a chat of this one turn."""

    message: str
    trace: bool = False
    docs_path: str | None = None
    documents: Mapping[str, str] = field(default_factory=dict)
    state: Mapping[str, Any] | None = None
    """What a chat of one turn remembers, as `export_session_state` gives it."""


class Running:
    """One turn that runs: iterate `events`, or `cancel`."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._events: asyncio.Queue[StreamEvent | None] = asyncio.Queue()
        self._is_over = False
        self.is_cancelled = False

    async def events(self) -> AsyncGenerator[StreamEvent, None]:
        """What happens; the last one is `final`, `cancelled` or `error`. Closing it cancels."""
        try:
            while (event := await self._events.get()) is not None:
                yield event
        finally:
            self.cancel()

    async def result(self) -> StreamEvent:
        """The last event."""
        last = StreamEvent(kind="cancelled")
        async for event in self.events():
            last = event
        return last

    def cancel(self) -> None:
        """End it soon, with a `cancelled` event; nothing happens when it is over."""
        if not self._is_over:  # else the chat may have a turn that is not this one
            self.is_cancelled = True
            self._session.agent.cancel()

    def tell(self, event: StreamEvent | None) -> None:
        """Add an event; None after the last."""
        self._is_over = event is None
        self._events.put_nowait(event)


class Chats:
    """Runs turns, commands and calls. Used on the event loop only, which is never blocked.

    Args:
        engine: answers.
        sessions: remember.
        metrics: count.
        concurrency: how many run at once.
        is_shared: whether several identities share the places.
    """

    def __init__(
        self,
        engine: Engine,
        sessions: Sessions,
        metrics: Metrics,
        *,
        concurrency: int,
        is_shared: bool,
    ) -> None:
        self.engine = engine
        self.sessions = sessions
        self.metrics = metrics
        self.is_draining = False
        self._concurrency = concurrency
        self._own = max(1, int(concurrency * SHARE)) if is_shared else concurrency
        self._running: Counter[str] = Counter()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._stops: set[Callable[[], None]] = set()

    async def begin(self, asked: Asked) -> Running:
        """Start a turn.

        Raises:
            Declined: no place is free (429), the chat has a turn (409), or the server stops (503).
            FleetError: the message is empty, a text is not Unicode, or a document cannot be loaded.
        """
        checked_message(asked.message)
        check_unicode([asked.message, asked.documents, asked.state])
        async with AsyncExitStack() as stack:
            stack.enter_context(self._place(asked.identity))
            session = await stack.enter_async_context(self.sessions.hold(asked.identity, asked.key))
            if asked.state is not None:
                session.agent.import_session_state(asked.state)
            await self._load_documents(session, asked)
            running = Running(session)
            self._start(self._run(running, session, asked, stack.pop_all()), running.cancel)
        return running

    async def command(
        self, identity: str, key: SessionKey, name: str, args: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Run a named command on a chat.

        Raises:
            Declined: as for `begin`.
            FleetError: the command is unknown, or failed.
            Cancelled: the server stops.
        """
        check_unicode(args)
        with self._place(identity):
            async with self.sessions.hold(identity, key) as session:

                async def work(ledger: Ledger) -> dict[str, Any]:
                    with self.engine.running(ledger):
                        return await session.agent.execute_command(name, args)

                stop = session.agent.cancel
                found = await self._start(self._billed("command", work), stop)
                await self.sessions.keep(session)
                return found

    async def call(
        self, identity: str, program: dspy.Module, inputs: Mapping[str, Any], scope: CancelScope
    ) -> tuple[dspy.Prediction, Ledger]:
        """Call a program; gives its outputs and what they cost.

        Raises:
            Declined: no place is free, or the server stops.
            FleetError: models, sandbox or program failed, or a limit is met.
            Cancelled: `scope` was cancelled.
        """
        check_unicode(inputs)
        with self._place(identity):

            async def work(ledger: Ledger) -> tuple[dspy.Prediction, Ledger]:
                call = self.engine.call
                return await in_thread(lambda: call(program, inputs, ledger, scope)), ledger

            return await self._start(self._billed("call", work), scope.cancel)

    async def drain(self, seconds: float) -> None:
        """Take nothing new, and wait for what runs; what is not over by then is cancelled."""
        self.is_draining = True
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=seconds)
        for stop in list(self._stops):
            stop()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=5)

    @contextmanager
    def _place(self, identity: str) -> Iterator[None]:
        if self.is_draining:
            raise Declined(HTTPStatus.SERVICE_UNAVAILABLE, "The server stops.", retry_after=10)
        is_full = self._running.total() >= self._concurrency
        if is_full or self._running[identity] >= self._own:
            raise Declined(
                HTTPStatus.TOO_MANY_REQUESTS, "All places for turns are taken.", retry_after=1
            )
        self._running[identity] += 1
        self.metrics.running.inc()
        try:
            yield
        finally:
            self._running[identity] -= 1
            self.metrics.running.dec()

    def _start(self, work: Coroutine[Any, Any, T], stop: Callable[[], None]) -> asyncio.Task[T]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        self._stops.add(stop)

        def over(_: Any) -> None:
            self._tasks.discard(task)
            self._stops.discard(stop)

        task.add_done_callback(over)
        return task

    async def _run(
        self, running: Running, session: Session, asked: Asked, stack: AsyncExitStack
    ) -> None:
        last = StreamEvent(kind="error", text="The turn failed.")
        async with stack:
            try:
                last = await self._billed(
                    "turn", lambda ledger: self._tell(running, session, asked, ledger)
                )
                await self.sessions.keep(session)
            except FleetError as error:
                last = StreamEvent(kind="error", text=error.message)
            finally:
                # Kept first: whoever has read the answer may rely on it.
                running.tell(last)
                running.tell(None)

    async def _tell(
        self, running: Running, session: Session, asked: Asked, ledger: Ledger
    ) -> StreamEvent:
        """Pass on what happens; gives the last event, which has the bill."""
        last = StreamEvent(kind="cancelled", text="[cancelled]", payload={"history_turns": 0})
        if running.is_cancelled:
            return last
        with self.engine.running(ledger):
            stream = session.agent.aiter_chat_turn_stream(asked.message, trace=asked.trace)
            async for event in stream:
                if event.kind in TERMINAL:
                    last = event
                else:
                    running.tell(event)
        spent = {role: usage.to_json() for role, usage in ledger.by_role.items()}
        return replace(last, payload={**last.payload, "usage": spent})

    async def _billed(self, kind: str, work: Callable[[Ledger], Awaitable[T]]) -> T:
        # A turn has its own clock, which leaves time for a last reply.
        limits = self.engine.arm.limits if kind == "call" else None
        ledger, began, outcome = Ledger(limits), time.monotonic(), "error"
        try:
            found = await work(ledger)
            outcome = found.kind if isinstance(found, StreamEvent) else "final"
            return found
        except (Cancelled, asyncio.CancelledError):
            outcome = "cancelled"
            raise
        except LimitReached:
            outcome = "limit"
            raise
        finally:
            self.metrics.turns.labels(kind, outcome).inc()
            self.metrics.turn_seconds.labels(kind).observe(time.monotonic() - began)
            self.metrics.book(ledger)

    async def _load_documents(self, session: Session, asked: Asked) -> None:
        agent = session.agent
        held = sum(map(len, agent.documents.values()))
        if held + sum(map(len, asked.documents.values())) > MOST_CHARS:
            raise Declined(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"A chat holds {MOST_CHARS:,} characters of documents at most.",
            )
        for alias, text in asked.documents.items():
            agent.add_document(alias, text)
        if asked.docs_path is not None:
            with self.engine.running(Ledger()):
                await agent.execute_command("load_document", {"path": asked.docs_path})
