"""Variables: chains of assignments scattered over running text, to be followed hop by hop.

After RULER's variable_tracking (NVIDIA/RULER, Apache-2.0): five capital letters per name, one value
per chain; here several chains at once, and every chain spread over the whole text.
"""

from __future__ import annotations

import re
from random import Random
from string import ascii_uppercase
from typing import ClassVar

from pydantic import Field

from fleet_rlm.suites.generators.base import Draft, Order, Params, spread
from fleet_rlm.suites.generators.planting import Line, draw_names, plant
from fleet_rlm.suites.sample import Question

QUERY = (
    "Find every variable that ends up with the value {value} after following all VAR assignments in"
    " the text. Answer with the variable names only, separated by commas."
)


class VariablesParams(Params):
    """Knobs of `variables`."""

    hops: int = Field(default=4, ge=1, le=50)
    """Copies after the first assignment; a chain has one name more."""

    distractors: int = Field(default=4, ge=0, le=200)
    """Chains that no question asks for."""


class Variables:
    """Writes `variables` windows."""

    name: ClassVar = "variables"
    version: ClassVar = 1
    rule: ClassVar = "variables"
    uses_corpus: ClassVar = True
    least: ClassVar = "1,000, or 40 for each line of a chain"
    max_questions: ClassVar = 50
    params: ClassVar[type[Params]] = VariablesParams

    def min_length(self, params: VariablesParams, questions: int) -> int:
        return max(1000, 40 * (questions + params.distractors) * (params.hops + 1))

    def draft(self, order: Order, params: VariablesParams) -> Draft:
        rng = order.rng("lines")
        size = params.hops + 1
        chains = order.questions + params.distractors
        names = draw_names(rng, order.source, chains * size, _name)
        values = draw_names(rng, order.source, chains, lambda r: str(r.randrange(10_000, 100_000)))
        lines: list[Line] = []
        asked: list[tuple[str, list[str]]] = []
        for index in range(chains):
            chain = names[index * size : (index + 1) * size]
            asked.append((values[index], chain))
            previous = values[index]
            for hop, name in enumerate(chain):
                lines.append(Line(_depth(order, index, hop, size), f"VAR {name} = {previous}"))
                previous = f"VAR {name}"
        planted = plant(order, lines)
        return Draft(
            blocks=planted.blocks,
            tokens=planted.tokens,
            questions=tuple(
                Question(
                    query=QUERY.format(value=value),
                    gold=tuple(sorted(chain)),
                    answer_type="set",
                    kind="chain",
                )
                for value, chain in asked[: order.questions]
            ),
        )

    def solve(self, params: VariablesParams, context: str, query: str) -> tuple[str, ...]:
        return follow_chains(context, re.findall(r"\d+", query)[0])


def follow_chains(context: str, value: str) -> tuple[str, ...]:
    """Every variable of `context` that ends up with `value`, sorted."""
    held: dict[str, str] = {}
    found: list[str] = []
    for name, right in re.findall(r"^VAR ([A-Z]+) = (?:VAR )?([A-Z]+|\d+)$", context, re.MULTILINE):
        held[name] = held.get(right, right)
        if held[name] == value:
            found.append(name)
    return tuple(sorted(found))


def _name(rng: Random) -> str:
    return "".join(rng.choice(ascii_uppercase) for _ in range(5))


def _depth(order: Order, chain: int, hop: int, size: int) -> float:
    # One line per segment keeps a copy behind what it copies; windows are spread evenly inside it.
    shift = order.shared_rng(f"depth {chain} {hop}").random()
    return (hop + spread(order.window, shift)) / size
