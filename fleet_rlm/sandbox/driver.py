"""What runs inside every box: the supervisor and, forked from a zygote, one worker per session.

    host ─── supervisor ─── zygote ─── holder (a zygote of its own)
      ╰──────── worker 1 .. n ─╯           ╰─ worker n+1 .. (guest code)

One file next to `confine.py`, standard library only (Python 3.10 to 3.14), so that one upload puts
it into any box.

* The supervisor opens, interrupts, kills and cleans up for the host. It runs no guest code. On one
  machine each worker has a channel of its own to the host, and no byte of a guest ever reaches the
  supervisor. Where there is but one stream (stdin and stdout of a container) it relays: it stamps
  the session id on every frame and drops what a worker has no business to send.
* The zygote holds imports only. What sessions send and receive never passes through the process
  that workers are forked from, so no worker finds another session's text in its own memory.
* A holder is a zygote with inputs: it is forked from the first one, reads them once and shares
  them, copy on write, with the workers that it forks: sessions with these very inputs, no other.
* A worker locks itself in before its first guest byte, then serves cells until its channel closes.

A frame is a header (payload length, session id, kind, number of descriptors) and a payload: JSON,
or plain text for STDOUT.
"""

# pathlib has neither descriptors nor dir_fd, and its import would delay every start.
# ruff: noqa: PTH100, PTH102, PTH103, PTH106, PTH118, PTH120, PTH123

from __future__ import annotations

import array
import ast
import binascii
import builtins
import contextlib
import ctypes
import errno
import fcntl
import gc
import importlib
import importlib.util
import io
import itertools
import json
import linecache
import mmap
import os
import pickle
import queue
import random
import resource
import select
import signal
import socket
import struct
import sys
import tempfile
import threading
import time
import traceback
import types
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

T = TypeVar("T")

HEADER = struct.Struct("!IIBB")
OPEN, CLOSE, INTERRUPT, CALM, ROOM, CPU, SHARE, UNSHARE = range(1, 9)
"""From the host to the supervisor: open a session, end it, interrupt its cell, the cell has ended
after all, make room for inputs, tell the processor time; these three are answered. With the number
of a share for a session id: hold inputs for sessions to come, let go of them."""
EXEC, TOOL_RESULT = range(11, 13)
"""From the host to a worker."""
READY, STDOUT, TOOL_CALL, RESULT = range(21, 25)
"""From a worker to the host."""
HELLO, REPLY, DIED = range(31, 34)
"""From the supervisor to the host."""

MAX_FRAME = 32 << 20
"""Bytes in one payload; more is a breach of the protocol."""
MAX_ANSWER = 20 << 20
"""Bytes of JSON in the arguments of a tool call, a tool's result or a submitted answer."""
MAX_VALUE = 1 << 20
"""Bytes of JSON in the value of a trailing expression; beyond it, MAX_TEXT characters of repr."""
MAX_TEXT = 20_000
ERROR_ENDS = 2_000, 4_000
"""Characters shown of the start and of the end of an error."""
MAX_DEPTH = 100
"""Levels of lists and dicts in a value that leaves the session."""
MARGIN = 8 << 10
"""Characters beyond a cut that the host gets too: it takes secrets out before it cuts, so that no
half of one is left. Longer than any key that is known by its look, a PEM block of 8192 bits too."""
MAX_STREAM = 1 << 16
"""Characters of standard output sent while a cell runs; its result brings head and tail of all."""
MAX_NATIVE = 1 << 20
"""Bytes from C code, written to descriptors 1 and 2, that are kept per cell."""
HIGH_WATER = 8 << 20
"""Bytes waiting for a slow host beyond which no worker is read."""
CHUNK = 1 << 16
"""Bytes read at a time. Four times as much takes 35 us a read more: fresh pages for each buffer."""
NAG_S = 0.25

PRELOAD = (
    *("asyncio", "collections", "concurrent.futures", "copy", "csv", "dataclasses", "datetime"),
    *(
        "decimal",
        "difflib",
        "enum",
        "fractions",
        "functools",
        "hashlib",
        "heapq",
        "html",
        "inspect",
    ),
    *("inspect", "math", "operator", "pprint", "re", "statistics", "string", "textwrap", "typing"),
    *("unicodedata", "uuid", "zoneinfo"),
)
"""Imported once in the zygote, so that every session has them for nothing."""


class Frame(NamedTuple):
    """One message. `fds` are open descriptors that the receiver owns."""

    sid: int
    kind: int
    payload: bytes
    fds: list[int]


class SocketPort:
    """A unix stream socket as a byte stream that can carry descriptors."""

    def __init__(self, sock: socket.socket, *, take_fds: bool = False) -> None:
        self.sock = sock
        self.take_fds = take_fds
        self.read_fd = self.write_fd = sock.fileno()

    def read(self) -> tuple[bytes, Sequence[int]]:
        """At most CHUNK bytes, none at the end of the stream, and the descriptors with them."""
        if not self.take_fds:
            return self.sock.recv(CHUNK), ()  # the kernel drops descriptors that the peer pushes
        data, fds, _, _ = socket.recv_fds(self.sock, CHUNK, 253)
        return data, fds

    def write(self, data: memoryview, fds: Sequence[int]) -> int:
        """Send a first part of `data`, with all `fds`; returns the bytes taken."""
        if not fds:
            return self.sock.send(data)
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))
        return self.sock.sendmsg([data], [rights])

    def close(self) -> None:
        self.sock.close()


class PipePort:
    """Two plain descriptors, such as stdin and stdout, as a byte stream; carries no descriptors."""

    def __init__(self, read_fd: int, write_fd: int) -> None:
        self.read_fd, self.write_fd = read_fd, write_fd

    def read(self) -> tuple[bytes, Sequence[int]]:
        return os.read(self.read_fd, CHUNK), ()

    def write(self, data: memoryview, fds: Sequence[int]) -> int:
        if fds:
            raise ValueError("descriptors cannot travel over a pipe")
        return os.write(self.write_fd, data[:CHUNK])

    def close(self) -> None:
        os.close(self.read_fd)
        os.close(self.write_fd)


class Port(Protocol):
    """A byte stream; the two classes above say what the methods promise."""

    read_fd: int
    write_fd: int

    def read(self) -> tuple[bytes, Sequence[int]]: ...
    def write(self, data: memoryview, fds: Sequence[int]) -> int: ...
    def close(self) -> None: ...


class Conn:
    """Frames over a port. Reading and writing share nothing, so each may have its own thread."""

    def __init__(self, port: Port) -> None:
        self.port = port
        self.backlog = 0
        """Bytes pushed and not written yet."""
        self._buffer = bytearray()
        self._fds: list[int] = []
        self._out: deque[tuple[memoryview, Sequence[int]]] = deque()

    def feed(self) -> bool:
        """Read once; False at the end of the stream."""
        data, fds = self.port.read()
        self._fds.extend(fds)
        self._buffer += data
        return bool(data)

    def frames(self) -> Iterator[Frame]:
        """The complete frames among what was read.

        Raises:
            ValueError: a header announces more than MAX_FRAME bytes.
        """
        while len(self._buffer) >= HEADER.size:
            length, sid, kind, count = HEADER.unpack_from(self._buffer)
            if length > MAX_FRAME:
                raise ValueError(f"a frame of {length} bytes")
            end = HEADER.size + length
            if len(self._buffer) < end:
                return
            with memoryview(self._buffer) as view:
                payload = bytes(view[HEADER.size : end])
            del self._buffer[:end]
            fds, self._fds = self._fds[:count], self._fds[count:]
            yield Frame(sid, kind, payload, fds)

    def push(self, sid: int, kind: int, payload: bytes, fds: Sequence[int] = ()) -> None:
        """Queue one frame; its `fds` are closed when they are sent."""
        data = HEADER.pack(len(payload), sid, kind, len(fds)) + payload
        self._out.append((memoryview(data), fds))
        self.backlog += len(data)

    def flush(self) -> bool:
        """Write what the port takes; True when nothing is left."""
        while self._out:
            data, fds = self._out[0]
            try:
                sent = self.port.write(data, fds)
            except BlockingIOError:
                return False
            for fd in fds:
                os.close(fd)
            self.backlog -= sent
            if sent == len(data):
                self._out.popleft()
            else:
                self._out[0] = (data[sent:], ())
        return True


def to_json(value: object) -> bytes:
    """UTF-8 JSON of the driver's own messages."""
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "replace")


def ends(text: str, head: int, tail: int) -> list[Any]:
    """Of a text that the host shows `head` and `tail` characters of: what it needs of its start and
    of its end, which is empty when the start is all, and its length, -1 for a length unknown."""
    head, tail = head + MARGIN, tail + MARGIN if tail else 0
    if len(text) <= head + tail:
        return [text, "", len(text)]
    return [text[:head], text[len(text) - tail :], len(text)]


def is_deep(value: Any, levels: int = MAX_DEPTH) -> bool:
    """Are there more than `levels` of lists and dicts in it?"""
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, (list, tuple)):
        return False
    return not levels or any(is_deep(item, levels - 1) for item in value)


def has_text_keys(value: Any) -> bool:
    """Are all keys of dicts in it text? JSON makes text of the others."""
    if isinstance(value, dict):
        return all(type(k) is str and has_text_keys(item) for k, item in value.items())
    return not isinstance(value, (list, tuple)) or all(map(has_text_keys, value))


def room_left(value: Any, room: int) -> int:
    """What is left of `room` characters beside the JSON of `value`; negative if it is too long.

    A lower bound of its length, found without writing it: a list of millions of words is common.
    """
    kind = type(value)
    if kind is str:
        return room - len(value)
    if kind not in (list, tuple, dict):
        return room
    room -= 2 * len(value)
    for item in itertools.chain(value, value.values()) if kind is dict else value:
        if room < 0:
            break
        room = room_left(item, room)
    return room


def beginning(value: Any, room: int) -> Any:
    """`value` itself, or the first part of a text or container that is too long to show."""
    kind = type(value)
    if kind in (str, bytes):
        return value[: room + 1]
    if kind not in (list, tuple, set, frozenset, dict):
        return value
    kept = []
    for item in value.items() if kind is dict else value:
        if room < 0:
            break
        kept.append(beginning(item, room))
        room = room_left(kept[-1], room) - 2
    return kind(kept)


def erase(top: str) -> None:
    """Remove a folder that guest code filled, at any depth: no recursion, no long path, no link."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW

    def enter(name: str, parent: int | None = None) -> tuple[int, list[str]]:
        """Open a folder and unlink its files; returns its descriptor and the folders in it."""
        os.chmod(name, 0o700, dir_fd=parent)
        folder = os.open(name, flags, dir_fd=parent)
        with os.scandir(folder) as entries:
            inside = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
        for entry_name, is_folder in inside:
            if not is_folder:
                os.unlink(entry_name, dir_fd=folder)
        return folder, [entry_name for entry_name, is_folder in inside if is_folder]

    here, todo = enter(top)
    above: list[tuple[str, list[str]]] = []
    while todo or above:
        if todo:
            above.append((todo.pop(), todo))
            there, todo = enter(above[-1][0], here)
        else:
            there = os.open("..", flags, dir_fd=here)
            name, todo = above.pop()
            os.rmdir(name, dir_fd=there)
        os.close(here)
        here = there
    os.close(here)
    os.rmdir(top)


def room_for(held: int) -> int:
    """Address space that inputs of `held` bytes take: pages, decoded value, one working copy."""
    return 3 * held


class Nursery:
    """A zygote or a holder as the supervisor sees it: where workers come from."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        sock.setblocking(False)
        self.members: set[int] = set()
        """Ids of the sessions whose workers are its children."""
        self.needed = True
        """Sessions may still be opened in it."""
        self._out: deque[tuple[bytes, Sequence[int]]] = deque()

    def ask(self, request: dict[str, Any], fds: Sequence[int] = ()) -> bool:
        """Send a request, or queue it; its `fds` are closed when they are sent."""
        self._out.append((to_json(request), fds))
        return self.flush()

    def flush(self) -> bool:
        """Send what it takes without waiting, for it may itself wait for us; True when all went."""
        while self._out:
            data, fds = self._out[0]
            try:
                socket.send_fds(self.sock, [data], fds)
            except BlockingIOError:
                return False
            except OSError:  # it ended, as the next look at its socket shows
                pass
            self._out.popleft()
            for fd in fds:
                os.close(fd)
        return True

    def hear(self) -> dict[str, Any] | None:
        """Its next message, None when there is none.

        Raises:
            EOFError: it has ended.
        """
        try:
            data = self.sock.recv(1 << 16)
        except BlockingIOError:
            return None
        except OSError:
            data = b""
        if not data:
            raise EOFError
        return json.loads(data)  # type: ignore[no-any-return]

    def close(self) -> None:
        for _, fds in self._out:
            for fd in fds:
                os.close(fd)
        self._out.clear()
        self.sock.close()


class Member:
    """A session as the supervisor sees it."""

    def __init__(self, sid: int, scratch: str, memory: int, nursery: Nursery) -> None:
        self.sid, self.scratch, self.memory, self.nursery = sid, scratch, memory, nursery
        self.relay: Conn | None = None
        """The worker's channel, where the host has none of its own."""
        self.pid = 0
        """0 until known; not reaped, so not reused, while this object and its nursery live."""
        self.why: str | None = None
        self.kill_at: float | None = None
        """When the grace of an interrupted cell ends."""
        self.nag_at = 0.0
        """When to interrupt it again: an `except:` may have swallowed the last one."""

    def make_room(self, held: int) -> None:
        """Raise the limit of the worker's memory by what `held` bytes of inputs need."""
        with contextlib.suppress(ProcessLookupError):  # its end is on the way
            hard = resource.prlimit(self.pid, resource.RLIMIT_AS)[1]
            soft = self.memory + room_for(held)
            soft = soft if hard == resource.RLIM_INFINITY else min(soft, hard)
            resource.prlimit(self.pid, resource.RLIMIT_AS, (soft, hard))

    def signal(self, number: int) -> None:
        """Send the worker a signal, if it still lives."""
        if self.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def cpu_s(self) -> float:
        """Processor time of the worker, 0 where it cannot be told."""
        try:
            return time.clock_gettime((~self.pid << 3) | 2)
        except OSError:
            return 0.0


class Janitor(threading.Thread):
    """Erases the folders of ended sessions and reports those that outgrow their limit.

    A thread of its own: a folder with thousands of files must not hold up other sessions' frames.
    """

    PERIOD_S = 0.5

    def __init__(self, report: Callable[[int], None]) -> None:
        super().__init__(name="janitor", daemon=True)
        self.report = report
        self.watched: dict[int, tuple[str, int, int]] = {}
        """Session id -> its folder, the bytes and the files it may hold."""
        self.ended: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def run(self) -> None:
        while True:
            try:
                folder = self.ended.get(timeout=self.PERIOD_S)
            except queue.Empty:
                self._look()
                continue
            if folder is None:
                return
            with contextlib.suppress(OSError):
                erase(folder)

    def finish(self) -> None:
        """Erase what is still to be erased and stop."""
        self.ended.put(None)
        self.join()

    def _look(self) -> None:
        for sid, limits in list(self.watched.items()):
            if self._outgrown(*limits):
                self.report(sid)

    @staticmethod
    def _outgrown(top: str, most_bytes: int, most_files: int) -> bool:
        size, files, folders = 0, 0, [top]
        while folders:
            try:
                for entry in os.scandir(folders.pop()):
                    files += 1
                    size += entry.stat(follow_symlinks=False).st_blocks * 512
                    if size > most_bytes or files > most_files:
                        return True
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
            except OSError as error:  # the guest removes files while we look
                if error.errno == errno.ENAMETOOLONG:
                    return True
        return False


class Supervisor:
    """Serves the host's requests about sessions. One thread, and the janitor."""

    def __init__(
        self, host: Conn, zygote: socket.socket, root: str, *, blobs: str = "", silence_s: float = 0
    ) -> None:
        self.host, self.zygote, self.root, self.blobs = host, Nursery(zygote), root, blobs
        self.nurseries: dict[int, Nursery] = {}
        """The zygote and the holders, by the descriptor of their socket."""
        self.shares: dict[int, Nursery] = {}
        """The holders that sessions may be opened in."""
        self.silence_s = silence_s
        self.heard_at = time.monotonic()
        self.members: dict[int, Member] = {}
        self.relayed: dict[int, Member] = {}
        """Sessions without a channel of their own, by the descriptor of their worker."""
        self.poll = select.poll()
        self.host_full = self.paused = False
        self.outgrown: deque[int] = deque()
        self.wake_read, self.wake_write = os.pipe()
        self.janitor = Janitor(self._report)

    def run(self) -> None:
        """Serve until the host closes its end or the zygote is gone, then leave nothing behind."""
        self.janitor.start()
        for fd in (self.host.port.read_fd, self.wake_read):
            self.poll.register(fd, select.POLLIN)
        self._admit(self.zygote)
        self.host.push(0, HELLO, to_json({"python": sys.version.split()[0]}))
        with contextlib.suppress(BrokenPipeError, ConnectionResetError, EOFError):
            while True:
                self._turn()
        for member in self.members.values():
            self._kill(member, "sandbox closed")
        for nursery in self.nurseries.values():
            nursery.close()
        os.wait()  # the zygote ends after the last holder, and each of them after its last worker
        self.janitor.finish()
        with contextlib.suppress(OSError):
            erase(self.root)

    def _turn(self) -> None:
        self._write_host()
        for fd, event in self.poll.poll(self._wait_ms()):
            if fd == self.host.port.read_fd and event != select.POLLOUT:
                self._from_host()
            elif fd in self.nurseries:
                self._from_nursery(self.nurseries[fd])
            elif fd == self.wake_read:
                os.read(fd, CHUNK)
                while self.outgrown:
                    self._kill(self.members.get(self.outgrown.popleft()), "scratch")
            elif fd in self.relayed:
                self._from_worker(self.relayed[fd], event)

    def _report(self, sid: int) -> None:
        self.outgrown.append(sid)
        os.write(self.wake_write, b"x")

    def _write_host(self) -> None:
        """Flush; when the host is slow wait for room, when it is very slow stop reading workers."""
        full = not self.host.flush()
        if full != self.host_full:
            self.host_full = full
            port = self.host.port
            if port.read_fd == port.write_fd:
                self.poll.modify(port.read_fd, select.POLLIN | (select.POLLOUT if full else 0))
            elif full:
                self.poll.register(port.write_fd, select.POLLOUT)
            else:
                self.poll.unregister(port.write_fd)
        paused = self.host.backlog > HIGH_WATER
        if paused != self.paused:
            self.paused = paused
            for fd, member in self.relayed.items():
                self._watch(fd, member)

    def _watch(self, fd: int, member: Member) -> None:
        reading = 0 if self.paused else select.POLLIN
        writing = select.POLLOUT if member.relay and member.relay.backlog else 0
        self.poll.register(fd, reading | writing)

    def _wait_ms(self) -> float | None:
        """Nag or kill those that were interrupted; milliseconds until the next is due.

        Raises:
            EOFError: the host was silent for too long: it is gone, or cannot reach us.
        """
        now = time.monotonic()
        waits = []
        if self.silence_s:
            left_s = self.heard_at + self.silence_s - now
            if left_s <= 0:
                raise EOFError
            waits.append(left_s * 1000 + 1)
        for member in self.members.values():
            if member.kill_at is None:
                continue
            if member.kill_at <= now:
                member.kill_at = None
                self._kill(member, "timeout")
                continue
            if member.nag_at <= now:
                member.nag_at = now + NAG_S
                member.signal(signal.SIGINT)
            waits.append((min(member.kill_at, member.nag_at) - now) * 1000 + 1)
        return min(waits, default=None)

    def _kill(self, member: Member | None, why: str) -> None:
        if member is None:
            return
        member.why = member.why or why
        member.signal(signal.SIGKILL)

    def _from_host(self) -> None:
        try:
            if not self.host.feed():
                raise EOFError
        except BlockingIOError:
            return
        self.heard_at = time.monotonic()
        for frame in self.host.frames():
            member = self.members.get(frame.sid)
            if frame.kind == OPEN:
                self._open(frame)
            elif frame.kind == SHARE:
                self._share(frame)
            elif frame.kind == UNSHARE:
                if nursery := self.shares.pop(frame.sid, None):
                    nursery.needed = False
                    self._dismiss(nursery)
            elif member is None:
                self._refuse(frame)
            elif frame.kind == CLOSE:
                self._kill(member, "closed")
            elif frame.kind in (EXEC, TOOL_RESULT):
                self._to_worker(member, frame)
            else:
                self._control(member, frame.kind, json.loads(frame.payload))

    def _open(self, frame: Frame) -> None:
        limits = json.loads(frame.payload)
        nursery = self.shares.get(limits["share"]) if "share" in limits else self.zygote
        if nursery is None:
            self._refuse(frame)
            self.host.push(frame.sid, DIED, to_json({"why": "holder"}))
            return
        scratch = os.path.join(self.root, f"s{frame.sid}")
        try:
            os.mkdir(scratch, 0o700)
            member = Member(frame.sid, scratch, limits["memory"], nursery)
            channel = frame.fds[0] if frame.fds else self._relay_for(member)
        except OSError as error:
            self._refuse(frame)
            self.host.push(frame.sid, DIED, to_json({"error": str(error)}))
            return
        self.members[frame.sid] = member
        nursery.members.add(frame.sid)
        self.janitor.watched[frame.sid] = (scratch, limits["scratch"], limits["files"])
        request = {"sid": frame.sid, "scratch": scratch, "limits": limits, "blobs": self.blobs}
        self._ask(nursery, request, [channel])

    def _share(self, frame: Frame) -> None:
        """Have the zygote fork a holder of the inputs in the frame."""
        try:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        except OSError:  # sessions that ask for this share learn that there is none
            self._refuse(frame)
            return
        self.shares[frame.sid] = Nursery(ours)
        self._admit(self.shares[frame.sid])
        request = {"hold": json.loads(frame.payload), "blobs": self.blobs}
        self._ask(self.zygote, request, [theirs.detach(), *frame.fds])

    def _admit(self, nursery: Nursery) -> None:
        self.nurseries[nursery.sock.fileno()] = nursery
        self.poll.register(nursery.sock, select.POLLIN)

    def _ask(self, nursery: Nursery, request: dict[str, Any], fds: Sequence[int] = ()) -> None:
        if not nursery.ask(request, fds):
            self.poll.modify(nursery.sock, select.POLLIN | select.POLLOUT)

    def _dismiss(self, nursery: Nursery) -> None:
        """Let a holder end once nobody needs it and the last of its sessions has ended."""
        if not nursery.needed and not nursery.members:
            self.poll.unregister(nursery.sock)
            del self.nurseries[nursery.sock.fileno()]
            nursery.close()

    def _refuse(self, frame: Frame) -> None:
        """A session that has ended: nothing is done, but what waits for an answer gets one."""
        for fd in frame.fds:
            os.close(fd)
        if frame.kind in (CALM, ROOM, CPU):
            answer = {"tag": json.loads(frame.payload)["tag"], "cpu_s": 0.0}
            self.host.push(frame.sid, REPLY, to_json(answer))

    def _control(self, member: Member, kind: int, request: dict[str, Any]) -> None:
        """Do what the host asks about a session."""
        if kind == INTERRUPT:
            now = time.monotonic()
            member.kill_at, member.nag_at = member.kill_at or now + request["grace"], now + NAG_S
            member.signal(signal.SIGINT)
            return
        if kind == CALM:
            member.kill_at = None
        else:
            self._wait_for_pid(member)
        if kind == ROOM:
            member.make_room(request["held"])
        answer = {"tag": request["tag"], "cpu_s": member.cpu_s()}
        self.host.push(member.sid, REPLY, to_json(answer))

    def _wait_for_pid(self, member: Member) -> None:
        """A session that is ready has told its process id, which may be waiting to be read."""
        while not member.pid and member.sid in self.members:
            select.select([member.nursery.sock], (), ())
            self._from_nursery(member.nursery)

    def _from_nursery(self, nursery: Nursery) -> None:
        if nursery.flush():
            self.poll.modify(nursery.sock, select.POLLIN)
        try:
            news = nursery.hear()
        except EOFError:
            self._lose(nursery)
            return
        if news is None:
            return
        member = self.members[news["sid"]]
        if "pid" in news:
            member.pid = news["pid"]
            if member.why:
                self._kill(member, member.why)
            return
        self._ask(nursery, {"bury": member.sid})
        self._end(member, news)
        self._dismiss(nursery)

    def _lose(self, nursery: Nursery) -> None:
        """A holder has ended before its time; its workers die with it, unlocked ones by us.

        Raises:
            EOFError: it was the zygote.
        """
        if nursery is self.zygote:
            raise EOFError
        for number in [number for number, other in self.shares.items() if other is nursery]:
            del self.shares[number]
        for sid in list(nursery.members):
            self._kill(self.members[sid], "holder")
            self._end(self.members[sid], {})
        nursery.needed = False
        self._dismiss(nursery)

    def _end(self, member: Member, news: dict[str, Any]) -> None:
        """The worker is gone: tell the host, and clean up."""
        if member.relay:
            with contextlib.suppress(OSError):  # what it said before it ended
                while member.relay.feed():
                    pass
            self._pass_on(member)
            self._end_relay(member)
        del self.members[member.sid], self.janitor.watched[member.sid]
        member.nursery.members.remove(member.sid)
        self.janitor.ended.put(member.scratch)
        why = member.why
        if why == "channel" and news.get("signal") != signal.SIGKILL:
            why = None  # it ended by itself, and its channel with it
        self.host.push(member.sid, DIED, to_json({**news, "why": why}))

    def _relay_for(self, member: Member) -> int:
        """Keep one end of a channel to relay from; returns the worker's."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        member.relay = Conn(SocketPort(ours))
        self.relayed[ours.fileno()] = member
        self._watch(ours.fileno(), member)
        return theirs.detach()

    def _end_relay(self, member: Member) -> None:
        if member.relay and self.relayed.pop(member.relay.port.read_fd, None):
            self.poll.unregister(member.relay.port.read_fd)
            member.relay.port.close()

    def _to_worker(self, member: Member, frame: Frame) -> None:
        if member.relay is None:
            return
        member.relay.push(frame.sid, frame.kind, frame.payload)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # its end is on the way
            if not member.relay.flush():
                self._watch(member.relay.port.read_fd, member)

    def _from_worker(self, member: Member, event: int) -> None:
        relay, alive = member.relay, True
        if relay is None:
            return
        try:
            if event & select.POLLOUT and relay.flush():
                self._watch(relay.port.read_fd, member)
            if event & ~select.POLLOUT:
                alive = relay.feed()
        except BlockingIOError:
            return
        except OSError:
            alive = False
        self._pass_on(member)
        if not alive:
            self._end_relay(member)
            self._kill(member, "channel")

    def _pass_on(self, member: Member) -> None:
        """Relay a worker's frames with its session id on them."""
        try:
            for frame in member.relay.frames() if member.relay else ():
                if frame.kind not in (READY, STDOUT, TOOL_CALL, RESULT):
                    raise ValueError(f"a frame of kind {frame.kind}")
                self.host.push(member.sid, frame.kind, frame.payload)
        except ValueError:
            self._end_relay(member)
            self._kill(member, "protocol")


class Zygote:
    """Forks a worker for each request until the supervisor closes its end; then kills them all.

    Args:
        supervisor: the zygote's end of a SOCK_SEQPACKET pair.
        confine: the module of that name.
        lock: its `Lock` for the workers, None for a box that needs none.
        shared: what this one holds for its workers; None for the one that forks holders.
    """

    def __init__(
        self, supervisor: socket.socket, confine: Any, lock: Any, shared: Shared | None = None
    ) -> None:
        self.supervisor, self.confine, self.lock, self.shared = supervisor, confine, lock, shared
        self.workers: dict[int, int] = {}
        """Process id -> session id, of those that live."""
        self.dead: dict[int, int] = {}
        """Session id -> process id, of those that the supervisor may still signal."""
        self.holders: set[int] = set()
        self.wake_read, self.wake_write = os.pipe()

    def run(self) -> None:
        """Serve; returns when nothing that was forked is left."""
        os.set_blocking(self.wake_write, False)
        signal.set_wakeup_fd(self.wake_write)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        while True:
            ready = select.select([self.supervisor.fileno(), self.wake_read], [], [])[0]
            if self.wake_read in ready:
                os.read(self.wake_read, CHUNK)
                self._report()
            if self.supervisor.fileno() not in ready:
                continue
            data, fds, _, _ = socket.recv_fds(self.supervisor, 1 << 16, 253)
            if not data:
                break
            request = json.loads(data)
            if "bury" in request:
                if pid := self.dead.pop(request["bury"], 0):
                    os.waitpid(pid, 0)
                continue
            self._fork(request, fds)
            for fd in fds:
                os.close(fd)
        for pid in self.workers:
            os.kill(pid, signal.SIGKILL)
        # A holder sees the end of its own channel.
        for pid in [*self.workers, *self.dead.values(), *self.holders]:
            os.waitpid(pid, 0)

    def _report(self) -> None:
        for pid, sid in list(self.workers.items()):
            # WNOWAIT: the pid stays taken until the supervisor, which signals by pid, lets go of it
            end = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if end is not None:
                del self.workers[pid]
                self.dead[sid] = pid
                key = "code" if end.si_code == os.CLD_EXITED else "signal"
                self.supervisor.send(to_json({"sid": sid, key: end.si_status}))
        ended = [pid for pid in self.holders if os.waitpid(pid, os.WNOHANG)[0]]
        self.holders.difference_update(ended)

    def _fork(self, request: dict[str, Any], fds: list[int]) -> None:
        try:
            pid = os.fork()
        except OSError as error:
            if "sid" in request:  # else the supervisor sees the end of the holder's channel
                told = {"sid": request["sid"], "error": f"fork: {error}"}
                self.supervisor.send(to_json(told))
            return
        if pid == 0 and "hold" in request:
            os.close(self.wake_read)
            os.close(self.wake_write)
            become_holder(self.supervisor, fds, request, self.confine, self.lock)
        if pid == 0:
            shared = self.shared or Shared()
            become_worker(self.supervisor, fds[0], request, self.confine, self.lock, shared)
        if "hold" in request:
            self.holders.add(pid)
        else:
            self.workers[pid] = request["sid"]


class Shared:
    """The inputs of a holder."""

    def __init__(self) -> None:
        self.inputs: list[Input] = []
        self.size = 0
        """In bytes."""
        self.error: str | None = None
        """Why they could not be read."""

    def load(self, specs: list[dict[str, Any]], fds: Sequence[int], blobs: str) -> None:
        """Read them all, or note why not."""
        try:
            self.inputs = [Input(spec, fds, blobs) for spec in specs]
            self.size = sum(given.size for given in self.inputs)
        except (MemoryError, OSError, ValueError) as error:
            self.error = f"its inputs could not be loaded: {error!r}"


def become_holder(
    supervisor: socket.socket, fds: Sequence[int], request: dict[str, Any], confine: Any, lock: Any
) -> None:
    """In a fresh child of the zygote: read inputs and serve as a zygote. Never returns."""
    try:
        supervisor.close()
        shared = Shared()
        shared.load(request["hold"], fds[1:], request["blobs"])
        gc.collect()
        gc.freeze()
        Zygote(socket.socket(fileno=fds[0]), confine, lock, shared).run()
    finally:
        os._exit(0)


class CellInterrupt(BaseException):
    """The cell's time is up, or the host wants it to end."""


class Final(BaseException):
    """Raised by SUBMIT; ends the cell."""


class Shield:
    """Keeps the interrupt out of the runtime's own code.

    The signal handler runs in the main thread between any two instructions. Inside `with shield`
    it only takes a note, and the interrupt is raised on the way out; so frames are never cut and
    locks never lost. Other threads never see the interrupt: for them the shield does nothing.
    """

    def __init__(self) -> None:
        self.armed = False
        """A cell is running: an interrupt is meant for it."""
        self.on_interrupt: Callable[[], None] = lambda: None
        self._main = threading.get_ident()
        self._depth = 0
        self._noted = False

    def arm(self) -> None:
        """Before each cell: guest code may have replaced the handler."""
        self._noted = False
        signal.signal(signal.SIGINT, self._handle)
        self.armed = True

    def _handle(self, *_: object) -> None:
        if not self.armed:
            return
        self.on_interrupt()
        if self._depth:
            self._noted = True
        else:
            raise CellInterrupt

    def _raise_noted(self) -> None:
        if self._noted and self.armed:
            self._noted = False
            raise CellInterrupt

    def __enter__(self) -> None:
        if threading.get_ident() == self._main:
            self._depth += 1

    def __exit__(self, *_: object) -> None:
        if threading.get_ident() == self._main:
            self._depth -= 1
            if not self._depth:
                self._raise_noted()

    def open_for(self, wait: Callable[[], T]) -> T:
        """Inside the shield, run a blocking call that an interrupt may end."""
        if threading.get_ident() != self._main:
            return wait()
        depth, self._depth = self._depth, 0
        try:
            self._raise_noted()
            return wait()
        finally:
            self._depth = depth


class Channel:
    """A worker's end of its channel. Any thread may call a tool; whoever waits first reads for all.

    There is no reader thread: one switch less per call, and nothing that keeps a session alive.
    """

    def __init__(self, sock: socket.socket, shield: Shield) -> None:
        self._conn = Conn(SocketPort(sock, take_fds=True))
        self._sock, self._shield = sock, shield
        self._send_lock, self._lead = threading.Lock(), threading.Lock()
        self._ids = itertools.count(1)
        self._commands: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._boxes: dict[int, queue.SimpleQueue[Any]] = {}
        """Tool call id -> where its answer goes."""
        self._waiting: dict[int, queue.SimpleQueue[Any]] = {}
        """The boxes at which a thread waits, by their identity."""
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_write, False)
        self._cut = False
        shield.on_interrupt = self._cut_calls

    def send(self, kind: int, payload: bytes) -> None:
        """Send one frame, whole, whatever signals arrive."""
        with self._shield, self._send_lock:
            self._sock.sendall(HEADER.pack(len(payload), 0, kind, 0) + payload)

    def next_command(self) -> tuple[bytes, list[int]]:
        """Wait for the next EXEC."""
        while (command := self._take(self._commands)) is None:
            pass
        self._cut = False
        return command  # type: ignore[no-any-return]

    def call(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a host tool and wait for its result.

        Raises:
            RuntimeError: with the message of whatever the tool raised on the host.
            TypeError: the arguments are not plain data.
        """
        rid = next(self._ids)
        call = {"id": rid, "name": name, "args": args, "kwargs": kwargs}
        payload = plain_json(call, f"arguments of {name}()")
        if self._cut or not self._shield.armed:
            raise RuntimeError("tools can only be called while a cell is running")
        with self._shield:
            box = self._boxes[rid] = queue.SimpleQueue()
            try:
                self.send(TOOL_CALL, payload)
                while (answer := self._take(box)) is None:
                    pass
            finally:
                del self._boxes[rid]
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer["value"]

    def _cut_calls(self) -> None:
        """End every waiting call with an error: threads that an interrupted cell joins end too."""
        self._cut = True
        for box in list(self._boxes.values()):
            box.put({"error": "the cell was interrupted while this call waited"})
        with contextlib.suppress(BlockingIOError):
            os.write(self._wake_write, b"x")

    def _take(self, box: queue.SimpleQueue[Any]) -> Any:
        """What arrives in `box`; None says that whoever read for all is done: try again."""
        with self._shield:
            # Registered before the lead is tried: a leader that leaves later hands it to us.
            self._waiting[id(box)] = box
            try:
                got = self._receive(box)
            except BaseException:  # an interrupt, too, must not leave the others without a leader
                del self._waiting[id(box)]
                self._pass_lead()
                raise
            del self._waiting[id(box)]
            if got is not None:
                self._pass_lead()
            return got

    def _receive(self, box: queue.SimpleQueue[Any]) -> Any:
        if not self._lead.acquire(blocking=False):
            return self._shield.open_for(box.get)
        try:
            while box.empty():
                self._read()
        finally:
            self._lead.release()
        return box.get()

    def _pass_lead(self) -> None:
        if not self._lead.locked():  # else its holder will pass it on
            for box in list(self._waiting.values())[:1]:
                box.put(None)

    def _read(self) -> None:
        channel = self._sock.fileno()
        sources = (channel, self._wake_read)
        ready = self._shield.open_for(lambda: select.select(sources, (), ())[0])
        if self._wake_read in ready:
            os.read(self._wake_read, CHUNK)
        if channel not in ready:
            return
        if not self._conn.feed():
            os._exit(0)
        for frame in self._conn.frames():
            if frame.kind == EXEC:
                self._commands.put((frame.payload, frame.fds))
            elif frame.kind == TOOL_RESULT:
                answer = json.loads(frame.payload)
                if box := self._boxes.get(answer["id"]):
                    box.put(answer)


class _PlainEncoder(json.JSONEncoder):
    """JSON of plain data; numpy and pandas values count as the lists and numbers they hold."""

    def default(self, o: Any) -> Any:
        family = type(o).__module__.partition(".")[0]
        if family in ("numpy", "pandas") and hasattr(o, "tolist"):
            return o.tolist()
        raise TypeError(f"{type(o).__name__} is not plain data")


_plain = _PlainEncoder(ensure_ascii=False, allow_nan=False)


def plain_json(value: Any, what: str) -> bytes:
    """JSON of something that guest code wants to send out.

    Raises:
        TypeError, ValueError: in words that tell a model what to do about it.
    """
    try:
        data = _plain.encode(value).encode("utf-8", "replace")
        if is_deep(value):
            raise ValueError(f"more than {MAX_DEPTH} levels of lists and dicts")
    except (TypeError, ValueError, RecursionError) as error:
        raise TypeError(
            f"{what}: {error}. Only plain data can leave the session: str, int, float, bool, None, "
            "lists, and dicts with str keys. Convert first, e.g. sorted(a_set), list(a_generator), "
            "some_bytes.decode(), str(anything)."
        ) from None
    if len(data) > MAX_ANSWER:
        raise ValueError(f"{what}: {len(data):,} bytes; at most {MAX_ANSWER:,} can leave")
    return data


class Output(io.TextIOBase):
    """Standard output of a session: constant memory, exact count, head and tail kept.

    Pieces are queued (an atomic append, so any thread may print) and folded now and then.
    """

    encoding = "utf-8"
    errors = "replace"

    def __init__(self, channel: Channel, shield: Shield, head: int, tail: int) -> None:
        self.live = False
        """Send pieces to the host while the cell runs."""
        self.buffer = _OutputBytes(self)
        self._channel, self._shield = channel, shield
        self._max_head, self._max_tail = head + MARGIN, tail + MARGIN
        self._lock = threading.Lock()
        self._pieces: deque[str] = deque()
        self._reset()

    def _reset(self) -> None:
        self._count = self._sent = 0
        self._head = self._tail = ""
        self._sent_at = 0.0

    def write(self, text: str) -> int:
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        self._pieces.append(text)
        full = len(text) > 4096 or len(self._pieces) > 256
        late = self.live and text[-1:] == "\n" and time.monotonic() - self._sent_at > 0.05
        if full or late:
            self._fold()
        return len(text)

    def flush(self) -> None:
        if self.live:
            self._fold()

    def _fold(self) -> None:
        with self._shield, self._lock:
            pieces = [self._pieces.popleft() for _ in range(len(self._pieces))]
            text = pieces[0] if len(pieces) == 1 else "".join(pieces)
            self._count += len(text)
            if self.live and text and self._sent < MAX_STREAM:
                piece = text[: MAX_STREAM - self._sent]
                self._sent += len(piece)
                self._sent_at = time.monotonic()
                self._channel.send(STDOUT, piece.encode("utf-8", "replace"))
            room = self._max_head - len(self._head)
            self._head += text[:room]
            text = text[room:]
            if text:
                self._tail = (self._tail + text[-self._max_tail :])[-self._max_tail :]

    def isatty(self) -> bool:
        return False

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return 1

    def take(self) -> list[Any]:
        """What was printed, as `ends` would give it."""
        self._fold()
        with self._lock:
            head, tail, count = self._head, self._tail, self._count
            self._reset()
        return [head + tail, "", count] if len(head) + len(tail) == count else [head, tail, count]


class _OutputBytes(io.RawIOBase):
    def __init__(self, text: Output) -> None:
        self._text = text

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._text.write(bytes(data).decode("utf-8", "replace"))
        return len(data)


class NativeOutput:
    """What C code writes to descriptors 1 and 2: a memfd of fixed size, read after each cell."""

    def __init__(self) -> None:
        file = os.memfd_create("output", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(file, MAX_NATIVE)
        fcntl.fcntl(file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK)
        for fd in (1, 2):
            os.dup2(file, fd)
        os.close(file)
        self._libc = ctypes.CDLL(None)

    def take(self) -> tuple[str, bool]:
        """The text written since the last call, and whether there was no room for all of it."""
        self._libc.fflush(None)
        try:
            size = os.lseek(1, 0, os.SEEK_CUR)
            data = os.pread(1, min(size, MAX_NATIVE), 0) if size else b""
            os.lseek(1, 0, os.SEEK_SET)
        except OSError:  # guest code closed or replaced the descriptor
            return "", False
        return data.decode("utf-8", "replace"), size >= MAX_NATIVE


class Input:
    """A variable as the host sent it; each cell that names it gets it fresh, without a transfer."""

    def __init__(self, spec: dict[str, Any], fds: Sequence[int], blobs: str) -> None:
        self._value: Any = spec.get("value")
        self._pickled: bytes | None = None
        kind = spec["kind"]
        if "fd" in spec or "blob" in spec:
            if "fd" in spec:
                fd = fds[spec["fd"]]
            else:
                fd = os.open(os.path.join(blobs, spec["blob"]), os.O_RDONLY | os.O_CLOEXEC)
            try:
                pages = mmap.mmap(fd, spec["size"], prot=mmap.PROT_READ)
            finally:
                os.close(fd)
            if kind == "texts":
                self._value = unpickle(pages)
            elif kind == "pickle":
                self._pickled = bytes(pages)
            else:
                self._value = bytes(pages) if kind == "bytes" else str(pages, kind, "surrogatepass")
            pages.close()
        elif kind == "pickle":
            self._pickled = binascii.a2b_base64(spec["data"])

    @property
    def size(self) -> int:
        """In bytes."""
        value = self._value if self._pickled is None else self._pickled
        parts = [value]
        if type(value) in (list, tuple, dict):
            parts += itertools.chain(value, value.values()) if type(value) is dict else value
        return sum(map(sys.getsizeof, parts))

    def fresh(self) -> Any:
        """The pristine value; what a cell does to a container ends there."""
        if self._pickled is not None:
            return unpickle(self._pickled)
        # the container of texts: they are the same ones in every cell and session
        return self._value.copy() if type(self._value) in (list, dict) else self._value


def unpickle(data: Any) -> Any:
    """What the host pickled, which guest code cannot reach; nothing is ever unpickled there.

    Without the collector, which looks at all of it again and again while it grows: five times as
    fast for rows of dicts.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        return pickle.loads(data)
    finally:
        if collects:
            gc.enable()


Outcome = tuple[dict[str, Any], bytes | None]
"""The fields of a result, and its value as JSON."""


class Cells:
    """Runs the cells of one session in its namespace."""

    def __init__(
        self, channel: Channel, shield: Shield, output: Output, blobs: str, shared: Shared
    ) -> None:
        self.blobs, self.shared = blobs, shared.inputs
        self.channel, self.shield, self.output = channel, shield, output
        self.native = NativeOutput()
        module = types.ModuleType("__main__")
        sys.modules["__main__"] = module  # dataclasses and pickle look names up there
        self.names = module.__dict__
        self.inputs: dict[str, Input] = {}
        self.tools: dict[str, Callable[..., Any]] = {}
        self.fields: list[str] | None = None
        self.submitted: bytes | None = None
        self.count = 0
        # a copy: what guest code does to `builtins` must not reach the code of this file
        self._builtins = types.ModuleType("builtins")
        sys.modules["builtins"] = self._builtins

    def serve(self) -> None:
        """Run cells until the channel closes."""
        while True:
            payload, fds = self.channel.next_command()
            request = json.loads(payload)
            try:
                self._prepare(request, fds)
            except (MemoryError, OSError, ValueError) as error:
                self._reply(request["id"], ({"kind": "fault", "error": repr(error)}, None))
                continue
            try:
                outcome = self._run(request["code"])
                self._finish(outcome[0])
            except MemoryError:
                outcome = {"kind": "error", "error": ends("MemoryError", *ERROR_ENDS)}, None
                self._finish(outcome[0])
            self._reply(request["id"], outcome)

    def _reply(self, cell: int, outcome: Outcome) -> None:
        fields, value = outcome
        data = to_json({"id": cell, **fields})
        if value is not None:
            data = data[:-1] + b', "value": ' + value + b"}"
        self.channel.send(RESULT, data)

    def _finish(self, fields: dict[str, Any]) -> None:
        sys.stdout = sys.stderr = self.output
        native, fields["torn"] = self.native.take()
        if native:
            self.output.write(native)
        fields["stdout"] = self.output.take()

    def _prepare(self, request: dict[str, Any], fds: list[int]) -> None:
        """Put what the host owns into the namespace, whatever the last cell did to it."""
        for spec in request["inputs"]:
            shared = spec["kind"] == "shared"
            given = self.shared[spec["index"]] if shared else Input(spec, fds, self.blobs)
            self.inputs[spec["name"]] = given
        for name in self.tools:
            self.names.pop(name, None)
        # one function per name for good: guest code may hold on to it and compare
        self.tools = {name: self.tools.get(name) or self._tool(name) for name in request["tools"]}
        self.fields = request["fields"]
        self.output.live = request["live"]
        vars(self._builtins).update(vars(builtins))
        for name in request["bind"]:
            self.names.pop(name, None)
            self.names[name] = self.inputs[name].fresh()
        self.names.update(self.tools, SUBMIT=self._submit, __builtins__=self._builtins)
        self.submitted = None
        self.count += 1

    def _tool(self, name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            return self.channel.call(name, args, kwargs)

        call.__name__ = call.__qualname__ = name
        return call

    def _submit(self, *args: Any, **kwargs: Any) -> None:
        """SUBMIT(value), or every output field once, all by position or all by name."""
        if self.fields is None:
            given = [*args, *kwargs.values()]
            if len(given) != 1:
                raise TypeError(f"SUBMIT takes one value, {len(given)} were given")
            answer = {"output": given[0]}
        else:
            usage = f"SUBMIT({', '.join(self.fields)})"
            if args and (kwargs or len(args) != len(self.fields)):
                raise TypeError(f"{usage}: give every field once, all by position or all by name")
            answer = dict(zip(self.fields, args)) if args else kwargs  # noqa: B905 -- same length
            missing = [name for name in self.fields if name not in answer]
            unknown = [name for name in answer if name not in self.fields]
            if missing or unknown:
                raise TypeError(f"{usage}: missing {missing}, unknown {unknown}")
        for name, value in answer.items():
            plain_json(value, f"SUBMIT field {name!r}")
        self.submitted = plain_json(answer, "SUBMIT")
        raise Final

    def _run(self, code: str) -> Outcome:
        name = f"<cell-{self.count}>"
        try:
            body, tail = self._compile(code, name)
        except (SyntaxError, ValueError, OverflowError, MemoryError, RecursionError) as error:
            text = "".join(traceback.format_exception_only(type(error), error))
            return {"kind": "syntax", "error": ends(text.rstrip(), *ERROR_ENDS)}, None
        try:
            try:
                self.shield.arm()
                return self._evaluate(body, tail)
            finally:
                self.shield.armed = False
        except CellInterrupt as error:
            self.shield.armed = False  # it may have come between the end of the cell and this
            return {"kind": "interrupted", "error": self._where(error)}, None

    def _compile(self, code: str, name: str) -> tuple[types.CodeType | None, types.CodeType | None]:
        """The statements and the trailing expression, as far as there are any."""
        linecache.cache[name] = (len(code), None, code.splitlines(keepends=True), name)
        tree = ast.parse(code, name)
        tail = None
        if tree.body and isinstance(tree.body[-1], ast.Expr):
            last = ast.Expression(tree.body[-1].value)
            del tree.body[-1]
            tail = compile(last, name, "eval", dont_inherit=True)
        body = compile(tree, name, "exec", dont_inherit=True) if tree.body else None
        return body, tail

    def _evaluate(self, body: types.CodeType | None, tail: types.CodeType | None) -> Outcome:
        """Everything that may run guest code, so everything that an interrupt may end."""
        try:
            if body:
                exec(body, self.names)
            value = eval(tail, self.names) if tail else None
            if self.submitted is None:
                return self._render(value)
        except CellInterrupt:
            raise
        except Final:
            pass
        except BaseException as error:  # noqa: BLE001 -- guest code may raise anything
            return {"kind": "error", "error": self._describe(error)}, None
        # also when a bare `except` swallowed Final, or a thread submitted
        return {"kind": "final"}, self.submitted

    @staticmethod
    def _render(value: Any) -> Outcome:
        """A trailing expression's value: as JSON when it is plain and small, else as its repr."""
        if value is None:
            return {"kind": "ok"}, None
        with contextlib.suppress(TypeError, ValueError, RecursionError):
            if room_left(value, MAX_VALUE) >= 0 and not is_deep(value) and has_text_keys(value):
                text = json.dumps(value, ensure_ascii=False, allow_nan=False)
                if len(text) <= MAX_VALUE:
                    return {"kind": "ok"}, text.encode("utf-8", "replace")
        try:
            text = repr(beginning(value, MAX_TEXT + MARGIN))
        except RecursionError:
            text = repr(value)
        start, end, count = ends(text, MAX_TEXT, 0)
        if len(start) < count:  # of the first part only
            count = len(value) if type(value) in (str, bytes) else -1
        return {"kind": "ok", "text": [start, end, count]}, None

    def _describe(self, error: BaseException) -> list[Any]:
        try:
            text = self._traceback(error)
        except CellInterrupt:
            raise
        except BaseException:  # noqa: BLE001 -- the exception's own __str__ may raise anything
            text = type(error).__name__
        if isinstance(error, SystemExit):
            text += "\nexit() ends the cell only: the session and its variables are kept."
        return ends(text, *ERROR_ENDS)

    def _where(self, error: BaseException) -> list[Any]:
        """The traceback of an interrupt without its last line, which names a class of this file."""
        return ends(self._traceback(error).rpartition("\n")[0], *ERROR_ENDS)

    @staticmethod
    def _traceback(error: BaseException) -> str:
        """The traceback as guest code knows it, without the frames of this file."""
        trace = traceback.TracebackException(type(error), error, error.__traceback__)
        chain: list[traceback.TracebackException | None] = [trace]
        for link in chain:
            if link is not None:
                frames = [frame for frame in link.stack if frame.filename != __file__]
                link.stack = traceback.StackSummary.from_list(frames)
                chain += [link.__cause__, link.__context__]
        return "".join(trace.format()).rstrip()


def become_worker(
    supervisor: socket.socket,
    fd: int,
    request: dict[str, Any],
    confine: Any,
    lock: Any,
    shared: Shared,
) -> None:
    """In a fresh child of the zygote: lock this process in and serve the session. Never returns."""
    limits, scratch = request["limits"], request["scratch"]
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        supervisor.send(to_json({"sid": request["sid"], "pid": os.getpid()}))
        shield = Shield()
        channel = Channel(_keep_only(fd), shield)
        output = Output(channel, shield, limits["stdout_head"], limits["stdout_tail"])
        cells = Cells(channel, shield, output, request["blobs"], shared)
        applied = ["rlimits"]
        try:
            if shared.error:
                raise ValueError(shared.error)
            os.chdir(scratch)
            confine.limit_resources(
                memory=limits["memory"] + room_for(shared.size),
                file_size=limits["file"],
                open_files=limits["open_files"],
            )
            if lock is not None:
                applied += lock.apply(scratch)
        except (OSError, ValueError) as error:
            channel.send(READY, to_json({"applied": applied, "error": str(error)}))
            os._exit(1)
        _settle(scratch, output)
        channel.send(READY, to_json({"applied": applied}))
        cells.serve()
    finally:
        os._exit(1)


def _keep_only(fd: int) -> socket.socket:
    """Keep nothing of the zygote's but the channel, as descriptor 3."""
    os.dup2(os.open(os.devnull, os.O_RDWR), 0)
    os.dup2(fd, 3, inheritable=False)
    os.closerange(4, 1 << 16)
    return socket.socket(fileno=3)


def _settle(scratch: str, output: Output) -> None:
    os.umask(0o077)
    os.environ.update(HOME=scratch, TMPDIR=scratch, PWD=scratch)
    tempfile.tempdir = scratch
    sys.path.insert(0, scratch)
    sys.argv = [""]
    sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: SIM115 -- open for good
    sys.stdout = sys.stderr = output
    sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr  # type: ignore
    random.seed(0)  # as PYTHONHASHSEED=0: the same cells print the same text in every session


def _load_confine() -> Any:
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "confine.py")
    spec = importlib.util.spec_from_file_location("_confine", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is missing")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main(options: dict[str, Any]) -> None:
    """Run a supervisor on stdin and stdout.

    Args:
        options: `root`: the folder for the sessions' scratch folders. `abi`: Landlock version to
            apply, 0 for no confinement beyond rlimits (the container is the boundary, or there is
            none). `socket`: stdin is a unix socket for both directions. `blobs`: folder of large
            inputs that come as files. `silence_s`: seconds without a byte from the host after which
            everything ends; a host that may vanish unseen sends pings.
    """
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [path for path in sys.path if os.path.abspath(path) != here]
    port: Port
    if options["socket"]:
        port = SocketPort(socket.socket(fileno=os.dup(0)), take_fds=True)
    else:
        port = PipePort(os.dup(0), os.dup(1))
    silence = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1):
        os.dup2(silence, fd)
    for fd in {port.read_fd, port.write_fd}:
        os.set_blocking(fd, False)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    confine = _load_confine()
    for name in PRELOAD:
        importlib.import_module(name)
    root = options["root"]
    os.makedirs(root, exist_ok=True)
    lock = confine.Lock(options["abi"]) if options["abi"] else None
    if lock is not None:
        confine.drop_capabilities()
        write, tidy = [root, os.devnull], [os.path.dirname(root)]
        confine.restrict_files(lock.abi, read=lock.read, write=write, tidy=tidy)
    gc.collect()
    gc.freeze()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if os.fork() == 0:
        ours.close()
        Zygote(theirs, confine, lock).run()
        os._exit(0)
    theirs.close()
    options = {"blobs": "", "silence_s": 0.0, **options}
    Supervisor(Conn(port), ours, root, blobs=options["blobs"], silence_s=options["silence_s"]).run()
    os._exit(0)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
