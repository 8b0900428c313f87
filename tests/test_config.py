"""Layers of settings, and where content is found."""

import re

import pytest

from fleet_rlm.config import parse_overrides, resolve
from fleet_rlm.errors import UsageError
from fleet_rlm.project import find_content, list_content, project_dir


def test_flag_beats_environment_beats_file_beats_default(tmp_path):
    written = 'model = "file/m"\nconcurrency = 3\nsub_model = "file/s"\n'
    (tmp_path / "fleet.toml").write_text(written)
    env = {"DSPY_LM_MODEL": "env/m", "DSPY_LM_MAX_TOKENS": "64000"}
    found = resolve({"model": "flag/m", "concurrency": None}, env, tmp_path)
    assert found.config.model == "flag/m"
    assert found.config.concurrency == 3
    assert found.config.sub_model == "file/s"
    assert found.config.max_completion_tokens == 64000
    assert found.config.sandbox == "auto"
    assert found.origin["model"] == "flag"
    assert found.origin["concurrency"] == "fleet.toml"
    assert found.origin["max_completion_tokens"] == "DSPY_LM_MAX_TOKENS"
    assert found.origin["sandbox"] == "default"
    assert resolve({}, env, tmp_path).config.model == "env/m"


def test_the_first_key_variable_wins_and_is_never_shown(tmp_path):
    env = {"DSPY_LLM_API_KEY": "first-secret", "DSPY_LM_API_KEY": "second-secret"}
    found = resolve({}, env, tmp_path)
    assert found.api_key == "first-secret"
    assert "secret" not in repr(found)
    assert "secret" not in found.config.model_dump_json()


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("modle = 'x'\n", "Did you mean 'model'?"),
        ("concurrency = 0\n", "'concurrency' from fleet.toml"),
        ("model = \n", "not valid TOML"),
    ],
)
def test_a_bad_project_file_is_one_line(tmp_path, text, part):
    (tmp_path / "fleet.toml").write_text(text)
    with pytest.raises(UsageError, match=re.escape(part)) as caught:
        resolve({}, {}, tmp_path)
    assert "\n" not in str(caught.value)


def test_a_bad_environment_value_is_named(tmp_path):
    with pytest.raises(UsageError, match="DSPY_LM_MAX_TOKENS"):
        resolve({}, {"DSPY_LM_MAX_TOKENS": "many"}, tmp_path)


def test_overrides_are_toml_values_or_bare_text():
    found = parse_overrides(["lengths=[8000, 9000]", "a.b=true", "program.guidance=Be exact."])
    assert found == {"lengths": [8000, 9000], "a.b": True, "program.guidance": "Be exact."}


@pytest.mark.parametrize("bad", ["lengths", "=3", ""])
def test_an_override_without_key_or_value_is_refused(bad):
    with pytest.raises(UsageError, match="not key=value"):
        parse_overrides([bad])


def test_a_projects_suite_hides_the_built_in_one(tmp_path):
    (tmp_path / "evals").mkdir()
    own = tmp_path / "evals" / "quickstart.toml"
    own.write_text("")
    found = find_content("evals", "quickstart", tmp_path)
    assert (found.path, found.origin) == (own, "project")
    names = [content.name for content in list_content("evals", tmp_path)]
    assert names.count("quickstart") == 1
    assert {"needle", "aggregate", "variables"} <= set(names)


def test_an_unknown_suite_offers_the_nearest_and_the_command(tmp_path):
    with pytest.raises(UsageError) as caught:
        find_content("evals", "quickstrat", tmp_path)
    assert str(caught.value) == (
        "No suite 'quickstrat' in ./evals or built in. Did you mean 'quickstart'?"
        " Try: fleet-eval list"
    )


def test_a_path_is_taken_as_it_is(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("")
    assert find_content("evals", str(path), tmp_path).origin == "path"
    with pytest.raises(UsageError, match="No file"):
        find_content("evals", str(tmp_path / "absent.toml"), tmp_path)


def test_the_project_folder_is_found_from_below(tmp_path):
    (tmp_path / "evals").mkdir()
    below = tmp_path / "a" / "b"
    below.mkdir(parents=True)
    assert project_dir(below) == tmp_path
