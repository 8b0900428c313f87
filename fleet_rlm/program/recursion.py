"""Settings of programs, recursion's first of all: saved and searched like a prompt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from dspy.predict.parameter import Parameter

from fleet_rlm.errors import UsageError, nearest


@dataclass(frozen=True, slots=True)
class Range:
    """One setting: its default and the integers it may take."""

    default: int
    lowest: int
    highest: int


Kind = TypeVar("Kind", bound="ProgramSettings")


class ProgramSettings(Parameter):
    """The whole-number knobs of a program, as a `dspy.Parameter`.

    Optimizers keep them, `save` and `load` store them, `named_parameters()` lists them and
    `named_predictors()` does not. A subclass names its knobs in `SPEC`.

    Args:
        values: setting name -> integer; the rest keep their defaults.

    Raises:
        UsageError: an unknown setting or a value out of range.
    """

    SPEC: Mapping[str, Range] = {}

    def __init__(self, **values: int) -> None:
        self._values = {name: spec.default for name, spec in self.SPEC.items()}
        self.update(values)

    def update(self, values: Mapping[str, Any]) -> None:
        """Set several settings, all or none.

        Raises:
            UsageError: an unknown setting or a value out of range.
        """
        for name, value in values.items():
            self._check(name, value)
        self._values.update(values)

    def __getitem__(self, name: str) -> int:
        return self._values[name]

    def to_json(self) -> dict[str, int]:
        """Every setting with its value."""
        return dict(self._values)

    def part(self, kind: type[Kind]) -> Kind:
        """Settings of another kind: the values of names that both have, defaults for the rest."""
        return kind(**{name: self._values[name] for name in kind.SPEC if name in self._values})

    def reset(self) -> None:
        """Keep the settings: `reset_copy()` forgets what data taught, and these were chosen."""

    def dump_state(self, json_mode: bool = True) -> dict[str, int]:
        return self.to_json()

    def load_state(self, state: Mapping[str, Any], **_: Any) -> None:
        """Take settings from a saved state, which is input like any other and checked as such."""
        self.update(state)

    def _check(self, name: str, value: Any) -> None:
        if name not in self.SPEC:
            raise UsageError(f"Unknown setting {name!r}. {nearest(name, self.SPEC)}")
        spec = self.SPEC[name]
        whole = isinstance(value, int) and not isinstance(value, bool)
        if not whole or not spec.lowest <= value <= spec.highest:
            raise UsageError(
                f"Setting {name} must be a whole number from {spec.lowest:,} to {spec.highest:,},"
                f" got {value!r}."
            )


class RecursionSettings(ProgramSettings):
    """The knobs of a recursive program; defaults are those of `dspy.RLM` 3.4."""

    SPEC: Mapping[str, Range] = {
        "max_iters": Range(20, 1, 200),
        "max_llm_calls": Range(50, 0, 10_000),
        "max_output_chars": Range(10_000, 100, 1_000_000),
        "batch_workers": Range(8, 1, 256),
        "max_depth": Range(1, 0, 8),
        "max_children": Range(16, 0, 1_000),
        "call_timeout_s": Range(0, 0, 86_400),
    }
    """`max_iters`: turns with the REPL.
    `max_llm_calls`: model calls that generated code causes in one answer, children's included.
    `max_output_chars`: characters of one turn's output that the model sees.
    `batch_workers`: queries of one batch in flight.
    `max_depth`: how deep child RLMs may nest; 0 allows plain sub-queries only.
    `max_children`: child RLMs of one answer, each with a sandbox session of its own.
    `call_timeout_s`: seconds that one sub-query may take from its own start, 0 for no limit."""
