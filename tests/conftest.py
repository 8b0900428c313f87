"""What every test gets: nothing beyond this machine, and none of the user's keys and stores."""

from __future__ import annotations

import ipaddress
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import hypothesis
import pytest

if TYPE_CHECKING:
    from tests.modal_loopback import LoopbackModal

LIVE = "modal_live"
"""Marker of the tests that need an account on Modal; asked for by that word alone."""
_USERS_OWN = ("DSPY_", "MLFLOW_", "MODAL_", "OPENAI_", "ANTHROPIC_")
_attempts: list[str] = []


def pytest_configure(config: pytest.Config) -> None:
    """Before anything is imported that reads the environment; child processes inherit it."""
    live = config.option.markexpr == LIVE
    for name in list(os.environ):
        kept = live and name.startswith("MODAL_")
        if not kept and (name.startswith(_USERS_OWN) or name.endswith("_API_KEY")):
            del os.environ[name]
    # A checkout is tested as it stands, installed or not, also by the commands that tests start.
    paths = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    os.environ["DSPY_CACHEDIR"] = tempfile.mkdtemp(prefix="dspy-cache-")
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    # A shared CI machine is slow now and then, and a failure there must be the same on any other.
    hypothesis.settings.register_profile("suite", deadline=None, derandomize="CI" in os.environ)
    hypothesis.settings.load_profile("suite")
    if not live:
        socket.socket.connect = _guarded(socket.socket.connect)  # type: ignore[method-assign]
        socket.socket.connect_ex = _guarded(socket.socket.connect_ex)  # type: ignore[method-assign]


def pytest_unconfigure(config: pytest.Config) -> None:
    shutil.rmtree(os.environ["DSPY_CACHEDIR"], ignore_errors=True)


def _guarded(connect: Any) -> Any:
    def guarded(self: socket.socket, address: Any) -> Any:
        if self.family in (socket.AF_INET, socket.AF_INET6) and not _is_here(address[0]):
            _attempts.append(f"{address[0]}:{address[1]}")
            raise ConnectionRefusedError(f"tests are offline: {address}")
        return connect(self, address)

    return guarded


def _is_here(host: str) -> bool:
    return host == "localhost" or ipaddress.ip_address(host.partition("%")[0]).is_loopback


@pytest.fixture(autouse=True)
def offline() -> Iterator[None]:
    """Fails a test that reached for the network, even where the code made do without it."""
    _attempts.clear()
    yield
    assert not _attempts, f"reached for the network: {_attempts}"


@pytest.fixture(scope="session")
def mlflow_template(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A prepared, empty MLflow store to copy: MLflow takes 1.5-10 s to make one."""
    from fleet_rlm.tracking.store import prepare_store

    base = tmp_path_factory.getbasetemp()
    template = (base if worker_id == "master" else base.parent) / "mlflow-template.db"
    prepare_store(f"sqlite:///{template}")
    return template


@pytest.fixture(scope="session")
def served_modal() -> Iterator[LoopbackModal]:
    """The loopback, started once: the SDK keeps its connection for as long as the process lives."""
    from tests.modal_loopback import LoopbackModal

    with LoopbackModal() as lab:
        yield lab


@pytest.fixture
def lab(
    served_modal: LoopbackModal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[LoopbackModal]:
    """The loopback as the Modal that the SDK finds, with no knob turned."""
    for name, value in served_modal.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # a pace of its own
    served_modal.reset()
    yield served_modal
    left = served_modal.live()
    for sandbox in left:
        served_modal.end(sandbox)
    assert not left, "a sandbox was left behind"


class Done(NamedTuple):
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def project(tmp_path, monkeypatch):
    """An empty project folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def command(capfd, monkeypatch, project):
    """Run `fleet-eval` in this process: importing dspy anew costs two seconds a time."""

    from fleet_rlm.cli.eval import main

    def run_here(*words, env=None):
        with monkeypatch.context() as patch:
            for name, value in (env or {}).items():
                patch.setenv(name, value)
            patch.setattr(sys, "argv", ["fleet-eval", *map(str, words)])
            capfd.readouterr()
            with pytest.raises(SystemExit) as ended:
                main()
        return Done(int(ended.value.code), *capfd.readouterr())

    return run_here


@pytest.fixture(scope="session")
def calm(tmp_path_factory):
    """A small compilation that nothing disturbed, made once for all that look at one."""
    from test_study import compile_job

    return compile_job(tmp_path_factory.mktemp("calm") / "job")
