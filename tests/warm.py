"""A process that has imported everything and forks a command a time, for the pages' many commands.

Importing dspy anew costs a second of a processor; forked, a command starts in milliseconds, with
its own arguments, folder, environment and streams. Only `tests/test_docs.py` uses it: how commands
start by themselves is tested elsewhere.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any

IMPORTED = ("dspy", "fleet_rlm.cli.run", "fleet_rlm.cli.compile", "fleet_rlm.cli.suites")
LARGEST = 1 << 20
PATIENCE_S = 20.0
"""How long a command may take to end whose client was killed."""

# Runs with -S, so that nothing but the standard library is imported: 15 ms.
CLIENT = """\
import json, os, socket, sys
server = socket.socket(socket.AF_UNIX)
server.connect({path!r})
request = {{"module": sys.argv[1], "argv": sys.argv[2:]}}
request |= {{"cwd": os.getcwd(), "env": dict(os.environ)}}
socket.send_fds(server, [json.dumps(request).encode() + b"\\n"], [0, 1, 2])
sys.exit(int(server.recv(16) or b"70"))
"""


@contextmanager
def warm(folder: Path) -> Iterator[list[str]]:
    """Start the process; gives the words before a module's name that run it there.

    Args:
        folder: for its socket.
    """
    path = folder / "warm.sock"
    server = subprocess.Popen([sys.executable, __file__, str(path)], cwd=Path(__file__).parents[1])
    try:
        until = time.monotonic() + 60
        while not path.exists():
            assert server.poll() is None
            assert time.monotonic() < until
            time.sleep(0.02)
        yield [sys.executable, "-S", "-c", CLIENT.format(path=str(path))]
    finally:
        server.terminate()
        server.wait()


def serve(path: str) -> None:
    """Fork for each request until terminated."""
    for name in IMPORTED:
        import_module(name)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{path}.new")
    listener.listen(16)
    Path(f"{path}.new").rename(path)
    while True:
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            os._exit(_answer(connection))
        connection.close()
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _answer(connection: socket.socket) -> int:
    data, streams, _, _ = socket.recv_fds(connection, LARGEST, 3)
    while not data.endswith(b"\n"):
        data += connection.recv(LARGEST)
    child = os.fork()
    if child == 0:
        connection.close()
        _become(json.loads(data), streams)
    for stream in streams:
        os.close(stream)
    ended, gone = os.pidfd_open(child), connection.fileno()
    if gone in select.select([ended, gone], [], [])[0]:  # the client was killed
        signal.pidfd_send_signal(ended, signal.SIGTERM)
        if not select.select([ended], [], [], PATIENCE_S)[0]:
            signal.pidfd_send_signal(ended, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with suppress(BrokenPipeError):
        connection.sendall(str(code % 256).encode())
    return 0


def _become(request: dict[str, Any], streams: list[int]) -> None:
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    os.closerange(3, max(streams) + 1)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    code = 1
    try:
        if request["module"] == "-c":
            sys.argv = ["-c"]
            exec(compile(request["argv"][0], "<page>", "exec"), {"__name__": "__main__"})
        else:
            sys.argv = [request["module"], *request["argv"]]
            import_module(request["module"]).main()
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else bool(ended.code)
    except Exception:  # noqa: BLE001 # what the interpreter does at the end of a script
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    serve(sys.argv[1])
