"""Needle: one access code per question, hidden among near-duplicates of its line.

After RULER's niah_single (NVIDIA/RULER, Apache-2.0), with own wording and with the distractors that
a keyword search trips over: a similar name, a longer name, a revoked code of the same name.
"""

from __future__ import annotations

import re
from random import Random
from typing import ClassVar, NamedTuple

from pydantic import Field

from fleet_rlm.suites.generators.base import Draft, Order, Params, spread
from fleet_rlm.suites.generators.planting import Line, Planted, draw_names, plant
from fleet_rlm.suites.sample import Question

LINE = "The access code for {name} is {code}."
REVOKED = "The access code for {name} is {code} (revoked, do not use)."
QUERY = "What is the current access code for {name}? Answer with the code only."

WORDS = (
    "Halcyon", "Meridian", "Zephyr", "Orion", "Quasar", "Basalt", "Juniper", "Cobalt", "Ember",
    "Solstice", "Aurora", "Tundra", "Cascade", "Obsidian", "Saffron", "Vortex", "Lagoon", "Granite",
    "Nimbus", "Compass", "Pinnacle", "Harbor", "Atlas", "Beacon", "Citadel", "Drift", "Equinox",
    "Fjord", "Garnet", "Horizon", "Indigo", "Jasper", "Keystone", "Lantern", "Magnet", "Nova",
    "Onyx", "Prairie", "Quartz", "Redwood",
)  # fmt: skip


class NeedleParams(Params):
    """Knobs of `needle`."""

    distractors: int = Field(default=8, ge=0, le=200)
    """Near-duplicate lines per question: other number, longer name and revoked code in turn."""


class Needle:
    """Writes `needle` windows."""

    name: ClassVar = "needle"
    version: ClassVar = 1
    rule: ClassVar = "needle"
    uses_corpus: ClassVar = True
    least: ClassVar = "1,000, or 50 for each question and each of its near-duplicates"
    max_questions: ClassVar = len(WORDS)
    params: ClassVar[type[Params]] = NeedleParams

    def min_length(self, params: NeedleParams, questions: int) -> int:
        return max(1000, 50 * questions * (params.distractors + 1))

    def draft(self, order: Order, params: NeedleParams) -> Draft:
        planted, needles = plant_codes(order, order.questions, params.distractors)
        return Draft(
            blocks=planted.blocks,
            tokens=planted.tokens,
            questions=tuple(
                Question(
                    query=QUERY.format(name=name),
                    gold=(code,),
                    answer_type="exact",
                    kind="needle",
                    position=planted.position[text],
                )
                for name, code, text in needles
            ),
        )

    def solve(self, params: NeedleParams, context: str, query: str) -> tuple[str, ...]:
        name = query.removeprefix("What is the current access code for ").partition("?")[0]
        return read_code(context, name)


class Planting(NamedTuple):
    """A name and its valid code."""

    name: str
    code: str
    line: str


def plant_codes(order: Order, count: int, distractors: int) -> tuple[Planted, list[Planting]]:
    """A text with `count` names and their codes, and `distractors` near-duplicates of each."""
    rng = order.rng("lines")
    codes = _codes(rng, count * (distractors + 1))
    lines: list[Line] = []
    needles: list[Planting] = []
    for index, word in enumerate(rng.sample(WORDS, count)):
        name, others = _names(rng, order, word, distractors)
        depth, code = _depth(order, index, count), codes.pop()
        needles.append(Planting(name, code, LINE.format(name=name, code=code)))
        lines.append(Line(depth, needles[-1].line))
        for turn, other in enumerate(others):
            if other != name:
                lines.append(Line(rng.random(), LINE.format(name=other, code=codes.pop())))
                continue
            before = (turn // 3 + index + order.window) % 2
            place = rng.uniform(0, depth) if before else rng.uniform(depth, 1)
            lines.append(Line(place, REVOKED.format(name=name, code=codes.pop())))
    return plant(order, lines), needles


def read_code(context: str, name: str) -> tuple[str, ...]:
    """The valid code of a name by its line; several when the text holds several."""
    pattern = rf"^The access code for {re.escape(name)} is (\d+)\.$"
    return tuple(re.findall(pattern, context, re.MULTILINE))


def _depth(order: Order, index: int, count: int) -> float:
    # Line i of window w stands in segment (i + w) mod n, so no question has a depth of its own;
    # inside a segment the windows are spread evenly.
    segment = (index + order.window) % count
    shift = order.shared_rng(f"depth {segment}").random()
    return (segment + spread(order.window, shift)) / count


def _codes(rng: Random, count: int) -> list[str]:
    return [str(code) for code in rng.sample(range(1_000_000, 10_000_000), count)]


def _names(rng: Random, order: Order, word: str, distractors: int) -> tuple[str, list[str]]:
    """The name asked for, and the name on each distractor line: its own where that is revoked."""
    (name,) = draw_names(
        rng, order.source, 1, lambda r: f"{word}-{r.randrange(1, 10)}{r.randrange(1, 10)}"
    )
    turns = -(-distractors // 3)
    swapped = f"{word}-{name[-1]}{name[-2]}"
    others = [] if swapped == name else [swapped]
    others += draw_names(
        rng, order.source, turns, lambda r: f"{word}-{r.randrange(10, 100)}", [name, swapped]
    )
    lines = [line for turn in range(turns) for line in (others[turn], f"{name}{turn}", name)]
    return name, lines[:distractors]
