"""A run's folder: append-only records, torn lines, one writer; what is owed."""

import json
import os
import signal
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet_rlm.errors import UsageError
from fleet_rlm.runner.record import ErrorInfo, Key, Record, owed
from fleet_rlm.runner.store import RunStore, repair_and_read
from fleet_rlm.runner.summary import summarize


def make_record(sample="s1", epoch=0, *, score=1.0, error=None, **more):
    return Record(
        sample=sample,
        epoch=epoch,
        task=more.pop("task", "needle"),
        cluster=more.pop("cluster", sample),
        length=more.pop("length", 8000),
        status="error" if error else "scored",
        stop="error" if error else "submitted",
        score=None if error else score,
        official=None if error else score,
        robust=None if error else score,
        error=ErrorInfo(boundary=error, type="E", message="m") if error else None,
        **more,
    )


RUN = {
    "run": "r",
    "suite": {"name": "s"},
    "arm": {
        "program": "rlm",
        "models": {"root": {"name": "sim"}},
        "sandbox": {"backend": "local", "level": "landlock"},
        "settings": {},
    },
}


def test_records_come_back_as_written(tmp_path):
    written = [make_record("a"), make_record("b", error="provider"), make_record("ü", answer="é")]
    with RunStore(tmp_path / "run") as store:
        for record in written:
            store.append(record)
    with RunStore(tmp_path / "run") as store:
        assert store.records == written


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_torn_last_line_is_cut_off_and_the_next_record_is_whole(tmp_path, cut):
    with RunStore(tmp_path) as store:
        store.append(make_record("a"))
        store.append(make_record("b"))
    path = tmp_path / "records.jsonl"
    path.write_bytes(path.read_bytes()[:-cut])
    with RunStore(tmp_path) as store:
        assert [record.sample for record in store.records] == ["a"]
        store.append(make_record("c"))
    assert [record.sample for record in repair_and_read(path)] == ["a", "c"]


def test_a_torn_line_in_the_middle_is_named(tmp_path):
    with RunStore(tmp_path) as store:
        store.append(make_record("a"))
        store.append(make_record("b"))
    path = tmp_path / "records.jsonl"
    first, second = path.read_text().splitlines()
    path.write_text(f"{first[:20]}\n{second}\n")
    with pytest.raises(UsageError, match=r"records\.jsonl:1 is no record"):
        RunStore(tmp_path)


def test_a_folder_has_one_writer(tmp_path):
    with RunStore(tmp_path), pytest.raises(UsageError, match="in use"):
        RunStore(tmp_path)
    RunStore(tmp_path).close()


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"Cannot write to run folder .* Try: --out DIR"):
        RunStore(tmp_path / "file" / "run")


def test_kill_9_while_writing_loses_at_most_the_line_being_written(tmp_path):
    code = f"""
from pathlib import Path
from fleet_rlm.runner.store import RunStore
from fleet_rlm.runner.record import Record
store = RunStore(Path({str(tmp_path / "run")!r}))
for number in range(100_000):
    store.append(Record(sample=str(number), epoch=0, task="t", cluster="c", length=1,
                        status="scored", stop="submitted", score=1.0))
    print(number, flush=True)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    acknowledged = [int(process.stdout.readline()) for _ in range(50)]
    os.kill(process.pid, signal.SIGKILL)
    acknowledged += [int(line) for line in process.stdout.read().splitlines()]
    process.wait()
    process.stdout.close()
    with RunStore(tmp_path / "run") as store:
        stored = [int(record.sample) for record in store.records]
    assert stored[: len(acknowledged)] == acknowledged
    assert len(stored) - len(acknowledged) in {0, 1}


keys = st.builds(Key, st.sampled_from("abcd"), st.integers(0, 2))
outcomes = st.sampled_from([None, "provider", "sandbox"])


@given(
    st.lists(keys, unique=True), st.lists(st.tuples(keys, outcomes)), st.sets(st.just("provider"))
)
def test_settled_work_is_never_planned_again(planned, history, retry):
    records = [make_record(key.sample, key.epoch, error=error) for key, error in history]
    left = owed(planned, records, retry=retry)
    last = dict(history)
    assert left == [key for key in planned if key in left]
    for key in planned:
        settled = key in last and last[key] not in retry
        assert (key in left) != settled


def test_the_summary_is_made_from_records_alone():
    usage = {"root": {"calls": 2, "input_tokens": 30, "output_tokens": 4, "usd": 0.25}}
    records = [
        make_record("a", score=1.0, cluster="x", usage=usage),
        make_record("b", score=0.0, cluster="y", usage=usage, length=32000),
        make_record("c", error="provider", cluster="y", usage=usage),
        make_record("c", score=0.5, cluster="y", usage=usage),
        make_record("unplanned", score=0.0),
    ]
    planned = [Key(name, 0) for name in "abcd"]
    summary = summarize(RUN, records, planned, 12.0)
    assert (summary["samples"], summary["scored"], summary["errors"]) == (4, 3, 0)
    assert summary["coverage"] == 0.75
    assert summary["score"] == 0.5
    assert summary["ci"][0] < 0.5 < summary["ci"][1]
    # A failed attempt was paid for as well.
    assert summary["usage"]["calls"] == 8
    assert summary["usage"]["usd"] == 1.0
    assert summary["usage"]["by_role"]["root"]["input_tokens"] == 120
    assert summary["stops"] == {"submitted": 3}
    assert summary["tasks"]["needle"]["lengths"]["32000"]["score"] == 0.0
    json.dumps(summary)


def test_an_error_is_missing_data_never_a_zero():
    planned = [Key("a", 0), Key("b", 0)]
    summary = summarize(
        RUN, [make_record("a", score=1.0), make_record("b", error="sandbox")], planned, 1.0
    )
    assert (summary["score"], summary["coverage"], summary["errors"]) == (1.0, 0.5, 1)
    nothing = summarize(RUN, [make_record("a", error="data")], planned, 1.0)
    assert (nothing["score"], nothing["ci"], nothing["mde"]) == (None, None, None)


def test_epochs_are_averaged_before_samples_are_compared():
    records = [make_record("a", 0, score=1.0), make_record("a", 1, score=0.0), make_record("b")]
    planned = [Key("a", 0), Key("a", 1), Key("b", 0), Key("b", 1)]
    summary = summarize(RUN, records, planned, 1.0)
    assert (summary["score"], summary["samples"], summary["coverage"]) == (0.75, 2, 0.75)
