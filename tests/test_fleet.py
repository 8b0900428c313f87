"""`fleet-rlm run` and `doctor`, and evaluation from Python."""

import json
import sys

import dspy
import pytest
from scripted import action, scripted_lm

import fleet_rlm
from fleet_rlm.cli.fleet import main as fleet
from fleet_rlm.errors import UsageError


@pytest.fixture
def command(capfd, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)

    def run_here(*words):
        monkeypatch.setattr(sys, "argv", ["fleet-rlm", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            fleet()
        out, err = capfd.readouterr()
        return int(ended.value.code), out, err

    return run_here


def test_one_question_about_one_file(command, tmp_path):
    (tmp_path / "notes.txt").write_text(
        "Nothing here.\nThe access code for Halcyon-37 is 1234567.\n" + "More prose.\n" * 300
    )
    query = "What is the current access code for Halcyon-37? Answer with the code only."
    words = ("run", "--context", "notes.txt", "--query", query)
    code, out, err = command(*words)
    assert (code, out) == (0, "1234567\n")
    assert "simulated model" in err
    code, out, err = command(*words, "--json", "--trace")
    found = json.loads(out)
    assert (found["answer"], found["stop"]) == ("1234567", "submitted")
    assert found["usage"]["root"]["calls"] == found["turns"]
    assert "--- turn 1" in err


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--context", "absent.txt", "--query", "q"], "Cannot read absent.txt"),
        (["--context", "empty-query.txt", "--query", " "], "--query is empty"),
        (["--context", "binary.bin", "--query", "q"], "not UTF-8"),
        (["--query", "q"], "--context"),
    ],
)
def test_bad_input_is_one_line(command, tmp_path, words, part):
    (tmp_path / "empty-query.txt").write_text("text")
    (tmp_path / "binary.bin").write_bytes(b"\xff\x00\xfe")
    code, out, err = command("run", *words)
    assert (code, out) == (2, "")
    assert part in err
    assert len(err.splitlines()) == 1


def test_doctor_names_level_model_and_store(command):
    code, out, _ = command("doctor", "--json")
    findings = {finding["name"]: finding for finding in json.loads(out)}
    names = ["python", "sandbox", "model", "price", "modal", "store", "cache", "disk"]
    assert list(findings) == names
    assert "modal token new" in findings["modal"]["detail"]
    assert "locked box" in findings["sandbox"]["detail"]
    assert "no key needed" in findings["model"]["detail"]
    assert code == 0


def test_doctor_prints_the_mend_of_what_fails(command, monkeypatch):
    monkeypatch.setenv("DSPY_LM_MODEL", "openai/gpt-5-mini")
    code, out, _ = command("doctor")
    assert code == 2
    assert "FAIL" in out
    assert "Try: export DSPY_LLM_API_KEY" in out


@pytest.mark.parametrize(
    ("variable", "value", "name", "mend"),
    [
        ("MLFLOW_TRACKING_URI", "http://127.0.0.1:9", "store", "another MLFLOW_TRACKING_URI"),
        ("MLFLOW_TRACKING_URI", "sqlite:////etc/hostname/none.db", "store", "MLFLOW_TRACKING_URI"),
        ("MLFLOW_TRACKING_URI", "foo://x", "store", "MLFLOW_TRACKING_URI"),
        ("DSPY_LM_API_BASE", "localhost", "config", "another DSPY_LM_API_BASE"),
        ("FLEET_RLM_LANDLOCK_ABI", "0", "sandbox", "unset FLEET_RLM_LANDLOCK_ABI"),
        ("FLEET_DATA_DIR", "/etc/hostname/none", "cache", "export FLEET_DATA_DIR="),
        ("DSPY_LM_MODEL", "openai/nobody-sells-it", "price", "--price"),
    ],
)
def test_doctor_finds_what_would_fail_later(command, monkeypatch, variable, value, name, mend):
    monkeypatch.setenv(variable, value)
    code, out, _ = command("doctor", "--json")
    assert code == (5 if name == "sandbox" else 2)
    finding = next(found for found in json.loads(out) if found["name"] == name)
    assert not finding["ok"]
    assert mend in finding["fix"]


def test_evaluate_and_open_a_run_from_python(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = {"lengths": [4000], "windows": 1}
    run = fleet_rlm.evaluate("rlm", "quickstart", overrides=small, concurrency=2)
    frame = run.records()
    assert len(frame) == run.summary["samples"] == 6
    assert frame["score"].mean() == pytest.approx(run.summary["score"])
    assert frame["usd"].sum() == pytest.approx(run.summary["usage"]["usd"])
    again = fleet_rlm.open_run(run.folder)
    assert again.summary == run.summary
    assert again.lock["arm"]["model_kind"] == "simulated"
    with pytest.raises(UsageError, match="not the folder of a run"):
        fleet_rlm.open_run(tmp_path)


def test_a_program_object_of_the_users_own_is_evaluated(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    class Shout(dspy.Module):
        def __init__(self):
            super().__init__()
            self.ask = dspy.Predict("context, query -> answer")

        def forward(self, context, query):
            return self.ask(context=context, query=query)

    small = {"lengths": [2000], "windows": 1, "questions": 1}
    run = fleet_rlm.evaluate(Shout(), "quickstart", overrides=small)
    assert run.summary["program"] == "Shout"
    assert run.summary["scored"] == 3
    stock = dspy.RLM("context, query -> answer", max_iters=8)
    run = fleet_rlm.evaluate(stock, "quickstart", overrides=small)
    assert (run.summary["program"], run.summary["coverage"]) == ("RLM", 1.0)


def test_the_interpreter_is_a_drop_in_for_plain_dspy():
    lm = scripted_lm(lambda *_: action("SUBMIT(str(2 + 2))"))
    with dspy.context(lm=lm, interpreter_factory=fleet_rlm.LocalInterpreter):
        assert dspy.RLM("question -> answer")(question="2 + 2?").answer == "4"


def test_public_names_are_listed_typed_and_found():
    for name in fleet_rlm.__all__:
        assert getattr(fleet_rlm, name) is not None
    assert set(fleet_rlm.__all__) <= set(dir(fleet_rlm))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        fleet_rlm.nothing  # noqa: B018
