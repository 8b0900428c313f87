"""MRCR's own scoring rule, bug for bug. Source: the card of openai/mrcr (MIT)."""

from __future__ import annotations

from difflib import SequenceMatcher


def ratio(output: str, answer: str, prefix: str) -> float:
    """Likeness of the texts behind `prefix`; 0 unless the output begins with it."""
    if not output.startswith(prefix):
        return 0.0
    said, wanted = output.removeprefix(prefix), answer.removeprefix(prefix)
    return SequenceMatcher(None, said, wanted).ratio()
