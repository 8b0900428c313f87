"""`ContextRef`: a long context by reference: examples, demos, traces and pickles stay small."""

from __future__ import annotations

import hashlib
from pathlib import Path

import dspy

from fleet_rlm.errors import DataError

BLOCK = 1 << 20


class ContextRef(dspy.SandboxSerializable):
    """A text file, named by path and content.

    It is a few hundred bytes wherever it goes; the text is read when a program runs, checked
    against the digest, and goes to the sandbox once. The model is shown type `str`, the true length
    and a preview.

    Args:
        path: the file, UTF-8 text.
        sha256: of the file's bytes, in hexadecimal.
        chars: length of the text in characters.
        preview: beginning and end of the text, for prompts.
    """

    def __init__(self, path: str | Path, sha256: str, chars: int, preview: str) -> None:
        self.path = str(path)
        self.sha256 = sha256
        self.chars = chars
        self.preview = preview

    @classmethod
    def from_file(cls, path: str | Path, *, preview_chars: int = 1000) -> ContextRef:
        """Refer to a file; reads it once.

        Args:
            path: UTF-8 text.
            preview_chars: characters of the preview, half from each end.

        Raises:
            DataError: the file cannot be read or is not UTF-8.
        """
        text, digest = _read(Path(path))
        return cls(Path(path).absolute(), digest, len(text), shorten(text, preview_chars))

    def read(self) -> str:
        """The text.

        Raises:
            DataError: the file is gone, or no longer what the reference was made of.
        """
        text, digest = _read(Path(self.path))
        if digest != self.sha256:
            raise DataError(f"{self.path} has changed since it was referred to.")
        return text

    def sandbox_setup(self) -> str:
        """Code to run before the assignment: none is needed for a text."""
        return ""

    def to_sandbox(self) -> bytes:
        """The text in UTF-8: what the sandbox is sent.

        Raises:
            DataError: see `read`.
        """
        return self.read().encode()

    def sandbox_assignment(self, var_name: str, data_expr: str) -> str:
        """Code that gives the variable `var_name` the text, which `data_expr` evaluates to."""
        return f"{var_name} = {data_expr}"

    def rlm_preview(self, max_chars: int = 500) -> str:
        """The preview, shortened to `max_chars` characters."""
        return shorten(self.preview, max_chars)

    def __repr__(self) -> str:
        return f"ContextRef({self.sha256[:12]}, {self.chars:,} characters)"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ContextRef) and other.sha256 == self.sha256

    def __hash__(self) -> int:
        return hash(self.sha256)


def shorten(text: str, limit: int) -> str:
    """`text`, or its two ends around "..." when it is longer than `limit` characters."""
    if len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]}...{text[len(text) - (limit - half) :]}"


def _read(path: Path) -> tuple[str, str]:
    digest = hashlib.sha256()
    blocks = bytearray()
    try:
        with path.open("rb") as file:
            while block := file.read(BLOCK):
                digest.update(block)
                blocks += block
        return blocks.decode("utf-8"), digest.hexdigest()
    except OSError as error:
        raise DataError(f"Cannot read {path}: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text: byte {error.start}.") from error
