"""One persistent Python namespace in a box, as the host uses it: cells in, results out.

Nothing that comes from the guest is believed: it is JSON of known shape and in its turn, or the
session ends. Tools run here, on the host, in threads of their own; so does the clock.
"""

from __future__ import annotations

import contextvars
import json
import queue
import secrets
import signal
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import inf
from typing import Any, Literal

from fleet_rlm.errors import BudgetExhausted, LimitReached, SandboxError
from fleet_rlm.sandbox import driver
from fleet_rlm.sandbox.cut import Clean as Clean
from fleet_rlm.sandbox.cut import cut, join
from fleet_rlm.sandbox.link import ANSWER_S, Link
from fleet_rlm.sandbox.values import Inputs, Share, Shipment, plain

MAX_PARALLEL_CALLS = 32
"""Host tools of one session at work at the same time; more calls wait for their turn."""
MAX_WAITING_BYTES = 64 << 20
MAX_WAITING_CALLS = 2048
"""Calls not yet answered, and their arguments, beyond which a session floods the host. A guest has
room for some 500 threads, and each of them waits for one call."""
MAX_NOISE = driver.MAX_STREAM + 1000
"""Frames of one cell that are neither calls nor its result. The driver sends no more than a frame
for each character of output; guest code that writes frames itself has no end."""
START_S = 30.0
SHARED_BYTES = 8 << 20
"""Large values of a first cell, together, from which the box holds them once for all sessions that
have the same ones. Below it, a copy costs less than a process that holds them."""

Kind = Literal["ok", "final", "error", "syntax", "interrupted"]
KINDS = ("ok", "final", "error", "syntax", "interrupted")
Invoke = Callable[[str, Sequence[Any], Mapping[str, Any]], Any]
"""Runs a tool by name; called in a tool thread."""
Ask = Callable[[], bytes]
"""Runs one tool call; the answer as the driver reads it."""
Answer = Callable[[str, Sequence[Any], Mapping[str, Any], Ask], bytes]
"""Stands between a call, by name and arguments, and the tool; called in a tool thread."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one session may use."""

    memory_bytes: int = 4 << 30
    """Address space; three times the size of the inputs is added."""
    file_bytes: int = 512 << 20
    """One file."""
    scratch_bytes: int = 512 << 20
    """All files together; looked at twice a second."""
    files: int = 20_000
    """Files and folders; looked at twice a second."""
    open_files: int = 256
    grace_s: float = 2.0
    """Seconds an interrupted cell has to end before its session is killed."""
    stdout_head: int = 20_000
    """Characters kept from the start of a cell's output."""
    stdout_tail: int = 20_000

    def to_json(self, share: Share | None = None) -> bytes:
        """As the driver reads them, for a session in `share`."""
        fields = {
            "memory": self.memory_bytes,
            "file": self.file_bytes,
            "scratch": self.scratch_bytes,
            "files": self.files,
            "open_files": self.open_files,
            "stdout_head": self.stdout_head,
            "stdout_tail": self.stdout_tail,
        }
        return driver.to_json(fields if share is None else {**fields, "share": share.number})


@dataclass(frozen=True, slots=True, kw_only=True)
class CellResult:
    """How one cell ended."""

    kind: Kind
    """`final`: SUBMIT was called. `interrupted`: by the deadline or by `interrupt`, state kept."""
    value: Any = None
    """Of a trailing expression (`ok`), or the submitted fields (`final`); plain data."""
    text: str | None = None
    """`repr` of a trailing expression that is not plain data or is large, cut."""
    error: str = ""
    """Traceback with source lines; of an interrupted cell, where it was."""
    stdout: str = ""
    """Head and tail of what was printed, with a note on what was left out between."""
    stdout_chars: int = 0
    """Characters printed in all."""


def parse_result(message: Mapping[str, Any], limits: Limits, clean: Clean) -> CellResult:
    """A result as a guest may have written it, cut to size and without secrets.

    Raises:
        ValueError, TypeError, KeyError: it does not have the shape that the driver gives it.
    """
    kind, value = message["kind"], clean(message.get("value"))
    stdout, torn = message["stdout"], bool(message.get("torn"))
    if kind not in KINDS or (kind == "final" and not isinstance(value, dict)):
        raise ValueError("malformed result")
    nothing = ["", "", 0]
    text = message.get("text")
    return CellResult(
        kind=kind,
        value=value,
        text=None if text is None else join(text, driver.MAX_TEXT, 0, clean),
        error=join(message.get("error", nothing), *driver.ERROR_ENDS, clean),
        stdout=join(stdout, limits.stdout_head, limits.stdout_tail, clean, torn=torn),
        stdout_chars=stdout[2],
    )


class _ToolThreads:
    """Daemon threads for one session's tools, made on demand and kept for the next call.

    Of its own for each session: a tool that opens a session of its own can never wait for a thread
    that waits for it. Daemons: a tool that hangs must not keep the program from ending.
    """

    IDLE_S = 30.0

    def __init__(self, most: int) -> None:
        self._most = most
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._threads = self._idle = 0

    def submit(self, work: Callable[[], None]) -> None:
        with self._lock:
            if self._idle:
                self._idle -= 1
            elif self._threads < self._most:
                self._threads += 1
                threading.Thread(target=self._loop, name="sandbox-tool", daemon=True).start()
        self._work.put(work)

    def close(self) -> None:
        for _ in range(self._threads):
            self._work.put(None)

    def _loop(self) -> None:
        while (work := self._next()) is not None:
            work()
            del work  # it holds the session, which may be forgotten while this thread is idle

    def _next(self) -> Callable[[], None] | None:
        with suppress(queue.Empty):
            return self._work.get_nowait()
        with self._lock:
            self._idle += 1
        while True:
            with suppress(queue.Empty):
                return self._work.get(timeout=self.IDLE_S)
            with self._lock:
                if self._idle:  # nobody counts on this thread
                    self._idle -= 1
                    self._threads -= 1
                    return None


class _Clock:
    """The time of one cell.

    While tools are outstanding, only processor time that the worker burns meanwhile is charged:
    waiting for a model costs nothing, computing behind its back does.
    """

    def __init__(self, allowed_s: float | None) -> None:
        self.allowed_s = allowed_s
        self._start = time.monotonic()
        self._calls = 0
        self._waiting_since = self._waited = self._burnt = 0.0
        self._counted_before_s: float | None = None
        self._lock = threading.Lock()

    def change_calls(self, by: int) -> None:
        """A tool call was made, or answered."""
        with self._lock:
            now = time.monotonic()
            if not self._calls:
                self._waiting_since = now
            if self._counted_before_s is None:
                self._counted_before_s = now - self._start
            self._calls += by
            if not self._calls:
                self._waited += now - self._waiting_since

    def waited_s(self) -> float:
        """Seconds so far in which tools were outstanding."""
        with self._lock:
            open_s = time.monotonic() - self._waiting_since if self._calls else 0.0
            return self._waited + open_s

    def charge(self, cpu_s: float) -> None:
        """The worker has used `cpu_s` of processor time since the cell's first tool call.

        What exceeds the time counted since then was burnt while tools were outstanding.
        """
        counted_s = self._counted_s() - (self._counted_before_s or 0.0)
        self._burnt = min(self.waited_s(), max(0.0, cpu_s - counted_s))

    def _counted_s(self) -> float:
        return time.monotonic() - self._start - self.waited_s()

    def left_s(self) -> float:
        """Seconds of the cell's time that are left."""
        allowed_s = inf if self.allowed_s is None else self.allowed_s
        return allowed_s - self._counted_s() - self._burnt

    def look_in_s(self) -> float:
        """Seconds until it is worth looking again: not too often while the clock stands still."""
        return max(self.left_s(), 0.05 if self._calls else 0.001)


class _Cell:
    """The running cell."""

    def __init__(
        self,
        tools: Collection[str],
        invoke: Invoke,
        timeout_s: float | None,
        on_stdout: Callable[[str], None] | None,
        answer: Answer | None,
    ) -> None:
        self.id = secrets.randbits(62)  # no guest can answer a cell that has not begun
        self.tools = frozenset(tools)
        self.invoke = invoke
        self.on_stdout = on_stdout
        self.answer = answer
        self.context = contextvars.copy_context()
        self.clock = _Clock(timeout_s)
        """Starts anew when the inputs are there."""
        self.running = False
        """The worker has the code, and we do not have the result."""
        self.interrupted = False
        self.look_at = time.monotonic() + self.clock.look_in_s()
        """When to look at the clock next, however many frames come until then."""
        self.noise = 0
        self.stop: BaseException | None = None
        """What a tool raised that the caller of `execute` must see."""
        self.cpu_before: queue.SimpleQueue[dict[str, Any] | None] | None = None
        """Will hold the worker's processor time at the cell's first tool call."""
        self.cpu_start_s: float | None = None
        """The same, once it was needed."""

    def start_clock(self) -> None:
        """The code goes out; carrying large inputs took no time of the cell's."""
        self.clock = _Clock(self.clock.allowed_s)
        self.look_at = time.monotonic() + self.clock.look_in_s()

    def wait_s(self) -> float | None:
        """Seconds until it is time to look at the clock, None when there is no need to."""
        if self.interrupted or self.clock.allowed_s is None:
            return None
        return max(0.0, self.look_at - time.monotonic())


def as_it_is(value: Any) -> Any:
    """The value: nothing is cleaned."""
    return value


def _no_tools(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    raise LookupError(f"there is no tool {name!r}")


class Session:
    """One namespace. Cells run one at a time; `interrupt` and `close` may come from any thread."""

    def __init__(self, link: Link, limits: Limits, clean: Clean = as_it_is) -> None:
        """Open a session in the supervisor behind `link`.

        Args:
            link: where the supervisor is.
            limits: what the session may use.
            clean: takes secrets out of what leaves the session, what its tools are given, and what
                they return or raise.

        Raises:
            SandboxError: the worker could not be started or could not lock itself in.
        """
        self.bytes_sent = 0
        """Bytes handed to the worker so far: code, inputs, tool results."""
        self.lost: str | None = None
        """Why the session is gone; None while it lives."""
        self.box_lost = False
        """It is gone because its supervisor is, through no fault of its code."""
        self._link = link
        self._limits = limits
        self._clean = clean
        self._inputs = Inputs()
        self._room = 0
        self._share: Share | None = None
        self._fresh = True
        """No cell was sent yet."""
        self._busy, self._state = threading.Lock(), threading.RLock()
        self._cell: _Cell | None = None
        self._threads = _ToolThreads(MAX_PARALLEL_CALLS)
        self._waiting_bytes = self._waiting_calls = 0
        self._waiting_lock = threading.Lock()
        link.tidy()
        self._sid, self._ended, self._wire = link.open(limits.to_json())
        try:
            self.applied = self._wait_ready()
        except SandboxError:
            self.close()
            raise

    def __del__(self) -> None:
        if not self.lost and hasattr(self, "_sid"):
            self._link.dropped.append((self._sid, self._inputs, self._share))

    def _wait_ready(self) -> tuple[str, ...]:
        try:
            frame = self._wire.receive(START_S)
        except (EOFError, ValueError):
            raise SandboxError(f"a session did not start: {self._why_ended()}") from None
        if frame is None:
            raise SandboxError(f"a session did not start in {START_S:g} s")
        news = json.loads(frame.payload)
        if "error" in news:
            raise SandboxError(f"a session did not start: {news['error']}")
        return tuple(news["applied"])

    def execute(
        self,
        code: str,
        variables: Mapping[str, Any] | None = None,
        *,
        tools: Collection[str] = (),
        invoke: Invoke = _no_tools,
        fields: Sequence[str] | None = None,
        timeout_s: float | None = 120.0,
        on_stdout: Callable[[str], None] | None = None,
        answer: Answer | None = None,
    ) -> CellResult:
        """Run one cell and wait for its end.

        Args:
            code: Python source. The value of a trailing expression is returned.
            variables: inputs, fresh in this cell; what the session holds already is not sent again.
            tools: names that guest code may call.
            invoke: runs such a call, in a thread, under a copy of the caller's context.
            fields: what SUBMIT takes; one value named "output" when None.
            timeout_s: seconds until the cell is interrupted, None for no limit. The clock stands
                still while the cell only waits for tools.
            on_stdout: called with pieces of output while the cell runs, in this thread.
            answer: answers calls of tools in place of `invoke`, or asks it and takes a note.

        Raises:
            SandboxError: the session is lost, or a cell is running in it.
            DataError: a variable cannot enter the sandbox.
            LimitReached, BudgetExhausted, KeyboardInterrupt, ...: what a tool raised, if it is no
                failure of the tool; the cell is interrupted.
        """
        if not self._busy.acquire(blocking=False):
            self._check_alive()  # whoever closes it holds it for a moment
            raise SandboxError("a cell is running in this session: use one session per thread")
        try:
            self._check_alive()
            cell = self._cell = _Cell(tools, invoke, timeout_s, on_stdout, answer)
            try:
                self._send_cell(cell, code, variables or {}, fields)
                return self._wait(cell)
            except BaseException:  # Ctrl-C too: the cell must not run on
                self._abandon(cell)
                raise
            finally:
                self._end_cell(cell)
        finally:
            self._busy.release()
            self._release_if_lost()

    def interrupt(self) -> None:
        """End the running cell now, keeping the state; nothing happens between cells."""
        with self._state:
            if self._cell and not self.lost:
                self._cell.interrupted = True
                with suppress(SandboxError):  # the thread in execute sees the same
                    request = driver.to_json({"grace": self._limits.grace_s})
                    self._link.tell(self._sid, driver.INTERRUPT, request)

    def close(self) -> None:
        """End the session and everything in it; may be called again."""
        self._threads.close()
        self._give_up(_REASONS["closed"])
        self._release_if_lost()

    def _check_alive(self) -> None:
        if self.lost:
            raise SandboxError(f"the sandbox session is gone: {self.lost}")

    def _send_cell(
        self,
        cell: _Cell,
        code: str,
        variables: Mapping[str, Any],
        fields: Sequence[str] | None,
    ) -> None:
        shipment = self._inputs.plan(variables)
        try:
            carried = self._carry(shipment)
            request = {
                "id": cell.id,
                "code": code,
                "inputs": shipment.specs,
                "bind": shipment.bind,
                "tools": sorted(cell.tools),
                "fields": None if fields is None else list(fields),
                "live": cell.on_stdout is not None,
            }
            payload = json.dumps(request, ensure_ascii=False).encode("utf-8", "surrogatepass")
            if len(payload) > driver.MAX_FRAME:
                raise SandboxError(f"code and small inputs of one cell take {len(payload):,} bytes")
        except BaseException:  # an interrupt, too, leaves none of its values held
            self._inputs.discard(shipment)
            raise
        self._fresh = False
        self._inputs.commit(shipment)
        self.bytes_sent += len(payload) + carried
        if self._inputs.size > self._room:
            self._room = self._inputs.size
            self._answer(self._link.ask(self._sid, driver.ROOM, held=self._room))
        cell.start_clock()
        cell.running = True
        try:
            self._wire.send(0, driver.EXEC, payload, shipment.fds, timeout_s=START_S)
        except OSError:
            self._lose()

    def _carry(self, shipment: Shipment) -> int:
        """Bring large values to the session, or the session to them; the bytes that this takes."""
        size = sum(held.size for held in shipment.large.values())
        if not self._fresh or size < SHARED_BYTES:
            shipment.pack()
            return self._link.carry(shipment)
        self._fresh = False
        self._share, carried = self._link.take_share(shipment)
        try:
            self._reopen(self._share)
        except SandboxError as error:
            self._give_up(error.message)
            raise
        shipment.refer()
        return carried

    def _reopen(self, share: Share) -> None:
        """Go on in a worker that has the values of `share`; this one has run nothing yet."""
        with self._state:
            self._check_alive()
            old = self._sid, self._wire
            self._sid, self._ended, self._wire = self._link.open(self._limits.to_json(share))
            if self._cell and self._cell.interrupted:
                self.interrupt()
        old[1].hang_up()
        self._link.tell(old[0], driver.CLOSE)
        old[1].close()
        applied = self._wait_ready()
        if applied != self.applied:
            raise SandboxError(f"a session came up with {applied} only")

    def _wait(self, cell: _Cell) -> CellResult:
        """Serve the cell until its result comes."""
        while True:
            frame = self._receive(cell)
            if frame is not None and (result := self._take(cell, frame)):
                if cell.stop is not None:
                    raise cell.stop
                return result
            if cell.wait_s() == 0.0 and self._time_is_up(cell):
                self.interrupt()

    def _take(self, cell: _Cell, frame: driver.Frame) -> CellResult | None:
        """Act on one frame of the running cell; its result, if this is it."""
        if frame.kind == driver.TOOL_CALL:
            self._begin_call(cell, frame.payload)
            return None
        if frame.kind == driver.RESULT and (result := self._result(cell, frame.payload)):
            return result
        cell.noise += 1
        if cell.noise > MAX_NOISE:
            self._lose(_REASONS["noise"])
        if frame.kind == driver.STDOUT and cell.on_stdout is not None:
            cell.on_stdout(frame.payload[: 4 * driver.MAX_STREAM].decode("utf-8", "replace"))
        return None

    def _receive(self, cell: _Cell) -> driver.Frame | None:
        """The worker's next frame; None when it is time to look at the clock."""
        try:
            return self._wire.receive(cell.wait_s())
        except EOFError:
            self._lose()
        except ValueError:
            self._lose(_REASONS["protocol"])
        return None

    def _lose(self, reason: str | None = None) -> None:
        """The session is gone: find out why, and raise what a tool raised, or SandboxError."""
        if not self.lost:
            self._give_up(reason or self._why_ended())
        if self._cell and self._cell.stop is not None:
            raise self._cell.stop
        self._check_alive()

    def _why_ended(self) -> str:
        try:
            news = self._ended.get(timeout=5.0)
        except queue.Empty:  # the process lives on without its channel
            return _REASONS["channel"]
        self.box_lost = self.box_lost or news.get("why") == "holder"
        return _reason(news)

    def _give_up(self, reason: str) -> None:
        """End the session for `reason`, unless it has ended; a thread in `execute` notices."""
        with self._state:
            if self.lost:
                return
            self.lost = reason
            self.box_lost = self.box_lost or self._link.lost is not None
            self._wire.hang_up()
            with suppress(SandboxError):
                self._link.tell(self._sid, driver.CLOSE)

    def _release_if_lost(self) -> None:
        if self.lost and self._busy.acquire(blocking=False):
            self._inputs.close()
            self._wire.close()
            if self._share is not None:
                self._link.release_share(self._share, lost=self.box_lost)
                self._share = None
            self._busy.release()

    def _abandon(self, cell: _Cell) -> None:
        """`execute` is about to raise: leave the session idle or lost, never running."""
        if self._link.lost is not None:
            self._give_up(self._link.lost)
        if not cell.running:
            return
        try:
            self.interrupt()
            while cell.running and not self.lost:
                frame = self._receive(cell)
                if frame and frame.kind == driver.RESULT:
                    self._result(cell, frame.payload)
        except SandboxError:  # lost meanwhile; what `execute` raises says more
            return
        except BaseException:  # a second Ctrl-C: the session ends instead of its cell
            self._give_up("it was abandoned")
            raise

    def _end_cell(self, cell: _Cell) -> None:
        with self._state:  # no interrupt for this cell from here on
            self._cell = None
        if cell.interrupted and not self.lost:
            # Calls off the kill, and when the answer comes every interrupt has been delivered:
            # none can hit the next cell.
            with suppress(SandboxError):
                self._answer(self._link.ask(self._sid, driver.CALM))

    def _answer(self, answer: queue.SimpleQueue[dict[str, Any] | None]) -> float:
        """Wait for the supervisor; returns the processor time that it tells with each answer."""
        try:
            news = answer.get(timeout=ANSWER_S)
        except queue.Empty:
            news = None
        if news is None:
            self.box_lost = True
            self._give_up("its supervisor does not answer")
            raise SandboxError(f"the sandbox session is gone: {self.lost}")
        return float(news["cpu_s"])

    def _time_is_up(self, cell: _Cell) -> bool:
        clock = cell.clock
        if cell.cpu_before is not None:
            if cell.cpu_start_s is None:
                cell.cpu_start_s = self._answer(cell.cpu_before)
            now_s = self._answer(self._link.ask(self._sid, driver.CPU))
            clock.charge(now_s - cell.cpu_start_s)
        cell.look_at = time.monotonic() + clock.look_in_s()
        return clock.left_s() <= 0

    def _result(self, cell: _Cell, payload: bytes) -> CellResult | None:
        """The cell's result; None when it belongs to no running cell."""
        try:
            message = json.loads(payload.decode("utf-8", "replace"))
            if message["id"] != cell.id:
                return None
            cell.running = False
            if message["kind"] != "fault":
                return parse_result(message, self._limits, self._clean)
            error = cut(str(message["error"]), 500, 500, self._clean)
            reason = f"its inputs could not be loaded: {error}"
        except (ValueError, TypeError, KeyError, RecursionError):
            reason = _REASONS["protocol"]
        self._lose(reason)
        return None

    def _begin_call(self, cell: _Cell, payload: bytes) -> None:
        try:
            call = json.loads(payload.decode("utf-8", "replace"))
            rid, name = int(call["id"]), str(call["name"])
            args, kwargs = list(call["args"]), dict(call["kwargs"])
        except (ValueError, TypeError, KeyError, RecursionError):
            self._lose(_REASONS["protocol"])
        with self._waiting_lock:
            self._waiting_bytes += len(payload)
            self._waiting_calls += 1
        if self._waiting_bytes > MAX_WAITING_BYTES or self._waiting_calls > MAX_WAITING_CALLS:
            self._lose(_REASONS["flood"])
        if cell.cpu_before is None and cell.clock.allowed_s is not None:
            cell.cpu_before = self._link.ask(self._sid, driver.CPU)
        cell.clock.change_calls(1)

        def serve() -> None:
            answer = self._serve(cell, name, args, kwargs)
            cell.clock.change_calls(-1)
            answer = answer[:-1] + b', "id": %d}' % rid
            with self._waiting_lock:
                self._waiting_bytes -= len(payload)
                self._waiting_calls -= 1
                self.bytes_sent += len(answer)
            with suppress(OSError):  # the session is gone
                self._wire.send(0, driver.TOOL_RESULT, answer)

        self._threads.submit(serve)

    def _serve(self, cell: _Cell, name: str, args: list[Any], kwargs: dict[str, Any]) -> bytes:
        """Answer one tool call, in a tool thread."""
        if cell.answer is None:
            return self._run_tool(cell, name, args, kwargs)
        return cell.answer(name, args, kwargs, lambda: self._run_tool(cell, name, args, kwargs))

    def _run_tool(self, cell: _Cell, name: str, args: list[Any], kwargs: dict[str, Any]) -> bytes:
        try:
            return self._call(cell, name, args, kwargs)
        except BaseException as error:  # noqa: BLE001 -- a tool may raise anything; see _is_stop
            if _is_stop(error):
                cell.stop = cell.stop or error
                self.interrupt()
            text = cut(f"{type(error).__name__}: {error}", *driver.ERROR_ENDS, self._clean)
            return driver.to_json({"error": text})

    def _call(self, cell: _Cell, name: str, args: list[Any], kwargs: dict[str, Any]) -> bytes:
        if cell is not self._cell:
            raise RuntimeError("tools can only be called while their cell is running")
        if name not in cell.tools:
            raise LookupError(f"there is no tool {name!r}")
        clean = self._clean
        value = cell.context.copy().run(cell.invoke, name, clean(args), clean(kwargs))
        try:
            text = json.dumps(
                {"value": clean(value)}, ensure_ascii=False, default=lambda item: clean(plain(item))
            )
        except (TypeError, ValueError) as error:
            raise TypeError(f"the result of {name}() is not plain data: {error}") from error
        answer = text.encode("utf-8", "surrogatepass")
        if len(answer) > driver.MAX_ANSWER:
            raise ValueError(
                f"the result of {name}() has {len(answer):,} bytes, at most {driver.MAX_ANSWER:,} "
                "can enter the session"
            )
        return answer


def _is_stop(error: BaseException) -> bool:
    """Is this for the caller of `execute`, rather than for the guest?"""
    limit = isinstance(error, LimitReached | BudgetExhausted)
    return limit or not isinstance(error, Exception)


_REASONS = {
    "channel": "its code closed the channel to the host",
    "closed": "it was closed",
    "holder": "the process that held its inputs ended",
    "flood": "its code flooded the host with tool calls",
    "noise": "its code flooded the host with frames",
    "protocol": "its code broke the protocol",
    "scratch": "its files outgrew the limit on their size or number",
    "timeout": "its code did not stop after its deadline",
}


def _reason(news: Mapping[str, Any]) -> str:
    """Why a session ended, in words, from the supervisor's last frame about it."""
    if why := news.get("why"):
        return _REASONS.get(why, str(why))
    if error := news.get("error"):
        return str(error)
    if number := news.get("signal"):
        name = signal.Signals(number).name
        memory = ", most likely for lack of memory" if name == "SIGKILL" else ""
        return f"its process was killed by {name}{memory}"
    return f"its process ended with exit code {news.get('code')}"
