"""The wheel and the lock: what an installation exposes; every version pinned by hash."""

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCK = (ROOT / "requirements.lock").read_text()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out)]
    done = subprocess.run(
        [*command, str(ROOT)], cwd=out, capture_output=True, text=True, timeout=110
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return next(out.glob("*.whl"))


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
    assert "fleet_rlm/py.typed" in names


def test_the_wheel_carries_every_built_in_content_file(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    expected = {
        f"fleet_rlm/builtin/{path.relative_to(ROOT)}"
        for folder in ("evals", "datasets", "optimize")
        for path in (ROOT / folder).rglob("*.toml")
    }
    assert "fleet_rlm/builtin/evals/quickstart.toml" in expected
    assert expected <= names


def test_an_installed_wheel_finds_its_suites_anywhere(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r})\n"
        "from fleet_rlm.cli.eval import main; sys.argv = ['fleet-eval', 'list']; main()"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        cwd=elsewhere,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "quickstart" in done.stdout


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


def test_the_version_is_written_once():
    from fleet_rlm import __version__

    assert __version__ == PYPROJECT["project"]["version"]
