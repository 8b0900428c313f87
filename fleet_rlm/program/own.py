"""A user's own program: the factory that `--program path/to/file.py:make_program` names."""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import dspy

from fleet_rlm.errors import ProgramError, UsageError, boundary, nearest, one_line
from fleet_rlm.program.recursion import RecursionSettings

PACKAGE = "fleet_rlm._ext"
"""Loaded files are modules of this package, so that they shadow nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Factory:
    """A function of a user's file that makes a program."""

    reference: str
    """As given: "path/to/file.py:make_program"."""

    function: Callable[..., Any]
    takes_settings: bool
    source_sha256: str

    def make(self, recursion: RecursionSettings) -> dspy.Module:
        """A program.

        Raises:
            UsageError: it raised, or gave something else.
        """
        arguments = {"settings": recursion} if self.takes_settings else {}
        try:
            with boundary(ProgramError, f"{self.reference} failed"):
                program = self.function(**arguments)
        except ProgramError as error:
            raise UsageError(error.message) from error.__cause__
        if not isinstance(program, dspy.Module):
            raise UsageError(f"{self.reference} gave a {type(program).__name__}, no dspy.Module.")
        return program


def is_own(name: str) -> bool:
    """Whether a program's name means a user's file."""
    return name.endswith(".py") or ".py:" in name


def load_factory(reference: str) -> Factory:
    """Load the file and find its factory; an unchanged file is loaded once.

    Args:
        reference: "path/to/file.py:make_program". The factory takes nothing, or `settings` (a
            `RecursionSettings`).

    Raises:
        UsageError: no such file or function, code that fails when loaded, other arguments.
    """
    place, colon, attribute = reference.rpartition(":")
    if not colon or not attribute.isidentifier():
        raise UsageError(
            f"--program {reference!r} does not name a function.",
            fix=f"--program {(place or reference).rstrip(':')}:make_program",
        )
    path = Path(place).expanduser().absolute()
    try:
        source = path.read_bytes()
    except OSError as error:
        raise UsageError(f"Cannot read program file {place!r}: {error.strerror}.") from None
    module = _load(path, source, place)
    function = getattr(module, attribute, None)
    if not callable(function):
        own = [name for name, value in vars(module).items() if inspect.isfunction(value)]
        raise UsageError(f"{place} has no function {attribute!r}. {nearest(attribute, own)}")
    return Factory(
        reference=reference,
        function=function,
        takes_settings=_takes_settings(function, reference),
        source_sha256=hashlib.sha256(source).hexdigest(),
    )


def _load(path: Path, source: bytes, shown: str) -> ModuleType:
    digest = hashlib.sha256(source).hexdigest()
    name = f"{PACKAGE}.{path.stem}"
    known = sys.modules.get(name)
    if known is not None and known.__file__ != str(path):
        # Another file of the same name stays loaded beside this one.
        name += "_" + hashlib.sha256(str(path).encode()).hexdigest()[:8]
        known = sys.modules.get(name)
    if known is not None and getattr(known, "__source_sha256__", None) == digest:
        return known
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None:
        raise UsageError(f"{shown} is not a Python file.")
    module = importlib.util.module_from_spec(spec)
    module.__dict__["__source_sha256__"] = digest
    sys.modules[name] = module  # before it runs: dataclasses and pydantic look their module up
    try:
        with boundary(ProgramError, shown):
            # Not the loader's own exec: its bytecode cache misses a change within one second.
            exec(compile(source, path, "exec"), module.__dict__)
    except (ProgramError, SystemExit) as error:
        if known is None:
            del sys.modules[name]
        else:
            sys.modules[name] = known
        cause = error.__cause__ or error
        raise UsageError(
            f"Loading {shown}{_line(cause, path)} failed: {type(cause).__name__}:"
            f" {one_line(str(cause), 200)}"
        ) from cause
    return module


def _line(error: BaseException, path: Path) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame.lineno for frame in frames if frame.filename == str(path)]
    return f":{own[-1]}" if own else ""


def _takes_settings(function: Callable[..., Any], reference: str) -> bool:
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:
        parameters = {}.values()
    named = {inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY}
    takes = any(p.name == "settings" and p.kind in named for p in parameters)
    extra = [
        parameter.name
        for parameter in parameters
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        and not (takes and parameter.name == "settings")
    ]
    if extra:
        raise UsageError(
            f"{reference} asks for {', '.join(extra)}: it must take nothing, or `settings`."
        )
    return takes
