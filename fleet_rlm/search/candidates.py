"""The candidates for a program's prompts: instructions and demo sets, stored before the search."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import dspy

from fleet_rlm.program.state import dump_state, texts
from fleet_rlm.runner.store import write_atomic

Demo = Mapping[str, Any]
"""One worked example of a predictor, as plain JSON data."""


@dataclass(frozen=True, slots=True)
class Instruction:
    """One text that a predictor may be given."""

    text: str
    source: str
    """Who wrote it: "baseline", or how it was made."""


@dataclass(frozen=True, slots=True)
class Candidates:
    """What each learning predictor may be given; the baseline's own comes first."""

    instructions: Mapping[str, tuple[Instruction, ...]]
    demos: Mapping[str, tuple[tuple[Demo, ...], ...]]
    best: Mapping[str, int] = field(default_factory=dict)
    """Instructions that did best on the training samples, by position; the others' are their own.
    Empty where none did better than the program's own."""

    passes: tuple[Mapping[str, Any], ...] = ()
    """Passes over the training samples: `params`, mean `score`, and `calls` of the job by then."""

    @property
    def predictors(self) -> tuple[str, ...]:
        """Names, as `named_predictors` gives them."""
        return tuple(self.instructions)

    def only(self, names: Collection[str]) -> Candidates:
        """The candidates of these predictors."""

        def of_them(table: Mapping[str, Any]) -> dict[str, Any]:
            return {name: found for name, found in table.items() if name in names}

        return replace(
            self,
            instructions=of_them(self.instructions),
            demos=of_them(self.demos),
            best=of_them(self.best),
        )

    def with_instruction(
        self, name: str, text: str | None, source: str
    ) -> tuple[Candidates, int | None]:
        """With one more instruction for a predictor, and its position.

        The position is None, and nothing changes, without a text or for one that is there already.
        """
        known = self.instructions[name]
        if text is None or text in {found.text for found in known}:
            return self, None
        more = {**self.instructions, name: (*known, Instruction(text, source))}
        return replace(self, instructions=more), len(known)

    def where(self, fault: Callable[[list[str], bool], str | None]) -> tuple[Candidates, list[str]]:
        """The candidates without a fault, the baseline's own always among them; and the others.

        Args:
            fault: the texts of a candidate and whether it is an instruction -> what is wrong.

        Returns:
            The rest, and a line for each that is left out.
        """
        left_out = []
        instructions, demos, best = {}, {}, {}
        for name in self.predictors:
            own, *others = self.instructions[name]
            faults = {found: fault([found.text], True) for found in others}
            instructions[name] = (own, *(found for found in others if not faults[found]))
            left_out += [
                f"an instruction of {name} ({found.source}) holds {why}"
                for found, why in faults.items()
                if why
            ]
            chosen = self.instructions[name][self.best.get(name, 0)]
            if chosen in instructions[name]:
                best[name] = instructions[name].index(chosen)
            kept = [self.demos[name][0]]
            for drawn in self.demos[name][1:]:
                why = fault([text for _, text in texts(list(drawn))], False)
                if why:
                    left_out.append(f"worked examples of {name} hold {why}")
                else:
                    kept.append(drawn)
            demos[name] = tuple(kept)
        # Positions that passes name hold only while nothing was taken out before them.
        passes = () if left_out else self.passes
        clean = replace(self, instructions=instructions, demos=demos, best=best, passes=passes)
        return clean, left_out

    def to_json(self) -> dict[str, Any]:
        """The content of a job's `candidates.json`."""
        return {
            "instructions": {
                name: [asdict(found) for found in texts]
                for name, texts in self.instructions.items()
            },
            "demos": {name: [list(found) for found in sets] for name, sets in self.demos.items()},
            "best": dict(self.best),
            "passes": list(self.passes),
        }

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Candidates:
        """Read back what `to_json` wrote."""
        return cls(
            instructions={
                name: tuple(Instruction(**text) for text in texts)
                for name, texts in stored["instructions"].items()
            },
            demos={
                name: tuple(tuple(demos) for demos in sets)
                for name, sets in stored["demos"].items()
            },
            best=stored["best"],
            passes=tuple(stored["passes"]),
        )


def learning_predictors(program: dspy.Module) -> dict[str, dspy.Predict]:
    """The predictors whose prompts are searched, by path.

    The `extract` of an RLM is left out: it is called at limits only, so what is learned for it is
    noise.
    """
    fallbacks = {
        id(part.extract) for _, part in program.named_sub_modules() if isinstance(part, dspy.RLM)
    }
    return {
        name: predictor
        for name, predictor in program.named_predictors()
        if id(predictor) not in fallbacks
    }


def as_it_is(program: dspy.Module) -> Candidates:
    """The one candidate that every program has: its own prompts."""
    found, state = learning_predictors(program), dump_state(program)
    return Candidates(
        instructions={
            name: (Instruction(predictor.signature.instructions, "baseline"),)
            for name, predictor in found.items()
        },
        demos={name: (tuple(state.predictors[name].demos),) for name in found},
    )


def read_candidates(path: Path, wanted: Mapping[str, Any]) -> Candidates | None:
    """The stored candidates, if they were made for the same job."""
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return Candidates.from_json(stored) if stored["for"] == wanted else None


def write_candidates(path: Path, candidates: Candidates, wanted: Mapping[str, Any]) -> None:
    """Store candidates; a study's indices mean nothing without them."""
    content = {"for": wanted, **candidates.to_json()}
    write_atomic(path, (json.dumps(content, ensure_ascii=False, indent=2) + "\n").encode())
