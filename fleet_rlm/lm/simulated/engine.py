"""The simulated model behind `dspy.LM(model, engine=...)`."""

from __future__ import annotations

import re
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from dspy.lm15 import Message, Request, Response, TextPart, Usage, response_to_events

from fleet_rlm.lm.simulated.brain import KINDS, Brain
from fleet_rlm.lm.simulated.prompt import Turn, digest
from fleet_rlm.lm.simulated.reader import tokens_of


class SimulatedEngine:
    """A custom DSPy engine: `dspy.LM("sim", engine=SimulatedEngine(seed=0))`.

    `request.model` is "sim", or "sim-mini" for a cheaper reader that errs sooner. Usage counts one
    token per four characters of prompt and of reply. Safe to use from many threads; a deep copy is
    the engine itself, so its counts stay complete.

    Args:
        seed: of every draw.
    """

    supports_function_calling = False
    supports_response_schema = False

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self._brain = Brain(seed)
        self._kinds: Counter[str] = Counter()
        self._seen: Counter[bytes] = Counter()
        self._lock = threading.Lock()

    @property
    def kinds(self) -> Mapping[str, int]:
        """Requests answered so far, by kind."""
        with self._lock:
            return {kind: self._kinds[kind] for kind in KINDS}

    def complete(self, request: Request) -> Response:
        """Answer one request."""
        turns = _turns(request)
        reply = self._brain.reply(
            turns,
            model=request.model,
            occurrence=self._count_occurrence(request, turns),
        )
        with self._lock:
            self._kinds[reply.kind] += 1
        asked, said = sum(tokens_of(turn.text) for turn in turns), tokens_of(reply.text)
        return Response(
            id=f"simulated-{digest(turns).hex()}",
            model=request.model,
            message=Message.assistant([TextPart(reply.text)]),
            finish_reason="stop",
            usage=Usage(input_tokens=asked, output_tokens=said, total_tokens=asked + said),
        )

    def stream(self, request: Request) -> Iterator[Any]:
        """Answer one request as a stream of events, a word at a time."""
        return _events(self.complete(request))

    def close(self) -> None:
        """Nothing is open."""

    def dump_state(self) -> dict[str, int]:
        """What a saved program needs to make this engine again."""
        return {"seed": self.seed}

    @classmethod
    def load_state(cls, state: Mapping[str, Any]) -> SimulatedEngine:
        """The engine that `dump_state` described."""
        return cls(seed=int(state.get("seed", 0)))

    def __deepcopy__(self, _memo: object) -> SimulatedEngine:
        return self

    def _count_occurrence(self, request: Request, turns: list[Turn]) -> int:
        # DSPy strips rollout ids, so sampling shows only as a prompt that comes again.
        if not request.config.temperature:
            return 0
        key = digest(turns)
        with self._lock:
            self._seen[key] += 1
            return self._seen[key] - 1


def _events(response: Response) -> Iterator[Any]:
    for event in response_to_events(response):
        if event.type != "delta":
            yield event
            continue
        for word in re.findall(r"\s*\S+\s*?|\s+", event.delta.text):
            yield replace(event, delta=replace(event.delta, text=word))


def _turns(request: Request) -> list[Turn]:
    system = request.system
    if system is not None and not isinstance(system, str):
        system = "".join(getattr(part, "text", "") for part in system)
    head = [Turn("system", system)] if system else []
    return head + [Turn(message.role, message.text or "") for message in request.messages]
