"""What README and docs say is done: every command, every block of code, every table of names."""

from __future__ import annotations

import copy
import dataclasses
import io
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import nbformat
import pytest
from nbclient import NotebookClient
from openai_server import openai_server
from rich.console import Console
from warm import warm

from fleet_rlm.lm.simulated import LABEL
from fleet_rlm.report.tables import NARROWEST, print_result, short_length

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCED = re.compile(r"^```(\w*)(.*)\n((?:.*\n)*?)^```$", re.M)
KEYED = "export DSPY_LLM_API_KEY"

# Commands run as written, but on two samples or few trials, without the mirror, and never beyond
# this machine.
SHIM = """\
#!/usr/bin/env bash
if [[ "$1" == run && "{module}" == fleet_rlm.cli.eval ]]; then
  set -- "$@" --no-mlflow
  [[ " $* " == *" --limit "* ]] || set -- "$@" --limit 2
fi
if [[ "{module}" == fleet_rlm.cli.optimize && "$1" =~ ^(run|promote|rollback)$ ]]; then
  set -- "$@" --no-mlflow
fi
if [[ "$1" == run && "{module}" == fleet_rlm.cli.optimize ]]; then
  [[ " $* " == *" --max-trials "* ]] || set -- "$@" --max-trials 3
fi
if [[ -n "${{DOCS_API_BASE:-}}" ]]; then
  set -- "$@" --api-base "$DOCS_API_BASE"
fi
exec {words} {module} "$@"
"""
COMMANDS = {
    "fleet-eval": "fleet_rlm.cli.eval",
    "fleet-optimize": "fleet_rlm.cli.optimize",
    "fleet-rlm": "fleet_rlm.cli.fleet",
}


class Block(NamedTuple):
    """A fenced block of a page."""

    line: int
    language: str
    title: str
    """The file that it is, if it says so."""

    text: str


def blocks(page: Path) -> Iterator[Block]:
    text = page.read_text()
    for found in FENCED.finditer(text):
        title = re.search(r'title="([^"]+)"', found[2])
        line = text.count("\n", 0, found.start()) + 1
        yield Block(line, found[1], title[1] if title else "", found[3])


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """What runs a module in a process that is warm."""
    with warm(tmp_path_factory.mktemp("warm")) as found:
        yield found


def make_project(folder: Path, words: Sequence[str]) -> Path:
    """A project with the commands in its .venv, and books."""
    programs = folder / ".venv" / "bin"
    programs.mkdir(parents=True)
    for name, module in COMMANDS.items():
        shim = programs / name
        shim.write_text(SHIM.format(words=shlex.join(words), module=module))
        shim.chmod(0o755)
    (programs / "activate").write_text('export PATH="$PWD/.venv/bin:$PATH"\n')
    for place in ("books", "path/to"):
        book = folder / place / "book.txt"
        book.parent.mkdir(parents=True)
        book.write_text("The ferry left before anyone had found the right pier.\n\n" * 400)
    return folder


def run_block(block: Block, project: Path, words: Sequence[str]) -> None:
    if block.title:
        target = project / block.title
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(block.text)
    elif block.language == "python":
        run([*words, "-c", block.text], project)
    elif block.language == "bash":
        lines = block.text.splitlines(keepends=True)
        script = "".join(line for line in lines if not line.startswith("make "))
        has_key = KEYED in script
        with openai_server() if has_key else nullcontext() as server:
            run(
                ["bash", "-euo", "pipefail", "-c", script],
                project,
                DOCS_API_BASE=server.url if server else "",
            )
        if server:
            assert server.requests
            assert server.keys == {"Bearer ..."}


def run(command: Sequence[str], project: Path, **env: str) -> None:
    path = f"{project / '.venv' / 'bin'}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command,
        cwd=project,
        env=os.environ | {"PATH": path} | env,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, f"{command[-1]}\n{done.stdout}\n{done.stderr}"


def test_the_notebook_shows_what_it_prints_and_the_readme_the_same_run(tmp_path):
    """After a change, `jupyter-execute --inplace` it, and paste what `make demo` prints."""
    shown = nbformat.read(ROOT / "docs" / "tutorials" / "first_comparison.ipynb", 4)
    ran = copy.deepcopy(shown)
    resources = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(ran, timeout=100, kernel_name="python3", resources=resources).execute()
    assert [texts(cell) for cell in ran.cells] == [texts(cell) for cell in shown.cells]
    printed = io.StringIO()
    summary = json.loads((tmp_path / "runs" / "rlm" / "summary.json").read_text())
    print_result(Console(file=printed, width=NARROWEST), summary, LABEL)
    (pasted,) = [block.text for block in blocks(ROOT / "README.md") if block.language == "text"]
    result = pasted.partition("next  ")[0].splitlines()
    level = next(line for line in result if "sandbox" in line)
    lines = {line.rstrip() for line in printed.getvalue().splitlines()}
    assert [line for line in result if line != level and line not in lines] == []


def texts(cell: nbformat.NotebookNode) -> list[str]:
    return [o.get("text") or o["data"]["text/plain"] for o in cell.get("outputs", [])]


def name_of(page: Path) -> str:
    return page.name


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_the_blocks_of_a_page_run_in_their_order(page, tmp_path, words):
    project = make_project(tmp_path, words)
    for block in blocks(page):
        run_block(block, project, words)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_make_target_of_a_page_exists(page):
    fenced = "".join(block.text for block in blocks(page) if block.language == "bash")
    named = set(re.findall(r"^make ([a-z-]+)", fenced, re.M))
    named |= set(re.findall(r"`make ([a-z-]+)`", page.read_text()))
    assert named <= make_targets()


def make_targets() -> set[str]:
    rules = re.findall(r"^([a-z][a-z -]*):", (ROOT / "Makefile").read_text(), re.M)
    return {target for rule in rules for target in rule.split()}


def test_every_bench_room_has_its_make_target():
    rooms = {path.stem.partition("_")[0] for path in (ROOT / "tests" / "bench").glob("*.py")}
    rooms -= {"", "measure"}
    assert {t for t in make_targets() if t.startswith("bench-")} == {f"bench-{r}" for r in rooms}


def test_the_site_builds_without_a_warning_and_loads_nothing_from_elsewhere(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) > len(list((ROOT / "docs").glob("*.md")))
    text = "".join(page.read_text() for page in pages)
    assert text.count('<div class="sequence"><svg') == 5
    assert "sequenceDiagram" not in text
    foreign = re.compile(r"<(?:script|link|img|iframe)\b[^>]*(?:src|href)=\"?(?:https?:)?//[^>]*>")
    assert not [found for page in pages for found in foreign.findall(page.read_text())]


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_beside_the_site_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#]+)", (ROOT / page).read_text())
    local = [link for link in links if "://" not in link]
    assert not [link for link in local if not (ROOT / link).exists()]


def table(page: str, first: str) -> list[list[str]]:
    """The rows of the one table of a page whose first column has this name, without backticks."""
    text = FENCED.sub("", (ROOT / "docs" / page).read_text())
    tables = [part for part in text.split("\n\n") if part.startswith(f"| {first} |")]
    assert len(tables) == 1, f"{page}: {len(tables)} tables begin with {first!r}"
    rows = tables[0].strip().splitlines()[2:]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", row.strip("|"))] for row in rows]


def names(cells: Sequence[str]) -> set[str]:
    return {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}


def column(page: str, first: str) -> set[str]:
    return names([row[0] for row in table(page, first)])


def test_programs_and_settings():
    from fleet_rlm.program.registry import PROGRAMS

    shown = [row for row in table("concepts.md", "`--program`") if row[0].startswith("`")]
    assert shown == [
        [f"`{name}`", entry.summary, "yes" if entry.runs_code else "no"]
        for name, entry in PROGRAMS.items()
    ]
    spec = {name: entry.settings_type.SPEC for name, entry in PROGRAMS.items()}
    settings = {
        (f"`{program}`", f"`{name}`", str(setting.default))
        for program, found in spec.items()
        for name, setting in found.items()
        # What a program takes for the RLM inside it is said once.
        if program == "rlm" or not spec["rlm"].items() < found.items() or name not in spec["rlm"]
    }
    assert {tuple(row[:3]) for row in table("concepts.md", "program")} == settings


def test_suites_and_their_keys():
    from fleet_rlm.suites.generators import GENERATORS
    from fleet_rlm.suites.table import SuiteTable, TaskTable

    built_in = {path.stem for path in (ROOT / "evals").glob("*.toml")}
    assert column("suites.md", "suite") | column("datasets.md", "suite") == built_in
    for name, _, contexts in table("suites.md", "suite"):
        tasks = tomllib.loads((ROOT / "evals" / f"{name.strip('`')}.toml").read_text())["tasks"]
        lengths = sorted(length for task in tasks for length in task["lengths"])
        shown = re.findall(r"\d+[kM]", contexts.replace("tokens", ""))
        assert [shown[0], shown[-1]] == [short_length(lengths[0]), short_length(lengths[-1])], name
    fields = {"suite": SuiteTable.model_fields, "tasks": TaskTable.model_fields}
    keys = {f"{part}.{name}" for part, found in fields.items() for name in found}
    assert column("suites.md", "key") == keys
    parameters = {
        (f"`{generator.name}`", f"`{name}`", str(field.default))
        for generator in GENERATORS.values()
        for name, field in generator.params.model_fields.items()
    }
    assert {tuple(row[:3]) for row in table("suites.md", "generator")} == parameters
    shortest = [[f"`{g.name}`", g.least] for g in GENERATORS.values()]
    assert table("suites.md", "shortest context of") == shortest
    rules = column("suites.md", "task") | column("scoring.md", "rule")
    assert rules >= {generator.rule for generator in GENERATORS.values()}


def test_datasets_rules_and_their_keys():
    from fleet_rlm.scoring.judge import RUBRICS
    from fleet_rlm.scoring.library import LIBRARY
    from fleet_rlm.suites import manifest
    from fleet_rlm.suites.table import FetchedTable

    tables = {"dataset": manifest.DatasetTable, "source": manifest.SourceTable}
    keys = {f"{part}.{name}" for part, table in tables.items() for name in table.model_fields}
    assert column("datasets.md", "manifest key") == keys | {
        name for name in manifest.ManifestFile.model_fields if name not in tables
    }
    assert column("datasets.md", "task key") == set(FetchedTable.model_fields) - {"name"}
    assert column("scoring.md", "rule") == set(LIBRARY)
    page = (ROOT / "docs" / "scoring.md").read_text()
    assert names([page[page.index("Rubrics are") :].partition("or a text")[0]]) == set(RUBRICS)


def test_slash_commands():
    from fleet_rlm.serving.slash import HELP

    shown = {row[0].strip("`").replace("\\|", "|") for row in table("chat.md", "command")}
    assert shown == set(HELP)


def test_routes(tmp_path):
    from fleet_rlm.config import resolve
    from fleet_rlm.serving.app import Service
    from fleet_rlm.serving.engine import Engine
    from fleet_rlm.serving.settings import ServerSettings

    service = Service(Engine(None, resolve({}, {}, tmp_path), {}), ServerSettings(state=tmp_path))
    routes = {
        f"{method} {route.path}"
        for route in service.app.routes
        for method in getattr(route, "methods", {"WS"}) - {"HEAD"}
    }
    assert column("serve.md", "route") == routes


def test_sandbox_levels_and_limits():
    from fleet_rlm.runner.sandboxes import CELL_SECONDS
    from fleet_rlm.sandbox import levels
    from fleet_rlm.sandbox.session import Limits

    assert column("sandbox.md", "level") == {"auto", levels.MODAL.name, *levels.NAMES}
    page = " ".join((ROOT / "docs" / "sandbox.md").read_text().replace("\n>", "\n").split())
    assert levels.LANDLOCK_LABEL in page
    shown = {row[0]: row[1] for row in table("sandbox.md", "limit")}
    limits = Limits()
    assert shown["memory"].startswith(f"{limits.memory_bytes >> 30} GiB")
    assert shown["one file"] == f"{limits.file_bytes >> 20} MiB"
    assert shown["all files of a session"].startswith(f"{limits.scratch_bytes >> 20} MiB")
    assert shown["open files"] == str(limits.open_files)
    assert shown["one piece of code"].startswith(f"{CELL_SECONDS:g} s")
    assert f"last {limits.stdout_tail:,} characters" in shown["output that is kept"]


def test_run_summary_record_and_exit_codes():
    from fleet_rlm.errors import Exit
    from fleet_rlm.runner.record import Record
    from fleet_rlm.runner.summary import summarize

    arm = {"program": "", "models": {"root": {"name": ""}}, "sandbox": {}, "settings": {}}
    empty = summarize({"run": "", "suite": {"name": ""}, "arm": arm}, [], [], 0.0)
    assert column("runs.md", "summary key") == set(empty)
    assert column("runs.md", "record key") == {field.name for field in dataclasses.fields(Record)}
    assert {int(row[0]) for row in table("runs.md", "code")} <= {code.value for code in Exit}


def test_models_and_their_environment():
    from fleet_rlm.config import API_KEY_VARIABLES, ENVIRONMENT, Config, ModalConfig
    from fleet_rlm.lm.connect import PROVIDER_KEYS

    assert column("models.md", "name") == {*API_KEY_VARIABLES, *ENVIRONMENT.values()}
    shown = {row[0].strip("`"): names(row[1:]) for row in table("models.md", "provider")}
    assert shown == {provider: set(variables) for provider, variables in PROVIDER_KEYS.items()}
    page = (ROOT / "docs" / "models.md").read_text()
    takes = page[page.index("`fleet.toml` takes") :].partition("\n\n")[0]
    assert names([takes]) >= set(Config.model_fields)
    assert column("modal.md", "key") == set(ModalConfig.model_fields)


def test_the_skills_of_the_simulated_model():
    from fleet_rlm.lm.simulated.skill import ABILITIES, label_error, reading_skill

    assert LABEL in (ROOT / "docs" / "models.md").read_text()
    assert table("models.md", "ability") == [
        [f"`{a.name}`", a.does, f"{a.untold:.2f}", f"{a.told:.2f}"] for a in ABILITIES
    ]
    lengths = (2_000, 8_000, 16_000, 32_000, 128_000)
    assert table("models.md", "tokens") == [[f"{n:,}", f"{reading_skill(n):.2f}"] for n in lengths]
    lines = (60, 90, 250, 400, 700)
    assert table("models.md", "lines") == [[f"{n}", f"{label_error(n):.4f}"] for n in lines]


def test_the_keys_of_a_recipe():
    from fleet_rlm.search.recipe import Recipe

    assert column("optimize.md", "key") == set(Recipe.model_fields)
    for name, default, *_ in table("optimize.md", "key"):
        field = Recipe.model_fields[name.strip("`")]
        if default and default != "empty":
            assert default.strip("`") == str(field.default)
        else:
            assert field.is_required() or not field.get_default(call_default_factory=True)
