"""Built-in filler: seeded, neutral English prose of any length, for when no corpus is given.

It holds no digit, no word in capitals and no word of `fleet_rlm.lexicon`, so nothing in it can be
taken for a planted line, a code or a label.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from random import Random
from string import Formatter

from fleet_rlm.suites.passages import Passage, take
from fleet_rlm.suites.tokens import count_tokens

VERSION = 1
"""Raised with every change of the text; part of each sample id."""


class Prose:
    """A `Source` that writes paragraphs as it is asked, so no two windows share text."""

    @property
    def digest(self) -> str:
        return f"prose-{VERSION}"

    def passages(self, rng: Random, tokens: int) -> list[Passage]:
        """See `Source.passages`."""
        return take(_paragraphs(rng), tokens)

    def holds(self, text: str) -> bool:
        """Never: planted names hold digits or capitals, the prose holds neither."""
        return False


def sentences(rng: Random) -> Iterator[Passage]:
    """Single sentences without end, each with its tokens at the beginning of a text."""
    while True:
        pieces = _sentence(rng, is_first=True)
        yield Passage("".join(pieces), sum(map(_cost, pieces)))


def _paragraphs(rng: Random) -> Iterator[Passage]:
    cost = _cost
    while True:
        count = 3 + int(rng.random() * 5)
        pieces = [piece for index in range(count) for piece in _sentence(rng, is_first=not index)]
        pieces[-1] += "\n\n"
        yield Passage("".join(pieces), sum([cost(piece) for piece in pieces]))


def _sentence(rng: Random, *, is_first: bool) -> list[str]:
    """A sentence in pieces that end where a word ends, so that their tokens add up."""
    draw = rng.random
    pieces, tail = _PIECES[int(draw() * len(_PIECES))]
    chosen = [words[int(draw() * len(words))] for words in _SLOTS.values()]
    made = [literal + chosen[slot] for literal, slot in pieces]
    head = made[0]
    made[0] = head[0].upper() + head[1:] if is_first else f" {head[0].upper()}{head[1:]}"
    made.append(tail)
    return made


@cache
def _cost(piece: str) -> int:
    return count_tokens(piece)


SENTENCES = (
    "{person} kept the {thing} in {place}, {reason}.",
    "{time}, {person} went back to {place} and asked about the {thing}.",
    "The {thing} looked {quality}, but nobody in {place} had seen it arrive.",
    "It was {person} who first noticed that the {thing} and the {other} belonged together.",
    "{time} the road to {place} was closed, {reason}.",
    "{person} {manner} put the {thing} beside the {other} and said nothing more about it.",
    "Nobody could explain why the {thing} had been left in {place}.",
    "“We should have written this down,” said {person}, “{reason}.”",
    "According to {person}, the {thing} was older than anything else in {place}.",
    "The people of {place} spoke {manner} of the {other} for years afterwards.",
    "{time}, a letter about the {thing} reached {person} by way of {place}.",
    "If the {thing} had not been so {quality}, {person} would hardly have stopped to look.",
    "There were three opinions about the {other}, and {person} held two of them.",
    "{person} measured the {thing} twice and {manner} wrote the figures into a small book.",
    "Between {place} and the river there stood nothing but a {quality} wall.",
    "The {thing} was returned {time}, {reason}.",
    "Some said that {person} had sold the {thing}; others remembered it in {place}.",
    "What {person} wanted was a {quality} answer, and {place} was not the place to get it.",
    "{time} every window in {place} was lit, and {person} walked {manner} past all of them.",
    "The {other} had been mended so often that {person} called it the {quality} one.",
    "“Ask me again tomorrow,” said {person}, and {manner} closed the door.",
    "In {place} the {thing} was counted among the {quality} curiosities of the district.",
    "{person} had never trusted the {other}, {reason}.",
    "Two visitors came to {place} {time} and stayed until the {thing} was finished.",
    "The agreement mentioned the {thing} only once, in a {quality} footnote.",
    "{person} remembered {place} as it had been before the {thing} was moved.",
    "For a while the {other} stood in {place}, where {person} {manner} repaired it.",
    "{time}, the whole matter of the {thing} was taken up again by {person}.",
    "It seemed {quality} to {person} that the {thing} should end up in {place}.",
    "The younger visitors preferred the {other}, {reason}.",
    "A {quality} silence followed, which {person} used to look for the {thing}.",
    "From the tower of {place} one could see the {other} and half of the valley.",
    "{person} paid for the {thing} {manner}, in small coins, and left {place} before noon.",
    "Whoever had made the {thing} must have known {place} well.",
    "The second inventory listed a {quality} {thing} that the first had left out.",
    "{time}, {person} explained {manner} how the {other} was meant to be used.",
)

PEOPLE = (
    "the archivist", "Marta Olsen", "the harbour master", "old Mr. Pereira", "the schoolteacher",
    "Dr. Lindqvist", "the younger brother", "Ines Carvalho", "the watchmaker", "the innkeeper",
    "Captain Adeyemi", "the surveyor", "Mrs. Novak", "the night porter", "Tomas Brandt",
    "the apprentice", "the widow Hale", "the librarian", "Judge Moreau", "the bookbinder",
    "her cousin Elin", "the lighthouse keeper", "Professor Sato", "the glazier", "the two sisters",
    "the ferryman", "Yusuf Demir", "the gardener", "the former mayor", "the translator",
    "Anna Petrova", "the stonemason",
)  # fmt: skip

PLACES = (
    "the upper town", "the old granary", "the reading room", "Saint Alban", "the customs house",
    "the lower mill", "the village of Orrin", "the north gate", "the long gallery",
    "the market square", "the assembly hall", "the hill above the quay", "the printing works",
    "the inn at the crossing", "the eastern quarter", "the abbey", "the council chamber",
    "the valley of the Tarn", "the railway office", "the walled garden", "the back room",
    "the town of Veldt", "the ropewalk", "the orchard", "the station at Marrow",
    "the western stairs", "the pump room", "the district court", "the narrow street",
    "the observatory",
)  # fmt: skip

THINGS = (
    "ledger", "brass lamp", "map of the coast", "clock", "iron chest", "portrait",
    "collection of seals", "mirror", "bundle of letters", "model of the bridge", "telescope",
    "carpet", "almanac", "set of keys", "writing desk", "barometer", "painted screen",
    "copper bowl", "weaving loom", "notebook", "marble table", "glass case", "register of births",
    "silver tray", "compass", "folding chair", "atlas", "stone bench", "globe", "wooden ladder",
    "parcel", "calendar", "set of scales", "lantern", "inkwell", "chessboard", "inscription",
    "bookcase", "drawing of the tower", "bell",
)  # fmt: skip

TIMES = (
    "one evening in April", "before the second harvest", "a week later",
    "on the morning of the election", "not long after the fire", "in the following year",
    "toward the end of the month", "when the lamps were lit", "on the last day of the fair",
    "during the long vacation", "at the close of the meeting", "a little after seven",
    "in the spring of that year", "some time before the wedding", "that same afternoon",
    "early on Sunday", "after the bridge was opened", "at the turn of the century",
    "while the others were asleep", "in the third week of the journey",
)  # fmt: skip

QUALITIES = (
    "modest", "rather heavy", "curious", "well made", "narrow", "faded", "generous",
    "half forgotten", "solid", "doubtful", "pale", "costly", "plain", "handsome", "remarkable",
    "crooked", "patient", "polished", "rough", "simple", "quiet", "precise", "borrowed", "delicate",
    "formal", "dusty", "sensible", "surprising",
)  # fmt: skip

MANNERS = (
    "slowly", "with some pride", "without a word", "carefully", "almost cheerfully",
    "in great haste", "politely", "as usual", "with both hands", "reluctantly", "at some length",
    "in a low voice", "thoughtfully", "once more", "openly", "with a shrug", "in good order",
    "firmly", "patiently", "from memory",
)  # fmt: skip

REASONS = (
    "because the roof had begun to leak", "since no better place could be found",
    "for reasons that were never given", "as the law of the time required",
    "because someone had promised to collect it", "though the cost was considerable",
    "as her mother had done before her", "since the inspectors were expected",
    "although the room was already full", "because the contract said so",
    "which pleased almost everyone", "as far as anyone could tell",
    "because the stairs were being rebuilt", "since the key had been lost again",
    "and there the story might have ended", "until a buyer could be found",
    "for the light was better there", "which was thought unusual at the time",
    "because two of the witnesses disagreed", "as the guests had been told to expect",
)  # fmt: skip

_SLOTS = {
    "person": PEOPLE,
    "place": PLACES,
    "thing": THINGS,
    "other": THINGS,
    "time": TIMES,
    "quality": QUALITIES,
    "manner": MANNERS,
    "reason": REASONS,
}
"""What each slot of a sentence is drawn from; all are drawn for every sentence, in this order."""


def _split(sentence: str) -> tuple[list[tuple[str, int]], str]:
    """The slots of a sentence, each with the text before it, and the text after the last."""
    slots = list(_SLOTS)
    parsed = [(literal, name) for literal, name, _, _ in Formatter().parse(sentence)]
    pieces = [(literal, slots.index(name)) for literal, name in parsed if name]
    return pieces, "".join(literal for literal, name in parsed if not name)


_PIECES = tuple(map(_split, SENTENCES))
