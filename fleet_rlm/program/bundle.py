"""Bundles: a compiled program as a folder of JSON, saved and loaded without trusting any file.

A bundle holds what was learned (instructions, demos, settings) and how to check it. It never holds
a model, an endpoint, a key or code: the application brings models, tools and the sandbox.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import secrets
import shutil
import stat
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import dspy
from dspy.primitives.code_interpreter import resolve_interpreter_factory

from fleet_rlm import __version__
from fleet_rlm.config import resolve
from fleet_rlm.errors import FleetWarning, UsageError
from fleet_rlm.lm.connect import Kind
from fleet_rlm.lm.simulated import LABEL, SimulatedEngine
from fleet_rlm.program.manifest import (
    FORMAT,
    MANIFEST,
    MAX_BYTES,
    PROGRAM,
    Evidence,
    Manifest,
    ProgramState,
    encode,
    identify,
    parse,
    parse_manifest,
)
from fleet_rlm.program.probe import reload_digest
from fleet_rlm.program.rebuild import Cover, as_tool, check_tools, find_cover, rebuild, tool_digest
from fleet_rlm.program.state import (
    ROOT,
    apply_state,
    dump_state,
    parts,
    signatures,
    state_digest,
    texts,
)
from fleet_rlm.project import project_dir
from fleet_rlm.sandbox.redact import Redactor

REGISTERED = "models:/"
"""How the name of a bundle begins that is in the model registry."""

_ORIGIN = "_fleet_bundle"
"""Attribute of a loaded program: what it came from, so that `save` knows the parent."""


class Origin(NamedTuple):
    """The bundle that a program was loaded from."""

    bundle: str | None = None
    model_kind: Kind | None = None


def save(
    program: dspy.Module,
    path: str | Path,
    *,
    name: str | None = None,
    evidence: Evidence | Mapping[str, Any] | None = None,
    env: Mapping[str, str] | None = None,
) -> Path:
    """Write a program as a bundle, and check that a fresh process loads the same program from it.

    Stored are instructions, field texts, demos as prompts show them, and settings.
    Models, call settings and tools stay with the application.

    Args:
        program: a program of this package, compiled or not.
        path: the bundle's folder, made here; an earlier bundle there is replaced.
        name: registry name, "rlm.qa@1"; found out when absent.
        evidence: where the program comes from and what it scored.
        env: where the values of secrets are found; this process's environment when absent.

    Returns:
        The folder.

    Raises:
        UsageError: the program cannot be rebuilt from a bundle, holds a secret or a raw context, is
            too large, or comes out differently in a fresh process. Nothing is left behind then.
    """
    env = os.environ if env is None else env
    target = _folder(path)
    if not isinstance(program, dspy.Module):
        raise UsageError(f"save() takes a dspy.Module, got a {type(program).__name__}.")
    _check_replaceable(target)
    cover = find_cover(program, name)
    state = dump_state(program)
    if not isinstance(evidence, Evidence):
        evidence = parse(Evidence, {} if evidence is None else dict(evidence), "evidence")
    manifest, files = _contents(program, cover, state, evidence)
    _refuse_secrets({"program": state.model_dump(), "manifest": manifest}, Redactor.from_env(env))
    staging = target.absolute().with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        _write(staging, files)
        if reload_digest(staging, cover.tools.values(), env) != state_digest(program):
            raise UsageError("A fresh process loads another program from the bundle: not saved.")
        _put(staging, target)
    except OSError as error:
        raise UsageError(f"Cannot write bundle {target}: {error.strerror or error}.") from None
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return target


def load(path: str | Path, *, tools: Sequence[Callable[..., Any] | dspy.Tool] = ()) -> dspy.Module:
    """The program of a bundle: built by this package, then given what the files say it learned.

    Nothing in the files is executed, imported or connected to. What the files cannot say, the
    application does: models (`dspy.configure(lm=...)`), sandbox, tools.

    Args:
        path: the bundle's folder, or "models:/NAME@ALIAS" or "models:/NAME/VERSION" in the model
            registry of the project's MLflow store, where only the bundle's JSON is read.
        tools: functions that the program was saved with, by the same names.

    Returns:
        The program, ready to call or to compile further.

    Raises:
        UsageError: not a bundle, changed after it was written, too large, made by a newer version,
            with anything in it that a bundle does not have, or for other tools.
    """
    with _opened(path) as folder:
        return _load(folder, str(path), tools)


def _load(folder: Path, shown: str, tools: Sequence[Callable[..., Any] | dspy.Tool]) -> dspy.Module:
    manifest = _manifest_of(folder)
    _check_files(folder, manifest)
    state = parse(ProgramState, _read(folder, PROGRAM, manifest), str(folder / PROGRAM))
    try:
        program = _build(manifest, state, [as_tool(tool) for tool in tools])
    except UsageError as error:
        raise UsageError(f"{shown}: {error.message}", fix=error.fix) from None
    setattr(program, _ORIGIN, Origin(manifest.bundle, manifest.model_kind))
    if manifest.model_kind == "simulated":
        warnings.warn(f"{shown} was compiled on a {LABEL}.", FleetWarning, stacklevel=3)
    made_with = manifest.versions.get("dspy", "")
    if made_with.split(".")[:2] != dspy.__version__.split(".")[:2]:
        warnings.warn(
            f"{shown} was saved with dspy {made_with}, here is {dspy.__version__}:"
            " prompts may be worded differently.",
            FleetWarning,
            stacklevel=3,
        )
    return program


def read_manifest(path: str | Path) -> Manifest:
    """What a bundle says of itself: settings, scores, lineage.

    Raises:
        UsageError: not a bundle, changed after it was written, or made by a newer version.
    """
    with _opened(path) as folder:
        return _manifest_of(folder)


def _manifest_of(folder: Path) -> Manifest:
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a bundle folder.")
    return parse_manifest(_read(folder, MANIFEST), str(folder / MANIFEST))


@contextmanager
def _opened(path: str | Path) -> Iterator[Path]:
    """The folder of a bundle, for the block."""
    if not str(path).startswith(REGISTERED):
        yield _folder(path)
        return
    from fleet_rlm.tracking.registry import Registry

    project = project_dir(Path.cwd())
    uri = resolve({}, os.environ, project).config.mlflow_tracking_uri
    with Registry(project, uri).fetched(str(path)) as folder:
        yield folder


def _build(manifest: Manifest, state: ProgramState, tools: Sequence[dspy.Tool]) -> dspy.Module:
    check_tools(manifest.tools, tools)
    if manifest.settings != state.settings:
        raise UsageError(f"{MANIFEST} and {PROGRAM} hold different settings.")
    own = manifest.signatures.get(ROOT)
    program = rebuild(
        manifest.program,
        fields=own.fields if own else (),
        tools=tools,
    )
    built = signatures(program)
    for path in sorted(built.keys() | manifest.signatures.keys()):
        if built.get(path) != manifest.signatures.get(path):
            raise UsageError(
                f"The fields of {path!r} are not those that {manifest.program} has here."
            )
    apply_state(program, state)
    return program


def _contents(
    program: dspy.Module, cover: Cover, state: ProgramState, evidence: Evidence
) -> tuple[dict[str, Any], dict[str, bytes]]:
    data = encode(state.model_dump(mode="json"))
    origin: Origin = getattr(program, _ORIGIN, Origin())
    rest = evidence.model_copy(update={"model_kind": None, "parent": None})
    manifest = {
        "format": FORMAT,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "program": cover.name,
        "signatures": {path: spec.model_dump() for path, spec in signatures(program).items()},
        "settings": state.settings,
        "tools": {name: tool_digest(tool) for name, tool in cover.tools.items()},
        "sandbox_rules": _sandbox_rules(program),
        "roles": list(cover.entry.roles),
        "versions": _versions(),
        "model_kind": evidence.model_kind or _model_kind(program, origin),
        "parent": evidence.parent or origin.bundle,
        "evidence": rest.model_dump(mode="json", exclude_defaults=True) or None,
        "files": {PROGRAM: {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}},
    }
    checked = parse(Manifest, manifest | {"bundle": "0" * 16}, MANIFEST)
    content = checked.model_dump(mode="json", exclude_none=True)
    content["bundle"] = identify(content)
    files = {MANIFEST: encode(content), PROGRAM: data}
    for file, held in files.items():
        if len(held) > MAX_BYTES[file]:
            sizes = {path: len(encode(s.model_dump())) for path, s in state.predictors.items()}
            raise UsageError(
                f"{file} would be {len(held):,} bytes, over {MAX_BYTES[file]:,}: predictor"
                f" {max(sizes, key=lambda path: sizes[path])!r} takes most. Keep fewer demos."
            )
    return content, files


def _refuse_secrets(content: Mapping[str, Any], redactor: Redactor) -> None:
    for place, text in texts(content):
        cleaned = redactor.clean(text)
        if cleaned != text:
            kind = cleaned.partition("[REDACTED:")[2].partition("]")[0]
            raise UsageError(f"A secret ({kind}) is in {place}: take it out before saving.")


def _folder(path: str | Path) -> Path:
    if "://" in str(path) or str(path).startswith("models:"):
        raise UsageError(
            f"{path}: bundles are folders of this machine, or registered in MLflow.",
            fix=f"a path, or {REGISTERED}NAME@champion",
        )
    return Path(path).expanduser()


def _check_replaceable(target: Path) -> None:
    if not target.exists() and not target.is_symlink():
        return
    held = {item.name for item in target.iterdir()} if target.is_dir() else {"it"}
    if target.is_symlink() or (held and MANIFEST not in held) or held - MAX_BYTES.keys():
        raise UsageError(f"{target} exists and is not a bundle: choose another path.")


def _check_files(folder: Path, manifest: Manifest) -> None:
    for item in sorted(folder.iterdir()):
        if item.name not in {MANIFEST, *manifest.files}:
            raise UsageError(f"{folder} holds {item.name!r}, which is not part of a bundle.")


def _read(folder: Path, name: str, manifest: Manifest | None = None) -> bytes:
    """A file's bytes, never followed out of the folder, checked against the manifest's digest."""
    path = folder / name

    def opener(file: str, flags: int) -> int:
        return os.open(file, flags | os.O_NOFOLLOW | os.O_NONBLOCK)

    try:
        with open(path, "rb", opener=opener) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise UsageError(f"{path} is not a regular file.")
            data = file.read(MAX_BYTES[name] + 1)
    except OSError as error:
        why = "is a link" if path.is_symlink() else f"cannot be read ({error.strerror})"
        raise UsageError(f"{folder} is not a bundle: {name} {why}.") from None
    if len(data) > MAX_BYTES[name]:
        raise UsageError(f"{path} is over {MAX_BYTES[name]:,} bytes.")
    if manifest is not None:
        listed = {file: spec.sha256 for file, spec in manifest.files.items()}
        if listed.get("program.json") != hashlib.sha256(data).hexdigest():
            raise UsageError(f"{path} was changed after it was written: its digest differs.")
    return data


def _write(folder: Path, files: Mapping[str, bytes]) -> None:
    folder.mkdir(parents=True)
    for name, data in files.items():
        with (folder / name).open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())


def _put(staging: Path, target: Path) -> None:
    if not target.exists():
        staging.rename(target)
        return
    # A folder cannot replace one that holds files: the earlier bundle steps aside first.
    aside = staging.with_suffix(".old")
    target.rename(aside)
    try:
        staging.rename(target)
    except OSError:
        aside.rename(target)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _model_kind(program: dspy.Module, origin: Origin) -> Kind | None:
    """What the connected model is; None without one, or with an engine that says nothing."""
    if origin.model_kind == "simulated":
        return "simulated"  # whatever is connected by now may have taught it nothing
    models = [dspy.settings.lm, *(getattr(part, "lm", None) for part in parts(program).values())]
    engines = [getattr(lm, "engine", None) for lm in models if lm is not None]
    if any(isinstance(engine, SimulatedEngine) for engine in engines):
        return "simulated"
    # By name ("auto", "litellm") for providers, an object for whatever else.
    return "live" if any(isinstance(engine, str) for engine in engines) else None


def _sandbox_rules(program: dspy.Module) -> str | None:
    for part in parts(program).values():
        if isinstance(part, dspy.RLM):
            factory = resolve_interpreter_factory(part._interpreter_factory)
            rules = str(getattr(factory, "execution_instructions", ""))
            return hashlib.sha256(rules.encode()).hexdigest()
    return None


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "fleet-rlm": __version__}
    for package in ("dspy", "gepa"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
