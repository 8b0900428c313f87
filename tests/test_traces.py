"""Traces of answers in MLflow: which, what they show, and that none is written twice."""

import gzip
import json
import shutil

import pytest

from fleet_rlm.errors import UsageError
from fleet_rlm.tracking import parse_trace
from fleet_rlm.tracking.choice import EXTREMES, FAILED, SAMPLED, chosen
from fleet_rlm.tracking.content import read_content
from fleet_rlm.tracking.layout import view_state
from fleet_rlm.tracking.spans import MAX_VALUE_CHARS, About, answer_span

ABOUT = About(suite="quick", program="rlm", models={"root": "big", "sub": "small"})


def usage(calls, usd=0.0, tokens=0):
    return {"calls": calls, "usd": usd, "input_tokens": tokens}


def ask(**more):
    query = {
        "kind": "llm", "prompt": "p", "prompt_chars": 9000, "prompt_digest": "d", "reply": "r",
        "reply_chars": 1, "seconds": 0.5, "after_s": 1.0, "usage": usage(1, 0.25, 100),
    }  # fmt: skip
    return query | more


CHILD = {
    "kind": "rlm", "query": "deeper?", "context_chars": 70, "answer": "x", "stop": "submitted",
    "seconds": 1.0, "after_s": 2.0, "usage": usage(1, 0.5, 50),
    "steps": [
        {"reasoning": "deep", "code": "SUBMIT('x')", "output": "FINAL", "seconds": 1.0,
         "think_s": 0.75, "usage": usage(1, 0.5, 50), "queries": []},
    ],
}  # fmt: skip
TOOL = {
    "kind": "tool", "name": "search", "arguments": "word='x'", "result": "", "after_s": 3.0,
    "seconds": 0.25, "usage": usage(0), "error": "LookupError: not there",
}  # fmt: skip
STEPS = [
    {"reasoning": "look", "code": "print(1)", "output": "1", "seconds": 4.0, "think_s": 0.5,
     "start_s": 0.25, "usage": usage(3, 1.0, 160), "queries": [ask(), CHILD, TOOL]},
    {"reasoning": "fail", "code": "1/0", "seconds": 1.0, "think_s": 1.0, "usage": usage(1, 0.125),
     "output": "1\n[Error] Traceback (most recent call last):\nZeroDivisionError: by zero\n",
     "queries": []},
]  # fmt: skip


def record(sample, score=1.0, **more):
    found = {
        "sample": sample, "epoch": 0, "task": "needle", "cluster": "c1", "length": 8000,
        "status": "scored", "stop": "submitted", "score": score, "official": score, "robust": score,
        "answer": "42", "tokens": 7990, "seconds": 6.0, "expected": "gold 42", "turns": 2,
        "usage": {"root": usage(3, 0.875, 70), "sub": usage(2, 0.5, 140)},
        "trajectory": f"trajectories/{sample}.0.json.gz",
    }  # fmt: skip
    return found | more


def write_folder(folder, records):
    (folder / "trajectories").mkdir(parents=True, exist_ok=True)
    header = {
        "run": folder.name, "created": "2026-01-02T03:04:05+00:00", "planned": len(records),
        "suite": {"name": "quick", "digest": "d1"},
        "arm": {"program": "rlm", "models": {"root": {"name": "big"}, "sub": {"name": "small"}}},
    }  # fmt: skip
    (folder / "run.json").write_text(json.dumps(header))
    (folder / "summary.json").write_text(json.dumps({"score": 0.5}))
    (folder / "records.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    for found in records:
        content = {"query": "Which?", "answer": found["answer"], "stop": "submitted"}
        content |= {"reasoning": "", "steps": STEPS}
        (folder / found["trajectory"]).write_bytes(gzip.compress(json.dumps(content).encode()))
    return folder


def flat(span, depth=0):
    yield depth, span
    for child in span.children:
        yield from flat(child, depth + 1)


def test_a_trace_is_the_tree_of_what_was_done_and_spent():
    stop = record("a", stop="iterations")
    trajectory = {"query": "Which?", "answer": "x" * 9000, "steps": STEPS, "reasoning": "read"}
    root = answer_span(ABOUT, stop, trajectory)
    assert [(depth, span.name, span.start_s, span.end_s) for depth, span in flat(root)] == [
        (0, "rlm", 0.0, 6.0),
        (1, "turn 1", 0.0, 4.0),
        (2, "think", 0.0, 0.5),
        (2, "sandbox.start", 0.5, 0.75),
        (2, "sandbox.execute", 0.75, 4.0),
        (3, "llm_query", 1.0, 1.5),
        (3, "rlm_query (depth 1)", 2.0, 3.0),
        (4, "turn 1", 2.0, 3.0),
        (5, "think", 2.0, 2.75),
        (5, "sandbox.execute", 2.75, 3.0),
        (3, "search", 3.0, 3.25),
        (1, "turn 2", 4.0, 5.0),
        (2, "think", 4.0, 5.0),
        (2, "sandbox.execute", 5.0, 5.0),
        (1, "extract", 5.0, 6.0),
    ]
    spans = [span for _, span in flat(root)]
    # Each call is booked by one span: their sum is what the answer spent.
    own = [span.usage for span in spans if span.usage]
    assert sum(part.usd for part in own) == pytest.approx(1.375)
    assert sum(part.calls for part in own) == 5
    assert [s.model for s in spans if s.kind == "LLM"] == ["big", "small", "small", "big", "big"]
    assert root.attributes["usd"] == 1.375
    assert root.inputs["context"] == {"suite": "quick", "context": "c1", "tokens": 7990}
    assert len(root.outputs["answer"]) < MAX_VALUE_CHARS + 50
    assert "9,000 characters" in root.outputs["answer"]
    errors = {span.name: span.error for span in spans if span.error}
    assert errors == {"search": TOOL["error"], "sandbox.execute": "ZeroDivisionError: by zero"}


def test_traces_of_other_programs_and_of_failures_need_no_steps():
    spent = {"root": usage(1, 0.5), "judge": usage(1, 0.25)}
    direct = answer_span(ABOUT, record("a", usage=spent), {"query": "q", "answer": "a"})
    assert [(s.name, s.model, s.usage.usd) for s in direct.children] == [
        ("answer", "big", 0.5),
        ("judge", None, 0.25),
    ]
    error = {"boundary": "provider", "type": "Timeout", "message": "no answer"}
    failed = answer_span(ABOUT, record("a", usage={}, error=error, score=None), {})
    assert (failed.error, failed.children) == ("provider: Timeout: no answer", [])
    older = {"steps": [{"thought": "of another program"}, {"code": "x", "output": ""}]}
    names = [span.name for _, span in flat(answer_span(ABOUT, record("a", usage={}), older))]
    assert names == ["rlm", "turn 1", "turn 2", "think", "sandbox.execute"]


def test_failed_best_worst_and_the_same_some_of_every_arm_are_traced():
    records = [record(f"s{i}", score=i / 200) for i in range(200)]
    records += [record(f"e{i}", score=None, status="error") for i in range(50)]
    picked = chosen(records, "sampled")
    names = {found["sample"] for found in picked}
    assert {f"s{i}" for i in (*range(EXTREMES), *range(200 - EXTREMES, 200))} <= names
    assert {f"e{i}" for i in range(FAILED)} <= names
    assert len(picked) <= SAMPLED + FAILED + 2 * EXTREMES
    other = [found | {"score": 0.5} for found in reversed(records) if found["status"] != "error"]
    shared = names & {found["sample"] for found in chosen(other, "sampled")}
    assert len(shared) >= SAMPLED // 2
    assert (len(chosen(records, "all")), chosen(records, "none")) == (250, [])
    assert parse_trace(None) == "sampled"
    with pytest.raises(UsageError, match="Did you mean 'sampled'"):
        parse_trace("sample")


def test_the_first_view_shows_metrics_that_runs_have(tmp_path):
    from test_tracking import write_run

    content = read_content(write_run(tmp_path / "a"))
    names = {metric.name for metric in content.metrics} | {"coverage"}
    view = json.loads(view_state())
    assert len(view_state()) <= 5000  # MLflow refuses a longer tag
    shown = [c.removeprefix("metrics.").strip("`") for c in view["selectedColumns"]]
    assert set(shown[:2]) == {"score", "score_lo"}
    drawn = {c["metricKey"] for c in view["compareRunCharts"] if "metricKey" in c}
    assert drawn <= names | {"usd_per_sample"}


def test_traces_are_in_the_store_once_with_assessments_and_without_secrets(
    tmp_path, mlflow_template, monkeypatch
):
    from mlflow import MlflowClient

    from fleet_rlm.tracking.writer import find_experiment, write_run

    monkeypatch.setenv("OTHER_API_KEY", "swordfish-123456")
    shutil.copy(mlflow_template, tmp_path / "mlflow.db")
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = find_experiment(client, "fleet-rlm", str(tmp_path / "mlartifacts"))
    records = [record("a", answer="swordfish-123456 42"), record("b", score=0.0)]
    folder = write_folder(tmp_path / "a", records)
    run_id = write_run(client, experiment, folder).info.run_id
    stored = client.search_traces(locations=[experiment], run_id=run_id)
    first = {trace.info.tags["fleet.sample"]: trace for trace in stored}
    trace = first["a"]
    assert set(first) == {"a", "b"}
    assert trace.info.token_usage["input_tokens"] == 210
    assert trace.info.cost["total_cost"] == 1.375
    names = [span.name for span in trace.data.spans]
    assert names[:3] == ["rlm", "turn 1", "think"]
    by_id = {span.span_id: span for span in trace.data.spans}
    child = next(span for span in trace.data.spans if span.name == "rlm_query (depth 1)")
    assert by_id[child.parent_id].name == "sandbox.execute"
    assert {a.name: a.value for a in trace.info.assessments} == {
        "score": 1.0, "official": 1.0, "robust": 1.0, "expected_answer": "gold 42",
    }  # fmt: skip
    assert b"swordfish" not in (tmp_path / "mlflow.db").read_bytes()
    # Again, and with one sample answered anew: the trace of its first answer is replaced.
    write_folder(folder, [records[0], record("b", score=1.0)])
    for _ in range(2):
        assert write_run(client, experiment, folder).info.run_id == run_id
        stored = client.search_traces(locations=[experiment], run_id=run_id)
        again = {trace.info.tags["fleet.sample"]: trace.info.trace_id for trace in stored}
        assert len(stored) == 2
        assert again["a"] == trace.info.trace_id
        assert again["b"] != first["b"].info.trace_id


def test_a_store_that_fills_up_at_any_point_takes_the_rest_later_and_nothing_twice(
    tmp_path, mlflow_template
):
    import resource
    import signal

    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    from fleet_rlm.tracking.writer import find_experiment, write_run

    store = tmp_path / "mlflow.db"
    shutil.copy(mlflow_template, store)
    client = MlflowClient(f"sqlite:///{store}")
    experiment = find_experiment(client, "fleet-rlm", str(tmp_path / "mlartifacts"))
    folder = write_folder(tmp_path / "a", [record(f"s{i}") for i in range(12)])
    failures, room = 0, 0
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        while True:
            room += 40_000  # an attempt that fails leaves the store as large as it was
            resource.setrlimit(resource.RLIMIT_FSIZE, (store.stat().st_size + room, limits[1]))
            try:
                run = write_run(client, experiment, folder, trace="all")
                break
            except MlflowException as error:
                failures += "disk" in str(error)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert failures >= 3
    assert len(client.search_runs([experiment])) == 1
    traces = client.search_traces(locations=[experiment], run_id=run.info.run_id)
    assert {trace.info.tags["fleet.sample"] for trace in traces} == {f"s{i}" for i in range(12)}
    assert [len(trace.data.spans) for trace in traces] == [15] * 12
    assert all(len(trace.info.assessments) == 4 for trace in traces)
    assert len(client.get_metric_history(run.info.run_id, "score_by_length")) == 1


def test_autolog_gives_any_dspy_program_slim_traces(tmp_path, mlflow_template, monkeypatch):
    import dspy
    from mlflow import MlflowClient
    from scripted import action, scripted_lm

    from fleet_rlm import RLM
    from fleet_rlm.tracking.slim import MAX_CHARS, Autolog

    monkeypatch.setenv("OTHER_API_KEY", "swordfish-123456")
    shutil.copy(mlflow_template, tmp_path / "mlflow.db")
    monkeypatch.chdir(tmp_path)

    def script(prompt, _number):
        if "REPL" not in prompt:
            return "sub reply swordfish-123456"
        if "sub reply" not in prompt:
            return action("print(llm_query_batched(['one', 'two']))")
        return action("SUBMIT('blue')") if "mend" in prompt else dspy.LMServerError("down")

    tracer = Autolog(f"sqlite:///{tmp_path}/mlflow.db", "my-app")
    with dspy.context(lm=scripted_lm(script), callbacks=[tracer]):
        program = RLM("context, query -> answer")
        with pytest.raises(dspy.LMServerError):
            program(context="The sky is blue. " * 100_000, query="Which?")
        program(context="The sky is blue. " * 100_000, query="Which? mend")
        dspy.Parallel(num_threads=2)([(program, {"context": "x", "query": "mend"})] * 2)
    assert tracer.flush(60)
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.get_experiment_by_name("my-app").experiment_id
    traces = client.search_traces(locations=[experiment])
    assert len(traces) == 4
    (failed,) = [trace for trace in traces if trace.info.state == "ERROR"]
    assert "LMServerError" in failed.data.spans[0].status.description
    whole = next(t for t in traces if "mend" in t.info.request_preview and t is not failed)
    assert whole.info.tags["mlflow.traceName"] == "RLM"
    assert whole.info.token_usage["total_tokens"] == 4 * 15  # two actions and two sub-queries
    by_id = {span.span_id: span for span in whole.data.spans}
    asked = [span for span in whole.data.spans if span.name == "llm_query_batched"]
    below = [span for span in whole.data.spans if span.parent_id == asked[0].span_id]
    assert [span.name for span in below] == ["LM", "LM"]
    assert by_id[asked[0].parent_id].name == "sandbox.execute"
    # One span for fields, messages and tokens of a prediction that took one call.
    predicted = [span for span in whole.data.spans if span.name == "Predict"]
    assert [span.span_type for span in predicted] == ["LLM", "LLM"]
    assert {"iteration", "messages"} <= set(predicted[0].inputs)
    assert {"code", "completion"} <= set(predicted[0].outputs)
    # Executions find the sandbox running; what the spans show is not in the answer once more.
    (started,) = [span for span in whole.data.spans if span.name == "sandbox.start"]
    assert not started.inputs
    assert not started.outputs
    assert whole.data.spans[0].outputs["answer"] == "blue"
    assert not {"trajectory", "trail"} & set(whole.data.spans[0].outputs)
    assert len(whole.data.spans[0].inputs.get("context", "")) < MAX_CHARS + 50
    assert b"swordfish" not in (tmp_path / "mlflow.db").read_bytes()
    # A store that is away is said once, and the program goes on.
    away = Autolog("sqlite:////proc/nowhere/mlflow.db", "my-app")
    said = []
    monkeypatch.setattr("warnings.warn", lambda *words, **_: said.append(words))
    with dspy.context(lm=scripted_lm(lambda *_: "[[ ## b ## ]]\nx"), callbacks=[away]):
        for _ in range(2):
            assert dspy.Predict("a -> b")(a="x").b == "x"
            away.flush(20)
    assert len(said) == 1
