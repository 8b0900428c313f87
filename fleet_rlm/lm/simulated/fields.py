"""Which output field takes the answer, and what goes into the others."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from fleet_rlm.lm.simulated.prompt import Field, FieldKind

_PRIMARY = ("answer", "final_answer", "result", "output", "response", "label", "count", "value")


def primary_field(fields: Mapping[str, object]) -> str:
    """The field that takes the answer: by its name, else the first that is no commentary."""
    named = next((name for name in _PRIMARY if name in fields), None)
    return named or next((n for n in fields if not is_commentary(n)), next(iter(fields)))


def is_commentary(name: str) -> bool:
    """Whether a field asks for thoughts beside the answer."""
    return bool(re.search(r"reason|rationale|expla|thought|evidence|comment|notes?\b", name))


def filler(name: str, field: Field) -> object:
    """A value for a field beside the answer."""
    if field.kind == "choice":
        return next(iter(field.options), "")
    values: dict[FieldKind, object] = {
        "int": 1, "float": 0.9, "bool": True, "list": [], "object": {},
    }  # fmt: skip
    return values.get(field.kind, "Read from the text." if is_commentary(name) else "")


def fill_fields(outputs: Mapping[str, Field], worded: str, bare: str) -> dict[str, Any]:
    """A value for every output field.

    Args:
        outputs: the fields.
        worded: the answer in the form asked for; what a text field takes.
        bare: the value alone; what the other kinds are made from.
    """
    first = primary_field(outputs)
    return {
        name: _convert(field, worded, bare) if name == first else filler(name, field)
        for name, field in outputs.items()
    }


def _convert(field: Field, worded: str, bare: str) -> Any:
    match field.kind:
        case "int" | "float":
            return int("".join(c for c in bare if c.isdigit()) or 0)
        case "bool":
            return bool(bare)
        case "list":
            return [part for part in bare.split(", ") if part]
        case "object":
            return {}
        case "choice":
            return bare if bare in field.options else filler("", field)
        case "text":
            return worded
