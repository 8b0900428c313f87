"""What the commands that chat have in common: which program answers, on which models, how long."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from fleet_rlm.serving.engine import Engine

Bundle = Annotated[
    str | None,
    typer.Option(metavar="PATH|models:/NAME@ALIAS", help="A compiled program. [default: agent]"),
]
VolumeName = Annotated[
    str | None,
    typer.Option(help="Volume for the memory tools; on a server, one for each identity."),
]
ReactMaxIters = Annotated[int | None, typer.Option(min=1, help="Steps of one turn. [default: 10]")]
RlmMaxIterations = Annotated[
    int | None, typer.Option(min=1, help="Turns of a recursive program. [default: 30]")
]
RlmMaxLlmCalls = Annotated[
    int | None, typer.Option(min=1, help="Sub-queries in one answer. [default: 50]")
]
Timeout = Annotated[float, typer.Option(min=1, metavar="SECONDS", help="One turn.")]
TIMEOUT_S = 900.0

Host = Annotated[str, typer.Option(help="Off loopback, tokens are needed.")]
Port = Annotated[int, typer.Option(help="0 for a free one.")]
Tokens = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="TOML: NAME = 'TOKEN' each. [env: FLEET_RLM_TOKEN]"),
]
Roots = Annotated[
    list[Path] | None,
    typer.Option(metavar="DIR", help="Folder whose files clients may name; repeatable."),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """These options, as given."""

    bundle: str | None
    model: str | None
    sub_model: str | None
    api_base: str | None
    price: str | None
    sandbox: str | None
    react_max_iters: int | None
    rlm_max_iterations: int | None
    rlm_max_llm_calls: int | None
    timeout_s: float

    def start(self) -> Engine:
        """What answers.

        Raises:
            UsageError: bundle, model, key or a limit cannot be used.
            SandboxUnavailable: no isolation holds on this machine.
        """
        from fleet_rlm.config import resolve
        from fleet_rlm.project import project_dir
        from fleet_rlm.serving.engine import AgentLimits, Engine

        flags = {
            "model": self.model,
            "sub_model": self.sub_model,
            "api_base": self.api_base,
            "sandbox": self.sandbox,
        }
        limits = AgentLimits(
            react_max_iters=self.react_max_iters,
            rlm_max_iterations=self.rlm_max_iterations,
            rlm_max_llm_calls=self.rlm_max_llm_calls,
            timeout_s=self.timeout_s,
        )
        resolved = resolve(flags, os.environ, project_dir(Path.cwd()))
        return Engine(self.bundle, resolved, os.environ, price=self.price, limits=limits)
