"""How inputs reach a sandbox session: each value travels once, whatever the number of cells.

A string is recognised by identity, a container by the hash of its content. Large values go into a
sealed memfd, written in slices, of which every session gets a descriptor: one copy for all.
"""

from __future__ import annotations

import base64
import fcntl
import hashlib
import os
import pickle
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from fleet_rlm.errors import DataError

INLINE_BYTES = 32 << 10
"""Up to here a value rides inside the frame that brings the code."""
SLICE = 16 << 20
"""Characters encoded at a time: the host never holds a second copy of a large string."""
MAX_BLOBS = 200
"""Descriptors that one frame can carry, with room to spare."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Blob:
    """A value in a sealed memfd."""

    value: Any
    """Kept, so that no other object can take its identity."""
    fd: int
    kind: str
    """How the worker reads it: "ascii", "utf-8", "bytes" or "pickle"."""
    size: int
    """In bytes."""


class Blobs:
    """The memfds of this process by identity of their value, shared by all sessions, counted."""

    def __init__(self) -> None:
        self._blobs: dict[int, Blob] = {}
        self._users: dict[int, int] = {}
        self._lock = threading.Lock()

    def take(self, value: str | bytes) -> Blob:
        """The blob of `value`, made on first use; give it back with `release`."""
        with self._lock:
            blob = self._blobs.get(id(value))
            if blob is None:
                blob = self._blobs[id(value)] = _write_text(value)
            self._users[id(value)] = self._users.get(id(value), 0) + 1
            return blob

    def release(self, blob: Blob) -> None:
        """One session less needs it; the last one closes it."""
        with self._lock:
            self._users[id(blob.value)] -= 1
            if not self._users[id(blob.value)]:
                del self._users[id(blob.value)], self._blobs[id(blob.value)]
                os.close(blob.fd)


BLOBS = Blobs()


@contextmanager
def _sealed() -> Iterator[int]:
    """A new memfd that nobody can change once the block ends well.

    Where there are none, on macOS, a file without a name: from there, values are sent elsewhere.
    """
    memory = hasattr(os, "memfd_create")
    if memory:
        fd = os.memfd_create("input", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    else:
        with tempfile.TemporaryFile() as file:
            fd = os.dup(file.fileno())
    try:
        yield fd
    except BaseException:  # an interrupt, too, leaves no descriptor behind
        os.close(fd)
        raise
    if memory:
        seals = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)


def _write_all(fd: int, data: bytes | memoryview) -> int:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
    return len(data)


def _write_text(value: str | bytes) -> Blob:
    with _sealed() as fd:
        if isinstance(value, bytes):
            kind, size = "bytes", _write_all(fd, value)
        else:
            kind, size = "ascii" if value.isascii() else "utf-8", 0
            for start in range(0, len(value), SLICE):
                piece = value[start : start + SLICE].encode("utf-8", "surrogatepass")
                size += _write_all(fd, piece)
    return Blob(value=value, fd=fd, kind=kind, size=size)


class _PlainPickler(pickle.Pickler):
    """Pickles plain data at the speed of C and turns everything else into plain data first.

    marshal would be faster, but it takes any object with a buffer, a numpy array say, for bytes.
    """

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, type) and obj in (str, int, float, bool, list, dict):
            return NotImplemented  # named by the line below
        data = plain(obj)
        return type(data), (data,)


def plain(obj: Any) -> Any:
    """`obj` as plain data: what numpy, pydantic, dataclasses, dates and the like hold.

    Raises:
        TypeError: it holds no data that could be told.
    """
    if type(obj).__module__.partition(".")[0] == "numpy" and hasattr(obj, "tolist"):
        return obj.tolist()
    from pydantic_core import PydanticSerializationError, to_jsonable_python

    try:
        return to_jsonable_python(obj)
    except PydanticSerializationError:
        raise TypeError(f"{type(obj).__name__} is not plain data") from None


class _Sink:
    """A file for the pickler: hashes what it is given and, with a descriptor, writes it there."""

    def __init__(self, fd: int | None = None) -> None:
        self.size = 0
        self._fd = fd
        self._hash = hashlib.blake2b(digest_size=16)

    def write(self, data: bytes | memoryview) -> int:
        self._hash.update(data)
        if self._fd is not None:
            _write_all(self._fd, data)
        self.size += len(data)
        return len(data)

    def digest(self) -> bytes:
        return self._hash.digest()


def _pickle(name: str, value: Any, fd: int | None = None) -> _Sink:
    sink = _Sink(fd)
    try:
        _PlainPickler(sink, protocol=5).dump(value)
    except (TypeError, RecursionError, pickle.PicklingError) as error:
        raise DataError(
            f"input {name!r} cannot enter the sandbox: {error}",
            fix="pass str, bytes, numbers, lists and dicts, or a dspy.SandboxSerializable",
        ) from error
    return sink


class Texts(NamedTuple):
    """A list, tuple or dict of nothing but texts: told apart by these, without writing it out."""

    kind: type
    items: tuple[str, ...]

    @classmethod
    def of(cls, value: Any) -> Texts | None:
        """None if it is none, or small."""
        kind = type(value)
        if kind not in (list, tuple, dict) or not value:
            return None
        items = (*value, *value.values()) if kind is dict else tuple(value)
        first_and_all = type(items[0]) is str and set(map(type, items)) == {str}
        return cls(kind, items) if first_and_all and sum(map(len, items)) > INLINE_BYTES else None

    def container(self) -> Any:
        """It again."""
        half = len(self.items) // 2
        pairs = zip(self.items[:half], self.items[half:], strict=True)
        return dict(pairs) if self.kind is dict else self.kind(self.items)


@dataclass(slots=True, kw_only=True, eq=False)
class Held:
    """What a session holds under one name."""

    value: Any = None
    """Of an immutable value: the object itself, which is recognised by identity; or `Texts`."""
    digest: bytes | None = None
    """Of any other container: the hash of its pickle."""
    size: int = 0
    """Of a large one: bytes of memory, four for each character if one of them is rare enough."""
    blob: Blob | None = None
    """Where a large text was written."""
    pickled: int | None = None
    """Descriptor of a large container's pickle that was not sent yet."""

    def equals(self, other: Held) -> bool:
        """Do both stand for the same value? Texts are told apart at their first difference."""
        if self.digest or other.digest:
            return self.digest == other.digest
        return type(self.value) is type(other.value) and bool(self.value == other.value)

    def open(self) -> tuple[str, int, int]:
        """Kind, descriptor and length of what was written; who sends the descriptor closes it."""
        if isinstance(self.value, Texts):
            with _sealed() as fd:
                return "texts", fd, _pickle("texts", self.value.container(), fd).size
        if self.pickled is not None:
            fd, self.pickled = self.pickled, None
            return "pickle", fd, self.size
        self.blob = BLOBS.take(self.value)
        return self.blob.kind, os.dup(self.blob.fd), self.blob.size

    def release(self) -> None:
        """Let go of what was written and not sent, or is of use to nobody else."""
        if self.blob is not None:
            BLOBS.release(self.blob)
            self.blob = None
        if self.pickled is not None:
            os.close(self.pickled)
            self.pickled = None


@dataclass(slots=True, kw_only=True)
class Shipment:
    """What one cell's variables add to what the session holds already."""

    bind: list[str]
    """Names that the cell gets, fresh."""
    held: dict[str, Held] = field(default_factory=dict)
    """New values."""
    large: dict[str, Held] = field(default_factory=dict)
    """Those among them that do not ride inside the frame."""
    specs: list[dict[str, Any]] = field(default_factory=list)
    """New values as the driver reads them."""
    fds: list[int] = field(default_factory=list)
    """Whoever sends them closes them."""

    def pack(self) -> None:
        """Write what is large, to be sent in descriptors."""
        for name, held in self.large.items():
            kind, fd, size = held.open()
            self.specs.append({"name": name, "kind": kind, "fd": len(self.fds), "size": size})
            self.fds.append(fd)

    def close_fds(self) -> None:
        """They are not sent."""
        while self.fds:
            os.close(self.fds.pop())

    def refer(self) -> None:
        """What is large is in the box already: say which of the shared values it is."""
        for index, (name, held) in enumerate(self.large.items()):
            held.release()
            self.specs.append({"name": name, "kind": "shared", "index": index})

    @property
    def size(self) -> int:
        """Bytes that travel in descriptors."""
        return sum(spec.get("size", 0) for spec in self.specs)


class Inputs:
    """What one session holds, and so what need not be sent again. One thread at a time."""

    def __init__(self) -> None:
        self._held: dict[str, Held] = {}

    @property
    def size(self) -> int:
        """Bytes of large values in the session."""
        return sum(held.size for held in self._held.values())

    def plan(self, variables: Mapping[str, Any]) -> Shipment:
        """What to send so that the next cell has `variables`; follow with `commit` or `discard`.

        Raises:
            DataError: a value that is not plain data, or more than 200 large new ones.
        """
        shipment = Shipment(bind=list(variables))
        try:
            for name, value in variables.items():
                self._add(shipment, name, value)
            if len(shipment.large) > MAX_BLOBS:
                raise DataError(
                    f"{len(shipment.large)} large inputs in one cell, at most {MAX_BLOBS}"
                )
        except BaseException:  # an interrupt, too, leaves none of its values held
            self.discard(shipment)
            raise
        return shipment

    def commit(self, shipment: Shipment) -> None:
        """The shipment goes out: remember what the session holds from then on."""
        for name, held in shipment.held.items():
            if name in self._held:
                self._held[name].release()
            self._held[name] = held

    def discard(self, shipment: Shipment) -> None:
        """The shipment does not go out."""
        shipment.close_fds()
        for held in shipment.held.values():
            held.release()

    def close(self) -> None:
        """The session is gone: let go of its values."""
        for held in self._held.values():
            held.release()
        self._held.clear()

    def _add(self, shipment: Shipment, name: str, value: Any) -> None:
        old = self._held.get(name)
        kind = type(value)
        if kind in (str, bytes) and len(value) > INLINE_BYTES:
            held = Held(value=value, size=sys.getsizeof(value))
            # The same object, or an equal one.
            if old is None or not old.equals(held):
                shipment.held[name] = shipment.large[name] = held
        elif kind in (str, bool, float, type(None)) or (kind is int and abs(value) < 1 << 63):
            if old is None or old.digest or old.value is not value:
                shipment.held[name] = Held(value=value)
                shipment.specs.append({"name": name, "kind": "json", "value": value})
        elif texts := Texts.of(value):
            held = Held(value=texts, size=sum(map(sys.getsizeof, texts.items)))
            if old is None or not old.equals(held):
                shipment.held[name] = shipment.large[name] = held
        else:
            self._add_pickle(shipment, name, value, old)

    def _add_pickle(self, shipment: Shipment, name: str, value: Any, old: Held | None) -> None:
        if old and old.digest and _pickle(name, value).digest() == old.digest:
            return
        with _sealed() as fd:
            sink = _pickle(name, value, fd)
        held = shipment.held[name] = Held(digest=sink.digest())
        if sink.size > INLINE_BYTES:
            held.size, held.pickled = sink.size, fd
            shipment.large[name] = held
            return
        data = base64.b64encode(os.pread(fd, sink.size, 0)).decode("ascii")
        os.close(fd)
        shipment.specs.append({"name": name, "kind": "pickle", "data": data})


class Share:
    """Large values that the box holds once, for all sessions whose first cell has the same ones."""

    def __init__(self, values: Sequence[Held]) -> None:
        self.values = values
        self.users = 0
        self.number: int | None = None
        """The box's name for it, once the values are there."""
        self.lock = threading.Lock()
        """Whoever takes it first sends the values; the others wait for that."""


class Shares:
    """The shares of one box, counted. What another session holds is recognised by its value."""

    def __init__(self) -> None:
        self._shares: list[Share] = []
        self._lock = threading.Lock()

    def take(self, values: Sequence[Held]) -> Share:
        """The share that has these large values and no other; give it back with `release`."""
        with self._lock:
            for share in self._shares:
                same = len(share.values) == len(values)
                if same and all(map(Held.equals, share.values, values)):
                    break
            else:
                share = Share([Held(value=held.value, digest=held.digest) for held in values])
                self._shares.append(share)
            share.users += 1
            return share

    def release(self, share: Share, *, lost: bool = False) -> bool:
        """One session less needs it, or the box has lost it, and nobody shall take it any more.

        Returns:
            Was it the last one?
        """
        with self._lock:
            share.users -= 1
            if (lost or not share.users) and share in self._shares:
                self._shares.remove(share)
            return not share.users
