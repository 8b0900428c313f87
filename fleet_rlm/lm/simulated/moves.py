"""What the simulated model does next in the REPL, from what it has seen there so far."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from fleet_rlm.lm.simulated.coder import (
    Task,
    break_code,
    write_check,
    write_look,
    write_repair,
    write_salvage,
    write_solution,
    write_submit,
)
from fleet_rlm.lm.simulated.prompt import Step

_RESULT = re.compile(r"^RESULT: ?(.*)$", re.M)
_CHECK = re.compile(r"^CHECK: (\d+) of (\d+) ", re.M)
_COUNTED = re.compile(r"^counted (\d+) of (\d+) lines", re.M)
_LIMIT = re.compile(r"LLM call limit exceeded(?:: (\d+) \+ \d+ > (\d+))?")
_ERROR = re.compile(r"^\[(?:\w+ )?Error\]|^\w*Error: |^Traceback \(", re.M)

_AGAIN = "# all of it, this time\n"


class Move(NamedTuple):
    """One turn: why, and the code."""

    reasoning: str
    code: str


def found_result(steps: Sequence[Step]) -> str | None:
    """The last result that was printed; None when there is none."""
    found = [match for step in steps for match in _RESULT.findall(step.output)]
    return found[-1].strip() if found else None


def next_move(task: Task, steps: Sequence[Step], *, is_last: bool) -> Move:
    """The next turn.

    Args:
        steps: past turns, oldest first.
        is_last: no turn comes after this one, so something must be submitted.
    """
    output = steps[-1].output if steps else ""
    error = _find_error(output)
    if error is None and _RESULT.search(output):
        return _after_result(task, steps, output, is_last=is_last)
    if error is not None and found_result(steps) is not None:
        return _after_late_error(task, error)
    if error is None and not steps and "explore" in task.skills and not is_last:
        return Move("I look at the text before I write code for it.", write_look(task))
    move = _attempt(task, steps, error)
    if is_last:
        return Move(
            f"{move.reasoning} No turn is left, so I submit.",
            _with_submit(task, move.code),
        )
    return move


def _after_result(task: Task, steps: Sequence[Step], output: str, *, is_last: bool) -> Move:
    if is_last:
        return Move("No turn is left, so I submit what I have.", write_submit(task))
    mended = any(step.code.startswith(_AGAIN) for step in steps)
    if _is_short(output) and not mended:
        return Move("Part of the text is missing; I add it.", _AGAIN + write_repair(task))
    if not found_result(steps) and not mended:
        return Move("An empty result looks wrong; I search again.", _AGAIN + write_solution(task))
    if "verify" in task.skills and not any(_CHECK.search(step.output) for step in steps):
        return Move("I check that nothing was left out.", write_check(task))
    return Move("The result stands, so I submit it.", write_submit(task))


def _after_late_error(task: Task, error: str) -> Move:
    # The session was lost: its variables are gone and the result must be computed again.
    if "NameError" in error:
        return Move("The session lost its variables; I compute again.", write_solution(task))
    return Move("The last step failed, but a result is there; I submit it.", write_submit(task))


def _attempt(task: Task, steps: Sequence[Step], error: str | None) -> Move:
    is_sloppy = task.skills.is_sloppy
    if error is None:
        code = write_solution(task, is_sloppy=is_sloppy)
        tried = any("result =" in step.code for step in steps)
        if task.skills.is_buggy and not tried:
            code = break_code(code)
        return Move("I compute the result in code.", code)
    if limit := _LIMIT.search(error):
        left = int(limit[2]) - int(limit[1]) if limit[1] else None
        if left is not None and left <= 0:
            return Move("No sub-query is left; I use the replies I have.", write_salvage(task))
        step = "STEP * 2" if left is None else f"max(STEP * 2, -(-len(rows) // {left}))"
        code = write_solution(task, is_sloppy=is_sloppy, step=step)
        return Move("Too many sub-queries; I ask about more lines at a time.", code)
    code = write_solution(task, is_sloppy=is_sloppy)
    return Move(f"The last step failed ({error.splitlines()[-1][:80]}); I mend it.", code)


def _with_submit(task: Task, code: str) -> str:
    return code if task.contract.submit is None else f"{code}\n{write_submit(task)}"


def _find_error(output: str) -> str | None:
    # A result that was printed later speaks for itself, whatever the text looks like that was
    # shown.
    since = max((match.end() for match in _RESULT.finditer(output)), default=0)
    found = _ERROR.search(output, since)
    return output[found.start() :].strip() if found else None


def _is_short(output: str) -> bool:
    if check := _CHECK.search(output):
        return int(check[1]) < int(check[2])
    counted = _COUNTED.search(output)
    return counted is not None and counted[1] == "0" != counted[2]
