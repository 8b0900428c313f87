"""A loopback sandbox: its jail, the processes that were started in it, its clocks and volumes."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import time
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from grpclib import GRPCError, Status
from modal_proto import api_pb2 as pb

from tests.modal_loopback.jails import Bind, PlainJail

FS_TOOL = Path(__file__).with_name("fs_tool.py")
PYTHON = os.path.normpath(sys.executable)  # not resolved: it may be a virtual environment's
TOOL_INSIDE = "/run/modal-fs-tool.py"
Ended = pb.GenericResult


class Stream:
    """Everything a process wrote to one descriptor, readable from any offset while it grows."""

    def __init__(self) -> None:
        self.data, self.ended, self._news = bytearray(), False, asyncio.Condition()

    async def pump(self, reader: asyncio.StreamReader) -> None:
        while chunk := await reader.read(1 << 18):
            async with self._news:
                self.data += chunk
                self._news.notify_all()
        await self.end()

    async def end(self) -> None:
        async with self._news:
            self.ended = True
            self._news.notify_all()

    async def read(self, offset: int) -> AsyncIterator[bytes]:
        while True:
            async with self._news:
                await self._news.wait_for(lambda at=offset: len(self.data) > at or self.ended)  # type: ignore[misc]
                chunk = bytes(self.data[offset : offset + (1 << 20)])
            if not chunk:
                return
            offset += len(chunk)
            yield chunk


class Exec:
    """One process of a sandbox."""

    def __init__(self) -> None:
        self.out, self.err = Stream(), Stream()
        self.written = 0
        self.closed = False
        self.done = asyncio.Event()
        self.process: asyncio.subprocess.Process | None = None
        self._lock = asyncio.Lock()

    async def run(
        self, jail: PlainJail, argv: Sequence[str], env: Mapping[str, str], folder: str, limit: int
    ) -> None:
        self.process = await jail.spawn(argv, env, folder)
        self._waiter = asyncio.ensure_future(self._wait(jail, limit or None))

    async def _wait(self, jail: PlainJail, limit: int | None) -> None:
        process = self.process
        assert process
        assert process.stdout
        assert process.stderr
        pumps = asyncio.gather(self.out.pump(process.stdout), self.err.pump(process.stderr))
        try:
            await asyncio.wait_for(process.wait(), limit)
        except TimeoutError:
            jail.kill(process)
            await process.wait()
        try:  # grandchildren may hold the pipes open
            await asyncio.wait_for(pumps, 1.0)
        except TimeoutError:
            await asyncio.gather(self.out.end(), self.err.end())
        process._transport.close()  # type: ignore[attr-defined]
        self.done.set()

    async def write(self, offset: int, data: bytes, last: bool) -> None:
        """Bytes for its stdin; those that came before are dropped."""
        assert self.process
        assert self.process.stdin
        async with self._lock:
            if offset > self.written:
                raise GRPCError(Status.INVALID_ARGUMENT, f"offset {offset} after {self.written}")
            data = data[self.written - offset :]
            if data and (self.closed or self.process.returncode is not None):
                raise GRPCError(Status.FAILED_PRECONDITION, "stdin is closed")
            try:
                self.process.stdin.write(data)
                await self.process.stdin.drain()
            except (BrokenPipeError, ConnectionResetError):
                raise GRPCError(Status.FAILED_PRECONDITION, "stdin is closed") from None
            self.written += len(data)
            if last and not self.closed:
                self.closed = True
                self.process.stdin.close()

    def status(self, reply: Any) -> Any:
        """`reply` with the exit code or signal, when there is one."""
        code = self.process.returncode if self.process and self.done.is_set() else None
        if code is not None and code < 0:
            reply.signal = -code
        elif code is not None:
            reply.code = code
        return reply


class Volume:
    """A volume: what was committed."""

    def __init__(self, id_: str, name: str, root: Path, version: int) -> None:
        self.id, self.name, self.root, self.version = id_, name, root, version
        root.mkdir(parents=True)

    def place(self, path: str) -> Path:
        return self.root / path.lstrip("/")

    def metadata(self) -> pb.VolumeMetadata:
        return pb.VolumeMetadata(version=self.version, name=self.name)


class Sandbox:
    """A sandbox from its creation to its end."""

    def __init__(self, lab: Any, app: str, wanted: pb.Sandbox, env: dict[str, str]) -> None:
        self.lab, self.app, self.wanted = lab, app, wanted
        name = uuid.uuid4().hex
        self.id, self.task = f"sb-{name[:26]}", f"ta-{name[:20]}V"  # not the shapes of V1
        self.created = self.active = time.time()
        self.tags: dict[str, str] = {}
        self.messages = 0
        self.lost_at = lab.losses.popleft() if lab.losses else 0
        self.execs: dict[str, Exec] = {}
        self.result: pb.GenericResult | None = None
        self.ended = asyncio.Event()
        self.views: list[tuple[Volume, Path]] = []
        self.image = lab.images.get(wanted.image_id) or lab.new_image()
        self.env = {**self.image["env"], **env}
        self.folder = wanted.workdir or self.image["workdir"] or "/root"
        kind = wanted.network_access.network_access_type
        self.offline = kind == pb.NetworkAccess.BLOCKED or wanted.block_network
        self.dir = lab.dir / "sandboxes" / self.id
        self.jail = lab.jail_class(self.dir / "root", offline=self.offline)

    async def start(self) -> None:
        for files in [*self.image["files"], *(self.lab.mounts[m] for m in self.wanted.mount_ids)]:
            for name, data in files.items():
                self._put(name, data)
        self._put(TOOL_INSIDE, FS_TOOL.read_bytes())
        await self.jail.start([self._bind(mount) for mount in self.wanted.volume_mounts])
        if not self.jail.outside(TOOL_INSIDE).exists():
            self._put(TOOL_INSIDE, FS_TOOL.read_bytes())
        self._watcher = asyncio.ensure_future(self._watch())

    def _put(self, name: str, data: bytes) -> None:
        place = self.dir / "root" / name.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)

    def _bind(self, mount: pb.VolumeMount) -> Bind:
        """A writable mount is a view of what was committed when it was made."""
        volume = self.lab.volumes[mount.volume_id]
        source = volume.place(mount.sub_path) if mount.sub_path else volume.root
        if not mount.read_only:
            view = self.dir / "volumes" / volume.id
            shutil.copytree(source, view)
            self.views.append((volume, view))
            source = view
        return Bind(source, mount.mount_path, mount.read_only)

    def sync(self, *, reload: bool) -> None:
        """Commit what was written; with `reload`, see what others have committed."""
        for volume, view in self.views:
            shutil.copytree(view, volume.root, dirs_exist_ok=True)
            if reload:
                shutil.copytree(volume.root, view, dirs_exist_ok=True)

    async def exec(self, request: Any, env: Mapping[str, str]) -> None:
        if request.exec_id in self.execs:  # the SDK repeats a start under the same id
            return
        argv = list(request.command_args)
        if argv[0] == "sync":  # commits a volume of version 2
            self.sync(reload=False)
        if argv[0].endswith("modal-sandbox-fs-tools"):
            tool = TOOL_INSIDE if not self.jail._tool_root() else str(FS_TOOL)
            argv = [PYTHON, "-I", "-S", tool, *argv[1:]]
        elif argv[0] in ("python", "python3"):
            argv[0] = PYTHON
        basic = {"PATH": os.environ["PATH"], "HOME": "/root", "LANG": "C.UTF-8"}
        full = {**basic, "MODAL_SANDBOX_ID": self.id, **self.env, **env}
        started = self.execs[request.exec_id] = Exec()
        folder = request.workdir or self.folder
        await started.run(self.jail, argv, full, folder, request.timeout_secs)

    async def _watch(self) -> None:
        """End it at its timeout, or when nothing was active for its idle timeout."""
        deadline = self.created + (self.wanted.timeout_secs or 300)
        idle = self.wanted.idle_timeout_secs
        while self.result is None:
            await asyncio.sleep(0.1)
            now = time.time()
            if now >= deadline:
                return await self.finish(Ended.GENERIC_STATUS_TIMEOUT)
            if any(not each.done.is_set() for each in self.execs.values()):
                self.active = now
            if idle and now - self.active > idle:
                return await self.finish(Ended.GENERIC_STATUS_IDLE_TIMEOUT)

    async def finish(self, status: int) -> None:
        """End it and commit its volumes."""
        if self.result is not None:
            return
        self.result = Ended(status=status)  # type: ignore[arg-type]
        self.jail.destroy()
        if self._watcher is not asyncio.current_task():
            self._watcher.cancel()
        self.sync(reload=False)
        await self.jail.close()
        self.ended.set()
        await asyncio.to_thread(shutil.rmtree, self.dir, True)

    def check_alive(self) -> None:
        if self.result is not None:
            raise GRPCError(Status.NOT_FOUND, f"Sandbox {self.id} has already shut down")
        self.active = time.time()

    def metadata(self) -> pb.SandboxHandleMetadata:
        return pb.SandboxHandleMetadata(app_id=self.app, result=self.result)
