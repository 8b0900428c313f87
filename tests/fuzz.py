"""`make fuzz`: what schemathesis makes of the HTTP server's own description of itself.

    python tests/fuzz.py          every route, 25 requests each; exit code 1 at a server error
    python tests/fuzz.py 200      more of them

The server runs here, on the simulated model, as one identity that knows its token.
"""

from __future__ import annotations

import secrets
import subprocess
import sys
import tempfile
from pathlib import Path

from served import make_engine
from web import web_server

from fleet_rlm.serving.app import Service
from fleet_rlm.serving.settings import ServerSettings


def main(examples: str = "25") -> int:
    token = secrets.token_hex(16)
    with tempfile.TemporaryDirectory() as folder:
        settings = ServerSettings(state=Path(folder), tokens={"fuzz": token}, rate=10_000_000)
        with web_server(Service(make_engine(), settings).asgi, ws="auto") as url:
            command = [
                *(sys.executable, "-c", "from schemathesis.cli import schemathesis as m; m()"),
                *("run", f"{url}/openapi.json", "--header", f"Authorization: Bearer {token}"),
                *("--checks", "not_a_server_error", "--phases", "examples,coverage,fuzzing"),
                *("--max-examples", examples, "--no-color"),
            ]
            return subprocess.run(command, cwd=folder).returncode


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
