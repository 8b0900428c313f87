"""A `dspy.LM` that asks the sample's ledger before each call and books what the call cost."""

from __future__ import annotations

from typing import Any

import dspy

from fleet_rlm.ledger import Ledger, Role
from fleet_rlm.lm.prices import Price

LEDGER_SETTING = "fleet_ledger"
"""DSPy setting that carries the ledger: `with dspy.context(fleet_ledger=ledger): program(...)`."""


def current_ledger() -> Ledger | None:
    """The ledger of the sample that runs in this context, if any."""
    ledger: Ledger | None = dspy.settings.get(LEDGER_SETTING)
    return ledger


class MeteredLM(dspy.LM):
    """An LM whose calls are limited and booked, in every thread that shares DSPy's settings.

    Args:
        model: name as `dspy.LM` takes it.
        role: who spends: "root" or "sub".
        price: dollars per million tokens.
        settings: everything else that `dspy.LM` takes.

    Raises:
        LimitReached: from a call, when the sample's ledger has met a limit.
    """

    def __init__(self, model: str, *, role: Role, price: Price, **settings: Any) -> None:
        super().__init__(model, **settings)
        self.role: Role = role
        self.price = price

    def __call__(self, prompt: Any = None, **kwargs: Any) -> Any:
        self._check()
        return super().__call__(prompt, **kwargs)

    async def acall(self, prompt: Any = None, **kwargs: Any) -> Any:
        self._check()
        return await super().acall(prompt, **kwargs)

    def update_history(self, entry: dict[str, Any]) -> None:
        """Book one finished call; dspy calls this in the caller's context, also for sub-calls.

        The entry itself is dropped: kept prompts would grow without bound (100 MB at 500 samples in
        flight).
        """
        ledger = current_ledger()
        usage = entry.get("usage") or {}
        if ledger is not None and usage:
            details = usage.get("prompt_tokens_details") or {}
            ledger.book(
                self.role,
                self.price.cost(
                    input_tokens=usage.get("prompt_tokens") or 0,
                    output_tokens=usage.get("completion_tokens") or 0,
                    cached_tokens=details.get("cached_tokens") or 0,
                ),
            )

    def __deepcopy__(self, _memo: object) -> MeteredLM:
        # Optimizers copy programs several times a trial; a model has no state worth a copy.
        return self

    def _check(self) -> None:
        ledger = current_ledger()
        if ledger is not None:
            ledger.check()
