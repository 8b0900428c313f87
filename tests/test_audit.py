"""The audit: shipped suites pass, and each kind of fault is found."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from fleet_rlm.cli.eval import app
from fleet_rlm.runner import leaks
from fleet_rlm.scoring.routing import Taken, taken, verdict
from fleet_rlm.suites.audit import audit, audit_task
from fleet_rlm.suites.generators.base import Draft
from fleet_rlm.suites.plan import WindowCache
from fleet_rlm.suites.suite import Task, load_suite

EVALS = Path(__file__).parents[1] / "evals"
GENERATED = [
    path.stem
    for path in sorted(EVALS.glob("*.toml"))
    if all(isinstance(task, Task) for task in load_suite(path).tasks)
]


def suite_of(name):
    return load_suite(EVALS / f"{name}.toml")


@pytest.mark.parametrize("name", GENERATED)
def test_shipped_suites_pass_and_have_a_card(name):
    suite = suite_of(name)
    assert suite.card
    shortest = min(length for task in suite.tasks for length in task.lengths)
    checks = list(audit(suite.override({"lengths": shortest}), 3))
    assert [check for check in checks if not check.passed] == []


def test_every_card_says_what_a_reviewer_must_know():
    for path in EVALS.glob("*.toml"):
        card = load_suite(path).card
        assert card, path.name
        told = (card.measures, card.licence, card.size, card.source, card.floors, *card.defects)
        assert all(told), path.name
        assert card.defects, path.name
    paper = suite_of("rlm-paper").card
    assert len(paper.reference) == 25
    assert paper.reference["GPT-5 RLM depth 1"]["pairs"] == 58.0


def failed_after(change):
    suite = suite_of("needle").override({"lengths": 8000, "windows": 1})
    (task,) = suite.tasks
    samples = [
        replace(planned, write=lambda p=planned: change(p.write()), windows=WindowCache())
        for planned in suite.plan()
    ]
    return {check.name for check in audit_task(task, samples) if not check.passed}


def with_first(draft, **values):
    return replace(draft, questions=(replace(draft.questions[0], **values), *draft.questions[1:]))


def test_faults_are_found():
    assert failed_after(lambda draft: draft) == set()
    assert failed_after(lambda draft: with_first(draft, gold=("1234567",))) == {"gold"}
    twice = failed_after(lambda d: replace(d, questions=(d.questions[0],) * len(d.questions)))
    assert twice == {"duplicates"}
    assert failed_after(lambda draft: replace(draft, tokens=draft.tokens - 1)) == {"length"}


def test_evidence_in_one_part_of_the_text_is_found(monkeypatch):
    suite = suite_of("needle").override({"lengths": 8000, "windows": 3})
    task, plan = suite.tasks[0], suite.plan()

    def positions(change):
        samples = [
            replace(planned, write=lambda p=planned: change(p.write()), windows=WindowCache())
            for planned in plan
        ]
        return next(check for check in audit_task(task, samples) if check.name == "positions")

    def early(draft):
        asked = tuple(replace(q, position=q.position / 4) for q in draft.questions)
        return replace(draft, questions=asked)

    assert positions(lambda draft: draft).passed
    assert not positions(early).passed


def test_a_benchmark_whose_answers_are_known_without_reading_fails(project, command):
    """What the simulated model says of a text that it was not shown is the gold answer here."""
    rows = [
        {"context": f"Nothing is said in part {n}.", "question": f"Who is at {n}?", "answer": gold}
        for n, gold in enumerate(["I am not sure."] * 9 + ["Ines"])
    ]
    Path("known.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    env = {"FLEET_DATA_DIR": str(project / "cache")}
    assert command("init", "known.jsonl", env=env).returncode == 0
    done = command("audit", "known", "--attempts", "0", env=env)
    assert done.returncode == 1, done.stdout
    assert "FAIL  questions       blind       0.90 without the text, floor 0.26" in done.stdout


def bench():
    from fleet_rlm.config import resolve
    from fleet_rlm.ledger import Limits
    from fleet_rlm.lm.connect import specify_pair
    from fleet_rlm.program.find import find_program, parse_settings
    from fleet_rlm.runner.arm import Arm
    from fleet_rlm.runner.run import make_bench
    from fleet_rlm.runner.sandboxes import specify_sandbox
    from fleet_rlm.sandbox.redact import Redactor

    resolved = resolve({"model": "sim"}, {}, Path.cwd())
    root, sub = specify_pair(resolved, {})
    arm = Arm(
        program="rlm",
        entry=find_program("rlm"),
        settings=parse_settings("rlm", {}),
        root=root,
        sub=sub,
        sandbox=specify_sandbox(resolved.config),
        limits=Limits(),
    )
    return make_bench(arm, Redactor.from_env({}))


def test_a_leak_into_the_sandbox_is_found():
    planned = suite_of("needle").override({"lengths": 8000}).plan()[0]
    assert leaks.search_leaks([planned], bench()).leaks == ()

    def leaky() -> Draft:
        draft = planned.write()
        marker = leaks._marker(planned.id)
        asked = [replace(q, query=f"{q.query} ({marker}?)") for q in draft.questions]
        return replace(draft, blocks=[*draft.blocks, marker], questions=tuple(asked))

    found = leaks.search_leaks([replace(planned, write=leaky)], bench())
    assert found.prompts
    assert found.traces == 1
    places = {leak.rpartition(": ")[2] for leak in found.leaks}
    assert places == {"prompt", "sandbox", "trajectory", "trace"}


def test_the_command_exits_1_on_a_failure(capsys, monkeypatch):
    from typer.testing import CliRunner

    arguments = [
        "audit",
        "quickstart",
        "--set",
        "lengths=[4000, 8000]",
        "--attempts",
        "0",
    ]
    monkeypatch.setattr("fleet_rlm.suites.audit._FLOOR", 1.0)
    done = CliRunner().invoke(app, [*arguments, "--json"], standalone_mode=False)
    assert done.return_value == 0
    assert json.loads(done.stdout)["failed"] == 0
    monkeypatch.setattr("fleet_rlm.suites.audit._FLOOR", -1.0)
    done = CliRunner().invoke(app, arguments, standalone_mode=False)
    assert done.return_value == 1
    assert "FAIL  needle          floor" in done.stdout


def test_the_tool_that_an_answer_took_is_told_from_its_steps():
    llm = {"kind": "llm"}
    child = {"kind": "rlm", "steps": [{"queries": [llm, llm]}]}
    assert taken([]) == Taken(0, 0)
    assert taken([{"queries": [llm]}, {}]).route == "one"
    assert taken([{"queries": [llm] * 9}]).route == "batch"
    assert taken([{"queries": [child, llm]}]) == Taken(3, 1)
    assert verdict("child", taken([{"queries": [child]}]).route) == "right"
    assert verdict("python", "batch") == "over"
    assert verdict("batch", "one") == "under"
    assert verdict("one", "python") == "right"
