"""`fleet-rlm sim-server`: serve the simulated model over HTTP."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from typing import Any

import typer

from fleet_rlm.errors import Exit
from fleet_rlm.lm.simulated import LABEL
from fleet_rlm.lm.simulated.knobs import Knobs, parse_faults
from fleet_rlm.lm.simulated.server import serve


def sim_server_command(knobs: Mapping[str, Any], *, faults: str, host: str, port: int) -> int:
    """Serve until stopped; the first line on stdout is the base URL, the second the label."""
    key = os.environ.get("SIM_API_KEY", "")
    wanted = Knobs().changed({**knobs, "faults": parse_faults(faults), "api_key": key})

    def ready(url: str) -> None:
        typer.echo(f"{url}\n{LABEL}")

    asyncio.run(serve(wanted, host=host, port=port, ready=ready))
    return Exit.OK
