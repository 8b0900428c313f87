"""bAbI stories hidden in running text: who is where, holds what, gave what to whom.

After the bAbI tasks (Weston et al. 2015, arXiv 1502.05698) as BABILong hides them (booydar/babilong
7a6efee, Apache-2.0): people, things, places and labels are the same, stories are simulated anew.
What differs: facts lie evenly over the text, and where the deciding one stands is balanced.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from random import Random
from typing import ClassVar, Literal, NamedTuple

from pydantic import Field

from fleet_rlm.errors import DataError
from fleet_rlm.suites.generators.base import Draft, Order, Params
from fleet_rlm.suites.generators.planting import Line, plant
from fleet_rlm.suites.sample import Question

PLACES = ("bathroom", "bedroom", "garden", "hallway", "kitchen", "office")
PEOPLE = ("Daniel", "John", "Mary", "Sandra")
GIVERS = ("Bill", "Fred", "Jeff", "Mary")
THINGS = ("apple", "football", "milk")
COUNTS = ("none", "one", "two", "three")
OPPOSITE = {"north": "south", "south": "north", "east": "west", "west": "east"}
MOVES = ("moved to", "went to", "journeyed to", "travelled to", "went back to")
TAKES = ("picked up", "grabbed", "got", "took")
DROPS = ("dropped", "discarded", "put down", "left")
GIVES = ("gave", "handed", "passed")

_MOVED = re.compile(rf"^(\w+) (?:{'|'.join(MOVES)}) the (\w+)\.$", re.M)
_EVENT = re.compile(
    rf"^(?P<who>\w+) (?:(?:{'|'.join(MOVES)}) the (?P<place>\w+)"
    rf"|(?:{'|'.join(TAKES)}) the (?P<took>\w+) there"
    rf"|(?:{'|'.join(DROPS)}) the (?P<left>\w+)"
    rf"|(?:{'|'.join(GIVES)}) the (?P<gave>\w+) to (?P<whom>\w+))\.$",
    re.M,
)
_FORM = " Answer with a single word, or with several words and commas between them."

BabiTask = Literal["qa1", "qa2", "qa3", "qa4", "qa5", "qa7", "qa8"]


class BabiParams(Params):
    """Knobs of `babi`."""

    task: BabiTask = "qa1"
    """bAbI's task: 1 to 3 facts lead to the answer, relations, gifts, counts, lists."""

    facts: int = Field(default=24, ge=6, le=2000)
    """Sentences of the story; qa4 has at most five."""


class Babi:
    """Writes `babi` windows."""

    name: ClassVar = "babi"
    version: ClassVar = 1
    rule: ClassVar = "babilong"
    uses_corpus: ClassVar = True
    least: ClassVar = "1,000, or 20 for each fact"
    max_questions: ClassVar = 3
    params: ClassVar[type[Params]] = BabiParams

    def min_length(self, params: BabiParams, questions: int) -> int:
        return max(1000, 20 * params.facts)

    def draft(self, order: Order, params: BabiParams) -> Draft:
        for attempt in range(50):
            rng = order.rng(f"story {attempt}")
            story = _rooms(rng) if params.task == "qa4" else _story(rng, params)
            asked = _ask(rng, order, params.task, story)
            if len(asked) >= order.questions:
                break
        else:
            raise DataError(f"babi {params.task} found no story with {order.questions} questions")
        shift = order.rng("depth").random()
        lines = [Line((index + shift) / len(story), fact.text) for index, fact in enumerate(story)]
        planted = plant(order, lines)
        questions = tuple(
            Question(
                query=f"{text}{_FORM}",
                gold=(gold,),
                answer_type="label",
                options=_options(params.task, text),
                kind=params.task,
            )
            for text, gold in asked[: order.questions]
        )
        return Draft(blocks=planted.blocks, tokens=planted.tokens, questions=questions)

    def solve(self, params: BabiParams, context: str, query: str) -> tuple[str, ...]:
        if params.task == "qa4":
            return (_solve_rooms(context, query),)
        places: dict[str, list[str]] = {}
        held: dict[str, list[str]] = {}
        trail: dict[str, list[str]] = {}
        gifts: list[tuple[str, str, str]] = []
        for event in _EVENT.finditer(context):
            who = event["who"]
            if place := event["place"]:
                places.setdefault(who, []).append(place)
                for thing in held.get(who, ()):
                    trail.setdefault(thing, []).append(place)
            elif thing := event["took"]:
                held.setdefault(who, []).append(thing)
                trail.setdefault(thing, []).append(places[who][-1])
            elif thing := event["left"]:
                held[who].remove(thing)
            elif thing := event["gave"]:
                gifts.append((who, thing, event["whom"]))
        return (_solve_story(query, places, held, trail, gifts),)


class Fact(NamedTuple):
    """One sentence, and the state of the world behind it."""

    text: str
    where: dict[str, str]
    """Person to place."""

    holds: dict[str, tuple[str, ...]]
    """Person to the things carried, in the order taken."""

    rooms: dict[str, tuple[str, ...]]
    """Thing to the places it has been in."""

    gift: tuple[str, str, str] | None = None
    """Giver, thing, receiver."""


def _story(rng: Random, params: BabiParams) -> list[Fact]:
    if params.task == "qa5":
        return list(_gifts(rng, params.facts))
    where: dict[str, str] = {}
    holds: dict[str, tuple[str, ...]] = {}
    lies: dict[str, str] = {}
    rooms: dict[str, tuple[str, ...]] = {}
    facts: list[Fact] = []
    carries = params.task != "qa1"
    while len(facts) < params.facts:
        who = rng.choice(PEOPLE)
        mine = holds.get(who, ())
        here = where.get(who)
        # A thing never mentioned lies wherever someone first picks it up.
        near = [t for t in THINGS if (t not in lies and here) or lies.get(t) == here != None]  # noqa: E711
        near = [t for t in near if not any(t in held for held in holds.values())]
        luck = rng.random()
        if carries and here and near and luck < 0.35:
            thing = rng.choice(near)
            text = f"{who} {rng.choice(TAKES)} the {thing} there."
            holds[who] = (*mine, thing)
            lies.pop(thing, None)
            rooms[thing] = (*rooms.get(thing, ()), here)
        elif carries and mine and luck < 0.55:
            thing = rng.choice(mine)
            text = f"{who} {rng.choice(DROPS)} the {thing}."
            holds[who] = tuple(t for t in mine if t != thing)
            lies[thing] = str(here)
        else:
            place = rng.choice([p for p in PLACES if p != here])
            text = f"{who} {rng.choice(MOVES)} the {place}."
            where[who] = place
            for thing in mine:
                rooms[thing] = (*rooms[thing], place)
        facts.append(Fact(text, dict(where), dict(holds), dict(rooms)))
    return facts


def _gifts(rng: Random, count: int) -> Iterator[Fact]:
    owner = {thing: rng.choice(GIVERS) for thing in THINGS}
    for _ in range(count):
        thing = rng.choice(THINGS)
        giver = owner[thing]
        whom = rng.choice([person for person in GIVERS if person != giver])
        owner[thing] = whom
        text = f"{giver} {rng.choice(GIVES)} the {thing} to {whom}."
        yield Fact(text, {}, {}, {}, (giver, thing, whom))


def _rooms(rng: Random) -> list[Fact]:
    """Six rooms in a row, by five sentences in any order."""
    order = rng.sample(PLACES, len(PLACES))
    facts = []
    for a, b in pairwise(order):
        side = rng.choice(sorted(OPPOSITE))
        facts.append(Fact(f"The {a} is {side} of the {b}.", {a: b}, {a: (side,)}, {}))
    rng.shuffle(facts)
    return facts


def _ask(rng: Random, order: Order, task: BabiTask, story: list[Fact]) -> list[tuple[str, str]]:
    """Questions about the end of the story with their answers, in random order, none twice."""
    last = story[-1]
    found: list[tuple[str, str]] = []
    if task == "qa1":
        found = [(f"Where is {who}?", place) for who, place in last.where.items()]
    elif task == "qa2":
        found = [(f"Where is the {thing}?", rooms[-1]) for thing, rooms in last.rooms.items()]
    elif task == "qa3":
        for thing, rooms in last.rooms.items():
            steps = [room for i, room in enumerate(rooms) if not i or rooms[i - 1] != room]
            if len(steps) > 1 and steps.count(steps[-1]) == 1:
                found.append((f"Where was the {thing} before the {steps[-1]}?", steps[-2]))
    elif task == "qa4":
        for fact in story:
            ((a, b),) = fact.where.items()
            side = fact.holds[a][0]
            found.append((f"What is {side} of the {b}?", a))
            found.append((f"What is the {a} {side} of?", b))
    elif task == "qa5":
        found = _ask_gifts(story)
    else:
        for who in PEOPLE:
            things = last.holds.get(who, ())
            if task == "qa7":
                found.append((f"How many objects is {who} carrying?", COUNTS[len(things)]))
            else:
                found.append((f"What is {who} carrying?", ",".join(sorted(things)) or "nothing"))
        # Else most answers would be "none": the turn of the window says how many are carried.
        wanted = order.window % 3
        found.sort(key=lambda pair: _carried(task, pair[1]) != wanted)
        if _carried(task, found[0][1]) != wanted:
            return []
        return found
    rng.shuffle(found)
    return list(dict(found).items())


def _carried(task: BabiTask, answer: str) -> int:
    if task == "qa7":
        return COUNTS.index(answer)
    return 0 if answer == "nothing" else answer.count(",") + 1


def _ask_gifts(story: list[Fact]) -> list[tuple[str, str]]:
    gifts = [fact.gift for fact in story if fact.gift]
    found = []
    for giver, thing, whom in gifts:
        # Only what happened once, or last, has one answer.
        if sum(g[1:] == (thing, whom) for g in gifts) == 1:
            found.append((f"Who gave the {thing} to {whom}?", giver))
        if sum((g[0], g[2]) == (giver, whom) for g in gifts) == 1:
            found.append((f"What did {giver} give to {whom}?", thing))
        if sum(g[:2] == (giver, thing) for g in gifts) == 1:
            found.append((f"Who did {giver} give the {thing} to?", whom))
    return [(query, gold.lower()) for query, gold in found]


def _options(task: BabiTask, query: str) -> tuple[str, ...]:
    """What the question does not name of the task's labels: the floor guesses among them."""
    known: tuple[str, ...] = PLACES
    if task == "qa5":
        known = THINGS if query.startswith("What") else tuple(name.lower() for name in GIVERS)
    elif task == "qa7":
        known = COUNTS
    elif task == "qa8":
        known = (*THINGS, "nothing")
    return tuple(label for label in known if label not in query.lower())


def _solve_rooms(context: str, query: str) -> str:
    placed: dict[tuple[str, str], str] = {}
    for a, side, b in re.findall(r"^The (\w+) is (\w+) of the (\w+)\.$", context, re.M):
        placed[side, b] = a
    asked = re.findall(r"What is (?:the (\w+) )?(\w+) of(?: the (\w+))?\?", query)
    a, side, b = asked[0]
    if b:
        return placed[side, b]
    return next(b for (s, b), first in placed.items() if s == side and first == a)


def _solve_story(
    query: str,
    places: dict[str, list[str]],
    held: dict[str, list[str]],
    trail: dict[str, list[str]],
    gifts: list[tuple[str, str, str]],
) -> str:
    asked = query.removesuffix(_FORM).rstrip("?").split()
    match asked:
        case ["Where", "is", "the", thing]:
            return trail[thing][-1]
        case ["Where", "is", who]:
            return places[who][-1]
        case ["Where", "was", "the", thing, "before", "the", place]:
            return [room for room in trail[thing] if room != place][-1]
        case ["How", "many", "objects", "is", who, "carrying"]:
            return COUNTS[len(held.get(who, []))]
        case ["What", "is", who, "carrying"]:
            return ",".join(sorted(held.get(who, []))) or "nothing"
        case ["Who", "gave", "the", thing, "to", whom]:
            return next(g for g, t, w in gifts if (t, w) == (thing, whom)).lower()
        case ["What", "did", giver, "give", "to", whom]:
            return next(t for g, t, w in gifts if (g, w) == (giver, whom))
        case ["Who", "did", giver, "give", "the", thing, "to"]:
            return next(w for g, t, w in gifts if (g, t) == (giver, thing)).lower()
        case _:
            raise DataError(f"no bAbI question is worded like {query[:60]!r}")
