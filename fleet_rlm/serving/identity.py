"""Who asks: bearer tokens from a file or the environment, each the name of one identity."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping
from pathlib import Path

from fleet_rlm.config import read_toml
from fleet_rlm.errors import UsageError

LOCAL = "local"
"""Whoever asks a server on loopback that has no tokens."""

TOKEN_VARIABLE = "FLEET_RLM_TOKEN"
"""Environment variable with the token of the identity "owner"."""

_OWNER = "owner"
_SHORTEST = 16
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


def read_tokens(file: Path | None, env: Mapping[str, str]) -> dict[str, str]:
    """Identity -> token, of both sources.

    Args:
        file: TOML, a line `name = "token"` for each identity; None for no file.
        env: where `FLEET_RLM_TOKEN` is looked up.

    Raises:
        UsageError: other users may read the file, or a name, a token or the file is malformed.
    """
    found: dict[str, object] = {}
    if file is not None:
        try:
            found = dict(read_toml(file))
            mode = file.stat().st_mode
        except OSError as error:
            raise UsageError(f"Cannot read {file}: {error.strerror}.") from None
        if mode & 0o077:
            raise UsageError(f"Other users may read the tokens in {file}.", fix=f"chmod 600 {file}")
    if env.get(TOKEN_VARIABLE):
        found.setdefault(_OWNER, env[TOKEN_VARIABLE])
    tokens: dict[str, str] = {}
    for name, token in found.items():
        if not _NAME.fullmatch(name):
            raise UsageError(f"{name!r} cannot be an identity: letters, digits, - and _ only.")
        if not isinstance(token, str) or len(token) < _SHORTEST or not token.isascii():
            raise UsageError(
                f"The token of {name!r} must be {_SHORTEST} ASCII characters or more.",
                fix="openssl rand -hex 32",
            )
        tokens[name] = token
    if len(set(tokens.values())) < len(tokens):
        raise UsageError("Two identities have the same token.")
    return tokens


class Identities:
    """Knows who holds a token; keeps digests only.

    Args:
        tokens: identity -> token; empty when everybody is `LOCAL`.
    """

    def __init__(self, tokens: Mapping[str, str]) -> None:
        self._digests = {name: _digest(token) for name, token in tokens.items()}

    def identify(self, authorization: str | None) -> str | None:
        """Who sent this `Authorization` header; None when nobody that is known.

        Takes as long for a wrong token as for a right one.
        """
        if not self._digests:
            return LOCAL
        scheme, _, token = (authorization or "").partition(" ")
        given, found = _digest(token.strip()), None
        for name, digest in self._digests.items():
            if hmac.compare_digest(digest, given):
                found = name
        return found if scheme.lower() == "bearer" else None


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
