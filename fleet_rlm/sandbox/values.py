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
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

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
    """A new memfd that nobody can change once the block ends well."""
    fd = os.memfd_create("input", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        yield fd
    except BaseException:
        os.close(fd)
        raise
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


@dataclass(slots=True, kw_only=True)
class _Held:
    """What a session holds under one name."""

    value: Any = None
    """Of an immutable value: the object itself, which is recognised by identity."""
    digest: bytes | None = None
    """Of a container: the hash of its pickle."""
    size: int = 0
    blob: Blob | None = None


@dataclass(slots=True, kw_only=True)
class Shipment:
    """What one cell's variables add to what the session holds already."""

    bind: list[str]
    """Names that the cell gets, fresh."""
    specs: list[dict[str, Any]] = field(default_factory=list)
    """New values, as the driver reads them."""
    fds: list[int] = field(default_factory=list)
    """Whoever sends them closes them."""
    held: dict[str, _Held] = field(default_factory=dict)

    def attach(self, name: str, kind: str, fd: int, size: int) -> None:
        """Send `size` bytes of descriptor `fd` as the value of `name`."""
        self.specs.append({"name": name, "kind": kind, "fd": len(self.fds), "size": size})
        self.fds.append(fd)

    @property
    def size(self) -> int:
        """Bytes that travel in descriptors."""
        return sum(spec.get("size", 0) for spec in self.specs)


class Inputs:
    """What one session holds, and so what need not be sent again. One thread at a time."""

    def __init__(self) -> None:
        self._held: dict[str, _Held] = {}

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
            if len(shipment.fds) > MAX_BLOBS:
                raise DataError(
                    f"{len(shipment.fds)} large inputs in one cell, at most {MAX_BLOBS}"
                )
        except BaseException:
            self.discard(shipment)
            raise
        return shipment

    def commit(self, shipment: Shipment) -> None:
        """The shipment goes out: remember what the session holds from then on."""
        for name, held in shipment.held.items():
            if name in self._held:
                _release(self._held[name])
            self._held[name] = held

    def discard(self, shipment: Shipment) -> None:
        """The shipment does not go out."""
        for fd in shipment.fds:
            os.close(fd)
        for held in shipment.held.values():
            _release(held)

    def close(self) -> None:
        """The session is gone: let go of its values."""
        for held in self._held.values():
            _release(held)
        self._held.clear()

    def _add(self, shipment: Shipment, name: str, value: Any) -> None:
        held = self._held.get(name)
        kind = type(value)
        if kind in (str, bytes) and len(value) > INLINE_BYTES:
            # The same object, or an equal one: told apart at its first difference.
            if held is None or type(held.value) is not kind or held.value != value:
                blob = BLOBS.take(value)
                shipment.held[name] = _Held(value=value, size=blob.size, blob=blob)
                shipment.attach(name, blob.kind, os.dup(blob.fd), blob.size)
        elif kind in (str, bool, float, type(None)) or (kind is int and abs(value) < 1 << 63):
            if held is None or held.digest or held.value is not value:
                shipment.held[name] = _Held(value=value)
                shipment.specs.append({"name": name, "kind": "json", "value": value})
        else:
            self._add_pickle(shipment, name, value, held)

    def _add_pickle(self, shipment: Shipment, name: str, value: Any, held: _Held | None) -> None:
        if held and held.digest and _pickle(name, value).digest() == held.digest:
            return
        with _sealed() as fd:
            sink = _pickle(name, value, fd)
        if sink.size > INLINE_BYTES:
            shipment.attach(name, "pickle", fd, sink.size)
            shipment.held[name] = _Held(digest=sink.digest(), size=sink.size)
            return
        data = base64.b64encode(os.pread(fd, sink.size, 0)).decode("ascii")
        os.close(fd)
        shipment.specs.append({"name": name, "kind": "pickle", "data": data})
        shipment.held[name] = _Held(digest=sink.digest())


def _release(held: _Held) -> None:
    if held.blob is not None:
        BLOBS.release(held.blob)
