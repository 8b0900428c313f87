"""Serves until its stdin ends: `python -m tests.modal_loopback [ISOLATION [LATENCIES]]`.

Prints what makes the SDK talk to it and, at the end, how many sandboxes lived at once.
"""

import asyncio
import json
import sys

from tests.modal_loopback.server import LoopbackModal


async def serve() -> None:
    lab = LoopbackModal(sys.argv[1] if len(sys.argv) > 1 else "auto")
    await lab.start()
    lab.latency = json.loads(sys.argv[2]) if len(sys.argv) > 2 else {}
    print(json.dumps(lab.environment()), flush=True)
    await asyncio.to_thread(sys.stdin.read)
    print(json.dumps({"peak": lab.peak, "calls": lab.calls}), flush=True)
    await lab.stop()


asyncio.run(serve())
