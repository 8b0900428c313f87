"""`MapReduce`: asks about every part of a text at the same time, then answers from the notes."""

from __future__ import annotations

import contextvars
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import dspy
from dspy.utils.exceptions import AdapterParseError, format_error_for_lm

from fleet_rlm.errors import LimitReached
from fleet_rlm.lm.cancel import check_cancelled
from fleet_rlm.lm.metered import current_ledger
from fleet_rlm.program.events import emit
from fleet_rlm.program.pieces import cut, keep_ends
from fleet_rlm.program.queries import SUB_LM_SETTING
from fleet_rlm.program.reader import Reader, TextProgram, tell
from fleet_rlm.program.recursion import ProgramSettings, Range
from fleet_rlm.program.trail import SHOWN_CHARS
from fleet_rlm.suites.tokens import count_tokens

NOTHING = "nothing"
"""What the model is told to write about a part that does not help."""

_SHORTER = 0.9  # of the notes before: a level that gains less will not help


class TakeNotes(dspy.Signature):
    """Write down what this part of a longer text says that helps to answer the query.

    Copy names, values and statements word for word. Give a count as a number with what was counted.
    Write "nothing" when the part does not help."""

    context: str = dspy.InputField(desc="one part of the text, or notes on several parts")
    query: str = dspy.InputField(desc="the question about the whole text")
    notes: str = dspy.OutputField(desc="what this part says, complete and short")


REDUCE = "Answer the query from the notes that were taken on the parts of a longer text."


class MapReduceSettings(ProgramSettings):
    """The knobs of `MapReduce`."""

    SPEC: Mapping[str, Range] = {
        "chunk_tokens": Range(8_000, 20, 10_000_000),
        "max_tokens": Range(16_000, 100, 100_000_000),
        "batch_workers": Range(8, 1, 256),
    }
    """`chunk_tokens`: tokens of text that one call takes notes on.
    `max_tokens`: tokens of the prompt that the answer comes from.
    `batch_workers`: calls in flight."""


class _Part(NamedTuple):
    head: str
    """Names it to the model."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Note:
    """What became of one part."""

    part: _Part
    text: str = ""
    failure: Exception | None = None
    """Why there are no notes."""

    steps: Sequence[Any] = ()
    """The part's share of DSPy's trace."""

    @property
    def helps(self) -> bool:
        return self.failure is not None or self.text.strip(" .\"'\n").lower() != NOTHING

    def render(self) -> str:
        if self.failure is None:
            return f"{self.part.head}\n{self.text}"
        verb = "was not" if isinstance(self.failure, LimitReached) else "could not be"
        return f"{self.part.head}\n[{verb} read: {format_error_for_lm(self.failure)}]"


class MapReduce(TextProgram):
    """Notes on every part of the text, taken in parallel, then one answer from all notes.

    Notes that are too long for the last prompt are taken notes on in turn, level by level. Map
    calls go to the model for sub-queries, the DSPy setting `fleet_sub_lm`, else to the caller's.

    A part without notes, because its call failed or a limit was met, is named in the notes, and in
    the prediction: `parts`, `failed_parts`, `unread_parts`. At a limit the answer is made from the
    notes that are paid for, and `stop` is the limit's kind.
    """

    summary = "baseline: notes on every part of the context, in parallel, then one answer from them"
    roles: ClassVar = ("root", "sub")
    settings_type: ClassVar = MapReduceSettings

    def build(self, guidance: str, settings: ProgramSettings) -> None:
        self.map = Reader(TakeNotes.with_instructions(_both(TakeNotes.instructions, guidance)))
        reduced = self.signature.delete("context").prepend(
            "notes", dspy.InputField(desc="notes on the parts of the text, in its order"), str
        )
        self.reduce = Reader(reduced.with_instructions(_both(REDUCE, guidance)))
        self.settings = settings

    def answer_from(self, text: str, query: str) -> dspy.Prediction:
        room = self.reduce.room(self.settings["max_tokens"], text="notes", query=query)
        parts = self._parts(text, "part")
        notes = self._take_notes(parts, query)
        failures = [note.failure for note in notes if note.failure]
        if failures and len(failures) == len(notes):
            raise failures[0]
        limit = next((f for f in failures if isinstance(f, LimitReached)), None)
        shown, limit = self._fit(_render(notes), query, room, limit)
        found, stop = self._reduce(shown, query, limit)
        unread = sum(isinstance(failure, LimitReached) for failure in failures)
        failed = len(failures) - unread
        return tell(
            found,
            f"Notes on {len(notes) - len(failures):,} of {len(notes):,} parts;"
            f" {failed} failed, {unread} not read.",
            stop=stop,
            parts=len(notes),
            failed_parts=failed,
            unread_parts=unread,
            trajectory=[
                {"reasoning": note.part.head, "code": "", "output": note.render()} for note in notes
            ],
        )

    def _parts(self, text: str, kind: str) -> list[_Part]:
        pieces = cut(text, self.settings["chunk_tokens"])
        return [
            _Part(
                f"[{kind} {number:,} of {len(pieces):,},"
                f" characters {piece.start:,} to {piece.end:,}]",
                text[piece.start : piece.end],
            )
            for number, piece in enumerate(pieces, 1)
        ]

    def _fit(
        self, notes: str, query: str, room: int, limit: LimitReached | None
    ) -> tuple[str, LimitReached | None]:
        """Notes that fit into `room` tokens: by notes on notes, at last by leaving out a middle."""
        tokens = count_tokens(notes)
        while tokens > room and limit is None:
            level = self._take_notes(self._parts(notes, "notes"), query)
            limit = next((n.failure for n in level if isinstance(n.failure, LimitReached)), None)
            # Where a call failed, the notes themselves are the better account.
            notes = "\n\n".join(n.part.text.strip() if n.failure else n.text for n in level)
            before, tokens = tokens, count_tokens(notes)
            if tokens > _SHORTER * before:
                break
        return keep_ends(notes, room).text, limit

    def _take_notes(self, parts: Sequence[_Part], query: str) -> list[_Note]:
        """Notes on each part, in order."""
        if not parts:
            return []
        workers = min(self.settings["batch_workers"], len(parts))
        pool = ThreadPoolExecutor(workers, "fleet-map")
        try:
            # A context each: DSPy's settings, and with them the ledger, go with every call.
            asked: list[Future[_Note]] = [
                pool.submit(contextvars.copy_context().run, self._take_note, part, query)
                for part in parts
            ]
            notes = [future.result() for future in asked]
        finally:
            pool.shutdown(cancel_futures=True)
        trace = dspy.settings.trace
        if trace is not None:
            # In the order of the text, not in that of the threads: optimizers draw from it.
            trace.extend(step for note in notes for step in note.steps)
        return notes

    def _take_note(self, part: _Part, query: str) -> _Note:
        check_cancelled()
        text = f"{part.head}\n{part.text}"
        lm = self.map.lm or dspy.settings.get(SUB_LM_SETTING) or dspy.settings.lm
        steps: list[Any] = []
        emit("sub_query", text[:SHOWN_CHARS], chars=len(text))
        try:
            with dspy.context(trace=steps):
                notes = str(self.map(context=text, query=query, lm=lm).notes)
        except AdapterParseError as error:
            # Notes have no form to miss: what the model wrote is what it found.
            notes = str(error.lm_response or "")
        except (dspy.LMError, LimitReached) as error:
            return _Note(part=part, failure=error)
        emit("sub_query", notes[:SHOWN_CHARS], chars=len(notes), answered=True)
        return _Note(part=part, text=notes, steps=steps)

    def _reduce(
        self, notes: str, query: str, limit: LimitReached | None
    ) -> tuple[dspy.Prediction, str]:
        if limit is None:
            try:
                return self.reduce(notes=notes, query=query), "answered"
            except LimitReached as reached:
                limit = reached
        ledger = current_ledger()
        with ledger.grace() if ledger else nullcontext():
            return self.reduce(notes=notes, query=query), limit.kind


def _render(notes: Sequence[_Note]) -> str:
    shown = [note.render() for note in notes if note.helps]
    if len(shown) < len(notes):
        shown.append(f"[{len(notes) - len(shown):,} of {len(notes):,} parts do not help]")
    return "\n\n".join(shown)


def _both(instructions: str, guidance: str) -> str:
    return f"{instructions}\n\n{guidance}" if guidance else instructions
