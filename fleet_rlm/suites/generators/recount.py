"""Answers the questions of `counting` a second time, line by line, from the text alone."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from datetime import datetime

from fleet_rlm.errors import DataError
from fleet_rlm.suites.generators.rows import (
    FIRST_YEAR,
    MONTH_DAYS,
    Read,
    date_iso,
    month_text,
)

_LABEL = re.compile(r"label '([^']+)'")
_DATE = re.compile(r"[A-Z][a-z]{2} \d\d, \d{4}")


def recount(rows: Sequence[Read], query: str) -> str:
    """The answer to `query` over `rows`.

    Raises:
        DataError: a wording of none of the kinds.
    """
    labels = _LABEL.findall(query)
    if "represented" in query:
        return _represented(rows, query)
    if query.startswith(("How many instances", "Among the instances")):
        return str(sum(row.label == labels[0] for row in _subset(rows, query)))
    if query.startswith("Which of the labels"):
        ranked = Counter(row.label for row in rows).most_common()
        return ranked[-1 if "the least common" in query else 0][0]
    if query.startswith("Is label"):
        counts = Counter(row.label for row in rows)
        return _relation(counts[labels[0]], counts[labels[1]], " than", "same frequency as")
    if query.startswith("Was label"):
        day = _day(_DATE.findall(query)[0])
        mine = [row.day for row in rows if row.label == labels[0]]
        before, after = sum(d < day for d in mine), sum(d > day for d in mine)
        return _relation(before, after, "", "the same frequency")
    if query.startswith("Which"):
        asked = re.findall(r"\b\d{5}\b", query.partition("Give")[0])
        counts = Counter(row.user for row in rows if row.label == labels[0])
        return max(asked or counts, key=lambda user: counts[user])
    if "month" in query:
        return _monthly(rows, query, labels)
    raise DataError(f"no kind of question is worded like {query[:60]!r}")


def _represented(rows: Sequence[Read], query: str) -> str:
    if exactly := re.search(r"exactly (\d+) times", query):
        return str(list(Counter(row.day for row in rows).values()).count(int(exactly[1])))
    rank = 1 if "second most" in query else 0
    if "Which user" in query:
        return Counter(row.user for row in rows).most_common(2)[rank][0]
    return date_iso(Counter(row.day for row in rows).most_common(2)[rank][0])


def _subset(rows: Sequence[Read], query: str) -> Sequence[Read]:
    if user := re.search(r"of user (\d+),", query):
        return [row for row in rows if row.user == user[1]]
    if "dated between" in query:
        first, last = map(_day, _DATE.findall(query))
        return [row for row in rows if first <= row.day <= last]
    return rows


def _monthly(rows: Sequence[Read], query: str, labels: list[str]) -> str:
    months: dict[int, Counter[str]] = {}
    for row in rows:
        months.setdefault(row.day // MONTH_DAYS, Counter())[row.label] += 1
    if "single most common" in query:
        tops = [counts.most_common(2) for counts in months.values()]
        alone = [top[0][0] for top in tops if len(top) == 1 or top[0][1] > top[1][1]]
        return str(alone.count(labels[0]))
    a, b = labels[:2]
    above = [month for month, counts in months.items() if counts[a] > counts[b]]
    return month_text(min(above)) if query.startswith("In which month") else str(len(above))


def _relation(a: int, b: int, tail: str, tie: str) -> str:
    return tie if a == b else f"{'more' if a > b else 'less'} common{tail}"


def _day(text: str) -> int:
    found = datetime.strptime(text, "%b %d, %Y")
    return ((found.year - FIRST_YEAR) * 12 + found.month - 1) * MONTH_DAYS + found.day - 1
