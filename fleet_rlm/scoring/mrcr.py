"""MRCR's own scoring rules, bug for bug: version 1 of openai/mrcr, version 2 of eval_hub.

Sources: the card of openai/mrcr (MIT); google-deepmind/eval_hub 67b7fd2 (Apache-2.0), mrcr_v2.
"""

from __future__ import annotations

from difflib import SequenceMatcher


def ratio(output: str, answer: str, prefix: str) -> float:
    """Version 1: likeness of the texts behind `prefix`; 0 unless the output begins with it."""
    if not output.startswith(prefix):
        return 0.0
    said, wanted = output.removeprefix(prefix), answer.removeprefix(prefix)
    return SequenceMatcher(None, said, wanted).ratio()


def ratio_v2(output: str, answer: str, prefix: str) -> float:
    """Version 2: likeness of what follows the last `prefix`, wherever that stands."""
    if prefix not in output:
        return 0.0
    said = output.rpartition(prefix)[2].strip()
    wanted = answer.rpartition(prefix)[2].strip()
    return SequenceMatcher(None, wanted, said).ratio()
