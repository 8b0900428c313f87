"""The simulated model as a writer of prompts: what it proposes, how it reflects on feedback."""

from __future__ import annotations

import json
import re
from typing import NamedTuple

from fleet_rlm.lm.simulated.chat import RECALL_ADVICE
from fleet_rlm.lm.simulated.skill import ABILITIES, HARM, Ability, draw, pick
from fleet_rlm.lm.simulated.world import understand

_IDLE = (
    "You are a meticulous analyst of long documents.",
    "A mistake here would cost the company millions.",
    "Work step by step and stay organised.",
)
_HARMFUL = (
    "Answer immediately and do not waste steps.",
    "Pass the whole context to one sub-query, which has a large window.",
)
_SIZES = ("20", "60", "120", "250")

_FINE = re.compile(r"\b(?:correct|right|perfect|score of 1(?:\.0+)?)\b(?!%)", re.I)
_BLAME = re.compile(r"\b(?:incorrect|wrong|not|but|expected|missing|too|failed|another)\b", re.I)
_HINTS = {
    "form": r"stands? in the answer|commit to one|(?:code|value) only|extra words|\bform(?:at)?\b",
    "exact": r"revoked|another line|similar|longer (?:name|one)|distractor|wrong code",
    "hops": r"names? (?:is|are) missing|\bhops?\b|indirect|do not belong",
    "label": r"too (?:high|low)|off by|classify|count(?:ed)? (?:is|was)? ?(?:wrong|off)",
    "chunk": r"too (?:high|low) by|off by|too (?:long|many lines)|context rot",
    "verify": r"left out|incomplete|missing|too low",
}
_MATTERS = {
    "lookup": ("exact", "form", "explore"),
    "trace": ("hops", "verify", "form"),
}
_MATTERS_TO_COUNTS = ("label", "chunk", "verify", "form")


class _Example(NamedTuple):
    text: str
    feedback: str


def propose(basic: str, seen: str, *, key: object, seed: int) -> str:
    """An instruction for a module: the basic one and some advice, good, idle or harmful.

    Args:
        basic: the instruction to start from.
        seen: demos and descriptions; abilities that they show are named more often.
        key: tells this request from others.
        seed: of the model.
    """
    advice = [
        _advice(ability, key, seed)
        for ability in ABILITIES
        if draw(seed, "advise", ability.name, key) < (0.60 if ability.sign.search(seen) else 0.35)
    ]
    advice += [text for text in _IDLE if draw(seed, text, key) < 0.30]
    advice += [text for text in _HARMFUL if draw(seed, text, key) < 0.10]
    # Where the instruction also carries the tools, real proposers sometimes lose them.
    if "llm_query" in basic and draw(seed, "lose", key) < 0.12:
        basic = basic.split("\n", 1)[0]
    return _with_advice([basic], advice)


def reflect(current: str, evidence: str, *, key: object, seed: int) -> str:
    """The current instruction, mended in the light of examples and their feedback.

    Advice that hurts is dropped; one or two pieces are added, those first that the feedback hints
    at, then those that matter to the questions that failed.
    """
    kept = [line for line in current.splitlines() if not HARM.search(line)]
    examples = _parse_examples(evidence)
    failed = [example for example in examples if _is_blame(example.feedback)]
    if examples and not failed:
        return _with_advice(kept, [pick(_IDLE, seed, "idle", key)])
    blame = "\n".join(example.feedback for example in failed)
    hinted = {name for name, hint in _HINTS.items() if re.search(hint, blame, re.I)}
    matters = {name for example in failed for name in _what_matters(example.text)}
    if "conversation" in blame and RECALL_ADVICE not in current:
        return _with_advice(kept, [RECALL_ADVICE])
    missing = sorted(
        (ability for ability in ABILITIES if not ability.cue.search(current)),
        key=lambda a: (a.name not in hinted, a.name not in matters, draw(seed, a.name, key)),
    )
    added = missing[: max(1, min(2, len(hinted)))]
    return _with_advice(kept, [_advice(ability, key, seed) for ability in added])


def shorten(instruction: str, max_chars: int) -> str:
    """The instruction without lines, idle ones first, until it fits."""
    lines = instruction.splitlines()
    while len("\n".join(lines)) > max_chars and len(lines) > 1:
        idle = [i for i, line in enumerate(lines) if i and not _is_useful(line)]
        del lines[idle[-1] if idle else -1]
    return "\n".join(lines)[:max_chars]


def describe(text: str) -> str:
    """What the model notices about data or about a program."""
    question = understand(text)
    kind = question.kind if question else None
    topic = {
        None: "running text",
        "lookup": "values to look up by name among similar names",
        "trace": "assignments to follow",
    }.get(kind, "many lines to classify and count")
    return f"Long line-oriented documents with {topic}; answers are short and have a fixed form."


def _with_advice(instruction: list[str], advice: list[str]) -> str:
    return "\n".join([*instruction, *(f"- {text}" for text in advice)]).strip()


def _advice(ability: Ability, key: object, seed: int) -> str:
    return ability.advice.format(lines=pick(_SIZES, seed, "size", key))


def _parse_examples(evidence: str) -> list[_Example]:
    try:
        found = json.loads(evidence)
    except ValueError:
        blocks = re.split(r"^# Example \d+$", evidence, flags=re.M)[1:]
        return [_Example(b, b.partition("## Feedback\n")[2].strip()) for b in blocks]
    # Python's own rendering keeps a query on one line, as its wording is matched.
    examples = found if isinstance(found, list) else [found]
    return [_Example(str(e), str(e.get("Feedback", ""))) for e in examples if isinstance(e, dict)]


def _is_blame(feedback: str) -> bool:
    return bool(feedback) and bool(_BLAME.search(feedback) or not _FINE.search(feedback))


def _is_useful(line: str) -> bool:
    return any(ability.cue.search(line) for ability in ABILITIES)


def _what_matters(example: str) -> tuple[str, ...]:
    question = understand(example)
    if question is None:
        return ()
    return _MATTERS.get(question.kind, _MATTERS_TO_COUNTS)
