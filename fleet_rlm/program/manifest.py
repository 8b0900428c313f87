"""The files of a bundle as strict schemas: what `manifest.json` and `program.json` may hold."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, field_validator

from fleet_rlm.errors import UsageError
from fleet_rlm.lm.connect import Kind

FORMAT = 1
MANIFEST = "manifest.json"
PROGRAM = "program.json"
MAX_BYTES = {MANIFEST: 1 << 20, PROGRAM: 4 << 20}

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
ShortText = Annotated[str, Field(max_length=500)]
Setting = int | str | bool
Model = TypeVar("Model", bound=BaseModel)


class Strict(BaseModel):
    """No key that is not listed, no value of another type: a bundle is input from anywhere."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, protected_namespaces=()
    )


class FieldSpec(Strict):
    """One field of a signature, apart from its wording."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]*$", max_length=100)]
    kind: Literal["input", "output"]
    type: ShortText
    """As Python writes it: "list[str]"."""

    constraints: ShortText = ""
    optional: bool = False


class SignatureSpec(Strict):
    """What a signature takes and gives; what it says is learned and kept in `program.json`."""

    fields: list[FieldSpec]
    sha256: Sha256
    """Over the fields."""


class FieldText(Strict):
    """How a field is introduced to the model."""

    prefix: str
    desc: str


class SignatureText(Strict):
    """The wording of a signature."""

    instructions: str
    fields: dict[str, FieldText]


class PredictorState(SignatureText):
    """What one predictor has learned."""

    demos: list[dict[str, JsonValue]]

    @field_validator("demos")
    @classmethod
    def _check_json(cls, demos: list[dict[str, JsonValue]]) -> list[dict[str, JsonValue]]:
        json.dumps(demos, allow_nan=False)  # pydantic reads NaN, which JSON does not have
        return demos


class ProgramState(Strict):
    """The content of `program.json`. Keys are paths in the program, "self" for its root."""

    predictors: dict[str, PredictorState]
    modules: dict[str, SignatureText]
    """Wording of signatures that modules hold themselves, an RLM's task for one."""

    settings: dict[str, dict[str, Setting]]


class Score(Strict):
    """A score with what is needed to trust it."""

    score: float
    n: Annotated[int, Field(ge=0)]
    """Samples."""

    ci: tuple[float, float] | None = None
    """95 % interval, in score units."""

    usd: float | None = None
    """Per sample."""

    seconds: float | None = None
    """Per sample."""


class Evidence(Strict):
    """Where a program comes from and what it scored. All optional; given to `save`."""

    model_kind: Kind | None = None
    """What it was compiled on; found out from the connected model when absent."""

    models: dict[str, str] = Field(default_factory=dict)
    """Role -> name of the model that it was compiled and scored with."""

    suite: str | None = None
    before: Score | None = None
    """The baseline's, on the same sealed test as `after`."""

    after: Score | None = None
    data: dict[str, str] = Field(default_factory=dict)
    """Digests of what was learned from and tested on, by name."""

    optimizer: str | None = None
    seed: int | None = None
    job: str | None = None
    trial: int | None = None
    run: str | None = None
    """MLflow run that holds the details."""

    parent: str | None = None
    """Bundle that this one was compiled from; known by itself after `load`."""


class FileSpec(Strict):
    """One file of the bundle beside the manifest."""

    sha256: Sha256
    bytes: int


class Manifest(Strict):
    """The content of `manifest.json`."""

    format: int
    bundle: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
    """Digest of the rest of the manifest, and so of everything in the bundle."""

    created: str
    program: Annotated[str, Field(max_length=100)]
    """Name in this package's registry: "rlm.qa@1". Never an import path."""

    signatures: dict[str, SignatureSpec]
    """By path: every predictor, and every module with a signature of its own."""

    settings: dict[str, dict[str, Setting]]
    """Those of `program.json`, for those who read only this file."""

    tools: dict[str, Sha256]
    """Tools that the application must give, with the digest of their arguments' schemas."""

    sandbox_rules: Sha256 | None = None
    """Of the sandbox that was active at `save`; the rules shown are always the running one's."""

    roles: list[str]
    """Models that the application connects, by role."""

    versions: dict[str, str]
    model_kind: Kind | None = None
    parent: str | None = None
    evidence: Evidence | None = None
    files: dict[Literal["program.json"], FileSpec]


def identify(content: dict[str, Any]) -> str:
    """The `bundle` id of a manifest's content."""
    return sha256({k: v for k, v in content.items() if k != "bundle"})[:16]


def sha256(value: Any) -> str:
    """Of plain JSON data, however it is written down."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def encode(content: dict[str, Any]) -> bytes:
    """A file's bytes."""
    return json.dumps(content, ensure_ascii=False, indent=2, allow_nan=False).encode() + b"\n"


def parse_manifest(data: bytes, where: str) -> Manifest:
    """Read a manifest.

    Raises:
        UsageError: malformed, made by a newer version, or changed after it was written.
    """

    class Head(BaseModel):
        format: int

    version = parse(Head, data, where).format
    if version != FORMAT:
        raise UsageError(
            f"{where} has format {version}; this fleet-rlm reads format {FORMAT}.",
            fix="pip install --upgrade fleet-rlm" if version > FORMAT else None,
        )
    manifest = parse(Manifest, data, where)
    if manifest.bundle != identify(json.loads(data)):
        raise UsageError(f"{where} was changed after it was written: its id does not match.")
    return manifest


def parse(model: type[Model], data: bytes | dict[str, Any], where: str) -> Model:
    """Check `data`, a file's bytes or plain values, against a schema.

    Raises:
        UsageError: the first thing that does not fit, and where.
    """
    try:
        if isinstance(data, bytes):
            return model.model_validate_json(data)
        return model.model_validate(data, strict=False)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        said = "is not part of a bundle" if first["type"] == "extra_forbidden" else first["msg"]
        raise UsageError(f"{where}: {place + ': ' if place else ''}{said}.") from None
