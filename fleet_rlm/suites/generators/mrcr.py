"""Multi-round co-reference: a long chat; quote the k-th of several texts asked for alike.

After openai/mrcr (MIT): 2, 4 or 8 alike requests among others, and a random string to prepend.
Wording ours, and texts are made from templates instead of a model, so that every machine has the
same. What differs: the requested texts lie evenly, and the chat does not end with one of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice
from random import Random
from string import ascii_letters, digits
from typing import ClassVar

from pydantic import Field

from fleet_rlm.suites.generators import filling
from fleet_rlm.suites.generators.base import Draft, Order, Params, spread
from fleet_rlm.suites.generators.words import ADJECTIVES, NOUNS
from fleet_rlm.suites.prose import sentences
from fleet_rlm.suites.sample import Question
from fleet_rlm.suites.tokens import count_tokens

ASK = (
    "Prepend {hash} to the {ordinal} {form} about {topic} in the conversation above, counted from"
    " its beginning. Give the string and right behind it that text, word for word, nothing else."
)
FORMS = (
    "poem", "short story", "blog post", "riddle", "news report", "speech", "letter", "song",
    "product review", "diary entry", "fable", "travel note",
)  # fmt: skip
ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth")
_REQUEST_TOKENS = 60  # of a request with its labels, and of one sentence, at most


class MrcrParams(Params):
    """Knobs of `mrcr`."""

    needles: int = Field(default=4, ge=2, le=8)
    """Texts asked for alike; one of them is to be quoted."""

    text_tokens: int = Field(default=100, ge=20, le=1000)
    """Length of one text in tokens, about."""


class Mrcr:
    """Writes `mrcr` windows."""

    name: ClassVar = "mrcr"
    version: ClassVar = 1
    rule: ClassVar = "mrcr"
    uses_corpus: ClassVar = False
    least: ClassVar = "1,250, or twice what the texts asked for take"
    max_questions: ClassVar = 8
    params: ClassVar[type[Params]] = MrcrParams

    def min_length(self, params: MrcrParams, questions: int) -> int:
        return max(1250, 2 * questions * params.needles * (params.text_tokens + 40))

    def draft(self, order: Order, params: MrcrParams) -> Draft:
        rng = order.rng("lines")
        kinds = _kinds(rng)
        wanted = list(islice(kinds, order.questions))
        needles = {
            kind: [_turn(rng, *kind, params.text_tokens) for _ in range(params.needles)]
            for kind in wanted
        }
        own = [turn for turns in needles.values() for turn in turns]
        used = sum(map(count_tokens, own))
        others = (_turn(rng, *next(kinds), params.text_tokens) for _ in iter(int, 1))
        fillers, tokens = filling.fill(others, order.length - used)
        left = order.length - used - tokens
        if left > _REQUEST_TOKENS:
            last = _turn(rng, *next(kinds), left - _REQUEST_TOKENS // 2)
            tokens += count_tokens(last)
            fillers.append(last)
        made, places = _woven(order, fillers, needles)
        questions = []
        for index, kind in enumerate(wanted):
            asked = (order.window + index) % params.needles
            turn = needles[kind][asked]
            text = turn.partition("\nAssistant: ")[2].rstrip("\n")
            prefix = "".join(rng.choices(ascii_letters + digits, k=10))
            form, topic = kind
            questions.append(
                Question(
                    query=ASK.format(hash=prefix, ordinal=ORDINALS[asked], form=form, topic=topic),
                    gold=(prefix + text, prefix),
                    answer_type="text",
                    kind=f"{params.needles} needles",
                    position=filling.position("", made, places[turn]),
                )
            )
        return Draft(
            blocks=filling.blocks("", made), tokens=used + tokens, questions=tuple(questions)
        )

    def solve(self, params: MrcrParams, context: str, query: str) -> tuple[str, ...]:
        prefix, ordinal, kind = re.findall(r"^Prepend (\w+) to the (\w+) (.+) in the conv", query)[
            0
        ]
        marker = f"User: Write a {kind}.\nAssistant: "
        text = context.split(marker)[ORDINALS.index(ordinal) + 1].partition("\n\nUser: ")[0]
        return prefix + text.rstrip("\n"), prefix


def _kinds(rng: Random) -> Iterator[tuple[str, str]]:
    """Different pairs of a form and a topic; topics get longer when the short ones are used up."""
    short = [f"a {a} {n}" for a in ADJECTIVES for n in NOUNS]
    pairs = [(form, topic) for form in FORMS for topic in short]
    rng.shuffle(pairs)
    yield from pairs
    for noun in NOUNS:
        for form, topic in pairs:
            yield form, f"{topic} near a {noun}"


def _turn(rng: Random, form: str, topic: str, tokens: int) -> str:
    """A request and the text for it: as many sentences as fit into `tokens`, and at least one."""
    text = ""
    for sentence in sentences(rng):
        tokens -= sentence.tokens + 1  # a space before may cost one more
        if text and tokens < 0:
            return f"User: Write a {form} about {topic}.\nAssistant: {text}\n\n"
        text = f"{text} {sentence.text}" if text else sentence.text
    raise AssertionError("sentences have no end")


def _woven(
    order: Order, fillers: list[str], needles: dict[tuple[str, str], list[str]]
) -> tuple[list[str], dict[str, int]]:
    """Fillers with needles at even depths, never last, and where each needle came to stand."""
    gaps: dict[int, list[str]] = {}
    for index, turns in enumerate(needles.values()):
        for rank, turn in enumerate(turns):
            shift = order.shared_rng(f"depth {index} {rank}").random()
            depth = (rank + spread(order.window, shift)) / len(turns)
            gaps.setdefault(int(depth * len(fillers)), []).append(turn)
    made: list[str] = []
    places: dict[str, int] = {}
    for index, filler in enumerate(fillers):
        for turn in gaps.get(index, ()):
            places[turn] = len(made)
            made.append(turn)
        made.append(filler)
    return made, places
