"""LongBench v2's own scoring rule, bug for bug.

Source: THUDM/LongBench (MIT), pred.py: `extract_answer`. Case matters, a colon breaks it, and the
first phrase wins: "The correct answer is Because" says B.
"""

from __future__ import annotations

import re

_FORMS = (
    re.compile(r"The correct answer is \(([A-D])\)"),
    re.compile(r"The correct answer is ([A-D])"),
)
_BARE = re.compile(r"\s*[\[(]?([A-Da-d])[\])]?\s*\.?\s*")


def parse(output: str) -> str | None:
    """The letter that the benchmark reads in a model's `output`; None is a wrong answer."""
    text = output.replace("*", "")
    found = (form.search(text) for form in _FORMS)
    return next((match[1] for match in found if match), None)


def render(answer: str) -> str:
    """A bare letter in the sentence that `parse` reads; any other answer as it is."""
    bare = _BARE.fullmatch(answer)
    return f"The correct answer is ({bare[1].upper()})" if bare else answer
