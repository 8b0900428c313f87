"""The real Modal, for whoever has an account: `pytest -m modal_live tests/test_modal_live.py`.

Five tests, five short sandboxes, less than $0.05. Without an account they are skipped and say so;
the default run leaves them out.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest

from fleet_rlm import ModalInterpreter, ModalVolume
from fleet_rlm.errors import SandboxUnavailable
from fleet_rlm.sandbox import modal_account, modal_create
from fleet_rlm.sandbox.interpreter import CellError
from fleet_rlm.sandbox.modal_gc import reap
from fleet_rlm.sandbox.modal_recipe import Recipe

pytestmark = [pytest.mark.modal_live, pytest.mark.timeout(900)]
APP = "fleet-rlm-live-test"


@pytest.fixture(autouse=True)
def account() -> None:
    try:
        modal_create.check_token()
    except SandboxUnavailable as error:
        pytest.skip(f"no Modal account: {error}")


@pytest.fixture
def session() -> Iterator[ModalInterpreter]:
    with ModalInterpreter(app_name=APP, timeout=300, execute_timeout=20) as opened:
        yield opened


def test_the_account_is_found() -> None:
    assert modal_account.examine(Recipe(app_name=APP)).workspace


def test_a_session_keeps_state_and_reaches_nothing(session: ModalInterpreter) -> None:
    session.execute("import os, socket; kept = 41")
    assert session.execute("kept + 1") == 42
    with pytest.raises(CellError):
        session.execute("socket.create_connection(('1.1.1.1', 443), 3)")
    names = session.execute("sorted(os.environ)")
    assert not [name for name in names if "TOKEN_SECRET" in name or "API_KEY" in name]


def test_a_context_travels_once_and_an_interrupt_keeps_it(session: ModalInterpreter) -> None:
    text = "ü words " * (1 << 17)
    for _ in range(3):
        assert session.execute("len(context)", {"context": text}) == len(text)
    session.timeout = 3
    with pytest.raises(CellError, match="interrupted"):
        session.execute("kept = 1\nwhile True: pass", {"context": text})
    assert session.execute("kept") == 1
    assert session.bytes_sent <= 1.05 * len(text.encode())


def test_a_volume_outlives_its_sandbox() -> None:
    name = f"fleet-rlm-live-{uuid.uuid4().hex[:8]}"
    with ModalInterpreter(app_name=APP, timeout=300, volume_name=name) as session:
        session.execute("open('/data/memory/note.txt', 'w').write('kept')")
        session.commit()
        assert ModalVolume(name).read("memory/note.txt") == "kept"
    modal = modal_create.import_modal()
    modal.Volume.objects.delete(name)


def test_a_lost_sandbox_is_replaced_and_nothing_is_left() -> None:
    run = f"live-{uuid.uuid4().hex[:8]}"
    with ModalInterpreter(app_name=APP, timeout=300, tags={"run": run}) as session:
        session.execute("kept = 7")
        assert len(reap([APP], run=run).ended) == 1
        assert session.execute("kept") == 7
    assert not reap([APP], run=run).ended
