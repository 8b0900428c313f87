"""The full-screen chat: the conversation on the left, what happens behind it on the right."""

from __future__ import annotations

import json
import time
from contextlib import aclosing, suppress
from pathlib import Path
from textwrap import indent
from typing import Any, ClassVar

from rich.table import Table
from rich.text import Text
from textual import on, work
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, VerticalScroll
from textual.content import Content
from textual.events import Key, Resize
from textual.widgets import Footer, Input, Markdown, Static, TabbedContent, TabPane

from fleet_rlm.errors import FleetError
from fleet_rlm.lm.cancel import Cancelled
from fleet_rlm.program.agent.events import StreamEvent, TurnState
from fleet_rlm.serving.slash import (
    HELP,
    TraceMode,
    Typed,
    parse_line,
    printable,
    show_result,
    show_usage,
)
from fleet_rlm.serving.talk import Talk

HISTORY = Path("~/.fleet-rlm/command-history.json")
MOST_REMEMBERED = 500
MOST_SHOWN = 500
"""Entries of a pane of the inspector; those before are let go."""

NARROW = 70
"""Columns below which the inspector gives its place to the chat until it is asked for."""

WELCOME = (
    "Ask something, or `/load FILE` a document first. `/help` lists the commands, "
    "Ctrl-P has themes."
)


class PromptHistory:
    """Lines that were typed, in a file, and the one that is shown again.

    Args:
        file: JSON, a list of lines; made when needed.
    """

    def __init__(self, file: Path) -> None:
        self._file = file.expanduser()
        self._lines: list[str] = []
        with suppress(OSError, ValueError):
            read = json.loads(self._file.read_text(encoding="utf-8"))
            self._lines = [line for line in read if isinstance(line, str)]
        self._at = len(self._lines)

    def add(self, line: str) -> None:
        """Remember a line, the last of several equal ones once."""
        if not self._lines or self._lines[-1] != line:
            self._lines = [*self._lines, line][-MOST_REMEMBERED:]
            with suppress(OSError):  # a chat goes on without its history
                self._file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                self._file.write_text(json.dumps(self._lines), encoding="utf-8")
                self._file.chmod(0o600)
        self._at = len(self._lines)

    def move(self, by: int) -> str:
        """The line before (-1) or after (1) the one that is shown; empty past the last."""
        self._at = min(len(self._lines), max(0, self._at + by))
        return self._lines[self._at] if self._at < len(self._lines) else ""


class Log(VerticalScroll):
    """What happened, an entry each, wrapped anew when the width changes."""

    def write(self, text: str, style: str = "") -> None:
        """Add an entry at the end; `style` is a Textual style."""
        if len(self.children) >= MOST_SHOWN:
            self.children[0].remove()
        self.mount(Static(Content.styled(text, style), classes="entry"))
        self.scroll_end(animate=False)

    def clear(self) -> None:
        """Forget all entries."""
        self.remove_children()


class ChatScreen(App[None]):
    """A chat in a terminal, from 80 by 24 up.

    Args:
        talk: the chat.
        trace: what is shown of the work.
        history: file of the lines that were typed.
    """

    TITLE = "fleet-rlm"
    CSS = """
    #status { height: 1; background: $panel; color: $text; padding: 0 1; }
    #chat { width: 7fr; padding: 0 1; scrollbar-size-vertical: 1; }
    #inspector { width: 3fr; border-left: solid $panel; }
    #inspector Tab { padding: 0; margin: 0 1 0 0; }
    #inspector VerticalScroll { scrollbar-size-vertical: 1; padding: 0 1; }
    .user { color: $text-accent; margin: 1 0 0 0; text-style: bold; }
    .answer { margin: 0; padding: 0; }
    .note { color: $text-muted; }
    .failure { color: $text-error; }
    #working { height: auto; color: $text-muted; display: none; }
    Input { border: none; border-top: solid $panel; height: 2; padding: 0 1; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+c", "cancel", "Cancel", priority=True),
        Binding("ctrl+l", "clear", "Clear", priority=True),
        Binding("ctrl+y", "copy", "Copy", priority=True),
        Binding("f2", "show('reasoning')", "Reasoning", priority=True),
        Binding("f3", "show('tools')", "Tools", priority=True),
        Binding("f4", "show('stats')", "Stats", priority=True),
        Binding("ctrl+1", "tab('reasoning')", show=False, priority=True),
        Binding("ctrl+2", "tab('tools')", show=False, priority=True),
        Binding("ctrl+3", "tab('stats')", show=False, priority=True),
        Binding("ctrl+q", "quit", "Quit", priority=True),
    ]

    def __init__(self, talk: Talk, trace: TraceMode, *, history: Path = HISTORY) -> None:
        super().__init__()
        self._talk = talk
        self._trace: TraceMode = trace
        self._history = PromptHistory(history)
        self._is_busy = False
        self._began = 0.0
        self._doing = ""
        self._answer = ""
        self._turns = 0
        self._spent: dict[str, dict[str, float]] = {}

    def compose(self) -> ComposeResult:
        yield Static(id="status", markup=False)
        with Horizontal():
            with VerticalScroll(id="chat"):
                yield Markdown(WELCOME, classes="note", open_links=False)
                yield Static(id="working", markup=False)
            with TabbedContent(id="inspector"):
                for name in ("reasoning", "tools"):
                    with TabPane(name.title(), id=name):
                        yield Log(id=f"{name}-log")
                with TabPane("Stats", id="stats"), VerticalScroll():
                    yield Static(id="numbers", markup=False)
        yield Input(placeholder="Message, or /help", id="line")
        yield Footer(show_command_palette=False)

    def on_mount(self) -> None:
        self.query_one(Input).focus()
        if self._talk.label:
            self._note(self._talk.label)
        self._show_status()
        self._show_numbers()
        self.set_interval(0.25, self._tick)

    def on_resize(self, event: Resize) -> None:
        self.query_one("#inspector").display = event.size.width >= NARROW

    @on(Input.Submitted)
    def submitted(self, event: Input.Submitted) -> None:
        """Do what a line asks for."""
        line = event.value.strip()
        event.input.value = ""
        if not line:
            return
        self._history.add(line)
        try:
            typed = parse_line(line)
        except FleetError as error:
            self._fail(str(error))
            return
        self._obey(typed, line)

    def on_key(self, event: Key) -> None:
        if event.key in {"up", "down"} and self.query_one(Input).has_focus:
            line = self.query_one(Input)
            line.value = self._history.move(-1 if event.key == "up" else 1)
            line.cursor_position = len(line.value)
            event.stop()

    def action_cancel(self) -> None:
        """End the running turn; without one, say how to leave."""
        if self._is_busy:
            self._doing = "cancelling"
            self._talk.cancel()
        else:
            self.notify("Ctrl-Q leaves the chat.")

    def action_clear(self) -> None:
        """Empty the screen; the chat remembers all the same."""
        for widget in self.query("#chat > *"):
            if widget.id != "working":
                widget.remove()
        for log in self.query(Log):
            log.clear()

    def action_copy(self) -> None:
        """Put the last answer on the clipboard, where the terminal lets us."""
        if self._answer:
            self.copy_to_clipboard(self._answer)
            self.notify("The last answer is on the clipboard.")

    def action_show(self, name: str) -> None:
        """Show a tab of the inspector, or hide the inspector when it is shown already."""
        inspector = self.query_one("#inspector", TabbedContent)
        if inspector.display and inspector.active == name:
            inspector.display = False
        else:
            inspector.display = True
            inspector.active = name

    def action_tab(self, name: str) -> None:
        """Show a tab of the inspector."""
        inspector = self.query_one("#inspector", TabbedContent)
        inspector.display = True
        inspector.active = name

    def _obey(self, typed: Typed, line: str) -> None:
        match typed.action:
            case "exit":
                self.exit()
            case "clear":
                self.action_clear()
            case "help":
                self._add(Static(_help(), classes="note"))
            case "trace":
                self._trace = typed.text  # type: ignore[assignment]  # checked by parse_line
                self._show_status()
            case "message" | "command":
                if self._is_busy:
                    self._fail("A turn is running: wait, or Ctrl-C to end it.")
                    return
                self._add(Static(Content(f"› {printable(line)}"), classes="user"))
                self._begin()
                self._run_turn(typed.text) if typed.action == "message" else self._run_command(
                    typed
                )

    @work(exclusive=True)
    async def _run_turn(self, message: str) -> None:
        state = TurnState()
        live = Static("", markup=False, classes="answer")
        self._add(live)
        try:
            events = self._talk.turn(message, trace=self._trace != "off")
            async with aclosing(events):
                async for event in events:
                    state.apply(event)
                    self._show_event(event)
                    if event.kind == "assistant_token":
                        live.update(Content(printable(state.transcript_text)))
        except FleetError as error:
            self._fail(str(error))
        else:
            self._end_turn(state)
        finally:
            live.remove()
            self._end()

    @work(exclusive=True)
    async def _run_command(self, typed: Typed) -> None:
        try:
            self._note(show_result(await self._talk.command(typed.text, typed.args)))
        except FleetError as error:
            self._fail(str(error))
        except Cancelled:
            self._fail("cancelled")
        finally:
            self._end()

    def _end_turn(self, state: TurnState) -> None:
        if state.errored:
            self._fail(state.error_message)
        elif state.cancelled:
            self._fail(state.final_text)
        else:
            self._answer = state.final_text
            self._turns = state.history_turns
            answer = Markdown(printable(state.final_text), classes="answer", open_links=False)
            self._add(answer)

    def _show_event(self, event: StreamEvent) -> None:
        text = printable(event.text)
        match event.kind:
            case "reasoning_step":
                self._write("reasoning", text, style="italic")
                self._doing = text
            case "tool_call":
                name, args = event.payload.get("name", ""), event.payload.get("args", {})
                shown = ", ".join(f"{key}={value!r}" for key, value in args.items())
                self._write("tools", printable(f"▸ {name}({shown})"), style="bold")
                self._doing = str(name)
            case "tool_result":
                self._write("tools", "  done" if event.payload.get("ok") else "  failed")
            case "status" if self._trace != "off":
                margin = "  " * event.payload.get("depth", 1)
                shown = printable(event.payload.get("detail", "")) or text
                self._write("tools", indent(shown, margin))
                self._doing = text
            case "trajectory_step" if self._trace == "verbose":
                found = event.payload["step_data"].get("observation", "")
                self._write("reasoning", printable(f"→ {found}")[:2_000])
            case "final" | "cancelled":
                self._add_usage(event.payload.get("usage", {}))

    def _write(self, name: str, text: str, style: str = "") -> None:
        self.query_one(f"#{name}-log", Log).write(text, style)

    def _add_usage(self, usage: dict[str, dict[str, float]]) -> None:
        for role, spent in usage.items():
            held = self._spent.setdefault(role, dict.fromkeys(spent, 0.0))
            for name, value in spent.items():
                held[name] = held.get(name, 0.0) + value
        self._show_numbers()

    def _show_numbers(self) -> None:
        took = f"{time.monotonic() - self._began:.1f} s" if self._began else "-"
        lines = [f"turns      {self._turns}", f"last took  {took}"]
        for role, spent in self._spent.items():
            tokens = int(spent["input_tokens"] + spent["output_tokens"])
            lines += [
                "",
                role,
                f"  calls    {int(spent['calls'])}",
                f"  tokens   {tokens:,}",
                f"  dollars  {spent['usd']:.4f}",
                f"  seconds  {spent['seconds']:.1f}",
            ]
        if self._spent:
            lines += ["", show_usage(self._spent)]
        if self._talk.label:
            lines += ["", self._talk.label]
        self.query_one("#numbers", Static).update(Content("\n".join(lines)))

    def _show_status(self) -> None:
        simulated = " · simulated" if self._talk.label else ""
        text = f"fleet-rlm · {self._talk.about}{simulated} · trace {self._trace}"
        self.query_one("#status", Static).update(Content(printable(text)))

    def _begin(self) -> None:
        self._is_busy, self._began, self._doing = True, time.monotonic(), "thinking"
        self._tick()

    def _end(self) -> None:
        self._is_busy = False
        self._tick()
        self._show_numbers()

    def _tick(self) -> None:
        working = self.query_one("#working", Static)
        working.display = self._is_busy
        if self._is_busy:
            spent = time.monotonic() - self._began
            doing = " ".join(self._doing.split())[:200]
            working.update(Content(f"{spent:.0f} s · {doing} · Ctrl-C ends it"))

    def _note(self, text: str) -> None:
        self._add(Static(Content(printable(text)), classes="note"))

    def _fail(self, text: str) -> None:
        self._add(Static(Content(printable(text)), classes="failure"))

    def _add(self, widget: Any) -> None:
        chat = self.query_one("#chat", VerticalScroll)
        chat.mount(widget, before="#working")
        chat.scroll_end(animate=False)


def _help() -> Table:
    """The commands in two columns, each as wide as it is given room."""
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(ratio=1)
    table.add_column(ratio=1)
    for form, about in HELP.items():
        table.add_row(Text(form), Text(about))
    return table
