"""Large contexts in a Modal volume: sent once for all sandboxes that read them.

Each has a folder of its own, and a sandbox mounts the folder of its own context only, read-only.
"""

from __future__ import annotations

import hashlib
import io

from fleet_rlm.errors import SandboxError
from fleet_rlm.sandbox.modal_create import import_modal
from fleet_rlm.sandbox.modal_link import SECONDS_A_BYTE, SdkFailed, wait_for
from fleet_rlm.sandbox.modal_recipe import CONTEXTS

SEND_S = 120.0


def send(text: str) -> str:
    """Put a text into the volume, unless it is there; gives its digest.

    Raises:
        SandboxError: it could not be sent.
    """
    data = text.encode("utf-8", "surrogatepass")
    digest = hashlib.sha256(data).hexdigest()
    try:
        wait_for(_send(data, digest), SEND_S + len(data) * SECONDS_A_BYTE)
    except SdkFailed as failed:
        raise SandboxError(
            f"a context of {len(data):,} bytes was not sent to volume {CONTEXTS}: {failed}"
        ) from failed
    return digest


async def _send(data: bytes, digest: str) -> None:
    modal = import_modal()
    volume = modal.Volume.from_name(CONTEXTS, create_if_missing=True, version=2)
    try:
        held = [entry.size for entry in await volume.listdir.aio(f"/{digest}")]
    except modal.exception.NotFoundError:
        held = []
    if held != [len(data)]:
        async with volume.batch_upload.aio(force=True) as batch:
            batch.put_file(io.BytesIO(data), f"/{digest}/{digest}")
