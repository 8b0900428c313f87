"""Loading: a bundle is input from anywhere, and nothing in it is executed, followed or dialled."""

import os
import pickle
import shutil
import socket

import dspy
import pytest
from bundles import rewrite

from fleet_rlm import RLM
from fleet_rlm.errors import UsageError
from fleet_rlm.program.bundle import load, save
from fleet_rlm.program.fields import parse_type, type_text
from fleet_rlm.program.manifest import ProgramState, parse, sha256
from fleet_rlm.program.registry import AnswerQuery
from fleet_rlm.program.state import state_digest


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    program = RLM(AnswerQuery, guidance="Look first.")
    program.generate_action.demos = [{"iteration": "1/2", "reasoning": "r", "code": "print(1)"}]
    return save(program, tmp_path_factory.mktemp("saved") / "bundle")


@pytest.fixture(scope="module")
def attacker():
    """A server that nobody should call."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        yield server
        with pytest.raises(BlockingIOError):
            server.accept()


def test_the_state_that_steals_a_key_through_dspys_own_load_is_refused(bundle, attacker, tmp_path):
    url = f"http://127.0.0.1:{attacker.getsockname()[1]}/v1"
    stock = dspy.Predict("question -> answer").dump_state()
    for number, (key, value) in enumerate(
        {
            "config": {"api_base": url},
            "lm": {"model": "openai/x", "api_base": url, "extra_headers": {"Authorization": "x"}},
            "callbacks": [url],
            "forward": "os.system",
            "traces": stock["traces"],
            "signature": stock["signature"],
            "_compiled": True,
        }.items()
    ):
        bad = rewrite(
            bundle,
            tmp_path / str(number),
            program=lambda p, k=key, v=value: p["predictors"]["generate_action"].update({k: v}),
        )
        with pytest.raises(UsageError) as caught:
            load(bad)
        assert f"predictors.generate_action.{key}: is not part of a bundle" in str(caught.value)


def predictors(program):
    return program["predictors"]


PROGRAM_CHANGES = {
    "unknown predictor": (
        lambda p: predictors(p).update(evil=predictors(p)["extract"]),
        "predictors.evil is not part of this program",
    ),
    "missing predictor": (
        lambda p: predictors(p).pop("extract"),
        "predictors.extract is missing for this program",
    ),
    "unknown module": (
        lambda p: p["modules"].update({"sub_lm": p["modules"]["self"]}),
        "modules.sub_lm is not part of this program",
    ),
    "unknown key": (lambda p: p.update(metadata={}), "metadata: is not part of a bundle"),
    "unknown field": (
        lambda p: predictors(p)["extract"]["fields"].update(x={"prefix": "", "desc": ""}),
        "The fields of 'extract' are not those of this program",
    ),
    "key of a field": (
        lambda p: predictors(p)["extract"]["fields"]["answer"].update(parser="eval"),
        "predictors.extract.fields.answer.parser: is not part of a bundle",
    ),
    "text that is a number": (
        lambda p: predictors(p)["extract"].update(instructions=1),
        "predictors.extract.instructions: Input should be a valid string",
    ),
    "demos that are text": (
        lambda p: predictors(p)["extract"].update(demos="print(1)"),
        "predictors.extract.demos: Input should be a valid array",
    ),
    "a demo that is text": (
        lambda p: predictors(p)["extract"].update(demos=["print(1)"]),
        "predictors.extract.demos.0: Input should be an object",
    ),
}


@pytest.mark.parametrize("case", PROGRAM_CHANGES)
def test_a_program_file_with_anything_else_in_it_is_refused(case, bundle, tmp_path):
    change, part = PROGRAM_CHANGES[case]
    with pytest.raises(UsageError) as caught:
        load(rewrite(bundle, tmp_path / "bad", program=change))
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({"max_iters": 10**9}, "max_iters must be a whole number from 1 to 200"),
        ({"max_iters": "20"}, "max_iters must be a whole number"),
        ({"max_iters": 2.5}, "settings.recursion.max_iters.int: Input should be a valid integer"),
        ({"api_base": "http://x"}, "Unknown setting 'api_base'"),
    ],
)
def test_a_setting_that_is_none_is_refused(settings, part, bundle, tmp_path):
    bad = rewrite(
        bundle,
        tmp_path / "bad",
        program=lambda p: p["settings"]["recursion"].update(settings),
        manifest=lambda m: m["settings"]["recursion"].update(settings),
    )
    with pytest.raises(UsageError) as caught:
        load(bad)
    assert part in str(caught.value)


def with_fields(name, kind, type_):
    """A manifest for a program over fields of its own."""

    def change(manifest):
        fields = [{"name": name, "kind": kind, "type": type_, "constraints": "", "optional": False}]
        spec = {"fields": fields, "sha256": sha256(fields)}
        manifest.update(program="predict@1", signatures={"self": spec})

    return change


MANIFEST_CHANGES = {
    "endpoint": (lambda m: m.update(api_base="http://x"), "api_base: is not part of a bundle"),
    "newer format": (lambda m: m.update(format=2), "has format 2; this fleet-rlm reads format 1"),
    "format of another type": (lambda m: m.update(format="1"), "format: Input should be a valid"),
    "import path": (lambda m: m.update(program="os.system"), "No program 'os.system'"),
    "file": (lambda m: m.update(program="/tmp/evil.py:make"), "No program '/tmp/evil.py:make'"),
    "other version": (lambda m: m.update(program="rlm.qa@2"), "fleet-rlm has rlm.qa@1"),
    "no version": (lambda m: m.update(program="rlm"), "names no program that a bundle can hold"),
    "other program": (
        lambda m: m.update(program="predict.qa@1"),
        "The fields of 'extract' are not",
    ),
    "path of a file": (
        lambda m: m["files"].update({"../../.ssh/id_rsa": m["files"]["program.json"]}),
        "files.../../.ssh/id_rsa.[key]: Input should be 'program.json'",
    ),
    "no files": (lambda m: m.update(files={}), "holds 'program.json', which is not part"),
    "changed field": (
        lambda m: m["signatures"]["extract"]["fields"][2].update(type="int"),
        "The fields of 'extract' are not those that rlm.qa@1 has here",
    ),
    "changed hash": (
        lambda m: m["signatures"]["extract"].update(sha256="0" * 64),
        "The fields of 'extract' are not those that rlm.qa@1 has here",
    ),
    "settings of another": (
        lambda m: m["settings"]["recursion"].update(max_iters=3),
        "hold different settings",
    ),
    "tool": (lambda m: m["tools"].update(shell="0" * 64), "Tool 'shell' is missing"),
    "type by import": (with_fields("x", "input", "os.system"), "has type 'os.system'"),
    "type by call": (with_fields("x", "input", "__import__('os')"), "a bundle can rebuild str"),
    "endless type": (with_fields("x", "input", "list[" * 99 + "]" * 99), "at most 500 characters"),
    "nested type": (with_fields("x", "input", "list[" * 80 + "x" + "]" * 80), "a bundle can"),
    "kind of field": (with_fields("x", "inout", "str"), "kind: Input should be 'input'"),
    "name of Python": (with_fields("__base__", "input", "str"), "name: String should match"),
    "name of DSPy": (with_fields("instructions", "input", "str"), "in dspy.Signature"),
}


@pytest.mark.parametrize("case", MANIFEST_CHANGES)
def test_a_manifest_that_says_anything_else_is_refused(case, bundle, tmp_path):
    change, part = MANIFEST_CHANGES[case]
    with pytest.raises(UsageError) as caught:
        load(rewrite(bundle, tmp_path / "bad", manifest=change))
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.fixture
def copy(bundle, tmp_path):
    return shutil.copytree(bundle, tmp_path / "copy")


def refused(folder, part):
    with pytest.raises(UsageError) as caught:
        load(folder)
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["program.json", "manifest.json"])
def test_a_file_that_was_edited_is_refused(name, copy):
    text = (copy / name).read_text()
    old, new = ("Look first.", "Look last.") if name == "program.json" else ("20", "21")
    assert old in text
    (copy / name).write_text(text.replace(old, new))
    refused(copy, "was changed after it was written")


@pytest.mark.parametrize("name", ["program.json", "manifest.json"])
def test_a_link_out_of_the_folder_is_not_followed(name, copy, tmp_path):
    outside = tmp_path / "outside.json"
    (copy / name).rename(outside)
    (copy / name).symlink_to(outside)
    refused(copy, f"is not a bundle: {name} is a link")


def test_what_is_no_file_is_not_read(copy):
    (copy / "program.json").unlink()
    refused(copy, "program.json cannot be read (No such file or directory)")
    os.mkfifo(copy / "program.json")
    refused(copy, "is not a regular file")
    (copy / "program.json").unlink()
    (copy / "program.json").mkdir()
    refused(copy, "program.json cannot be read (Is a directory)")


@pytest.mark.parametrize(
    ("name", "data", "part"),
    [
        ("manifest.json", b" " * ((1 << 20) + 1), "is over 1,048,576 bytes"),
        ("program.json", b" " * ((4 << 20) + 1), "is over 4,194,304 bytes"),
        ("manifest.json", b"\xff\xfe", "Invalid JSON"),
        ("manifest.json", b"", "Invalid JSON"),
        ("manifest.json", b"[]", "Input should be an object"),
        ("manifest.json", b"[" * 100_000, "recursion limit exceeded"),
        ("manifest.json", b'{"format": ' + b"9" * 5_000 + b"}", "number out of range"),
    ],
)
def test_a_file_of_the_wrong_size_or_kind_is_refused(name, data, part, copy):
    (copy / name).write_bytes(data)
    refused(copy, part)


class Payload:
    def __reduce__(self):
        return os.mkdir, ("executed",)


def test_a_pickle_is_never_opened(copy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = pickle.dumps(Payload())
    (tmp_path / "program.pkl").write_bytes(data)
    refused(tmp_path / "program.pkl", "is not a bundle folder")
    (copy / "program.pkl").write_bytes(data)
    refused(copy, "holds 'program.pkl', which is not part of a bundle")
    (copy / "program.pkl").unlink()
    (copy / "program.json").write_bytes(data)
    refused(copy, "was changed after it was written")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("path", ["nowhere", "models:/mine@champion", "s3://bucket/mine"])
def test_what_is_no_folder_is_refused(path):
    refused(path, "bundle")


def test_a_nan_in_a_demo_is_refused(bundle, tmp_path):
    def plant(program):
        predictors(program)["extract"]["demos"] = [{"answer": 12345.5}]

    bad = rewrite(bundle, tmp_path / "bad", program=plant)
    data = (bad / "program.json").read_bytes().replace(b"12345.5", b"NaN")
    with pytest.raises(UsageError, match="Out of range float values"):
        parse(ProgramState, data, "program.json")


def test_another_release_of_dspy_is_told(bundle, tmp_path):
    other = rewrite(
        bundle, tmp_path / "other", manifest=lambda m: m["versions"].update(dspy="3.5.1")
    )
    with pytest.warns(UserWarning, match=r"saved with dspy 3\.5\.1, here is"):
        loaded = load(other)
    assert state_digest(loaded) == state_digest(load(bundle))


@pytest.mark.parametrize(
    "text",
    [
        "str",
        "list[str]",
        "dict[str, list[int]]",
        "float | None",
        "Literal['yes', 'no', 3]",
        "list[Literal['a'] | bool]",
        "Any",
        "list",
    ],
)
def test_a_type_is_read_as_it_is_written(text):
    assert type_text(parse_type(text)) == text


@pytest.mark.parametrize(
    "text", ["os.system", "eval('1')", "", "str,", "list[str](1)", "Literal[x]", "\0", "tuple[int]"]
)
def test_a_type_is_never_looked_up(text):
    with pytest.raises(ValueError, match="no"):
        parse_type(text)
