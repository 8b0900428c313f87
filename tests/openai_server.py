"""An OpenAI-compatible chat server on loopback: the simulated model, with faults on request."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from dspy.lm15 import Message, Request

from fleet_rlm.lm.simulated import SimulatedEngine

Fault = Callable[[int], tuple[int, dict[str, Any]] | None]
"""Number of the request, from 1 -> HTTP status and body instead of an answer, or None."""


@dataclass
class Server:
    """What the tests read of a running server."""

    url: str
    requests: list[dict[str, Any]] = field(default_factory=list)
    keys: set[str] = field(default_factory=set)

    @property
    def models(self) -> set[str]:
        return {request["model"] for request in self.requests}


@contextmanager
def openai_server(fault: Fault = lambda _: None, latency_s: float = 0.0) -> Iterator[Server]:
    """Serve on a free port of 127.0.0.1 until the block ends."""
    engine = SimulatedEngine()
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 30

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                seen.requests.append(body)
                seen.keys.add(self.headers.get("Authorization", ""))
                number = len(seen.requests)
            time.sleep(latency_s)
            status, reply = fault(number) or (200, answer(body))
            data = json.dumps(reply).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None: ...

    def answer(body: dict[str, Any]) -> dict[str, Any]:
        texts = [(m["role"], _text(m["content"])) for m in body["messages"]]
        system = "\n".join(text for role, text in texts if role in {"system", "developer"})
        turns = [
            Message.user(text) if role == "user" else Message.assistant(text)
            for role, text in texts
            if role in {"user", "assistant"}
        ]
        found = engine.complete(Request(model="sim", system=system or None, messages=tuple(turns)))
        usage = found.usage
        return {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 0,
            "model": body["model"],
            "choices": [
                {
                    "index": 0,
                    "finish_reason": "stop",
                    "message": {"role": "assistant", "content": found.text},
                }
            ],
            "usage": {
                "prompt_tokens": usage.input_tokens,
                "completion_tokens": usage.output_tokens,
                "total_tokens": usage.total_tokens,
            },
        }

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    seen = Server(url=f"http://127.0.0.1:{server.server_port}/v1")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield seen
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def error_body(message: str, kind: str) -> dict[str, Any]:
    """An error as OpenAI words it."""
    return {"error": {"message": message, "type": kind, "code": kind}}


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    return "".join(part.get("text", "") for part in content)
