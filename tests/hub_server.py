"""A Hugging Face Hub on loopback: dataset repositories as dictionaries, byte ranges, commits."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit


@dataclass
class Hub:
    """What a test sets and reads."""

    url: str
    repos: dict[str, dict[str, bytes]] = field(default_factory=dict)
    """Repository -> path -> content."""

    commit: str = "c" * 40
    """What every repository's main branch is at."""

    asked: list[str] = field(default_factory=list)
    """Method and path of each request."""

    sent: int = 0
    """Bytes of files sent."""


@contextmanager
def hub_server() -> Iterator[Hub]:
    """Serve on a free port of 127.0.0.1 until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 30

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.do_GET(json.loads(body or b"{}"))

        def do_GET(self, body: dict[str, Any] | None = None) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.asked.append(f"{self.command} {path}")
            if found := re.fullmatch(r"/datasets/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
                self.file(*found.groups())
            elif found := re.fullmatch(r"/api/datasets/([^/]+/[^/]+)(?:/(.+))?", path):
                self.api(found[1], found[2] or "", body or {})
            else:
                self.reply(404, b"", {"X-Error-Code": "EntryNotFound"})

        def file(self, repo: str, revision: str, name: str) -> None:
            data = hub.repos.get(repo, {}).get(name)
            if data is None or revision != hub.commit:
                self.reply(404, b"", {"X-Error-Code": "EntryNotFound"})
                return
            headers = {
                "X-Repo-Commit": hub.commit,
                "ETag": f'"{hashlib.sha1(data).hexdigest()}"',
                "Accept-Ranges": "bytes",
            }
            if asked := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
                first, last = int(asked[1]), int(asked[2] or len(data) - 1)
                part = data[first : last + 1]
                headers["Content-Range"] = f"bytes {first}-{first + len(part) - 1}/{len(data)}"
                self.reply(206, part, headers)
            else:
                self.reply(200, data, headers)

        def api(self, repo: str, rest: str, body: dict[str, Any]) -> None:
            files = hub.repos.get(repo)
            if files is None or (rest and hub.commit not in rest):
                self.reply(404, b"", {"X-Error-Code": "RevisionNotFound"})
                return
            kind, _, place = rest.partition("/")
            if kind in ("", "revision"):
                names = [{"rfilename": name} for name in files]
                self.json({"id": repo, "sha": hub.commit, "siblings": names, "tags": []})
            elif kind == "tree":
                folder = place.partition("/")[2]
                self.json([e for e in entries(files) if e["path"].startswith(folder)])
            else:
                wanted = body.get("paths", [])
                self.json([entry for entry in entries(files) if entry["path"] in wanted])

        def json(self, value: Any) -> None:
            self.reply(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

        def reply(self, status: int, data: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)
                hub.sent += len(data)

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub = Hub(url=f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def entries(files: dict[str, bytes]) -> list[dict[str, Any]]:
    """Files and folders as the Hub lists them."""
    folders = {
        "/".join(name.split("/")[:depth])
        for name in files
        for depth in range(1, name.count("/") + 1)
    }
    found = [{"type": "directory", "path": name, "oid": "0" * 40, "size": 0} for name in folders]
    for name, data in files.items():
        digest = hashlib.sha1(data).hexdigest()
        found.append({"type": "file", "path": name, "oid": digest, "size": len(data)})
    return sorted(found, key=lambda entry: entry["path"])
