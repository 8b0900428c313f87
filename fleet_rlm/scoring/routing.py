"""Whether an answer took the cheapest tool that suffices, from what its run recorded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple, get_args

Route = Literal["python", "one", "batch", "child"]
"""Python alone, a few sub-queries, many of them, or a child RLM: each dearer than the one before.
"""

FEW = 3
"""Sub-queries that still are "one": asked again, or asked to check."""


class Taken(NamedTuple):
    """What an answer used."""

    queries: int
    """Sub-queries, those of children included."""

    children: int

    @property
    def route(self) -> Route:
        """The dearest tool among them."""
        if self.children:
            return "child"
        if not self.queries:
            return "python"
        return "one" if self.queries <= FEW else "batch"


def taken(steps: Iterable[Mapping[str, Any]]) -> Taken:
    """Count the queries of a trajectory's `steps`, and of the steps below each child."""
    queries = children = 0
    for step in steps:
        for query in step.get("queries") or ():
            if query.get("kind") == "rlm":
                below = taken(query.get("steps") or ())
                children += 1 + below.children
                queries += below.queries
            elif query.get("kind") == "llm":
                queries += 1
    return Taken(queries, children)


def verdict(wanted: Route, used: Route) -> Literal["right", "over", "under"]:
    """Whether the tool fits: "over" is dearer than needed, "under" cheaper than sound.

    Reading one line needs no sub-query: a program that prints it has read it.
    """
    if used == wanted or (wanted == "one" and used == "python"):
        return "right"
    order = get_args(Route)
    return "over" if order.index(used) > order.index(wanted) else "under"
