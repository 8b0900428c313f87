"""Several requests in a row about one text: how a query says them, and a reply scored one by one.

A chat agent answers them as turns of one conversation; any other program reads the query as it is.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from fleet_rlm.scoring import robust
from fleet_rlm.scoring.robust import RIGHT, Judged
from fleet_rlm.scoring.rule import Asked

HEAD = (
    "A user asks about the text, one request after another. Answer each on a line of its own, in"
    " order, with nothing else."
)
_REQUEST = re.compile(r"^\d+\. (.+)$", re.M)


def pose(requests: Sequence[str]) -> str:
    """The query that holds these requests, a line each."""
    return "\n".join([HEAD, *(f"{n}. {request}" for n, request in enumerate(requests, 1))])


def requests_of(query: str) -> list[str]:
    """The requests of a query; the query itself when it is one request."""
    return _REQUEST.findall(query) if query.startswith(HEAD) else [query]


def official(answer: str, question: Asked) -> float:
    """Share of the requests whose line is the gold reply, to the letter."""
    lines = _lines(answer, len(question.gold))
    return sum(map(str.__eq__, lines, question.gold)) / len(question.gold)


def judge(answer: str, question: Asked) -> Judged:
    """Share of the requests whose line commits to the gold code, as `robust.code` reads it."""
    lines = _lines(answer, len(question.gold))
    found = [
        robust.code(line, gold) if line else Judged(0.0, "no reply stands on its line")
        for line, gold in zip(lines, question.gold, strict=True)
    ]
    lost = {n: one.feedback for n, one in enumerate(found, 1) if one.feedback}
    if not lost:
        return RIGHT
    told = [f"request {n}: {feedback}" for n, feedback in lost.items()]
    if max(lost) > 1:
        told.append("a request that leans on earlier ones must be read from the conversation")
    return Judged(sum(one.score for one in found) / len(found), "; ".join(told))


def _lines(answer: str, count: int) -> list[str]:
    lines = [line.strip() for line in answer.splitlines() if line.strip()]
    return [*lines, *[""] * count][:count]
