"""Fields of signatures as plain data: describes them, and makes a signature from a description."""

from __future__ import annotations

import ast
import types
from collections.abc import Sequence
from typing import Any, Literal, Union, get_args, get_origin

import dspy

from fleet_rlm.errors import UsageError
from fleet_rlm.program.manifest import FieldSpec, SignatureSpec, sha256

_NAMED: dict[str, Any] = {
    "str": str,
    "int": int,
    "float": float,
    "bool": bool,
    "list": list,
    "dict": dict,
    "Any": Any,
}
"""The only types that a file can name, with list[...], dict[..., ...], Literal[...] and | of them:
names in a file are never looked up or imported."""


def describe(signature: type[dspy.Signature]) -> SignatureSpec:
    """What a signature takes and gives, without its wording."""
    fields = [
        FieldSpec(
            name=name,
            kind=field.json_schema_extra["__dspy_field_type"],
            type=type_text(field.annotation)[:500],
            constraints=str(field.json_schema_extra.get("constraints") or "")[:500],
            optional=not field.is_required(),
        )
        for name, field in signature.fields.items()
    ]
    return SignatureSpec(fields=fields, sha256=digest(fields))


def digest(fields: Sequence[FieldSpec]) -> str:
    """sha256 of what a signature takes and gives."""
    return sha256([field.model_dump() for field in fields])


def make_signature(fields: Sequence[FieldSpec]) -> type[dspy.Signature]:
    """A signature with these fields and DSPy's default wording.

    Raises:
        UsageError: a type that a bundle cannot name, or a name that DSPy needs itself.
    """
    made: dict[str, Any] = {}
    for field in fields:
        if hasattr(dspy.Signature, field.name):
            raise UsageError(f"Field {field.name!r} has the name of something in dspy.Signature.")
        declare = dspy.InputField if field.kind == "input" else dspy.OutputField
        try:
            made[field.name] = (parse_type(field.type), declare())
        except ValueError:
            raise UsageError(
                f"Field {field.name!r} has type {field.type[:80]!r}: a bundle can rebuild"
                f" {', '.join(_NAMED)}, Literal, and lists, dicts and unions of them."
            ) from None
    signature: type[dspy.Signature] = dspy.Signature(made)
    return signature


def type_text(annotation: Any) -> str:
    """A type as Python writes it; classes that are not built in with their module."""
    if annotation in (None, type(None)):
        return "None"
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return f"Literal[{', '.join(map(repr, arguments))}]"
    if origin in (Union, types.UnionType):
        return " | ".join(map(type_text, arguments))
    if origin in (list, dict):
        return f"{origin.__name__}[{', '.join(map(type_text, arguments))}]"
    if annotation is Any:
        return "Any"
    if origin is None and isinstance(annotation, type):
        place = "" if annotation.__module__ == "builtins" else f"{annotation.__module__}."
        return f"{place}{annotation.__qualname__}"
    return str(annotation)


def parse_type(text: str) -> Any:
    """The type that `type_text` wrote.

    Raises:
        ValueError: anything but the closed set of types.
    """
    try:
        return _build(ast.parse(text, mode="eval").body)
    except (SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError(f"not a type: {text!r}") from error


def _build(node: ast.expr) -> Any:
    match node:
        case ast.Name(id=name) if name in _NAMED:
            return _NAMED[name]
        case ast.Constant(value=None):
            return None
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return Union[_build(left), _build(right)]  # noqa: UP007 - `|` fails on two Nones
        case ast.Subscript(value=ast.Name(id="list"), slice=item):
            return list[_build(item)]  # type: ignore[misc]
        case ast.Subscript(value=ast.Name(id="dict"), slice=ast.Tuple(elts=[key, value])):
            return dict[_build(key), _build(value)]  # type: ignore[misc]
        case ast.Subscript(value=ast.Name(id="Literal"), slice=choices):
            elements = choices.elts if isinstance(choices, ast.Tuple) else [choices]
            return Literal[tuple(_constant(element) for element in elements)]
    raise ValueError(f"not a type: {ast.unparse(node)}")


def _constant(node: ast.expr) -> str | int:
    if isinstance(node, ast.Constant) and isinstance(node.value, (str, int)):
        return node.value
    raise ValueError(f"not a choice: {ast.unparse(node)}")
