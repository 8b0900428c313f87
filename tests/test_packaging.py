"""Archive, wheel and lock: what an installation exposes; every version pinned by hash."""

import json
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCK = (ROOT / "requirements.lock").read_text()


@pytest.fixture(scope="module")
def dist(tmp_path_factory):
    """The folder of a source archive and the wheel that was built from it."""
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(ROOT)]
    done = subprocess.run(command, cwd=out, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


@pytest.fixture(scope="module")
def wheel(dist):
    return next(dist.glob("*.whl"))


def locked():
    """Name -> version of every pin that applies to this Python."""
    found = {}
    for line in LOCK.splitlines():
        if line and not line.startswith((" ", "#")):
            requirement = Requirement(line.removesuffix("\\").strip())
            if requirement.marker is None or requirement.marker.evaluate():
                (pin,) = requirement.specifier
                found[canonicalize_name(requirement.name)] = pin.version
    return found


def test_the_wheel_exposes_one_package(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    version = PYPROJECT["project"]["version"]
    assert {name.partition("/")[0] for name in names} == {
        "fleet_rlm",
        f"fleet_rlm-{version}.dist-info",
    }
    for name in ("py.typed", "report/page.css", "report/page.js"):
        assert f"fleet_rlm/{name}" in names


def test_the_wheel_carries_every_built_in_content_file(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    expected = {
        f"fleet_rlm/builtin/{path.relative_to(ROOT)}"
        for folder in ("evals", "datasets", "optimize", "experiments")
        for path in (ROOT / folder).rglob("*.toml")
    }
    assert "fleet_rlm/builtin/evals/quickstart.toml" in expected
    assert expected <= names


def test_the_source_archive_holds_what_its_tests_read(dist):
    with tarfile.open(next(dist.glob("*.tar.gz"))) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    tracked = {"Makefile", "mkdocs.yml", "requirements.lock", "README.md", "docs/index.md"}
    assert tracked | {f"tests/{path.name}" for path in Path(__file__).parent.glob("*.py")} <= held


def test_an_installed_wheel_scores_a_program_outside_the_checkout(wheel, tmp_path):
    """In an environment of its own; only what it depends on is lent, to spare the download."""
    venv.create(tmp_path / "venv", symlinks=True)
    python = tmp_path / "venv" / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python)]
    options = ["--no-deps", "--no-index", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "install", *options, str(wheel)], check=True, timeout=60)
    lent = next((tmp_path / "venv" / "lib").glob("python*")) / "site-packages" / "lent.pth"
    lent.write_text(sysconfig.get_path("purelib") + "\n")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    words = ["run", "quickstart", "--limit", "2", "--no-mlflow", "--json"]
    done = subprocess.run(
        [tmp_path / "venv" / "bin" / "fleet-eval", *words],
        cwd=elsewhere,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["samples"] == 2
    assert (
        str(tmp_path)
        in subprocess.run(
            [python, "-Pc", "import fleet_rlm; print(fleet_rlm.__file__)"],
            cwd=elsewhere,
            env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    )


def test_every_locked_version_is_pinned_by_hash():
    logical = LOCK.replace("\\\n", " ").splitlines()
    pins = [line for line in logical if line and not line.startswith((" ", "#"))]
    assert len(pins) > 50
    for pin in pins:
        assert re.match(r"[\w.-]+==[\w.+!]+ ", pin), pin
        assert re.search(r"--hash=sha256:[0-9a-f]{64}\b", pin), pin
        assert "@" not in pin, pin


def test_the_lock_is_in_step_with_the_project():
    wanted = [
        *PYPROJECT["project"]["dependencies"],
        *PYPROJECT["dependency-groups"]["dev"],
        *PYPROJECT["build-system"]["requires"],
    ]
    versions = locked()
    for text in wanted:
        requirement = Requirement(text)
        version = versions.get(canonicalize_name(requirement.name))
        assert version, f"{text} is not locked. Try: make lock"
        assert requirement.specifier.contains(version), f"{text} got {version}. Try: make lock"


def test_the_version_is_the_same_everywhere():
    from fleet_rlm import __version__

    assert __version__ == PYPROJECT["project"]["version"]
    assert f"\nversion: {__version__}\n" in (ROOT / "CITATION.cff").read_text()


def test_every_python_of_the_classifiers_is_tested():
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    tested = set(re.findall(r'"(3\.\d+)"', workflow))
    named = [text.rpartition(" ")[2] for text in PYPROJECT["project"]["classifiers"]]
    assert tested == {version for version in named if re.fullmatch(r"3\.\d+", version)}
