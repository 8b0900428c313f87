"""What the simulated service says to a chat request, and what it counts; no network in here."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fleet_rlm.lm.simulated import LABEL, PRICES
from fleet_rlm.lm.simulated.brain import Brain
from fleet_rlm.lm.simulated.knobs import REFUSAL, Knobs
from fleet_rlm.lm.simulated.prompt import Turn, digest
from fleet_rlm.lm.simulated.reader import tokens_of

_INVALID = "invalid_request_error"


class Refused(Exception):
    """A request that gets an error, as OpenAI words it.

    Args:
        status: of HTTP.
        message: one line.
        kind: `error.type`.
        code: `error.code`.
        retry_after: seconds that the client is asked to wait.
    """

    def __init__(
        self,
        status: int,
        message: str,
        kind: str = _INVALID,
        code: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after
        self.body = {"error": {"message": message, "type": kind, "param": None, "code": code}}


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What to send, how fast, and what is to go wrong with it."""

    id: str
    model: str
    text: str
    finish: str
    prompt_tokens: int
    completion_tokens: int
    first_token_s: float
    token_s: float
    created: int
    fault: str | None = None
    """A fault of the connection: "hang", "malformed", "reset" or "truncate"."""

    @property
    def usage(self) -> dict[str, int]:
        """Tokens, as the `usage` of OpenAI's API shows them."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
        }


@dataclass(slots=True)
class Counts:
    """What a service has seen since it started or was configured."""

    in_flight: int = 0
    requests: int = 0
    ok: int = 0
    connections: int = 0
    max_in_flight: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    first: float | None = None
    last: float = 0.0
    busy_s: float = 0.0
    """Integral of the requests in flight over time."""

    def begin(self, now: float) -> None:
        """A request has arrived."""
        if self.first is None:
            self.first = self.last = now
        self.requests += 1
        self._move(now, 1)

    def end(self, now: float) -> None:
        """A request has been answered, or given up."""
        self._move(now, -1)

    def to_json(self) -> dict[str, Any]:
        """As `/__sim/stats` shows it."""
        span_s = 0.0 if self.first is None else self.last - self.first
        return {
            "requests": self.requests,
            "ok": self.ok,
            "faults": dict(self.faults),
            "kinds": dict(self.kinds),
            "connections": self.connections,
            "in_flight": self.in_flight,
            "max_in_flight": self.max_in_flight,
            "mean_in_flight": self.busy_s / span_s if span_s else 0.0,
            "span_s": span_s,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "cpu_s": time.process_time(),
            "banner": LABEL,
        }

    def _move(self, now: float, by: int) -> None:
        if self.first is not None:
            self.busy_s += self.in_flight * (now - self.last)
            self.last = now
        self.in_flight += by
        self.max_in_flight = max(self.max_in_flight, self.in_flight)


class Service:
    """The simulated model with its knobs and counts; for one thread.

    Args:
        knobs: how it behaves.
    """

    def __init__(self, knobs: Knobs) -> None:
        self.counts = Counts()
        self.configure(knobs)

    def configure(self, knobs: Knobs) -> None:
        """Behave by other knobs, and count from the start."""
        self.knobs = knobs
        self.counts = Counts(in_flight=self.counts.in_flight, max_in_flight=self.counts.in_flight)
        self._brain = Brain(knobs.seed)
        self._seen: Counter[str] = Counter()
        self._sampled: Counter[str] = Counter()
        self._tokens, self._filled = knobs.rpm, time.monotonic()

    def answer(self, request: Mapping[str, Any], key: str | None) -> Answer:
        """What to say to a chat request.

        Args:
            request: the body, as OpenAI's chat completions take it.
            key: what the client sent as its key.

        Raises:
            Refused: the request gets an error.
        """
        model, turns = self._accept(request, key)
        prompt = digest(turns).hex()
        nth, number = self._seen[prompt], self._seen.total() if self.knobs.fail_first else 0
        self._seen[prompt] += 1
        self._limit_rate()
        fault = self.knobs.fault(prompt, nth, number)
        if fault:
            self.counts.faults[fault] += 1
            self._fail(fault)
        prompt_tokens = sum(tokens_of(turn.text) for turn in turns)
        most = request.get("max_completion_tokens") or request.get("max_tokens")
        self._fit(prompt_tokens, most or 0)
        text, finish = self._say(model, turns, prompt, fault, request), "stop"
        if most and tokens_of(text) > most:
            text, finish = text[: 4 * most], "length"
        return Answer(
            id=f"simulated-{prompt}-{nth}",
            model=model,
            text=text,
            finish=finish,
            prompt_tokens=prompt_tokens,
            completion_tokens=tokens_of(text),
            first_token_s=self.knobs.first_token_s(prompt, nth, prompt_tokens),
            token_s=self.knobs.token_s(prompt, nth),
            created=int(time.time()),
            fault=None if fault in {"empty", "refuse"} else fault,
        )

    def sent(self, answer: Answer) -> None:
        """Count an answer that went out whole."""
        self.counts.ok += 1
        self.counts.prompt_tokens += answer.prompt_tokens
        self.counts.completion_tokens += answer.completion_tokens

    def _accept(self, request: Mapping[str, Any], key: str | None) -> tuple[str, list[Turn]]:
        if self.knobs.api_key and key != self.knobs.api_key:
            message = "Incorrect API key provided."
            raise Refused(401, message, code="invalid_api_key")
        if not isinstance(request, dict):
            raise Refused(400, "The body must be a JSON object.")
        model = request.get("model")
        if model not in PRICES:
            message = f"The model `{model}` does not exist. Known: {', '.join(PRICES)}."
            raise Refused(404, message, code="model_not_found")
        if request.get("n") not in {None, 1}:
            raise Refused(400, "n: one choice a request is all there is.")
        most = request.get("max_completion_tokens") or request.get("max_tokens") or 1
        if not isinstance(most, int) or most < 1:
            raise Refused(400, "max_tokens must be a whole number from 1.")
        return str(model), _turns(request.get("messages"))

    def _limit_rate(self) -> None:
        if not self.knobs.rpm:
            return
        now, a_second = time.monotonic(), self.knobs.rpm / 60
        self._tokens = min(self.knobs.rpm, self._tokens + (now - self._filled) * a_second)
        self._filled = now
        if self._tokens < 1:
            self.counts.faults["rpm"] += 1
            self._refuse_rate("rpm", (1 - self._tokens) / a_second)
        self._tokens -= 1

    def _fail(self, fault: str) -> None:
        if fault == "429":
            self._refuse_rate("drawn", self.knobs.retry_after)
        if fault in {"500", "503"}:
            raise Refused(int(fault), "The server had an error (simulated).", "server_error")

    def _refuse_rate(self, why: str, wait_s: float) -> None:
        message = f"Rate limit reached ({why}, simulated)."
        raise Refused(429, message, "requests", "rate_limit_exceeded", wait_s)

    def _fit(self, prompt_tokens: int, reply_tokens: int) -> None:
        window = self.knobs.context_window
        if prompt_tokens + reply_tokens > window:
            self.counts.faults["context"] += 1
            message = (
                f"This model's maximum context length is {window} tokens. However, you requested "
                f"{prompt_tokens + reply_tokens} tokens ({prompt_tokens} in the messages, "
                f"{reply_tokens} in the completion)."
            )
            raise Refused(400, message, code="context_length_exceeded")

    def _say(
        self,
        model: str,
        turns: list[Turn],
        prompt: str,
        fault: str | None,
        request: Mapping[str, Any],
    ) -> str:
        if fault:
            return REFUSAL if fault == "refuse" else ""
        if self.knobs.echo:
            return self.knobs.echo
        occurrence = 0
        if request.get("temperature"):  # as in `SimulatedEngine`: sampling says something else
            occurrence = self._sampled[prompt]
            self._sampled[prompt] += 1
        reply = self._brain.reply(turns, model=model, occurrence=occurrence)
        self.counts.kinds[reply.kind] += 1
        return reply.text


def _turns(messages: Any) -> list[Turn]:
    """The conversation, system text first."""
    if not isinstance(messages, list) or not messages:
        raise Refused(400, "messages must be a list of messages.")
    turns = []
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise Refused(400, "A message must be an object with a role.")
        role = message["role"]
        role = "system" if role == "developer" else role
        turns.append(Turn(role, _text(message.get("content"))))
    return sorted(turns, key=lambda turn: turn.role != "system")


def _text(content: Any) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    parts = content if isinstance(content, list) else [content]
    texts = [part.get("text") for part in parts if isinstance(part, dict)]
    if len(texts) < len(parts) or not all(isinstance(text, str) for text in texts):
        raise Refused(400, "content must be a text or a list of text parts.")
    return "".join(map(str, texts))
