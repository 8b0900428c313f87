"""A test double of Modal: the real `modal` SDK drives local processes over gRPC on 127.0.0.1.

`LoopbackModal` (server) answers the control plane (control) and the task command router (router);
sandboxes (sandboxes) are processes of this machine in jails (jails). It is no security boundary and
no model of Modal's speed. What it leaves out: image builds (commands are recorded; ENV, WORKDIR and
COPY are honoured), gVisor, cpu and memory limits, TLS, memory snapshots, the V1 back end.
Anything not written here answers UNIMPLEMENTED with the name of the call.
"""

from tests.modal_loopback.server import LoopbackModal

__all__ = ["LoopbackModal"]
