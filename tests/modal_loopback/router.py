"""The task command router: processes in sandboxes, their streams, and volumes from within."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

from grpclib import GRPCError, Status
from modal_proto import task_command_router_grpc
from modal_proto import task_command_router_pb2 as tcr

from tests.modal_loopback.control import environment_of
from tests.modal_loopback.sandboxes import Ended, Exec, Sandbox
from tests.modal_loopback.service import Service


class Router(Service):
    """Calls that go to the worker that holds a sandbox."""

    base = task_command_router_grpc.TaskCommandRouterBase

    def authorize(self, metadata: Mapping[str, Any]) -> None:
        token = str(metadata.get("authorization") or "").removeprefix("Bearer ")
        if self.lab.tokens.get(token, 0.0) < time.time():
            raise GRPCError(Status.UNAUTHENTICATED, "router token unknown or expired")

    def _sandbox(self, task: str) -> Sandbox:
        if task not in self.lab.tasks:
            raise GRPCError(Status.NOT_FOUND, f"task {task} not found")
        found: Sandbox = self.lab.tasks[task]
        return found

    def _exec(self, request: Any, *, alive: bool = False) -> Exec:
        sandbox = self._sandbox(request.task_id)
        if alive:
            sandbox.check_alive()
        if request.exec_id not in sandbox.execs:
            raise GRPCError(Status.NOT_FOUND, f"exec {request.exec_id} not found")
        return sandbox.execs[request.exec_id]

    async def TaskExecStart(self, request: Any) -> Any:
        sandbox = self._sandbox(request.task_id)
        sandbox.check_alive()
        await sandbox.exec(request, environment_of(self.lab, request))
        return tcr.TaskExecStartResponse()

    async def TaskExecStdioRead(self, request: Any) -> AsyncIterator[Any]:
        found = self._exec(request)
        error = tcr.TASK_EXEC_STDIO_FILE_DESCRIPTOR_STDERR
        stream = found.err if request.file_descriptor == error else found.out
        async for chunk in stream.read(request.offset):
            yield tcr.TaskExecStdioReadResponse(data=chunk)

    async def TaskExecStdinWrite(self, request: Any) -> Any:
        self.lab.uploaded += len(request.data)
        found, sandbox = self._exec(request, alive=True), self._sandbox(request.task_id)
        sandbox.messages += 1
        if sandbox.messages == sandbox.lost_at:
            await sandbox.finish(Ended.GENERIC_STATUS_FAILURE)
        await found.write(request.offset, request.data, request.eof)
        return tcr.TaskExecStdinWriteResponse()

    async def TaskExecStdinWriteStream(self, stream: Any) -> Any:
        first = await stream.recv_message()
        found, offset = self._exec(first.start, alive=True), first.start.offset
        async for message in stream:
            last = message.WhichOneof("payload") == "end"
            data = b"" if last else message.data
            self.lab.uploaded += len(data)
            await found.write(offset, data, last)
            offset += len(data)
        return tcr.TaskExecStdinWriteStreamResponse()

    async def TaskExecStdinStatus(self, request: Any) -> Any:
        found = self._exec(request)
        return tcr.TaskExecStdinStatusResponse(num_bytes_written=found.written, closed=found.closed)

    async def TaskExecPoll(self, request: Any) -> Any:
        return self._exec(request).status(tcr.TaskExecPollResponse())

    async def TaskExecWait(self, request: Any) -> Any:
        found = self._exec(request)
        await found.done.wait()
        return found.status(tcr.TaskExecWaitResponse())

    async def SandboxWaitUntilReady(self, request: Any) -> Any:
        return tcr.SandboxWaitUntilReadyTcrResponse(ready_at=time.time())

    async def TaskReloadVolumes(self, request: Any) -> Any:
        self._sandbox(request.task_id).sync(reload=True)
        return tcr.TaskReloadVolumesResponse()
