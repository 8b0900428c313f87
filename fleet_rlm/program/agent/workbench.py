"""A chat's own sandbox session: opened when first needed, with chunkers and named buffers."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from dspy.primitives.code_interpreter import (
    CodeExecutionError,
    CodeInterpreter,
    CodeInterpreterError,
    FinalOutput,
)

from fleet_rlm.errors import SandboxError, one_line
from fleet_rlm.lm.cancel import cancel_scope
from fleet_rlm.program.agent import buffers, chunking
from fleet_rlm.program.agent.roots import Refused

WAIT_S = 10.0
"""Seconds to wait for a cell of a cancelled turn to end."""


class Workbench:
    """One session. Calls run one at a time; a session that is lost is replaced, its buffers empty.

    Args:
        factory: makes the interpreter.
    """

    def __init__(self, factory: Callable[[], CodeInterpreter]) -> None:
        self._factory = factory
        self._interpreter: CodeInterpreter | None = None
        self._lock = threading.Lock()

    @property
    def is_open(self) -> bool:
        """Whether there is a session."""
        return self._interpreter is not None

    def open(self) -> None:
        """Open the session, or do nothing if it is open.

        Raises:
            SandboxUnavailable: no isolation holds on this machine.
            CodeInterpreterError: it could not be opened.
        """
        with self._locked():
            self._start()

    def call(self, expression: str, **values: Any) -> Any:
        """The value of an expression over functions of the session and `values`.

        Raises:
            Refused: the expression failed, or the call was interrupted.
            CodeInterpreterError: the session is lost.
            SandboxUnavailable: no isolation holds on this machine.
        """
        with self._locked():
            interpreter = self._start()
            try:
                return _submitted(_run(interpreter, f"SUBMIT({expression})", values))
            except CodeExecutionError as error:
                raise Refused(_last_line(error)) from error
            except CodeInterpreterError:
                self._close()
                raise

    def close(self) -> None:
        """End the session, if there is one; the next call opens another."""
        if interrupt := getattr(self._interpreter, "interrupt", None):
            interrupt()
        with self._locked():
            self._close()

    def _start(self) -> CodeInterpreter:
        if self._interpreter is None:
            interpreter = self._factory()
            # whoever forgets to close the chat must not leave its session behind
            weakref.finalize(self, interpreter.shutdown).atexit = False
            try:
                interpreter.start()
                for module in (chunking, buffers):
                    interpreter.execute(module.source())
            except CodeInterpreterError:
                interpreter.shutdown()
                raise
            self._interpreter = interpreter
        return self._interpreter

    def _close(self) -> None:
        if self._interpreter is not None:
            self._interpreter.shutdown()
            self._interpreter = None

    @contextmanager
    def _locked(self) -> Iterator[None]:
        if not self._lock.acquire(timeout=WAIT_S):
            raise SandboxError("a cell of an earlier turn is still running in the chat's session")
        try:
            yield
        finally:
            self._lock.release()


def _run(interpreter: CodeInterpreter, code: str, values: Mapping[str, Any]) -> Any:
    scope, interrupt = cancel_scope(), getattr(interpreter, "interrupt", None)
    if scope is None or interrupt is None:
        return interpreter.execute(code, dict(values))
    with scope.guard(interrupt):
        return interpreter.execute(code, dict(values))


def _submitted(result: Any) -> Any:
    if not isinstance(result, FinalOutput):
        raise SandboxError(f"the chat's session answered with {type(result).__name__}")
    output = result.output
    return output["output"] if isinstance(output, dict) and set(output) == {"output"} else output


def _last_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return one_line(lines[-1] if lines else str(error))
