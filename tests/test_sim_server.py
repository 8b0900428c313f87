"""The simulated model over HTTP: what it answers, how it fails, what a real client makes of it."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from urllib.parse import urlsplit

import dspy
import pytest
from dspy.lm15 import Message, Request

from fleet_rlm.errors import UsageError
from fleet_rlm.ledger import Ledger
from fleet_rlm.lm.connect import connect, specify
from fleet_rlm.lm.simulated import LABEL, SimulatedEngine
from fleet_rlm.lm.simulated.knobs import FAULTS, Knobs, parse_faults
from fleet_rlm.lm.simulated.launch import simulated_server

QUESTION = "Which code is current for the red depot?\n\nthe red depot: access code 4711-22."


@pytest.fixture(scope="module")
def running():
    with simulated_server() as server:
        yield server


@pytest.fixture
def server(running):
    quiet = {"faults": {}, "fail_first": {}, "latency_ms": 0, "rpm": 0, "max_num_seqs": 0}
    running.configure(**quiet, api_key="", echo="", context_window=128_000, hang_s=30, seed=0)
    return running


def post(server, body, path="/chat/completions", key="sim"):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    request = urllib.request.Request(server.url + path, data, headers)
    with urllib.request.urlopen(request, timeout=20) as reply:
        return json.load(reply), reply.headers


def chat(text, **more):
    return {"model": "sim", "messages": [{"role": "user", "content": text}], **more}


def refusal(server, body, **more):
    with pytest.raises(urllib.error.HTTPError) as caught:
        post(server, body, **more)
    with caught.value as error:
        return error.code, json.load(error)["error"]["code"], error.headers


def lm_of(server, **more):
    spec = specify("openai/sim", env={}, api_base=server.url, api_key="sim", **more)
    lm = connect(spec, "root")
    lm._tries = 1
    return lm


def test_it_answers_as_the_model_in_this_process_and_says_what_it_is(server):
    found, headers = post(server, chat(QUESTION))
    here = SimulatedEngine().complete(Request(model="sim", messages=(Message.user(QUESTION),)))
    assert found["choices"][0]["message"]["content"] == here.text
    assert found["usage"]["prompt_tokens"] == here.usage.input_tokens
    assert found["usage"]["completion_tokens"] == here.usage.output_tokens
    assert (headers["X-Simulated"], found["system_fingerprint"]) == ("1", "simulated")
    with urllib.request.urlopen(server.url + "/models", timeout=20) as reply:
        models = json.load(reply)["data"]
    assert {model["id"]: model["owned_by"] for model in models}["sim-mini"] == "simulated"
    assert server.stats()["banner"] == LABEL


def test_a_stream_says_the_same_in_pieces_with_its_usage(server):
    whole, _ = post(server, chat(QUESTION))
    body = chat(QUESTION, stream=True, stream_options={"include_usage": True})
    request = urllib.request.Request(
        server.url + "/chat/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=20) as reply:
        lines = [line[6:] for line in reply.read().decode().splitlines() if line]
    assert lines[-1] == "[DONE]"
    chunks = [json.loads(line) for line in lines[:-1]]
    deltas = [c["choices"][0]["delta"].get("content", "") for c in chunks if c["choices"]]
    assert "".join(deltas) == whole["choices"][0]["message"]["content"]
    assert chunks[-1]["usage"] == whole["usage"]


def test_a_real_dspy_lm_talks_to_it_and_the_ledger_equals_its_count(server):
    server.configure()
    ledger = Ledger()
    with dspy.context(fleet_ledger=ledger):
        lm_of(server)(QUESTION)
        asyncio.run(lm_of(server).acall(QUESTION))
    seen, spent = server.stats(), ledger.total
    assert (seen["requests"], seen["ok"]) == (2, 2)
    assert (spent.calls, spent.input_tokens) == (2, seen["prompt_tokens"])
    assert (spent.output_tokens, spent.usd > 0) == (seen["completion_tokens"], True)
    assert spent.seconds > 0


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ("429", dspy.LMRateLimitError),
        ("500", dspy.LMServerError),
        ("503", dspy.LMServerError),
        ("malformed", dspy.LMProviderError),
        ("reset", dspy.LMTransportError),
        ("truncate", dspy.LMTransportError),
        ("hang", (dspy.LMTransportError, dspy.LMTimeoutError)),
    ],
)
def test_each_fault_is_a_typed_error_and_the_next_call_is_answered(
    server, fault, error, monkeypatch
):
    monkeypatch.setattr("fleet_rlm.lm.throttle.PATIENCE_S", 0.0)
    server.configure(fail_first={fault: 1}, hang_s=2)
    lm = lm_of(server, timeout_s=0.3)
    with pytest.raises(error):
        lm(QUESTION)
    assert lm(QUESTION)
    assert server.stats()["faults"] == {fault: 1}


@pytest.mark.parametrize(("fault", "text"), [("empty", ""), ("refuse", "I can't help with that.")])
def test_a_reply_may_be_empty_or_a_refusal(server, fault, text):
    server.configure(fail_first={fault: 1})
    found, _ = post(server, chat(QUESTION))
    assert found["choices"][0]["message"]["content"] == text


def test_it_refuses_what_a_service_refuses(server):
    assert refusal(server, chat(QUESTION) | {"model": "gpt-9"})[:2] == (404, "model_not_found")
    server.configure(context_window=10)
    assert refusal(server, chat(QUESTION))[:2] == (400, "context_length_exceeded")
    with pytest.raises(dspy.ContextWindowExceededError):
        lm_of(server)(QUESTION)
    server.configure(context_window=1000, api_key="right")
    assert refusal(server, chat(QUESTION), key="wrong")[0] == 401
    assert post(server, chat(QUESTION), key="right")
    with pytest.raises(dspy.LMAuthError):
        lm_of(server)(QUESTION)
    server.configure(api_key="", rpm=1)
    post(server, chat(QUESTION))
    code, _, headers = refusal(server, chat(QUESTION))
    assert code == 429
    assert 0 < float(headers["Retry-After"]) <= 60


def test_a_queue_and_the_mean_in_flight_are_counted_from_outside(server):
    server.configure(latency_ms=100, max_num_seqs=2, echo="x")
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda _: post(server, chat("hello")), range(6)))
    seen = server.stats()
    assert seen["max_in_flight"] == 6
    assert seen["span_s"] >= 0.3
    assert 2 <= seen["mean_in_flight"] <= 6
    assert seen["in_flight"] == 0


@pytest.mark.parametrize(
    "sent",
    [
        b"nonsense\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: x\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: 9999999999\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: 3\r\n\r\n{{{",
        b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: 2\r\n\r\n[]",
        b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 20_000 + b"\r\n",
        b"\x16\x03\x01" + os.urandom(200),
        b"POST /v1/chat/comp",
    ],
)
def test_a_broken_client_does_not_stop_it(server, sent):
    place = urlsplit(server.url)
    with socket.create_connection((place.hostname, place.port), timeout=10) as client:
        try:
            client.sendall(sent)
            client.shutdown(socket.SHUT_WR)
            reply = client.recv(100)
        except OSError:
            reply = b""
    assert reply == b"" or reply.startswith(b"HTTP/1.1 4")
    assert post(server, chat(QUESTION))


def test_unknown_knobs_are_named(server):
    with pytest.raises(UsageError, match="latency_ms"):
        server.configure(latencyms=3)
    with pytest.raises(UsageError, match="malformed"):
        server.configure(faults={"malfomed": 0.1})
    with pytest.raises(UsageError, match="KIND=RATE"):
        parse_faults("429:0.5")


def test_faults_are_drawn_by_prompt_and_sight_at_their_rates():
    knobs = Knobs(faults={"429": 0.1, "reset": 0.05}, seed=3)
    drawn = [knobs.fault(f"p{n}", 0, n) for n in range(4000)]
    assert drawn == [knobs.fault(f"p{n}", 0, 4000 - n) for n in range(4000)]
    assert 0.08 < drawn.count("429") / 4000 < 0.12
    assert 0.035 < drawn.count("reset") / 4000 < 0.065
    assert {knobs.fault("p", nth, 0) for nth in range(200)} == {None, "429", "reset"}
    assert set(FAULTS) >= {"429", "hang", "refuse"}


def test_the_command_prints_address_and_label_and_stops_on_sigterm():
    command = [sys.executable, "-m", "fleet_rlm.cli.fleet", "sim-server", "--echo", "hi"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with process:
        url, label = (process.stdout.readline().strip() for _ in range(2))
        assert label == LABEL
        with urllib.request.urlopen(url + "/models", timeout=20) as reply:
            assert reply.status == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
        assert process.stderr.read() == ""


def test_it_serves_this_machine_only():
    command = [sys.executable, "-m", "fleet_rlm.cli.fleet", "sim-server", "--host", "0.0.0.0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1


def test_it_starts_without_dspy():
    code = "import sys, fleet_rlm.lm.simulated.server; print('dspy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert done.stdout.strip() == "False"
