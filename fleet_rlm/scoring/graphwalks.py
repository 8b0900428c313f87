"""GraphWalks' scoring rules: set F1 as the field computes it, and the data card's own code.

Sources: PrimeIntellect-ai/research-environments 1f95879 (Apache-2.0), graphwalks; the card of
openai/graphwalks (MIT). The card's code leaves "Final Answer: [" on the first node and gives 1 to
an answer without a right node, so it is kept for comparison only.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

_LIST = re.compile(r"\[([^\[\]\n]*)\][ \t]*$", re.MULTILINE)
_CARD = re.compile(r"Final Answer: ?\[.*\]")


def parse(output: str) -> list[str] | None:
    """The nodes of the last line that ends in a list; None when no line does."""
    lists = _LIST.findall(output)
    if not lists:
        return None
    nodes = (node.strip(" \t'\"") for node in lists[-1].split(","))
    return [node for node in nodes if node]


def set_f1(said: Iterable[str], gold: Collection[str]) -> float:
    """F1 of two sets, in [0, 1]; two empty sets are equal."""
    found, wanted = set(said), set(gold)
    if not found and not wanted:
        return 1.0
    return 2 * len(found & wanted) / (len(found) + len(wanted))


def card_f1(output: str, gold: Collection[str]) -> float:
    """What the code on the data card gives, bug for bug."""
    last = output.split("\n")[-1]
    match = _CARD.search(last) if "Final Answer:" in last else None
    said = {part.strip() for part in match[0].strip("[]").split(",")} if match else set()
    shared = len(said & set(gold))
    if not shared:
        return 1.0
    precision, recall = shared / len(said), shared / len(set(gold))
    return 2 * precision * recall / (precision + recall)
