"""What the simulated model understands: questions by their wording, and how to answer them.

Plain text in, values out. Its only knowledge of the world is `fleet_rlm.lexicon`.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import Literal, NamedTuple

from fleet_rlm.lexicon import SUBJECT_OF

Kind = Literal["lookup", "trace", "count", "most", "least", "compare"]
Relation = Literal["more common than", "less common than", "same frequency as"]

MARKER = "Instance: "
"""Stands before the instance on each line of a text to be aggregated."""

_QUOTED = r"['\"]([^'\"\n]+)['\"]"
_LOOKUP = re.compile(r"what is the (?:current |latest )?([\w ]+?) (?:for|of) ([^?\n]+?)\s*\?", re.I)
_TRACE = re.compile(
    r"\bvalue ['\"]?([\w.-]+?)['\"]? after following all (?:the )?(\w+) assignments",
    re.I,
)
_COUNT = re.compile(rf"how many (?:\w+ ){{0,4}}should be classified as (?:label )?{_QUOTED}", re.I)
_EXTREME = re.compile(r"which of the labels is the (most|least) common", re.I)
_COMPARE = re.compile(
    rf"is label {_QUOTED} more common than, less common than,? or .{{0,60}}?label {_QUOTED}",
    re.I,
)
_USER = re.compile(r"(?:among|only|for) the instances of user (\w+)", re.I)
_LABELS = re.compile(r"one of (?:the|these) labels: ([^.\n]+)")
_FORM = re.compile(r"in the form '([^'\n]+)'")
_NOTED = re.compile(r"instances of label '([^'\n]+)': (\d+)")
_WORD = re.compile(r"[a-z]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is asked, whatever names the inputs have."""

    kind: Kind
    subject: str = ""
    """The name looked up, the value traced, the label counted, or the first label compared."""

    relation: str = ""
    """What is looked up ("access code"), or the keyword of the assignments ("VAR")."""

    other: str = ""
    """The second label of a comparison."""

    user: str = ""
    """Count only this user's lines."""

    labels: tuple[str, ...] = ()
    """The labels that a line may have, where the text names them."""

    form: str = ""
    """The form asked for, such as "Answer: number"; empty for the bare value."""

    @property
    def counts(self) -> bool:
        """Whether the answer needs every line labelled."""
        return self.kind not in ("lookup", "trace")


class Entry(NamedTuple):
    """One statement of a value: whose, which, and whether it says that it is no longer valid."""

    name: str
    value: str
    stale: bool
    text: str


def understand(query: str, context: str = "") -> Question | None:
    """The question that `query` asks, or None when the wording says nothing to this model.

    Args:
        query: the question.
        context: the beginning of the text it is about, where the labels may be listed.
    """
    form = match[1] if (match := _FORM.search(query)) else ""
    if match := _TRACE.search(query):
        return Question(kind="trace", subject=match[1], relation=match[2], form=form)
    labels = _labels(query) or _labels(context)
    if match := _COMPARE.search(query):
        return Question(kind="compare", subject=match[1], other=match[2], labels=labels, form=form)
    user = match[1] if (match := _USER.search(query)) else ""
    if match := _COUNT.search(query):
        return Question(kind="count", subject=match[1], user=user, labels=labels, form=form)
    if match := _EXTREME.search(query):
        kind: Kind = "most" if match[1].lower() == "most" else "least"
        return Question(kind=kind, user=user, labels=labels, form=form)
    if match := _LOOKUP.search(query):
        return Question(kind="lookup", subject=match[2], relation=match[1], form=form)
    return None


def in_form(question: Question, value: str) -> str:
    """`value` in the form that the question asks for."""
    head, slot = split_form(question)
    return f"{head}{value}{slot}"


def split_form(question: Question) -> tuple[str, str]:
    """What stands before and after the value in the form asked for."""
    if "[X]" in question.form:
        head, _, tail = question.form.partition("[X]")
        return head, tail
    return re.sub(r"\b\w+$", "", question.form), ""


def relation_of(a: int, b: int) -> Relation:
    """How a count of `a` compares with a count of `b`."""
    if a == b:
        return "same frequency as"
    return "more common than" if a > b else "less common than"


def label_of(line: str) -> str | None:
    """The subject that a line is about, or None when it holds no word the model knows."""
    return next((SUBJECT_OF[w] for w in _WORD.findall(line.lower()) if w in SUBJECT_OF), None)


def read_entries(question: Question, text: str) -> list[Entry]:
    """Every statement of the looked-up relation about the name or one that begins like it."""
    words = r"\s+".join(map(re.escape, question.relation.split()))
    name = re.escape(question.subject)
    pattern = rf"{words}\s+for\s+({name}[\w-]*)\s+is\s+([\w-]+)(\s*\([^)\n]*\))?"
    return [Entry(m[1], m[2], "revoked" in (m[3] or ""), m[0]) for m in re.finditer(pattern, text)]


def read_assignments(question: Question, text: str) -> list[re.Match[str]]:
    """Every assignment, as a match of its name and its value."""
    word = re.escape(question.relation)
    return list(re.finditer(rf"\b{word}\s+(\w+)\s*=\s*(?:{word}\s+)?(\w+)", text))


def read_names(question: Question, text: str, *, hops: int = 1_000_000) -> list[str]:
    """Names that reach the traced value in at most `hops` assignments, in order of appearance."""
    value_of = {m[1]: m[2] for m in read_assignments(question, text)}

    def final(name: str) -> str:
        for _ in range(min(hops, len(value_of))):
            if name not in value_of:
                break
            name = value_of[name]
        return name

    return [name for name in value_of if final(name) == question.subject]


def read_lines(question: Question, text: str) -> list[str]:
    """The lines with the instances that are asked about."""
    mine = f"User: {question.user} " if question.user else ""
    return [line for line in text.splitlines() if MARKER in line and mine in line]


def note_count(label: str, count: int) -> str:
    """How a note on part of a text says a count, as `read_tally` reads it again."""
    return f"instances of label '{label}': {count}"


def read_tally(question: Question, text: str) -> Counter[str]:
    """How often each label occurs on the lines asked about, or by the notes on such lines."""
    lines = read_lines(question, text)
    tally = Counter(label for label in map(label_of, lines) if label)
    if not lines:
        for label, count in _NOTED.findall(text):
            tally[label] += int(count)
    return tally


def conclude(question: Question, tally: Counter[str]) -> str:
    """The bare answer to a counting question."""
    if question.kind == "count":
        return str(tally[question.subject])
    if question.kind == "compare":
        return relation_of(tally[question.subject], tally[question.other])
    labels = question.labels or tuple(sorted(tally)) or ("unknown",)
    pick = max if question.kind == "most" else min
    return pick(labels, key=lambda label: tally[label])


def answer(question: Question, text: str) -> str:
    """The bare answer that careful reading of `text` gives; empty when the text holds none."""
    if question.kind == "lookup":
        current = [e for e in read_entries(question, text) if e.name == question.subject]
        return next((e.value for e in current if not e.stale), "")
    if question.kind == "trace":
        return ", ".join(read_names(question, text))
    tally = read_tally(question, text)
    return conclude(question, tally) if tally or MARKER in text else ""


def _labels(text: str) -> tuple[str, ...]:
    match = _LABELS.search(text)
    return tuple(label.strip() for label in match[1].split(",")) if match else ()
