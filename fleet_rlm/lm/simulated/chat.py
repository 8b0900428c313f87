"""The simulated model as a chat agent: which tool it calls next, and what it replies."""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

from fleet_rlm.lm.simulated.prompt import Prompt, parse_turn
from fleet_rlm.lm.simulated.reader import NOT_SURE
from fleet_rlm.lm.simulated.skill import SHOWN, draw
from fleet_rlm.lm.simulated.world import answer as read_answer
from fleet_rlm.lm.simulated.world import in_form, understand

FINISH = "finish"
PROTOCOL = "You work in steps."
"""Where the rendered part of the instruction begins; only what stands before it is learned."""

UNTOLD = 0.60
TOLD = 0.98
"""Probabilities that a long document is handed to a recursive program instead of skimmed, and that
a request which leans on earlier turns is understood from the conversation."""

_DELEGATE = re.compile(
    r"\b(?:delegate|rlm_query|recursive|(?:whole|all of the|entire) (?:document|text)"
    r"|(?:double|cross)[- ]?checks?|coverage|(?:nothing|no \w+) (?:is|was) left out)\b",
    re.I,
)
_RECALL = re.compile(
    r"\b(?:restate|self-contained|conversation|earlier (?:turns?|requests?|repl(?:y|ies)))\b", re.I
)
RECALL_ADVICE = (
    "A tool sees only what it is passed: restate a request that leans on earlier turns in full, and"
    " answer from the conversation what it already holds."
)
_TURN = re.compile(r"^User: (?P<said>.*?)\nAssistant: (?P<reply>.*?)(?=\n\nUser: |\Z)", re.S | re.M)
_ELLIPSIS = re.compile(r"^(?:and|what about)(?: for)? (?P<name>[^?\n]+?)\s*\?$", re.I)
_LARGER = re.compile(r"\bwhich of the (?:two|\w+) \w+ is (?P<which>larger|smaller)\b", re.I)
_AGAIN = re.compile(r"\bthe first (?:of them|one|\w+) again\b", re.I)
_STEP = re.compile(
    r"^=== Step \d+ ===\nThought: .*?\nTool: (?P<tool>.*?)\nArguments: (?P<args>.*?)\n"
    r"Result:\n(?P<result>.*?)(?=\n\n=== Step \d+ ===\n|\Z)",
    re.S | re.M,
)
_FILE = re.compile(r"(?:^|[\s'\"`(])((?:[\w.-]*/)*[\w-]+\.[A-Za-z]\w{1,4})(?=[\s'\"`),.:;?!]|$)")
_STRING = r'"((?:[^"\\]|\\.)*)"'
_ANSWER = re.compile(rf'"answer": {_STRING}')
_PREVIEW = re.compile(rf'"preview": {_STRING}')
_SKIMMED = 2_000
"""Characters of the first chunk, of which a skimming model sees the beginning."""


class _Call(NamedTuple):
    tool: str
    result: str


def is_chat(inputs: set[str], outputs: set[str]) -> bool:
    """Whether a prompt is one of the chat agent's."""
    wants_tool = {"next_tool_name", "next_tool_args"} <= outputs
    return wants_tool or ("assistant_response" in outputs and "trajectory" in inputs)


def act(prompt: Prompt, seed: int) -> dict[str, Any]:
    """The fields of the next step, or of the last reply."""
    calls = [_Call(m["tool"], m["result"]) for m in _STEP.finditer(_value(prompt, "trajectory"))]
    if "assistant_response" in prompt.outputs:
        return {"assistant_response": _known_answer(calls) or NOT_SURE}
    thought, tool, args = _next_call(prompt, calls, seed)
    return {"next_thought": thought, "next_tool_name": tool, "next_tool_args": args}


def _next_call(prompt: Prompt, calls: list[_Call], seed: int) -> tuple[str, str, dict[str, Any]]:
    request, documents = _value(prompt, "user_request"), _value(prompt, "documents")
    if _recalls(prompt, seed):
        turns = [(m["said"], m["reply"]) for m in _TURN.finditer(_value(prompt, "conversation"))]
        if (known := _from_conversation(request, turns)) is not None:
            return _finish("It was said before.", known)
        request = _in_full(request, turns)
    step, steps = parse_turn(_value(prompt, "iteration"))
    found = _known_answer(calls)
    used = [call.tool for call in calls]
    if found is not None:
        return _finish("The answer is there.", found)
    if step >= steps or used.count("rlm_query") > 1:
        return _finish("I have nothing better.", NOT_SURE)
    if not re.search(r"^\S.*: [\d,]+ characters", documents, re.M):
        named = _FILE.search(request)
        if named is None or "load_document" in used:
            return _finish("There is no document.", NOT_SURE)
        return "The document must be loaded.", "load_document", {"path": named[1]}
    if _delegates(prompt, f"{request}\n{documents}", seed) or "rlm_query" in used:
        return "A recursive program reads all of it.", "rlm_query", {"query": request}
    if "chunk_host" not in used:
        skim = {"strategy": "size", "size": _SKIMMED}
        return "I look at the beginning of the document.", "chunk_host", skim
    return _finish("I answer from the beginning of the document.", _skim(request, calls))


def _delegates(prompt: Prompt, sample: str, seed: int) -> bool:
    told = _DELEGATE.search(prompt.objective.partition(PROTOCOL)[0])
    shown = any(
        "rlm_query" in f"{demo.outputs.get('next_tool_name')}{demo.inputs.get('trajectory')}"
        for demo in prompt.demos
    )
    chance = TOLD if told else SHOWN if shown else UNTOLD
    return draw(seed, "delegate", sample) < chance


def _recalls(prompt: Prompt, seed: int) -> bool:
    conversation = _value(prompt, "conversation")
    told = _RECALL.search(prompt.objective.partition(PROTOCOL)[0])
    shown = any("User: " in demo.inputs.get("conversation", "") for demo in prompt.demos)
    chance = TOLD if told else SHOWN if shown else UNTOLD
    return draw(seed, "recall", conversation, _value(prompt, "user_request")) < chance


def _from_conversation(request: str, turns: list[tuple[str, str]]) -> str | None:
    """The reply that earlier turns give already, or None."""
    replies = [reply.strip() for _, reply in turns]
    if replies and _AGAIN.search(request):
        return replies[0]
    numbers = [reply for reply in replies if reply.isdigit()]
    if len(numbers) > 1 and (match := _LARGER.search(request)):
        pick = max if match["which"].lower() == "larger" else min
        return pick(numbers, key=int)
    return None


def _in_full(request: str, turns: list[tuple[str, str]]) -> str:
    """A request that names a new subject only, with the rest of the last whole question."""
    match = _ELLIPSIS.match(request.strip())
    asked = next((said for said, _ in reversed(turns) if understand(said)), None)
    if match is None or asked is None:
        return request
    question = understand(asked)
    return asked.replace(question.subject, match["name"]) if question else request


def _known_answer(calls: list[_Call]) -> str | None:
    for call in reversed(calls):
        if call.tool != "chunk_host" and (match := _ANSWER.search(call.result)):
            return str(json.loads(f'"{match[1]}"')) or None
    return None


def _skim(request: str, calls: list[_Call]) -> str:
    question = understand(request)
    seen = next(filter(None, (_PREVIEW.search(call.result) for call in reversed(calls))), None)
    if question is None or seen is None:
        return NOT_SURE
    value = read_answer(question, json.loads(f'"{seen[1]}"'))
    return in_form(question, value) if value else NOT_SURE


def _finish(thought: str, reply: str) -> tuple[str, str, dict[str, Any]]:
    return thought, FINISH, {"assistant_response": reply}


def _value(prompt: Prompt, name: str) -> str:
    return prompt.values.get(name, "")
