"""Calls of texts alone, made as DSPy makes them, without what it looks up for other kinds of call.

DSPy renders each call to a provider's form, reads that back, prices the reply and keeps a history
of it: a third of the processor time of a call. What is not plain takes that way.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import dspy

FITS = dspy.__version__ == "3.4.1"
"""These are the steps of that version. With another nothing is plain: DSPy takes its own."""

if FITS:
    from dspy.clients import execution
    from dspy.clients._deprecation import warn_openai_messages
    from dspy.clients.errors import error_boundary
    from dspy.lm15 import Message, Request, TextPart

    _CALL = execution.PreparedCall(
        prompt=None,
        messages=None,
        kwargs={},
        legacy={},
        request=None,
        cache=False,
        n=1,
        managed=True,
    )

if TYPE_CHECKING:
    from fleet_rlm.lm.metered import MeteredLM

_WATCHED = ("callbacks", "send_stream", "usage_tracker")
"""DSPy settings with someone who is told of each call."""


class Plain:
    """Recognises the plain calls of one model; made anew when its name or settings change."""

    def __init__(self, lm: MeteredLM) -> None:
        self._made_for = lm.model, copy.deepcopy(lm.kwargs)
        call = execution.prepare(lm, "x", None, {})
        with error_boundary(lm.model):
            self._template: Request = execution._canonical(call)
        self._answers_are_texts = call.n == 1 and not call.legacy.get("logprobs")

    def fits(self, lm: MeteredLM) -> bool:
        """Whether it was made for the model as it is."""
        return self._made_for == (lm.model, lm.kwargs)

    def request(self, lm: MeteredLM, prompt: Any, given: Mapping[str, Any]) -> Request | None:
        """What a call asks, if texts are all that it is made of and nobody else is told of it.

        Args:
            lm: whose call it is.
            prompt: as `dspy.LM` takes it.
            given: the keyword arguments of the call.
        """
        messages = given.get("messages")
        if lm.cache or lm.num_retries or lm.callbacks or not self._answers_are_texts:
            return None
        if len(given) > bool(messages) or is_watched():
            return None
        rows = messages or [{"role": "user", "content": prompt}]
        system = None
        if type(rows) is list and type(rows[0]) is dict and rows[0].get("role") == "system":
            system, rows = _text(rows[0]), rows[1:]
            if not system:
                return None
        return _with_texts(self._template, system, rows)


def is_watched() -> bool:
    """Whether somebody is told of each call in this context."""
    return any(map(dspy.settings.get, _WATCHED))


def is_plain(lm: MeteredLM) -> bool:
    """Whether a model can make plain calls at all."""
    return FITS and lm.model_type == "chat" and not isinstance(lm.engine, str)


def _with_texts(template: Request, system: str | None, rows: Any) -> Request | None:
    if type(rows) is not list or not rows:
        return None
    messages = []
    for row in rows:
        text = _text(row)
        if text is None or row["role"] not in ("user", "assistant"):
            return None
        messages.append(Message(role=row["role"], parts=(TextPart(text=text),)))
    return replace(template, system=system, messages=tuple(messages))


def _text(row: Any) -> str | None:
    """The text of a message that is nothing else; None where a provider could not take it."""
    if type(row) is not dict or row.keys() != {"role", "content"}:
        return None
    text = row["content"]
    if type(text) is not str:
        return None
    try:
        text.isascii() or text.encode()
    except UnicodeEncodeError:
        return None
    return text


def ask(lm: MeteredLM, request: Request, messages: Any) -> list[Any]:
    """Make the call: one attempt, booked with `lm.update_history`.

    Raises:
        LMError: it failed, as it fails on DSPy's way.
    """
    warn_openai_messages(lm, messages)
    try:
        with error_boundary(lm.model, unexpected=True):
            response = lm.engine.complete(request)
            result = execution._result(lm, response, _CALL, None, estimate=False)
    except dspy.LMError as error:
        execution._hint_responses_api(lm, error)
        raise
    lm.update_history({"usage": result.usage, "response": result.raw})
    outputs: list[Any] = result.outputs
    return outputs
