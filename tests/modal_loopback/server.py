"""The loopback server: one port for both gRPC services, one for blobs, and the knobs of tests."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import shutil
import tempfile
import threading
import time
import uuid
from collections import Counter, defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpclib.server
from aiohttp import web
from grpclib import GRPCError, Status
from grpclib.encoding.proto import ProtoCodec
from modal._utils.grpc_utils import custom_detail_codec
from modal_proto import api_pb2 as pb

from tests.modal_loopback.control import Control
from tests.modal_loopback.jails import NamespaceJail, PlainJail, namespaces_hold
from tests.modal_loopback.router import Router
from tests.modal_loopback.sandboxes import Sandbox, Volume

TOKEN = ("ak-loopback", "as-loopback")


def make_jwt(**claims: Any) -> str:
    """Three parts, as the SDK reads them; nothing is signed."""
    parts = [
        base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode()
        for part in ({"alg": "none"}, claims)
    ]
    return f"{parts[0]}.{parts[1]}.none"


class LoopbackModal:
    """Serves while it is entered, in a thread of its own.

    Args:
        isolation: "namespace", "plain", or "auto" for what holds here.
    """

    def __init__(self, isolation: str = "auto") -> None:
        self.dir = Path(tempfile.mkdtemp(prefix="loopback-modal-"))
        namespaces = isolation == "namespace" or (isolation == "auto" and namespaces_hold())
        self.jail_class: type[PlainJail] = NamespaceJail if namespaces else PlainJail
        self.apps: dict[str, str] = {}
        self.images: dict[str, dict[str, Any]] = {}
        self.published: dict[str, str] = {}
        self.mounts: dict[str, dict[str, bytes]] = {}
        self.secrets: dict[str, dict[str, Any]] = {}
        self.volumes: dict[str, Volume] = {}
        self.blobs: dict[str, bytes] = {}
        self.sandboxes: dict[str, Sandbox] = {}
        self.tasks: dict[str, Sandbox] = {}
        self.tokens: dict[str, float] = {}
        self.replies: dict[str, Any] = {}
        self.starting = 0
        self.reset()

    def reset(self) -> None:
        """Take all knobs back, and forget what has ended."""
        self.sandboxes = {sandbox.id: sandbox for sandbox in self.live()}
        self.calls: Counter[str] = Counter()
        """Calls so far, by name."""
        self.latency: dict[str, float] = {}
        """Seconds before a call is answered, by name; "*" for all others."""
        self.faults: defaultdict[str, deque[Exception | None]] = defaultdict(deque)
        """What the next calls of a name meet; None lets one through."""
        self.losses: deque[int] = deque()
        """For each next sandbox, the message on stdin at which it is lost; 0 for none."""
        self.max_sandboxes = 1 << 30
        self.token_s = 600.0
        """Life of a router token."""
        self.peak = 0
        self.uploaded = 0
        """Bytes that came on stdin streams and over HTTP."""

    @staticmethod
    def throttled(retry_after_s: float) -> GRPCError:
        """What a create above the account's rate meets."""
        policy = pb.RPCRetryPolicy(retry_after_secs=retry_after_s)
        text = "Sandbox creation rate limit (5/s) exceeded"
        return GRPCError(Status.RESOURCE_EXHAUSTED, text, [policy])

    def environment(self) -> dict[str, str]:
        """What makes the SDK talk to this server."""
        return {
            "MODAL_SERVER_URL": self.url,
            "MODAL_TOKEN_ID": TOKEN[0],
            "MODAL_TOKEN_SECRET": TOKEN[1],
            "MODAL_CONFIG_PATH": str(self.dir / "none.toml"),
            "MODAL_ENVIRONMENT": "main",
        }

    def live(self) -> list[Sandbox]:
        """Sandboxes that have not ended."""
        return [sandbox for sandbox in self.sandboxes.values() if sandbox.result is None]

    def end(self, sandbox: Sandbox, status: int = pb.GenericResult.GENERIC_STATUS_FAILURE) -> None:
        """Lose a sandbox, as if its machine failed."""
        asyncio.run_coroutine_threadsafe(sandbox.finish(status), self.loop).result(20)

    # for the services

    def new_image(self) -> dict[str, Any]:
        return {"env": {}, "files": [], "workdir": "", "commands": []}

    def router_token(self, sandbox: Sandbox) -> str:
        until = time.time() + self.token_s
        token = make_jwt(exp=until, task=sandbox.task, n=uuid.uuid4().hex)
        self.tokens[token] = until
        return token

    def blob_url(self, key: str) -> str:
        return f"http://127.0.0.1:{self.http_port}/blob/{key}"

    async def _put(self, request: web.Request) -> web.Response:
        data = await request.read()
        self.uploaded += len(data)
        self.blobs[request.match_info["key"]] = data
        return web.Response(text="ok", headers={"ETag": hashlib.md5(data).hexdigest()})

    async def _get(self, request: web.Request) -> web.Response:
        data = self.blobs.get(request.match_info["key"])
        return web.Response(body=data) if data is not None else web.Response(status=404)

    async def start(self) -> None:
        services = [Control(self), Router(self)]
        self._server = grpclib.server.Server(
            services, status_details_codec=custom_detail_codec, codec=ProtoCodec()
        )
        await self._server.start("127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server._server.sockets[0].getsockname()[1]}"
        app = web.Application(client_max_size=1 << 34)
        app.add_routes([web.put("/blob/{key}", self._put), web.get("/blob/{key}", self._get)])
        self._http = web.AppRunner(app)
        await self._http.setup()
        site = web.TCPSite(self._http, "127.0.0.1", 0)
        await site.start()
        self.http_port = site._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]

    async def stop(self) -> None:
        ended = pb.GenericResult.GENERIC_STATUS_TERMINATED
        await asyncio.gather(*(sandbox.finish(ended) for sandbox in self.live()))
        # Not waited for: from Python 3.12 on that means until the SDK, too, has left.
        self._server.close()
        await self._http.cleanup()
        shutil.rmtree(self.dir, ignore_errors=True)

    def __enter__(self) -> LoopbackModal:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self.start(), self.loop).result(20)
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self.stop(), self.loop).result(60)
        # The loop goes on, in its daemon thread: the SDK keeps its connections to us for as long as
        # the process lives, and a socket without a loop is never closed.

    @contextmanager
    def failing(self, call: str, *errors: Exception | None) -> Iterator[None]:
        """The next calls of that name meet these errors."""
        self.faults[call].extend(errors)
        try:
            yield
        finally:
            self.faults.pop(call, None)
