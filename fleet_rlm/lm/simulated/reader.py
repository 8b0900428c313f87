"""Answers by reading: what the simulated model says about a text that stands in its prompt."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from fleet_rlm.lm.simulated.asks import Ask
from fleet_rlm.lm.simulated.plain import answers, find_sentences
from fleet_rlm.lm.simulated.skill import (
    count_error,
    draw,
    label_error,
    pick,
    reading_skill,
    sample_key,
)
from fleet_rlm.lm.simulated.world import (
    Question,
    answer,
    conclude,
    label_of,
    note_count,
    read_assignments,
    read_entries,
    read_lines,
    read_names,
    read_tally,
    relation_of,
    understand,
)

NOT_SURE = "I am not sure."


def tokens_of(text: str) -> int:
    """Tokens of a text, estimated as one per four characters."""
    return -(-len(text) // 4)


def read(question: Question, text: str, sample: str, *, stretch: float, seed: int) -> str:
    """The bare answer after reading all of `text` at once; wrong more often the longer it is.

    Args:
        sample: keys the luck.
        stretch: how much longer the text feels to the model.
        seed: of the model.
    """
    right = answer(question, text)
    if not right:
        return ""
    if draw(seed, "read", sample) < reading_skill(tokens_of(text) * stretch):
        return right
    return _misread(question, text, right, draw(seed, "misread", sample))


def read_plainly(query: str, text: str, sample: str, *, stretch: float, seed: int) -> str:
    """As `read`, for a question in words that this model does not know."""
    found = answers(query, find_sentences(query, text)[:5])
    if not found or draw(seed, "read", sample) < reading_skill(tokens_of(text) * stretch):
        return found[0] if found else ""
    others = found[1:] or [""]
    return others[int(draw(seed, "misread", sample) * len(others))]


def note_plainly(query: str, text: str) -> str:
    """As `take_notes`, for a question in words that this model does not know."""
    return "\n".join(f"{sentence}." for sentence in find_sentences(query, text)[:3]) or "nothing"


def take_notes(question: Question, text: str, *, stretch: float, seed: int) -> str:
    """What part of a longer text says about a question; "nothing" when it says nothing.

    Statements are copied, but missed more often in a longer part, and a remark behind one may be
    lost; lines are counted by eye.
    """
    if question.counts:
        lines = read_lines(question, text)
        labels = question.labels if not question.subject else (question.subject, question.other)
        guesses = _count([label for label in labels if label], lines, text, stretch, seed)
        return "\n".join(note_count(label, guess) for label, guess in guesses.items())
    if question.kind == "lookup":
        statements = [
            entry.text.partition(" (")[0] if draw(seed, "remark", entry.text) < 0.25 else entry.text
            for entry in read_entries(question, text)
        ]
    else:
        statements = [match[0] for match in read_assignments(question, text)]
    missed = (1 - reading_skill(tokens_of(text) * stretch)) / 2
    kept = [s for s in statements if draw(seed, "note", question.subject, s) >= missed]
    return "\n".join(f"{statement}." for statement in kept) or "nothing"


def answer_ask(ask: Ask, *, stretch: float, seed: int) -> str:
    """The reply to a sub-query of the model's own code."""
    if ask.kind == "find":
        question = understand(ask.question, ask.body[:2_000])
        key = sample_key(ask.question, ask.body)
        if question is None:
            plain = read_plainly(ask.question, ask.body, key, stretch=stretch, seed=seed)
            return plain or NOT_SURE
        return read(question, ask.body, key, stretch=stretch, seed=seed) or NOT_SURE
    lines = [line for line in ask.body.splitlines() if line.strip()]
    if ask.kind == "label":
        error = label_error(len(lines) * stretch)
        return "\n".join(_label(line, ask.labels, error, seed) for line in lines)
    guesses = _count(ask.labels, lines, ask.body, stretch, seed)
    if ask.kind == "count":
        return str(guesses[ask.labels[0]])
    return "\n".join(f"{label}: {guess}" for label, guess in guesses.items())


def _count(
    labels: Sequence[str], lines: Sequence[str], key: str, stretch: float, seed: int
) -> dict[str, int]:
    found = Counter(map(label_of, lines))
    reach = count_error(len(lines)) * stretch
    return {
        label: max(0, found[label] + round(reach * (2 * draw(seed, "count", label, key) - 1)))
        for label in labels
    }


def _label(line: str, options: tuple[str, ...], error: float, seed: int) -> str:
    label = label_of(line)
    if label not in options:
        return "other" if "other" in options else pick(options, seed, "guess", line)
    if not error or draw(seed, "label", line) >= error:
        return label
    others = [option for option in options if option != label] or list(options)
    return pick(others, seed, "mislabel", line)


def _misread(question: Question, text: str, right: str, luck: float) -> str:
    if question.kind == "lookup":
        others = sorted({e.value for e in read_entries(question, text)} - {right})
        return others[int(luck * len(others))] if others else NOT_SURE
    if question.kind == "trace":
        near = read_names(question, text, hops=1 + int(luck * 1.5))
        return ", ".join(near) if ", ".join(near) != right else ", ".join(near[::2])
    if question.kind == "count":
        off = max(2, round(int(right) * (0.05 + 0.3 * luck)))
        return str(max(0, int(right) + (off if luck < 0.5 else -off)))
    if question.kind == "compare":
        others = [r for r in map(relation_of, (0, 0, 1), (0, 1, 0)) if r != right]
        return others[int(luck * len(others))]
    tally = read_tally(question, text)
    del tally[right]
    rest = tuple(label for label in question.labels if label != right)
    return conclude(replace(question, labels=rest), tally)
