"""`fleet-rlm serve-mcp`: the agent as tools of an MCP client."""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from fleet_rlm.cli.engine import EngineOptions
from fleet_rlm.errors import Exit, UsageError, nearest
from fleet_rlm.serving.app import Service
from fleet_rlm.serving.identity import read_tokens
from fleet_rlm.serving.server import log_to_stderr, serve
from fleet_rlm.serving.settings import ServerSettings

TRANSPORTS = ("stdio", "streamable-http")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeMcp:
    """The command line, as given."""

    transport: str
    engine: EngineOptions
    tokens: Path | None
    server: Mapping[str, Any]
    """Settings of the server, by their names."""


def serve_mcp_command(request: ServeMcp) -> int:
    """Serve until the client leaves, or until stopped.

    Raises:
        UsageError: bundle, model, key, address or tokens cannot be used, or the extra is missing.
        SandboxUnavailable: no isolation holds on this machine.
    """
    if request.transport not in TRANSPORTS:
        if request.transport == "sse":
            raise UsageError(
                "The protocol replaced sse by streamable-http.", fix="--transport streamable-http"
            )
        raise UsageError(
            f"No transport {request.transport!r}. {nearest(request.transport, TRANSPORTS)}"
        )
    try:
        from fleet_rlm.serving.mcp_tools import McpTools, mcp_over_http, mcp_over_stdio
    except ModuleNotFoundError as error:
        raise UsageError(
            f"serve-mcp needs the extra of that name ({error}).",
            fix="pip install 'fleet-rlm[mcp]'",
        ) from None
    engine = request.engine.start()
    with tempfile.TemporaryDirectory(prefix="fleet-rlm-mcp-") as chats:
        settings = ServerSettings(
            tokens=read_tokens(request.tokens, os.environ),
            state=Path(chats),
            timeout_s=request.engine.timeout_s,
            **request.server,
        )
        service = Service(engine, settings)
        tools = McpTools(service, request.engine.bundle)
        log_to_stderr()
        if engine.label:
            print(engine.label, file=sys.stderr)
        if request.transport == "stdio":
            asyncio.run(mcp_over_stdio(tools, service))
        else:
            app = mcp_over_http(tools, service)
            serve(service, app, lambda url: typer.echo(f"{url}/mcp"))
    return Exit.OK
