"""BABILong's own scoring rule, bug for bug.

Source: booydar/babilong 7a6efee (Apache-2.0), babilong/metrics.py: `TASK_LABELS` and
`compare_answers`. Labels are found anywhere, so "no" is found inside "not"; the text after the
first full stop is not read.
"""

from __future__ import annotations

_PLACES = ("bathroom", "bedroom", "garden", "hallway", "kitchen", "office")
_YES_NO = ("no", "yes")

LABELS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("qa1", "qa2", "qa3", "qa4", "qa11", "qa12", "qa13"), _PLACES),
    "qa5": ("apple", "bill", "football", "fred", "jeff", "mary", "milk"),
    **dict.fromkeys(("qa6", "qa9", "qa17", "qa18"), _YES_NO),
    "qa7": ("none", "one", "three", "two"),
    "qa8": ("apple", "football", "milk", "nothing"),
    "qa10": ("maybe", *_YES_NO),
    "qa14": ("bedroom", "cinema", "kitchen", "office", "park", "school"),
    "qa15": ("cat", "mouse", "sheep", "wolf"),
    "qa16": ("gray", "green", "white", "yellow"),
    "qa19": ("e,e", "e,n", "e,s", "n,e", "n,n", "n,w", "s,e", "s,s", "s,w", "w,n", "w,s", "w,w"),
    "qa20": ("bedroom", "bored", "garden", "hungry", "kitchen", "thirsty", "tired"),
}  # fmt: skip
"""Task -> every answer that it knows."""

_SHORT = 3  # characters: "n,w" is one label, "apple,milk" is two


def label_score(output: str, target: str, question: str, task: str) -> float:
    """1 when the labels in the first sentence, those of the question left out, are the target's.

    Args:
        output: the model's whole answer.
        target: the gold label, or several with commas.
        question: labels named in it do not count in the answer.
        task: "qa1" to "qa20", a key of `LABELS`.
    """
    text = output.lower().split(".")[0].split("<context>")[0].split("<example>")[0]
    asked = question.lower()
    found = {label for label in LABELS[task] if label in text} - {
        label for label in LABELS[task] if label in asked
    }
    target = target.lower()
    wanted = set(target.split(",")) if "," in target and len(target) > _SHORT else {target}
    return float(found == wanted)
