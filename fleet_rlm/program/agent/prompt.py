"""What the chat agent's model is shown: signatures, the rendered protocol, conversation, steps."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dspy

from fleet_rlm.program.context_ref import shorten
from fleet_rlm.program.history import KEPT_CHARS, RECENT

FINISH = "finish"
"""Tool that ends a turn."""

CONVERSATION_CHARS = 40_000
"""Characters of earlier turns that a prompt shows; the oldest are left out first."""

MESSAGE_CHARS = 8_000
"""Characters of one earlier message."""

PROTOCOL = """\
You work in steps. In each step you think, then call exactly one tool; its result is shown in \
`trajectory`. Loaded documents are listed in `documents`; their text is not in this prompt, the \
tools read it.

Tools:
{tools}

`next_tool_name` is the name of one tool. `next_tool_args` is a JSON object with its arguments. \
To answer the user, call `finish`; at the last step of `iteration` you must."""


class Act(dspy.Signature):
    """Help the user; use the tools where they help, and answer from what they return."""

    core_memory: str = dspy.InputField(desc="what you keep in mind about yourself and the user")
    conversation: str = dspy.InputField(desc="earlier turns, oldest first")
    documents: str = dspy.InputField(desc="documents that are loaded")
    user_request: str = dspy.InputField(desc="what the user says")
    trajectory: str = dspy.InputField(desc="your steps so far, with what the tools returned")
    iteration: str = dspy.InputField(desc="number of this step, of how many")
    next_thought: str = dspy.OutputField(desc="what you know, what is missing, what to do next")
    next_tool_name: str = dspy.OutputField(desc="name of the tool to call")
    next_tool_args: dict[str, Any] = dspy.OutputField(desc="its arguments as a JSON object")


class Respond(dspy.Signature):
    """Answer the user's request from the steps that were taken; no more can be."""

    core_memory: str = dspy.InputField(desc="what you keep in mind about yourself and the user")
    conversation: str = dspy.InputField(desc="earlier turns, oldest first")
    user_request: str = dspy.InputField(desc="what the user says")
    trajectory: str = dspy.InputField(desc="your steps, with what the tools returned")
    assistant_response: str = dspy.OutputField(desc="the reply to the user")


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One thing the agent did."""

    thought: str
    tool_name: str
    tool_args: Mapping[str, Any]
    observation: str
    """What the tool returned, as the model reads it."""

    def to_json(self) -> dict[str, Any]:
        """Ready for JSON, under DSPy's names for the steps of ReAct."""
        return {
            "thought": self.thought,
            "tool_name": self.tool_name,
            "tool_args": dict(self.tool_args),
            "observation": self.observation,
        }


def render_protocol(tools: Mapping[str, dspy.Tool | Callable[..., Any]]) -> str:
    """The part of the agent's prompt that is never learned: its tools and how to call them."""
    lines = [_describe(name, tool) for name, tool in tools.items()]
    lines.append(f"- `{FINISH}(assistant_response: str)` - reply to the user and end the turn")
    return PROTOCOL.format(tools="\n".join(lines))


def render_conversation(messages: Iterable[Mapping[str, Any]]) -> str:
    """Earlier turns as text, the oldest left out when they are too long."""
    shown: list[str] = []
    left = CONVERSATION_CHARS
    turns = list(messages)
    for turn in reversed(turns):
        said, answered = (
            shorten(str(turn.get(name, "")), MESSAGE_CHARS)
            for name in ("user_request", "assistant_response")
        )
        text = f"User: {said}\nAssistant: {answered}"
        left -= len(text)
        if left < 0:
            shown.append(f"({len(turns) - len(shown)} earlier turns are left out)")
            break
        shown.append(text)
    return "\n\n".join(reversed(shown)) or "(none)"


def render_documents(documents: Sequence[Mapping[str, Any]], active: str | None) -> str:
    """Loaded documents as text, one line each."""
    lines = [
        f"{one['alias']}: {one['chars']:,} characters, {one['lines']:,} lines"
        + (" (active)" if one["alias"] == active else "")
        for one in documents
    ]
    return "\n".join(lines) or "(none)"


def render_steps(steps: Sequence[Step], level: int = 0) -> str:
    """Steps as text.

    Args:
        steps: oldest first.
        level: 0 shows all; each further level, to `history.DEEPEST`, cuts old results shorter, and
            the deepest cuts the recent ones as well.
    """
    limit = KEPT_CHARS[level - 1] if level else None
    whole = len(steps) - (RECENT if level < len(KEPT_CHARS) else 0)
    blocks = []
    for index, step in enumerate(steps):
        result = step.observation
        if limit is not None and index < whole:
            result = shorten(result, limit)
        arguments = json.dumps(step.tool_args, ensure_ascii=False, default=str)
        blocks.append(
            f"=== Step {index + 1} ===\nThought: {step.thought}\nTool: {step.tool_name}\n"
            f"Arguments: {arguments}\nResult:\n{result}"
        )
    return "\n\n".join(blocks) or "(no steps yet)"


def _describe(name: str, tool: dspy.Tool | Callable[..., Any]) -> str:
    about = (tool.desc if isinstance(tool, dspy.Tool) else inspect.getdoc(tool)) or ""
    first = " ".join(about.split("\n\n")[0].split())
    return f"- `{name}({', '.join(_parameters(tool))})` - {first}"


def _parameters(tool: dspy.Tool | Callable[..., Any]) -> Iterator[str]:
    if isinstance(tool, dspy.Tool):
        for name, schema in (tool.args or {}).items():
            default = f" = {schema['default']!r}" if "default" in schema else ""
            yield f"{name}: {schema.get('type', 'any')}{default}"
        return
    for one in inspect.signature(tool).parameters.values():
        if one.name != "self":
            default = "" if one.default is one.empty else f" = {one.default!r}"
            yield f"{one.name}: {one.annotation}{default}"
