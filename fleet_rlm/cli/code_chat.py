"""`fleet-rlm code-chat`: a chat in the terminal."""

from __future__ import annotations

import asyncio
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from fleet_rlm.cli.engine import EngineOptions
from fleet_rlm.errors import Exit, UsageError
from fleet_rlm.program.agent.documents import ACTIVE, read_document
from fleet_rlm.program.agent.roots import Roots
from fleet_rlm.program.agent.setup import VOLUMES
from fleet_rlm.serving.identity import TOKEN_VARIABLE
from fleet_rlm.serving.lines import LineChat
from fleet_rlm.serving.slash import TraceMode
from fleet_rlm.serving.talk import FarTalk, OwnTalk, Talk


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeChat:
    """The command line, as given."""

    engine: EngineOptions
    connect: str | None
    session: str | None
    docs_path: Path | None
    volume_name: str | None
    trace: TraceMode
    full_screen: bool


def code_chat_command(request: CodeChat) -> int:
    """Chat until the user leaves; full screen in a terminal, else line by line.

    Raises:
        UsageError: bundle, model, key, folder or server cannot be used.
        SandboxUnavailable: no isolation holds on this machine.
    """
    talk = _far(request) if request.connect else _own(request)
    try:
        if request.full_screen and sys.stdin.isatty() and sys.stdout.isatty():
            from fleet_rlm.serving.screen import ChatScreen

            ChatScreen(talk, request.trace).run()
            return Exit.OK
        return LineChat(talk, request.trace).run()
    finally:
        talk.close()


def _own(request: CodeChat) -> Talk:
    if request.session:
        raise UsageError("--session names a chat of a server.", fix="--connect URL --session NAME")
    engine = request.engine.start()
    here, docs = Path.cwd(), request.docs_path
    if docs is not None and not docs.exists():
        raise UsageError(f"There is no {str(docs)!r}.")
    folders = [here]
    if docs is not None:
        folders.insert(0, docs if docs.is_dir() else docs.resolve().parent)
    name = request.volume_name
    agent = engine.new_agent(Roots(folders), VOLUMES / name if name else None)
    if docs is not None and docs.is_file():
        agent.add_document(ACTIVE, read_document(docs.resolve(), str(docs)).text)
    return OwnTalk(engine, agent)


def _far(request: CodeChat) -> Talk:
    given = {
        "--bundle": request.engine.bundle,
        "--docs-path": request.docs_path,
        "--volume-name": request.volume_name,
        "--model": request.engine.model,
        "--sub-model": request.engine.sub_model,
        "--api-base": request.engine.api_base,
        "--price": request.engine.price,
        "--sandbox": request.engine.sandbox,
        "--react-max-iters": request.engine.react_max_iters,
        "--rlm-max-iterations": request.engine.rlm_max_iterations,
        "--rlm-max-llm-calls": request.engine.rlm_max_llm_calls,
    }
    for name, value in given.items():
        if value is not None:
            raise UsageError(f"{name} is the server's to choose, not that of --connect.")
    talk = FarTalk(str(request.connect), os.environ.get(TOKEN_VARIABLE), request.session)
    asyncio.run(talk.greet())
    return talk
