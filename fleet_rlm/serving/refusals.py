"""Errors as HTTP answers: which status each has, and the body that says why."""

from __future__ import annotations

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import dspy
from fastapi.responses import JSONResponse

from fleet_rlm import errors
from fleet_rlm.errors import (
    BudgetExhausted,
    FleetError,
    LimitReached,
    ProgramError,
    ProviderError,
    SampleError,
    SandboxError,
    SandboxUnavailable,
    UsageError,
)
from fleet_rlm.program.agent.events import StreamEvent


class Declined(FleetError):
    """A request that is not served, and what the client can do.

    Args:
        status: of the answer.
        message: one line.
        retry_after: seconds after which it may be served.
    """

    def __init__(
        self, status: HTTPStatus, message: str, *, retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after


_STATUS: tuple[tuple[type[FleetError], HTTPStatus], ...] = (
    (UsageError, HTTPStatus.BAD_REQUEST),
    (LimitReached, HTTPStatus.GATEWAY_TIMEOUT),
    (ProviderError, HTTPStatus.BAD_GATEWAY),
    (SandboxError, HTTPStatus.SERVICE_UNAVAILABLE),
    (SandboxUnavailable, HTTPStatus.SERVICE_UNAVAILABLE),
    (BudgetExhausted, HTTPStatus.SERVICE_UNAVAILABLE),
)


def status_of(error: FleetError) -> HTTPStatus:
    """The status of an answer that tells of this error."""
    if isinstance(error, Declined):
        return error.status
    found = (status for kind, status in _STATUS if isinstance(error, kind))
    return next(found, HTTPStatus.INTERNAL_SERVER_ERROR)


def failure_of(event: StreamEvent) -> SampleError:
    """The error that an `error` event tells of."""
    name = str(event.payload.get("error_type", ""))
    kind = getattr(dspy, name, None) or getattr(errors, name, None)
    if isinstance(kind, type) and issubclass(kind, dspy.LMError):
        return ProviderError(event.text)
    if isinstance(kind, type) and issubclass(kind, SandboxError | SandboxUnavailable):
        return SandboxError(event.text)
    return ProgramError(event.text)


def headers_of(error: FleetError) -> dict[str, str]:
    """Headers that go with it."""
    headers = {}
    if isinstance(error, Declined):
        if error.retry_after is not None:
            headers["retry-after"] = str(max(1, round(error.retry_after)))
        if error.status == HTTPStatus.UNAUTHORIZED:
            headers["www-authenticate"] = "Bearer"
    return headers


def body_of(message: str, status: int) -> dict[str, Any]:
    """The body of every answer that is no success."""
    kind = HTTPStatus(status).phrase.lower().replace(" ", "_")
    return {"error": {"message": message, "type": kind, "code": int(status)}}


class PlainJSON(JSONResponse):
    """JSON in ASCII: what a model or its code writes may hold lone surrogates, which UTF-8 cannot
    carry."""

    def render(self, content: Any) -> bytes:
        return json.dumps(content, separators=(",", ":")).encode()


def check_unicode(value: Any) -> None:
    """Raise unless all texts in plain data can be sent to a model.

    Raises:
        UsageError: one holds a lone surrogate.
    """
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise UsageError(
                "A text is not valid Unicode: it holds half of a surrogate pair."
            ) from None
    elif isinstance(value, Mapping):
        for key, held in value.items():
            check_unicode(key)
            check_unicode(held)
    elif isinstance(value, list):
        for held in value:
            check_unicode(held)
