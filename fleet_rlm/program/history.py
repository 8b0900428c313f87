"""The history that the model is shown: whole while it fits, old outputs cut when it does not."""

from __future__ import annotations

from dspy.primitives.repl_types import REPLEntry, REPLHistory

from fleet_rlm.program.context_ref import shorten

KEPT_CHARS = (2_000, 400, 80)
"""Characters of an old step's output that each level of compaction keeps."""

RECENT = 2
"""Last steps that stay whole until the last level."""

DEEPEST = len(KEPT_CHARS)


def compact(history: REPLHistory, level: int) -> REPLHistory:
    """A shorter view of a history; the history itself is kept for the trajectory.

    Args:
        history: every step so far.
        level: 0 shows all; each further level cuts the outputs and code of old steps shorter, and
            the deepest cuts the recent ones as well.
    """
    if level == 0:
        return history
    limit = KEPT_CHARS[min(level, DEEPEST) - 1]
    whole = RECENT if level < DEEPEST else 0
    first_whole = len(history) - whole
    entries = [
        entry if index >= first_whole else _cut(entry, limit) for index, entry in enumerate(history)
    ]
    return REPLHistory(entries=entries, max_output_chars=history.max_output_chars)


def _cut(entry: REPLEntry, limit: int) -> REPLEntry:
    return REPLEntry(
        reasoning=shorten(entry.reasoning, limit),
        code=shorten(entry.code, limit),
        output=shorten(entry.output, limit),
    )
