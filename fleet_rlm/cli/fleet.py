"""`fleet-rlm`: use a program on a file of your own, and check this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fleet_rlm.cli import engine as shared
from fleet_rlm.cli import options
from fleet_rlm.cli.engine import EngineOptions
from fleet_rlm.cli.entry import make_app, run_app
from fleet_rlm.cli.sandbox_gc import sandbox_gc

app = make_app("Use programs outside an evaluation, and check this machine.")

HOME = """\
fleet-rlm uses the programs that fleet-eval scores.

  fleet-rlm run --context book.txt --query 'Who ...?'   answer one question about one file
  fleet-rlm code-chat                                    chat over documents in the terminal
  fleet-rlm serve-api --bundle PATH                      serve a compiled program over HTTP
  fleet-rlm serve-mcp                                    serve the agent to an MCP client
  fleet-rlm doctor                                       check sandbox, model, key, store
  fleet-rlm sandbox build                                publish the image of Modal sandboxes
  fleet-rlm sim-server --latency-ms 300                  serve the simulated model over HTTP

Details: fleet-rlm COMMAND --help
"""


@app.callback(invoke_without_command=True)
def home(context: typer.Context) -> None:
    """What the command can do, in order of use, when it is called alone."""
    if context.invoked_subcommand is None:
        typer.echo(HOME, nl=False)


@app.command()
def run(
    context: Annotated[Path, typer.Option(metavar="FILE", help="Text file to answer from.")],
    query: Annotated[str, typer.Option(help="The question.")],
    program: options.Program = "rlm",
    bundle: Annotated[
        str | None, typer.Option(metavar="PATH", help="A compiled program, instead of --program.")
    ] = None,
    model: options.Model = None,
    sub_model: options.SubModel = None,
    api_base: options.ApiBase = None,
    price: options.Price = None,
    sandbox: options.Sandbox = None,
    wall: Annotated[float, typer.Option(metavar="SECONDS", help="Wall time.")] = 600.0,
    trace: Annotated[bool, typer.Option(help="Show each turn on stderr.")] = False,
    as_json: options.AsJson = False,
) -> int:
    """Answer one question about one file; the answer goes to stdout."""
    from fleet_rlm.cli.ask import Ask, ask_command

    flags = {"model": model, "sub_model": sub_model, "api_base": api_base, "sandbox": sandbox}
    return ask_command(
        Ask(
            context=context,
            query=query,
            program=program,
            bundle=bundle,
            flags=flags,
            price=price,
            wall_s=wall,
            trace=trace,
            as_json=as_json,
        )
    )


def code_chat(
    bundle: shared.Bundle = None,
    connect: Annotated[
        str | None, typer.Option(metavar="URL", help="Chat with a server. [env: FLEET_RLM_TOKEN]")
    ] = None,
    session: Annotated[
        str | None, typer.Option(metavar="NAME", help="The server's chat to go on with.")
    ] = None,
    docs_path: Annotated[
        Path | None, typer.Option(metavar="PATH", help="A file to load, or a folder to work in.")
    ] = None,
    volume_name: shared.VolumeName = None,
    model: options.Model = None,
    sub_model: options.SubModel = None,
    api_base: options.ApiBase = None,
    price: options.Price = None,
    sandbox: options.Sandbox = None,
    react_max_iters: shared.ReactMaxIters = None,
    rlm_max_iterations: shared.RlmMaxIterations = None,
    rlm_max_llm_calls: shared.RlmMaxLlmCalls = None,
    timeout: shared.Timeout = shared.TIMEOUT_S,
    trace: Annotated[bool, typer.Option(help="Show the work behind an answer.")] = True,
    trace_mode: Annotated[str, typer.Option(help="compact, verbose or off.")] = "compact",
    opentui: Annotated[
        bool,
        typer.Option("--opentui/--no-opentui", " /--plain", help="Full screen, or line by line."),
    ] = True,
) -> int:
    """Chat over documents in the terminal; in a pipe, line by line."""
    from fleet_rlm.cli.code_chat import CodeChat, code_chat_command
    from fleet_rlm.serving.slash import parse_trace_mode

    return code_chat_command(
        CodeChat(
            connect=connect,
            session=session,
            docs_path=docs_path,
            volume_name=volume_name,
            engine=EngineOptions(
                bundle=bundle,
                model=model,
                sub_model=sub_model,
                api_base=api_base,
                price=price,
                sandbox=sandbox,
                react_max_iters=react_max_iters,
                rlm_max_iterations=rlm_max_iterations,
                rlm_max_llm_calls=rlm_max_llm_calls,
                timeout_s=timeout,
            ),
            trace=parse_trace_mode(trace_mode if trace else "off"),
            full_screen=opentui,
        )
    )


app.command(name="code-chat")(code_chat)
app.command(name="run-react-chat", help="The same as code-chat.")(code_chat)


@app.command(name="serve-api")
def serve_api(
    bundle: shared.Bundle = None,
    host: shared.Host = "127.0.0.1",
    port: shared.Port = 8000,
    tokens: shared.Tokens = None,
    root: shared.Roots = None,
    state: Annotated[Path, typer.Option(metavar="DIR", help="Where chats are kept.")] = Path(
        ".fleet-rlm", "serving"
    ),
    volume_name: shared.VolumeName = None,
    model: options.Model = None,
    sub_model: options.SubModel = None,
    api_base: options.ApiBase = None,
    price: options.Price = None,
    sandbox: options.Sandbox = None,
    react_max_iters: shared.ReactMaxIters = None,
    rlm_max_iterations: shared.RlmMaxIterations = None,
    rlm_max_llm_calls: shared.RlmMaxLlmCalls = None,
    timeout: shared.Timeout = shared.TIMEOUT_S,
    concurrency: Annotated[
        int, typer.Option("-j", "--concurrency", min=1, help="Turns at once; beyond: 429.")
    ] = 64,
    rate: Annotated[
        int, typer.Option(min=1, help="Requests of one identity in a minute; beyond: 429.")
    ] = 600,
    max_body_mb: Annotated[
        int, typer.Option(min=1, help="Size of a request in MB; beyond: 413.")
    ] = 16,
    session_ttl: Annotated[
        float,
        typer.Option(min=1, metavar="SECONDS", help="A chat unused for so long is deleted."),
    ] = 7 * 24 * 3600.0,
    drain: Annotated[
        float,
        typer.Option(min=0, metavar="SECONDS", help="How long turns may go on after SIGTERM."),
    ] = 30.0,
) -> int:
    """Serve a program over HTTP until stopped: chat, WebSocket, OpenAI-compatible, metrics."""
    from fleet_rlm.cli.serve_api import ServeApi, serve_api_command

    return serve_api_command(
        ServeApi(
            engine=EngineOptions(
                bundle=bundle,
                model=model,
                sub_model=sub_model,
                api_base=api_base,
                price=price,
                sandbox=sandbox,
                react_max_iters=react_max_iters,
                rlm_max_iterations=rlm_max_iterations,
                rlm_max_llm_calls=rlm_max_llm_calls,
                timeout_s=timeout,
            ),
            tokens=tokens,
            server={
                "host": host,
                "port": port,
                "roots": tuple(root or ()),
                "state": state,
                "volume_name": volume_name,
                "concurrency": concurrency,
                "rate": rate,
                "max_body_bytes": max_body_mb << 20,
                "session_ttl_s": session_ttl,
                "drain_s": drain,
            },
        )
    )


@app.command(name="serve-mcp")
def serve_mcp(
    transport: Annotated[str, typer.Option(help="stdio or streamable-http.")] = "stdio",
    bundle: shared.Bundle = None,
    host: shared.Host = "127.0.0.1",
    port: shared.Port = 8001,
    tokens: shared.Tokens = None,
    root: shared.Roots = None,
    model: options.Model = None,
    sub_model: options.SubModel = None,
    api_base: options.ApiBase = None,
    price: options.Price = None,
    sandbox: options.Sandbox = None,
    react_max_iters: shared.ReactMaxIters = None,
    rlm_max_iterations: shared.RlmMaxIterations = None,
    rlm_max_llm_calls: shared.RlmMaxLlmCalls = None,
    timeout: shared.Timeout = shared.TIMEOUT_S,
) -> int:
    """Serve the agent to an MCP client: chat, analyse, summarise, score."""
    from fleet_rlm.cli.serve_mcp import ServeMcp, serve_mcp_command

    return serve_mcp_command(
        ServeMcp(
            transport=transport,
            engine=EngineOptions(
                bundle=bundle,
                model=model,
                sub_model=sub_model,
                api_base=api_base,
                price=price,
                sandbox=sandbox,
                react_max_iters=react_max_iters,
                rlm_max_iterations=rlm_max_iterations,
                rlm_max_llm_calls=rlm_max_llm_calls,
                timeout_s=timeout,
            ),
            tokens=tokens,
            server={"host": host, "port": port, "roots": tuple(root or ())},
        )
    )


@app.command()
def doctor(
    as_json: options.AsJson = False,
) -> int:
    """Check Python, sandbox, model, key and store; each failure comes with its mend."""
    from fleet_rlm.cli.doctor import doctor_command

    return doctor_command(Path.cwd(), as_json=as_json)


@app.command(name="sim-server")
def sim_server(
    host: Annotated[str, typer.Option(help="A loopback address.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 for a free one.")] = 0,
    latency_ms: Annotated[float, typer.Option(help="Time to the first token.")] = 0.0,
    itl_ms: Annotated[float, typer.Option(help="Time between two tokens.")] = 0.0,
    prefill_us: Annotated[float, typer.Option(help="Time per token of the prompt.")] = 0.0,
    jitter: Annotated[float, typer.Option(help="Largest part by which times vary.")] = 0.0,
    max_num_seqs: Annotated[int, typer.Option(help="Requests at once, others queue.")] = 0,
    rpm: Annotated[float, typer.Option(help="Requests a minute; beyond: 429.")] = 0.0,
    context_window: Annotated[int, typer.Option(help="Tokens; beyond: 400.")] = 128_000,
    faults: Annotated[str, typer.Option(help="Rates: 429=0.05,500=0.02,hang=0.01.")] = "",
    retry_after: Annotated[float, typer.Option(help="Seconds that a 429 asks for.")] = 0.05,
    hang_s: Annotated[float, typer.Option(help="How long a request hangs.")] = 30.0,
    seed: Annotated[int, typer.Option(help="Of every draw.")] = 0,
    echo: Annotated[str, typer.Option(help="A fixed reply, for load studies.")] = "",
) -> int:
    """Serve the simulated model over HTTP on this machine until stopped.

    A key that clients must send is taken from SIM_API_KEY.
    """
    from fleet_rlm.cli.sim_server import sim_server_command

    knobs = {
        "latency_ms": latency_ms,
        "itl_ms": itl_ms,
        "prefill_us": prefill_us,
        "jitter": jitter,
        "max_num_seqs": max_num_seqs,
        "rpm": rpm,
        "context_window": context_window,
        "retry_after": retry_after,
        "hang_s": hang_s,
        "seed": seed,
        "echo": echo,
    }
    return sim_server_command(knobs, faults=faults, host=host, port=port)


sandbox_app = make_app("Care for sandboxes on Modal.")
app.add_typer(sandbox_app, name="sandbox")


@sandbox_app.command("build")
def sandbox_build(
    as_json: options.AsJson = False,
) -> int:
    """Publish the image of Modal sandboxes by name and digest, so that no run builds it."""
    from fleet_rlm.cli.sandbox import build_command

    return build_command(as_json=as_json)


sandbox_app.command("gc")(sandbox_gc)


def main() -> None:
    """Entry point of `fleet-rlm`."""
    run_app(app, "fleet-rlm")


if __name__ == "__main__":
    main()
