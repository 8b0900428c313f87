"""What is kept in a Modal account, over the loopback: the image, the sandboxes that are left."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from grpclib import GRPCError, Status

from fleet_rlm.cli.eval import main as fleet_eval
from fleet_rlm.cli.fleet import main as fleet
from fleet_rlm.sandbox import modal_create
from fleet_rlm.sandbox.modal_box import ModalSandbox
from fleet_rlm.sandbox.modal_recipe import Recipe
from tests.modal_loopback import LoopbackModal

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(
    project: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Command:
    def run_here(*words: str, main: Callable[[], None] = fleet) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["fleet", *words])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        return int(str(ended.value.code)), *capfd.readouterr()

    return run_here


def finding(out: str) -> dict[str, Any]:
    found: dict[str, Any] = next(row for row in json.loads(out) if row["name"] == "modal")
    return found


def test_the_image_is_published_once_and_then_no_run_builds_it(
    lab: LoopbackModal, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(modal_create, "_KITS", {})
    lab.published.clear()
    assert "no image published" in finding(command("doctor", "--json")[1])["detail"]
    code, out, err = command("sandbox", "build", "--json")
    assert code == 0, err
    first = json.loads(out)
    assert first["built"]
    assert list(lab.published) == [f"main/{first['name']}"]
    assert first["name"] == Recipe().image_name != Recipe(pip_packages=("polars",)).image_name
    lab.calls.clear()
    with ModalSandbox(Recipe(app_name="fleet-rlm")) as box:
        (sandbox,) = lab.live()
        assert sandbox.wanted.image_id == first["id"]
        assert box.alive
    assert lab.calls["ImageGetOrCreate"] == 0
    again = json.loads(command("sandbox", "build", "--json")[1])
    assert again == first | {"built": False}
    assert first["id"] in finding(command("doctor", "--json")[1])["detail"]


def test_doctor_looks_at_token_workspace_and_secret_but_at_no_value(
    lab: LoopbackModal, command: Command
) -> None:
    lab.secrets["st-1"] = {"name": "LITELLM", "env": {"DSPY_LLM_API_KEY": "of-nobody"}}
    code, out, _ = command("doctor", "--json")
    assert code == 0
    told = finding(out)["detail"]
    assert "workspace tester" in told
    assert "secret LITELLM is there and reaches no sandbox" in told
    assert "of-nobody" not in out
    Path("fleet.toml").write_text('sandbox = "modal"\n')
    rows = json.loads(command("doctor", "--json")[1])
    (sandbox,) = (row for row in rows if row["name"] == "sandbox")
    assert sandbox["detail"].startswith("modal: runs in a Modal sandbox")
    refused = GRPCError(Status.UNAUTHENTICATED, "Token ID is malformed")
    with lab.failing("WorkspaceNameLookup", refused):
        code, out, _ = command("doctor", "--json")
    assert code == 2
    assert not finding(out)["ok"]
    assert finding(out)["fix"] == "modal token new"


def test_what_is_left_is_ended_by_its_tags(lab: LoopbackModal, command: Command) -> None:
    """Expired ones, those of a run, all; never those of another user."""
    soon, later = (Recipe(app_name="fleet-rlm", timeout_s=seconds) for seconds in (1, 600))
    mine = Recipe(app_name="fleet-rlm", tags={"run": "needle--rlm"})
    others = Recipe(app_name="fleet-rlm", tags={"owner": "somebody-else"})
    boxes = [modal_create.create(recipe) for recipe in (later, mine, others)]
    old = modal_create.create(soon)
    lab.sandboxes[old.object_id].tags["expires"] = "1"
    code, out, err = command("sandbox", "gc", "--json", main=fleet_eval)
    assert code == 0, err
    found = json.loads(out)
    assert [own["id"] for own in found["ended"]] == [old.object_id]
    assert len(found["kept"]) == 2
    assert command("sandbox", "gc", "--run", "runs/needle--rlm")[1] == "1 ended, 0 still needed\n"
    assert command("sandbox", "gc", "--all")[1] == "1 ended, 0 still needed\n"
    (left,) = lab.live()
    assert left.id == boxes[2].object_id
    lab.end(left)
    code, _, err = command("sandbox", "gc", "--all", "--run", "x")
    assert code == 2
    assert len(err.splitlines()) == 1
