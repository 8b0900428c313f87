"""RULER's two counting tasks: the most common words of a list, the most frequent coded words.

After NVIDIA/RULER c3f5e3b (Apache-2.0), scripts/synthetic.yaml: its counts and its zeta
distribution, words and queries of our own. No tie decides an answer.
"""

from __future__ import annotations

import re
from collections import Counter
from itertools import islice
from typing import ClassVar, Literal

import numpy as np

from fleet_rlm.suites.generators import filling, words
from fleet_rlm.suites.generators.base import Draft, Order, Params
from fleet_rlm.suites.sample import Question

ASK_COMMON = (
    "What are the 10 most common words in the numbered list?"
    " Answer with the 10 words only, separated by commas."
)
ASK_FREQUENT = (
    "The text is coded. Ignoring the dots '...', what are the three most frequent coded words?"
    " Answer with the three words only, separated by commas."
)
_WANTED = {"cwe": 10, "fwe": 3}
_SHORT = 4000  # tokens; below, RULER's 30 and 3 repeats leave no room for other words
_ALPHA = 2.0
_LINE_WORDS = 16


class RulerWordsParams(Params):
    """Knobs of `ruler_words`."""

    task: Literal["cwe", "fwe"] = "cwe"
    """RULER's name of the task: common words, or frequent words."""


class RulerWords:
    """Writes `ruler_words` windows."""

    name: ClassVar = "ruler_words"
    version: ClassVar = 1
    rule: ClassVar = "match-all"
    uses_corpus: ClassVar = False
    least: ClassVar = "1,000"
    max_questions: ClassVar = 1
    params: ClassVar[type[Params]] = RulerWordsParams

    def min_length(self, params: RulerWordsParams, questions: int) -> int:
        return 1000

    def draft(self, order: Order, params: RulerWordsParams) -> Draft:
        make = _common if params.task == "cwe" else _frequent
        wanted, lines, tokens = make(order)
        question = Question(
            query=ASK_COMMON if params.task == "cwe" else ASK_FREQUENT,
            gold=tuple(sorted(wanted)),
            answer_type="set",
            kind=params.task,
        )
        return Draft(blocks=filling.blocks("", lines), tokens=tokens, questions=(question,))

    def solve(self, params: RulerWordsParams, context: str, query: str) -> tuple[str, ...]:
        found = Counter(re.findall(r"[a-z]+", context)).most_common(_WANTED[params.task])
        return tuple(sorted(word for word, _ in found))


def _common(order: Order) -> tuple[list[str], list[str], int]:
    """Ten words 30 times each among words 3 times each; 6 times and once in a short text."""
    often, seldom = (30, 3) if order.length >= _SHORT else (6, 1)

    def make(others: int) -> list[str]:
        chosen = list(islice(words.coined(order.rng("words")), _WANTED["cwe"] + others))
        common, rest = chosen[: _WANTED["cwe"]], chosen[_WANTED["cwe"] :]
        listed = common * often + rest * seldom
        order.rng("order").shuffle(listed)
        return [f"{number}. {word}\n" for number, word in enumerate(listed, 1)]

    common = list(islice(words.coined(order.rng("words")), _WANTED["cwe"]))
    return common, *filling.fit(make, order.length, order.length // (8 * seldom))


def _frequent(order: Order) -> tuple[list[str], list[str], int]:
    """Coded words whose frequency falls with the square of their rank; the first is noise."""
    size = max(50, min(order.length // 50, 50_000))
    coined = ["...", *islice(words.coined(order.rng("words")), size)]
    shares = np.arange(1.0, len(coined) + 1) ** -_ALPHA
    table = np.array(coined, dtype=object)

    def make(count: int) -> list[str]:
        counts = np.floor(count * shares / shares.sum()).astype(np.intp)
        coded = np.repeat(np.arange(len(coined)), counts)
        filling.frozen_numpy(order.rng("order")).shuffle(coded)
        listed: list[str] = table[coded].tolist()
        return [
            " ".join(listed[start : start + _LINE_WORDS]) + "\n"
            for start in range(0, len(listed), _LINE_WORDS)
        ]

    return coined[1 : 1 + _WANTED["fwe"]], *filling.fit(make, order.length, order.length // 3)
