"""A real uvicorn server on loopback for as long as a block lasts."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

_PATIENCE_S = 20.0


@contextmanager
def web_server(app: Any, listener: socket.socket | None = None, **settings: Any) -> Iterator[str]:
    """Serve an ASGI application on a free port; gives its base URL."""
    listener = listener or socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, **{"log_level": "warning", "ws": "none"} | settings)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    try:
        deadline = time.monotonic() + _PATIENCE_S
        while not server.started and thread.is_alive() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert server.started, "the server did not start"
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(_PATIENCE_S)
        listener.close()
        assert not thread.is_alive(), "the server did not stop"
