"""Line mode: a chat that works in any terminal, in a pipe and for a screen reader."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Iterator
from contextlib import aclosing, contextmanager, suppress
from typing import TextIO

from fleet_rlm.errors import Exit, FleetError
from fleet_rlm.lm.cancel import Cancelled
from fleet_rlm.program.agent.events import StreamEvent
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

PROMPT = "> "


class LineChat:
    """Reads lines until the end of input; answers go to stdout, everything else to stderr.

    Args:
        talk: the chat.
        trace: what is shown of the work.
        lines: where messages come from; a prompt is shown when it is a terminal.
        out: takes answers.
        err: takes the rest.
    """

    def __init__(
        self,
        talk: Talk,
        trace: TraceMode,
        *,
        lines: TextIO | None = None,
        out: TextIO | None = None,
        err: TextIO | None = None,
    ) -> None:
        self._talk = talk
        self._trace = trace
        self._lines = lines or sys.stdin
        self._out = out or sys.stdout
        self._err = err or sys.stderr
        self._is_interactive = self._lines.isatty()
        self._failed = False

    def run(self) -> int:
        """The exit code: 1 when something failed and nobody sat there to see it."""
        self._say(self._talk.about)
        if self._talk.label:
            self._say(self._talk.label)
        if self._is_interactive:
            self._say("/help lists the commands; Ctrl-C ends a turn, Ctrl-D the chat.")
        with asyncio.Runner() as runner:
            for line in self._read():
                try:
                    typed = parse_line(line)
                    if typed.action == "exit":
                        break
                    self._obey(typed, runner)
                except FleetError as error:
                    self._fail(str(error))
        return Exit.GATE_FAILED if self._failed and not self._is_interactive else Exit.OK

    def _obey(self, typed: Typed, runner: asyncio.Runner) -> None:
        match typed.action:
            case "message":
                runner.run(self._turn(typed.text))
            case "command":
                runner.run(self._command(typed))
            case "trace":
                self._trace = typed.text  # type: ignore[assignment]  # checked by parse_line
                self._say(f"trace: {self._trace}")
            case "help":
                width = max(map(len, HELP))
                for form, about in HELP.items():
                    self._say(f"{form:<{width}}  {about}")
            case "clear" if self._is_interactive:
                self._out.write("\x1b[2J\x1b[H")
                self._out.flush()

    async def _turn(self, message: str) -> None:
        with self._interruptible():
            events = self._talk.turn(message, trace=self._trace != "off")
            async with aclosing(events):
                async for event in events:
                    self._show(event)

    async def _command(self, typed: Typed) -> None:
        with self._interruptible():
            try:
                result = await self._talk.command(typed.text, typed.args)
            except Cancelled:
                self._fail("cancelled")
                return
        print(printable(show_result(result)), file=self._out, flush=True)

    def _show(self, event: StreamEvent) -> None:
        match event.kind:
            case "final":
                print(printable(event.text), file=self._out, flush=True)
                if self._trace != "off":
                    self._say(f"  [{show_usage(event.payload.get('usage', {}))}]")
            case "cancelled" | "error":
                self._fail(event.text)
            case "reasoning_step" if self._trace != "off":
                self._say(f"  {event.text}")
            case "tool_call" if self._trace != "off":
                self._say(f"  {event.text}")
            case "status" if self._trace == "verbose":
                self._say(f"    {event.text}")

    def _fail(self, text: str) -> None:
        self._failed = True
        self._say(text if text.startswith("error: ") else f"error: {text}")

    def _say(self, text: str) -> None:
        print(printable(text), file=self._err, flush=True)

    def _read(self) -> Iterator[str]:
        if not self._is_interactive:
            yield from self._lines
            return
        with suppress(ImportError):
            import readline  # noqa: F401 - gives `input` its editing and history
        while True:
            try:
                yield input(PROMPT)
            except EOFError:
                self._say("")
                return

    @contextmanager
    def _interruptible(self) -> Iterator[None]:
        """Ctrl-C ends the turn instead of the program."""
        loop = asyncio.get_running_loop()
        try:
            loop.add_signal_handler(signal.SIGINT, self._talk.cancel)
        except (ValueError, RuntimeError):  # no main thread: nobody presses keys
            yield
            return
        try:
            yield
        finally:
            loop.remove_signal_handler(signal.SIGINT)
