"""The MCP server, by the protocol's own client: over stdio as a command, over HTTP with tokens."""

import asyncio
import os
import sys
from contextlib import asynccontextmanager
from datetime import timedelta

import httpx
import pytest
from agent_scripts import call, in_turn
from mcp import ClientSession, StdioServerParameters
from mcp.client.stdio import stdio_client
from mcp.client.streamable_http import streamable_http_client
from served import ALICE, ASK, ENDLESS, NOTES, make_engine, run_fleet, wait_for
from web import web_server

from fleet_rlm.serving.app import Service
from fleet_rlm.serving.mcp_tools import McpTools, mcp_over_http
from fleet_rlm.serving.settings import ServerSettings

TOOLS = {"chat_turn", "analyze_long_document", "summarize_long_document", "run_suite"}


def test_a_client_starts_the_server_and_uses_its_tools(tmp_path):
    (tmp_path / "notes.txt").write_text(NOTES)
    command = StdioServerParameters(
        command=sys.executable,
        args=["-m", "fleet_rlm.cli.fleet", "serve-mcp", "--root", "."],
        cwd=tmp_path,
        env=dict(os.environ),
    )

    async def use(log):
        async with stdio_client(command, errlog=log) as streams, ClientSession(*streams) as client:
            about = await client.initialize()
            assert "these numbers show the harness" in about.instructions
            assert {tool.name for tool in (await client.list_tools()).tools} == TOOLS
            told = []

            async def progress(_done, _total, message):
                told.append(message)

            turn = {"message": ASK, "docs_path": "notes.txt", "trace": True}
            found = await client.call_tool("chat_turn", turn, progress_callback=progress)
            assert "1234567" in found.structuredContent["assistant_response"]
            assert found.structuredContent["trajectory"][-1]["tool_name"] == "finish"
            assert any("rlm_query" in message for message in told)
            again = await client.call_tool("chat_turn", {"message": ASK})
            assert again.structuredContent["history_turns"] == 2, "it remembers"
            for path in ("/etc/passwd", "../x", "absent.txt"):
                asked = {"query": "q", "docs_path": path}
                refused = await client.call_tool("analyze_long_document", asked)
                assert refused.isError
                assert "root:" not in refused.content[0].text
            asked = {"suite": "quickstart", "limit": 2}
            summary = (await client.call_tool("run_suite", asked)).structuredContent
            assert summary["samples"] == 2
            assert summary["label"]

    with (tmp_path / "log").open("w") as log:
        asyncio.run(use(log))
    assert "Traceback" not in (tmp_path / "log").read_text()
    assert list((tmp_path / "runs").iterdir())


@asynccontextmanager
async def connected(url, token=ALICE):
    headers = {"Authorization": f"Bearer {token}"}
    async with (
        httpx.AsyncClient(headers=headers, timeout=30) as http,
        streamable_http_client(f"{url}/mcp", http_client=http) as streams,
        ClientSession(*streams[:2]) as client,
    ):
        await client.initialize()
        yield client


def test_over_http_each_token_has_its_own_chats_and_leaving_ends_a_call(tmp_path):
    replies = [call("rlm_query", query="q", context="c")] * 2
    engine = make_engine(lm=in_turn(*replies, code=ENDLESS))
    service = Service(engine, ServerSettings(state=tmp_path, tokens={"alice": ALICE}))
    tools = McpTools(service, None)

    async def use(url):
        async with connected(url) as client:
            for name in ("chat_turn", "analyze_long_document"):
                asked = {"message": "m"} if name == "chat_turn" else {"query": "q", "text": "t"}
                pending = asyncio.create_task(
                    client.call_tool(name, asked, read_timeout_seconds=timedelta(seconds=1))
                )
                await asyncio.to_thread(wait_for, lambda: engine.sandboxes)
                with pytest.raises(Exception, match="Timed out"):
                    await pending
            refused = await client.call_tool("analyze_long_document", {"query": "q"})
            assert "docs_path or text" in refused.content[0].text
        await asyncio.to_thread(wait_for, lambda: not engine.sandboxes)

    with web_server(mcp_over_http(tools, service)) as url:
        assert httpx.post(f"{url}/mcp", json={}).status_code == 401
        asyncio.run(use(url))


def test_what_cannot_be_served_is_said_in_one_line(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    for words, part in (
        (("--transport", "pigeon"), "No transport 'pigeon'"),
        (("--transport", "sse"), "--transport streamable-http"),
        (("--transport", "streamable-http", "--host", "0.0.0.0"), "needs tokens"),
    ):
        code, out, err = run_fleet(monkeypatch, capfd, "serve-mcp", *words)
        assert (code, out, len(err.splitlines())) == (2, "", 1), err
        assert part in err
    monkeypatch.setitem(sys.modules, "fleet_rlm.serving.mcp_tools", None)
    code, out, err = run_fleet(monkeypatch, capfd, "serve-mcp")
    assert (code, out, len(err.splitlines())) == (2, "", 1), err
    assert "pip install 'fleet-rlm[mcp]'" in err
