"""RULER's eight needle tasks and its variable tracking.

After NVIDIA/RULER c3f5e3b (Apache-2.0), scripts/synthetic.yaml: needle sentence, noise haystack,
counts and the form of keys and values are its own; queries and texts are ours. What differs:
depths are balanced over windows, and keys never repeat.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import chain, islice
from random import Random
from string import ascii_uppercase
from typing import ClassVar, Literal, NamedTuple

from fleet_rlm.suites.generators import filling, words
from fleet_rlm.suites.generators.base import Draft, Order, Params, spread
from fleet_rlm.suites.generators.planting import Line, draw_names, plant
from fleet_rlm.suites.generators.variables import follow_chains
from fleet_rlm.suites.passages import Passage, Source, take
from fleet_rlm.suites.sample import Question
from fleet_rlm.suites.tokens import count_tokens

NEEDLE = "One of the special magic {kind} for {key} is: {value}."
NOISE = (
    "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.\n"
)
ASK_NEEDLE = (
    "What are all the special magic {kind} for {keys} mentioned in the text?"
    " Answer with the values only, separated by commas."
)
ASK_VARIABLES = (
    "Find all variables that are assigned the value {value} in the text."
    " Answer with the variable names only, separated by commas."
)

RulerTask = Literal[
    "niah_single_1",
    "niah_single_2",
    "niah_single_3",
    "niah_multikey_1",
    "niah_multikey_2",
    "niah_multikey_3",
    "niah_multivalue",
    "niah_multiquery",
    "vt",
]


class Needles(NamedTuple):
    """What one of the needle tasks plants and asks."""

    haystack: Literal["noise", "essay", "needle"]
    key: Literal["words", "uuids"] = "words"
    value: Literal["numbers", "uuids"] = "numbers"
    others: int = 0
    """Keys planted that no question asks for; a haystack of needles is made of them."""

    values: int = 1
    """Values of each key."""

    queries: int = 1
    """Keys that one question asks for."""


NEEDLES: dict[str, Needles] = {
    "niah_single_1": Needles("noise"),
    "niah_single_2": Needles("essay"),
    "niah_single_3": Needles("essay", value="uuids"),
    "niah_multikey_1": Needles("essay", others=3),
    "niah_multikey_2": Needles("needle"),
    "niah_multikey_3": Needles("needle", key="uuids", value="uuids"),
    "niah_multivalue": Needles("essay", values=4),
    "niah_multiquery": Needles("essay", queries=4),
}
_HOPS = 4


class Noise(Source):
    """The same five sentences again and again."""

    digest = "noise-1"

    def passages(self, rng: Random, tokens: int) -> list[Passage]:
        """See `Source.passages`."""
        one = Passage(NOISE, count_tokens(NOISE))
        return take(chain.from_iterable(iter(lambda: (one,), None)), tokens)

    def holds(self, text: str) -> bool:
        """Whether it is one of its words."""
        return text in NOISE


class RulerParams(Params):
    """Knobs of `ruler`."""

    task: RulerTask = "niah_single_1"
    """RULER's name of the task."""


class Ruler:
    """Writes `ruler` windows."""

    name: ClassVar = "ruler"
    version: ClassVar = 1
    rule: ClassVar = "match-all"
    uses_corpus: ClassVar = True
    least: ClassVar = "750, and 250 for each question and for niah_multikey_3"
    max_questions: ClassVar = 8
    params: ClassVar[type[Params]] = RulerParams

    def min_length(self, params: RulerParams, questions: int) -> int:
        return 750 + 250 * questions + 250 * (params.task == "niah_multikey_3")

    def draft(self, order: Order, params: RulerParams) -> Draft:
        if params.task == "vt":
            return _draft_variables(order)
        kind = NEEDLES[params.task]
        return _draft_buried(order, kind) if kind.haystack == "needle" else _draft(order, kind)

    def solve(self, params: RulerParams, context: str, query: str) -> tuple[str, ...]:
        if params.task == "vt":
            return follow_chains(context, re.findall(r"\d+", query)[0])
        kind, asked = re.findall(r"special magic (\w+) for (.+?) mentioned", query)[0]
        wanted = set(asked.replace(", and ", ", ").split(", "))
        lines = re.findall(rf"special magic {kind} for (\S+) is: (\S+)\.$", context, re.MULTILINE)
        return tuple(sorted(value for key, value in lines if key in wanted))


def _draft(order: Order, kind: Needles) -> Draft:
    rng = order.rng("lines")
    source = order.source if kind.haystack == "essay" else Noise()
    made = _needles(rng, kind, source)
    per_question = kind.queries * kind.values
    total = order.questions * per_question
    lines: list[Line] = []
    asked: list[list[Needle]] = []
    for question in range(order.questions):
        needles = [needle for _ in range(kind.queries) for needle in next(made)]
        for index, needle in enumerate(needles):
            slot = (question + order.window) % order.questions * per_question + index
            shift = order.shared_rng(f"depth {slot}").random()
            lines.append(Line((slot + spread(order.window, shift)) / total, needle.text))
        asked.append(needles)
    for _ in range(kind.others):
        lines += [Line(rng.random(), needle.text) for needle in next(made)]
    planted = plant(order, lines, source=source)
    questions = tuple(_ask(kind, needles, planted.position) for needles in asked)
    return Draft(blocks=planted.blocks, tokens=planted.tokens, questions=questions)


def _draft_buried(order: Order, kind: Needles) -> Draft:
    """Needles among needles."""
    rng = order.rng("lines")
    seen: list[Needle] = []

    def lines() -> Iterator[str]:
        for needles in _needles(rng, kind, None):
            seen.extend(needles)
            yield needles[0].text + "\n"

    made, tokens = filling.fill(lines(), order.length)
    questions = []
    for question in range(order.questions):
        slot = (question + order.window) % order.questions
        shift = order.shared_rng(f"depth {slot}").random()
        depth = (slot + spread(order.window, shift)) / order.questions
        index = int(depth * len(made))
        where = filling.position("", made, index)
        questions.append(_ask(kind, [seen[index]], {seen[index].text: where}))
    return Draft(blocks=filling.blocks("", made), tokens=tokens, questions=tuple(questions))


class Needle(NamedTuple):
    """One planted statement: what is asked for, the answer, and the line that says so."""

    key: str
    value: str
    text: str


def _needles(rng: Random, kind: Needles, source: Source | None) -> Iterator[list[Needle]]:
    """The needles of one key at a time, of different keys and values."""
    values = words.uuids(rng) if kind.value == "uuids" else words.numbers(rng)
    keys = (
        words.uuids(rng)
        if kind.key == "uuids"
        else words.keys(rng, nouns=3 if source is None else 1)
    )
    for key in keys:
        if source is None or not source.holds(key):
            yield [
                Needle(key, value, NEEDLE.format(kind=kind.value, key=key, value=value))
                for value in islice(values, kind.values)
            ]


def _ask(kind: Needles, needles: list[Needle], position: dict[str, float]) -> Question:
    keys = list(dict.fromkeys(needle.key for needle in needles))
    listed = keys[0] if len(keys) == 1 else f"{', '.join(keys[:-1])}, and {keys[-1]}"
    return Question(
        query=ASK_NEEDLE.format(kind=kind.value, keys=listed),
        gold=tuple(sorted(needle.value for needle in needles)),
        answer_type="set",
        kind="niah",
        position=position[needles[0].text] if len(needles) == 1 else None,
    )


def _draft_variables(order: Order) -> Draft:
    rng = order.rng("lines")
    size, source = _HOPS + 1, Noise()
    names = draw_names(
        rng, source, size * order.questions, lambda r: "".join(r.choices(ascii_uppercase, k=5))
    )
    values = draw_names(rng, source, order.questions, lambda r: str(r.randrange(10_000, 100_000)))
    lines = []
    questions = []
    for index, value in enumerate(values):
        names_here = names[index * size : (index + 1) * size]
        previous = value
        for hop, name in enumerate(names_here):
            shift = order.shared_rng(f"depth {index} {hop}").random()
            depth = (hop + spread(order.window, shift)) / size
            lines.append(Line(depth, f"VAR {name} = {previous}"))
            previous = f"VAR {name}"
        questions.append(
            Question(
                query=ASK_VARIABLES.format(value=value),
                gold=tuple(sorted(names_here)),
                answer_type="set",
                kind="vt",
            )
        )
    planted = plant(order, lines, source=source)
    return Draft(blocks=planted.blocks, tokens=planted.tokens, questions=tuple(questions))
