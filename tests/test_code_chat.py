"""The chat in a terminal: lines understood, in a pipe, on the full screen, with a server."""

import asyncio
import io
import json
import os
import pty
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import pytest
from agent_scripts import call, in_turn
from served import (
    ALICE,
    ASK,
    ENDLESS,
    NOTES,
    SOON_S,
    make_engine,
    run_fleet,
    serving,
    wait_for,
)
from textual.widgets import Input, Static, TabbedContent

from fleet_rlm.errors import UsageError
from fleet_rlm.program.agent.roots import Roots
from fleet_rlm.serving import talk as talks
from fleet_rlm.serving.lines import LineChat
from fleet_rlm.serving.screen import ChatScreen
from fleet_rlm.serving.slash import HELP, parse_line, printable
from fleet_rlm.serving.talk import FarTalk, OwnTalk

HOSTILE = "[red]x[/red] \x1b]52;c;aGk=\x07\x1b[2J\x9b31m end"


@contextmanager
def own_talk(engine, folder):
    talk = OwnTalk(engine, engine.new_agent(Roots([folder])))
    yield talk
    talk.close()


@pytest.fixture(scope="module")
def engine():
    return make_engine()


def endless():
    return make_engine(lm=in_turn(call("rlm_query", query="q", context="c"), code=ENDLESS))


@pytest.mark.parametrize(
    ("line", "action", "text", "args"),
    [
        ("", "nothing", "", {}),
        ("Who wrote it?", "message", "Who wrote it?", {}),
        ("//etc is a folder", "message", "/etc is a folder", {}),
        ("/load 'a b.txt' n", "command", "load_document", {"path": "a b.txt", "alias": "n"}),
        ("/docs notes.txt", "command", "load_document", {"path": "notes.txt"}),
        ("/active n", "command", "set_active_document", {"alias": "n"}),
        ("/list", "command", "list_documents", {}),
        ("/chunk size 100", "command", "chunk_host", {"strategy": "size", "size": 100}),
        (
            "/analyze who's there?",
            "command",
            "analyze_document",
            {"query": "who's there?", "include_trajectory": False},
        ),
        (
            "/semantic is it safe? headers 7",
            "command",
            "parallel_semantic_map",
            {"query": "is it safe?", "chunk_strategy": "headers", "max_chunks": 7},
        ),
        ("/semantic headers", "command", "parallel_semantic_map", {"query": "headers"}),
        ("/buffer b", "command", "read_buffer", {"name": "b"}),
        ("/clear-buffer", "command", "clear_buffer", {}),
        ("/save-buffer b out.json", "command", "save_buffer", {"name": "b", "path": "out.json"}),
        ("/load-volume notes n", "command", "load_volume", {"path": "notes", "alias": "n"}),
        ("/reset", "command", "reset", {}),
        ("/trace", "trace", "compact", {}),
        ("/trace off", "trace", "off", {}),
        ("/quit", "exit", "", {}),
    ],
)
def test_a_line_is_a_message_or_a_command(line, action, text, args):
    typed = parse_line(line)
    assert (typed.action, typed.text, typed.args) == (action, text, args)


@pytest.mark.parametrize(
    "line",
    ["/nope", "/load", "/list x", "/chunk size x", "/trace loud", "/load 'x", "/analyze"],
)
def test_a_command_used_otherwise_is_refused_with_its_form(line):
    with pytest.raises(UsageError) as refused:
        parse_line(line)
    assert "\n" not in str(refused.value)


def test_the_help_names_every_command():
    with pytest.raises(UsageError) as refused:
        parse_line("/zzzz")
    known = set(re.findall(r"/[a-z-]+", str(refused.value))) - {"/zzzz", "/quit"}
    assert known == {form.split()[0] for form in HELP}


def test_line_mode_works_in_a_pipe(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text(NOTES)
    typed = f"/load notes.txt\n{ASK}\n/help\n"
    monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
    code, out, err = run_fleet(monkeypatch, capfd, "code-chat", "--react-max-iters", 5)
    assert code == 0, err
    assert "1234567" in out.splitlines()[-1]
    for part in ("simulated model: these numbers", "tool call: rlm_query", "/analyze QUERY"):
        assert part in err
    monkeypatch.setattr(sys, "stdin", io.StringIO("/nope\n/load absent.txt\n"))
    code, out, err = run_fleet(monkeypatch, capfd, "run-react-chat", "--plain", "--no-trace")
    assert (code, out) == (1, "")
    assert "error: No command /nope" in err
    assert "error: File not found: absent.txt" in err
    for words, part in (
        (("--trace-mode", "loud"), "No trace mode 'loud'"),
        (("--docs-path", "absent"), "There is no 'absent'"),
        (("--session", "s"), "--connect URL"),
        (("--connect", "here"), "no address"),
        (("--connect", "http://127.0.0.1:1", "--model", "sim"), "--model is the server's"),
        (("--connect", "http://127.0.0.1:1", "--sandbox", "modal"), "--sandbox is the server's"),
    ):
        code, out, err = run_fleet(monkeypatch, capfd, "code-chat", *words)
        assert (code, out, len(err.splitlines())) == (2, "", 1), err
        assert part in err


def test_ctrl_c_ends_the_turn_not_the_chat(tmp_path):
    out, err = io.StringIO(), io.StringIO()
    engine = endless()
    with own_talk(engine, tmp_path) as talk:
        lines = LineChat(talk, "compact", lines=io.StringIO("hello\n/list\n"), out=out, err=err)

        def press():
            wait_for(lambda: engine.sandboxes, seconds=10)
            os.kill(os.getpid(), signal.SIGINT)

        threading.Thread(target=press).start()
        assert lines.run() == 1
    assert "[cancelled]" in err.getvalue()
    assert "cache_limit: 100" in out.getvalue(), "the chat went on"


def shown(app):
    chat = app.query_one("#chat")
    return "\n".join(getattr(w, "source", None) or str(w.render()) for w in chat.children)


async def settle(pilot, condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        await pilot.pause(0.02)


@pytest.mark.parametrize("size", [(80, 24), (140, 40)])
def test_the_full_screen_shows_answer_work_and_bill(size, engine, tmp_path):
    (tmp_path / "notes.txt").write_text(NOTES)

    async def drive(talk):
        app = ChatScreen(talk, "compact", history=tmp_path / "history.json")
        async with app.run_test(size=size) as pilot:
            assert "simulated" in str(app.query_one("#status", Static).render())
            for line in ("/load notes.txt", ASK):
                app.query_one(Input).value = line
                await pilot.press("enter")
                await settle(pilot, lambda: not app._is_busy)
            await settle(pilot, lambda: "1234567" in shown(app).splitlines()[-2])
            assert "alias: active" in shown(app)
            await pilot.press("f3")
            inspector = app.query_one("#inspector", TabbedContent)
            assert inspector.active == "tools"
            entries = [str(entry.render()) for entry in app.query("#tools-log > Static")]
            assert any("rlm_query" in entry for entry in entries)
            assert any("\n  " in entry and "context" in entry for entry in entries), "lines of code"
            assert "calls" in str(app.query_one("#numbers", Static).render())
            await pilot.press("f3")
            assert not inspector.display
            await pilot.press("up", "up")
            assert app.query_one(Input).value == "/load notes.txt"
            await pilot.press("down", "down", "ctrl+l")
            await settle(pilot, lambda: "1234567" not in shown(app))
            await pilot.press("ctrl+y")
            await settle(pilot, lambda: "1234567" in app.clipboard)
            app.query_one(Input).value = "/exit"
            await pilot.press("enter")

    with own_talk(engine, tmp_path) as talk:
        asyncio.run(drive(talk))
    assert json.loads((tmp_path / "history.json").read_text())[-1] == "/exit"


def test_the_full_screen_cancels_and_shows_hostile_text_as_text(tmp_path):
    engine = endless()

    async def drive(talk):
        app = ChatScreen(talk, "verbose", history=tmp_path / "history.json")
        async with app.run_test(size=(60, 20)) as pilot:
            assert not app.query_one("#inspector").display, "too narrow"
            app.query_one(Input).value = HOSTILE
            await pilot.press("enter")
            await settle(pilot, lambda: engine.sandboxes)
            app.query_one(Input).value = "another"
            await pilot.press("enter")
            began = time.monotonic()
            await pilot.press("ctrl+c")
            await settle(pilot, lambda: not app._is_busy)
            assert time.monotonic() - began < SOON_S
            await settle(pilot, lambda: "[cancelled]" in shown(app))
            assert "[red]x[/red]" in shown(app)
            assert "A turn is running" in shown(app)
            assert not set("\x1b\x07\x9b") & set(shown(app))

    with own_talk(engine, tmp_path) as talk:
        asyncio.run(drive(talk))
    assert printable(HOSTILE).endswith("end")


def test_a_chat_with_a_server_goes_on_where_it_was(engine, tmp_path, monkeypatch):
    async def collect(talk, message):
        return [event async for event in talk.turn(message, trace=True)]

    with serving(engine, tmp_path, tokens={"alice": ALICE}, roots=(tmp_path,)) as client:
        url = str(client.base_url)
        (tmp_path / "notes.txt").write_text(NOTES)
        talk = FarTalk(url, ALICE, "s1")
        asyncio.run(talk.greet())
        assert "these numbers show the harness" in talk.label
        loaded = asyncio.run(talk.command("load_document", {"path": "notes.txt"}))
        assert loaded["status"] == "ok"
        events = asyncio.run(collect(talk, ASK))
        assert (events[-1].kind, "1234567" in events[-1].text) == ("final", True)
        again = FarTalk(url, ALICE, "s1")
        assert asyncio.run(collect(again, ASK))[-1].payload["history_turns"] == 2
        with pytest.raises(UsageError, match="Unknown command"):
            asyncio.run(talk.command("fly", {}))
        with pytest.raises(UsageError, match="needs a token"):
            asyncio.run(FarTalk(url, None).greet())
    monkeypatch.setattr(talks, "RETRY_S", 0.0)
    with pytest.raises(UsageError, match="Nobody answers"):
        asyncio.run(talk.greet())


def test_cancel_reaches_a_server(tmp_path):
    engine = endless()
    with serving(engine, tmp_path) as client:
        talk = FarTalk(str(client.base_url), None)

        async def drive():
            kinds = []
            async for event in talk.turn("hello", trace=True):
                kinds.append(event.kind)
                if engine.sandboxes:
                    talk.cancel()
            return kinds

        assert asyncio.run(drive())[-1] == "cancelled"


def test_the_command_draws_in_a_real_terminal(tmp_path):
    """As users start it: in a terminal of 80 by 24, up to Ctrl-Q."""
    outside, inside = pty.openpty()
    env = os.environ | {"HOME": str(tmp_path), "TERM": "xterm-256color", "COLUMNS": "80"}
    with subprocess.Popen(
        [sys.executable, "-m", "fleet_rlm.cli.fleet", "code-chat"],
        cwd=tmp_path,
        env=env | {"LINES": "24"},
        stdin=inside,
        stdout=inside,
        stderr=inside,
        start_new_session=True,
    ) as process:
        os.close(inside)
        drawn = b""
        try:
            while b"Message, or" not in drawn and b"essage, or" not in drawn:
                drawn += os.read(outside, 65_536)
            os.write(outside, b"\x11")  # Ctrl-Q
            while process.poll() is None:
                drawn += os.read(outside, 65_536)
        except OSError:  # the terminal is gone with its last process
            pass
        finally:
            os.close(outside)
        assert process.wait(20) == 0
    assert b"\x1b[?1049h" in drawn, "the screen of its own"
    assert b"\x1b[?1049l" in drawn, "and the user's back"
