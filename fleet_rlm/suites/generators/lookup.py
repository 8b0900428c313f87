"""Five exact tasks after InfiniteBench: pass key, digit string, key-value, extreme number, calls.

After OpenBMB/InfiniteBench 88b3daa (MIT): the tasks and their answers' forms, with texts and
wording of our own, at any length, and with places balanced over windows.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import ClassVar, Literal

from pydantic import Field

from fleet_rlm.suites.generators import filling, words
from fleet_rlm.suites.generators.base import Draft, Order, Params, spread
from fleet_rlm.suites.generators.planting import Line, plant
from fleet_rlm.suites.sample import Question
from fleet_rlm.suites.tokens import count_tokens

PASSKEY = "The pass key of {name} is {value}. Remember it: {value} is the pass key of {name}."
DIGITS = "The sequence of digits of {name} is {value}. Remember it."
ASK_PASSKEY = "What is the pass key of {name}? Answer with the digits only."
ASK_DIGITS = "What is the sequence of digits of {name}? Answer with the digits only."
ASK_VALUE = 'What is the value of the key "{key}" in the JSON object? Answer with the value only.'
ASK_NUMBER = "What is the {which} number in the list? Answer with the number only."
ASK_CALL = (
    "What is the exact return value of {call} by the functions given? Answer with the integer only."
)
WHICH = ("largest", "smallest", "second largest", "second smallest")
_JSON_HEAD, _JSON_TAIL = "JSON data:\n{\n", "}\n"
_LIST_WIDTH = 16
_ROUND = 60  # functions whose calls stay among themselves, in one shuffled stretch

LookupTask = Literal["passkey", "number_string", "kv_retrieval", "math_find", "code_run"]


class LookupParams(Params):
    """Knobs of `lookup`."""

    task: LookupTask = "passkey"
    """InfiniteBench's name of the task."""

    depth: int = Field(default=6, ge=1, le=30)
    """Calls of a chain in `code_run`."""


class Lookup:
    """Writes `lookup` windows."""

    name: ClassVar = "lookup"
    version: ClassVar = 1
    rule: ClassVar = "infinitebench"
    uses_corpus: ClassVar = True
    least: ClassVar = "1,000; math_find 2,000; code_run 1,500, or 25 for each call of a chain"
    max_questions: ClassVar = 4
    params: ClassVar[type[Params]] = LookupParams

    def min_length(self, params: LookupParams, questions: int) -> int:
        if params.task == "code_run":
            return max(1500, 25 * params.depth * questions)
        return 2000 if params.task == "math_find" else 1000

    def draft(self, order: Order, params: LookupParams) -> Draft:
        match params.task:
            case "passkey" | "number_string":
                return _planted(order, params.task)
            case "kv_retrieval":
                return _key_value(order)
            case "math_find":
                return _math_find(order)
            case "code_run":
                return _code_run(order, params.depth)

    def solve(self, params: LookupParams, context: str, query: str) -> tuple[str, ...]:
        match params.task:
            case "passkey" | "number_string":
                name = query.partition("?")[0].rpartition(" of ")[2]
                thing = "pass key" if params.task == "passkey" else "sequence of digits"
                return tuple(re.findall(rf"^The {thing} of {name} is (\d+)\.", context, re.M))
            case "kv_retrieval":
                key = re.findall(r'"([^"]+)"', query)[0]
                return tuple(re.findall(rf'^"{key}": "([^"]+)"', context, re.M))
            case "math_find":
                ranked = sorted(set(map(int, re.findall(r"\d+", context))))
                which = query.removeprefix("What is the ").partition(" number")[0]
                at = (-1, 0, -2, 1)[WHICH.index(which)]
                return (str(ranked[at]),)
            case "code_run":
                return (str(_run(context, query)),)


def _depth(order: Order, index: int) -> float:
    slot = (index + order.window) % order.questions
    shift = order.shared_rng(f"depth {slot}").random()
    return (slot + spread(order.window, shift)) / order.questions


def _planted(order: Order, task: str) -> Draft:
    rng = order.rng("lines")
    names = (key for key in words.keys(rng) if not order.source.holds(key))
    wording, ask = (PASSKEY, ASK_PASSKEY) if task == "passkey" else (DIGITS, ASK_DIGITS)
    asked = []
    for index in range(order.questions):
        value = str(rng.randrange(10_000, 100_000))
        if task == "number_string":  # InfiniteBench repeats digits, which models lose count of
            value = "".join(str(rng.randrange(10)) * rng.randrange(1, 5) for _ in range(10))
        name = next(names)
        asked.append(
            (name, value, Line(_depth(order, index), wording.format(name=name, value=value)))
        )
    planted = plant(order, [line for _, _, line in asked])
    questions = tuple(
        Question(
            query=ask.format(name=name),
            gold=(value,),
            answer_type="exact",
            kind=task,
            position=planted.position[line.text],
        )
        for name, value, line in asked
    )
    return Draft(blocks=planted.blocks, tokens=planted.tokens, questions=questions)


def _key_value(order: Order) -> Draft:
    rng = order.rng("lines")
    pairs: list[tuple[str, str]] = []

    def lines() -> Iterator[str]:
        uuids = words.uuids(rng)
        for key, value in zip(uuids, uuids, strict=False):
            pairs.append((key, value))
            yield f'"{key}": "{value}",\n'

    own = count_tokens(_JSON_HEAD) + count_tokens(_JSON_TAIL)
    made, tokens = filling.fill(lines(), order.length - own)
    chosen = [int(_depth(order, index) * len(made)) for index in range(order.questions)]
    made[-1] = made[-1].replace(",\n", "\n")
    tokens += count_tokens(made[-1]) - count_tokens(made[-1].replace("\n", ",\n"))
    questions = tuple(
        Question(
            query=ASK_VALUE.format(key=pairs[index][0]),
            gold=(pairs[index][1],),
            answer_type="exact",
            kind="kv_retrieval",
            position=filling.position(_JSON_HEAD, made, index, _JSON_TAIL),
        )
        for index in chosen
    )
    return Draft(
        blocks=filling.blocks(_JSON_HEAD, made, _JSON_TAIL),
        tokens=tokens + own,
        questions=questions,
    )


def _math_find(order: Order) -> Draft:
    """Different numbers in random order; an extreme one has no place of its own to balance."""
    rng = order.rng("lines")
    values: list[int] = []

    def lines() -> Iterator[str]:
        numbers = words.numbers(rng, 8)
        while True:
            row = [next(numbers) for _ in range(_LIST_WIDTH)]
            values.extend(map(int, row))
            yield ", ".join(row) + ",\n"

    made, tokens = filling.fill(lines(), order.length)
    ranked = sorted(values[: len(made) * _LIST_WIDTH])
    questions = []
    for index in range(order.questions):
        which = (order.window + index) % len(WHICH)
        questions.append(
            Question(
                query=ASK_NUMBER.format(which=WHICH[which]),
                gold=(str(ranked[(-1, 0, -2, 1)[which]]),),
                answer_type="number",
                kind="math_find",
            )
        )
    return Draft(blocks=filling.blocks("", made), tokens=tokens, questions=tuple(questions))


def _code_run(order: Order, depth: int) -> Draft:
    """Functions that call one other each; chains are `depth` calls long and scattered."""
    rng = order.rng("lines")
    chains: list[list[int]] = []
    bodies: dict[int, tuple[int | None, int]] = {}

    def lines() -> Iterator[str]:
        numbers = words.distinct(rng, 10_000_000)
        while True:
            group = [
                [next(numbers) for _ in range(depth + 1)]
                for _ in range(max(1, _ROUND // (depth + 1)))
            ]
            made = []
            for chain in group:
                for name, callee in zip(chain, [*chain[1:], None], strict=True):
                    bodies[name] = callee, rng.randrange(-50, 51)
                    made.append(_function(name, *bodies[name]))
                chains.append(chain)
            rng.shuffle(made)
            yield from made

    made, tokens = filling.fill(lines(), order.length)
    # The last stretch may be cut: no question is about it.
    per_round = max(1, _ROUND // (depth + 1))
    whole = len(made) // (per_round * (depth + 1)) * per_round
    questions = []
    for index in range(order.questions):
        chain = chains.pop(int(_depth(order, index) * (whole - index)))
        start = rng.randrange(-100, 101)
        value = start + sum(bodies[name][1] for name in chain)
        questions.append(
            Question(
                query=ASK_CALL.format(call=f"func_{chain[0]}({start})"),
                gold=(str(value),),
                answer_type="number",
                kind="code_run",
            )
        )
    return Draft(blocks=filling.blocks("", made), tokens=tokens, questions=tuple(questions))


def _function(name: int, callee: int | None, add: int) -> str:
    argument = f"x {'-' if add < 0 else '+'} {abs(add)}"
    body = argument if callee is None else f"func_{callee}({argument})"
    return f"def func_{name}(x):\n    return {body}\n\n"


def _run(context: str, query: str) -> int:
    name, value = re.findall(r"func_(\d+)\((-?\d+)\)", query)[0]
    result = int(value)
    while name:
        body = re.findall(rf"^def func_{name}\(x\):\n    return (.+)$", context, re.M)[0]
        sign, amount = re.findall(r"x ([-+]) (\d+)", body)[0]
        result += int(sign + amount)
        name = "".join(re.findall(r"func_(\d+)", body))
    return result
