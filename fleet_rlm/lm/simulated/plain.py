"""Questions in any words: the sentence that shares most with one, and what it adds to it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from math import log

_SENTENCE = re.compile(r"[^\n.!?]+(?:[.!?](?!\s|$)[^\n.!?]+)*")
_WORD = re.compile(r"\w+(?:[-'’]\w+)*")
_NAME = re.compile(r"[A-Z][\w'’-]*(?: [A-Z][\w'’-]*)*")
_PLACE = re.compile(r"\b(?:in|at|to|from|into|on|near|behind|under) (?:the )?(.+)$")
_ASKS_WHO = re.compile(r"\b(?:who|whom|whose)\b", re.I)
_ASKS_WHERE = re.compile(r"\bwhere\b", re.I)
_COMMON = frozenset(
    re.findall(
        r"\w+",
        "a an and are as at be by did do does for from had has have how in into is it its of on or"
        " that the their there they this to was were what when where which who whom whose why will"
        " with answer question text many much",
    )
)

STEM = 5
"""Letters by which words are taken for forms of one word: "moved" and "moves"."""

ENOUGH = 0.5
"""Share of a question's weight that a sentence must hold to say something about it."""


def find_sentences(query: str, text: str) -> list[str]:
    """Sentences of a text that say something about a question, best first.

    A sentence scores the weights of the question's words in it, of words that few sentences have
    more than of others (inverse document frequency). Where the question names somebody or
    something, a sentence must name one of them.
    """
    asked = _stems(query)
    named = _stems(" ".join(_NAME.findall(query[1:])))
    sentences = [(s.strip(), asked & _stems(s)) for s in _SENTENCE.findall(text) if s.strip()]
    spread = Counter(stem for _, shared in sentences for stem in shared)
    weights = {stem: log(1 + (1 + len(sentences)) / (1 + spread[stem])) for stem in asked}
    need = ENOUGH * sum(weights.values())
    scores: dict[str, float] = {
        sentence: sum(sorted(weights[stem] for stem in shared))
        for sentence, shared in sentences
        if (named & shared if named else shared)
    }
    return sorted((s for s in scores if scores[s] >= need), key=lambda s: -scores[s])


def answer_from(query: str, sentence: str) -> str:
    """What a sentence adds to a question: a name, a place, a number, or its end."""
    asked = _stems(query)
    if _ASKS_WHERE.search(query) and (place := _PLACE.search(sentence)):
        return str(place[1])
    names = [m for m in _NAME.finditer(sentence) if _stems(m[0]) and not _stems(m[0]) & asked]
    if _ASKS_WHO.search(query) and names:
        return names[-1][0]
    words = [match for match in _WORD.finditer(sentence) if not _stems(match[0]) & asked]
    last = max((m.end() for m in _WORD.finditer(sentence) if _stems(m[0]) & asked), default=0)
    numbers = [match[0] for match in words if match[0][0].isdigit()]
    later = [match[0] for match in words if match[0][0].isdigit() and match.start() >= last]
    later += numbers + [match[0] for match in names if match.start()][-1:]
    return later[0] if later else sentence[last:].strip(" :,;-")


def answers(query: str, sentences: Iterable[str]) -> list[str]:
    """The different answers that sentences give, in their order."""
    found = (answer_from(query, sentence) for sentence in sentences)
    return list(dict.fromkeys(answer for answer in found if answer))


def _stems(text: str) -> set[str]:
    found = (word.lower() for word in _WORD.findall(text))
    return {word[:STEM] for word in found if word not in _COMMON}
