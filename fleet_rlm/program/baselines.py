"""Baselines that answer with one prompt: the whole text, parts of it, or nothing of it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import ClassVar

import dspy
from dspy.utils.exceptions import ContextWindowExceededError

from fleet_rlm.lm.prices import find_window
from fleet_rlm.program.mapreduce import MapReduce
from fleet_rlm.program.pieces import Piece, cut, keep_ends
from fleet_rlm.program.reader import Reader, TextProgram, tell
from fleet_rlm.program.recursion import ProgramSettings, Range
from fleet_rlm.program.router import Router
from fleet_rlm.suites.tokens import count_tokens

WINDOW = 128_000
"""Input tokens of a model whose window the price list does not tell."""

# Of a window, in turn: a model's own tokenizer may find more tokens than ours, which only its
# service knows.
_USABLE = (0.9, 0.68, 0.5)

_HEAD_TOKENS = 24  # of `_head`, at most

_WORD = re.compile(r"\w+")


class Direct(TextProgram):
    """The whole text in one prompt; a text beyond the model's window is the service's to refuse."""

    summary = "baseline: the whole context in one prompt, no code"

    def build(self, guidance: str, settings: ProgramSettings) -> None:
        self.answer = Reader(self.signature)

    def answer_from(self, text: str, query: str) -> dspy.Prediction:
        found = self.answer(context=text, query=query)
        return tell(found, "Read the whole context.", stop="answered")


WITHHELD = "[The text is withheld. Answer from what you know, or say that you do not know.]"


class Blind(TextProgram):
    """The question without its text: what a model remembers or guesses.

    A score above the floor says that answers can be known without reading: the benchmark was in the
    training data, or the question gives them away.
    """

    summary = "probe: the query without the context, for what a model knows or guesses"

    def build(self, guidance: str, settings: ProgramSettings) -> None:
        self.answer = Reader(self.signature)

    def answer_from(self, text: str, query: str) -> dspy.Prediction:
        return tell(self.answer(context=WITHHELD, query=query), "Read nothing.", stop="answered")


class TruncateSettings(ProgramSettings):
    """The knob of `Truncate`."""

    SPEC: Mapping[str, Range] = {"max_tokens": Range(0, 0, 100_000_000)}
    """`max_tokens`: tokens of the whole prompt; 0 for nine tenths of the model's window, and less
    where its service finds that too long."""


class Truncate(TextProgram):
    """As much of the text as fits: its beginning and its end, the middle left out.

    The rule of LongBench; see `keep_ends`. The prediction's `dropped_tokens` says how much is
    missing.
    """

    summary = "baseline: beginning and end of the context in one prompt, the middle left out"
    settings_type: ClassVar = TruncateSettings

    def build(self, guidance: str, settings: ProgramSettings) -> None:
        self.answer = Reader(self.signature)
        self.settings = settings

    def answer_from(self, text: str, query: str) -> dspy.Prediction:
        window = input_window(self.answer.lm or dspy.settings.lm)
        told = self.settings["max_tokens"]
        refused: ContextWindowExceededError | None = None
        for max_tokens in [told] if told else [int(share * window) for share in _USABLE]:
            kept = keep_ends(text, self.answer.room(max_tokens, text="context", query=query))
            try:
                found = self.answer(context=kept.text, query=query)
            except ContextWindowExceededError as error:
                refused = error
                continue
            way = f"Read {kept.tokens - kept.dropped:,} of {kept.tokens:,} tokens, the two ends."
            return tell(found, way, stop="answered", dropped_tokens=kept.dropped)
        raise refused or AssertionError("a budget was tried")


def input_window(lm: object) -> int:
    """Input tokens that a model takes, by the price list; `WINDOW` where that does not say."""
    return find_window(str(getattr(lm, "model", ""))) or WINDOW


class BM25Settings(ProgramSettings):
    """The knobs of `BM25`."""

    SPEC: Mapping[str, Range] = {
        "max_tokens": Range(16_000, 100, 100_000_000),
        "passage_tokens": Range(250, 20, 100_000),
        "passages": Range(50, 1, 100_000),
    }
    """`max_tokens`: tokens of the whole prompt.
    `passage_tokens`: tokens of one passage; whole lines, where a line is not longer.
    `passages`: how many are shown, best first, as far as the prompt has room."""


class BM25(TextProgram):
    """The passages that BM25 finds for the query, in the order of the text, in one prompt.

    The prediction's `passages` are [start, end] in characters; `dropped_tokens` says how much of
    the text was not shown.
    """

    summary = "baseline: the passages that a BM25 search finds for the query in one prompt"
    settings_type: ClassVar = BM25Settings

    def build(self, guidance: str, settings: ProgramSettings) -> None:
        self.answer = Reader(self.signature)
        self.settings = settings

    def answer_from(self, text: str, query: str) -> dspy.Prediction:
        room = self.answer.room(self.settings["max_tokens"], text="context", query=query)
        pieces = cut(text, min(self.settings["passage_tokens"], room - _HEAD_TOKENS))
        order = rank([text[piece.start : piece.end] for piece in pieces], query)
        best = [pieces[index] for index in order[: self.settings["passages"]]]
        chosen = _within(best, room)
        shown = "\n".join(_head(piece) + text[piece.start : piece.end] for piece in chosen)
        found = self.answer(context=shown, query=query)
        return tell(
            found,
            f"Read {len(chosen):,} of {len(pieces):,} passages.",
            stop="answered",
            passages=[[piece.start, piece.end] for piece in chosen],
            dropped_tokens=sum(p.tokens for p in pieces) - sum(p.tokens for p in chosen),
        )


def rank(passages: Sequence[str], query: str) -> list[int]:
    """Indices of passages, best first by BM25 (Lucene's variant, k1 1.5, b 0.75), ties in order.

    Words are runs of letters, digits and underscores, lower-cased; nothing is stemmed or left out,
    so it behaves alike in every language that puts spaces between words.
    """
    words = [_WORD.findall(passage.lower()) for passage in passages]
    asked = list(dict.fromkeys(_WORD.findall(query.lower())))
    if not asked or not any(words):
        return list(range(len(passages)))
    import bm25s  # type: ignore[import-untyped] # it has no types; loading it takes 0.4 s

    index = bm25s.BM25()
    index.index(words, show_progress=False)
    scores = index.get_scores(asked).tolist()
    return sorted(range(len(passages)), key=lambda i: (-scores[i], i))


def _within(pieces: Sequence[Piece], room: int) -> list[Piece]:
    """The first pieces that fit into `room` tokens together, in the order of the text."""
    chosen: list[Piece] = []
    for piece in pieces:
        room -= piece.tokens + count_tokens(_head(piece)) + 1
        if room < 0:
            break
        chosen.append(piece)
    return sorted(chosen)


def _head(piece: Piece) -> str:
    return f"[characters {piece.start:,} to {piece.end:,}]\n"


BASELINES: Mapping[str, type[TextProgram]] = {
    "direct": Direct,
    "truncate": Truncate,
    "bm25": BM25,
    "mapreduce": MapReduce,
    "router": Router,
    "blind": Blind,
}
"""Program name -> class. Each says what it is (`summary`), whether it needs a sandbox (`runs_code`)
and what may be set (`settings_type`), and is made as `TextProgram` says."""
