"""Chat: four requests in a row, of which the later ones lean on what was said before.

An access code is asked for, then another by a name alone, then which of the two is larger, then the
first again. Lines and near-duplicates are those of `needle`.
"""

from __future__ import annotations

import re
from typing import ClassVar

from fleet_rlm.scoring.dialogue import pose, requests_of
from fleet_rlm.suites.generators.base import Draft, Order, Params
from fleet_rlm.suites.generators.needle import QUERY, WORDS, NeedleParams, plant_codes, read_code
from fleet_rlm.suites.sample import Question

AND_FOR = "And for {name}?"
LARGER = "Which of the two codes is larger? Answer with the code only."
AGAIN = "Say the first of them again. Answer with the code only."


class Chat:
    """Writes `chat` windows: a question is a conversation about two names."""

    name: ClassVar = "chat"
    version: ClassVar = 1
    rule: ClassVar = "dialogue"
    uses_corpus: ClassVar = True
    least: ClassVar = "1,000, or 100 for each conversation and each of its near-duplicates"
    max_questions: ClassVar = len(WORDS) // 2
    params: ClassVar[type[Params]] = NeedleParams

    def min_length(self, params: NeedleParams, questions: int) -> int:
        return max(1000, 100 * questions * (params.distractors + 1))

    def draft(self, order: Order, params: NeedleParams) -> Draft:
        planted, needles = plant_codes(order, 2 * order.questions, params.distractors)
        return Draft(
            blocks=planted.blocks,
            tokens=planted.tokens,
            questions=tuple(
                Question(
                    query=_conversation(first.name, second.name),
                    gold=_replies(first.code, second.code),
                    answer_type="lines",
                    kind="chat",
                )
                for first, second in zip(needles[::2], needles[1::2], strict=True)
            ),
        )

    def solve(self, params: NeedleParams, context: str, query: str) -> tuple[str, ...]:
        asked, other = requests_of(query)[:2]
        name = other.removeprefix("And for ").removesuffix("?")
        first = re.findall(r"code for (\S+)\?", asked)[0]
        codes = [code for wanted in (first, name) for code in read_code(context, wanted)]
        return _replies(*codes) if len(codes) == 2 else ()


def _conversation(first: str, second: str) -> str:
    return pose([QUERY.format(name=first), AND_FOR.format(name=second), LARGER, AGAIN])


def _replies(first: str, second: str) -> tuple[str, ...]:
    return first, second, max(first, second, key=int), first
