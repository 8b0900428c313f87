"""The shape of the checkout: rooms, start-up, content folders, and what no file may hold."""

import ast
import inspect
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest

import fleet_rlm

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

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
# Bases whose methods, if they have any, say nothing of ours.
DESCRIBE_NOTHING = {"ABC", "BaseModel", "Generic", "NamedTuple", "Protocol", "StrEnum", "TypedDict"}

MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms(path: Path) -> Iterator[tuple[int, str]]:
    """(line, room) of every import of ours, those inside functions included."""
    for node in ast.walk(tree_of(path)):
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
    for folder, folders, names in os.walk(ROOT):
        folders[:] = [
            name
            for name in folders
            if name not in made and (name[0] != "." or name in (".ci", ".github"))
        ]
        for name in names:
            if not name.startswith(store):
                yield Path(folder, name)


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
        if not ast.get_docstring(tree_of(path))
    ]
    assert not silent


def definitions(body, owner=None):
    """(class or None, definition) of each class, function and method."""
    for node in body:
        if isinstance(node, (*FUNCTIONS, ast.ClassDef)):
            yield owner, node
        if isinstance(node, ast.ClassDef):
            yield from definitions(node.body, node)


@cache
def defined():
    return {path: list(definitions(tree_of(path).body)) for path in MODULES}


def base_names(owner):
    return {ast.unparse(base).partition("[")[0].rpartition(".")[2] for base in owner.bases}


def described_methods(owner):
    return {node.name for node in owner.body if isinstance(node, FUNCTIONS) if text_of(node)}


def text_of(node):
    return ast.get_docstring(node) or ""


def test_everything_public_is_described_where_it_is_declared():
    """A method that overrides or implements another is described there: in a base class of ours or
    of a library, or in a protocol."""
    classes = {}
    for found in defined().values():
        for _, node in found:
            if isinstance(node, ast.ClassDef):
                classes.setdefault(node.name, []).append(node)
    protocols = [of for same in classes.values() for of in same if "Protocol" in base_names(of)]
    promised = set().union(*map(described_methods, protocols))

    def is_inherited(owner, name):
        return any(
            base not in classes
            or any(name in described_methods(of) or is_inherited(of, name) for of in classes[base])
            for base in base_names(owner) - DESCRIBE_NOTHING
        )

    silent = [
        f"{path.relative_to(ROOT)}:{node.lineno}: {node.name}"
        for path, found in defined().items()
        for owner, node in found
        if not text_of(node)
        and not node.name.startswith("_")
        and not (owner and owner.name.startswith("_"))
        and not (owner and (node.name in promised or is_inherited(owner, node.name)))
    ]
    assert not silent


def test_no_docstring_describes_an_argument_that_is_not_taken():
    stale = []
    for path, found in defined().items():
        for _, node in found:
            _, section, listed = text_of(node).partition("Args:\n")
            if section and isinstance(node, FUNCTIONS):
                names = re.findall(r"^    (\w+(?:, \w+)*):", re.split(r"\n(?=\w)", listed)[0], re.M)
                given = node.args
                taken = (
                    *given.posonlyargs,
                    *given.args,
                    *given.kwonlyargs,
                    given.vararg,
                    given.kwarg,
                )
                unknown = set(", ".join(names).split(", ")) - {one.arg for one in taken if one}
                stale += [f"{path.relative_to(ROOT)}:{node.lineno}: {name}" for name in unknown]
    assert not stale


def exported_callables():
    """(name, function, the text that describes it) of what `fleet_rlm` exports."""
    for name in fleet_rlm.__all__:
        found = getattr(fleet_rlm, name)
        if inspect.isfunction(found):
            yield name, found, inspect.getdoc(found)
        elif inspect.isclass(found):
            if inspect.isfunction(vars(found).get("__init__")):
                yield name, found.__init__, inspect.getdoc(found)
            for method, function in vars(found).items():
                if inspect.isfunction(function) and not method.startswith("_"):
                    yield f"{name}.{method}", function, inspect.getdoc(function)


def test_exported_names_describe_every_argument():
    silent = [
        f"{name}: {argument}"
        for name, function, text in exported_callables()
        for argument in inspect.signature(function).parameters
        if argument != "self" and not re.search(rf"\b{argument}\b", text or "")
    ]
    assert not silent


def test_who_catches_everything_says_why():
    """Else a handler could take an outage for an answer, or hide a bug."""
    broad = re.compile(r"(?:except|with suppress\()\W*(?:(?:Base)?Exception\b|:)")
    silent = []
    for path in MODULES:
        lines = [line.strip() for line in path.read_text().splitlines()]
        for number, (line, inside) in enumerate(pairwise(lines), 1):
            why = re.sub(r"noqa: BLE001[ -]*", "", line.partition("#")[2])
            if broad.match(line) and not (why.strip() or inside.startswith("#")):
                silent.append(f"{path.relative_to(ROOT)}:{number}")
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
