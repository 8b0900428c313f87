"""Contexts that several samples of a run read: sent to Modal once, before the first of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress

from fleet_rlm.errors import DataError, boundary
from fleet_rlm.runner.attempt import Job
from fleet_rlm.runner.sandboxes import SandboxSpec
from fleet_rlm.sandbox.modal_contexts import send

WORTH_TOKENS = 250_000
"""Length from which a context is worth a place of its own: about a megabyte."""


def share_contexts(spec: SandboxSpec | None, jobs: Sequence[Job]) -> dict[str, str]:
    """Send what several of the jobs read to where their sandboxes can mount it.

    Returns:
        Cluster -> digest of its context; empty where code does not run on Modal. A context that
        cannot be built is left to its samples, which fail for that reason.

    Raises:
        SandboxError: one could not be sent.
    """
    if spec is None or spec.modal is None:
        return {}
    readers = Counter(job.planned.cluster for job in jobs)
    shared: dict[str, str] = {}
    for planned in (job.planned for job in jobs):
        if readers[planned.cluster] > 1 and planned.length >= WORTH_TOKENS:
            readers[planned.cluster] = 0
            with suppress(DataError), boundary(DataError, f"building sample {planned.id}"):
                shared[planned.cluster] = send(planned.build().context)
    return shared
