"""Graphwalks: a directed graph as a list of edges; breadth-first search, and parents.

After openai/graphwalks (MIT): ten hexadecimal digits of an md5 name a node, and the last line of
an answer is "Final Answer: [a, b]". Wording ours. What differs: an answer is never empty, and depth
means the length of the shortest path, said so in the question.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from hashlib import md5
from typing import ClassVar

from pydantic import Field

from fleet_rlm.errors import DataError
from fleet_rlm.suites.generators import filling
from fleet_rlm.suites.generators.base import Draft, Order, Params
from fleet_rlm.suites.sample import Question
from fleet_rlm.suites.tokens import count_tokens

HEAD = "Each line is one edge of a directed graph, written 'from -> to'.\n"
FORM = " Give the answer as a last line of the form 'Final Answer: [node, node]'."
BFS = (
    "Which nodes does a breadth-first search from node {node} reach at depth {depth}, that is, to"
    " which nodes does the shortest path from {node} have exactly {depth} edges?"
)
PARENTS = "Which nodes are parents of node {node}, that is, have an edge to {node}?"
_LARGEST = 100  # nodes of an answer


class GraphwalksParams(Params):
    """Knobs of `graphwalks`."""

    depth: int = Field(default=3, ge=1, le=10)
    """The deepest breadth-first search asked for; depths rotate from 1 on."""

    degree: float = Field(default=2.0, ge=1.0, le=10.0)
    """Edges per node."""


class Graphwalks:
    """Writes `graphwalks` windows."""

    name: ClassVar = "graphwalks"
    version: ClassVar = 1
    rule: ClassVar = "graphwalks"
    uses_corpus: ClassVar = False
    least: ClassVar = "900, and 100 for each question"
    max_questions: ClassVar = 16
    params: ClassVar[type[Params]] = GraphwalksParams

    def min_length(self, params: GraphwalksParams, questions: int) -> int:
        return 900 + 100 * questions

    def draft(self, order: Order, params: GraphwalksParams) -> Draft:
        head = count_tokens(HEAD)
        per_edge = 17  # tokens, about
        nodes = [_node(i) for i in range(max(32, int(order.length / per_edge / params.degree)))]
        edges: list[tuple[str, str]] = []

        def lines() -> Iterator[str]:
            rng = order.rng("edges")
            seen: set[tuple[int, int]] = set()
            size = len(nodes)
            while len(seen) < size * (size - 1) // 2:
                pair = int(rng.random() * size), int(rng.random() * size)
                if pair[0] == pair[1] or pair in seen:
                    continue
                seen.add(pair)
                edges.append((nodes[pair[0]], nodes[pair[1]]))
                yield f"{edges[-1][0]} -> {edges[-1][1]}\n"

        made, tokens = filling.fill(lines(), order.length - head)
        questions = tuple(_questions(order, params, edges[: len(made)]))
        return Draft(blocks=filling.blocks(HEAD, made), tokens=head + tokens, questions=questions)

    def solve(self, params: GraphwalksParams, context: str, query: str) -> tuple[str, ...]:
        edges = re.findall(r"^(\w{10}) -> (\w{10})$", context, re.MULTILINE)
        node = re.findall(r"node (\w{10})\b", query)[0]
        if query.startswith("Which nodes are parents"):
            return tuple(sorted({source for source, target in edges if target == node}))
        depth = int(re.findall(r"at depth (\d+)", query)[0])
        distance = {node: 0}
        for step in range(1, depth + 1):  # one pass over all edges per step, no adjacency
            reached = {b for a, b in edges if distance.get(a) == step - 1 and b not in distance}
            distance |= dict.fromkeys(reached, step)
        return tuple(sorted(n for n, steps in distance.items() if steps == depth))


def _node(index: int) -> str:
    return md5(str(index).encode(), usedforsecurity=False).hexdigest()[:10]


def _questions(
    order: Order, params: GraphwalksParams, edges: list[tuple[str, str]]
) -> Iterator[Question]:
    children: dict[str, list[str]] = defaultdict(list)
    parents: dict[str, list[str]] = defaultdict(list)
    for source, target in edges:
        children[source].append(target)
        parents[target].append(source)
    rng = order.rng("questions")
    starts, targets = list(children), list(parents)
    asked: set[str] = set()
    first = order.window * order.questions
    for index in range(first, first + order.questions):
        for _ in range(1000):
            if index % 2:
                node = rng.choice(targets)
                query, found = PARENTS.format(node=node), set(parents[node])
            else:
                node, depth = rng.choice(starts), index // 2 % params.depth + 1
                query, found = BFS.format(node=node, depth=depth), _reach(children, node, depth)
            if 0 < len(found) <= _LARGEST and query not in asked:
                break
        else:
            raise DataError("graphwalks found no node with an answer of one to 100 nodes")
        asked.add(query)
        yield Question(
            query=query + FORM,
            gold=tuple(sorted(found)),
            answer_type="set",
            kind="parents" if index % 2 else "bfs",
        )


def _reach(children: Mapping[str, Iterable[str]], node: str, depth: int) -> set[str]:
    seen, frontier = {node}, {node}
    for _ in range(depth):
        frontier = {c for n in frontier for c in children.get(n, ())} - seen
        seen |= frontier
    return frontier
