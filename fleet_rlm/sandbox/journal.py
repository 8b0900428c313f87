"""What a session has done, so that a lost one can be rebuilt: its cells, the answers of its tools.

Replaying runs the cells again in a fresh session. Every tool call is answered from the record, so
nothing that was paid for is paid twice and nothing that a tool did is done twice.
"""

from __future__ import annotations

import ast
import hashlib
import json
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fleet_rlm.errors import SandboxError
from fleet_rlm.sandbox import driver
from fleet_rlm.sandbox.session import Ask, CellResult, Session

MAX_BYTES = 256 << 20
"""Recorded answers and inputs that are kept for a replay only; beyond it, the record is dropped."""
REPLAY_S = 60.0
"""Seconds that one rebuilding may take."""
MAX_LOSSES = 2
"""Sessions that may be lost while one is being rebuilt."""
UNKNOWN = driver.to_json({"error": "this call was not made before, and is not made in a replay"})


class Answers:
    """The answers to the tool calls of one cell, by what was asked. Used from tool threads."""

    def __init__(self) -> None:
        self.size = 0
        self._found: dict[bytes, deque[bytes]] = defaultdict(deque)
        self._lock = threading.Lock()

    def record(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], ask: Ask) -> bytes:
        """Ask, and keep the answer."""
        answer = ask()
        with self._lock:
            self.size += len(answer)
            self._found[_key(name, args, kwargs)].append(answer)
        return answer

    def copy(self) -> Answers:
        """The same answers, to be taken out one by one."""
        twin = Answers()
        with self._lock:
            twin._found.update({key: deque(found) for key, found in self._found.items()})
        return twin

    def take(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bytes | None:
        """The next answer to this call, None if there is none left."""
        with self._lock:
            found = self._found.get(_key(name, args, kwargs))
            return found.popleft() if found else None


def _key(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bytes:
    asked = json.dumps([name, args, kwargs], sort_keys=True).encode()
    return hashlib.blake2b(asked, digest_size=16).digest()


@dataclass(slots=True, kw_only=True)
class Step:
    """One cell: what was run, and what came of it."""

    code: str
    variables: Mapping[str, Any]
    tools: tuple[str, ...]
    fields: Sequence[str] | None
    answers: Answers
    result: CellResult | None = None
    """None while it runs."""
    own_s: float = 0.0
    """Seconds it took."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rebuilt:
    """A session in place of a lost one."""

    session: Session
    doubtful: tuple[str, ...]
    """Names that cells bound which did not run again, or not with the same result."""
    dropped: bool
    """Nothing was run again: the record had grown too large."""


class Journal:
    """The steps of one session, in order. One thread at a time."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.dropped = False
        self._size = 0

    def begin(
        self,
        code: str,
        variables: Mapping[str, Any],
        tools: tuple[str, ...],
        fields: Sequence[str] | None,
    ) -> Step:
        """A step that is about to run; it counts once it is added."""
        return Step(
            code=code, variables=dict(variables), tools=tools, fields=fields, answers=Answers()
        )

    def add(self, step: Step, result: CellResult, own_s: float) -> None:
        """The step has run."""
        step.result, step.own_s = result, own_s
        before = self.steps[-1].variables if self.steps else {}
        kept_for_us = (
            value for name, value in before.items() if step.variables.get(name) is not value
        )
        self._size += step.answers.size + sum(
            len(value) for value in kept_for_us if isinstance(value, str | bytes)
        )
        if self._size > MAX_BYTES:
            self.dropped = True
        if self.dropped:
            self.steps.clear()
        else:
            self.steps.append(step)

    def replay(self, open_session: Callable[[], Session]) -> Rebuilt:
        """Do it all again in a new session.

        A step that was interrupted is left out; one that costs the new session its life is left
        out too, with all that follow it.

        Raises:
            SandboxError: no session could be opened, or several were lost.
        """
        until = time.monotonic() + REPLAY_S
        steps, gone = list(self.steps), list[Step]()
        for _ in range(MAX_LOSSES + 1):
            session = open_session()
            done = 0
            doubtful: list[Step] = []
            try:
                for step in steps:
                    if not _again(session, step, until):
                        doubtful.append(step)
                    done += 1
            except SandboxError:
                session.close()
                gone, steps = [*steps[done:], *gone], steps[:done]
                continue
            names = dict.fromkeys(name for step in [*doubtful, *gone] for name in bound(step.code))
            self.steps = steps
            return Rebuilt(session=session, doubtful=tuple(names), dropped=self.dropped)
        raise SandboxError("the sandbox session could not be rebuilt: its code ends every session")


def _again(session: Session, step: Step, until: float) -> bool:
    """Run a step once more; True when the outcome is what it was."""
    left_s = until - time.monotonic()
    if step.result is None or step.result.kind == "interrupted" or left_s <= 0:
        return False
    answers, complete = step.answers.copy(), True

    def answer(name: str, args: Sequence[Any], kwargs: Mapping[str, Any], _: Ask) -> bytes:
        nonlocal complete
        found = answers.take(name, args, kwargs)
        if found is None:
            complete = False
        return found or UNKNOWN

    result = session.execute(
        step.code,
        step.variables,
        tools=step.tools,
        fields=step.fields,
        timeout_s=min(left_s, 2 * step.own_s + 5),
        answer=answer,
    )
    return complete and result == step.result


def bound(code: str) -> Iterator[str]:
    """Names that a cell binds in the session's namespace, as far as its text tells."""
    try:
        waiting: list[ast.AST] = [ast.parse(code)]
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return
    for node in waiting:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.alias):
            yield (node.asname or node.name).partition(".")[0]
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif not isinstance(node, ast.Lambda | ast.comprehension):
            waiting += ast.iter_child_nodes(node)
