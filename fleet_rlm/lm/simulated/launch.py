"""Start the simulated model's server in a process of its own, for as long as a block lasts."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from fleet_rlm.errors import FleetError, UsageError
from fleet_rlm.lm.simulated.knobs import Knobs

_PATIENCE_S = 10.0


class SimulatedServer:
    """A running server.

    Args:
        url: its base URL, as `api_base` of a `dspy.LM` takes it.
        pid: its process.
    """

    def __init__(self, url: str, pid: int) -> None:
        self.url = url
        self.pid = pid

    def stats(self) -> dict[str, Any]:
        """What it has seen since it started or was configured."""
        return self._ask("stats")

    def configure(self, **knobs: Any) -> None:
        """Change some of `Knobs`; statistics start again.

        Raises:
            UsageError: a knob is not known, or its value is wrong.
        """
        self._ask("config", json.dumps(knobs).encode())

    def _ask(self, what: str, body: bytes | None = None) -> dict[str, Any]:
        root = self.url.removesuffix("/v1")
        try:
            with urlopen(Request(f"{root}/__sim/{what}", body), timeout=_PATIENCE_S) as reply:
                found: dict[str, Any] = json.load(reply)
                return found
        except HTTPError as error:
            raise UsageError(json.load(error)["error"]["message"]) from None


@contextmanager
def simulated_server(**knobs: Any) -> Iterator[SimulatedServer]:
    """Serve the simulated model on a free port of this machine until the block ends.

        with simulated_server(latency_ms=300, faults={"429": 0.05}) as server:
            lm = dspy.LM("openai/sim", api_base=server.url, api_key="sim")

    Args:
        knobs: of `Knobs`.

    Raises:
        UsageError: a knob is not known, or its value is wrong.
        FleetError: the server did not start.
    """
    wanted = asdict(Knobs().changed(knobs))
    command = [sys.executable, "-m", "fleet_rlm.lm.simulated.server"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdin
        assert process.stdout
        try:
            print(json.dumps(wanted), file=process.stdin, flush=True)
            url = process.stdout.readline().strip()
            if not url:
                raise FleetError("The simulated model's server did not start.")
            yield SimulatedServer(url, process.pid)
        finally:
            process.terminate()
            try:
                process.wait(_PATIENCE_S)
            except subprocess.TimeoutExpired:
                process.kill()
