"""Made-up words and names, as many different ones as any length needs."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from uuid import UUID

ADJECTIVES = (
    "amber", "ancient", "bashful", "blunt", "brisk", "candid", "careful", "chilly", "clever",
    "coarse", "crisp", "daring", "distant", "eager", "earnest", "elegant", "faint", "fierce",
    "frugal", "gentle", "giddy", "graceful", "grumpy", "hasty", "hollow", "humble", "idle", "jolly",
    "keen", "lanky", "lively", "lofty", "lucid", "mellow", "modern", "muddy", "nimble", "noble",
    "oblong", "pensive", "placid", "prickly", "proud", "quaint", "rapid", "rustic", "sandy",
    "scarce", "serene", "shady", "silent", "slender", "sleepy", "stately", "steady", "sturdy",
    "subtle", "tender", "tidy", "vivid", "wary", "weary", "witty", "zealous",
)  # fmt: skip
NOUNS = (
    "acorn", "anchor", "arcade", "balcony", "barrel", "beacon", "bridge", "bucket", "cabinet",
    "canyon", "castle", "cavern", "chapel", "cliff", "corridor", "cottage", "cradle", "curtain",
    "dagger", "desert", "doorway", "easel", "engine", "fabric", "fountain", "garland", "gateway",
    "glacier", "hammer", "harbor", "hinge", "island", "ivory", "jacket", "jigsaw", "kettle",
    "ladder", "lagoon", "locket", "magnet", "marble", "meadow", "mirror", "needle", "nickel",
    "oasis", "orchard", "paddle", "palace", "pebble", "pillar", "plateau", "pocket", "prism",
    "quarry", "ribbon", "saddle", "satchel", "shovel", "spindle", "summit", "tavern", "temple",
    "thimble", "thread", "timber", "tower", "tunnel", "turbine", "valley", "velvet", "vessel",
    "village", "volcano", "wharf", "whistle", "willow", "window", "workshop", "zipper",
)  # fmt: skip
_ONSETS = ("b", "d", "f", "g", "k", "l", "m", "n", "p", "r", "s", "t", "v", "z", "br", "dr", "tr")
_VOWELS = ("a", "e", "i", "o", "u", "ai", "ea")
_SYLLABLES = tuple(onset + vowel for onset in _ONSETS for vowel in _VOWELS)
_CODAS = ("", "l", "n", "r", "s")


def distinct(rng: Random, space: int) -> Iterator[int]:
    """All numbers below `space` in an order that looks random, without holding them.

    A linear congruential walk of full period: Hull and Dobell 1962.
    """
    step = 4 * rng.randrange(1, max(2, space // 8)) + 1
    modulus = 1 << max(3, (space - 1).bit_length())
    add = 2 * rng.randrange(modulus // 2) + 1
    value = rng.randrange(modulus)
    # The low bits of such a walk are poor; turning the number over hides them.
    bits = modulus.bit_length() - 1
    for _ in range(modulus):
        value = (step * value + add) % modulus
        turned = int(f"{value:0{bits}b}"[::-1], 2)
        if turned < space:
            yield turned


def keys(rng: Random, *, nouns: int = 1) -> Iterator[str]:
    """Different keys "adjective-noun", RULER's form: 5,120, and 80 times more a further noun."""
    width, height = len(ADJECTIVES), len(NOUNS)
    for number in distinct(rng, width * height**nouns):
        rest, adjective = divmod(number, width)
        parts = [ADJECTIVES[adjective]]
        for _ in range(nouns):
            rest, noun = divmod(rest, height)
            parts.append(NOUNS[noun])
        yield "-".join(parts)


def numbers(rng: Random, digits: int = 7) -> Iterator[str]:
    """Different numbers of so many digits."""
    least: int = 10 ** (digits - 1)
    return (str(least + number) for number in distinct(rng, 9 * least))


def uuids(rng: Random) -> Iterator[str]:
    """Random UUIDs of version 4; equal ones are out of reach of chance."""
    while True:
        yield str(UUID(int=rng.getrandbits(128), version=4))


def coined(rng: Random, syllables: int = 3) -> Iterator[str]:
    """Different made-up words such as "trelovan"; three syllables give eight million."""
    base = len(_SYLLABLES)
    for number in distinct(rng, base**syllables * len(_CODAS)):
        rest, coda = divmod(number, len(_CODAS))
        parts = []
        for _ in range(syllables):
            rest, part = divmod(rest, base)
            parts.append(_SYLLABLES[part])
        yield "".join(parts) + _CODAS[coda]
