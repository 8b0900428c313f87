"""A bundle inside an application: called, awaited, streamed, and by fifty requests at once."""

import asyncio
import json
import threading
import time

import dspy
import httpx
import pytest
from bundles import simulated
from fastapi import FastAPI
from served import run_fleet
from web import web_server

import fleet_rlm
from fleet_rlm.errors import FleetWarning
from fleet_rlm.program.registry import AnswerQuery

QUERY = "What is the current access code for {}? Answer with the code only."


def notes(name, code):
    return f"Nothing here.\nThe access code for {name} is {code}.\n" + "More prose.\n" * 300


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    with simulated():
        program = fleet_rlm.RLM(AnswerQuery, max_iters=7)
        return fleet_rlm.save(program, tmp_path_factory.mktemp("in-app") / "champion-bundle")


@pytest.fixture
def program(bundle):
    with pytest.warns(FleetWarning, match="simulated"):
        return fleet_rlm.load(bundle)


def test_called_awaited_and_streamed_with_the_same_answer(program):
    inputs = {"context": notes("Halcyon-37", 1234567), "query": QUERY.format("Halcyon-37")}
    with simulated():
        assert program(**inputs).answer == "1234567"
        assert asyncio.run(program.acall(**inputs)).answer == "1234567"
        events = list(fleet_rlm.stream(program, **inputs))
    assert [event.sequence for event in events] == list(range(len(events)))
    assert events[-1].kind == "final"
    assert events[-1].data["outputs"]["answer"] == "1234567"
    assert {"thought", "code", "usage"} <= {event.kind for event in events}


def test_fifty_requests_on_one_program_of_a_fastapi_application(program):
    """Each request has its own text: an answer of another's would show shared state."""
    before = program.dump_state()
    app = FastAPI()

    @app.post("/answer")
    async def answer(name: str, code: str) -> str:
        with simulated():
            found = await program.acall(context=notes(name, code), query=QUERY.format(name))
        return found.answer

    codes = {f"Halcyon-{n}": str(1_000_000 + 7_919 * n) for n in range(50)}
    found: dict[str, str] = {}
    with web_server(app) as url, httpx.Client(base_url=url, timeout=60) as client:

        def request(name):
            params = {"name": name, "code": codes[name]}
            found[name] = client.post("/answer", params=params).json()

        threads = [threading.Thread(target=request, args=(name,)) for name in codes]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found.keys() == codes.keys()
    for name, answer in found.items():
        # The simulated model words its answer as it likes; another's code must not be in it.
        assert [code for code in codes.values() if code in answer] == [codes[name]]
    assert program.dump_state() == before


def test_a_worker_thread_uses_what_the_application_configured(program):
    """An application configures DSPy once, in its main thread; workers are started later."""
    found = []

    def work():
        found.append(program(context=notes("Halcyon-1", 7654321), query=QUERY.format("Halcyon-1")))

    with simulated():
        settings = dict(dspy.settings.config)
    with dspy.context(**settings):
        pool = dspy.Parallel(num_threads=2, disable_progress_bar=True)
        pool([(lambda **_: work(), {})] * 2)
    assert [one.answer for one in found] == ["7654321"] * 2


def test_a_notebook_awaits_and_streams_while_its_loop_runs(program):
    """A cell runs inside of a running event loop; neither way of calling may need its own."""
    inputs = {"context": notes("Halcyon-2", 2222222), "query": QUERY.format("Halcyon-2")}

    async def cell():
        beats = 0

        async def heart():
            nonlocal beats
            while True:
                beats += 1
                await asyncio.sleep(0.001)

        beating = asyncio.create_task(heart())
        awaited = await program.acall(**inputs)
        streamed = [event async for event in fleet_rlm.astream(program, **inputs)]
        beating.cancel()
        called = program(**inputs)  # blocks the cell, as in any notebook, but works
        return awaited.answer, streamed[-1].data["outputs"]["answer"], called.answer, beats

    with simulated():
        *answers, beats = asyncio.run(cell())
    assert answers == ["2222222"] * 3
    assert beats > 3


def test_leaving_a_stream_stops_the_program(program):
    with simulated():
        events = fleet_rlm.stream(program, context=notes("A-1", 1), query=QUERY.format("A-1"))
        next(events)
        events.close()
    deadline = time.monotonic() + 10
    while any(t.name == "fleet-stream" for t in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.filterwarnings("ignore::fleet_rlm.errors.FleetWarning")
def test_a_script_asks_a_bundle(bundle, monkeypatch, capfd, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text(notes("Halcyon-37", 1234567))
    ask = ("run", "--context", "notes.txt", "--query", QUERY.format("Halcyon-37"))
    code, out, err = run_fleet(monkeypatch, capfd, *ask, "--bundle", bundle, "--json", "--trace")
    assert code == 0, err
    assert json.loads(out)["answer"] == "1234567"
    assert "--- turn 1" in err
    for words, part in (
        (("--bundle", "absent"), "absent is not a bundle folder"),
        (("--bundle", bundle, "--program", "direct"), "both name the program"),
    ):
        code, out, err = run_fleet(monkeypatch, capfd, *ask, *words)
        assert (code, out, len(err.splitlines())) == (2, "", 1)
        assert part in err
