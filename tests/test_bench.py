"""What `make bench` measures with: processor time of whole process trees, and its tables."""

import subprocess
import sys

import pytest
from bench.__main__ import PAGE, with_sections
from bench.measure import FASTER, Cost, Table, cpu_seconds, faster, measure, side_by_side, span

BURNT_S = 0.3
BURN = f"import time\nwhile time.process_time() < {BURNT_S}: pass"
BURN_THEN_WAIT = f"{BURN}\nprint(flush=True); input()"
BURN_IN_A_CHILD = (
    f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {BURN!r}])\n"
    "print(flush=True); input()"
)


def burn_and_end():
    subprocess.run([sys.executable, "-c", BURN], check=True)


@pytest.mark.parametrize("code", [BURN_THEN_WAIT, BURN_IN_A_CHILD], ids=["child", "grandchild"])
def test_the_time_of_living_processes_and_their_dead_children_counts(code):
    before = cpu_seconds()
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        process.stdout.readline()
        alive = cpu_seconds() - before
        process.communicate(b"\n")
    dead = cpu_seconds() - before
    assert alive >= BURNT_S - 0.02
    assert dead >= BURNT_S - 0.02


def test_a_part_of_the_work_is_what_all_of_it_took_divided():
    cost = measure(burn_and_end, per=10)
    assert BURNT_S / 10 - 0.002 <= cost.cpu_s < BURNT_S
    assert cost.wall_s >= BURNT_S / 10 - 0.002


def test_arms_take_turns_and_the_middle_one_counts():
    order = []

    def arm(name, costs):
        def run():
            order.append(name)
            return costs.pop()

        return run

    ours, stock = side_by_side(
        arm("ours", [Cost(9, 1), Cost(2, 5), Cost(3, 4)]),
        arm("stock", [Cost(1, 1)] * 3),
        repeats=3,
    )
    assert (ours, stock) == (Cost(3, 4), Cost(1, 1))
    assert order == ["ours", "stock"] * 3


def test_a_row_begins_with_its_case_and_says_how_many_times_less():
    row = faster("C=8 L=0.3", Cost(0.0123, 0.5), Cost(1.23, 0.25))
    assert row == ["C=8 L=0.3", "12.3 ms", "1.23 s", "100x", "500 ms", "250 ms", "0.50x"]
    table = Table(title="Runs", about="Two words.", columns=FASTER, rows=[row])
    assert table.to_text().splitlines()[-1].split("  ")[0] == "C=8 L=0.3"
    assert table.to_markdown().splitlines()[-1] == f"| {' | '.join(row)} |"


def test_a_clock_too_coarse_gives_no_ratio():
    assert faster("quick", Cost(0.001, 0), Cost(1, 1))[-1] == "-"


def test_spans_have_a_unit_that_fits():
    assert [span(s) for s in (12.3456, 0.00456, 0.0000456)] == ["12.3 s", "4.56 ms", "45.6 µs"]


def test_a_room_of_its_own_changes_its_section_alone():
    page = PAGE.read_text()
    assert with_sections(page, {}) == page
    small = "# Page\n\nHead.\n\n## one\n\nOld.\n\n### Part\n\n## two\n\nKept.\n"
    found = with_sections(small, {"one": "## one\n\nNew.\n", "three": "## three\n\nAdded.\n"})
    kept = "# Page\n\nHead.\n\n## one\n\nNew.\n\n## two\n\nKept.\n\n## three\n\nAdded.\n"
    assert found == kept
