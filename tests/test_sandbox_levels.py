"""Choosing a level: proved before use, refused with the way out, never weaker in silence."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from fleet_rlm.errors import Exit, SandboxUnavailable, UsageError
from fleet_rlm.sandbox import confine, levels, local


def test_auto_chooses_and_proves() -> None:
    level = levels.choose()
    assert level.isolated
    assert level.landlock_abi >= 1
    assert (level.name == "bwrap") == (level.advice is None)
    assert levels.choose(level.name) == level
    for words in ("no network", "looked at"):
        assert words in level.label
    assert "not read them" in levels.choose("landlock").label


def test_without_bubblewrap_landlock_holds_and_the_advice_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def choose(level: str = "auto") -> levels.Level:
        levels._bwrap.cache_clear()
        return levels.choose(level)

    monkeypatch.setenv("PATH", str(tmp_path))
    level = choose()
    assert level.name == "landlock"
    assert "apt-get install bubblewrap" in str(level.advice)
    program = tmp_path / "bwrap"
    for complaint, fix in [
        ("bwrap: Unknown option --size", "0.7 or newer"),
        ("bwrap: setting up uid map: Permission denied", "sysctl -w"),
    ]:
        program.write_text(f"#!/bin/sh\necho '{complaint}' >&2\nexit 1\n")
        program.chmod(0o755)
        with pytest.raises(SandboxUnavailable, match=complaint) as refused:
            choose("bwrap")
        assert fix in str(refused.value)
        assert "unsafe-process" in str(refused.value)
        assert choose().name == "landlock"
    # one that makes no namespaces: the canary is merely locked, and that is not enough
    program.write_text(
        '#!/bin/sh\nwhile [ "$1" != --chdir ]; do shift; done\nshift 2\n'
        'mkdir -p "$HOME" 2>/dev/null; exec "$@"\n'
    )
    with pytest.raises(SandboxUnavailable, match="canary blocked"):
        choose("bwrap")
    # one that somebody kills proves nothing, and is asked once more
    text = program.read_text().replace("#!/bin/sh\n", "#!/bin/sh\necho >>%s\nkill -9 $$\n")
    asked = tmp_path / "asked"
    program.write_text(text % asked)
    with pytest.raises(SandboxUnavailable, match="exit code -9"):
        choose("bwrap")
    assert asked.read_text() == "\n\n"
    levels._bwrap.cache_clear()


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


def group_of(leader: int) -> list[Path]:
    """The folders in /proc of the living processes of a process group."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            state, _, group = (path / "stat").read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(group) == leader and state != "Z":
            found.append(path)
    return found


@pytest.fixture(params=["bwrap", "landlock"])
def level(request: pytest.FixtureRequest) -> levels.Level:
    try:
        return levels.choose(request.param)
    except SandboxUnavailable as error:
        pytest.skip(str(error))


def test_a_box_without_secrets_or_traces(
    level: levels.Level, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-not-for-the-box")
    with local.LocalSandbox(level) as box:
        session = box.open()  # kept: a session that nobody holds ends
        session.execute("open('left', 'w').close()")
        everyone = group_of(box.pid)
        assert len(everyone) >= 3
        for process in everyone:
            environment = (process / "environ").read_bytes()
            assert b"sk-not" not in environment
            assert b"API_KEY" not in environment
        root = box._root
    assert root is None or not Path(root).exists()


def test_a_box_may_be_started_by_a_thread_that_ends(level: levels.Level) -> None:
    boxes: list[local.LocalSandbox] = []
    thread = threading.Thread(target=lambda: boxes.append(local.LocalSandbox(level)))
    thread.start()
    thread.join()
    with boxes[0] as box:
        assert box.open().execute("6 * 7").value == 42


def test_a_killed_host_leaves_nothing(level: levels.Level) -> None:
    code = (
        "import os, signal\n"
        "from fleet_rlm.sandbox import levels, local\n"
        f"box = local.shared(levels.choose({level.name!r}))\n"
        "session = box.open()\n"
        'session.execute(\'open("left", "w").close()\')\n'
        "print(box._root, box.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    root, pid = done.stdout.split()
    for _ in range(200):
        if not Path(root).exists() and not group_of(int(pid)):
            break
        time.sleep(0.02)
    assert not Path(root).exists()
    assert group_of(int(pid)) == []


def test_a_box_that_cannot_start_says_why(level: levels.Level, tmp_path: Path) -> None:
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho no such snake >&2\nexit 1\n")
    broken.chmod(0o755)
    from fleet_rlm.errors import SandboxError

    with pytest.raises(SandboxError, match="no such snake"):
        local.LocalSandbox(level, python=str(broken))


@pytest.mark.parametrize("name", ["auto", "landlock", "unsafe-process"])
def test_nothing_runs_on_another_system(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(SandboxUnavailable, match="Linux") as caught:
        levels.choose(name)
    assert "unsafe-process" not in str(caught.value)
    assert "--sandbox modal" in str(caught.value)
