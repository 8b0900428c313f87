"""`fleet-rlm serve-api`: serve a program over HTTP."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from fleet_rlm.cli.engine import EngineOptions
from fleet_rlm.errors import Exit
from fleet_rlm.serving.app import Service
from fleet_rlm.serving.identity import read_tokens
from fleet_rlm.serving.server import log_to_stderr, serve
from fleet_rlm.serving.settings import ServerSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeApi:
    """The command line, as given."""

    engine: EngineOptions
    tokens: Path | None
    server: Mapping[str, Any]
    """Settings of the server, by their names."""


def serve_api_command(request: ServeApi) -> int:
    """Serve until stopped; the first line on stdout is the base URL.

    Raises:
        UsageError: bundle, model, key, address, tokens or folder cannot be used.
        SandboxUnavailable: no isolation holds on this machine.
    """
    settings = ServerSettings(
        tokens=read_tokens(request.tokens, os.environ),
        timeout_s=request.engine.timeout_s,
        **request.server,
    )
    engine = request.engine.start()
    service = Service(engine, settings)
    log_to_stderr()

    def ready(url: str) -> None:
        if engine.label:
            print(engine.label, file=sys.stderr)
        typer.echo(url)

    serve(service, service.asgi, ready)
    return Exit.OK
