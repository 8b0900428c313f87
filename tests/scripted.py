"""A language model that follows a script: for replies that a simulated model never gives."""

from __future__ import annotations

import threading
from collections.abc import Callable

from dspy.lm15 import Message, Request, Response, TextPart, Usage, response_to_events

from fleet_rlm.lm.metered import MeteredLM
from fleet_rlm.lm.prices import Price

FREE = Price(input=0.0, output=0.0, cached_input=0.0, source="flag")
DOLLAR = Price(input=1e6, output=1e6, cached_input=1e6, source="flag")
"""One dollar a token."""


def fields(**values: str) -> str:
    """A reply in the form that dspy's chat adapter reads."""
    body = "\n\n".join(f"[[ ## {name} ## ]]\n{value}" for name, value in values.items())
    return body + "\n\n[[ ## completed ## ]]"


def action(code: str) -> str:
    """One turn of an RLM."""
    return fields(reasoning="", code=f"```python\n{code}\n```")


class ScriptedEngine:
    """An engine around `script(prompt text, number of the call) -> reply or exception`."""

    def __init__(self, script: Callable[[str, int], str | Exception]) -> None:
        self.script = script
        self.prompts: list[str] = []
        self._lock = threading.Lock()

    def complete(self, request: Request) -> Response:
        system = request.system
        text = system if isinstance(system, str) else "".join(p.text for p in system or ())
        prompt = "\n".join([text, *(message.text or "" for message in request.messages)])
        with self._lock:
            self.prompts.append(prompt)
            number = len(self.prompts)
        reply = self.script(prompt, number)
        if isinstance(reply, Exception):
            raise reply
        return Response(
            id=f"scripted-{number}",
            model=request.model,
            message=Message.assistant([TextPart(reply)]),
            finish_reason="stop",
            usage=Usage(input_tokens=10, output_tokens=5, total_tokens=15),
        )

    def stream(self, request: Request):
        return response_to_events(self.complete(request))

    def close(self) -> None: ...

    def __deepcopy__(self, _memo: object) -> ScriptedEngine:
        return self


def scripted_lm(script, *, role="root", price=FREE) -> MeteredLM:
    """A metered model that follows `script`; its prompts are in `lm.engine.prompts`."""
    engine = ScriptedEngine(script)
    return MeteredLM("scripted", role=role, price=price, engine=engine, cache=False, tries=1)
