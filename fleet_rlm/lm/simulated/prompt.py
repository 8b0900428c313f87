"""What DSPy sent: a prompt of its chat or JSON adapter, and the RLM blocks inside, taken apart."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import blake2b
from typing import Any, Literal, NamedTuple

_FIELD = re.compile(r"^\d+\. `(\w+)` \((.*?)\):(.*)$", re.M)
_REQUEST = re.compile(
    r"\n\nRespond with (?:the corresponding output fields|a JSON object in the following order)"
)
_VARIABLE = re.compile(r"^( *)Variable: `(\w+)` \(access it in your code\)$", re.M)
_STEP = re.compile(r"^=== Step \d+ ===$", re.M)
_STEP_PARTS = re.compile(
    r"Code:\n```python\n(?P<code>.*?)\n```\nOutput \([\d,]+ chars\):\n?(?P<output>.*)\Z",
    re.S,
)
_OUTPUT_LINE = re.compile(r"^- \{(\w+)\}(?: +# note: the value you produce must (.*))?$", re.M)
_SUBMIT = re.compile(r"\bSUBMIT\(([^)\n]+)\)")
_MAX_CALLS = re.compile(r"\bmax(?:imum)? (?:of )?([\d,]+) sub-LLM calls")


class Turn(NamedTuple):
    """One message: "system", "user", "assistant" or "tool", and its text."""

    role: str
    text: str


FieldKind = Literal["text", "int", "float", "bool", "list", "object", "choice"]


class Field(NamedTuple):
    """A declared field: what it takes, its type as the prompt spells it, and its description."""

    kind: FieldKind
    type: str
    about: str = ""

    @property
    def options(self) -> list[str]:
        """The values that a field of kind "choice" may take."""
        _, listed, options = self.type.partition("one of: ")
        return options.split("; ") if listed else re.findall(r"['\"]([^'\"]*)['\"]", self.type)


class Demo(NamedTuple):
    """One worked example of the prompt: input values and output values by field."""

    inputs: Mapping[str, str]
    outputs: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A prompt taken apart."""

    style: Literal["chat", "json", "raw"]
    """The adapter that wrote it, which is also how to answer; "raw" has no fields."""

    text: str
    """The last message."""

    objective: str = ""
    """The signature's instructions; the system text of a raw prompt."""

    inputs: Mapping[str, Field] = field(default_factory=dict)
    outputs: Mapping[str, Field] = field(default_factory=dict)
    values: Mapping[str, str] = field(default_factory=dict)
    demos: Sequence[Demo] = ()


class Variable(NamedTuple):
    """What a prompt tells about one REPL variable."""

    name: str
    type: str
    length: int
    preview: str


class Step(NamedTuple):
    """One past turn with the REPL."""

    code: str
    output: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Contract:
    """The tools that an action prompt names, and its limits."""

    query: bool
    """`llm_query` may be called."""

    batched: bool
    """`llm_query_batched` may be called."""

    submit: Mapping[str, Field] | None
    """Fields that SUBMIT takes; None when SUBMIT is not named."""

    max_calls: int | None
    """Sub-queries allowed, where the prompt says so."""


def parse_prompt(turns: Sequence[Turn]) -> Prompt:
    """Take a conversation apart; anything but a DSPy prompt comes back as "raw"."""
    system = "\n".join(turn.text for turn in turns if turn.role in ("system", "developer"))
    last = next((turn.text for turn in reversed(turns) if turn.role == "user"), "")
    head, marker, objective = system.partition("your objective is:")
    if not marker or "Your input fields are:" not in head:
        return Prompt(style="raw", text=last, objective=system)
    inputs_text, _, rest = head.partition("Your output fields are:")
    outputs_text, _, structure = rest.partition("All interactions will be structured")
    inputs, outputs = _parse_fields(inputs_text), _parse_fields(outputs_text)
    if not outputs:  # asks for no field: text with the words of a prompt in it
        return Prompt(style="raw", text=last, objective=system)
    is_json = "Outputs will be a JSON object" in structure
    return Prompt(
        style="json" if is_json else "chat",
        text=last,
        objective=textwrap.dedent(objective.lstrip(" ")).strip(),
        inputs=inputs,
        outputs=outputs,
        values=_sections(_without_request(last), inputs),
        demos=_demos(turns, inputs, outputs, is_json=is_json),
    )


def render_reply(prompt: Prompt, values: Mapping[str, Any]) -> str:
    """The reply that the prompt's adapter reads back into `values`."""
    given = {name: values.get(name, "") for name in prompt.outputs}
    if prompt.style == "json":
        return json.dumps(given, ensure_ascii=False)
    shown = {k: v if isinstance(v, str) else json.dumps(v) for k, v in given.items()}
    body = "\n\n".join(f"[[ ## {name} ## ]]\n{value}" for name, value in shown.items())
    return f"{body}\n\n[[ ## completed ## ]]"


def parse_variables(text: str) -> list[Variable]:
    """The REPL variables that `variables_info` describes, in order."""
    heads = list(_VARIABLE.finditer(text))
    ends = [head.start() for head in heads[1:]] + [len(text)]
    return [
        _parse_variable(head[2], re.sub(f"^{head[1]}", "", text[head.end() + 1 : end], flags=re.M))
        for head, end in zip(heads, ends, strict=False)
    ]


def parse_steps(text: str) -> list[Step]:
    """The turns that `repl_history` holds, oldest first."""
    found = (_STEP_PARTS.search(block) for block in _STEP.split(text)[1:])
    return [Step(m["code"], m["output"].strip()) if m else Step("", "") for m in found]


def parse_turn(text: str) -> tuple[int, int]:
    """`"3/20"` -> (3, 20)."""
    numbers = [int(n) for n in re.findall(r"\d+", text)[:2]]
    return (numbers[0], numbers[1]) if len(numbers) == 2 else (1, 1)


@lru_cache(maxsize=256)
def parse_contract(objective: str, shown: str = "") -> Contract:
    """The tools and limits an action prompt names.

    Args:
        objective: the instructions.
        shown: code of worked examples, which also teaches the names.
    """
    known = f"{objective}\n{shown}"
    fields = {
        m[1]: Field(kind_of(m[2] or ""), m[2] or "") for m in _OUTPUT_LINE.finditer(objective)
    }
    submit: dict[str, Field] | None = None
    if match := _SUBMIT.search(objective) or _SUBMIT.search(shown):
        names = re.findall(r"(?:^|,)\s*([A-Za-z_]\w*)", match[1])
        submit = {name: fields.get(name, Field("text", "str")) for name in names or ["answer"]}
    calls = _MAX_CALLS.search(objective)
    max_calls = int(calls[1].replace(",", "")) if calls else None
    allowed = max_calls != 0
    return Contract(
        query=allowed and bool(re.search(r"\bllm_query\b", known)),
        batched=allowed and bool(re.search(r"\bllm_query_batched\b", known)),
        submit=submit,
        max_calls=max_calls,
    )


def kind_of(spelled: str) -> FieldKind:
    """The kind of a type, from its Python name or DSPy's words for it ("be a single int value")."""
    if match := re.match(r"(?:be a single )?(int|float)\b", spelled):
        return "int" if match[1] == "int" else "float"
    if re.match(r"bool\b|be True or False", spelled):
        return "bool"
    if re.match(r"Literal\[|(?:exactly match|be one of)\b", spelled):
        return "choice"
    if re.match(r"list\b", spelled) or '"type": "array"' in spelled:
        return "list"
    return "object" if re.match(r"dict\b|adhere to the JSON schema", spelled) else "text"


def _parse_fields(text: str) -> dict[str, Field]:
    return {m[1]: Field(kind_of(m[2]), m[2], m[3].strip()) for m in _FIELD.finditer(text)}


def _without_request(text: str) -> str:
    requests = list(_REQUEST.finditer(text, max(0, len(text) - 4_000)))
    return text[: requests[-1].start()] if requests else text


def _sections(text: str, names: Iterable[str]) -> dict[str, str]:
    # Declared names only, by plain search: a context of millions of characters may hold anything.
    found: list[tuple[int, int, str]] = []
    for name in names:
        head = f"[[ ## {name} ## ]]"
        at = 0 if text.startswith(head) else text.find("\n" + head + "\n") + 1
        if at or text.startswith(head):
            found.append((at, at + len(head), name))
    found.sort()
    ends = [start for start, _, _ in found[1:]] + [len(text)]
    return {name: text[at:end].strip() for (_, at, name), end in zip(found, ends, strict=False)}


def _demos(
    turns: Sequence[Turn],
    inputs: Mapping[str, Field],
    outputs: Mapping[str, Field],
    *,
    is_json: bool,
) -> list[Demo]:
    demos: list[Demo] = []
    asked: str | None = None
    for turn in turns:
        if turn.role == "user":
            asked = turn.text
        elif turn.role == "assistant" and asked is not None:
            given = _parse_json(turn.text) if is_json else _sections(turn.text, outputs)
            demos.append(Demo(_sections(asked, inputs), given))
            asked = None
    return demos


def _parse_json(text: str) -> dict[str, str]:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return {str(k): str(v) for k, v in found.items()} if isinstance(found, dict) else {}


def _parse_variable(name: str, block: str) -> Variable:
    about, _, rest = block.partition("Preview:\n```\n")
    kind = re.search(r"^Type: (.+)$", about, re.M)
    length = re.search(r"^Total length: ([\d,]+) characters$", about, re.M)
    return Variable(
        name=name,
        type=kind[1].strip() if kind else "str",
        length=int(length[1].replace(",", "")) if length else 0,
        preview=rest[: rest.rfind("\n```")] if "\n```" in rest else rest,
    )


def digest(turns: Iterable[Turn]) -> bytes:
    """What identifies a conversation, in 8 bytes."""
    hashed = blake2b(digest_size=8)
    for turn in turns:
        hashed.update(f"{turn.role}\x1f{turn.text}\x1e".encode())
    return hashed.digest()
