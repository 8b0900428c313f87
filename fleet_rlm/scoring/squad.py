"""Token F1 as SQuAD 1.1 has it: the free-text rule of most question answering.

Source: Rajpurkar et al. 2016, evaluate-v1.1.py: lower case, no ASCII punctuation, no articles.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

_ARTICLE = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize(text: str) -> str:
    """`text` in lower case, without punctuation and articles, with single spaces."""
    return " ".join(_ARTICLE.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def token_f1(output: str, references: Sequence[str]) -> float:
    """Best F1 over `references` of the words in common, in [0, 1]; 0 when either has none."""
    said = Counter(normalize(output).split())
    return max(f1(said, Counter(normalize(reference).split())) for reference in references)


def f1(said: Counter[str], wanted: Counter[str]) -> float:
    """Harmonic mean of precision and recall of two bags; 0 when they share nothing."""
    shared = sum((said & wanted).values())
    return 2 * shared / (said.total() + wanted.total()) if shared else 0.0
