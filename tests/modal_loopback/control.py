"""The control plane: apps, images, secrets, volumes, sandboxes."""

from __future__ import annotations

import asyncio
import hashlib
import re
import shutil
import time
import uuid
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import suppress
from typing import Any

from google.protobuf.empty_pb2 import Empty
from grpclib import GRPCError, Status
from modal_proto import api_grpc
from modal_proto import api_pb2 as pb

from tests.modal_loopback.sandboxes import Sandbox, Volume
from tests.modal_loopback.service import Service

BLOCK = 8 << 20
GOOD = pb.GenericResult(status=pb.GenericResult.GENERIC_STATUS_SUCCESS)


def missing(what: str) -> GRPCError:
    return GRPCError(Status.NOT_FOUND, f"{what} not found")


def tag_map(tags: Iterable[Any]) -> dict[str, str]:
    return {tag.tag_name: tag.tag_value for tag in tags}


def environment_of(lab: Any, *requests: Any) -> dict[str, str]:
    """Variables that requests bring along, as SDKs from 1.6.0 on send them."""
    found: dict[str, str] = {}
    for request in requests:
        for id_ in getattr(request, "secret_ids", ()):
            found |= lab.secrets[id_]["env"]
        for name in ("ephemeral_secrets", "env", "environment_variables"):
            value = getattr(request, name, {})
            found |= dict(getattr(value, "contents", value))
        for source in getattr(request, "secret_sources", ()):
            inline = source.WhichOneof("source") != "secret_id"
            found |= source.env.contents if inline else lab.secrets[source.secret_id]["env"]
    return found


class Control(Service):
    """Calls that go to api.modal.com."""

    base = api_grpc.ModalClientBase
    idempotent = frozenset({"SandboxCreateV2"})

    def authorize(self, metadata: Mapping[str, Any]) -> None:
        from tests.modal_loopback.server import TOKEN

        token = (metadata.get("x-modal-token-id"), metadata.get("x-modal-token-secret"))
        if token != TOKEN:
            raise GRPCError(Status.UNAUTHENTICATED, "Token ID is malformed")

    async def ClientHello(self, request: Any) -> Any:
        return pb.ClientHelloResponse()

    async def AuthTokenGet(self, request: Any) -> Any:
        from tests.modal_loopback.server import make_jwt

        return pb.AuthTokenGetResponse(token=make_jwt(exp=time.time() + 1200))

    async def WorkspaceNameLookup(self, request: Any) -> Any:
        return pb.WorkspaceNameLookupResponse(workspace_name="loopback", username="tester")

    async def EnvironmentGetOrCreate(self, request: Any) -> Any:
        settings = pb.EnvironmentSettings(image_builder_version="2025.06")
        return pb.EnvironmentGetOrCreateResponse(
            environment_id="en-main",
            metadata=pb.EnvironmentMetadata(name="main", settings=settings),
        )

    async def AppGetOrCreate(self, request: Any) -> Any:
        apps, name = self.lab.apps, request.app_name
        if name not in apps:
            if request.object_creation_type != pb.OBJECT_CREATION_TYPE_CREATE_IF_MISSING:
                raise missing(f"App {name!r}")
            apps[name] = f"ap-{uuid.uuid4().hex[:22]}"
        reply = pb.AppGetOrCreateResponse(app_id=apps[name])
        if "handle_metadata" in reply.DESCRIPTOR.fields_by_name:  # since 1.6.1
            reply.handle_metadata.MergeFrom(
                pb.AppHandleMetadata(description=name, app_id=apps[name], environment_name="main")
            )
        return reply

    # images and secrets

    async def ImageGetOrCreate(self, request: Any) -> Any:
        wanted, lab = request.image, self.lab
        content = wanted.SerializeToString(deterministic=True)
        id_ = f"im-{hashlib.sha256(content).hexdigest()[:22]}"
        image = lab.new_image()
        for base in (lab.images[base.image_id] for base in wanted.base_images):
            image["env"] |= base["env"]
            image["files"] = image["files"] + base["files"]
            image["commands"] = image["commands"] + base["commands"]
            image["workdir"] = base["workdir"]
        for line in wanted.dockerfile_commands:
            self._follow(line, image, wanted.context_mount_id)
        lab.images[id_] = image
        return pb.ImageGetOrCreateResponse(image_id=id_, result=GOOD)

    def _follow(self, line: str, image: dict[str, Any], context: str) -> None:
        image["commands"].append(line)
        if found := re.match(r"ENV (\w+)=(.*)", line):
            image["env"][found[1]] = found[2].strip("\"'")
        elif found := re.match(r"WORKDIR (\S+)", line):
            image["workdir"] = found[1].strip("\"'")
        elif context and (found := re.match(r"COPY \. (\S+)", line)):
            place = found[1].rstrip("/")
            files = self.lab.mounts[context].items()
            image["files"].append({f"{place}/{name.lstrip('/')}": data for name, data in files})

    async def ImageFromId(self, request: Any) -> Any:
        return pb.ImageFromIdResponse(image_id=request.image_id)

    async def ImagePublish(self, request: Any) -> Any:
        self.lab.published[request.tag] = request.image_id
        return pb.ImagePublishResponse()

    async def ImageGetByTag(self, request: Any) -> Any:
        if request.tag not in self.lab.published:
            raise missing(f"Image {request.tag!r}")
        return pb.ImageGetByTagResponse(image_id=self.lab.published[request.tag])

    async def MountBatchedCheckExistence(self, request: Any) -> Any:
        absent = [key for key in request.sha256_hex_hashes if key not in self.lab.blobs]
        return pb.MountBatchedCheckExistenceResponse(missing_sha256_hex_hashes=absent)

    async def MountPutFile(self, request: Any) -> Any:
        blobs, kind = self.lab.blobs, request.WhichOneof("data_oneof")
        if kind:
            data = request.data if kind == "data" else blobs[request.data_blob_id]
            blobs[request.sha256_hex] = data
        return pb.MountPutFileResponse(exists=request.sha256_hex in blobs)

    async def MountGetOrCreate(self, request: Any) -> Any:
        id_ = f"mo-{uuid.uuid4().hex[:22]}"
        blobs = self.lab.blobs
        self.lab.mounts[id_] = {file.filename: blobs[file.sha256_hex] for file in request.files}
        return pb.MountGetOrCreateResponse(mount_id=id_)

    async def SecretGetOrCreate(self, request: Any) -> Any:
        secrets, name = self.lab.secrets, request.deployment_name
        plain = request.object_creation_type == pb.OBJECT_CREATION_TYPE_UNSPECIFIED
        if name and plain:
            id_ = next((key for key, each in secrets.items() if each["name"] == name), None)
            if id_ is None:
                raise missing(f"Secret {name!r}")
        else:
            id_ = f"st-{uuid.uuid4().hex[:22]}"
            secrets[id_] = {"name": name, "env": dict(request.env_dict)}
        return pb.SecretGetOrCreateResponse(secret_id=id_)

    # volumes and blobs

    async def VolumeGetOrCreate(self, request: Any) -> Any:
        lab, name = self.lab, request.deployment_name
        found = next((v for v in lab.volumes.values() if name and v.name == name), None)
        if found is None:
            if request.object_creation_type == pb.OBJECT_CREATION_TYPE_UNSPECIFIED and name:
                raise missing(f"Volume {name!r}")
            id_ = f"vo-{uuid.uuid4().hex[:22]}"
            version = request.version or pb.VOLUME_FS_VERSION_V2
            found = Volume(id_, name, lab.dir / "volumes" / id_, version)
            lab.volumes[id_] = found
        return pb.VolumeGetOrCreateResponse(
            volume_id=found.id, version=found.version, metadata=found.metadata()
        )

    async def VolumeDelete(self, request: Any) -> Any:
        volume = self.lab.volumes.pop(request.volume_id, None)
        if volume is None:
            raise missing(f"Volume {request.volume_id}")
        shutil.rmtree(volume.root, ignore_errors=True)
        return Empty()

    async def VolumePutFiles2(self, request: Any) -> Any:
        volume, absent = self.lab.volumes[request.volume_id], []
        for at, file in enumerate(request.files):
            if request.disallow_overwrite_existing_files and volume.place(file.path).exists():
                raise GRPCError(Status.ALREADY_EXISTS, f"{file.path} already exists")
            for index, block in enumerate(file.blocks):
                key = block.contents_sha256.hex()
                if key not in self.lab.blobs:
                    absent.append(
                        pb.VolumePutFiles2Response.MissingBlock(
                            file_index=at, block_index=index, put_url=self.lab.blob_url(key)
                        )
                    )
        for file in request.files if not absent else ():
            place = volume.place(file.path)
            place.parent.mkdir(parents=True, exist_ok=True)
            with place.open("wb") as out:
                for index, block in enumerate(file.blocks):
                    out.seek(index * BLOCK)  # zeros at the end of a block are not sent
                    out.write(self.lab.blobs[block.contents_sha256.hex()])
                out.truncate(file.size)
        return pb.VolumePutFiles2Response(missing_blocks=absent)

    async def VolumeGetFile2(self, request: Any) -> Any:
        place = self.lab.volumes[request.volume_id].place(request.path)
        if not place.is_file():
            raise missing(request.path)
        data = place.read_bytes()
        urls = []
        for start in range(0, len(data), BLOCK):
            block = data[start : start + BLOCK]
            key = hashlib.sha256(block).hexdigest()
            self.lab.blobs[key] = block
            urls.append(self.lab.blob_url(key))
        size = len(data)
        return pb.VolumeGetFile2Response(get_urls=urls, size=size, start=0, len=size)

    async def VolumeListFiles2(self, request: Any) -> AsyncIterator[Any]:
        volume = self.lab.volumes[request.volume_id]
        base = volume.place(request.path)
        if not base.exists():
            raise missing(request.path)
        found = [base] if base.is_file() else sorted(base.iterdir())
        if request.recursive and base.is_dir():
            found = sorted(base.rglob("*"))
        entries = [
            pb.FileEntry(
                path=str(place.relative_to(volume.root)),
                size=place.stat().st_size,
                mtime=int(place.stat().st_mtime),
                type=pb.FileEntry.DIRECTORY if place.is_dir() else pb.FileEntry.FILE,
            )
            for place in found
        ]
        yield pb.VolumeListFiles2Response(entries=entries)

    async def VolumeRemoveFile2(self, request: Any) -> Any:
        place = self.lab.volumes[request.volume_id].place(request.path)
        if not place.exists():
            raise missing(request.path)
        shutil.rmtree(place) if place.is_dir() else place.unlink()
        return Empty()

    async def BlobCreate(self, request: Any) -> Any:
        id_ = f"bl-{uuid.uuid4().hex[:22]}"
        urls = pb.UploadUrlList(items=[self.lab.blob_url(id_)])
        return pb.BlobCreateResponse(blob_ids=[id_], upload_urls=urls)

    async def BlobGet(self, request: Any) -> Any:
        return pb.BlobGetResponse(download_url=self.lab.blob_url(request.blob_id))

    # sandboxes

    async def SandboxCreateV2(self, request: Any) -> Any:
        lab, wanted = self.lab, request.definition
        if len(lab.live()) + lab.starting >= lab.max_sandboxes:
            raise lab.throttled(0.2)
        env = environment_of(lab, wanted, request)
        sandbox = Sandbox(lab, request.app_id, wanted, env)
        sandbox.tags = tag_map(request.tags)
        lab.starting += 1
        try:
            await sandbox.start()
        finally:
            lab.starting -= 1
        lab.sandboxes[sandbox.id] = lab.tasks[sandbox.task] = sandbox
        lab.peak = max(lab.peak, len(lab.live()))
        reply = pb.SandboxCreateV2Response(sandbox_id=sandbox.id, task_id=sandbox.task)
        fields = reply.DESCRIPTOR.fields_by_name  # some came after 1.6.0
        if "metadata" in fields:
            reply.metadata.MergeFrom(sandbox.metadata())
        if "sandbox_token" in fields:
            reply.sandbox_token = f"token-{sandbox.id}"
        if "command_router_access" in fields:
            reply.command_router_access.url = lab.url
            reply.command_router_access.jwt = lab.router_token(sandbox)
        return reply

    def _sandbox(self, id_: str) -> Sandbox:
        if id_ not in self.lab.sandboxes:
            raise missing(f"Sandbox {id_}")
        found: Sandbox = self.lab.sandboxes[id_]
        return found

    async def SandboxGetCommandRouterAccess(self, request: Any) -> Any:
        by_task = request.task_id
        sandbox = self.lab.tasks[by_task] if by_task else self._sandbox(request.sandbox_id)
        token = self.lab.router_token(sandbox)
        return pb.SandboxGetCommandRouterAccessResponse(url=self.lab.url, jwt=token)

    async def SandboxGetTaskIdV2(self, request: Any) -> Any:
        return pb.SandboxGetTaskIdResponse(task_id=self._sandbox(request.sandbox_id).task)

    async def SandboxWaitV2(self, request: Any) -> Any:
        sandbox = self._sandbox(request.sandbox_id)
        if request.timeout and sandbox.result is None:
            with suppress(TimeoutError):
                await asyncio.wait_for(sandbox.ended.wait(), request.timeout)
        return pb.SandboxWaitResponse(result=sandbox.result, metadata=sandbox.metadata())

    async def SandboxTerminateV2(self, request: Any) -> Any:
        sandbox = self._sandbox(request.sandbox_id)
        before = sandbox.result
        await sandbox.finish(pb.GenericResult.GENERIC_STATUS_TERMINATED)
        return pb.SandboxTerminateResponse(existing_result=before)

    async def SandboxListV2(self, request: Any) -> Any:
        wanted = tag_map(request.tags).items()
        before = request.before_timestamp or float("inf")
        found = [
            each
            for each in self.lab.sandboxes.values()
            if (each.result is None or request.include_finished)
            and (not request.app_id or each.app == request.app_id)
            and wanted <= each.tags.items()
            and each.created < before
        ]
        found.sort(key=lambda each: -each.created)
        infos = [
            pb.SandboxInfo(
                id=each.id,
                created_at=each.created,
                app_id=each.app,
                metadata=each.metadata(),
                tags=[pb.SandboxTag(tag_name=k, tag_value=v) for k, v in each.tags.items()],
                task_info=pb.TaskInfo(id=each.task, result=each.result),
            )
            for each in found[:100]
        ]
        return pb.SandboxListResponse(sandboxes=infos)

    async def SandboxTagsGetV2(self, request: Any) -> Any:
        tags = self._sandbox(request.sandbox_id).tags.items()
        return pb.SandboxTagsGetResponse(
            tags=[pb.SandboxTag(tag_name=name, tag_value=value) for name, value in tags]
        )
