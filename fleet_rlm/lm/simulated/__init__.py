"""The keyless model: a simulated language model that reads DSPy prompts and writes real code.

Start reading at `brain.py`; `skill.py` is the table that decides how good it is. Only `engine.py`
needs dspy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fleet_rlm.lm.prices import Price

if TYPE_CHECKING:
    from fleet_rlm.lm.simulated.engine import SimulatedEngine
    from fleet_rlm.lm.simulated.skill import ORACLE_GUIDANCE

__all__ = [
    "LABEL",
    "ORACLE_GUIDANCE",
    "PRICES",
    "SimulatedEngine",
]

LABEL = "simulated model: these numbers show the harness, not any model"
"""Stands beside every number that this model had a part in."""

PRICES: dict[str, Price] = {
    "sim": Price(input=1.00, output=4.00, cached_input=1.00, source="simulated"),
    "sim-mini": Price(input=0.20, output=0.80, cached_input=0.20, source="simulated"),
}
"""Pretend dollars, so that costs flow through the ledger."""


def __getattr__(name: str) -> Any:
    if name == "SimulatedEngine":
        from fleet_rlm.lm.simulated.engine import SimulatedEngine

        return SimulatedEngine
    if name == "ORACLE_GUIDANCE":
        from fleet_rlm.lm.simulated.skill import ORACLE_GUIDANCE

        return ORACLE_GUIDANCE
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
