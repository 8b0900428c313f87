"""Volumes that outlive a sandbox, and profiles that a cell runs under, over the loopback."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from fleet_rlm import ExecutionProfile, ModalInterpreter, ModalVolume, RLMReActChatAgent
from fleet_rlm.errors import FleetWarning, SandboxError, UsageError
from fleet_rlm.program.agent.roots import Refused
from fleet_rlm.program.agent.volume import Entry, LocalVolume, Volume
from fleet_rlm.sandbox.interpreter import CellError
from tests.modal_loopback import LoopbackModal


@pytest.fixture(params=["local", "modal"])
def volume(request: pytest.FixtureRequest, lab: LoopbackModal, tmp_path: Path) -> Volume:
    lab.volumes.clear()
    return LocalVolume(tmp_path / "kept") if request.param == "local" else ModalVolume("kept")


def test_what_both_kinds_of_volume_promise(volume: Volume) -> None:
    assert isinstance(volume, Volume)
    volume.write("memory/notes/one.txt", "first")
    volume.write("memory/notes/one.txt", "ünd second")
    volume.commit()
    volume.reload()
    assert volume.read("memory/notes/one.txt") == "ünd second"
    assert volume.entries("memory/notes") == [Entry("one.txt", "file")]
    assert Entry("memory", "directory") in volume.entries()
    for path in ("../up", "/etc/passwd", "memory/../../up", "", "a\0b"):
        with pytest.raises(Refused):
            volume.read(path)
        with pytest.raises(Refused):
            volume.write(path, "x")
    for wrong in ("absent.txt", "memory"):
        with pytest.raises(Refused):
            volume.read(wrong)
    with pytest.raises(Refused):
        volume.entries("absent")


def test_a_volume_is_shared_by_sandboxes_and_this_machine(
    lab: LoopbackModal, tmp_path: Path
) -> None:
    if lab.jail_class.__name__ == "PlainJail":
        pytest.skip("without namespaces a sandbox of the loopback has no /data of its own")
    lab.volumes.clear()
    (tmp_path / "books").mkdir()
    (tmp_path / "books" / "one.txt").write_text("Call me")
    (tmp_path / "books" / "link.txt").symlink_to("/etc/hostname")
    seen = ModalVolume("rlm-volume")
    with ModalInterpreter(volume_name="rlm-volume") as session:
        folders = ["cache", "knowledge", "memory", "output", "workspace"]
        assert session.execute("import os; sorted(os.listdir('/data'))") == folders
        session.execute("open('/data/memory/note.txt', 'w').write('kept')")
        session.commit()
        assert seen.read("memory/note.txt") == "kept"
        books = {str(tmp_path / "books"): "knowledge/books"}
        assert session.upload_to_volume(books, {str(tmp_path / "books/one.txt"): "one.txt"}) == 2
        assert session.upload_to_volume(local_dirs=books) == 0
        with pytest.raises(UsageError, match="no place inside"):
            session.upload_to_volume(local_files={str(tmp_path / "books/one.txt"): "../one.txt"})
        session.reload()
        assert session.execute("open('/data/knowledge/books/one.txt').read()") == "Call me"
    with ModalInterpreter(volume_name="rlm-volume") as another:
        assert another.execute("open('/data/memory/note.txt').read()") == "kept"
    assert seen.entries("knowledge/books") == [Entry("one.txt", "file")]
    with ModalInterpreter() as none, pytest.raises(SandboxError, match="no volume"):
        none.commit()


def test_an_agent_keeps_its_notes_on_modal(lab: LoopbackModal) -> None:
    agent = RLMReActChatAgent(volume=ModalVolume("agents"))
    assert agent.tools["memory_write"](path="plan.md", content="go")["status"] == "ok"
    again = RLMReActChatAgent(volume=ModalVolume("agents"))
    assert again.tools["memory_read"](path="plan.md")["content"] == "go"


def test_a_profile_is_kept_by_the_host(lab: LoopbackModal) -> None:
    """It holds for a block of one thread, not for the interpreter that threads share."""
    root, delegate = ExecutionProfile.ROOT_INTERLOCUTOR, ExecutionProfile.RLM_DELEGATE
    asked: list[int] = []
    with ModalInterpreter(tools={"ask": asked.append}) as session:
        session.execute("saved = ask; ask(1)")
        with session.execution_profile(root):
            assert session.execute("1 + 1") == 2
            for code in ("ask(2)", "saved(2)", "SUBMIT(1)"):
                with pytest.raises(CellError):
                    session.execute(code)
            assert in_a_thread(lambda: session.execute("ask(3); 3")) == 3
            session.execute("ask(4)", execution_profile=delegate)
        session.execute("SUBMIT(1)")
    assert asked == [1, 3, 4]
    with ModalInterpreter(default_execution_profile=root) as closed, pytest.raises(CellError):
        closed.execute("SUBMIT(1)")


def in_a_thread(work: Callable[[], object]) -> object:
    found: list[object] = []
    thread = threading.Thread(target=lambda: found.append(work()))
    thread.start()
    thread.join(30)
    return found[0]


def test_no_secret_enters_and_that_is_said() -> None:
    with pytest.warns(FleetWarning, match="LITELLM.*enters no sandbox"):
        ModalInterpreter(secret_name="LITELLM")
    for name, value, mend in (
        ("secrets", ["st-1"], "tools="),
        ("sub_lm", print, "RLM(..., sub_lm=lm)"),
        ("max_llm_calls", 5, "RLM(..., max_llm_calls=50)"),
        ("llm_call_timeout", 60, "RLM(..., call_timeout_s=60)"),
    ):
        with pytest.raises(UsageError, match=name) as refused:
            ModalInterpreter(**{name: value})
        assert mend in str(refused.value)
        assert "st-1" not in str(refused.value)


def test_long_output_is_summarized_where_that_is_asked_for(lab: LoopbackModal) -> None:
    short = {"stdout_summary_threshold": 40, "stdout_summary_prefix_len": 4}
    with ModalInterpreter(summarize_stdout=True, **short) as session:
        assert session.execute("print('x' * 39)") == "x" * 39 + "\n"
        printed = session.execute("for n in range(10): print(n, 1234567)")
        assert printed == '[Output: 100 chars, 10 lines]\nPrefix: "0 12"\nSuffix: "567\n"'
        with session.siblings() as sibling, pytest.raises(CellError) as failed:
            sibling.execute("print('x' * 99); 1 / 0")
        assert failed.value.stdout.startswith("[Output: 100 chars")
        assert session.last
        assert session.last.stdout_chars == 100
    with pytest.raises(ValueError, match="half"):
        ModalInterpreter(stdout_summary_threshold=100)
