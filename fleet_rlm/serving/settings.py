"""What an HTTP server may be told: where it listens, whom it knows, and how much each may use."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fleet_rlm.errors import UsageError

STATE = Path(".fleet-rlm", "serving")
"""Default folder of chats, below the working directory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """Settings of one server.

    Raises:
        UsageError: reachable from other machines without a token.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    """0 for a free one."""

    tokens: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Identity -> its bearer token; empty: one identity, and requests from this machine only."""

    roots: tuple[Path, ...] = ()
    """Folders whose files clients may name."""

    state: Path = STATE
    """Folder that chats are kept in."""

    volume_name: str | None = None
    """Volume of the memory tools, one folder per identity; without it they are not offered."""

    concurrency: int = 64
    """Turns, commands and calls that run at once; further ones are refused."""

    rate: int = 600
    """Requests and messages of one identity in a minute."""

    max_body_bytes: int = 16 << 20
    """Size of a request or of a message."""

    session_ttl_s: float = 7 * 24 * 3600.0
    """A chat that was not used for this long is deleted."""

    timeout_s: float = 900.0
    """One turn, or one call of a program."""

    drain_s: float = 30.0
    """How long running turns may go on after SIGTERM."""

    io_timeout_s: float = 30.0
    """How long a client may take to send a request, or to take a piece of the answer."""

    def __post_init__(self) -> None:
        if not self.tokens and not self.is_loopback:
            raise UsageError(
                f"On {self.host} other machines reach this server, so it needs tokens.",
                fix="FLEET_RLM_TOKEN=$(openssl rand -hex 32), or --tokens FILE",
            )

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine reaches the server."""
        return is_loopback(self.host)


def is_loopback(host: str) -> bool:
    """Whether a host name or address always means this machine."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
