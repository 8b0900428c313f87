"""CodeQA: four-choice questions about a source tree, whose answers its syntax trees give.

After the code repository questions of LongBench v2 (THUDM/LongBench, data Apache-2.0), with answers
that are computed instead of annotated. Wrong options come from the same file. The tree is the
running interpreter's standard library unless another is named, so a window's id holds its digest.
The installed packages, beside it, are enough for 10M tokens and more.
"""

from __future__ import annotations

import ast
import hashlib
import re
import sysconfig
import warnings
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from itertools import accumulate, product
from pathlib import Path
from random import Random
from typing import Any, ClassVar, Literal, NamedTuple, Self

from pydantic import model_validator
from pydantic_core import PydanticCustomError

from fleet_rlm.errors import DataError
from fleet_rlm.suites.generators import filling
from fleet_rlm.suites.generators.base import FILL, Draft, Order, Params, spread
from fleet_rlm.suites.sample import Question
from fleet_rlm.suites.tokens import count_tokens

HEAD = "# file: {path}\n"
ASK = {
    "default": "In the file {path}, what is the default value of the parameter {about} of {name}?",
    "base": "In the file {path}, which is the first base class of the class {name}?",
    "raises": "In the file {path}, which exception does {name} raise by a raise statement?",
    "caller": "In the file {path}, which function or method calls {name}?",
}
_FORM = " {options}. Answer with the letter of the right option only."
_LETTERS = "ABCD"
_COMMON = {
    "default": ("None", "True", "False", "0", "1", "''"),
    "base": ("object", "Exception", "dict", "list", "tuple"),
    "raises": ("ValueError", "TypeError", "KeyError", "RuntimeError", "OSError"),
    "caller": ("main", "__init__", "run", "close", "setup"),
}
_LEAST = 200  # characters of a file worth showing
_READ = 40  # files near a depth that a question may be about
_NEAR = (
    0.1  # of the text: so far from its depth a question of the wanted kind is better than another
)

CodeKind = Literal["default", "base", "raises", "caller"]
Function = ast.FunctionDef | ast.AsyncFunctionDef


class CodeqaParams(Params):
    """Knobs of `codeqa`."""

    tree: str = ""
    """Folder of Python files; the standard library when empty, with all packages if `installed`."""

    @model_validator(mode="after")
    def _exists(self) -> Self:
        if not all(Path(folder).is_dir() for folder in self.folders):
            raise PydanticCustomError("tree", f"no folder {self.tree}")
        return self

    def identity(self) -> dict[str, Any]:
        return super().identity() | {"tree": read_tree(self.folders).digest}

    @property
    def folders(self) -> tuple[str, ...]:
        """Where the tree's files are."""
        if self.tree not in ("", "installed"):
            return (str(Path(self.tree).expanduser()),)
        names = ("stdlib", "purelib", "platlib") if self.tree else ("stdlib",)
        return tuple(dict.fromkeys(sysconfig.get_path(name) for name in names))


class Tree(NamedTuple):
    """The Python files of folders that can be read, by their paths inside them."""

    files: dict[str, str]
    digest: str


class Fact(NamedTuple):
    """One thing that a file says."""

    kind: CodeKind
    name: str
    about: str
    answer: str
    line: int
    """Of the definition that says it, 1 for the file's first."""


class Codeqa:
    """Writes `codeqa` windows."""

    name: ClassVar = "codeqa"
    version: ClassVar = 2
    rule: ClassVar = "choice"
    uses_corpus: ClassVar = False
    least: ClassVar = "1,000 for each question, or few differ and all lie in one place"
    max_questions: ClassVar = 8
    params: ClassVar[type[Params]] = CodeqaParams

    def min_length(self, params: CodeqaParams, questions: int) -> int:
        return 1000 * questions

    def draft(self, order: Order, params: CodeqaParams) -> Draft:
        tree = read_tree(params.folders)
        for attempt in range(20):
            shown, tokens = _shown(order, f"files {attempt}", params, tree)
            questions = tuple(_questions(order, shown))
            if len(questions) == order.questions:
                texts = [HEAD.format(path=path) + text for path, text in shown.items()]
                return Draft(blocks=filling.blocks("", texts), tokens=tokens, questions=questions)
        raise DataError(f"codeqa found too few facts for {order.questions} questions")

    def solve(self, params: CodeqaParams, context: str, query: str) -> tuple[str, ...]:
        path = re.findall(r"In the file (\S+), ", query)[0]
        start = context.index(HEAD.format(path=path)) + len(HEAD.format(path=path))
        text = context[start:].partition("\n# file: ")[0]
        options = re.findall(r"\(([A-D])\) (.+?)(?=, \([B-D]\) |\. Answer with)", query)
        answer = _look_up(_parse(text), query)
        return tuple(letter for letter, option in options if option == answer)


@lru_cache(maxsize=4)
def read_tree(folders: tuple[str, ...]) -> Tree:
    """All Python files below `folders`; what is hidden, or installed below one of them, left out.

    Of files with one path inside two folders the first counts.
    """
    files: dict[str, str] = {}
    digest = hashlib.sha256()
    for path, inside in _python_files(folders):
        if inside.as_posix() in files:
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            continue
        name = inside.as_posix()
        if len(text) >= _LEAST and "# file: " not in text and " " not in name:
            files[name] = text.rstrip("\n") + "\n\n"
            digest.update(f"{name}\0{text}\0".encode())
    return Tree(files, digest.hexdigest())


def _python_files(folders: tuple[str, ...]) -> Iterator[tuple[Path, Path]]:
    skipped = {"site-packages", "dist-packages", "__pycache__"}
    for root in map(Path, folders):
        for path in sorted(root.rglob("*.py")):
            inside = path.relative_to(root)
            if skipped.isdisjoint(inside.parts) and not any(p[0] == "." for p in inside.parts):
                yield path, inside


def _shown(
    order: Order, purpose: str, params: CodeqaParams, tree: Tree
) -> tuple[dict[str, str], int]:
    """Files in random order that fill the window, the last of them perhaps cut."""
    names = sorted(tree.files)
    # All windows go round one order of the files, from places far apart: short ones share few.
    order.shared_rng(purpose).shuffle(names)
    start = int(spread(order.window, 0.0) * len(names))
    names = names[start:] + names[:start]
    shown: dict[str, str] = {}
    left = order.length
    passed: list[str] = []
    for name in names:
        text = tree.files[name]
        if left < (1 - FILL) * order.length / 2:
            break
        if len(text) > 6 * left:  # hopeless: Python takes three to five characters a token
            passed.append(name)
            continue
        cost = count_tokens(HEAD.format(path=name) + text)
        if cost <= left:
            shown[name] = text
            left -= cost
        else:
            passed.append(name)
    for name in passed[:200]:
        if left <= (1 - FILL) * order.length:
            break
        text = _cut(tree.files[name], left - count_tokens(HEAD.format(path=name)))
        if text:
            shown[name] = text
            left -= count_tokens(HEAD.format(path=name) + text)
    if left > (1 - FILL) * order.length:
        raise DataError(
            f"{params.folders[0]} fills {order.length - left} of {order.length} tokens",
            fix="--set params.tree=installed, or a larger tree of your own",
        )
    return shown, order.length - left


PARSES = 8
"""Tries of one parse: CPython counts the depth of all threads' parses in one place, and says "AST
constructor recursion depth mismatch" when another one began or ended in between."""


def _cut(text: str, tokens: int) -> str:
    """The first statements of a file that fit; comments between them stay."""
    lines = _lines(text)
    ends = [node.end_lineno or 0 for node in _parse(text).body]
    fitting = bisect_right(ends, tokens, key=lambda end: count_tokens("".join(lines[:end])) + 2)
    return "".join(lines[: ends[fitting - 1]]).rstrip("\n") + "\n\n" if fitting else ""


def _lines(text: str) -> list[str]:
    """As the parser counts them: `splitlines` breaks at form feeds too."""
    return [f"{line}\n" for line in text.split("\n")]


def _parse(text: str) -> ast.Module:
    for _ in range(PARSES):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # other people's invalid escapes
                return ast.parse(text)
        except SystemError:
            continue
        except (SyntaxError, ValueError, RecursionError):
            break
    return ast.Module(body=[], type_ignores=[])


class _Layout:
    """Where the files of a window, and what they say, stand: shares of its characters."""

    def __init__(self, shown: dict[str, str]) -> None:
        self.paths = list(shown)
        self._shown = shown
        sizes = [len(HEAD.format(path=path) + text) for path, text in shown.items()]
        self._starts = list(accumulate(sizes, initial=0))
        self._said: dict[int, list[tuple[float, Fact]]] = {}

    def away(self, place: int, depth: float) -> float:
        """How far file `place` is from `depth`; 0 when it spans it."""
        start, end = (self._starts[i] / self._starts[-1] for i in (place, place + 1))
        return max(start - depth, depth - end, 0.0)

    def near(self, depth: float) -> list[int]:
        """The files nearest to `depth`, the nearest first."""
        return sorted(range(len(self.paths)), key=lambda place: self.away(place, depth))[:_READ]

    def said(self, place: int) -> list[tuple[float, Fact]]:
        """What file `place` says, and where."""
        if place not in self._said:
            path = self.paths[place]
            begin = self._starts[place] + len(HEAD.format(path=path))
            lines = list(accumulate(map(len, _lines(self._shown[path])), initial=begin))
            self._said[place] = [
                (lines[fact.line - 1] / self._starts[-1], fact)
                for fact in _facts(_parse(self._shown[path]))
            ]
        return self._said[place]


def _questions(order: Order, shown: dict[str, str]) -> Iterator[Question]:
    layout = _Layout(shown)
    asked: set[str] = set()
    for index in range(order.questions):
        slot = (index + order.window) % order.questions
        shift = order.shared_rng(f"depth {slot}").random()
        depth = (slot + spread(order.window, shift)) / order.questions
        turn = order.window * order.questions + index
        kinds = [list(ASK)[(turn + step) % len(ASK)] for step in range(len(ASK))]
        letter = _LETTERS[(order.window + index) % len(_LETTERS)]
        rng = order.rng(f"question {index}")
        near = layout.near(depth)
        # The wanted kind first, but not at the price of asking about the same part of every text.
        tries = [(_NEAR, [kind], place) for kind, place in product(kinds, near)]
        tries += [(1.0, kinds, place) for place in near]
        made = (
            question
            for reach, some, place in tries
            if layout.away(place, depth) <= reach
            for question in _about(rng, layout, place, some, depth, reach, letter)
        )
        question = next((q for q in made if _stem(q.query) not in asked), None)
        if question:
            asked.add(_stem(question.query))
            yield question


def _about(
    rng: Random,
    layout: _Layout,
    place: int,
    kinds: list[str],
    depth: float,
    reach: float,
    letter: str,
) -> Iterator[Question]:
    """Questions on one file, those whose answer stands nearest to `depth` first."""
    said = layout.said(place)
    found = [(abs(at - depth), at, fact) for at, fact in said if fact.kind in kinds]
    rng.shuffle(found)
    for distance, at, fact in sorted(found, key=lambda one: one[0]):
        if distance <= reach:
            facts = [other for _, other in said]
            if question := _word(rng, layout.paths[place], fact, facts, letter, at):
                yield question


def _stem(query: str) -> str:
    """The question without its options."""
    return query.partition("? ")[0]


def _word(
    rng: Random, path: str, fact: Fact, facts: list[Fact], letter: str, where: float
) -> Question | None:
    others = sorted({f.answer for f in facts if f.kind == fact.kind} - {fact.answer})
    if fact.kind == "caller":
        others = sorted({f.name for f in facts} - {fact.answer, fact.name})
    rng.shuffle(others)
    others += [common for common in _COMMON[fact.kind] if common not in (*others, fact.answer)]
    if len(others) < len(_LETTERS) - 1:
        return None
    options = others[: len(_LETTERS) - 1]
    options.insert(_LETTERS.index(letter), fact.answer)
    listed = ", ".join(f"({x}) {option}" for x, option in zip(_LETTERS, options, strict=True))
    query = ASK[fact.kind].format(path=path, name=fact.name, about=fact.about)
    return Question(
        query=query + _FORM.format(options=listed),
        gold=(letter,),
        answer_type="label",
        options=tuple(_LETTERS),
        kind=fact.kind,
        position=where,
    )


def _facts(tree: ast.Module) -> Iterator[Fact]:
    """What a file says that has one answer; names that occur twice are left out."""
    found = list(_definitions(tree, ""))
    names = Counter(name for name, _ in found)
    callers: dict[str, set[str]] = {}
    for name, node in found:
        for called in () if isinstance(node, ast.ClassDef) else _called(node):
            callers.setdefault(called, set()).add(name)
    for name, node in found:
        if names[name] > 1:
            continue
        if isinstance(node, ast.ClassDef):
            if node.bases and _is_plain(ast.unparse(node.bases[0])):
                yield Fact("base", name, "", ast.unparse(node.bases[0]), node.lineno)
            continue
        for argument, default in _defaults(node):
            if _is_plain(default):
                yield Fact("default", name, argument, default, node.lineno)
        raised = {_raised(n) for n in ast.walk(node) if isinstance(n, ast.Raise) and n.exc}
        if len(raised) == 1 and (only := raised.pop()):
            yield Fact("raises", name, "", only, node.lineno)
        calling = callers.get(name, set()) - {name}
        if "." not in name and len(calling) == 1 and (caller := calling.pop()).count(".") < 2:
            yield Fact("caller", name, "", caller, node.lineno)


def _definitions(
    node: ast.Module | ast.ClassDef, prefix: str
) -> Iterator[tuple[str, ast.ClassDef | Function]]:
    for child in node.body:
        if isinstance(child, ast.ClassDef):
            yield prefix + child.name, child
            yield from _definitions(child, f"{prefix}{child.name}.")
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield prefix + child.name, child


def _defaults(node: Function) -> Iterator[tuple[str, str]]:
    positional = [*node.args.posonlyargs, *node.args.args]
    tail = positional[len(positional) - len(node.args.defaults) :]
    for argument, default in zip(tail, node.args.defaults, strict=True):
        yield argument.arg, ast.unparse(default)
    for argument, value in zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True):
        if value is not None:
            yield argument.arg, ast.unparse(value)


def _called(node: Function) -> set[str]:
    return {
        n.func.id
        for n in ast.walk(node)
        if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)
    }


def _raised(node: ast.Raise) -> str:
    what = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
    return what.id if isinstance(what, ast.Name) and what.id[:1].isupper() else ""


def _is_plain(text: str) -> bool:
    return len(text) <= 40 and not set(text) & set("(),\n")


def _look_up(tree: ast.Module, query: str) -> str:
    """The answer, looked up by name in a tree walked anew."""
    name = re.findall(r"(?:of|class|does|calls) ([\w.]+)(?:\?| raise)", query)[0]
    if "which function or method calls" in query:
        walked = list(ast.walk(tree))
        classes = [n for n in walked if isinstance(n, ast.ClassDef)]
        calling = []
        for function in walked:
            if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            calls = [n.func for n in ast.walk(function) if isinstance(n, ast.Call)]
            owners = [owner.name for owner in classes if function in owner.body]
            caller = ".".join([*owners, function.name])
            if any(getattr(call, "id", None) == name for call in calls) and caller != name:
                calling.append(caller)
        return calling[0]
    node: Any = tree
    for part in name.split("."):
        (node,) = [n for n in node.body if getattr(n, "name", None) == part]
    if "first base class" in query:
        return ast.unparse(node.bases[0])
    if "which exception" in query:
        raises = [n.exc for n in ast.walk(node) if isinstance(n, ast.Raise) and n.exc]
        return str(getattr(getattr(raises[0], "func", raises[0]), "id", ""))
    parameter = re.findall(r"parameter (\w+) of", query)[0]
    given = node.args.posonlyargs + node.args.args
    values = dict(zip(reversed(given), reversed(node.args.defaults), strict=False))
    values |= dict(zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True))
    return next(ast.unparse(v) for a, v in values.items() if a.arg == parameter)
