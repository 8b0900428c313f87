"""Bundles in MLflow's model registry: registered, given an alias, taken back, read again.

A version holds the bundle's JSON and the few lines that serve it: no pickle, no model, no key.
"""

from __future__ import annotations

import io
import json
import logging
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fleet_rlm import __version__
from fleet_rlm.errors import UsageError
from fleet_rlm.tracking.content import SIMULATED_NOTE
from fleet_rlm.tracking.store import (
    EXPERIMENT,
    PATIENCE,
    QUIET,
    artifact_root,
    prepare_store,
    resolve_uri,
    shown,
    sqlite_file,
    unusable,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient

CHAMPION = "champion"
PREVIOUS = "previous"
"""The version that was the champion before."""

_BUNDLE_TAG = "fleet.bundle"
_MODEL = re.compile(r"models:/(?P<name>[^@/]+)(?:@(?P<alias>[^@/]+)|/(?P<version>\d+))")


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """One version of a registered bundle."""

    name: str
    number: str
    alias: str

    @property
    def uri(self) -> str:
        """For `fleet_rlm.load`, `--bundle` and `mlflow models serve`."""
        return f"models:/{self.name}@{self.alias}"


class Registry:
    """The model registry of a project's store.

    Args:
        project_dir: the user's project.
        tracking_uri: the store; None for `MLFLOW_TRACKING_URI`, else the project's own.
    """

    def __init__(self, project_dir: Path, tracking_uri: str | None = None) -> None:
        self._uri = resolve_uri(tracking_uri, project_dir, os.environ)
        self._artifacts = artifact_root(self._uri, project_dir)

    def register(self, bundle: Path, name: str, *, alias: str, code: Path) -> Version:
        """Register a bundle, once, and give it the alias.

        The version that was the champion gets `PREVIOUS`; instruction texts go to the prompt
        registry, a new version of each that changed. A bundle that is registered already only
        gets the alias.

        Args:
            bundle: a bundle's folder.
            name: of the registered model.
            alias: "champion", ...
            code: the file that serves a bundle, as MLflow's models from code.

        Raises:
            UsageError: the store refused or does not answer, or the bundle cannot be read.
        """
        try:
            manifest = json.loads((bundle / "manifest.json").read_text("utf-8"))
            program = json.loads((bundle / "program.json").read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise UsageError(f"The bundle {bundle} cannot be read: {error}") from error
        prepare_store(self._uri)
        with self._answering() as client:
            number = _find(client, name, manifest["bundle"]) or self._log(
                client, bundle, name, code
            )
            client.set_model_version_tag(name, number, _BUNDLE_TAG, manifest["bundle"])
            client.update_model_version(name, number, _description(manifest))
            before = _aliased(client, name, alias)
            if alias == CHAMPION and before not in (None, number):
                client.set_registered_model_alias(name, PREVIOUS, before)
            client.set_registered_model_alias(name, alias, number)
            _mirror_prompts(client, name, program["predictors"], manifest["bundle"], alias)
        return Version(name=name, number=number, alias=alias)

    @contextmanager
    def fetched(self, uri: str) -> Iterator[Path]:
        """The bundle of `models:/NAME@ALIAS` or `models:/NAME/VERSION`, as a folder for the block.

        Raises:
            UsageError: no such model, or the store does not answer.
        """
        parts = _MODEL.fullmatch(uri)
        if parts is None:
            raise UsageError(f"{uri!r} names no registered bundle.", fix="models:/NAME@champion")
        with tempfile.TemporaryDirectory(prefix="fleet-bundle-") as folder:
            with self._answering() as client:
                name, number = parts["name"], parts["version"]
                number = number or _aliased(client, name, parts["alias"] or "")
                if number is None:
                    raise UsageError(
                        f"No registered bundle {uri!r} in {shown(self._uri)}.",
                        fix="fleet-optimize promote JOB",
                    )
                found = _download(f"models:/{name}/{number}/artifacts/bundle", folder, self._uri)
            yield found

    def _log(self, client: MlflowClient, bundle: Path, name: str, code: Path) -> str:
        import mlflow
        from mlflow.models import ModelSignature
        from mlflow.types import ColSpec, DataType, Schema

        from fleet_rlm.tracking.writer import find_experiment

        experiment = find_experiment(client, EXPERIMENT, self._artifacts)
        mlflow.set_experiment(experiment_id=experiment)
        inputs, outputs = (
            Schema([ColSpec(DataType.string, column) for column in columns])
            for columns in (("context", "query"), ("answer", "stop"))
        )
        with (
            tempfile.TemporaryDirectory() as folder,
            warnings.catch_warnings(),
            redirect_stderr(io.StringIO()),  # it tells of each step
        ):
            warnings.simplefilter("ignore")
            named = shutil.copytree(bundle, Path(folder) / "bundle")  # the name that it is kept by
            logged = mlflow.pyfunc.log_model(
                name=name,
                python_model=str(code),
                artifacts={"bundle": str(named)},
                signature=ModelSignature(inputs, outputs),
                pip_requirements=[f"fleet-rlm=={__version__}"],
                registered_model_name=name,
            )
        return str(logged.registered_model_version)

    @contextmanager
    def _answering(self) -> Iterator[MlflowClient]:
        """A client; what the store answers with instead is one line."""
        if (file := sqlite_file(self._uri)) is not None and not file.exists():
            raise UsageError(f"No registered bundle: {file} does not exist.", fix="fleet-eval run")
        for name, value in (QUIET | PATIENCE).items():
            os.environ.setdefault(name, value)

        import mlflow
        from mlflow.exceptions import MlflowException

        logging.getLogger("mlflow").setLevel(logging.ERROR)
        mlflow.set_tracking_uri(self._uri)
        mlflow.set_registry_uri(self._uri)
        try:
            yield mlflow.MlflowClient(self._uri)
        except (MlflowException, OSError) as error:
            raise unusable(self._uri, error) from error


def _find(client: MlflowClient, name: str, bundle: str) -> str | None:
    """The version that holds this bundle already."""
    found = client.search_model_versions(f"name = '{name}'")
    same = [v for v in found if v.tags.get(_BUNDLE_TAG) == bundle]
    return str(same[0].version) if same else None


def _aliased(client: MlflowClient, name: str, alias: str) -> str | None:
    from mlflow.exceptions import MlflowException

    try:
        return str(client.get_model_version_by_alias(name, alias).version)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise


def _download(uri: str, folder: str, tracking_uri: str) -> Path:
    from mlflow.artifacts import download_artifacts

    return Path(download_artifacts(artifact_uri=uri, dst_path=folder, tracking_uri=tracking_uri))


def _description(manifest: dict[str, Any]) -> str:
    """Score before and after, for the page of the version."""
    evidence = manifest.get("evidence") or {}
    before, after = evidence.get("before"), evidence.get("after")
    told = f"Bundle {manifest['bundle']} of {manifest['program']}."
    if before and after:
        told += (
            f" On {evidence.get('suite')}: score {before['score']:.3f} to {after['score']:.3f},"
            f" n = {after['n']}."
        )
    simulated = manifest.get("model_kind") == "simulated"
    return f"{told} {SIMULATED_NOTE}." if simulated else told


def _mirror_prompts(
    client: MlflowClient, name: str, predictors: dict[str, Any], bundle: str, alias: str
) -> None:
    for predictor, state in predictors.items():
        text, prompt = state["instructions"], f"{name}.{predictor}".replace("[", "-").strip("]")
        known = client.get_prompt(prompt) and client.search_prompt_versions(prompt)
        same = [version for version in known or () if version.template == text]
        if not same:
            same = [client.register_prompt(prompt, text, commit_message=f"bundle {bundle}")]
        client.set_prompt_alias(prompt, alias, same[0].version)
