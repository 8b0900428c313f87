"""A scoring function of the user's own, by file and name."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from fleet_rlm.errors import ScorerError, UsageError
from fleet_rlm.scoring.robust import RIGHT, Judged
from fleet_rlm.scoring.rule import Asked, Rule

Function = Callable[[str, tuple[str, ...], str], float]
"""(answer, gold answers, query) -> score in [0, 1]; raises when it cannot tell."""


@dataclass(frozen=True, slots=True)
class OwnRule:
    """A function in a Python file, named FILE.py:FUNCTION."""

    path: Path
    function: str

    @classmethod
    def parse(cls, text: str) -> OwnRule:
        """The rule that a text names."""
        path, _, function = text.rpartition(":")
        return cls(Path(path), function)

    def __str__(self) -> str:
        return f"{self.path}:{self.function}"

    @property
    def identity(self) -> str:
        """What it computes: the function's name and the digest of its file, not its place."""
        return f"{self.function}@{hashlib.sha256(self.path.read_bytes()).hexdigest()}"

    def load(self) -> Function:
        """The function.

        Raises:
            UsageError: no such file or function, or the file fails when imported.
        """
        return _load(self.path.absolute(), self.function)

    def reload(self) -> Function:
        """The function as its file stands now; `load` keeps it from then on, whatever is edited.

        Raises:
            UsageError: as `load`.
        """
        _load.cache_clear()
        return self.load()

    def rule(self) -> Rule:
        """Both scores are the function's: it has no benchmark behind it."""
        function = self.load()

        def official(answer: str, question: Asked) -> float:
            value = function(answer, question.gold, question.query)
            if not isinstance(value, int | float):
                raise ScorerError(f"{self.function} gave {str(value)[:60]!r}, not a number")
            return float(value)

        def robust(answer: str, question: Asked) -> Judged:
            value = official(answer, question)
            return RIGHT if value == 1 else Judged(value, "by the suite's own scoring function")

        return Rule(official, robust, empty_gold=True)


@lru_cache(maxsize=32)
def _load(path: Path, function: str) -> Function:
    fix = "def score(answer, gold, query): return 1.0"
    if not path.is_file():
        raise UsageError(f"No scoring file {path}", fix=f"write it: {fix}")
    spec = importlib.util.spec_from_file_location(f"fleet_scorer_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{path} is no Python file", fix=f"write it: {fix}")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (ImportError, SyntaxError, NameError, AttributeError, OSError) as error:
        raise UsageError(
            f"{path} cannot be imported: {error}", fix=f"correct it: python {path}"
        ) from error
    found = getattr(module, function, None)
    if not callable(found):
        raise UsageError(f"{path} has no function {function!r}", fix=f"write it: {fix}")
    return found  # type: ignore[no-any-return] # checked when it is called
