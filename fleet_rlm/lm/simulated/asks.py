"""The sub-queries that the simulated model's code sends, and how their text is understood again."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

_LABEL = re.compile(r"^(?:label|classify) (?:each|every)\b.*?\bone of: (?P<labels>[^.\n]+)\.", re.I)
_COUNT = re.compile(
    r"^how many of the (?:following )?(?:lines|instances|messages) .*?label '(?P<label>[^'\n]+)'",
    re.I,
)
_TALLY = re.compile(
    r"^count the (?:following )?(?:lines|instances) of each label: (?P<labels>[^.\n]+)\.",
    re.I,
)
_FIND = re.compile(
    r"^answer the question from the text\b.*?\nQuestion: (?P<question>.*?)\nText:\n",
    re.I | re.S,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """A sub-query understood."""

    kind: Literal["label", "count", "tally", "find"]
    labels: tuple[str, ...] = ()
    """The labels to choose from; for "count" the one to count."""

    question: str = ""
    body: str = ""
    """The lines or the text that it is about."""


def label_ask(labels: Sequence[str]) -> str:
    """The opening of a sub-query for one label per line; the lines follow."""
    return (
        f"Label each of the following lines with exactly one of: {', '.join(labels)}."
        " Reply with one label per line, in the same order, and nothing else.\n"
    )


def count_ask(label: str) -> str:
    """The opening of a sub-query for one number; the lines follow."""
    return (
        f"How many of the following lines belong to the label '{label}'? Reply with one number.\n"
    )


def tally_ask(labels: Sequence[str]) -> str:
    """The opening of a sub-query for one number per label; the lines follow."""
    return (
        f"Count the following lines of each label: {', '.join(labels)}."
        " Reply with one line 'label: number' for each.\n"
    )


def find_ask(question: str) -> str:
    """The opening of a sub-query that reads a text for an answer; the text follows."""
    return (
        "Answer the question from the text. Reply 'I am not sure.' when the text does not say.\n"
        f"Question: {question}\nText:\n"
    )


def parse_ask(text: str) -> Ask | None:
    """The sub-query that `text` is, or None when it is not one that this model knows."""
    head, _, body = text.partition("\n")
    if match := _LABEL.match(head):
        return Ask(kind="label", labels=_split(match["labels"]), body=body)
    if match := _COUNT.match(head):
        return Ask(kind="count", labels=(match["label"],), body=body)
    if match := _TALLY.match(head):
        return Ask(kind="tally", labels=_split(match["labels"]), body=body)
    if match := _FIND.match(text):
        return Ask(kind="find", question=match["question"], body=text[match.end() :])
    return None


def _split(labels: str) -> tuple[str, ...]:
    return tuple(label.strip() for label in labels.split(","))
