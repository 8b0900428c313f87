"""An arm: program, settings, models and sandbox, one column of a comparison; and what locks it."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import dspy

from fleet_rlm.ledger import Limits
from fleet_rlm.lm.connect import ModelSpec, kind_of
from fleet_rlm.program.recursion import ProgramSettings
from fleet_rlm.program.registry import Entry
from fleet_rlm.runner.sandboxes import SandboxSpec
from fleet_rlm.suites.suite import Suite

NO_SANDBOX = {"backend": "none", "level": "none", "label": "runs no code"}

LOCKED_PACKAGES = ("fleet-rlm", "dspy", "modal", "mlflow", "litellm", "numpy")


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One column of a comparison: program, settings, models and sandbox."""

    program: str
    """Name that reports show."""

    entry: Entry
    """How the program is made, and what it needs."""

    guidance: str = ""
    """Initial task guidance of the program; its own when empty."""

    settings: ProgramSettings
    root: ModelSpec
    sub: ModelSpec
    sandbox: SandboxSpec | None
    """None for a program that runs no code."""

    limits: Limits

    judge: ModelSpec | None = None
    """Scores the tasks that are judged."""

    state: Mapping[str, Any] | None = None
    """Learned state of a compiled program, as `dspy.Module.dump_state` gives it."""

    def make_program(self) -> dspy.Module:
        """A fresh program with this arm's guidance, settings and learned state."""
        program = self.entry.make(self.guidance, self.settings)
        if self.state is not None:
            program.load_state(dict(self.state))
        return program

    @property
    def model_kind(self) -> str:
        """ "live" as soon as one model is."""
        return kind_of(self.root, *self.models.values())

    @property
    def program_digest(self) -> str:
        """sha256 over what shapes the program's prompts: class, signatures, learned state."""
        program = self.make_program()
        signatures = [
            [name, str(predictor.signature)] for name, predictor in program.named_predictors()
        ]
        state = program.dump_state(json_mode=True)
        kind = type(program)
        content = [kind.__module__, kind.__qualname__, self.entry.source_sha256, signatures, state]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    @property
    def models(self) -> dict[str, ModelSpec]:
        """Role -> model."""
        found = {"root": self.root, "sub": self.sub}
        return found | ({"judge": self.judge} if self.judge else {})

    def to_json(self) -> dict[str, Any]:
        """What a run stores of its arm."""
        return {
            "program": self.program,
            "guidance": self.guidance or None,
            "digest": self.program_digest,
            "settings": self.settings.to_json(),
            "models": {role: spec.to_json() for role, spec in self.models.items()},
            "model_kind": self.model_kind,
            "sandbox": self.sandbox.to_json() if self.sandbox else NO_SANDBOX,
            "limits": asdict(self.limits),
        }

    def identity(self) -> dict[str, Any]:
        """The part that makes it this arm: limits may be raised and the run resumed."""
        return {key: value for key, value in self.to_json().items() if key != "limits"}

    @property
    def label(self) -> str | None:
        """The sentence that must stand beside this arm's numbers, if any."""
        return self.root.label or self.sub.label


def run_folder(runs_dir: Path, arm: Arm, suite: Suite) -> Path:
    """The folder of this arm on this suite: the same command finds it again."""
    identity = json.dumps([arm.identity(), suite.digest], sort_keys=True).encode()
    digest = hashlib.blake2b(identity, digest_size=4).hexdigest()
    parts = (suite.name, arm.program, arm.root.name, digest)
    return runs_dir / "--".join(re.sub(r"[^\w.@-]+", "-", part).strip("-") for part in parts)


def lock(arm: Arm) -> dict[str, Any]:
    """What else shaped a run: versions, prices and the source revision."""
    return {
        "versions": {"python": platform.python_version(), **_versions()},
        "platform": platform.platform(),
        # dspy's choice of demos depends on it.
        "hash_seed": os.environ.get("PYTHONHASHSEED"),
        "sandbox": arm.sandbox.lock() if arm.sandbox else {},
        "prices": {spec.name: asdict(spec.price) for spec in arm.models.values()},
        "git": _git_revision(),
    }


def _versions() -> dict[str, str]:
    found = {}
    for package in LOCKED_PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _git_revision() -> dict[str, Any] | None:
    if shutil.which("git") is None:
        return None

    def ask(*words: str) -> str | None:
        done = subprocess.run(["git", *words], capture_output=True, text=True, timeout=10)
        return done.stdout.strip() if done.returncode == 0 else None

    revision = ask("rev-parse", "HEAD")
    if revision is None:
        return None
    return {"revision": revision, "dirty": bool(ask("status", "--porcelain"))}
