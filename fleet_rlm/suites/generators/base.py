"""What every generator is given and promises."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from random import Random
from typing import Any, ClassVar, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict

from fleet_rlm.suites.passages import Source
from fleet_rlm.suites.sample import AnyQuestion, Window

FILL = 0.95
"""A window holds at least this share of its target length, and never more than all of it."""


class Params(BaseModel):
    """Base of a generator's own parameters, the `[tasks.params]` table of a suite file."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    def identity(self) -> dict[str, Any]:
        """What of them shapes a window, ready for JSON: values other than the defaults, and the
        digests of files they name. A parameter added later changes no window's id."""
        return self.model_dump(mode="json", exclude_defaults=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """One window to write. Equal orders give equal windows, on every machine."""

    generator: str
    """Name and version of the generator, so that two generators never share random streams."""

    length: int
    """Target length of the context in tokens."""

    seed: int
    window: int
    """0-based; orders that differ in this alone share what is balanced over windows."""

    questions: int
    source: Source
    """Running text to plant lines in; generators that write all of their text leave it alone."""

    def rng(self, purpose: str) -> Random:
        """A random stream of this window and purpose."""
        return Random(f"{self._key}/{self.window}/{purpose}")

    def shared_rng(self, purpose: str) -> Random:
        """A random stream that all windows of one seed and length share."""
        return Random(f"{self._key}/{purpose}")

    @property
    def _key(self) -> str:
        return f"{self.generator}/{self.seed}/{self.length}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A window whose text is still in blocks, so that it can go to a file as it is written."""

    blocks: Iterable[str]
    """The context in order; may be read once only."""

    tokens: int
    """Length of the whole context in tokens, known before it is written."""

    questions: tuple[AnyQuestion, ...]

    def window(self) -> Window:
        """The window with its text in memory."""
        text = ""
        for block in self.blocks:
            # CPython grows the one local reference in place: a list and a join hold it all twice.
            text += block
        return Window(context=text, tokens=self.tokens, questions=self.questions)


P = TypeVar("P", bound=Params, contravariant=True)


class Generator(Protocol[P]):
    """Writes windows with questions whose gold answers it knows.

    `draft` is a function of its arguments alone: no clock, no global randomness, no `hash`, no set
    order. It is called from many threads. A change of any output raises `version`.
    """

    name: ClassVar[str]
    version: ClassVar[int]
    rule: ClassVar[str]
    """Name of the scoring rule, a key of `fleet_rlm.scoring.RULES`."""

    uses_corpus: ClassVar[bool]
    """Whether lines are planted in running text, hence also in a user's corpus."""

    least: ClassVar[str]
    """What `min_length` is made of, in words: tokens."""

    max_questions: ClassVar[int]
    """Per window."""

    params: ClassVar[type[Params]]

    def min_length(self, params: P, questions: int) -> int:
        """The shortest target length, in tokens, that `draft` can keep."""

    def draft(self, order: Order, params: P) -> Draft:
        """The window of `order`: `order.questions` questions and 95 to 100 % of the target length.

        Raises:
            DataError: the source cannot carry the lines.
        """

    def solve(self, params: P, context: str, query: str) -> tuple[str, ...]:
        """The gold answer, found a second time from nothing but the text and the query.

        Shares no code with `draft` but wording and tables: the audit compares the two, and the
        oracle program answers with it.
        """


def spread(index: int, shift: float) -> float:
    """Point `index` of an evenly spread sequence in [0, 1): any number of first points is balanced,
    and 2**k of them hit each of 2**k equal cells once.

    Source: van der Corput 1935, base 2, rotated by `shift`.
    """
    value, step = 0.0, 0.5
    while index:
        value += step * (index & 1)
        index >>= 1
        step /= 2
    return (value + shift) % 1.0
