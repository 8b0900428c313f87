"""What a program has learned, as plain data: read from its parts, and set on them one by one."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping
from typing import Any

import dspy
from dspy.predict.parameter import Parameter
from pydantic import BaseModel

from fleet_rlm.errors import UsageError
from fleet_rlm.program.fields import describe
from fleet_rlm.program.manifest import (
    FieldText,
    ProgramState,
    SignatureSpec,
    SignatureText,
    parse,
    sha256,
)
from fleet_rlm.program.recursion import ProgramSettings

MAX_DEMO_CHARS = 250_000
"""Longest text in a demo. A REPL history at default settings stays below (20 turns of 10,000
characters); what is longer is a raw context."""

ROOT = "self"


def parts(program: dspy.Module) -> dict[str, Any]:
    """Every module and parameter of a program by path, in order; "self" is the program.

    Paths are those of `named_parameters()`, which leaves out what a compiled child holds.
    """
    found: dict[str, Any] = {ROOT: program}
    seen = {id(program)}

    def visit(module: dspy.Module, prefix: str) -> None:
        for label, item in _attributes(module):
            if isinstance(item, Parameter | dspy.Module) and id(item) not in seen:
                seen.add(id(item))
                found[prefix + label] = item
                if isinstance(item, dspy.Module):
                    visit(item, f"{prefix}{label}.")

    visit(program, "")
    return found


def signatures(program: dspy.Module) -> dict[str, SignatureSpec]:
    """The fields of every predictor, and of every module with a signature of its own."""
    return {
        path: describe(part.signature)
        for path, part in parts(program).items()
        if has_signature(part)
    }


def has_signature(part: Any) -> bool:
    """Whether this part of a program holds a signature."""
    signature = getattr(part, "signature", None)
    return isinstance(signature, type) and issubclass(signature, dspy.Signature)


def dump_state(program: dspy.Module) -> ProgramState:
    """What a bundle stores of a program.

    Of a demo it keeps what the predictor's prompt shows: its fields and DSPy's `augmented` mark.
    Demos that no prompt shows (labelled examples given to the steps of an RLM) are left out.

    Raises:
        UsageError: something that JSON cannot hold or a bundle should not, named by its place.
    """
    predictors: dict[str, Any] = {}
    modules: dict[str, Any] = {}
    settings: dict[str, Any] = {}
    for path, part in parts(program).items():
        if isinstance(part, ProgramSettings):
            settings[path] = part.to_json()
        elif isinstance(part, dspy.Predict):
            predictors[path] = _text(part.signature) | {"demos": _demos(path, part)}
        elif has_signature(part):
            modules[path] = _text(part.signature)
    state = {"predictors": predictors, "modules": modules, "settings": settings}
    for place, text in texts(state):
        try:
            text.encode()
        except UnicodeEncodeError:
            raise UsageError(f"{place} holds half a character (a lone surrogate).") from None
    return parse(ProgramState, state, "The program")


def apply_state(program: dspy.Module, state: ProgramState) -> None:
    """Set on a fresh program what another one has learned, field by field and nothing else.

    Raises:
        UsageError: the state is of a program with other parts, or a setting is out of range.
    """
    own = parts(program)
    expected = dump_state(program)
    for kind in ("predictors", "modules", "settings"):
        given, built = set(getattr(state, kind)), set(getattr(expected, kind))
        for path in sorted(given ^ built):
            verb = "is not part of" if path in given else "is missing for"
            raise UsageError(f"{kind}.{path} {verb} this program.")
    for path, values in state.settings.items():
        own[path].update(values)
    for path, text in (state.predictors | state.modules).items():
        own[path].signature = _with_text(own[path].signature, text, path)
    for path, learned in state.predictors.items():
        own[path].demos = [dspy.Example(demo) for demo in learned.demos]


def state_digest(program: dspy.Module) -> str:
    """sha256 over fields, instructions, demos and settings: equal means the same prompts."""
    specs = {path: spec.sha256 for path, spec in signatures(program).items()}
    return sha256([specs, dump_state(program).model_dump(mode="json")])


def texts(value: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """Every string in plain data, keys included, with the path that leads to it."""
    if isinstance(value, str):
        yield place, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield place, str(key)
            yield from texts(item, f"{place}.{key}" if place else str(key))
    elif isinstance(value, list | tuple):
        for position, item in enumerate(value):
            yield from texts(item, f"{place}[{position}]")


def _attributes(module: dspy.Module) -> Iterator[tuple[str, Any]]:
    for name, value in vars(module).items():
        if isinstance(value, list | tuple):
            yield from ((f"{name}[{index}]", item) for index, item in enumerate(value))
        elif isinstance(value, dict):
            yield from ((f"{name}['{key}']", item) for key, item in value.items())
        else:
            yield name, value


def _text(signature: type[dspy.Signature]) -> dict[str, Any]:
    shown = signature.instructions
    # DSPy cleans indentation whenever it reads a text; a few texts change again the second time.
    exact = shown if inspect.cleandoc(shown) == shown else signature.__doc__
    fields = {
        name: {key: field.json_schema_extra[key] for key in FieldText.model_fields}
        for name, field in signature.fields.items()
    }
    return {"instructions": exact, "fields": fields}


def _with_text(
    signature: type[dspy.Signature], text: SignatureText, path: str
) -> type[dspy.Signature]:
    if set(text.fields) != set(signature.fields):
        raise UsageError(f"The fields of {path!r} are not those of this program.")
    for name, field in text.fields.items():
        signature = signature.with_updated_fields(name, prefix=field.prefix, desc=field.desc)
    made: type[dspy.Signature] = signature.with_instructions(text.instructions)
    # An empty text would be replaced by DSPy's default.
    made.instructions = text.instructions
    return made


def _demos(path: str, predictor: dspy.Predict) -> list[dict[str, Any]]:
    inputs, outputs = predictor.signature.input_fields, predictor.signature.output_fields
    kept = []
    for number, demo in enumerate(predictor.demos, 1):
        shown = {key: demo[key] for key in (*inputs, *outputs, "augmented") if key in demo}
        if not (shown.keys() & inputs and shown.keys() & outputs):
            continue
        kept.append(
            {
                name: plain(value, f"Demo {number} of predictor {path!r}, field {name!r},")
                for name, value in shown.items()
            }
        )
    return kept


def plain(value: Any, place: str) -> Any:
    """JSON data whose rendering in a prompt is that of `value`."""
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, str):
        if len(value) > MAX_DEMO_CHARS:
            raise UsageError(
                f"{place} holds {len(value):,} characters: raw contexts do not belong in a bundle"
                f" (at most {MAX_DEMO_CHARS:,}).",
                fix="compile with max_labeled_demos=0",
            )
        return value
    if isinstance(value, float) and math.isfinite(value):
        return float(value)
    if isinstance(value, dspy.SandboxSerializable):
        raise UsageError(
            f"{place} is a {type(value).__name__}, a reference to a file of this machine.",
            fix="compile with max_labeled_demos=0",
        )
    if isinstance(value, BaseModel):
        return plain(value.model_dump(mode="json"), place)
    if isinstance(value, list | tuple):
        return [plain(item, place) for item in value]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: plain(item, place) for key, item in value.items()}
    raise UsageError(f"{place} is a {type(value).__name__} that JSON cannot hold.")
