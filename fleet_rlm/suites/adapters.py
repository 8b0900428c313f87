"""How a row of each benchmark becomes a question, and for the scorer its gold answer.

Wording of instructions is ours; what the official scorers read is theirs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fleet_rlm.scoring import babilong, oolong

Row = Mapping[str, Any]
"""Role -> value, as the manifest's columns name it; "_config" and "_split" say where it stood."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """What the program's side knows of one row."""

    query: str
    context: str | None
    """None when the manifest's [texts] hold it."""

    id: str = ""
    """The benchmark's own; the row's number when it has none."""

    answer_type: str = "exact"
    options: tuple[str, ...] = ()
    kind: str = ""
    length: int | None = None
    """The benchmark's own bucket in tokens; else the next power of two above the count."""

    tags: Mapping[str, str | int | float | bool] = field(default_factory=dict)
    documents: tuple[str, ...] = ()
    """Ids of documents in [texts] that the context must hold, for an adapter that composes it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """Reads the rows of one benchmark."""

    name: str
    version: int
    """Raised with every change of what a row becomes."""

    rule: str | None
    """Key of `fleet_rlm.scoring.RULES`; None when each task names one."""

    needs: tuple[str, ...]
    gold_needs: tuple[str, ...]
    item: Callable[[Row], Item]
    gold: Callable[[Row], tuple[str, ...]]
    """Raises ValueError for a gold answer that cannot be read."""

    extra: tuple[str, ...] = ()
    """Roles that may be given besides; "id" and "tags" always may."""

    gold_extra: tuple[str, ...] = ()
    shares_columns: bool = False
    """Whether a gold column, such as MRCR's prefix, is part of the question by design."""

    composes: int = 0
    """Documents in each context, drawn from [texts]; 0 for rows that bring their own context."""

    @property
    def roles(self) -> tuple[str, ...]:
        """Roles that a manifest may give columns to, for the question's file."""
        return (*self.needs, *self.extra, "id", "tags")

    @property
    def gold_roles(self) -> tuple[str, ...]:
        """The same for the file of gold answers."""
        return (*self.gold_needs, *self.gold_extra, "id")


def _tags(row: Row) -> dict[str, Any]:
    found = row.get("tags") or {}
    return {name: value for name, value in found.items() if isinstance(value, str | int | float)}


def _id(row: Row) -> str:
    return "" if row.get("id") is None else str(row["id"])


def _texts(value: Any) -> tuple[str, ...]:
    """A gold value, or a list of them, as texts.

    Raises:
        ValueError: nothing is there.
    """
    values = value if isinstance(value, list | tuple) else [value]
    if any(item is None or isinstance(item, list | dict) for item in values):
        raise ValueError(f"gold answer {str(value)[:60]!r} is no text and no list of texts")
    return tuple(str(item) for item in values)


# Data of one's own


def _plain_item(row: Row) -> Item:
    options = row.get("options") or ()
    length = row.get("length")
    return Item(
        id=_id(row),
        context=_text(row, "context"),
        query=_text(row, "question"),
        options=tuple(map(str, options)),
        answer_type=str(row.get("answer_type") or "exact"),
        kind=str(row.get("kind") or ""),
        length=int(length) if length is not None else None,
        tags=_tags(row),
    )


def _text(row: Row, role: str) -> str:
    value = row[role]
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"role {role!r}: {str(value)[:60]!r} is no text")
    return value


# OOLONG

_TYPES = {"numeric": "number", "comparison": "comparison"}
_LABELS = re.compile(r"\blabels\b[^:.?\n]{0,60}: *([^.?\n]+)", re.IGNORECASE)
_PHRASES = ("more common than", "less common than", "same frequency as")


def _oolong_type(text: str) -> str:
    kind = text.removeprefix("ANSWER_TYPE.").lower()
    return _TYPES.get(kind, kind)


def _oolong_item(row: Row) -> Item:
    question, answer_type = _text(row, "question"), _oolong_type(str(row["answer_type"]))
    options: tuple[str, ...] = ()
    if answer_type == "comparison":
        options = _PHRASES
    elif answer_type == "label" and (named := _LABELS.search(question)):
        options = tuple(label.strip(" '\"") for label in named[1].split(","))
    return Item(
        id=_id(row),
        context=_text(row, "context"),
        query=question,
        answer_type=answer_type,
        options=options,
        kind=str(row.get("kind") or "").removeprefix("TASK_TYPE.").lower(),
        length=int(row["length"]),
        tags=_tags(row),
    )


def _oolong_gold(row: Row) -> tuple[str, ...]:
    return (str(oolong.gold_of(str(row["answer"]))),)


def _oolong_real_item(row: Row) -> Item:
    return Item(
        id=_id(row),
        context=_text(row, "context"),
        query=f"{_text(row, 'question')}\nGive the answer inside \\boxed{{}}.",
        kind=str(row.get("kind") or row.get("_config") or ""),
        tags=_tags(row),
    )


def _pairs_item(row: Row) -> Item:
    return Item(
        id=_id(row), context=None, query=_text(row, "question"), answer_type="set", tags=_tags(row)
    )


# LongBench v2

_LETTERS = ("A", "B", "C", "D")


def _longbench_item(row: Row) -> Item:
    choices = "\n".join(
        f"({letter}) {choice}" for letter, choice in zip(_LETTERS, row["choices"], strict=True)
    )
    return Item(
        id=_id(row),
        context=_text(row, "context"),
        query=f"{_text(row, 'question')}\n\n{choices}\n\nAnswer with one letter.",
        options=_LETTERS,
        kind=str(row.get("kind") or ""),
        tags=_tags(row),
    )


def _letter(row: Row) -> tuple[str, ...]:
    letter = str(row["answer"]).strip()
    if letter not in _LETTERS:
        raise ValueError(f"gold answer {letter!r} is none of A, B, C, D")
    return (letter,)


# GraphWalks

_GRAPH = "Here is the graph to operate on"


def _graphwalks_item(row: Row) -> Item:
    # The instruction and its worked example come first, the edges follow, the question is last.
    head, found, rest = _text(row, "prompt").partition(_GRAPH)
    edges, asked, operation = rest.rpartition("Operation:")
    if not found or not asked:
        raise ValueError(f"the prompt has no {_GRAPH!r} with an 'Operation:' behind it")
    return Item(
        id=_id(row),
        context=f"{_GRAPH}{edges}".rstrip(),
        query=f"{head.strip()}\n\nThe graph is in the context.\n\nOperation:{operation}".strip(),
        answer_type="set",
        kind=str(row.get("kind") or ""),
        tags=_tags(row),
    )


def _node_list(row: Row) -> tuple[str, ...]:
    if not isinstance(row["answer"], list):
        raise ValueError(f"gold answer {str(row['answer'])[:60]!r} is no list of texts")
    return _texts(row["answer"])


# MRCR


def _mrcr_item(row: Row) -> Item:
    messages = json.loads(_text(row, "prompt"))
    *talk, last = messages
    text = "\n\n".join(f"{message['role']}: {message['content']}" for message in talk)
    return Item(
        id=_id(row),
        context=text,
        query=f"The context is a conversation. {last['content']}",
        answer_type="sequence",
        kind=f"{row['needles']} needles",
        tags=_tags(row),
    )


def _mrcr_gold(row: Row) -> tuple[str, ...]:
    answer, prefix = str(row["answer"]), str(row["prefix"])
    if not prefix or not answer.startswith(prefix):
        raise ValueError("gold answer does not begin with the string to prepend")
    return answer, prefix


# BABILong

_BABI_FORMS = {
    "qa1": "where a person is; their latest place counts. Answer with the place.",
    "qa2": "where an object is; it goes with who carries it. Answer with the place.",
    "qa3": "where an object was before it came to a place. Answer with the earlier place.",
    "qa4": "how places lie to one another. Answer with one word, a place.",
    "qa5": "who gave what to whom. Answer with one word.",
    "qa7": "how many objects someone carries. Answer with the number in words, or none.",
    "qa8": "which objects someone carries. Answer with their names, or nothing.",
    "qa19": "how to walk from one place to another. Answer with two of n, s, e, w and a comma.",
}
_BABI_LENGTHS = {"k": 1_000, "m": 1_000_000}


def _babilong_item(row: Row) -> Item:
    task = str(row["_split"])
    about = _BABI_FORMS.get(task, "what they say. Answer with one word.")
    bucket = str(row["_config"] or "").lower()
    return Item(
        id=_id(row),
        context=_text(row, "context"),
        query=f"Facts are hidden in the context among other text. They tell {about}\n"
        f"Question: {_text(row, 'question').strip()}",
        options=babilong.LABELS.get(task, ()),
        kind=task,
        length=int(bucket[:-1]) * _BABI_LENGTHS[bucket[-1]] if bucket[:-1].isdecimal() else None,
        tags=_tags(row),
    )


# LongMemEval


def _longmemeval_item(row: Row) -> Item:
    # Sessions carry `has_answer` on the turns that decide: only role and content are taken.
    parts = []
    for day, session in zip(row["dates"], row["sessions"], strict=True):
        turns = "\n".join(f"{turn['role']}: {turn['content']}" for turn in session)
        parts.append(f"### Session of {day}\n{turns}")
    name = _id(row)
    return Item(
        id=name,
        context="\n\n".join(parts),
        query="The context holds earlier chats with you. Answer from them; say so when they do not"
        f" tell.\nIt is {row['date']}. {_text(row, 'question')}",
        kind="abstention" if name.endswith("_abs") else str(row["kind"]),
        tags=_tags(row),
    )


# InfiniteBench

_INFINITE_FORMS = {
    "passkey": "A pass key is hidden in the context. {input}",
    "number_string": "A sequence of digits is hidden in the context. {input}",
    "kv_retrieval": "The context is a JSON object. {input}",
    "longbook_qa_eng": "Answer from the book, as briefly as possible: {input}",
    "longbook_qa_chn": "请根据原文，用尽量短的话回答：{input}",
    "longdialogue_qa_eng": "In the script one name is replaced by $$MASK$$. Give that name only.",
    "code_run": "{input} Give the return value; the answer must end with it.",
    "math_find": "{input}",
    "math_calc": "Give the list of values after each step of the expression in the context.",
}


def _infinitebench_item(row: Row) -> Item:
    task, options = str(row["_split"]), [str(option) for option in row.get("options") or ()]
    asked = _INFINITE_FORMS.get(task, "{input}").replace("{input}", str(row["question"] or ""))
    if options:
        shown = "\n".join(f"{x}. {text}" for x, text in zip(_LETTERS, options, strict=True))
        asked = f"{row['question']}\n{shown}\nAnswer with the letter and nothing else."
    return Item(
        id=f"{task}-{_id(row)}",
        context=_text(row, "context"),
        query=asked,
        options=_LETTERS if options else (),
        kind=task,
        tags=_tags(row),
    )


def _infinitebench_gold(row: Row) -> tuple[str, ...]:
    answers, options = _texts(row["answer"]), [str(option) for option in row.get("options") or ()]
    if not options:
        return answers
    if answers[0] not in options:
        raise ValueError(f"gold answer {answers[0][:60]!r} is none of the options")
    return answers[0], _LETTERS[options.index(answers[0])]


# BrowseComp-Plus


def _browsecomp_item(row: Row) -> Item:
    needed = [doc for role in ("gold_docs", "evidence", "negatives") for doc in row.get(role) or ()]
    return Item(
        id=_id(row),
        context=None,
        query=_text(row, "question"),
        documents=tuple(dict.fromkeys(str(doc["docid"]) for doc in needed)),
    )


def _answer(row: Row) -> tuple[str, ...]:
    return _texts(row["answer"])


_CONTEXT = ("context", "question")

ADAPTERS: dict[str, Adapter] = {
    adapter.name: adapter
    for adapter in (
        Adapter(
            name="rows", version=1, rule=None, needs=_CONTEXT, gold_needs=("answer",),
            extra=("kind", "options", "length", "answer_type"), item=_plain_item, gold=_answer,
        ),
        Adapter(
            name="oolong", version=1, rule="oolong", needs=(*_CONTEXT, "length", "answer_type"),
            extra=("kind",), gold_needs=("answer",), item=_oolong_item, gold=_oolong_gold,
        ),
        Adapter(
            name="oolong-real", version=1, rule="oolong-real", needs=_CONTEXT, extra=("kind",),
            gold_needs=("answer",), item=_oolong_real_item, gold=_answer,
        ),
        Adapter(
            name="oolong-pairs", version=1, rule="oolong-pairs", needs=("question",),
            gold_needs=("answer",), item=_pairs_item, gold=_node_list,
        ),
        Adapter(
            name="longbench-v2", version=1, rule="longbench-v2", needs=(*_CONTEXT, "choices"),
            extra=("kind",), gold_needs=("answer",), item=_longbench_item, gold=_letter,
        ),
        Adapter(
            name="graphwalks", version=1, rule="graphwalks", needs=("prompt",), extra=("kind",),
            gold_needs=("answer",), item=_graphwalks_item, gold=_node_list,
        ),
        Adapter(
            name="mrcr", version=1, rule="mrcr", needs=("prompt", "needles"), shares_columns=True,
            gold_needs=("answer", "prefix"), item=_mrcr_item, gold=_mrcr_gold,
        ),
        Adapter(
            name="babilong", version=1, rule="babilong", needs=_CONTEXT, gold_needs=("answer",),
            item=_babilong_item, gold=_answer,
        ),
        Adapter(
            name="longmemeval", version=1, rule="judged",
            needs=("question", "date", "dates", "sessions", "kind"), gold_needs=("answer",),
            item=_longmemeval_item, gold=_answer,
        ),
        Adapter(
            name="infinitebench", version=1, rule="infinitebench", needs=_CONTEXT,
            extra=("options",), gold_needs=("answer",), gold_extra=("options",),
            shares_columns=True, item=_infinitebench_item, gold=_infinitebench_gold,
        ),
        Adapter(
            name="browsecomp-plus", version=1, rule="judged",
            needs=("question", "gold_docs", "evidence", "negatives"), gold_needs=("answer",),
            item=_browsecomp_item, gold=_answer, composes=1_000,
        ),
    )
}  # fmt: skip
"""Name -> adapter."""
