"""Bench room `serving`: many chats at once with a served agent, beside the model's own time."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from statistics import median
from typing import NamedTuple

import httpx
from measure import Table

from fleet_rlm.lm.simulated.launch import SimulatedServer, simulated_server

PROSE = "The ferry left before anyone had found the right pier.\n" * 80


class Case(NamedTuple):
    """Chats at once against a model of so much latency, each of so many turns."""

    chats: int
    latency_s: float
    turns: int

    @property
    def name(self) -> str:
        return f"C={self.chats} L={self.latency_s:g}"


CASES = (
    Case(1, 0.3, 5),
    Case(50, 0.3, 5),
    Case(200, 0.3, 3),
    Case(200, 2.0, 3),
    Case(100, 0.0, 40),  # what 200 people who ask every half minute come to in ten minutes
)

CALLS = 5
"""Model calls of most turns; chats begin within one turn of each other, as people do."""


class Turn(NamedTuple):
    """One turn, as its client saw it."""

    seconds: float
    calls: int
    """Model calls, one after the other."""

    is_foreign: bool
    """Whether it answered with what only another chat knows."""


class Spent(NamedTuple):
    """By the server's process."""

    before_mb: float
    """When all chats have had a turn."""

    after_mb: float
    cpu_s: float


def tables() -> list[Table]:
    with simulated_server() as model:
        rows = [_run(case, model) for case in CASES]
    return [
        Table(
            title="Chats with a server",
            about=(
                "C chats at once, which began within one turn of each other, each with a document"
                " of its own, streamed over HTTP from `fleet-rlm serve-api`; every turn hands its"
                " question to a recursive program in a sandbox session. L seconds a call of the"
                " simulated model, which is served by a process of its own on the same cores."
                " Overhead:"
                " what a turn takes over its model calls in sequence, as a share of these. With"
                " L=0 the harness's own time is all there is. Foreign: answers with what only"
                " another chat knows. CPU and MB: of the server's process, the latter when all"
                " chats have had a turn, and at the end; beside it the CPU of the model's server,"
                " which is spent within the latency that is asked of it, where a core is free."
            ),
            columns=(
                "case",
                "turns",
                "errors",
                "foreign",
                "calls a turn",
                "p50 s",
                "p95 s",
                "overhead p50",
                "p95",
                "CPU ms a turn",
                "model's",
                "MB after first",
                "MB at end",
            ),
            rows=rows,
        )
    ]


def _run(case: Case, model: SimulatedServer) -> list[str]:
    model.configure(latency_ms=case.latency_s * 1000)
    model_cpu_s = -model.stats()["cpu_s"]
    with _server(model, case) as (url, pid):
        turns, errors, spent = asyncio.run(_drive(url, pid, case))
        model_cpu_s += model.stats()["cpu_s"]
    for error in errors[:5]:
        print(f"{case.name}: {error}", file=sys.stderr)
    took = sorted(turn.seconds for turn in turns)
    own = [turn.calls * case.latency_s for turn in turns]
    over = sorted(
        (turn.seconds - ideal) / ideal for turn, ideal in zip(turns, own, strict=True) if ideal
    )
    return [
        case.name,
        str(len(turns)),
        str(len(errors)),
        str(sum(turn.is_foreign for turn in turns)),
        f"{sum(turn.calls for turn in turns) / max(1, len(turns)):.1f}",
        f"{median(took):.2f}",
        f"{_percentile(took, 0.95):.2f}",
        f"{median(over):.1%}" if over else "-",
        f"{_percentile(over, 0.95):.1%}" if over else "-",
        f"{1000 * spent.cpu_s / max(1, len(turns)):.0f}",
        f"{1000 * model_cpu_s / max(1, len(turns)):.0f}",
        f"{spent.before_mb:.0f}",
        f"{spent.after_mb:.0f}",
    ]


@contextmanager
def _server(model: SimulatedServer, case: Case) -> Iterator[tuple[str, int]]:
    words = ["serve-api", "--port", "0", "--model", "openai/sim", "--api-base", model.url]
    limits = ["--concurrency", str(case.chats + 8), "--rate", "1000000"]
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            [sys.executable, "-m", "fleet_rlm.cli.fleet", *words, *limits],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        try:
            assert process.stdout
            yield process.stdout.readline().strip(), process.pid
        finally:
            process.terminate()
            process.wait(30)


async def _drive(url: str, pid: int, case: Case) -> tuple[list[Turn], list[str], Spent]:
    limits = httpx.Limits(max_connections=case.chats)
    errors: list[str] = []
    turns: list[Turn] = []
    before, started = 0.0, _cpu_s(pid)
    left = case.chats  # chats without a first turn

    async def talk(client: httpx.AsyncClient, chat: int) -> None:
        nonlocal before, left
        await asyncio.sleep(CALLS * case.latency_s * chat / case.chats)
        for number in range(case.turns):
            try:
                turns.append(await _turn(client, chat, number))
            except (httpx.HTTPError, RuntimeError) as error:
                errors.append(f"{type(error).__name__}: {error}")
            if number == 0:
                left -= 1
                before = before if left else _memory_mb(pid)

    async with httpx.AsyncClient(base_url=url, timeout=300, limits=limits) as client:
        await asyncio.gather(*(talk(client, chat) for chat in range(case.chats)))
    return turns, errors, Spent(before, _memory_mb(pid), _cpu_s(pid) - started)


async def _turn(client: httpx.AsyncClient, chat: int, number: int) -> Turn:
    name, code = f"Halcyon-{chat}", str(1_000_000 + 7_919 * chat + number)
    body = {
        "message": f"What is the current access code for {name}? Delegate it.",
        "documents": {"notes": f"{PROSE}The access code for {name} is {code}.\n{PROSE}"},
        "session_id": f"chat-{chat}",
    }
    began = time.perf_counter()
    async with client.stream("POST", "/chat/stream", json=body) as answer:
        answer.raise_for_status()
        last = {}
        async for line in answer.aiter_lines():
            if line.startswith("data: "):
                last = json.loads(line[6:])
    if last.get("kind") != "final":
        raise RuntimeError(str(last)[:200])
    spent = last["payload"]["usage"].values()
    calls = int(sum(usage["calls"] for usage in spent))
    told = set(re.findall(r"\b1\d{6}\b", last["text"]))
    return Turn(time.perf_counter() - began, calls, bool(told - {code}))


def _memory_mb(pid: int) -> float:
    with open(f"/proc/{pid}/status") as file:  # noqa: PTH123 - of the kernel, never absent
        found = re.search(r"^VmRSS:\s+(\d+)", file.read(), re.M)
    return int(found[1]) / 1024 if found else 0.0


def _cpu_s(pid: int) -> float:
    with open(f"/proc/{pid}/stat") as file:  # noqa: PTH123 - of the kernel, never absent
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _percentile(values: Sequence[float], share: float) -> float:
    return values[min(len(values) - 1, int(share * len(values)))] if values else 0.0
