"""The HTTP server's application: its routes, and what runs as long as it does."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any, TypeVar

from fastapi import FastAPI, Request, Response, WebSocket
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, RedirectResponse
from starlette.exceptions import HTTPException

from fleet_rlm import __version__
from fleet_rlm.config import API_KEY_VARIABLES, resolve
from fleet_rlm.errors import FleetError, UsageError
from fleet_rlm.ledger import Ledger
from fleet_rlm.lm.cancel import Cancelled, CancelScope
from fleet_rlm.lm.threads import in_thread
from fleet_rlm.program.agent.roots import Roots
from fleet_rlm.project import project_dir
from fleet_rlm.serving import bodies, tasks
from fleet_rlm.serving.chats import Asked, Chats, Running
from fleet_rlm.serving.completions import (
    CompletionRequest,
    completion,
    completion_stream,
    list_models,
    read_messages,
)
from fleet_rlm.serving.engine import AgentLimits, Engine, checked_inputs
from fleet_rlm.serving.gatekeeper import Application, Gatekeeper, Rates
from fleet_rlm.serving.identity import read_tokens
from fleet_rlm.serving.metrics import MEDIA_TYPE, Metrics
from fleet_rlm.serving.reference import render_reference
from fleet_rlm.serving.refusals import (
    Declined,
    PlainJSON,
    body_of,
    failure_of,
    headers_of,
    status_of,
)
from fleet_rlm.serving.sessions import Sessions
from fleet_rlm.serving.settings import STATE, ServerSettings
from fleet_rlm.serving.socket import ChatSocket
from fleet_rlm.serving.sse import format_event, sse_response
from fleet_rlm.serving.store import SessionStore, parse_key

T = TypeVar("T")

SWEEP_S = 30.0
"""How often chats are looked at that nobody uses."""

ABOUT = """\
Chat with a compiled agent over long documents, or call a compiled program. Off loopback every \
request needs the header `Authorization: Bearer TOKEN`."""


class Service:
    """An application and what it holds; `asgi` is what a server serves.

    Args:
        engine: answers.
        settings: limits, identities, where chats are kept.

    Raises:
        UsageError: a root is no folder, or chats cannot be kept.
    """

    def __init__(self, engine: Engine, settings: ServerSettings) -> None:
        self.engine = engine
        self.settings = settings
        self.roots = Roots(settings.roots)
        self.metrics = Metrics(
            {
                "program": engine.name,
                "model": engine.arm.root.name,
                "model_kind": engine.arm.model_kind,
                "version": __version__,
            }
        )
        self.sessions = Sessions(
            SessionStore(settings.state), self._new_agent, ttl_s=settings.session_ttl_s
        )
        self.chats = Chats(
            engine,
            self.sessions,
            self.metrics,
            concurrency=settings.concurrency,
            is_shared=len(settings.tokens) > 1,
        )
        self.rates = Rates(settings.rate)
        self.metrics.watch("fleet_chats_open", "Chats in memory.", lambda: len(self.sessions))
        self.metrics.watch(
            "fleet_sandbox_sessions", "Sandbox sessions that are open.", lambda: engine.sandboxes
        )
        headers = {"x-model-kind": engine.arm.model_kind}
        self.app = _make_app(self)
        self.asgi = Gatekeeper(self.app, settings, self.metrics, self.rates, headers)

    def _new_agent(self, identity: str) -> Any:
        name = self.settings.volume_name
        volume = self.settings.state / "volumes" / identity / name if name else None
        return self.engine.new_agent(self.roots, volume)

    @asynccontextmanager
    async def lifespan(self, _: Any) -> AsyncIterator[None]:
        """Sweep while the server runs; cancel what is left and close the chats when it ends."""
        sweeping = asyncio.create_task(self._sweep())
        try:
            yield
        finally:
            sweeping.cancel()
            await self.chats.drain(0)
            await self.sessions.close()

    async def _sweep(self) -> None:
        while True:
            await self.sessions.sweep()
            await asyncio.sleep(SWEEP_S)


def make_application(
    bundle: str | None = None,
    *,
    env: Mapping[str, str] | None = None,
    config: Mapping[str, Any] | None = None,
    state: str | Path = STATE,
    **settings: Any,
) -> Application:
    """The whole server as an ASGI application, for a host of your own.

    Args:
        bundle: folder of a compiled program; the agent as it comes when None.
        env: where model, keys and `FLEET_RLM_TOKEN` are found; this process's when None.
        config: what `fleet.toml` may say, over it and over the environment: `sandbox="modal"`.
        state: folder that chats are kept in.
        settings: the rest of `ServerSettings`; `host` is "0.0.0.0" when absent, which takes a
            token.

    Raises:
        UsageError: bundle, model, key, token or folder cannot be used.
        SandboxUnavailable: no isolation holds here.
    """
    env = os.environ if env is None else env
    given = {"host": "0.0.0.0", "tokens": read_tokens(None, env), **settings}
    chosen = ServerSettings(state=Path(state), **given)
    resolved = resolve(config or {}, env, project_dir(Path.cwd()))
    limits = AgentLimits(timeout_s=chosen.timeout_s)
    return Service(Engine(bundle, resolved, env, limits=limits), chosen).asgi


def _make_app(service: Service) -> FastAPI:
    app = FastAPI(
        title="fleet-rlm",
        version=__version__,
        description=ABOUT,
        lifespan=service.lifespan,
        docs_url=None,
        redoc_url=None,
        default_response_class=PlainJSON,
    )
    app.add_exception_handler(FleetError, _on_error)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    _add_status(app, service)
    _add_chat(app, service)
    _add_programs(app, service)
    _add_completions(app, service)
    return app


def _add_status(app: FastAPI, service: Service) -> None:
    chats, engine = service.chats, service.engine

    @app.get("/health")
    async def health() -> dict[str, Any]:
        """Whether the process answers."""
        return {"ok": True, "version": __version__}

    @app.get("/ready")
    async def ready(response: Response) -> dict[str, Any]:
        """Whether turns are taken: 503 while the server stops."""
        if chats.is_draining:
            response.status_code = HTTPStatus.SERVICE_UNAVAILABLE
        return {
            "ready": not chats.is_draining,
            "planner_configured": bool(engine.bench.root.model),
            "model_kind": engine.arm.model_kind,
        }

    @app.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """Counters, for Prometheus."""
        return Response(service.metrics.render(), media_type=MEDIA_TYPE)

    @app.get("/docs", response_class=HTMLResponse, include_in_schema=False)
    async def docs() -> HTMLResponse:
        policy = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'"
        page = render_reference(app.openapi())
        return HTMLResponse(page, headers={"content-security-policy": policy})

    @app.get("/scalar", include_in_schema=False)
    async def scalar() -> RedirectResponse:
        return RedirectResponse("/docs")

    @app.get("/sessions/state")
    async def sessions(request: Request) -> bodies.SessionList:
        """The chats of whoever asks."""
        found = await service.sessions.describe(_identity(request))
        return bodies.SessionList(
            ok=True, sessions=[bodies.SessionState.model_validate(one) for one in found]
        )


def _add_chat(app: FastAPI, service: Service) -> None:
    chats = service.chats

    @app.post("/chat")
    async def chat(request: Request, body: bodies.ChatRequest) -> bodies.ChatResponse:
        """One turn. With `session_id` the chat goes on from where it was."""
        running = await chats.begin(_asked(request, body))
        last = await _unless_gone(request, running.result(), running.cancel)
        if last.kind != "final":
            raise failure_of(last)
        return bodies.ChatResponse(
            assistant_response=last.text,
            trajectory=last.payload["trajectory"] if body.trace else None,
            history_turns=last.payload["history_turns"],
            usage=last.payload["usage"],
        )

    @app.post("/chat/stream", response_class=Response)
    async def chat_stream(request: Request, body: bodies.ChatRequest) -> Response:
        """One turn as server-sent events, named by their kind; leaving cancels the turn."""
        running = await chats.begin(_asked(request, body))
        return sse_response(_as_sse(running, with_steps=body.trace))

    @app.websocket("/ws/chat")
    async def chat_socket(socket: WebSocket) -> None:
        await socket.accept()
        identity = socket.state.identity
        await ChatSocket(socket, chats, identity, lambda: service.rates.take(identity)).serve()


def _add_programs(app: FastAPI, service: Service) -> None:
    engine = service.engine

    @app.get("/program")
    async def program() -> dict[str, Any]:
        """The served program: digest, settings, scores with n and interval, lineage, models."""
        return engine.describe()

    @app.post("/program")
    async def call(request: Request, body: bodies.ProgramRequest) -> bodies.ProgramResponse:
        """Call the served program with its own inputs."""
        checked_inputs(engine.program, body.inputs)
        found, ledger = await _call(request, service, engine.program, body.inputs)
        return bodies.ProgramResponse(
            outputs=_outputs(engine.program, found),
            stop=str(found.get("stop") or "answered"),
            usage=_usage(ledger),
        )

    def add_task(name: str, task: tasks.Task) -> None:
        @app.post(f"/tasks/{name}", name=name, operation_id=f"task_{name}")
        async def run(
            request: Request, response: Response, body: bodies.TaskRequest
        ) -> bodies.TaskResponse:
            """Run one task as an RLM; a task that fails has the status of its failure."""
            if body.task_type is not None and body.task_type.replace("_", "-") != name:
                raise UsageError(f"This is task {name!r}, not {body.task_type!r}.")
            inputs = await in_thread(lambda: tasks.make_inputs(task, body, service.roots))
            made = tasks.make_task(task, body)
            try:
                async with asyncio.timeout(body.timeout):
                    found, ledger = await _call(request, service, made, inputs)
            except TimeoutError:
                response.status_code = HTTPStatus.GATEWAY_TIMEOUT
                return bodies.TaskResponse(ok=False, error=f"no answer in {body.timeout:g} s")
            except FleetError as error:
                response.status_code = status_of(error)
                response.headers.update(headers_of(error))
                return bodies.TaskResponse(ok=False, error=error.message)
            result = _outputs(made, found) | {
                "stop": found.get("stop"),
                "usage": _usage(ledger),
            }
            if body.verbose:
                result["trajectory"] = engine.redactor.clean_data(found.get("trajectory"))
            return bodies.TaskResponse(ok=True, result=result)

    for name, task in tasks.TASKS.items():
        add_task(name, task)

    @app.post("/tasks/check-secret")
    async def check_secret() -> bodies.TaskResponse:
        """Which variables of the models are set on the server; never their values."""
        names = ("DSPY_LM_MODEL", "DSPY_LM_API_BASE", *API_KEY_VARIABLES, "DSPY_LM_MAX_TOKENS")
        return bodies.TaskResponse(ok=True, result={name: name in os.environ for name in names})


def _add_completions(app: FastAPI, service: Service) -> None:
    model, kind = f"fleet-rlm/{service.engine.name}", service.engine.arm.model_kind

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        """The one model of this server, as OpenAI's clients list it."""
        return list_models(model, kind)

    @app.post("/v1/chat/completions")
    async def completions(request: Request, body: CompletionRequest) -> Any:
        """The agent for OpenAI's clients; with `stream`, piece by piece."""
        running = await service.chats.begin(read_messages(body, _identity(request), model))
        if body.stream:
            return sse_response(completion_stream(body, running, kind))
        last = await _unless_gone(request, running.result(), running.cancel)
        return completion(body, last, kind)


def _asked(request: Request, body: bodies.ChatRequest) -> Asked:
    identity = _identity(request)
    session = body.session_id
    return Asked(
        identity=identity,
        key=None if session is None else parse_key(identity, body.workspace_id, session),
        message=body.message,
        trace=body.trace,
        docs_path=body.docs_path,
        documents=body.documents,
    )


def _identity(request: Request) -> str:
    found: str = request.state.identity
    return found


async def _as_sse(running: Running, *, with_steps: bool) -> AsyncGenerator[str, None]:
    events = running.events()
    try:
        async for event in events:
            if with_steps or event.kind != "trajectory_step":
                yield format_event(event.to_json(), kind=event.kind, number=event.sequence)
    finally:
        await events.aclose()


async def _call(
    request: Request, service: Service, program: Any, inputs: Mapping[str, Any]
) -> tuple[Any, Ledger]:
    scope = CancelScope()
    work = service.chats.call(_identity(request), program, inputs, scope)
    try:
        found, ledger = await _unless_gone(request, work, scope.cancel)
    except Cancelled:
        raise Declined(HTTPStatus.SERVICE_UNAVAILABLE, "The call was cancelled.") from None
    if all(value is None for value in _outputs(program, found).values()):
        why = f"No answer: the program stopped at a limit ({found.get('stop')})."
        raise Declined(HTTPStatus.GATEWAY_TIMEOUT, why)
    return found, ledger


async def _unless_gone(request: Request, work: Awaitable[T], cancel: Callable[[], None]) -> T:
    """The result of `work`, which is cancelled when the client leaves before it is there."""

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        cancel()

    watching = asyncio.create_task(watch())
    try:
        return await work
    finally:
        watching.cancel()


def _outputs(program: Any, found: Any) -> dict[str, Any]:
    return {name: found.get(name) for name in program.signature.output_fields}


def _usage(ledger: Ledger) -> dict[str, dict[str, float]]:
    return {role: usage.to_json() for role, usage in ledger.by_role.items()}


async def _on_error(_: Request, error: Exception) -> PlainJSON:
    assert isinstance(error, FleetError)
    status = status_of(error)
    return PlainJSON(body_of(error.message, status), status, headers_of(error))


async def _on_http_error(_: Request, error: Exception) -> PlainJSON:
    assert isinstance(error, HTTPException)
    return PlainJSON(
        body_of(str(error.detail), error.status_code), error.status_code, error.headers
    )


async def _on_invalid(_: Request, error: Exception) -> PlainJSON:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    place = ".".join(map(str, first["loc"]))[:200]
    status = HTTPStatus.UNPROCESSABLE_ENTITY
    return PlainJSON(body_of(f"{place}: {first['msg']}", status), status)
