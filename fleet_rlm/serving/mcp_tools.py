"""The agent as an MCP server: tools that a client's model calls, over stdio or HTTP."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager
from typing import Annotated, Any

from mcp.server.fastmcp import Context, FastMCP
from mcp.server.fastmcp.exceptions import ToolError
from pydantic import Field
from starlette.applications import Starlette

from fleet_rlm.errors import FleetError, UsageError, one_line
from fleet_rlm.ledger import Caps
from fleet_rlm.lm.cancel import Cancelled, CancelScope
from fleet_rlm.lm.threads import in_thread
from fleet_rlm.program.agent.documents import read_document
from fleet_rlm.program.agent.events import StreamEvent
from fleet_rlm.program.rlm import RLM
from fleet_rlm.runner.evaluate import evaluate
from fleet_rlm.serving.app import Service
from fleet_rlm.serving.chats import Asked
from fleet_rlm.serving.gatekeeper import Application, Gatekeeper
from fleet_rlm.serving.identity import LOCAL
from fleet_rlm.serving.refusals import failure_of
from fleet_rlm.serving.store import SessionKey, parse_key

INSTRUCTIONS = """\
Answers questions about texts far larger than a context window: recursive programs read all of \
them. Name a file below the server's roots in `docs_path`, or send the text."""

Path = Annotated[str | None, Field(description="A file below one of the server's roots.")]
Text = Annotated[str | None, Field(description="The text, in place of docs_path.")]
Trajectory = Annotated[bool, Field(description="Whether the result has the program's steps.")]


class McpTools:
    """The tools of one server.

    Args:
        service: engine, chats, roots and limits.
        bundle: folder of the served program; None for the agent as it comes.
    """

    def __init__(self, service: Service, bundle: str | None) -> None:
        self._service = service
        self._bundle = bundle
        settings = service.settings
        self.server: FastMCP[Any] = FastMCP(
            "fleet-rlm",
            instructions=self._instructions(),
            host=settings.host,
            log_level="WARNING",
            max_request_body_size=settings.max_body_bytes,
        )
        for tool in (
            self.chat_turn,
            self.analyze_long_document,
            self.summarize_long_document,
            self.run_suite,
        ):
            self.server.add_tool(tool)

    async def chat_turn(
        self,
        message: str,
        ctx: Context[Any, Any, Any],
        docs_path: Path = None,
        trace: Annotated[bool, Field(description="Whether the result has the steps.")] = False,
    ) -> dict[str, Any]:
        """One turn of a chat that remembers: what was said, the documents, and what it noted."""
        identity, key = _caller(ctx)
        asked = Asked(identity=identity, key=key, message=message, trace=trace, docs_path=docs_path)
        with _told():
            running = await self._service.chats.begin(asked)
            last = StreamEvent(kind="cancelled")
            async with aclosing(running.events()) as events:
                async for event in events:
                    last = event
                    if event.kind in {"tool_call", "status"}:
                        told = one_line(event.text, 200)
                        await ctx.report_progress(event.sequence, message=told)
            if last.kind != "final":
                raise failure_of(last)
        shown = {
            "assistant_response": last.text,
            "history_turns": last.payload["history_turns"],
            "usage": last.payload["usage"],
        }
        return self._labelled(shown | ({"trajectory": last.payload["trajectory"]} if trace else {}))

    async def analyze_long_document(
        self,
        query: str,
        ctx: Context[Any, Any, Any],
        docs_path: Path = None,
        text: Text = None,
        include_trajectory: Trajectory = True,
    ) -> dict[str, Any]:
        """Answer a query from all of a document, with the findings that support the answer."""
        inputs = {"document": await self._read(docs_path, text), "query": query}
        program = self._service.engine.template.analyze
        return await self._call(ctx, program, inputs, include_trajectory)

    async def summarize_long_document(
        self,
        focus: str,
        ctx: Context[Any, Any, Any],
        docs_path: Path = None,
        text: Text = None,
        include_trajectory: Trajectory = True,
    ) -> dict[str, Any]:
        """Summarise all of a document with a focus."""
        inputs = {"document": await self._read(docs_path, text), "focus": focus}
        program = self._service.engine.template.summarize
        return await self._call(ctx, program, inputs, include_trajectory)

    async def run_suite(
        self,
        suite: Annotated[str, Field(description="Name of a suite, e.g. quickstart.")],
        limit: Annotated[int, Field(ge=1, le=200, description="Samples.")] = 6,
        max_usd: Annotated[float, Field(gt=0, description="Cap on the run, in dollars.")] = 1.0,
    ) -> dict[str, Any]:
        """Score the served program on a suite; gives the run's summary with interval and cost."""
        arm = self._service.engine.arm

        def score() -> dict[str, Any]:
            run = evaluate(
                self._bundle or arm.program,
                suite,
                model=arm.root.name,
                sub_model=arm.sub.name,
                sandbox=self._service.engine.level.name,
                limit=limit,
                workers=1,
                caps=Caps(usd=max_usd),
            )
            return dict(run.summary)

        with _told():
            return self._labelled(await in_thread(score))

    def _instructions(self) -> str:
        label = self._service.engine.label
        return f"{INSTRUCTIONS} Note: {label}." if label else INSTRUCTIONS

    def _labelled(self, shown: dict[str, Any]) -> dict[str, Any]:
        label = self._service.engine.label
        return shown | ({"label": label} if label else {})

    async def _read(self, docs_path: str | None, text: str | None) -> str:
        with _told():
            if (docs_path is None) == (text is None):
                raise UsageError("Give docs_path or text, one of them.")
            if text is not None:
                return text
            path, roots = str(docs_path), self._service.roots
            return (await in_thread(lambda: read_document(roots.resolve_file(path), path))).text

    async def _call(
        self,
        ctx: Context[Any, Any, Any],
        program: RLM,
        inputs: dict[str, str],
        include_trajectory: bool,
    ) -> dict[str, Any]:
        identity, _ = _caller(ctx)
        scope = CancelScope()
        with _told():
            try:
                found, ledger = await self._service.chats.call(identity, program, inputs, scope)
            finally:
                scope.cancel()  # whoever stops waiting ends the program
        outputs = {name: found.get(name) for name in program.signature.output_fields}
        if all(value is None for value in outputs.values()):
            raise ToolError(f"No answer: the program stopped at a limit ({found.get('stop')}).")
        shown = {
            **outputs,
            "doc_chars": len(inputs["document"]),
            "stop": found.get("stop"),
            "usage": {role: usage.to_json() for role, usage in ledger.by_role.items()},
        }
        if include_trajectory:
            clean = self._service.engine.redactor.clean_data
            shown["trajectory"] = clean(found.get("trajectory"))
        return self._labelled(shown)


def mcp_over_http(tools: McpTools, service: Service) -> Application:
    """The tools as an ASGI application at `/mcp`, guarded like the HTTP server."""
    app = tools.server.streamable_http_app()
    inner = app.router.lifespan_context

    @asynccontextmanager
    async def lifespan(given: Starlette) -> AsyncIterator[Any]:
        async with service.lifespan(given), inner(given) as state:
            yield state

    app.router.lifespan_context = lifespan
    headers = {"x-model-kind": service.engine.arm.model_kind}
    return Gatekeeper(app, service.settings, service.metrics, service.rates, headers)


async def mcp_over_stdio(tools: McpTools, service: Service) -> None:
    """Serve the client on stdin and stdout until it leaves."""
    async with service.lifespan(None):
        await tools.server.run_stdio_async()


def _caller(ctx: Context[Any, Any, Any]) -> tuple[str, SessionKey]:
    """Who calls, and which chat is theirs: one for each client that is connected."""
    request = ctx.request_context.request
    if request is None:
        return LOCAL, parse_key(LOCAL, "mcp", "stdio")
    identity = request.state.identity
    return identity, parse_key(identity, "mcp", request.headers.get("mcp-session-id") or "none")


@contextmanager
def _told() -> Iterator[None]:
    """Errors of ours become what a client's model reads."""
    try:
        yield
    except FleetError as error:
        raise ToolError(str(error)) from None
    except Cancelled:
        raise ToolError("cancelled") from None
