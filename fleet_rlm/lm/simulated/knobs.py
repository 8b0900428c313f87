"""How the simulated model behaves as a service: its speed, its limits and its faults, by seed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from fleet_rlm.errors import UsageError, nearest
from fleet_rlm.lm.simulated.skill import draw

FAULTS = ("429", "500", "503", "hang", "malformed", "reset", "truncate", "empty", "refuse")
"""What can go wrong with a request.

Three statuses; no reply at all; JSON that does not parse, with status 200; a connection reset; a
body that ends early; a reply without text; and a model that says `REFUSAL`.
"""

REFUSAL = "I can't help with that."


@dataclass(frozen=True, slots=True, kw_only=True)
class Knobs:
    """Behaviour of a simulated service, named as llm-d-inference-sim and vLLM name theirs.

    Raises:
        UsageError: a value of another type, below 0, or a rate above 1; a fault that is not known.
    """

    latency_ms: float = 0.0
    """Time to the first token."""

    itl_ms: float = 0.0
    """Time between two tokens of the reply."""

    prefill_us: float = 0.0
    """Time to the first token, for each token of the prompt, in microseconds."""

    jitter: float = 0.0
    """Largest part by which a request is faster or slower, in [0, 1]."""

    max_num_seqs: int = 0
    """Requests worked on at once, others queue; 0 for no limit."""

    rpm: float = 0.0
    """Requests a minute, in a bucket that starts full; 0 for no limit. Beyond it: 429."""

    context_window: int = 128_000
    """Tokens of prompt and reply asked for; beyond it: 400, `context_length_exceeded`."""

    faults: Mapping[str, float] = field(default_factory=dict)
    """Rate of each fault, of `FAULTS`; together at most 1."""

    fail_first: Mapping[str, int] = field(default_factory=dict)
    """How many of the first requests get a fault, in the order given; before any rate."""

    retry_after: float = 0.05
    """Seconds that a drawn 429 asks to wait."""

    hang_s: float = 30.0
    """How long a hanging request keeps its connection open."""

    patience_s: float = 30.0
    """Longest wait for a request that has begun to arrive; beyond it: 408."""

    api_key: str = field(default="", repr=False)
    """The key that clients must send; empty to take any."""

    seed: int = 0
    """Of every draw, the model's own included."""

    echo: str = ""
    """A fixed reply, to measure what is around the model."""

    def __post_init__(self) -> None:
        for knob in fields(self):
            _check(knob.name, getattr(self, knob.name), str(knob.type))
        for name in ("faults", "fail_first"):
            for kind in getattr(self, name):
                if kind not in FAULTS:
                    raise UsageError(f"{name}: no fault {kind!r}. {nearest(kind, FAULTS)}")
        if self.jitter > 1 or sum(self.faults.values()) > 1 + 1e-9:
            raise UsageError("jitter, and the rates of faults together, are at most 1")

    def changed(self, changes: Mapping[str, Any]) -> Knobs:
        """These knobs with some of them changed.

        Raises:
            UsageError: naming the knob that is not known, or whose value is wrong.
        """
        known = [knob.name for knob in fields(self)]
        for name in changes:
            if name not in known:
                raise UsageError(f"No knob {name!r}. {nearest(name, known)}")
        return replace(self, **changes)

    def fault(self, prompt: str, nth: int, number: int) -> str | None:
        """The fault of a request, if any.

        Args:
            prompt: what identifies the prompt.
            nth: how often the same prompt came before, so that a retry draws anew.
            number: how many requests came before.
        """
        for kind, count in self.fail_first.items():
            if number < count:
                return kind
            number -= count
        luck = draw(self.seed, "fault", prompt, nth) if self.faults else 1.0
        for kind, rate in self.faults.items():
            if luck < rate:
                return kind
            luck -= rate
        return None

    def first_token_s(self, prompt: str, nth: int, prompt_tokens: int) -> float:
        """Seconds to the first token of a reply; `prompt` and `nth` as for `fault`."""
        return (self.latency_ms / 1e3 + self.prefill_us * prompt_tokens / 1e6) * self._pace(
            prompt, nth
        )

    def token_s(self, prompt: str, nth: int) -> float:
        """Seconds between two tokens of a reply."""
        return self.itl_ms / 1e3 * self._pace(prompt, nth)

    def _pace(self, prompt: str, nth: int) -> float:
        if not self.jitter:
            return 1.0
        return 1 + self.jitter * (2 * draw(self.seed, "jitter", prompt, nth) - 1)


def parse_faults(text: str) -> dict[str, float]:
    """Rates of faults, as a command line writes them: "429=0.05,500=0.02".

    Raises:
        UsageError: a part is not KIND=RATE.
    """
    rates = {}
    for part in filter(None, text.split(",")):
        kind, _, rate = part.partition("=")
        try:
            rates[kind.strip()] = float(rate)
        except ValueError:
            raise UsageError(f"Fault {part!r} is not KIND=RATE.", fix="--faults 429=0.05") from None
    return rates


def _check(name: str, value: Any, kind: str) -> None:
    if kind == "str":
        right = isinstance(value, str)
    elif kind.startswith("Mapping"):
        right = isinstance(value, Mapping)
        for key, amount in value.items() if right else ():
            _check(f"{name}.{key}", amount, "int" if "int" in kind else "float")
    else:
        right = _is_amount(value, kind) and (value >= 0 or name == "seed")
    if not right:
        noun = "a text" if kind == "str" else "a table" if kind[0] == "M" else "a number from 0"
        raise UsageError(f"{name} must be {noun}, not {value!r}")


def _is_amount(value: Any, kind: str) -> bool:
    numbers = int if kind == "int" else (int, float)
    return isinstance(value, numbers) and not isinstance(value, bool) and math.isfinite(value)
