"""Layered settings of a command: flag > environment > project file (fleet.toml) > default."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fleet_rlm.errors import UsageError, nearest, one_line
from fleet_rlm.project import PROJECT_FILE

API_KEY_VARIABLES = ("DSPY_LLM_API_KEY", "DSPY_LM_API_KEY")
"""Names that hold the model key, first one wins; a key is never a flag or a file entry."""


class ModalConfig(BaseModel):
    """How sandboxes on Modal are made."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    app_name: str = "fleet-rlm"
    """The app that sandboxes belong to; made when missing."""

    image: str | None = None
    """Name of a published image with Python 3.10 or newer; one with `pip_packages` when absent."""

    python: str = "3.12"
    pip_packages: tuple[str, ...] = ("numpy", "pandas")

    cpu: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]] = (0.25, 2.0)
    """Cores: requested, limit."""

    memory_mib: tuple[Annotated[int, Field(ge=128)], Annotated[int, Field(ge=128)]] = (512, 2048)
    """MiB: requested, limit."""

    domains: tuple[str, ...] = ()
    """Domains that generated code may reach."""

    cidrs: tuple[str, ...] = ()
    """Address ranges that generated code may reach."""

    creates_per_s: Annotated[float, Field(gt=0, le=1000)] = 4.0
    """Sandboxes asked for a second, by all processes of this user together."""


class Config(BaseModel):
    """The settings that a flag, the environment or fleet.toml may give."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = "sim"
    """Root model: "sim", or provider/name as DSPy writes it."""

    sub_model: str | None = None
    """Model that answers sub-queries; the root model when absent."""

    api_base: Annotated[str, Field(pattern="^https?://")] | None = None
    """Endpoint of both models, for OpenAI-compatible servers."""

    max_completion_tokens: Annotated[int, Field(gt=0)] | None = None
    """Longest completion, in tokens; the provider's own default when absent."""

    temperature: Annotated[float, Field(ge=0, le=2)] | None = None

    timeout_s: Annotated[float, Field(gt=0)] = 600.0
    """Longest wait for the reply to one model call; what the providers' own clients allow."""

    cache: bool = False
    """Whether dspy's cache may answer calls that were made before; for development."""

    sandbox: str = "auto"
    """Where generated code runs: auto, modal, or the name of a level."""

    modal: ModalConfig = ModalConfig()

    concurrency: Annotated[int, Field(gt=0, le=10_000)] = 8
    """Samples in flight."""

    workers: Annotated[int, Field(gt=0, le=256)] | None = None
    """Processes; as many as pay when absent."""

    min_coverage: Annotated[float, Field(ge=0, le=1)] = 0.8
    """Share of samples that must end scored; below it the exit code is 4."""

    runs_dir: str = "runs"

    mlflow: bool = True
    mlflow_tracking_uri: str | None = None
    """Store that runs are mirrored to; mlflow.db in the project folder when absent."""


ENVIRONMENT = {
    "model": "DSPY_LM_MODEL",
    "api_base": "DSPY_LM_API_BASE",
    "max_completion_tokens": "DSPY_LM_MAX_TOKENS",
    "mlflow_tracking_uri": "MLFLOW_TRACKING_URI",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved:
    """A configuration, where each value came from, and the key that no file may hold."""

    config: Config
    origin: Mapping[str, str]
    """Setting name -> "flag", the environment variable's name, "fleet.toml" or "default"."""

    api_key: str | None = field(default=None, repr=False)


def resolve(flags: Mapping[str, Any], env: Mapping[str, str], project: Path) -> Resolved:
    """Merge the layers.

    Args:
        flags: setting name -> value; None means that the flag was not given.
        env: the process environment.
        project: folder that may hold fleet.toml.

    Raises:
        UsageError: an unknown or malformed setting, named with the layer that gave it.
    """
    layers: list[tuple[str, dict[str, Any]]] = [
        (PROJECT_FILE, read_project_file(project / PROJECT_FILE)),
        ("environment", {k: env[name] for k, name in ENVIRONMENT.items() if env.get(name)}),
        ("flag", {k: v for k, v in flags.items() if v is not None}),
    ]
    values: dict[str, Any] = {}
    origin = dict.fromkeys(Config.model_fields, "default")
    for layer, given in layers:
        for key, value in given.items():
            if key not in Config.model_fields:
                hint = nearest(key, Config.model_fields)
                raise UsageError(
                    f"Unknown setting {key!r} in {layer}. {hint}", fix="correct the file there"
                )
            both_tables = isinstance(value, Mapping) and isinstance(values.get(key), Mapping)
            values[key] = {**values[key], **value} if both_tables else value
            origin[key] = ENVIRONMENT[key] if layer == "environment" else layer
    try:
        config = Config(**values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        source = origin[str(first["loc"][0])]
        raise UsageError(
            f"Setting {key!r} from {source}: {first['msg']}, got {first['input']!r}.",
            fix=f"another --{key.replace('_', '-')}" if source == "flag" else f"another {source}",
        ) from None
    api_key = next((env[name] for name in API_KEY_VARIABLES if env.get(name)), None)
    return Resolved(config=config, origin=origin, api_key=api_key)


def read_project_file(path: Path) -> dict[str, Any]:
    """The entries of fleet.toml; empty when there is no such file.

    Raises:
        UsageError: the file cannot be read or is not TOML.
    """
    try:
        return read_toml(path)
    except FileNotFoundError:
        return {}


def read_toml(path: Path) -> dict[str, Any]:
    """Parse one TOML file.

    Raises:
        FileNotFoundError: no such file.
        UsageError: unreadable or malformed, with the place.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"Cannot read {path}: {one_line(str(error))}", fix="a text file in UTF-8 there"
        ) from None
    except tomllib.TOMLDecodeError as error:
        raise UsageError(
            f"{path} is not valid TOML: {one_line(str(error))}", fix="correct the file there"
        ) from None


def parse_overrides(assignments: Iterable[str]) -> dict[str, Any]:
    """`["lengths=[8000]"]` -> dotted key -> TOML value, or the bare text where it is none.

    Raises:
        UsageError: an assignment without `=` or without a key.
    """
    overrides: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not key.strip():
            raise UsageError(f"--set {assignment!r} is not key=value.", fix="--set lengths=[8000]")
        try:
            overrides[key.strip()] = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            overrides[key.strip()] = text
    return overrides
