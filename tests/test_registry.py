"""Bundles in MLflow's model registry: registered once, aliases, prompts, read back."""

import json
import os
import shutil
from pathlib import Path

import pytest
from bundles import rewrite
from served import make_engine

import fleet_rlm
from fleet_rlm import RLM
from fleet_rlm.errors import UsageError
from fleet_rlm.program.registry import AnswerQuery
from fleet_rlm.tracking.registry import Registry

CODE = Path(fleet_rlm.__file__).parent / "serving" / "pyfunc.py"


@pytest.fixture
def environment():
    """What the registry sets for MLflow is set for this test alone."""
    import mlflow

    before = dict(os.environ)
    yield
    mlflow.set_tracking_uri(None)
    mlflow.set_registry_uri(None)
    os.environ.clear()
    os.environ.update(before)


def test_a_bundle_is_registered_once_aliased_and_read_back(
    tmp_path, mlflow_template, monkeypatch, environment
):
    import mlflow

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OTHER_API_KEY", "swordfish-123456")
    registry = Registry(tmp_path)
    with pytest.raises(UsageError, match="No registered bundle"), registry.fetched("models:/a@b"):
        pass
    shutil.copy(mlflow_template, tmp_path / "mlflow.db")
    first = fleet_rlm.save(RLM(AnswerQuery), tmp_path / "first")

    def reword(state):
        state["predictors"]["generate_action"]["instructions"] = "Read it twice."

    second = rewrite(first, tmp_path / "second", program=reword)
    for bundle, number in ((first, "1"), (first, "1"), (second, "2"), (first, "1"), (second, "2")):
        found = registry.register(bundle, "mine", alias="champion", code=CODE)
        assert (found.number, found.uri) == (number, "models:/mine@champion")
    client = mlflow.MlflowClient()
    aliases = client.get_registered_model("mine").aliases
    assert {name: str(version) for name, version in aliases.items()} == {
        "champion": "2",
        "previous": "1",
    }
    texts = client.search_prompt_versions("mine.generate_action")
    assert len(texts) == 2  # a version for each text
    champion = client.get_prompt_version_by_alias("mine.generate_action", "champion")
    assert champion.template == "Read it twice."

    loaded = fleet_rlm.load("models:/mine@champion")
    assert loaded.generate_action.signature.instructions == "Read it twice."
    served = make_engine("models:/mine@champion").describe()
    manifest = json.loads((second / "manifest.json").read_text())
    assert served["bundle"]["digest"] == manifest["bundle"]
    before = fleet_rlm.load("models:/mine/1").generate_action.signature.instructions
    assert before in {prompt.template for prompt in texts} - {"Read it twice."}
    with pytest.raises(UsageError, match="No registered bundle 'models:/mine@nobody'"):
        fleet_rlm.load("models:/mine@nobody")
    kept = [path for path in (tmp_path / "mlartifacts").rglob("*") if path.is_file()]
    assert {path.name for path in kept} >= {"manifest.json", "program.json", "pyfunc.py", "MLmodel"}
    assert not [path for path in kept if path.suffix in (".pkl", ".pickle")]
    assert not any(b"swordfish" in path.read_bytes() for path in (*kept, tmp_path / "mlflow.db"))
    assert json.loads((first / "manifest.json").read_text())["bundle"] in str(
        client.get_model_version("mine", "1").description
    )
