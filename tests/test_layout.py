"""The shape of the checkout: rooms, start-up, content folders, and what no file may hold."""

import ast
import json
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "fleet_rlm"
CONTENT = ("evals", "datasets", "optimize", "experiments")
HEAVY = {"dspy", "mlflow", "modal", "datasets", "pandas", "optuna", "litellm", "tiktoken"}
SCRIPTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]

# From the ground up; a room may use its own floor and those below.
FLOORS = (
    {"errors"},
    {"ledger", "board", "config", "project", "lexicon"},
    {"sandbox", "lm", "scoring", "statistics"},
    {"program", "suites", "tracking"},
    {"serving", "report", "search", "runner"},
    {"cli"},
)
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}

MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms(path: Path) -> Iterator[tuple[int, str]]:
    """(line, room) of every import of ours, those inside functions included."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            package, _, rest = name.partition(".")
            room = rest.partition(".")[0]
            if package == "fleet_rlm" and not room.startswith("__"):
                yield node.lineno, room


def kept_files() -> Iterator[Path]:
    """What a commit holds, as far as names tell."""
    made = {"__pycache__", "runs", "mlartifacts", "dist", "build", "site"}
    store = "mlflow.db"  # with its journal: what `make demo` leaves
    for path in ROOT.rglob("*"):
        parts = path.relative_to(ROOT).parts
        hidden = any(part[0] == "." for part in parts[:-1]) and parts[0] not in (".ci", ".github")
        if path.name.startswith(store) or not path.is_file():
            continue
        if not hidden and not made.intersection(parts):
            yield path


def test_every_room_has_its_floor():
    assert {room_of(path) for path in MODULES} <= set(FLOOR_OF)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_downwards(path):
    floor = FLOOR_OF[room_of(path)]
    upwards = [
        f"line {line}: {room}"
        for line, room in imported_rooms(path)
        if FLOOR_OF.get(room, 99) > floor
    ]
    assert not upwards


def test_no_two_rooms_need_each_other():
    uses = {room: set() for room in FLOOR_OF}
    for path in MODULES:
        uses[room_of(path)] |= {room for _, room in imported_rooms(path)} - {room_of(path)}
    left = dict(uses)
    while free := [room for room, used in left.items() if not used & set(left)]:
        for room in free:
            del left[room]
    assert not left, f"imports in a circle among {sorted(left)}"


@pytest.mark.parametrize("arguments", [None, ["--help"]], ids=["import", "help"])
@pytest.mark.parametrize("target", SCRIPTS.values(), ids=SCRIPTS.keys())
def test_a_command_starts_light(target, arguments):
    module, _, function = target.partition(":")
    code = (
        "import sys, json, importlib, contextlib, os\n"
        f"main = getattr(importlib.import_module({module!r}), {function!r})\n"
        f"arguments = {arguments!r}\n"
        "if arguments is not None:\n"
        f"    sys.argv = [{module!r}, *arguments]\n"
        "    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(sys.stderr):\n"
        "        main()\n"
        f"print(json.dumps(sorted({HEAVY!r} & set(sys.modules))))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == []
    assert bool(done.stderr) == bool(arguments), "help is printed, an import is silent"


def test_looking_at_what_is_stored_needs_no_dspy():
    rooms = ("compare", "gate", "inspect", "suites")
    code = f"import sys, {', '.join(f'fleet_rlm.cli.{room}' for room in rooms)}\n"
    code += f"print(sorted({HEAVY!r} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "[]\n", done.stderr


def test_content_folders_are_no_packages():
    assert not [path for folder in CONTENT for path in (ROOT / folder).rglob("__init__.py")]


def test_datasets_is_hugging_faces():
    find = "from importlib.util import find_spec; print(find_spec('datasets').origin)"
    done = subprocess.run(
        [sys.executable, "-c", find], cwd=ROOT, capture_output=True, text=True, check=True
    )
    origin = Path(done.stdout.strip())
    assert origin.name == "__init__.py"
    assert (origin.parent / "load.py").exists()
    assert origin.parent != ROOT / "datasets"


def test_every_module_says_what_it_owns():
    silent = [
        str(path.relative_to(ROOT))
        for folder in (PACKAGE, ROOT / "tests")
        for path in folder.rglob("*.py")
        if not ast.get_docstring(ast.parse(path.read_text()))
    ]
    assert not silent


def test_no_file_names_a_package_host_or_a_path_of_one_machine():
    # Put together here, so that this file does not hold them either.
    hosts = ("pypi" + ".org", "python" + "hosted.org", "ana" + "conda.org")
    foreign = (*hosts, f"{ROOT}/", f"{ROOT.parent}/shared")
    found = [
        f"{path.relative_to(ROOT)}: {text}"
        for path in kept_files()
        for text in foreign
        if text.encode() in path.read_bytes()
    ]
    assert not found
