"""RULER's two question tasks over documents: one hop, and two.

After NVIDIA/RULER c3f5e3b (Apache-2.0), scripts/data/synthetic/qa.py, which takes documents and
questions from SQuAD and HotpotQA; here both are made up, so that no model has read them before.
What differs: the gold document stands at the same index in every sample of a length there; here
its place is balanced over windows, and no document repeats.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice
from random import Random
from typing import ClassVar, Literal, NamedTuple

from fleet_rlm.errors import DataError
from fleet_rlm.suites.generators import filling, words
from fleet_rlm.suites.generators.base import Draft, Order, Params, spread
from fleet_rlm.suites.sample import Question

ONE_HOP = "In which town was {name} born? Answer with the name of the town only."
TWO_HOPS = (
    "On which river lies the town in which {name} was born? Answer with the name of the river only."
)
_TRADES = (
    "glassblower", "cartographer", "botanist", "violin maker", "magistrate", "printer", "surgeon",
    "shipwright", "poet", "astronomer", "weaver", "engraver", "midwife", "chemist", "stonecutter",
)  # fmt: skip
_HABITS = (
    "kept a diary that has never been found", "was known for walking at night",
    "refused every honour that was offered", "learned three languages late in life",
    "lost a long lawsuit over a garden wall", "never slept in the same room twice",
    "left most of the estate to a school", "was painted twice by the same artist",
    "wrote letters to people who never answered", "bred pigeons of a rare grey kind",
)  # fmt: skip
_TOWN_FACTS = (
    "It has a covered market and two old bridges.", "Its fair draws people from far away.",
    "Most of its houses were rebuilt after a flood.", "Its bell is older than its church.",
    "The road to it is steep and often closed.", "Its archive holds maps that nobody can read.",
)  # fmt: skip


class RulerQaParams(Params):
    """Knobs of `ruler_qa`."""

    task: Literal["qa_1", "qa_2"] = "qa_1"
    """One hop, or two: then the answer stands in a second document."""


class RulerQa:
    """Writes `ruler_qa` windows."""

    name: ClassVar = "ruler_qa"
    version: ClassVar = 1
    rule: ClassVar = "match-part"
    uses_corpus: ClassVar = False
    least: ClassVar = "950, and 300 for each question"
    max_questions: ClassVar = 8
    params: ClassVar[type[Params]] = RulerQaParams

    def min_length(self, params: RulerQaParams, questions: int) -> int:
        return 950 + 300 * questions

    def draft(self, order: Order, params: RulerQaParams) -> Draft:
        documents: list[Document] = []

        def blocks() -> Iterator[str]:
            for index, document in enumerate(_documents(order.rng("documents")), 1):
                documents.append(document)
                yield f"Document {index}:\n{document.text}\n\n"

        made, tokens = filling.fill(blocks(), order.length)
        people = [i for i, document in enumerate(documents[: len(made)]) if document.person]
        known = {document.town for document in documents[: len(made)] if not document.person}
        people = [i for i in people if documents[i].town in known]
        if len(people) < order.questions:
            raise DataError(f"ruler_qa has {len(people)} people for {order.questions} questions")
        questions = []
        for index in range(order.questions):
            slot = (index + order.window) % order.questions
            shift = order.shared_rng(f"depth {slot}").random()
            depth = (slot + spread(order.window, shift)) / order.questions
            chosen = people.pop(min(int(depth * len(people)), len(people) - 1))
            document = documents[chosen]
            one_hop = params.task == "qa_1"
            questions.append(
                Question(
                    query=(ONE_HOP if one_hop else TWO_HOPS).format(name=document.person),
                    gold=(document.town if one_hop else document.river,),
                    answer_type="any",
                    kind=params.task,
                    position=filling.position("", made, chosen),
                )
            )
        return Draft(blocks=filling.blocks("", made), tokens=tokens, questions=tuple(questions))

    def solve(self, params: RulerQaParams, context: str, query: str) -> tuple[str, ...]:
        name = re.findall(r"(?:was|which) (\S+ \S+) (?:was )?born", query)[0]
        (town,) = re.findall(rf"^{name} was born in (\w+)\b", context, re.MULTILINE)
        if params.task == "qa_1":
            return (town,)
        return tuple(re.findall(rf"^{town} lies on the river (\w+)\.", context, re.MULTILINE))


class Document(NamedTuple):
    """One document: of a person, or, with `person` empty, of a town."""

    person: str
    town: str
    river: str
    text: str


def _documents(rng: Random) -> Iterator[Document]:
    """Twelve at a time: ten people of four towns, and two of those towns.

    People of a town without a document of its own are never asked about, and distract.
    """
    towns = (word.title() for word in words.coined(Random(rng.random()), syllables=3))
    rivers = (word.title() for word in words.coined(Random(rng.random()), syllables=3))
    people = _names(Random(rng.random()))
    while True:
        group = [(town, next(rivers)) for town in islice(towns, 4)]
        made = [_person(rng, next(people), *rng.choice(group)) for _ in range(10)]
        made += [_town(rng, town, river) for town, river in group[:2]]
        rng.shuffle(made)
        yield from made


def _names(rng: Random) -> Iterator[str]:
    first = list(islice(words.coined(rng, syllables=2), 200))
    for last in words.coined(rng, syllables=3):
        yield f"{rng.choice(first).title()} {last.title()}"


def _person(rng: Random, name: str, town: str, river: str) -> Document:
    year, habit = rng.randrange(1700, 1900), rng.choice(_HABITS)
    trade, other = rng.sample(_TRADES, 2)
    text = (
        f"{name} was born in {town} in {year} and became a {trade}, like an uncle before. At the"
        f" age of {rng.randrange(20, 50)} {name} gave that up to work as a {other}, and {habit}."
    )
    return Document(name, town, river, text)


def _town(rng: Random, town: str, river: str) -> Document:
    text = f"{town} lies on the river {river}. {' '.join(rng.sample(_TOWN_FACTS, 3))}"
    return Document("", town, river, text)
