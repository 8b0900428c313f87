"""`RLMReActChatAgent`: a chat over long documents that delegates to recursive programs."""

from __future__ import annotations

import copy
import functools
import logging
import os
import threading
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias

import dspy
from dspy.primitives.code_interpreter import CodeInterpreter, resolve_interpreter_factory
from dspy.primitives.python_interpreter import PythonInterpreter

from fleet_rlm.errors import UsageError
from fleet_rlm.lm.threads import in_thread
from fleet_rlm.program.agent.commands import parse_command
from fleet_rlm.program.agent.documents import ACTIVE, Document, read_document
from fleet_rlm.program.agent.drive import iterate, wait_for
from fleet_rlm.program.agent.events import StreamEvent
from fleet_rlm.program.agent.prompt import FINISH, Act, Respond, render_protocol
from fleet_rlm.program.agent.setup import (
    History,
    checked_message,
    choose_factory,
    choose_roots,
    choose_volume,
    parse_history,
    positive,
    refuse_secret,
)
from fleet_rlm.program.agent.signatures import (
    AnalyzeLongDocument,
    ExtractFromLogs,
    SummarizeLongDocument,
)
from fleet_rlm.program.agent.state import ChatState
from fleet_rlm.program.agent.tools import TOOLS, AgentTools, describe_tool, usable_tools
from fleet_rlm.program.agent.turn import Turn, TurnResult
from fleet_rlm.program.agent.volume import Volume
from fleet_rlm.program.agent.workbench import Workbench
from fleet_rlm.program.context_ref import ContextRef
from fleet_rlm.program.recursion import ProgramSettings, Range, RecursionSettings
from fleet_rlm.program.rlm import RLM, ChildQuery, InterpreterFactory
from fleet_rlm.sandbox.interpreter import LocalInterpreter
from fleet_rlm.sandbox.redact import Redactor

logger = logging.getLogger(__name__)

Tool: TypeAlias = "dspy.Tool | Callable[..., Any]"


class AgentSettings(ProgramSettings):
    """The knobs of the agent's own loop."""

    SPEC: Mapping[str, Range] = {
        "react_max_iters": Range(10, 1, 100),
        "max_observation_chars": Range(6_000, 200, 1_000_000),
    }
    """`react_max_iters`: steps of one turn.
    `max_observation_chars`: characters of one tool's result that the model sees."""


class RLMReActChatAgent(dspy.Module):
    """A chat agent that reads long documents with recursive programs, made to be compiled.

    `act` chooses one tool per step, `respond` answers when no step is left, and four RLMs do the
    reading: `rlm` (tool `rlm_query`), `analyze`, `summarize` and `extract_logs`. All of them are
    sub-modules: optimizers see them, `save` and `load` keep them. What `act` learns is guidance;
    the list of tools is rendered per call, so a new tool costs no demo.

    `agent(user_request=...)` answers one request on a copy of the chat's memory, from any number of
    threads. `chat_turn` and its variants continue the chat; a turn that fails or is cancelled
    leaves the chat's memory as it was. Use it as a context manager, or call `shutdown`.

    Args:
        react_max_iters: steps of one turn.
        rlm_max_iterations: turns of a recursive program with its REPL.
        rlm_max_llm_calls: model calls that generated code causes in one answer.
        rlm_max_depth: how deep child programs may nest.
        timeout: seconds of one turn; checked before each model call. None for no limit.
        volume_name: a volume by name; a folder below `.fleet-rlm/volumes` on this machine.
        volume: a volume, or the folder of one.
        verbose: whether to log what happens, at level INFO.
        history_max_turns: how many turns the chat remembers; None for all.
        extra_tools: functions, or `dspy.Tool`s, also asynchronous ones.
        interpreter_factory: makes sandboxes; the one that DSPy is configured with, or
            `LocalInterpreter`, when None.
        interpreter: another name for `interpreter_factory`.
        docs_path: a file to load, or a folder to work in.
        roots: folders that file tools may read, () for none; that of `docs_path` when None, else
            the working directory.
        guidance: initial instruction of `act`.
        redactor: cleans what leaves a turn; by default it knows the secrets of the environment.
        secret_name: sandboxes hold no secrets, so anything but None is refused.

    Raises:
        UsageError: a setting out of range, a folder or file that cannot be used, a tool name that
            is taken.
    """

    def __init__(
        self,
        *,
        react_max_iters: int = AgentSettings.SPEC["react_max_iters"].default,
        rlm_max_iterations: int = 30,
        rlm_max_llm_calls: int = 50,
        rlm_max_depth: int = RecursionSettings.SPEC["max_depth"].default,
        timeout: float | None = 900,
        volume_name: str | None = None,
        volume: Volume | str | Path | None = None,
        verbose: bool = False,
        history_max_turns: int | None = None,
        extra_tools: Iterable[Tool] | None = None,
        interpreter_factory: InterpreterFactory | None = None,
        interpreter: InterpreterFactory | None = None,
        docs_path: str | Path | None = None,
        roots: Iterable[str | Path] | None = None,
        guidance: str = "",
        redactor: Redactor | None = None,
        secret_name: str | None = None,
    ) -> None:
        super().__init__()
        refuse_secret(secret_name)
        self.settings = AgentSettings(react_max_iters=react_max_iters)
        self.timeout = positive(timeout, "timeout")
        self.history_max_turns = positive(history_max_turns, "history_max_turns")
        self.verbose = verbose
        self.volume = choose_volume(volume, volume_name)
        self.roots = choose_roots(roots, docs_path)
        self._factory = choose_factory(interpreter_factory, interpreter)
        self._redactor = redactor
        self.act = dspy.Predict(Act.with_instructions(guidance or Act.instructions))
        self.respond = dspy.Predict(Respond)
        recursion = RecursionSettings(
            max_iters=rlm_max_iterations, max_llm_calls=rlm_max_llm_calls, max_depth=rlm_max_depth
        )
        self.rlm = _make_rlm(ChildQuery, recursion)
        self.analyze = _make_rlm(AnalyzeLongDocument, recursion)
        self.summarize = _make_rlm(SummarizeLongDocument, recursion)
        self.extract_logs = _make_rlm(ExtractFromLogs, recursion)
        self._extra_tools: dict[str, dspy.Tool] = {}
        for tool in extra_tools or ():
            self.register_extra_tool(tool)
        self._state = ChatState()
        self._open_runtime()
        if docs_path is not None and Path(docs_path).is_file():
            file = self.roots.resolve_file(str(Path(docs_path).resolve()))
            self._state.documents.add(ACTIVE, read_document(file, str(docs_path)))

    def forward(
        self,
        user_request: str,
        history: History | None = None,
        *,
        documents: Mapping[str, str | ContextRef] | None = None,
    ) -> dspy.Prediction:
        """Answer one request on a copy of the chat's memory; the chat itself stays as it is.

        Args:
            user_request: what the user says.
            history: earlier turns, as `{user_request, assistant_response}`; those of the chat when
                None.
            documents: alias -> text, loaded for this request; the last one is active.

        Returns:
            `assistant_response`, `trajectory` (a list of thought, tool_name, tool_args and
            observation), `final_reasoning` and `stop`.

        Raises:
            ValueError: an empty request, or a history of another shape.
            LMError: the model's service failed after retries.
        """
        with self._single(user_request, history, documents) as turn:
            return _prediction(wait_for(turn.run()))

    async def aforward(
        self,
        user_request: str,
        history: History | None = None,
        *,
        documents: Mapping[str, str | ContextRef] | None = None,
    ) -> dspy.Prediction:
        """`forward`, for an event loop.

        Args:
            user_request: as of `forward`.
            history: as of `forward`.
            documents: as of `forward`.
        """
        with self._single(user_request, history, documents) as turn:
            return _prediction(await turn.run())

    def chat_turn(self, message: str) -> dict[str, Any]:
        """Continue the chat.

        Args:
            message: what the user says.

        Returns:
            `{assistant_response, trajectory, history_turns, core_memory_snapshot}`.

        Raises:
            ValueError: an empty message.
            UsageError: a turn of this chat is running.
            LMError: the model's service failed after retries.
        """
        with self._turn(message) as turn:
            return self._report(wait_for(turn.run()))

    async def achat_turn(self, message: str) -> dict[str, Any]:
        """`chat_turn`, for an event loop: answers `message` alike."""
        with self._turn(message) as turn:
            return self._report(await turn.run())

    async def aiter_chat_turn_stream(
        self,
        message: str,
        trace: bool = False,
        cancel_check: Callable[[], bool] | None = None,
    ) -> AsyncGenerator[StreamEvent, None]:
        """Continue the chat and tell what happens meanwhile.

        The last event is `final`, `cancelled` or `error`. Closing the stream cancels the turn.

        Args:
            message: what the user says.
            trace: whether thoughts become `reasoning_step` events.
            cancel_check: asked every 50 ms; true cancels the turn.

        Raises:
            ValueError: an empty message.
            UsageError: a turn of this chat is running.
        """
        with self._turn(message, trace=trace) as turn:
            events = turn.stream(cancel_check)
            try:
                async for event in events:
                    yield event
            finally:
                await events.aclose()

    def iter_chat_turn_stream(
        self,
        message: str,
        trace: bool = False,
        cancel_check: Callable[[], bool] | None = None,
    ) -> Iterator[StreamEvent]:
        """`aiter_chat_turn_stream`, for a caller that is not asynchronous.

        Args:
            message: as of `aiter_chat_turn_stream`.
            trace: as of `aiter_chat_turn_stream`.
            cancel_check: as of `aiter_chat_turn_stream`.
        """
        with self._turn(message, trace=trace) as turn:
            yield from iterate(turn.stream(cancel_check), turn.cancel)

    def chat_turn_stream(self, *, message: str, trace: bool = False) -> Iterator[StreamEvent]:
        """`iter_chat_turn_stream` without a way to cancel but closing it.

        Args:
            message: what the user says.
            trace: whether thoughts become `reasoning_step` events.
        """
        return self.iter_chat_turn_stream(message, trace=trace)

    async def execute_command(
        self, command: str, args: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Run a named command, as `COMMAND_DISPATCH` lists them.

        Args:
            command: its name, a key of `COMMAND_DISPATCH`.
            args: what its tool takes, by name.

        Returns:
            The tool's result, with `ignored_args` where some were given that it does not take.

        Raises:
            ValueError: an unknown command, a missing argument, or one that the tool refuses.
            UsageError: a turn of this chat is running.
            Cancelled: `cancel` was called.
        """
        name, given, ignored = parse_command(command, args or {})
        if name == "reset":
            result = await in_thread(lambda: self.reset(**given))
        else:
            with self._turn(command) as turn:
                result = await turn.use_tool(name, given)
        return result | ({"ignored_args": ignored} if ignored else {})

    def cancel(self) -> None:
        """End the chat's running turn or command, from any thread: no further model call starts,
        running code is interrupted, and the chat's memory stays as it was. Without one, nothing
        happens."""
        if (running := self._running) is not None:
            running.cancel()

    def add_document(self, alias: str, text: str) -> None:
        """Keep a text as a document of the chat and make it the active one.

        Raises:
            ValueError: an empty alias.
            UsageError: a turn of this chat is running.
        """
        with self._exclusive():
            self._state.documents.add(alias, Document(text=text))

    def register_extra_tool(self, tool: Tool) -> dict[str, str]:
        """Offer one more tool; what was learned stays.

        Returns:
            `{status, tool_name}`.

        Raises:
            UsageError: the name is taken, or it is no tool.
        """
        if not callable(tool):
            raise UsageError(f"{tool!r} is no tool: give a function or a dspy.Tool.")
        made = tool if isinstance(tool, dspy.Tool) else dspy.Tool(tool)
        if made.name in (*TOOLS, FINISH, *self._extra_tools):
            raise UsageError(f"There is a tool {made.name!r} already: give it another name.")
        self._extra_tools[made.name] = made
        return {"status": "ok", "tool_name": made.name}

    def start(self) -> None:
        """Open the chat's sandbox session now instead of when it is needed.

        Raises:
            SandboxUnavailable: no isolation holds on this machine.
        """
        self._bench.open()

    def shutdown(self) -> None:
        """End the chat's sandbox session; its buffers are gone. The chat may go on."""
        self._bench.close()

    def __enter__(self) -> RLMReActChatAgent:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()

    def reset(self, *, clear_sandbox_buffers: bool = True) -> dict[str, Any]:
        """Forget the turns, the documents and the core memory.

        Args:
            clear_sandbox_buffers: whether what the sandbox holds goes too.

        Returns:
            `{status, history_turns, documents_cleared, buffers_cleared}`.

        Raises:
            UsageError: a turn of this chat is running.
        """
        with self._exclusive():
            cleared = len(self._state.documents)
            self._state.adopt(ChatState())
            if clear_sandbox_buffers and self._bench.is_open:
                self._bench.call("clear_buffer()")
        return {
            "status": "ok",
            "history_turns": 0,
            "documents_cleared": cleared,
            "buffers_cleared": clear_sandbox_buffers,
        }

    def export_session_state(self) -> dict[str, Any]:
        """The chat's memory as plain data: turns, documents and core memory; a copy."""
        return self._state.to_json()

    def import_session_state(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """Put an exported memory in place of the chat's, all of it or nothing.

        Args:
            state: what `export_session_state` gave.

        Returns:
            `{status, history_turns, documents, active_alias, core_memory_keys}`.

        Raises:
            ValueError: it is not what `export_session_state` gives.
            UsageError: a turn of this chat is running.
        """
        found = ChatState.from_json(state)
        with self._exclusive():
            self._state.adopt(found)
        return {
            "status": "ok",
            "history_turns": len(found.turns),
            "documents": len(found.documents),
            "active_alias": found.documents.active_alias,
            "core_memory_keys": list(found.memory.to_json()),
        }

    def core_memory_append(self, section: str, content: str) -> str:
        """Add a line to a block of core memory; the answer says what happened.

        Args:
            section: the block's name.
            content: the line.
        """
        with self._exclusive():
            return self._state.memory.append(section, content)

    def core_memory_replace(self, section: str, content: str) -> str:
        """Give a block of core memory new content; the answer says what happened.

        Args:
            section: the block's name.
            content: all of it.
        """
        with self._exclusive():
            return self._state.memory.replace(section, content)

    def fmt_core_memory(self) -> str:
        """Core memory as prompts show it."""
        return self._state.memory.render()

    @property
    def documents(self) -> Mapping[str, str]:
        """Alias -> text, least recently used first."""
        return MappingProxyType(dict(self._state.documents.texts()))

    @property
    def active_alias(self) -> str | None:
        """Alias of the active document."""
        return self._state.documents.active_alias

    @property
    def chat_history(self) -> dspy.History:
        """The turns that the chat remembers (`history` is DSPy's own record of model calls)."""
        return dspy.History(messages=[dict(turn) for turn in self._state.turns])

    @property
    def tools(self) -> dict[str, dspy.Tool]:
        """The tools over the chat's own memory, by name."""
        own = AgentTools(self, self._state, self._bench, self._resolve_factory())
        described = {name: describe_tool(name, getattr(own, name)) for name in TOOLS}
        return described | self._extra_tools

    @property
    def protocol(self) -> str:
        """The part of `act`'s prompt that is never learned."""
        return render_protocol(usable_tools(self) | self._extra_tools)

    @property
    def recursion(self) -> RecursionSettings:
        """The settings that all recursive programs of the agent share."""
        return self.rlm.recursion

    def clean(self, text: str) -> str:
        """`text` without secrets."""
        return self._known_secrets.clean(text)

    def clean_data(self, value: Any) -> Any:
        """`value`, plain data, without secrets."""
        return self._known_secrets.clean_data(value)

    def log(self, kind: str, text: str) -> None:
        """Log `text`, what happens in a turn, if that is wanted; `kind` says what it is."""
        if self.verbose:
            logger.info("%s: %s", kind, self.clean(text))

    _RUNTIME = ("_bench", "_lock", "_known_secrets", "_running")

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__()
        return {name: value for name, value in state.items() if name not in self._RUNTIME}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        # A copy has its own memory, and a session of its own when it needs one.
        self._state = self._state.fork()
        self._open_runtime()

    def __deepcopy__(self, memo: dict[int, Any]) -> RLMReActChatAgent:
        for shared in (self.volume, self._factory, self._redactor, *self._extra_tools.values()):
            memo[id(shared)] = shared
        made = type(self).__new__(type(self))
        memo[id(self)] = made
        made.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        return made

    def _open_runtime(self) -> None:
        self._bench = Workbench(self._make_interpreter)
        self._lock = threading.Lock()
        self._running: Turn | None = None

    @functools.cached_property
    def _known_secrets(self) -> Redactor:
        return self._redactor or Redactor.from_env(os.environ)

    def _resolve_factory(self) -> InterpreterFactory:
        found: InterpreterFactory = resolve_interpreter_factory(self._factory)
        return LocalInterpreter if found is PythonInterpreter else found

    def _make_interpreter(self) -> CodeInterpreter:
        return self._resolve_factory()()

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        if not self._lock.acquire(blocking=False):
            raise UsageError("A turn of this chat is running: wait for its end, or cancel it.")
        try:
            yield
        finally:
            self._lock.release()

    @contextmanager
    def _turn(self, message: str, *, trace: bool = False) -> Iterator[Turn]:
        """A turn of the chat, which takes over what the turn changed when it has ended well."""
        message = checked_message(message)
        with self._exclusive():
            state = self._state.fork()
            self._running = Turn(
                self,
                state,
                self._tools_over(state, self._bench),
                message,
                commit=self._state.adopt,
                trace=trace,
            )
            try:
                yield self._running
            finally:
                self._running = None

    @contextmanager
    def _single(
        self,
        request: str,
        history: History | None,
        documents: Mapping[str, str | ContextRef] | None,
    ) -> Iterator[Turn]:
        """A turn that leaves nothing behind, with a sandbox session of its own."""
        state = self._state.fork()
        if history is not None:
            state.turns = parse_history(history)
        for alias, text in (documents or {}).items():
            read = text.read() if isinstance(text, ContextRef) else text
            state.documents.add(alias, Document(text=read))
        bench = Workbench(self._make_interpreter)
        try:
            yield Turn(self, state, self._tools_over(state, bench), checked_message(request))
        finally:
            bench.close()

    def _tools_over(self, state: ChatState, bench: Workbench) -> dict[str, Tool]:
        own = AgentTools(self, state, bench, self._resolve_factory())
        return {name: getattr(own, name) for name in TOOLS} | self._extra_tools

    def _report(self, result: TurnResult) -> dict[str, Any]:
        return {
            "assistant_response": result.response,
            "trajectory": result.steps,
            "history_turns": len(self._state.turns),
            "core_memory_snapshot": self._state.memory.to_json(),
        }


def _make_rlm(signature: type[dspy.Signature], shared: RecursionSettings) -> RLM:
    made = RLM(signature)
    made.recursion = shared  # one set of knobs, listed, saved and searched once
    return made


def _prediction(result: TurnResult) -> dspy.Prediction:
    return dspy.Prediction(
        assistant_response=result.response,
        trajectory=result.steps,
        final_reasoning=result.reasoning,
        stop=result.stop,
    )
