"""Choosing a level: proved before use, refused with the way out, never weaker in silence."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fleet_rlm.errors import Exit, SandboxUnavailable, UsageError
from fleet_rlm.sandbox import confine, levels, local


def test_auto_chooses_and_proves() -> None:
    level = levels.choose()
    assert (level.name, level.isolated) == ("landlock", True)
    assert level.landlock_abi >= 1
    assert levels.choose("landlock") is level
    for words in ("no network", "not read them", "looked at"):
        assert words in level.label


@pytest.mark.parametrize("abi", [1, 2, 3, 4, 5, 6])
def test_older_kernels_hold_too(abi: int) -> None:
    if abi > confine.landlock_abi():
        pytest.skip("this kernel is older still")
    assert levels.choose(landlock_abi=abi).landlock_abi == abi
    assert levels.choose(env={levels.ABI_VARIABLE: str(abi)}).landlock_abi == abi


@pytest.mark.parametrize("name", ["auto", "landlock"])
def test_refusal_says_what_why_and_the_way_out(name: str) -> None:
    with pytest.raises(SandboxUnavailable) as refused:
        levels.choose(name, env={levels.ABI_VARIABLE: "0"})
    text = str(refused.value)
    assert "Tried landlock: FLEET_RLM_LANDLOCK_ABI=0" in text
    assert "unset FLEET_RLM_LANDLOCK_ABI" in text
    assert "--sandbox unsafe-process" in text
    assert refused.value.exit_code == Exit.NO_SANDBOX
    assert "\n" not in text


def test_unsafe_is_never_automatic() -> None:
    level = levels.choose("unsafe-process", landlock_abi=0)
    assert not level.isolated
    assert level.label.startswith("NOT ISOLATED")


def test_bad_names_and_numbers() -> None:
    with pytest.raises(UsageError, match="Did you mean 'landlock'"):
        levels.choose("landlok")
    with pytest.raises(UsageError, match="not a number"):
        levels.choose(env={levels.ABI_VARIABLE: "old"})


@pytest.mark.parametrize(
    ("number", "why"),
    [(errno.ENOSYS, "5.13 or later"), (errno.EOPNOTSUPP, "lsm=landlock"), (errno.EPERM, "docker")],
)
def test_each_refusal_of_the_kernel_has_its_own_way_out(number: int, why: str) -> None:
    reason, fix = levels._explain(OSError(number, os.strerror(number)))
    assert reason
    assert why in fix


def test_the_self_test_sees_an_open_door(tmp_path: Path) -> None:
    """The same child without its lock reports every door open."""
    (tmp_path / "canary").write_text("x")
    (tmp_path / "scratch").mkdir()
    code = (
        "import json, sys\n"
        f"sys.path.insert(0, {str(Path(confine.__file__).parent)!r})\n"
        "import confine\n"
        "confine.Lock.apply = lambda self, scratch: []\n"
        "print(json.dumps(confine.self_test(sys.argv[1], sys.argv[2], 1)))"
    )
    arguments = [str(tmp_path / "scratch"), str(tmp_path / "canary")]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
    )
    assert done.stdout.count('"not blocked') == 6


def test_a_box_without_secrets_or_traces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-not-for-the-box")
    with local.LocalSandbox(levels.choose()) as box:
        environment = Path(f"/proc/{box.pid}/environ").read_bytes()
        assert b"sk-not" not in environment
        assert b"API_KEY" not in environment
        root = Path(box._root)
        box.open().execute("open('left', 'w').close()")
    assert not root.exists()


def test_a_killed_host_leaves_nothing() -> None:
    code = (
        "import os, signal\n"
        "from fleet_rlm.sandbox import levels, local\n"
        "box = local.shared(levels.choose())\n"
        "session = box.open()\n"
        'session.execute(\'open("left", "w").close()\')\n'
        "print(box._root, box.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    root, pid = done.stdout.split()
    for _ in range(200):
        if not Path(root).exists() and not Path(f"/proc/{pid}").exists():
            break
        time.sleep(0.02)
    assert not Path(root).exists()
    assert not Path(f"/proc/{pid}").exists()


def test_a_box_that_cannot_start_says_why(tmp_path: Path) -> None:
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho no such snake >&2\nexit 1\n")
    broken.chmod(0o755)
    from fleet_rlm.errors import SandboxError

    with pytest.raises(SandboxError, match="no such snake"):
        local.LocalSandbox(levels.choose(), python=str(broken))
