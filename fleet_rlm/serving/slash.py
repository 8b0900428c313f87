"""What a user types into a chat: a message, or a slash command with its arguments."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from fleet_rlm.errors import UsageError, nearest
from fleet_rlm.program.agent.chunking import STRATEGIES

TraceMode = Literal["compact", "verbose", "off"]
TRACE_MODES: tuple[TraceMode, ...] = ("compact", "verbose", "off")

HELP: Mapping[str, str] = {
    "/load PATH [ALIAS]": "load a file as a document",
    "/docs PATH": "load a file as the active document, or list a folder",
    "/list": "documents that are loaded",
    "/active ALIAS": "make a document the active one",
    "/analyze QUERY": "have a recursive program answer from all of the active document",
    "/summarize FOCUS": "have it summarise the document",
    "/extract QUERY": "have it find log entries",
    "/semantic QUERY [STRATEGY] [N]": "ask a question of each of up to N parts, in parallel",
    "/chunk STRATEGY [SIZE]": "how the document falls into chunks",
    "/buffer NAME": "what a buffer of the sandbox holds",
    "/clear-buffer [NAME]": "empty one buffer, or all",
    "/save-buffer NAME PATH": "write a buffer to the volume",
    "/load-volume PATH [ALIAS]": "load a document from the volume",
    "/trace [compact|verbose|off]": "how much of the work is shown",
    "/reset": "forget turns, documents and memory",
    "/clear": "clear the screen",
    "/help": "this list",
    "/exit": "leave; also /quit",
}

_FORMS: Mapping[str, tuple[str, tuple[str, ...], int]] = {
    # command of the agent, its arguments in order, how many of them are needed
    "docs": ("load_document", ("path",), 1),
    "load": ("load_document", ("path", "alias"), 1),
    "active": ("set_active_document", ("alias",), 1),
    "list": ("list_documents", (), 0),
    "chunk": ("chunk_host", ("strategy", "size"), 1),
    "buffer": ("read_buffer", ("name",), 1),
    "clear-buffer": ("clear_buffer", ("name",), 0),
    "save-buffer": ("save_buffer", ("name", "path"), 2),
    "load-volume": ("load_volume", ("path", "alias"), 1),
    "reset": ("reset", (), 0),
}
_WHOLE_LINE: Mapping[str, tuple[str, str]] = {
    "analyze": ("analyze_document", "query"),
    "summarize": ("summarize_document", "focus"),
    "extract": ("extract_logs", "query"),
}
_ALONE: Mapping[str, Literal["exit", "help", "clear"]] = {
    "exit": "exit",
    "quit": "exit",
    "help": "help",
    "clear": "clear",
}
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Typed:
    """A line, understood."""

    action: Literal["message", "command", "trace", "help", "clear", "exit", "nothing"]
    text: str = ""
    """The message, the agent's command, or the trace mode."""

    args: Mapping[str, Any] = field(default_factory=dict)


def parse_line(line: str) -> Typed:
    """What a line asks for; a message may begin with two slashes to begin with one.

    Raises:
        UsageError: no such command, or other arguments than it takes.
    """
    line = line.strip()
    if not line:
        return Typed(action="nothing")
    if not line.startswith("/") or line.startswith("//"):
        return Typed(action="message", text=line.removeprefix("/") if line[0] == "/" else line)
    name, _, rest = line[1:].partition(" ")
    rest = rest.strip()
    if name in _ALONE:
        return Typed(action=_ALONE[name])
    if name == "trace":
        return Typed(action="trace", text=parse_trace_mode(rest or "compact"))
    if name in _WHOLE_LINE:
        command, argument = _WHOLE_LINE[name]
        if not rest:
            raise _usage(name)
        args = {argument: rest, "include_trajectory": False}
        return Typed(action="command", text=command, args=args)
    if name == "semantic":
        return _semantic(_split(rest, name))
    if name in _FORMS:
        return _in_form(name, rest)
    known = [f"/{known}" for known in (*_FORMS, *_WHOLE_LINE, *_ALONE, "trace", "semantic")]
    raise UsageError(f"No command /{name}. {nearest(f'/{name}', known)}", fix="/help")


def _in_form(name: str, rest: str) -> Typed:
    command, names, needed = _FORMS[name]
    words = _split(rest, name)
    if not needed <= len(words) <= len(names):
        raise _usage(name)
    found: dict[str, Any] = dict(zip(names, words, strict=False))
    if "size" in found:
        if not found["size"].isdecimal():
            raise _usage(name)
        found["size"] = int(found["size"])
    return Typed(action="command", text=command, args=found)


def show_result(result: Mapping[str, Any]) -> str:
    """A command's result, a line for each of its parts."""
    lines = []
    for key, value in result.items():
        if key in {"status", "ignored_args"} or value is None:
            continue
        if isinstance(value, list) and value:
            lines.append(f"{key}:")
            lines.extend(f"  {_one(item)}" for item in value)
        else:
            lines.append(f"{key}: {_one(value)}")
    return "\n".join(lines) or "done"


def printable(text: str) -> str:
    """`text` without control characters, which could rule a terminal; line breaks stay."""
    return _CONTROLS.sub("", text.replace("\r\n", "\n"))


def show_usage(usage: Mapping[str, Mapping[str, float]]) -> str:
    """What a turn has spent, on one line."""
    calls = sum(int(one["calls"]) for one in usage.values())
    tokens = sum(int(one["input_tokens"] + one["output_tokens"]) for one in usage.values())
    usd = sum(one["usd"] for one in usage.values())
    return f"{calls} calls · {tokens:,} tokens · ${usd:.4f}"


def _one(value: Any) -> str:
    if isinstance(value, dict):
        return " · ".join(f"{key} {_one(held)}" for key, held in value.items())
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def parse_trace_mode(word: str) -> TraceMode:
    """The trace mode of that name.

    Raises:
        UsageError: there is none.
    """
    found = next((mode for mode in TRACE_MODES if mode == word), None)
    if found is None:
        raise UsageError(f"No trace mode {word!r}. {nearest(word, TRACE_MODES)}")
    return found


def _semantic(words: list[str]) -> Typed:
    args: dict[str, Any] = {}
    if len(words) > 1 and words[-1].isdecimal():
        args["max_chunks"] = int(words.pop())
    if len(words) > 1 and words[-1].lower().replace("-", "_") in STRATEGIES:
        args["chunk_strategy"] = words.pop()
    if not words:
        raise _usage("semantic")
    return Typed(
        action="command", text="parallel_semantic_map", args={"query": " ".join(words), **args}
    )


def _split(text: str, name: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        raise UsageError(f"/{name}: {error}.") from None


def _usage(name: str) -> UsageError:
    form = next(form for form in HELP if form.split()[0] == f"/{name}")
    return UsageError(f"/{name} is used otherwise.", fix=form)
