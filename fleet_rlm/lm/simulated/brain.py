"""From one request to one reply: which kind of prompt it is, and what the simulated model says.

It sees the prompt and nothing else; a reply is a function of (prompt, seed, model). Like all of
this folder but `engine.py`, it needs the standard library only.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

from fleet_rlm.lm.simulated.advisor import describe, propose, reflect, shorten
from fleet_rlm.lm.simulated.asks import Ask, parse_ask
from fleet_rlm.lm.simulated.chat import act, is_chat
from fleet_rlm.lm.simulated.coder import Task
from fleet_rlm.lm.simulated.fields import fill_fields, primary_field
from fleet_rlm.lm.simulated.moves import found_result, next_move
from fleet_rlm.lm.simulated.prompt import (
    Contract,
    Field,
    Prompt,
    Turn,
    parse_contract,
    parse_prompt,
    parse_steps,
    parse_turn,
    parse_variables,
    render_reply,
)
from fleet_rlm.lm.simulated.reader import (
    NOT_SURE,
    answer_ask,
    note_plainly,
    read,
    read_plainly,
    take_notes,
)
from fleet_rlm.lm.simulated.skill import MODELS, draw, elicit, sample_key
from fleet_rlm.lm.simulated.world import Question, in_form, understand

RequestKind = Literal[
    "action",
    "extract",
    "chat",
    "predict",
    "sub_query",
    "propose",
    "reflect",
    "describe",
    "unknown",
]
KINDS: tuple[RequestKind, ...] = get_args(RequestKind)
"""Kinds of request.

`unknown` is a prompt that the model does not recognise: formats drift between DSPy releases, so
tests fail on any. A raw text is a sub-query when the model's own code writes such texts, or when it
asks a question that the model understands. A prompt with fields is a prediction when one of its
inputs is a question, understood or not.
"""

_QUERY_NAMES = ("query", "question", "q", "request", "task", "instruction", "prompt")
_DESCRIPTIONS = {"observations", "summary", "program_description", "module_description"}
_MAX_QUERY_CHARS = 4_000


class Reply(NamedTuple):
    """The kind of a request and the text that answers it."""

    kind: RequestKind
    text: str


class Brain:
    """The simulated model itself. Stateless, so safe to use from any thread.

    Args:
        seed: of every draw.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def reply(self, turns: Sequence[Turn], *, model: str = "sim", occurrence: int = 0) -> Reply:
        """Answer one request.

        Args:
            turns: the conversation, system text included.
            model: a key of `MODELS`; another name answers like "sim".
            occurrence: how often the same prompt came before, where a temperature above zero asks
                for something else each time; only proposals heed it.
        """
        prompt = parse_prompt(turns)
        stretch = MODELS.get(model, 1.0)
        if prompt.style == "raw":
            return self._answer_text(prompt.text, stretch, occurrence)
        kind = _kind_of(prompt)
        values: Mapping[str, Any]
        match kind:
            case "action":
                values = self._act(prompt)
            case "extract":
                values = self._extract(prompt)
            case "chat":
                values = act(prompt, self.seed)
            case "propose" | "reflect":
                values = self._advise(prompt, occurrence)
            case "describe":
                values = {name: describe(prompt.text) for name in prompt.outputs}
            case _:
                values = self._predict(prompt, stretch)
        return Reply(kind, render_reply(prompt, values))

    def _act(self, prompt: Prompt) -> dict[str, str]:
        shown = "\n".join(_demo_code(prompt))
        task = self._task(prompt, parse_contract(prompt.objective, shown), shown)
        turn, turns = parse_turn(prompt.values.get("iteration", ""))
        steps = parse_steps(prompt.values["repl_history"])
        move = next_move(task, steps, is_last=turn >= turns)
        return {"reasoning": move.reasoning, "code": f"```python\n{move.code}\n```"}

    def _extract(self, prompt: Prompt) -> dict[str, Any]:
        contract = Contract(query=True, batched=True, submit=None, max_calls=None)
        task = self._task(prompt, contract, "")
        found = found_result(parse_steps(prompt.values["repl_history"]))
        if found and task.question is not None:
            return fill_fields(prompt.outputs, in_form(task.question, found), found)
        return fill_fields(prompt.outputs, found or "unknown", found or "")

    def _task(self, prompt: Prompt, contract: Contract, shown: str) -> Task:
        variables = parse_variables(prompt.values["variables_info"])
        previews = {variable.name: variable.preview for variable in variables}
        query, texts = _roles(previews)
        head = "\n".join(previews[name] for name in texts)
        asked = previews[query] if query else prompt.objective.partition("You are tasked")[0]
        return Task(
            question=understand(asked, head),
            query=query or repr(asked),
            texts=tuple(v for v in variables if v.name in texts),
            skills=elicit(prompt.objective, shown, sample_key(asked, head), self.seed),
            contract=contract,
        )

    def _predict(self, prompt: Prompt, stretch: float) -> dict[str, Any]:
        query, texts = _roles(prompt.values)
        asked = prompt.values[query] if query else prompt.objective
        text = "\n".join(prompt.values[name] for name in texts)
        question = understand(asked, text[:2_000])
        if not texts:
            choice = _choice_about(question, prompt.outputs) if question else ""
            return fill_fields(prompt.outputs, NOT_SURE, choice)
        if primary_field(prompt.outputs) == "notes":
            if question is None:
                notes = note_plainly(asked, text)
            else:
                notes = take_notes(question, text, stretch=stretch, seed=self.seed)
            return fill_fields(prompt.outputs, notes, notes)
        sample = sample_key(asked, text)
        if question is None:
            value = read_plainly(asked, text, sample, stretch=stretch, seed=self.seed)
            return fill_fields(prompt.outputs, value or NOT_SURE, value)
        value = read(question, text, sample, stretch=stretch, seed=self.seed)
        return fill_fields(prompt.outputs, in_form(question, value) if value else NOT_SURE, value)

    def _answer_text(self, text: str, stretch: float, occurrence: int) -> Reply:
        if "write a new instruction for the assistant" in text:
            current = re.search(r"```\n(.*?)\n```", text, re.S)
            basis = current[1] if current else ""
            rewritten = reflect(basis, text, key=f"{occurrence}\n{text}", seed=self.seed)
            return Reply("reflect", f"```\n{rewritten}\n```")
        ask = parse_ask(text)
        if ask is None and understand(text[:_MAX_QUERY_CHARS]) is not None:
            ask = Ask(kind="find", question=text[:_MAX_QUERY_CHARS], body=text)
        if ask is None:
            return Reply("unknown", NOT_SURE)
        return Reply("sub_query", answer_ask(ask, stretch=stretch, seed=self.seed))

    def _advise(self, prompt: Prompt, occurrence: int) -> dict[str, str]:
        given = {name: prompt.values.get(name, "") for name in prompt.inputs}
        key = draw(occurrence, *sorted(given.items()))
        if "proposed_instruction" in prompt.outputs:
            name, seen = "proposed_instruction", f"{given.get('task_demos')}"
            text = propose(given.get("basic_instruction", ""), seen, key=key, seed=self.seed)
        elif "shortened_instruction" in prompt.outputs:
            limit = re.search(r"\d+", given.get("length_limit", ""))
            name = "shortened_instruction"
            text = shorten(given.get("instruction", ""), int(limit[0]) if limit else 1_000)
        else:
            name = (
                "new_instruction" if "new_instruction" in prompt.outputs else "improved_instruction"
            )
            evidence = given.get("examples_with_feedback", "")
            text = reflect(given.get("current_instruction", ""), evidence, key=key, seed=self.seed)
        return {name: text}


def _kind_of(prompt: Prompt) -> RequestKind:
    inputs, outputs = set(prompt.inputs), set(prompt.outputs)
    if {"variables_info", "repl_history"} <= set(prompt.values):
        if not _is_readable(prompt.values):
            return "unknown"
        if {"code", "reasoning"} <= outputs and "iteration" in inputs:
            return "action"
        if "code" not in outputs:
            return "extract"
    if is_chat(inputs, outputs):
        return "chat"
    if "proposed_instruction" in outputs:
        return "propose"
    if outputs & {"new_instruction", "improved_instruction", "shortened_instruction"}:
        return "reflect"
    if outputs & _DESCRIPTIONS and inputs & {"examples", "observations", "program_code"}:
        return "describe"
    is_prediction = bool(outputs) and (_roles(prompt.values)[0] or understand(prompt.objective))
    return "predict" if is_prediction else "unknown"


def _is_readable(values: Mapping[str, str]) -> bool:
    """Whether the blocks of an RLM prompt have the form that this model knows."""
    steps = parse_steps(values["repl_history"])
    known = steps or "have not interacted" in values["repl_history"]
    shown = all(step.code or step.output for step in steps)
    return bool(known and shown and parse_variables(values["variables_info"]))


def _roles(texts: Mapping[str, str]) -> tuple[str | None, list[str]]:
    """Which input is the query, and which hold the text: by wording first, then by name."""
    short = [name for name, text in texts.items() if len(text) <= _MAX_QUERY_CHARS]
    query = next((n for n in _QUERY_NAMES if n in short and understand(texts[n])), None)
    query = query or next((n for n in short if understand(texts[n])), None)
    query = query or next((n for n in _QUERY_NAMES if n in short), None)
    return query, [name for name in texts if name != query]


def _choice_about(question: Question, outputs: Mapping[str, Field]) -> str:
    """For a query without a text: the option that says whether one place answers it."""
    options = [option for field in outputs.values() for option in field.options]
    is_local = question.kind == "lookup"
    return next((o for o in options if bool(re.search("one|single", o)) == is_local), "")


def _demo_code(prompt: Prompt) -> list[str]:
    code: list[str] = []
    for demo in prompt.demos:
        code += [step.code for step in parse_steps(demo.inputs.get("repl_history", ""))]
        code.append(demo.outputs.get("code", ""))
    return code
