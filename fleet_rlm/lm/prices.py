"""What a model call costs: dollars per token by model name."""

from __future__ import annotations

import functools
import gzip
import json
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from fleet_rlm.errors import UsageError
from fleet_rlm.ledger import Usage


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """US dollars per one million tokens."""

    input: float
    output: float
    cached_input: float
    source: str
    """Where the figures come from: "simulated", "flag" or the price list's name."""

    def cost(self, *, input_tokens: int, output_tokens: int, cached_tokens: int = 0) -> Usage:
        """One call's usage; `cached_tokens` is the part of `input_tokens` read from a cache."""
        fresh = input_tokens - cached_tokens
        usd = fresh * self.input + cached_tokens * self.cached_input + output_tokens * self.output
        return Usage(
            calls=1,
            input_tokens=input_tokens,
            cached_tokens=cached_tokens,
            output_tokens=output_tokens,
            usd=usd / 1_000_000,
        )


UNPRICED = Price(input=0.0, output=0.0, cached_input=0.0, source="unknown")
"""Of a model whose price nobody gave: its dollars are unknown, not nothing."""


def parse_price(text: str) -> Price:
    """`"0.25/2"` -> dollars per million input and output tokens.

    Raises:
        UsageError: not two non-negative numbers.
    """
    try:
        given, made = (float(part) for part in text.split("/"))
        if given < 0 or made < 0:
            raise ValueError
    except ValueError:
        raise UsageError(
            f"--price {text!r} is not INPUT/OUTPUT in dollars per million tokens.",
            fix="--price 0.25/2",
        ) from None
    return Price(input=given, output=made, cached_input=given, source="flag")


def find_price(model: str) -> Price:
    """The price of a real model, from the list that ships with DSPy.

    Args:
        model: provider/name, as DSPy writes it.

    Raises:
        UsageError: the list has no price for it.
    """
    listed = _price_list()
    entry = listed.get(model) or listed.get(model.partition("/")[2])
    if not entry or "input_cost_per_token" not in entry:
        raise UsageError(
            f"No price is known for model {model!r}, so dollars could not be counted.",
            fix="--price INPUT/OUTPUT (dollars per million tokens; 0/0 for a model of your own),"
            " or --allow-unpriced",
        )
    per_token = float(entry["input_cost_per_token"])
    cached = entry.get("cache_read_input_token_cost")
    return Price(
        input=per_token * 1e6,
        output=float(entry.get("output_cost_per_token") or 0.0) * 1e6,
        cached_input=(per_token if cached is None else float(cached)) * 1e6,
        source="price list shipped with dspy",
    )


def find_window(model: str) -> int | None:
    """Input tokens that a model takes, by the same list; None where it does not say."""
    listed = _price_list()
    entry = listed.get(model) or listed.get(model.partition("/")[2]) or {}
    window = entry.get("max_input_tokens")
    return window if isinstance(window, int) and window > 0 else None


@functools.cache
def _price_list() -> dict[str, dict[str, Any]]:
    # Read from the package's file: dspy's own loader may first try the network for five seconds.
    packed = files("dspy.clients.model_metadata").joinpath("snapshot.json.gz").read_bytes()
    listed: dict[str, dict[str, Any]] = json.loads(gzip.decompress(packed))
    return listed
