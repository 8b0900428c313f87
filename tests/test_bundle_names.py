"""What `--program` can name: the package's programs, with version or without, and a user's file."""

import sys
import textwrap

import dspy
import pytest

from fleet_rlm import RLM, RecursionSettings
from fleet_rlm.errors import UsageError
from fleet_rlm.program.bundle import load, save
from fleet_rlm.program.find import find_program, parse_settings
from fleet_rlm.program.registry import PROGRAMS


@pytest.fixture
def write(tmp_path):
    """Writes a program file and gives `path:make`."""

    def write(code, name="mine.py"):
        (tmp_path / name).write_text(textwrap.dedent(code))
        return f"{tmp_path / name}:make"

    yield write
    for name in [name for name in sys.modules if name.startswith("fleet_rlm._ext.")]:
        del sys.modules[name]


MINE = """
    import dspy

    class Mine(dspy.Module):
        def __init__(self, turns):
            super().__init__()
            self.turns = turns
            self.answer = dspy.Predict("context, query -> answer")

        def forward(self, context, query):
            return self.answer(context=context, query=query)

    def make(settings):
        return Mine(settings["max_iters"])
"""


@pytest.mark.parametrize("name", ["rlm", "rlm.qa", "rlm.qa@1", "rlm@1"])
def test_a_program_has_one_entry_under_each_of_its_names(name):
    assert find_program(name) is PROGRAMS["rlm"]
    assert parse_settings(name, {"max_iters": 3})["max_iters"] == 3


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("rml", "Did you mean 'rlm'?"),
        ("rlm.chat", "this version of fleet-rlm has rlm.qa@1"),
        ("rlm.qa@2", "this version of fleet-rlm has rlm.qa@1"),
        ("rlm.qa@", "No program 'rlm.qa@'"),
        ("os.system", "No program 'os.system'"),
        ("", "No program ''"),
    ],
)
def test_another_name_is_refused(name, part):
    with pytest.raises(UsageError) as caught:
        find_program(name)
    assert part in str(caught.value)


def test_a_users_file_makes_the_program_with_the_settings(write):
    entry = find_program(write(MINE))
    settings = parse_settings(write(MINE), {"max_iters": 4})
    program = entry.make("", settings)
    assert (program.turns, type(program).__module__) == (4, "fleet_rlm._ext.mine")
    assert [name for name, _ in program.named_predictors()] == ["answer"]
    assert entry.make("", settings) is not program
    with pytest.raises(UsageError, match="brings its own instructions"):
        entry.make("Look first.", settings)


def test_a_factory_without_settings_has_none_to_give(write):
    reference = write("import dspy\ndef make():\n    return dspy.Predict('a -> b')\n")
    assert isinstance(find_program(reference).make("", RecursionSettings()), dspy.Predict)
    with pytest.raises(UsageError, match="has no setting 'max_iters'"):
        parse_settings(reference, {"max_iters": 4})


def test_an_unchanged_file_is_loaded_once_and_a_changed_one_again(write, tmp_path):
    code = "import dspy\nfrom pathlib import Path\nwith open({log!r}, 'a') as f: f.write('x')\n"
    code = code.format(log=str(tmp_path / "log")) + "def make(): return dspy.Predict('a -> {}')\n"
    first = find_program(write(code.format("b")))
    assert find_program(write(code.format("b"))).source_sha256 == first.source_sha256
    assert (tmp_path / "log").read_text() == "x"
    changed = find_program(write(code.format("c")))
    assert changed.source_sha256 != first.source_sha256
    assert list(changed.make("", RecursionSettings()).signature.output_fields) == ["c"]
    assert not (tmp_path / "__pycache__").exists()


def test_files_of_one_name_do_not_displace_each_other(write, tmp_path):
    (tmp_path / "other").mkdir()
    first = find_program(write(MINE)).make("", RecursionSettings())
    second = find_program(write(MINE, "other/mine.py")).make("", RecursionSettings())
    for program in (first, second):
        assert sys.modules[type(program).__module__].Mine is type(program)
    assert type(first) is not type(second)


@pytest.mark.parametrize(
    ("code", "part"),
    [
        ("x = 1", "has no function 'make'. None are known."),
        ("def mkae(): pass", "has no function 'make'. Did you mean 'mkae'?"),
        ("make = 3", "has no function 'make'"),
        ("def make(): return 3", "gave a int, no dspy.Module"),
        ("def make(): return undefined", "failed: NameError: name 'undefined'"),
        ("def make(model): pass", "asks for model: it must take nothing, or `settings`"),
        ("def make(settings, k): pass", "asks for k: it must take"),
        ("def make(settings, /): pass", "asks for settings: it must take"),
        ("import nowhere_to_be_found", "mine.py:1 failed: ModuleNotFoundError"),
        ("\n\n1 / 0", "mine.py:3 failed: ZeroDivisionError"),
        ("def make(:", "SyntaxError"),
        ("\0", "mine.py failed: "),
        ("raise SystemExit('bye')", "SystemExit: bye"),
    ],
)
def test_a_file_that_gives_no_program_is_refused_in_one_line(code, part, write):
    with pytest.raises(UsageError) as caught:
        find_program(write(code)).make("", RecursionSettings())
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_failed_leaves_the_one_before_it_in_place(write):
    program = find_program(write(MINE)).make("", RecursionSettings())
    with pytest.raises(UsageError, match="ZeroDivisionError"):
        find_program(write("1 / 0"))
    assert sys.modules["fleet_rlm._ext.mine"].Mine is type(program)
    with pytest.raises(UsageError, match="ZeroDivisionError"):
        find_program(write("1 / 0", "broken.py"))
    assert "fleet_rlm._ext.broken" not in sys.modules


@pytest.mark.parametrize(
    ("reference", "part"),
    [
        ("nowhere.py:make", "Cannot read program file 'nowhere.py': No such file"),
        ("nowhere.py", "does not name a function. Try: --program nowhere.py:make_program"),
        ("nowhere.py:", "does not name a function. Try: --program nowhere.py:make_program"),
        ("nowhere.py:a.b", "does not name a function"),
    ],
)
def test_a_reference_that_leads_nowhere_is_refused(reference, part):
    with pytest.raises(UsageError) as caught:
        find_program(reference)
    assert part in str(caught.value)


def test_a_users_program_is_saved_only_where_a_name_covers_it(write, tmp_path):
    own = find_program(write(MINE)).make("", RecursionSettings())
    with pytest.raises(UsageError, match=r"its class fleet_rlm\._ext\.mine\.Mine is not"):
        save(own, tmp_path / "bundle")
    covered = "from fleet_rlm import RLM\ndef make(): return RLM('book, question -> answer')\n"
    program = find_program(write(covered, "covered.py")).make("", RecursionSettings())
    loaded = load(save(program, tmp_path / "bundle"))
    assert type(loaded) is RLM
    assert list(loaded.signature.fields) == ["book", "question", "answer"]
