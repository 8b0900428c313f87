"""Banks of labelled texts that do not say their label: what the lines of a window are made of."""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from functools import cache, lru_cache
from io import StringIO
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic_core import PydanticCustomError

from fleet_rlm.errors import UsageError, not_utf8, unreadable
from fleet_rlm.lexicon import SUBJECT_OF, SUBJECTS
from fleet_rlm.suites.generators.base import Params
from fleet_rlm.suites.tokens import count_tokens

FRAMES = (
    "Nobody at the meeting expected a remark about the {word}",
    "We spent half of the morning talking about the {word}",
    "My neighbour still tells the story of the {word}",
    "The report mentions the {word} on the second page",
    "Could someone explain to me what happened with the {word}",
    "A long paragraph about the {word} was cut from the article",
    "Everybody remembered the {word} from that day",
    "She wrote the word {word} at the top of an empty page",
    "There was a photograph of the {word} in the hallway",
    "I promised the children a short talk on the {word}",
    "It took us a while to understand why the {word} mattered",
    "The guide pointed at a drawing of the {word} and smiled",
    "His letter ended with an odd joke about the {word}",
    "Two of the visitors argued over the {word}",
    "The quiz had a difficult question on the {word}",
    "Please file the note regarding the {word} before Friday",
    "For some reason the {word} came up again at the office",
    "The first chapter opens with the {word}",
    "They named the project after the {word}",
    "Somebody had left a message about the {word} on the desk",
)
TAILS = (
    "",
    ", as far as I can recall",
    ", and that was the end of it",
    ", which surprised most of us",
    ", at least according to Dana",
    ", though nobody had asked",
    " and then went home",
    ", or so we were told",
    ", just before the lights went out",
    ", and not for the last time",
    ", which is hardly worth mentioning",
    " while the others were waiting",
)
_WORD = re.compile(r"[a-z]+")
_LEAST_ITEMS = 5

BankPart = Literal["all", "train", "validation", "test"]
_SHARES = {"all": (0.0, 1.0), "train": (0.0, 0.6), "validation": (0.6, 0.8), "test": (0.8, 1.0)}


class Texts(NamedTuple):
    """Texts that lines pick from, with what each costs."""

    text: NDArray[np.object_]
    tokens: NDArray[np.int32]


def texts(strings: list[str]) -> Texts:
    """`strings` with their token counts."""
    counts = np.fromiter(map(count_tokens, strings), np.int32, len(strings))
    return Texts(np.array(strings, dtype=object), counts)


class Picked(NamedTuple):
    """One piece of every line: which of `texts` it is."""

    texts: Texts
    chosen: NDArray[np.int32]


class Bank(Protocol):
    """Texts by label."""

    digest: str
    """Identity of every text; part of each sample id unless this is the built-in bank."""

    labels: tuple[str, ...]
    width: int
    """Random numbers that one line takes."""

    def pick(
        self, labels: list[str], line_labels: NDArray[np.intp], luck: NDArray[np.float64]
    ) -> list[Picked]:
        """The pieces of the instance of every line, the last one ending in "\\n".

        Args:
            labels: the window's.
            line_labels: shape (n,), an index into `labels` for each line.
            luck: shape (n, width), in [0, 1).
        """

    def label_of(self, text: str) -> str:
        """The label of one instance, for the audit.

        Raises:
            KeyError: no text of the bank.
        """


class LexiconBank:
    """Everyday sentences around one word of `fleet_rlm.lexicon`, whose subject is the label.

    Args:
        part: which words, so that train and test lines share none; "all" for every one.
    """

    width = 3

    def __init__(self, part: str = "all") -> None:
        self.digest = f"lexicon-1-{part}"
        self.labels = tuple(sorted(SUBJECTS))
        self._words = {label: _slice(SUBJECTS[label], part) for label in self.labels}
        words = [word for label in self.labels for word in self._words[label]]
        self._start = {label: words.index(self._words[label][0]) for label in self.labels}
        self._size = len(words)
        self._sentences = texts(
            [f" {frame.replace('{word}', word)}" for frame in FRAMES for word in words]
        )
        self._tails = texts([f"{tail}.\n" for tail in TAILS])

    def pick(
        self, labels: list[str], line_labels: NDArray[np.intp], luck: NDArray[np.float64]
    ) -> list[Picked]:
        """See `Bank.pick`."""
        sizes = np.array([len(self._words[label]) for label in labels])
        starts = np.array([self._start[label] for label in labels])
        word = starts[line_labels] + (luck[:, 2] * sizes[line_labels]).astype(np.intp)
        frame = (luck[:, 0] * len(FRAMES)).astype(np.intp)
        tail = (luck[:, 1] * len(TAILS)).astype(np.int32)
        sentence = (frame * self._size + word).astype(np.int32)
        return [Picked(self._sentences, sentence), Picked(self._tails, tail)]

    def label_of(self, text: str) -> str:
        """See `Bank.label_of`."""
        return next(SUBJECT_OF[word] for word in _WORD.findall(text.lower()) if word in SUBJECT_OF)


class FileBank:
    """Labelled texts of a user's file; those that say their own label are left out."""

    width = 1

    def __init__(self, by_label: Mapping[str, list[str]], digest: str) -> None:
        self.digest = digest
        self.labels = tuple(sorted(by_label))
        self._start: dict[str, int] = {}
        self._count = {label: len(by_label[label]) for label in self.labels}
        items: list[str] = []
        self._label_of: dict[str, str] = {}
        for label in self.labels:
            self._start[label] = len(items)
            items += by_label[label]
            self._label_of |= dict.fromkeys(by_label[label], label)
        self._items = texts([f" {item}\n" for item in items])

    def pick(
        self, labels: list[str], line_labels: NDArray[np.intp], luck: NDArray[np.float64]
    ) -> list[Picked]:
        """See `Bank.pick`."""
        sizes = np.array([self._count[label] for label in labels])
        starts = np.array([self._start[label] for label in labels])
        item = starts[line_labels] + (luck[:, 0] * sizes[line_labels]).astype(np.intp)
        return [Picked(self._items, item.astype(np.int32))]

    def label_of(self, text: str) -> str:
        """See `Bank.label_of`."""
        return self._label_of[text]


def open_bank(path: str, part: str) -> Bank:
    """The bank of a file, or the built-in one without a path.

    Args:
        path: CSV with a header, TSV without one (label, text), or JSONL; columns `text` and
            `label` (or `category`).
        part: one of `BankPart`.

    Raises:
        UsageError: unreadable, other columns, or fewer than three labels of five texts each.
    """
    if not path:
        return _lexicon_bank(part)
    file = Path(path).expanduser()
    try:
        data = file.read_bytes()
    except OSError as error:
        raise unreadable(f"Bank {path}", error) from error
    return _file_bank(path, hashlib.sha256(data).hexdigest(), part)


def too_few(found: int, part: str, wanted: int) -> str:
    """What to say of a bank that has `found` of the `wanted` labels."""
    return (
        f"the bank has {found} labels with {_LEAST_ITEMS} or more texts in its {part!r} part,"
        f" {wanted} are needed"
    )


class BankParams(Params):
    """Knobs of a generator whose lines come from a bank of the user's choice."""

    bank: str = ""
    """File of labelled texts: CSV or JSONL with `text` and `label`; empty for built-in lines."""

    bank_part: BankPart = "all"
    """Which part of the bank: lines of different parts share no instance. A job gives its train,
    validation and test a part each where this is "all"."""

    def identity(self) -> dict[str, Any]:
        return super().identity() | ({"bank": self.opened.digest} if self.bank else {})

    @property
    def opened(self) -> Bank:
        """The bank."""
        return open_bank(self.bank, self.bank_part)

    def check_labels(self, wanted: int) -> None:
        """Refuse a bank with fewer than `wanted` labels, for a validator to call.

        Raises:
            PydanticCustomError: it has fewer.
        """
        found = len(self.opened.labels)
        if found < wanted:
            raise PydanticCustomError("bank", too_few(found, self.bank_part, wanted))


@cache
def _lexicon_bank(part: str) -> LexiconBank:
    return LexiconBank(part)


@lru_cache(maxsize=8)
def _file_bank(path: str, digest: str, part: str) -> FileBank:
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise not_utf8(f"Bank {path}", path, error) from error
    found: dict[str, dict[str, None]] = {}
    for item, label in _read(path, text):
        line = " ".join(item.split())
        if line and label and label.casefold().replace("_", " ") not in line.casefold():
            found.setdefault(label, {})[line] = None
    owners: dict[str, int] = {}
    for lines in found.values():
        for line in lines:
            owners[line] = owners.get(line, 0) + 1
    # A text of two labels has no gold.
    sure = {
        label: _slice(sorted(line for line in lines if owners[line] == 1), part)
        for label, lines in found.items()
    }
    kept = {label: list(lines) for label, lines in sure.items() if len(lines) >= _LEAST_ITEMS}
    if len(kept) < 3:
        start, stop = _SHARES[part]
        raise UsageError(
            f"Bank {path}: {too_few(len(kept), part, 3)}.",
            fix=f"write {round(_LEAST_ITEMS / (stop - start))} texts or more for each label",
        )
    return FileBank(kept, f"{digest}-{part}")


def _read(path: str, text: str) -> Iterator[tuple[str, str]]:
    suffix = Path(path).suffix
    if suffix == ".tsv":
        rows = csv.reader(StringIO(text), delimiter="\t", quoting=csv.QUOTE_NONE)
        yield from ((row[1], row[0]) for row in rows if len(row) >= 2)
        return
    records: Iterator[Mapping[str, object]]
    if suffix == ".csv":
        records = iter(csv.DictReader(StringIO(text)))
    elif suffix == ".jsonl":
        records = _json_lines(path, text)
    else:
        raise UsageError(
            f"Bank {path} must end in .csv, .tsv or .jsonl", fix=f"mv {path} {path}.csv"
        )
    for number, record in enumerate(records, 1):
        label = record.get("label", record.get("category"))
        item = record.get("text")
        if not isinstance(item, str) or label is None:
            columns = ", ".join(map(str, record))
            raise UsageError(
                f"Bank {path}: record {number} has columns {columns}",
                fix="name them 'text' and 'label'",
            )
        yield item, str(label)


def _json_lines(path: str, text: str) -> Iterator[Mapping[str, object]]:
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise UsageError(f"Bank {path}: line {number} is not JSON: {error}") from error
        if not isinstance(record, dict):
            raise UsageError(f"Bank {path}: line {number} is not a JSON object")
        yield record


def _slice(items: tuple[str, ...] | list[str], part: str) -> tuple[str, ...]:
    """The items of `part`; parts share none, and none is empty from five items on."""
    start, stop = (round(share * len(items)) for share in _SHARES[part])
    return tuple(items[start:stop])
