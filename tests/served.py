"""A served engine, for tests: on the simulated model, or on one that follows a script."""

from __future__ import annotations

import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from web import web_server

from fleet_rlm.cli.fleet import main as fleet
from fleet_rlm.config import resolve
from fleet_rlm.serving.app import Service
from fleet_rlm.serving.engine import Engine
from fleet_rlm.serving.server import listen
from fleet_rlm.serving.settings import ServerSettings

SOON_S = 1.0
NOTES = "Nothing here.\nThe access code for Halcyon-37 is 1234567.\n" + "More prose.\n" * 50
ASK = "What is the current access code for Halcyon-37? Answer with the code only. Delegate it."
ENDLESS = "import time\nwhile True:\n    time.sleep(0.01)"
ALICE, BOB = "a" * 32, "b" * 32
LOCAL = resolve({}, {}, Path("/nonexistent"))


def make_engine(bundle=None, resolved=LOCAL, lm=None, **limits):
    engine = Engine(bundle, resolved, {}, **limits)
    if lm is not None:
        engine.bench = replace(engine.bench, root=lm, sub=lm)
    return engine


@contextmanager
def serving(engine, folder, **settings):
    service = Service(engine, ServerSettings(state=folder / "state", **settings))
    listener = listen("127.0.0.1", 0, service.settings.io_timeout_s)
    with (
        web_server(service.asgi, listener, ws="auto", ws_max_size=1 << 20) as url,
        httpx.Client(base_url=url, timeout=30) as client,
    ):
        yield client


def wait_for(condition, seconds=SOON_S * 5):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def run_fleet(monkeypatch, capfd, *words):
    monkeypatch.setattr(sys, "argv", ["fleet-rlm", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        fleet()
    out, err = capfd.readouterr()
    return int(ended.value.code), out, err
