"""Fetches from a Hub on loopback: the real clients, commits, configurations, byte ranges."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib

import pytest

from fleet_rlm.errors import UsageError
from fleet_rlm.suites.fetch import open_shelf
from fleet_rlm.suites.manifest import find_manifest
from tests import tiny_datasets as tiny
from tests.hub_server import hub_server


@pytest.fixture
def hub(tmp_path):
    with hub_server() as server:
        yield server


def cli(folder, hub, *words):
    env = {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(folder / "hf"),
        "FLEET_DATA_DIR": str(folder / "shelves"),
    }
    done = subprocess.run(
        [sys.executable, "-m", "fleet_rlm.cli.eval", *words],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        timeout=100,
    )
    return done


def put(hub, folder, repo, files):
    """Upload rows: path in the repository -> rows."""
    hub.repos[repo] = {}
    for name, rows in files.items():
        tiny.write_rows(folder / "up" / name, rows)
        hub.repos[repo][name] = (folder / "up" / name).read_bytes()


def lay(folder, name, **source):
    raw = tiny.shipped(name)
    raw["source"] |= source
    path = folder / "datasets" / f"{name}.toml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(tiny.to_toml(raw))


def error_line(done):
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error")]
    return line


def test_a_pinned_parquet_dataset_is_fetched_by_column_and_locked(hub, tmp_path):
    lay(tmp_path, "oolong-synth", revision=hub.commit)
    rows = tiny.oolong_rows()
    for row in rows:  # noise that a read by column leaves on the server
        row["context_window_text_with_labels"] = os.urandom(2_000_000).hex()
    put(hub, tmp_path, "oolongbench/oolong-synth", {"data/validation-00000.parquet": rows})
    done = cli(tmp_path, hub, "fetch", "oolong-synth", "--json")
    assert done.returncode == 0, done.stderr
    (found,) = json.loads(done.stdout)
    assert (found["rows"], found["contexts"], found["revision"]) == (3, 1, hub.commit)
    size = len(hub.repos["oolongbench/oolong-synth"]["data/validation-00000.parquet"])
    assert size > 8_000_000
    # Blocks of 5 MB are read ahead; two whole reads would have taken twice the file.
    assert hub.sent < size, "most of the labelled texts stayed on the server"
    done = cli(tmp_path, hub, "show", "oolong", "-n", "0")
    assert "not on this machine yet" in done.stdout, "its other dataset is owed"


def test_a_dataset_is_pinned_at_its_commit_and_held_to_it(hub, tmp_path, monkeypatch):
    lay(tmp_path, "longbench-v2")
    path = tmp_path / "datasets" / "longbench-v2.toml"
    text = path.read_text()
    path.write_text("\n".join(x for x in text.splitlines() if not x.startswith("revision")))
    put(hub, tmp_path, "zai-org/LongBench-v2", {"data.json": tiny.longbench_rows()})
    # A missing revision is refused: see test_datasets.
    done = cli(tmp_path, hub, "init", "zai-org/LongBench-v2", "--name", "own")
    assert "2 questions on 2 contexts" in done.stdout, done.stderr
    own = tomllib.loads((tmp_path / "datasets" / "own.toml").read_text())
    assert own["source"] == {"hub": "zai-org/LongBench-v2", "revision": hub.commit}
    done = cli(tmp_path, hub, "fetch", "longbench-v2", "--pin")
    assert "2 questions on 2 contexts" in done.stdout, done.stderr
    assert json.loads((tmp_path / "datasets" / "longbench-v2.lock").read_text())["revision"] == (
        hub.commit
    )
    monkeypatch.setenv("FLEET_DATA_DIR", str(tmp_path / "shelves"))
    assert len(open_shelf(find_manifest("longbench-v2", tmp_path)).questions()) == 2
    path.write_text(path.read_text().replace("[source]", f'[source]\nrevision = "{"d" * 40}"'))
    with pytest.raises(UsageError, match=r"names another revision than .* --relock"):
        open_shelf(find_manifest("longbench-v2", tmp_path))
    path.write_text(path.read_text().replace("d" * 40, hub.commit))
    rows = tiny.longbench_rows()
    rows[0]["answer"] = "A"
    put(hub, tmp_path, "zai-org/LongBench-v2", {"data.json": rows})
    changed = error_line(cli(tmp_path, hub, "fetch", "longbench-v2"))
    assert "is not what" in changed
    assert "gold_sha256 was" in changed
    hub.commit = "e" * 40
    gone = error_line(cli(tmp_path, hub, "fetch", "longbench-v2"))
    assert "longbench-v2.toml: reading zai-org/LongBench-v2" in gone
    assert "Revision 'cccc" in gone
    assert "Try: correct its name, commit and files" in gone
