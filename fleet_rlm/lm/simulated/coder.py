"""The Python that the simulated model writes for the REPL.

Words from a prompt reach the source only through `repr`. Every program leaves the bare answer, a
string, in `result` and ends by printing it after `RESULT:`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from fleet_rlm.lm.simulated.asks import count_ask, find_ask, label_ask, tally_ask
from fleet_rlm.lm.simulated.fields import filler, primary_field
from fleet_rlm.lm.simulated.prompt import Contract, FieldKind, Variable
from fleet_rlm.lm.simulated.skill import Skills
from fleet_rlm.lm.simulated.world import MARKER, Question, split_form

GLANCE_CHARS = 250_000
"""How much of the text a sloppy first program reads."""

PART_CHARS = 20_000
"""How much text one sub-query reads when the model chunks; five times that when it doesn't."""

SPARE_CALLS = 2
"""Sub-queries kept back for what a check may find missing."""

_SHOW = "print('RESULT:', result)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """All that the model has understood of one RLM prompt."""

    question: Question | None
    """None when the wording of the query says nothing to it."""

    query: str
    """The query as an expression: a variable's name, or a literal when no variable holds it."""

    texts: tuple[Variable, ...]
    """The variables to answer from."""

    skills: Skills
    contract: Contract

    @property
    def asks_lines(self) -> bool:
        """Whether the answer comes from sub-queries about lines."""
        return self.question is not None and self.question.counts and self.contract.query


def write_look(task: Task) -> str:
    """Code that shows what the text looks like."""
    code = [
        f"full = {_full(task)}",
        "lines = full.splitlines()",
        "print(len(full), 'characters,', len(lines), 'lines')",
        "print('\\n'.join(line[:200] for line in lines[:5]))",
    ]
    if task.question is not None and not task.question.counts:
        mark = task.question.relation
        code.append(f"print([line[:200] for line in lines if {mark!r} in line][:3])")
    return "\n".join(code)


def write_solution(task: Task, *, is_sloppy: bool = False, step: str | None = None) -> str:
    """Code that computes the result.

    Args:
        is_sloppy: leave part of the text out, as a hurried programmer would.
        step: lines per sub-query as an expression, over what the model would choose.
    """
    question = task.question
    if question is None:
        return _write_reading(task)
    if question.kind == "lookup":
        return _write_lookup(task, question, is_sloppy=is_sloppy)
    if question.kind == "trace":
        return _write_trace(task, question, is_sloppy=is_sloppy)
    if not task.contract.query:
        return _write_word_count(task, question)
    last = "len(rows) - STEP + 1" if is_sloppy else "len(rows)"
    return "\n".join(
        [
            "from collections import Counter",
            "import re",
            f"text = full = {_full(task)}",
            _rows(task, question),
            f"STEP = {step or _step(task)}",
            f"parts = [rows[i:i + STEP] for i in range(0, {last}, STEP)]",
            "out, bad = [], []",
            *_asking(task, question, "parts"),
            *_concluding(task, question),
        ]
    )


def write_check(task: Task) -> str:
    """Code that shows how much of the text went into the result."""
    if not task.asks_lines:
        return f"print('CHECK:', len(text), 'of', len(full), 'characters')\n{_SHOW}"
    if "label" in task.skills:
        wrong = "i for i, part in enumerate(parts) if len(out[i].splitlines()) != len(part)"
    else:
        wrong = "i for i, answer in enumerate(out) if answer.startswith('[ERROR]')"
    return "\n".join(
        [
            f"bad = [{wrong}]",
            "missed = sum(len(parts[i]) for i in bad)",
            "print('CHECK:', sum(map(len, parts)) - missed, 'of', len(rows), 'lines')",
            _SHOW,
        ]
    )


def write_repair(task: Task) -> str:
    """Code that adds what a check found missing, at the cost of the missing part only."""
    question = task.question
    if question is None or not task.asks_lines:
        return write_solution(task)
    return "\n".join(
        [
            "rest = rows[sum(map(len, parts)):] + [row for i in bad for row in parts[i]]",
            "parts = [part for i, part in enumerate(parts) if i not in bad]",
            "out = [answer for i, answer in enumerate(out) if i not in bad]",
            "more = [rest[i:i + STEP] for i in range(0, len(rest), STEP)]",
            *_asking(task, question, "more"),
            "parts, bad = parts + more, []",
            *_concluding(task, question),
        ]
    )


def write_salvage(task: Task) -> str:
    """Code that concludes from the replies there are, when no sub-query is left."""
    question = task.question
    if question is None or not task.asks_lines:
        return f"result = 'unknown'\n{_SHOW}"
    return "\n".join(["parts = parts[:len(out)]", *_concluding(task, question, is_partial=True)])


def write_submit(task: Task) -> str:
    """Code that submits `result`, or prints it again where the prompt names no SUBMIT."""
    fields = task.contract.submit
    if fields is None:
        return _SHOW
    first = primary_field(fields)
    given = [
        f"{name}={_typed(task, field.kind) if name == first else repr(filler(name, field))}"
        for name, field in fields.items()
    ]
    return f"SUBMIT({', '.join(given)})"


def break_code(code: str) -> str:
    """`code` with a slip of the pen near its beginning: it fails before any sub-query is spent."""
    if code.startswith("import re\n"):
        return code.removeprefix("import re\n")
    return code.replace("text.", "txt.", 1)


def _typed(task: Task, kind: FieldKind) -> str:
    if kind in ("int", "float"):
        return f"{kind}(''.join(c for c in result if c.isdigit()) or 0)"
    if kind == "list":
        return "[part for part in result.split(', ') if part]"
    if kind == "bool":
        return "bool(result)"
    if kind != "text" or task.question is None:
        return "result"
    if "form" not in task.skills:
        return f"'I found ' + result + {_aside(task.question)}"
    before, after = split_form(task.question)
    parts = (before and repr(before), "(result or 'unknown')", after and repr(after))
    return " + ".join(part for part in parts if part)


def _aside(question: Question) -> str:
    # What makes a talkative answer ambiguous: it also tells what else was seen.
    if question.kind == "lookup":
        return "' among ' + ', '.join(codes)"
    if question.kind == "trace":
        return "' among ' + ', '.join(list(value_of)[:20])"
    if question.kind == "count":
        return "f' in {len(rows)} lines'"
    if question.kind == "compare":
        return repr(f" {question.other}, not the other way round")
    return "' before ' + ', '.join(sorted(tally))"


def _full(task: Task) -> str:
    return " + '\\n' + ".join(_as_text(variable) for variable in task.texts) or "''"


def _as_text(variable: Variable) -> str:
    if variable.type in ("list", "tuple"):
        return f"'\\n'.join(map(str, {variable.name}))"
    if variable.type == "dict":
        return f"'\\n'.join(f'{{k}}: {{v}}' for k, v in {variable.name}.items())"
    return variable.name if variable.type == "str" else f"str({variable.name})"


def _text(task: Task, *, is_sloppy: bool) -> list[str]:
    part = f"full[:{GLANCE_CHARS}]" if is_sloppy else "full"
    return ["import re", f"full = {_full(task)}", f"text = {part}"]


def _write_lookup(task: Task, question: Question, *, is_sloppy: bool) -> str:
    words = r"\s+".join(map(re.escape, question.relation.split()))
    if "exact" in task.skills:
        pattern = words + r"\s+for\s+%s\s+is\s+([\w-]+)(\s*\([^)\n]*\))?"
        choose = [
            "codes = [code for code, note in found]",
            "current = [code for code, note in found if 'revoked' not in note]",
            "result = current[0] if current else ''",
        ]
    else:
        pattern = words + r"\s+for\s+%s\w*\s+is\s+([\w-]+)"
        choose = ["codes = found", "result = codes[0] if codes else ''"]
    return "\n".join(
        [
            *_text(task, is_sloppy=is_sloppy),
            f"name = {question.subject!r}",
            f"found = re.findall({pattern!r} % re.escape(name), text)",
            "print(len(found), 'entries found')",
            *choose,
            _SHOW,
        ]
    )


def _write_trace(task: Task, question: Question, *, is_sloppy: bool) -> str:
    word = re.escape(question.relation)
    pattern = rf"\b{word}\s+(\w+)\s*=\s*(?:{word}\s+)?(\w+)"
    if "hops" in task.skills:
        choose = [
            "def final(name):",
            "    seen = set()",
            "    while name in value_of and name not in seen:",
            "        seen.add(name)",
            "        name = value_of[name]",
            "    return name",
            "names = [name for name in value_of if final(name) == target]",
        ]
    else:
        choose = [
            "names = [n for n, v in value_of.items() if v == target or value_of.get(v) == target]"
        ]
    return "\n".join(
        [
            *_text(task, is_sloppy=is_sloppy),
            f"target = {question.subject!r}",
            f"value_of = dict(re.findall({pattern!r}, text))",
            "print(len(value_of), 'assignments found')",
            *choose,
            "result = ', '.join(names)",
            _SHOW,
        ]
    )


def _rows(task: Task, question: Question) -> str:
    user = question.user
    if "explore" in task.skills:
        mine = f" and {f'User: {user} '!r} in line" if user else ""
        return (
            f"rows = [line.split({MARKER!r}, 1)[1] for line in text.splitlines()"
            f" if {MARKER!r} in line{mine}]"
        )
    mine = f" and {user!r} in line" if user else ""
    return f"rows = [line for line in text.splitlines() if line.strip(){mine}]"


def _step(task: Task) -> str:
    if "chunk" not in task.skills:
        return str(task.skills.lines)
    limit = task.contract.max_calls
    spread = "len(rows) // 1000" if limit is None else f"-(-len(rows) // {_calls(limit)})"
    return f"max({task.skills.lines}, {spread})"


def _calls(limit: int) -> int:
    return max(1, limit - SPARE_CALLS)


def _options(question: Question) -> Sequence[str]:
    named = [label for label in (question.subject, question.other) if label]
    return question.labels or [*named, "other"]


def _asking(task: Task, question: Question, parts: str) -> list[str]:
    if "label" in task.skills:
        ask = label_ask(_options(question))
    elif question.kind == "count":
        ask = count_ask(question.subject)
    else:
        ask = tally_ask(_options(question))
    return [f"ask = {ask!r}", *_sending(task, parts, "ask + '\\n'.join(part)")]


def _sending(task: Task, parts: str, prompt: str) -> list[str]:
    shown = f"print('asked', len({parts}), 'sub-queries')"
    if task.contract.batched:
        return [f"out += llm_query_batched([{prompt} for part in {parts}])", shown]
    return [f"for part in {parts}:", f"    out.append(llm_query({prompt}))", shown]


def _concluding(task: Task, question: Question, *, is_partial: bool = False) -> list[str]:
    return [*_tallying(task, question), *_deciding(question, is_partial=is_partial)]


def _tallying(task: Task, question: Question) -> list[str]:
    if "label" in task.skills:
        return [
            "labels = [label.strip() for answer in out for label in answer.splitlines()]",
            "tally = Counter(labels)",
        ]
    if question.kind == "count":
        return [
            "numbers = [re.findall(r'\\d+', answer) for answer in out]",
            f"tally = Counter({{{question.subject!r}: sum(int(n[0]) for n in numbers if n)}})",
        ]
    return [
        "tally = Counter()",
        "for answer in out:",
        "    for label, number in re.findall(r'^(.+?): (\\d+)$', answer, re.M):",
        "        tally[label] += int(number)",
    ]


def _deciding(question: Question, *, is_partial: bool = False) -> list[str]:
    counted = "print('counted', sum(map(len, parts)), 'of', len(rows), 'lines', dict(tally))"
    if question.kind == "count":
        share = " * len(rows) / max(1, sum(map(len, parts)))" if is_partial else ""
        decide = [f"result = str(round(tally[{question.subject!r}]{share}))"]
    elif question.kind == "compare":
        decide = [
            f"a, b = tally[{question.subject!r}], tally[{question.other!r}]",
            "result = ('more common than' if a > b else 'less common than' if a < b"
            " else 'same frequency as')",
        ]
    else:
        pick = "max" if question.kind == "most" else "min"
        among = repr(list(question.labels)) if question.labels else "sorted(tally) or ['unknown']"
        decide = [f"result = {pick}({among}, key=lambda label: tally[label])"]
    return [counted, *decide, _SHOW]


def _write_word_count(task: Task, question: Question) -> str:
    # No sub-model to ask: all that is left is to count the label itself as a word.
    return "\n".join(
        [
            "from collections import Counter",
            f"text = full = {_full(task)}",
            _rows(task, question),
            f"options = {list(_options(question))!r}",
            "tally = Counter(o for row in rows for o in options if o in row)",
            "out, parts = [], [rows]",
            *_deciding(question),
        ]
    )


def _write_reading(task: Task) -> str:
    if not task.contract.query:
        return f"text = full = {_full(task)}\nresult = 'unknown'\n{_SHOW}"
    opening, _, ending = find_ask("\0").partition("\0")
    calls = _calls(task.contract.max_calls or 50)
    size = PART_CHARS if "chunk" in task.skills else 5 * PART_CHARS
    return "\n".join(
        [
            f"text = full = {_full(task)}",
            f"size = max({size:_}, -(-len(text) // {calls}))",
            "parts = [text[i:i + size] for i in range(0, len(text), size)]",
            f"ask = {opening!r} + str({task.query}) + {ending!r}",
            "out = []",
            *_sending(task, "parts", "ask + part"),
            "found = [a for a in out if a.strip() and 'not sure' not in a and '[ERROR]' not in a]",
            "result = found[0] if found else 'unknown'",
            _SHOW,
        ]
    )
