"""One turn of the chat agent: the asynchronous core behind every way of calling it."""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import dspy
from dspy.utils.exceptions import AdapterParseError, ContextWindowExceededError

from fleet_rlm.errors import (
    BudgetExhausted,
    FleetError,
    LimitReached,
    ProgramError,
    boundary,
    nearest,
)
from fleet_rlm.ledger import Ledger, Limits
from fleet_rlm.lm.cancel import CANCEL_SETTING, Cancelled, CancelScope, cancel_scope
from fleet_rlm.lm.metered import LEDGER_SETTING, current_ledger
from fleet_rlm.lm.threads import in_thread
from fleet_rlm.program.agent.drive import Guard, Mailbox, Stopped
from fleet_rlm.program.agent.events import StreamEvent
from fleet_rlm.program.agent.prompt import (
    FINISH,
    Step,
    render_conversation,
    render_documents,
    render_steps,
)
from fleet_rlm.program.agent.roots import Refused
from fleet_rlm.program.agent.state import ChatState
from fleet_rlm.program.agent.tools import describe_tool
from fleet_rlm.program.agent.voice import Voice
from fleet_rlm.program.events import EVENTS_SETTING
from fleet_rlm.program.history import DEEPEST
from fleet_rlm.program.rlm import with_text

if TYPE_CHECKING:
    from fleet_rlm.program.agent.agent import RLMReActChatAgent

POLL_S = 0.05
"""How often `cancel_check` is asked while nothing happens."""

PIECE_CHARS = 80
"""Characters of one `assistant_token`: DSPy's adapters hand over an answer whole."""

MOST_PIECES = 500
"""A longer answer has longer pieces: it must not flood whoever listens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnResult:
    """How a turn ended well."""

    response: str
    stop: str
    """"answered", "iterations", "context" or the kind of limit that was met."""

    steps: list[dict[str, Any]]
    """`{thought, tool_name, tool_args, observation}` of each step."""

    reasoning: str
    """The last thought."""


class _Action(NamedTuple):
    thought: str
    name: str
    args: Mapping[str, Any]


class Turn:
    """One request and the steps towards its answer. Run it once.

    Args:
        agent: predictors, programs and settings; never changed.
        state: what the turn may change, a fork of the chat's own.
        tools: name -> tool, all of them over `state`.
        request: what the user says.
        commit: takes the changed state when the turn has ended well.
        trace: whether thoughts become events.
    """

    def __init__(
        self,
        agent: RLMReActChatAgent,
        state: ChatState,
        tools: Mapping[str, dspy.Tool | Callable[..., Any]],
        request: str,
        *,
        commit: Callable[[ChatState], None] | None = None,
        trace: bool = False,
    ) -> None:
        self._agent = agent
        self._state = state
        self._tools = tools
        self._request = request
        self._commit = commit
        self._scope = CancelScope()
        self._guard = Guard(self._scope)
        self._is_cancelled = False
        self._wake: Callable[[], None] = lambda: None
        self._voice = Voice(agent, self._guard.check, trace=trace)
        self._ledger = Ledger(Limits(working_s=None, wall_s=agent.timeout), parent=current_ledger())
        self._steps: list[Step] = []

    def cancel(self) -> None:
        """End the turn from any thread: running code is interrupted, no model call starts any more,
        and what the turn changed is dropped. May be called again, and when it is over."""
        self._is_cancelled = True
        self._scope.cancel()
        self._wake()

    async def run(self) -> TurnResult:
        """Take steps until there is an answer.

        Raises:
            Cancelled: whoever watches the calling program stopped it.
            LMError: the model's service failed; carries the steps so far as `trajectory`.
            BudgetExhausted: the run's money is spent.
        """
        with self._cancellable():
            response, stop = await self._answer()
        size = max(PIECE_CHARS, -(-len(response) // MOST_PIECES))
        for start in range(0, len(response), size):
            self._voice.tell("assistant_token", response[start : start + size])
        self._voice.end(response, stop)
        if self._commit:
            self._state.add_turn(self._request, response, self._agent.history_max_turns)
            self._commit(self._state)
        return TurnResult(
            response=response,
            stop=stop,
            steps=self._trajectory(),
            reasoning=self._agent.clean(self._steps[-1].thought) if self._steps else "",
        )

    async def use_tool(self, name: str, args: Mapping[str, Any]) -> Any:
        """Use one tool on the user's behalf, instead of `run`.

        Raises:
            Cancelled: whoever watches the calling program stopped it.
            Exception: whatever the tool raises.
        """
        with self._cancellable():
            found = self._agent.clean_data(await self._call(name, args))
        if self._commit:
            self._commit(self._state)
        return found

    async def stream(
        self, cancel_check: Callable[[], bool] | None = None
    ) -> AsyncGenerator[StreamEvent, None]:
        """Run, and tell what happens; the last event is `final`, `cancelled` or `error`.

        Closing the stream cancels the turn.

        Args:
            cancel_check: asked every 50 ms, on the event loop; true cancels the turn.
        """
        mailbox: Mailbox[StreamEvent] = Mailbox()
        self._voice.publish = mailbox.put
        self._wake = mailbox.wake
        task = asyncio.create_task(self.run())
        task.add_done_callback(lambda _: mailbox.wake())
        sequence = 0
        try:
            while event := await self._next(mailbox, task, cancel_check):
                yield replace(event, sequence=sequence)
                sequence += 1
            yield replace(self._last_event(task), sequence=sequence)
        finally:
            self.cancel()
            task.cancel()
            await asyncio.wait({task})
            if not task.cancelled():
                task.exception()

    async def _next(
        self,
        mailbox: Mailbox[StreamEvent],
        task: asyncio.Task[TurnResult],
        cancel_check: Callable[[], bool] | None,
    ) -> StreamEvent | None:
        """The next event; None when the turn is over or was cancelled."""
        while True:
            if cancel_check is not None and cancel_check():
                self.cancel()
            if self._is_cancelled and not task.done():
                task.cancel()  # at once: it must not commit after `cancelled` is told
                return None
            if (event := mailbox.take()) is not None:
                return event
            if task.done():
                return None
            await mailbox.wait(POLL_S if cancel_check else None)

    def _last_event(self, task: asyncio.Task[TurnResult]) -> StreamEvent:
        if not task.done():
            return self._cancelled()
        try:
            with boundary(ProgramError, "chat turn"):
                result = task.result()
        except Cancelled:
            return self._cancelled()
        except FleetError as error:
            cause = error.__cause__ or error
            return StreamEvent(
                kind="error",
                text=self._agent.clean(str(error)),
                payload={"error_type": type(cause).__name__},
            )
        payload = {
            "trajectory": result.steps,
            "final_reasoning": result.reasoning,
            "history_turns": len(self._state.turns),
            "stop": result.stop,
        }
        return StreamEvent(kind="final", text=result.response, payload=payload)

    def _cancelled(self) -> StreamEvent:
        text = f"{self._voice.told} [cancelled]".strip()
        payload = {"history_turns": len(self._state.turns)}
        return StreamEvent(kind="cancelled", text=text, payload=payload)

    async def _answer(self) -> tuple[str, str]:
        """The reply and why the turn ended."""
        stop = "iterations"
        try:
            total = self._agent.settings["react_max_iters"]
            for number in range(1, total + 1):
                action = await self._in_thread(partial(self._act, f"{number}/{total}"))
                if action is None:
                    continue
                if action.name == FINISH and (reply := _reply_of(action.args)):
                    self._note(action, "The user has the reply.")
                    return self._agent.clean(reply), "answered"
                self._note(action, await self._use(action))
        except LimitReached as limit:
            stop = limit.kind
        except ContextWindowExceededError:
            stop = "context"
        self._voice.tell("status", f"stopped at a limit: {stop}")
        return await self._in_thread(lambda: self._respond(stop)), stop

    def _act(self, iteration: str) -> _Action | None:
        """The next action; None when the reply held none."""
        self._ledger.check()
        learned = self._agent.act.signature
        text = f"{learned.instructions}\n\n{self._agent.protocol}"
        documents = self._state.documents
        inputs = self._common_inputs() | {
            "documents": render_documents(documents.describe(), documents.active_alias),
            "iteration": iteration,
        }
        try:
            found = self._fit(
                lambda steps: self._agent.act(
                    signature=with_text(learned, text), trajectory=steps, **inputs
                )
            )
        except AdapterParseError:
            note = (
                "[Error] The reply did not hold the fields `next_thought`, `next_tool_name` and "
                "`next_tool_args`. Send all three."
            )
            self._note(_Action("", "", {}), note)
            return None
        action = _Action(
            str(found.next_thought or ""),
            str(found.next_tool_name or "").strip(),
            dict(found.next_tool_args or {}),
        )
        self._voice.tell("reasoning_step", action.thought, source="next_thought")
        return action

    def _fit(self, ask: Callable[[str], dspy.Prediction]) -> dspy.Prediction:
        """Ask with the steps so far, cut shorter each time that they do not fit."""
        level = 0
        while True:
            try:
                return ask(render_steps(self._steps, level))
            except ContextWindowExceededError:
                if level == DEEPEST or not self._steps:
                    raise
                level += 1

    def _respond(self, stop: str) -> str:
        """A reply from the steps that were taken, with one model call beyond the limits."""
        inputs = self._common_inputs()
        with self._ledger.grace():
            try:
                found = self._fit(lambda steps: self._agent.respond(trajectory=steps, **inputs))
                reply = str(found.assistant_response or "")
            except (AdapterParseError, ContextWindowExceededError):
                reply = ""
        count = len(self._steps)
        none = f"There is no answer: the turn stopped ({stop}) after {count} steps."
        return self._agent.clean(reply.strip() or none)

    def _common_inputs(self) -> dict[str, str]:
        return {
            "core_memory": self._state.memory.render(),
            "conversation": render_conversation(self._state.turns),
            "user_request": self._request,
        }

    async def _use(self, action: _Action) -> str:
        """What the tool returns, as the model reads it; a failure is told, not raised."""
        name = action.name
        self._voice.tell("tool_call", f"tool call: {name}", name=name, args=dict(action.args))
        ok = False
        try:
            with boundary(ProgramError, name):
                shown = _as_text(await self._call(name, action.args))
                ok = True
        except (LimitReached, BudgetExhausted, Cancelled):
            raise
        except FleetError as error:
            shown = _as_text({"status": "error", "error": str(error)})
        self._voice.tell("tool_result", "tool result: finished", name=name, ok=ok)
        limit = self._agent.settings["max_observation_chars"]
        shown = self._agent.clean(shown)
        if len(shown) > limit:
            shown = f"{shown[:limit]}... [{len(shown) - limit:,} more characters]"
        return shown

    async def _call(self, name: str, args: Mapping[str, Any]) -> Any:
        if name == FINISH:
            raise Refused(f"{FINISH} takes assistant_response, the reply to the user.")
        if name not in self._tools:
            raise Refused(f"There is no tool {name!r}. {nearest(name, (*self._tools, FINISH))}")
        found = self._tools[name]
        tool = found if isinstance(found, dspy.Tool) else describe_tool(name, found)
        if inspect.iscoroutinefunction(tool.func):
            with self._settings():
                return await tool.acall(**args)
        return await self._in_thread(lambda: tool(**args))

    def _note(self, action: _Action, observation: str) -> None:
        step = Step(
            thought=action.thought,
            tool_name=action.name,
            tool_args=action.args,
            observation=observation,
        )
        self._steps.append(step)
        index = len(self._steps) - 1
        data = {"step_index": index, "step_data": step.to_json(), "total_steps": index + 1}
        self._voice.tell("trajectory_step", step.thought, **data)

    async def _in_thread(self, work: Callable[[], Any]) -> Any:
        def step() -> Any:
            with self._settings():
                return work()

        return await in_thread(step)

    def _trajectory(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self._agent.clean_data([s.to_json() for s in self._steps])
        return found

    @contextmanager
    def _cancellable(self) -> Iterator[None]:
        outer = cancel_scope()
        try:
            with outer.guard(self.cancel) if outer else nullcontext():
                yield
        except Stopped as error:
            raise Cancelled("cancelled") from error
        except asyncio.CancelledError:
            self.cancel()
            raise
        except dspy.LMError as error:
            error.trajectory = self._trajectory()  # paid for, so the caller may store it
            raise

    @contextmanager
    def _settings(self) -> Iterator[None]:
        self._guard.check()
        shared: dict[str, Any] = {
            LEDGER_SETTING: self._ledger,
            CANCEL_SETTING: self._scope,
            EVENTS_SETTING: self._voice.hear if self._voice.is_heard else None,
        }
        with dspy.context(callbacks=[*dspy.settings.callbacks, self._guard], **shared):
            yield


def _reply_of(args: Mapping[str, Any]) -> str:
    """The reply in the arguments of `finish`; the only value counts under any name."""
    value = args.get("assistant_response")
    if value is None and len(args) == 1:
        value = next(iter(args.values()))
    return _as_text(value).strip() if value is not None else ""


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
