"""`sandbox gc`, a command of both `fleet-rlm` and `fleet-eval`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fleet_rlm.cli import options


def sandbox_gc(
    run: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Those of this run, expired or not.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="All of your user.")] = False,
    as_json: options.AsJson = False,
) -> int:
    """End Modal sandboxes of your user that have expired, found by their tags."""
    from fleet_rlm.cli.sandbox import gc_command

    return gc_command(run=run, everything=everything, as_json=as_json)
