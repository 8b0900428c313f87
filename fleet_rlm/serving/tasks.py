"""The tasks behind `/tasks/*`: a ready-made signature each, run as an RLM over a text."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import dspy

from fleet_rlm.errors import UsageError
from fleet_rlm.program.agent.documents import read_document
from fleet_rlm.program.agent.files import Pattern
from fleet_rlm.program.agent.roots import Roots
from fleet_rlm.program.agent.signatures import (
    AnalyzeLongDocument,
    ExtractAPIEndpoints,
    ExtractArchitecture,
    ExtractWithCustomTool,
    FindErrorPatterns,
    SummarizeLongDocument,
)
from fleet_rlm.program.rlm import RLM
from fleet_rlm.serving.bodies import TaskRequest

MOST_MATCHES = 1_000


_FLAGS = {"i": re.I, "m": re.M, "s": re.S, "x": re.X}


def regex_extract(text: str, pattern: str, flags: int = 0) -> list[str]:
    """The matches of a regular expression in a text, up to 1,000; flags as in Python's `re`."""
    letters = "".join(letter for letter, flag in _FLAGS.items() if flags & flag)
    compiled = Pattern(f"(?{letters}){pattern}" if letters else pattern)
    return [match.group(0) for match in islice(compiled.finditer(text), MOST_MATCHES)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One task: its signature, and which field of a request feeds which input."""

    signature: type[dspy.Signature] | str
    text: str | None = None
    """Input that takes the text."""

    asked: str | None = None
    """Input that takes the query."""

    tools: tuple[Callable[..., Any], ...] = ()


TASKS: Mapping[str, Task] = {
    "basic": Task(signature="question -> answer"),
    "architecture": Task(signature=ExtractArchitecture, text="docs", asked="query"),
    "api-endpoints": Task(signature=ExtractAPIEndpoints, text="docs"),
    "error-patterns": Task(signature=FindErrorPatterns, text="docs"),
    "long-context": Task(signature=AnalyzeLongDocument, text="document", asked="query"),
    "summarize": Task(signature=SummarizeLongDocument, text="document", asked="focus"),
    "custom-tool": Task(signature=ExtractWithCustomTool, text="docs", tools=(regex_extract,)),
}


def make_task(task: Task, request: TaskRequest) -> RLM:
    """The program of a task."""
    return RLM(
        task.signature,
        tools=list(task.tools),
        max_iters=request.max_iterations,
        max_llm_calls=request.max_llm_calls,
    )


def make_inputs(task: Task, request: TaskRequest, roots: Roots) -> dict[str, str]:
    """What the program is called with; reads a file.

    Raises:
        UsageError: text, question or query is missing, or the file cannot be read.
    """
    inputs: dict[str, str] = {}
    if task.text is None:
        if not request.question.strip():
            raise UsageError("question is empty.")
        return {"question": request.question}
    text = request.docs
    if request.docs_path is not None:
        if text is not None:
            raise UsageError("Give docs or docs_path, not both.")
        text = read_document(roots.resolve_file(request.docs_path), request.docs_path).text
    if not text:
        raise UsageError("docs_path or docs is needed: the text to read.")
    inputs[task.text] = text[: request.chars]
    if task.asked:
        if not request.query.strip():
            raise UsageError("query is empty.")
        inputs[task.asked] = request.query
    return inputs
