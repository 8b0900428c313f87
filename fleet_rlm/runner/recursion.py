"""What the trajectory of an RLM says of its recursion, in numbers: one set a record."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from fleet_rlm.suites.tokens import count_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Recursion:
    """One attempt. Counts are over all depths, unless said otherwise."""

    turns: int
    """Turns of the root with its REPL."""

    blocks: int
    """Pieces of code run, the root's and its children's."""

    code_errors: int
    """Those that ended in an error."""

    sub_calls: int
    """Questions to the sub-model, with those of children."""

    children: int
    depth: int
    """Deepest level that ran: 0 when no child did."""

    duplicates: int
    """Questions to the sub-model that had been asked word for word before."""

    read_chars: int
    """Characters that a model was shown of the context at most: distinct prompts of the sub-model
    and printed output. Prompts also hold the question, so it is an upper bound."""

    context_chars: int
    returned_tokens: int
    """Tokens of output that came back to the root's own prompt."""

    def to_json(self) -> dict[str, int]:
        """By field."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def measure(steps: Sequence[Mapping[str, Any]], context_chars: int) -> Recursion | None:
    """Measure a trajectory.

    Args:
        steps: as `program.trail.Step`.
        context_chars: characters of the whole context.

    Returns:
        None for the trajectory of a program that does not note its queries: it is no RLM of ours.
    """
    if not steps or any("code" not in step or "queries" not in step for step in steps):
        return None
    blocks = [step for _, step in _walk(steps, 0)]
    queries = [query for step in blocks for query in step.get("queries") or ()]
    asked = [query for query in queries if query["kind"] == "llm"]
    distinct = {query["prompt_digest"]: query["prompt_chars"] for query in asked}
    printed = sum(len(step["output"]) for step in blocks)
    return Recursion(
        turns=len(steps),
        blocks=len(blocks),
        code_errors=sum(_failed(step["output"]) for step in blocks),
        sub_calls=len(asked),
        children=sum(query["kind"] == "rlm" for query in queries),
        depth=max(depth for depth, _ in _walk(steps, 0)),
        duplicates=len(asked) - len(distinct),
        read_chars=sum(distinct.values()) + printed,
        context_chars=context_chars,
        returned_tokens=count_tokens("\n".join(step["output"] for step in steps)),
    )


def _walk(
    steps: Sequence[Mapping[str, Any]], depth: int
) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for step in steps:
        yield depth, step
        for query in step.get("queries") or ():
            if query["kind"] == "rlm":
                yield from _walk(query["steps"], depth + 1)


def _failed(output: str) -> bool:
    # How `RLM` tells the model of an error, after whatever was printed before it.
    return output.startswith("[Error]") or "\n[Error]" in output
