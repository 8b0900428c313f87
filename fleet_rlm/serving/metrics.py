"""What a server counts, as Prometheus reads it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, generate_latest

from fleet_rlm.ledger import Ledger

MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 900)


class Metrics:
    """The numbers of one server; each has its own.

    Args:
        about: constant labels: program, model, model kind, version.
    """

    def __init__(self, about: Mapping[str, str]) -> None:
        registry = self._registry = CollectorRegistry()
        Info("fleet", "What is served, and by which kind of model.", registry=registry).info(
            dict(about)
        )
        self.requests = Counter(
            "fleet_requests",
            "HTTP requests and WebSocket connections, by route and status.",
            ["route", "method", "status"],
            registry=registry,
        )
        self.turns = Counter(
            "fleet_turns",
            "Turns, commands and calls that ended, by kind and outcome.",
            ["kind", "outcome"],
            registry=registry,
        )
        self.turn_seconds = Histogram(
            "fleet_turn_seconds",
            "Their wall time.",
            ["kind"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.running = Gauge(
            "fleet_turns_running", "Turns, commands and calls that run.", registry=registry
        )
        self._calls = Counter("fleet_model_calls", "Model calls.", ["role"], registry=registry)
        self._tokens = Counter("fleet_tokens", "Tokens.", ["role", "direction"], registry=registry)
        self._usd = Counter("fleet_usd", "US dollars.", ["role"], registry=registry)

    def watch(self, name: str, about: str, read: Callable[[], float]) -> None:
        """Show a number that is kept elsewhere."""
        Gauge(name, about, registry=self._registry).set_function(read)

    def book(self, ledger: Ledger) -> None:
        """Count what a turn has spent."""
        for role, usage in ledger.by_role.items():
            self._calls.labels(role).inc(usage.calls)
            self._tokens.labels(role, "input").inc(usage.input_tokens)
            self._tokens.labels(role, "output").inc(usage.output_tokens)
            self._usd.labels(role).inc(usage.usd)

    def render(self) -> bytes:
        """All of them, as text."""
        return generate_latest(self._registry)
