"""The interpreter that dspy sees: `dspy.RLM(..., interpreter_factory=LocalInterpreter)`.

A drop-in for dspy's own interpreters, with nothing else of this package loaded: a session in a box
that is locked by the operating system, forked in milliseconds, with inputs that travel once.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import keyword
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

from dspy.primitives.code_interpreter import CodeExecutionError, CodeInterpreterError, FinalOutput
from dspy.utils.callback import with_callbacks

from fleet_rlm.errors import DataError, SandboxError
from fleet_rlm.sandbox import levels, local
from fleet_rlm.sandbox.driver import MAX_STREAM
from fleet_rlm.sandbox.journal import Answers, Journal, Rebuilt, Step
from fleet_rlm.sandbox.redact import Redactor
from fleet_rlm.sandbox.session import Answer, Ask, CellResult, Limits, Session

OPEN_TRIES = 3
"""A box can be lost while a session opens in it; nothing has run yet, so another one serves."""

RESERVED = frozenset({"SUBMIT", "__builtins__"})

SESSION_INSTRUCTIONS = (
    "State persists between code blocks; the input variables are set to their original values "
    "before each block. Tools may be called from several threads "
    "(concurrent.futures.ThreadPoolExecutor). SUBMIT takes plain data: str, int, float, bool, "
    "None, lists, dicts. A block that runs too long is interrupted and its variables are kept; "
    "time spent waiting for tools does not count."
)
"""What holds of a session in any box, for the model that writes its code."""


class SessionLost(SandboxError, CodeInterpreterError):
    """The sandbox or its connection failed, or the session's code ended its own process.

    Never told to the model as an error of its code: the session and its state are gone.
    """


class InputRejected(DataError, CodeInterpreterError):
    """A variable cannot enter the sandbox."""


class CellError(CodeExecutionError):
    """Code of a cell failed; the session goes on. The message is what a model should read.

    Attributes:
        stdout: what the cell had printed.
        interrupted: the cell did not fail but ran out of time, or was interrupted.
    """

    def __init__(self, message: str, *, stdout: str = "", interrupted: bool = False) -> None:
        super().__init__(message)
        self.stdout = stdout
        self.interrupted = interrupted


class LocalInterpreter:
    """A persistent Python session in a locked box on this machine.

    Args:
        tools: host functions that code may call by name, from any of its threads; coroutine
            functions are awaited. May be changed until `execute`.
        output_fields: what SUBMIT takes, as dspy describes it; one value when None.
        level: "auto" for the strongest isolation that holds, or a name (`levels.NAMES`).
        timeout: seconds until a cell is interrupted, its state kept; None for no limit. The clock
            stands still while the cell only waits for tools.
        limits: memory, files, output.
        on_stdout: called with pieces of output, cleaned of secrets, while a cell runs.
        sandbox: the box to open the session in; the one that this process shares when None.
        redactor: cleans everything that leaves the session; by default it knows the secrets in the
            environment at the time of `start`.

    Raises (from `start`): SandboxUnavailable, when no isolation holds.
    """

    execution_instructions = (
        "Full CPython in a locked box: no network, no other processes, no files but those you "
        f"write to the current directory. {SESSION_INSTRUCTIONS}"
    )

    def __init__(
        self,
        tools: Mapping[str, Callable[..., Any]] | None = None,
        output_fields: Sequence[Mapping[str, Any]] | None = None,
        *,
        level: str = "auto",
        timeout: float | None = 120.0,
        limits: Limits | None = None,
        on_stdout: Callable[[str], None] | None = None,
        sandbox: local.LocalSandbox | None = None,
        redactor: Redactor | None = None,
    ) -> None:
        if timeout is not None and timeout <= 0:
            raise ValueError("timeout must be positive or None")
        self.tools = dict(tools or {})
        self.output_fields = None if output_fields is None else [dict(f) for f in output_fields]
        self.timeout = timeout
        self.limits = limits
        self.on_stdout = on_stdout
        self.last: CellResult | None = None
        """How the last cell ended, cleaned of secrets; also has the output beside a value."""
        self._asked_level = level
        self._sandbox = sandbox
        self._redactor = redactor
        self._session: Session | None = None
        self._journal = Journal()
        self._loss: str | None = None
        """Why the last session that was lost is gone."""
        self._ended = self._stopped = False

    @classmethod
    def factory(cls, **settings: Any) -> Callable[[], LocalInterpreter]:
        """A factory with settings that dspy can read the execution instructions from.

        Picklable and safe to copy with a program.
        """
        factory = functools.partial(cls, **settings)
        factory.execution_instructions = cls.execution_instructions  # type: ignore[attr-defined]
        return factory

    @property
    def level(self) -> str:
        """Name of the isolation level; tested on this machine when first asked for."""
        return self._level().name

    @property
    def label(self) -> str:
        """The isolation in plain words."""
        return self._level().label

    def _level(self) -> levels.Level:
        return self._sandbox.level if self._sandbox else levels.choose(self._asked_level)

    @with_callbacks  # type: ignore[untyped-decorator]
    def start(self) -> None:
        """Open the session, or do nothing if it is open.

        Raises:
            SandboxUnavailable: no isolation holds on this machine.
            SessionLost: the session has ended, or could not be opened.
        """
        if self._ended:
            raise SessionLost("this interpreter was shut down: make a new one")
        if self._session is not None:
            return
        self._session = self._open()

    def _open(self) -> Session:
        if self._redactor is None:
            self._redactor = Redactor.from_env(os.environ)
        level = self._level()
        for tries_left in reversed(range(OPEN_TRIES)):
            try:
                sandbox = self._sandbox or local.shared(level)
                return sandbox.open(self.limits, self._redactor.clean_data)
            except SandboxError as error:
                if not tries_left:
                    raise SessionLost(error.message) from error
        raise AssertionError("unreachable")

    @with_callbacks  # type: ignore[untyped-decorator]
    def invoke_tool(self, tool_name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Run a tool on the host, in a thread of its own; coroutines are awaited.

        Args:
            tool_name: a key of `tools`.
            args: by position, as the sandbox sent them: plain data.
            kwargs: by name.
        """
        result = self.tools[tool_name](*args, **kwargs)
        return asyncio.run(_wait_for(result)) if inspect.isawaitable(result) else result

    @with_callbacks  # type: ignore[untyped-decorator]
    def execute(self, code: str, variables: dict[str, Any] | None = None) -> Any:
        """Run one cell.

        Args:
            code: Python source.
            variables: inputs. The same object is sent once, however often it is given.

        Returns:
            FinalOutput if the code called SUBMIT; else the value of a trailing expression; else
            what was printed; else None.

        Raises:
            CellError: the code failed or was interrupted.
            SyntaxError: it is no Python.
            SessionLost: the session is gone.
            InputRejected: a variable cannot enter the sandbox.
            LimitReached, BudgetExhausted, KeyboardInterrupt: raised by a tool.
        """
        variables = variables or {}
        self._check_names(variables)
        self.start()
        assert self._session is not None
        assert self._redactor is not None
        self._stopped = False
        step = self._journal.begin(code, variables, self._usable_tools(), self._field_names())
        try:
            self.last = self._run(step)
        except DataError as error:
            raise InputRejected(error.message, fix=error.fix) from error
        except SandboxError as error:
            raise SessionLost(error.message) from error
        return self._outcome(self.last)

    def _run(self, step: Step) -> CellResult:
        """Run a cell and note it. If the box fails under it, once more in another box."""
        assert self._session is not None
        try:
            return self._run_once(step, step.answers.record)
        except SandboxError:
            self._loss = self._session.lost
            if not self._session.box_lost or self._ended or not self._rebuilt_whole():
                raise
        paid = step.answers.copy()
        step.answers = Answers()

        def answer(name: str, args: Sequence[Any], kwargs: Mapping[str, Any], ask: Ask) -> bytes:
            return step.answers.record(
                name, args, kwargs, lambda: paid.take(name, args, kwargs) or ask()
            )

        return self._run_once(step, answer)

    def _run_once(self, step: Step, answer: Answer) -> CellResult:
        assert self._session is not None
        assert self._redactor is not None
        stream = self._redactor.stream() if self.on_stdout else None
        start = time.monotonic()
        result = self._session.execute(
            step.code,
            step.variables,
            tools=step.tools,
            invoke=self.invoke_tool,
            fields=step.fields,
            timeout_s=self.timeout,
            on_stdout=(lambda piece: self._show(stream.feed(piece))) if stream else None,
            answer=answer,
        )
        if stream:
            self._show(stream.flush(cut=result.stdout_chars > MAX_STREAM))
        self._journal.add(step, result, time.monotonic() - start)
        return result

    def rebuild(self) -> str:
        """Put a new session in the place of a lost one, with its state: the cells run again, and
        every tool call is answered from the record, so no model call is paid twice.

        Returns:
            What a model should know: what happened, and which names to mistrust.

        Raises:
            SessionLost: that did not work either.
        """
        try:
            rebuilt = self._replay()
        except SandboxError as error:
            raise SessionLost(error.message) from error
        said = [f"The sandbox session was lost: {self._loss}. "]
        if rebuilt.dropped:
            said.append(
                "A new one was started: the inputs are set, variables, functions and files of "
                "earlier blocks are gone."
            )
        else:
            said.append(
                "It was rebuilt: the earlier blocks ran again with the recorded results of their "
                "tool calls. This block did not."
            )
        if rebuilt.doubtful:
            said.append(f" Missing, or perhaps not as before: {', '.join(rebuilt.doubtful)}.")
        return "".join(said)

    def _replay(self) -> Rebuilt:
        if self._ended:
            raise SessionLost("this interpreter was shut down: make a new one")
        if self._session is not None:
            self._session.close()
        rebuilt = self._journal.replay(self._open)
        self._session = rebuilt.session
        return rebuilt

    def _rebuilt_whole(self) -> bool:
        """Rebuild; False when the model must be told that something is missing."""
        if self._sandbox is not None and not self._sandbox.alive:
            return False
        rebuilt = self._replay()
        if rebuilt.dropped or rebuilt.doubtful:
            rebuilt.session.close()
            return False
        return True

    def interrupt(self) -> None:
        """End the running cell, from another thread; the session and its state are kept."""
        self._stopped = True
        if self._session is not None:
            self._session.interrupt()

    @with_callbacks  # type: ignore[untyped-decorator]
    def shutdown(self) -> None:
        """End the session; the interpreter cannot be used again."""
        self._ended = True
        if self._session is not None:
            self._session.close()

    def __call__(self, code: str, variables: dict[str, Any] | None = None) -> Any:
        """The same as `execute`."""
        return self.execute(code, variables)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()

    @property
    def bytes_sent(self) -> int:
        """Bytes handed to the session so far: code, inputs and tool results."""
        return self._session.bytes_sent if self._session else 0

    def _show(self, text: str) -> None:
        if text and self.on_stdout:
            self.on_stdout(text)

    def _check_names(self, variables: Mapping[str, Any]) -> None:
        for kind, names in (("tool", self.tools), ("variable", variables)):
            for name in names:
                if not name.isidentifier() or keyword.iskeyword(name) or name in RESERVED:
                    raise InputRejected(f"{name!r} cannot be the name of a {kind}")
        if both := sorted(self.tools.keys() & variables.keys()):
            raise InputRejected(f"{both[0]!r} is the name of a tool and of a variable")

    def _usable_tools(self) -> tuple[str, ...]:
        """Names that the next cell may call."""
        return tuple(self.tools)

    def _field_names(self) -> list[str] | None:
        fields = self.output_fields
        return None if fields is None else [str(field["name"]) for field in fields]

    def _outcome(self, result: CellResult) -> Any:
        if result.kind == "final":
            return FinalOutput(result.value)
        if result.kind == "syntax":
            raise SyntaxError(result.error)
        if result.kind == "error":
            raise CellError(result.error, stdout=result.stdout)
        if result.kind == "interrupted":
            raise CellError(
                f"{result.error}\n{self._why_interrupted()}",
                stdout=result.stdout,
                interrupted=True,
            )
        if result.value is not None:
            return result.value
        return result.text or result.stdout or None

    def _why_interrupted(self) -> str:
        if self._stopped or self.timeout is None:
            return "KeyboardInterrupt: the cell was interrupted; the variables are kept."
        return (
            f"TimeoutError: the cell ran longer than {self.timeout:g} s and was interrupted; "
            "the variables are kept."
        )


async def _wait_for(awaitable: Any) -> Any:
    return await awaitable
