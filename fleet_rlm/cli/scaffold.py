"""`fleet-eval init`: a project around questions of one's own, ready to score, compile and gate."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fleet_rlm.errors import Exit, UsageError
from fleet_rlm.suites.fetch import fetch
from fleet_rlm.suites.hub import head_revision, hub_columns, local_columns
from fleet_rlm.suites.manifest import is_hub_id, load_manifest, write_manifest
from fleet_rlm.suites.shelf import Lock

ROLES = {
    "context": ("context", "document", "text", "passage", "article", "input"),
    "question": ("question", "query", "prompt", "ask"),
    "answer": ("answer", "answers", "gold", "target", "label", "output"),
}
"""Role -> names by which its column is found, first one wins."""

FEWEST_CONTEXTS = 6
"""A compilation needs one to learn from, two to choose on and three for its sealed test."""

MOST = {"train": 24, "validation": 48, "test": 200}
"""Samples of a first compilation: minutes and a few dollars, whatever the size of the data."""

PROJECT = """\
# Defaults of every command in this folder; a flag or the environment beats them.
model = "sim" # a simulated model: replace it by provider/name, and export DSPY_LLM_API_KEY=...
"""

SUITE = """\
# Score a program on it: fleet-eval run {name}
[suite]
name = "{name}"
description = "{rows} questions of our own"

[[tasks]]
name = "questions"
dataset = "{name}"
rule = "qa"
"""

RECIPE = """\
# Compile the RLM on it: fleet-optimize run {name}
name = "{name}"
description = "prompts and settings for our own questions"
program = "rlm"
suite = "{name}"
train = {train} # to learn from
validation = {validation} # to choose on
test = {test} # sealed: read once, for the baseline and the winner
trials = 12
batch = {batch} # of the validation, before the first trials are dropped
max_usd = 10.0

[space]
max_iters = [20, 8]
max_llm_calls = [50, 15]
"""

GATE = """\
# Scores each pull request beside its base. The simulated model needs no key and shows that program
# and suite still work; for a real one, set `model` in fleet.toml and DSPY_LLM_API_KEY as a secret.
name: gate
on: pull_request
jobs:
  gate:
    runs-on: ubuntu-latest
    env:
      DSPY_LLM_API_KEY: ${{{{ secrets.DSPY_LLM_API_KEY }}}}
    steps:
      - uses: actions/checkout@v4
        with: {{ path: mine }}
      - uses: actions/checkout@v4
        with: {{ path: base, ref: "${{{{ github.base_ref }}}}" }}
      - uses: actions/setup-python@v5
        with: {{ python-version: "3.12" }}
      - run: pip install fleet-rlm
      - run: fleet-eval run {name} --no-mlflow --out ../base-run
        working-directory: base
      - run: fleet-eval run {name} --no-mlflow --out ../mine-run
        working-directory: mine
      - run: fleet-eval gate mine-run --baseline base-run --max-drop 0.02 --only-proven
"""

IGNORED = """\
runs/
mlflow.db*
mlartifacts/
.env
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Questions:
    """What a project is made around: a row is a question with its context and gold answer."""

    data: str
    """A JSONL, JSON, CSV or Parquet file, or "owner/name" of a Hugging Face dataset."""

    name: str | None
    """Of suite, dataset and recipe; of the data when absent."""

    columns: Mapping[str, str | None]
    """Role -> column; roles without one are found by their usual names."""

    config: str | None = None
    """Configuration of a Hugging Face dataset."""

    split: str | None = None
    """Its split; "train" when absent."""


def init_project(project: Path, questions: Questions) -> int:
    """Write a project around questions; gives the exit code.

    The data are read as a whole first, so that what is written can be run. Of a Hugging Face
    dataset the current commit is taken and written down.

    Args:
        project: the folder to write into.
        questions: where they are.

    Raises:
        UsageError: no such data, a role without a column, a row that cannot be read, or a file of
            the project that is there already.
    """
    is_hub = is_hub_id(questions.data) and not Path(questions.data).exists()
    if not is_hub and not Path(questions.data).is_file():
        raise UsageError(
            f"No file {questions.data!r}.",
            fix="fleet-eval init FILE, or owner/name of a Hugging Face dataset",
        )
    name = _name(questions.name or Path(questions.data).stem)
    for folder in ("evals", "datasets", "optimize"):
        place = f"{folder}/{name}.toml"
        if (project / place).exists():
            raise UsageError(f"{place} exists already.", fix="fleet-eval init FILE --name OTHER")
    source, found = _hub_source(questions) if is_hub else _file_source(questions, project)
    chosen = _choose(found, questions)
    manifest = write_manifest(project / "datasets", name, **source, **chosen)
    try:
        lock = fetch(load_manifest(manifest, project)).lock
    except BaseException:  # Ctrl-C too: the next try would meet a manifest without its data
        manifest.unlink()
        raise
    texts = _texts(name, lock)
    for place, text in texts.items():
        path = project / place
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    _say_next(name, lock, [f"datasets/{name}.toml", f"datasets/{name}.lock", *texts])
    return Exit.OK


def _file_source(questions: Questions, project: Path) -> tuple[dict[str, Any], list[str]]:
    """What `write_manifest` needs to know, and the columns."""
    if questions.config or questions.split:
        raise UsageError(
            "--config and --split are for a Hugging Face dataset", fix="fleet-eval init FILE"
        )
    path = Path(questions.data)
    place = os.path.relpath(path.resolve(), (project / "datasets").resolve())
    return {"source": place}, local_columns(path)


def _hub_source(questions: Questions) -> tuple[dict[str, Any], list[str]]:
    hub, config, split = questions.data, questions.config, questions.split
    revision = head_revision(hub, f"fleet-eval init {hub}")
    found = hub_columns(hub, revision, config, split or "train")
    return {"source": hub, "revision": revision, "config": config, "split": split}, found


def _name(text: str) -> str:
    name = re.sub(r"[^a-z0-9_-]+", "-", text.lower()).strip("-_")
    if not name:
        raise UsageError(f"{text!r} makes no name.", fix="fleet-eval init FILE --name NAME")
    return name


def _choose(found: list[str], questions: Questions) -> dict[str, str]:
    """Role -> column."""
    chosen = {}
    for role, usual in ROLES.items():
        column = questions.columns[role] or next((c for c in usual if c in found), None)
        if column not in found:
            what = f"no column {column!r}" if column else f"no column that looks like the {role}"
            raise UsageError(
                f"{questions.data} has {what}; it has {', '.join(found)}.", fix=f"--{role} COLUMN"
            )
        chosen[role] = column
    return chosen


def _texts(name: str, lock: Lock) -> dict[str, str]:
    """Place -> content of what is written beside the manifest."""
    texts = {
        "fleet.toml": PROJECT,
        f"evals/{name}.toml": SUITE.format(name=name, rows=lock.rows),
    }
    if lock.contexts >= FEWEST_CONTEXTS:
        texts[f"optimize/{name}.toml"] = RECIPE.format(name=name, **_sizes(lock))
    texts[".github/workflows/gate.yml"] = GATE.format(name=name)
    texts[".gitignore"] = IGNORED
    return texts


def _sizes(lock: Lock) -> dict[str, int]:
    """How the contexts are shared out, half of them to the test, in samples."""
    chosen_on = lock.contexts // 3
    contexts = {"validation": chosen_on, "test": lock.contexts // 2}
    contexts["train"] = lock.contexts - sum(contexts.values())
    each = lock.rows // lock.contexts
    sizes = {name: min(MOST[name], count * each) for name, count in contexts.items()}
    return {**sizes, "batch": max(2, min(8, sizes["validation"] // 2))}


def _say_next(name: str, lock: Lock, written: list[str]) -> None:
    print(f"{lock.rows:,} questions on {lock.contexts:,} contexts, {lock.tokens:,} tokens")
    print("\n".join(f"  {place}" for place in written))
    steps = [
        (f"fleet-eval show {name}", "see samples as a program will"),
        (f"fleet-eval run {name} --out runs/rlm", "score a program"),
        (f"fleet-eval run {name} --program direct --out runs/direct", "and a baseline"),
        ("fleet-eval compare runs/direct runs/rlm", "sample by sample"),
    ]
    if lock.contexts >= FEWEST_CONTEXTS:
        steps.append((f"fleet-optimize run {name}", "compile it; says how to serve it"))
    else:
        print(f"no recipe: a compilation needs at least {FEWEST_CONTEXTS} contexts")
    print("next")
    for command, why in steps:
        print(f"  {command:<{max(len(c) for c, _ in steps)}}   {why}")
