"""The demo agent really works on the workspace, and only there."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from child_driver import Child

from hermetic.agent_child.adapters.demo import ACTIONS
from hermetic.protocol.commands import Answer, Approve
from hermetic.protocol.events import Approval, Clarify, Metering, Reasoning, Result, Token, Tool, ToolComplete

Demo = Callable[[str], Child]


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Demo]:
    with ExitStack() as stack:

        def ask(message: str) -> Child:
            child = stack.enter_context(Child())
            child.start(adapter="demo", message=message, workspace=str(tmp_path))
            return child

        yield ask


def answer(child: Child) -> str:
    end = child.finish()
    assert isinstance(end, Result) and not end.interrupted
    assert end.usage is not None and end.usage.output_tokens > 0
    assert child.stderr == ""
    return child.text


@pytest.mark.parametrize("message", ["help", "Hello!", "what can you do?"])
def test_help_says_in_its_first_sentence_that_it_is_a_demo_and_how_to_plug_in_an_agent(
    demo: Demo, message: str
) -> None:
    text = answer(demo(message))
    assert text.startswith("This is Hermetic's demo agent")
    for line in ("[agents.mine]", 'adapter = "function"', 'target = "module:callable"'):
        assert line in text


def test_an_answer_streams_in_many_pieces_with_reasoning_and_usage(demo: Demo) -> None:
    child = demo("help")
    answer(child)
    assert sum(isinstance(e, Token) for e in child.events) > 50
    assert any(isinstance(e, Reasoning) for e in child.events)
    assert any(isinstance(e, Metering) for e in child.events)


def test_what_it_does_not_understand_is_answered_with_help(demo: Demo) -> None:
    text = answer(demo("sing me a song"))
    assert "did not understand" in text and "[agents.mine]" in text


@pytest.mark.parametrize(
    "message", ["list files", "Please list the files.", "ls", "what files are there?", "show files"]
)
def test_it_lists(demo: Demo, tmp_path: Path, message: str) -> None:
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "folder").mkdir()
    child = demo(message)
    text = answer(child)
    assert "a.txt" in text and "folder/" in text
    assert [type(e) for e in child.events if isinstance(e, Tool | ToolComplete)] == [Tool, ToolComplete]


@pytest.mark.parametrize("message", ["list files in sub", "ls sub", "list `sub`"])
def test_it_lists_a_folder(demo: Demo, tmp_path: Path, message: str) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "inner.txt").write_text("x")
    assert "inner.txt" in answer(demo(message))


@pytest.mark.parametrize("message", ["read a b.txt", 'show me the file "a b.txt"', "cat `a b.txt`", "open a b.txt."])
def test_it_reads(demo: Demo, tmp_path: Path, message: str) -> None:
    (tmp_path / "a b.txt").write_text("the content")
    assert "the content" in answer(demo(message))


@pytest.mark.parametrize("message", ["find needle", "grep 'needle' in sub", "search for Needle in the workspace"])
def test_it_finds(demo: Demo, tmp_path: Path, message: str) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "hay.txt").write_text("hay\na needle here\n")
    (tmp_path / "binary").write_bytes(b"\0needle")
    text = answer(demo(message))
    assert "sub/hay.txt:2: a needle here" in text and "binary" not in text


@pytest.mark.parametrize(
    ("message", "name", "content"),
    [
        ("write notes.txt: Hello\nWorld", "notes.txt", "Hello\nWorld\n"),
        ("Please create a file called sub/deep/x.md with the text: y", "sub/deep/x.md", "y\n"),
        ("create `a b.txt` with hello", "a b.txt", "hello\n"),
        ("write old.txt: new", "old.txt", "new\n"),
    ],
)
def test_it_writes(demo: Demo, tmp_path: Path, message: str, name: str, content: str) -> None:
    (tmp_path / "old.txt").write_text("old")
    assert name in answer(demo(message))
    assert (tmp_path / name).read_text() == content
    assert not list(tmp_path.rglob("*.draft"))


def test_it_edits_and_keeps_the_files_mode(demo: Demo, tmp_path: Path) -> None:
    path = tmp_path / "a.sh"
    path.write_text("one two two")
    path.chmod(0o750)
    assert "2 times" in answer(demo('replace "two" with "three" in a.sh'))
    assert path.read_text() == "one three three" and path.stat().st_mode & 0o777 == 0o750


def test_an_edit_of_what_is_not_there_changes_nothing_and_says_so(demo: Demo, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one")
    assert "changed nothing" in answer(demo('replace "two" by "three" in a.txt'))
    assert (tmp_path / "a.txt").read_text() == "one"


@pytest.mark.parametrize(
    "message",
    [
        "read ../secret.txt",
        "read /etc/passwd",
        "read link",
        "read folder/secret.txt",
        "list files in ..",
        "find root in /etc",
        "write ../secret.txt: overwritten",
        "write link: overwritten",
        'replace "secret" with "public" in ../secret.txt',
        "read ~/.bashrc",
    ],
)
def test_what_leads_out_of_the_workspace_is_refused(tmp_path: Path, message: str) -> None:
    workspace = tmp_path / "workspace"
    workspace.mkdir()
    (tmp_path / "secret.txt").write_text("secret")
    (workspace / "link").symlink_to("../secret.txt")
    (workspace / "folder").symlink_to("..")
    with Child() as child:
        child.start(adapter="demo", message=message, workspace=str(workspace))
        text = answer(child)
    assert "only work inside this session's workspace" in text
    assert (tmp_path / "secret.txt").read_text() == "secret"


def test_what_is_no_text_file_is_refused_in_a_sentence(demo: Demo, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "binary").write_bytes(b"\x00\x01")
    (tmp_path / "folder").mkdir()
    for name, said in {"fifo": "not a file", "binary": "binary", "folder": "directory", "nope": "No such file"}.items():
        assert said in answer(demo(f"read {name}"))


def test_a_large_file_is_shown_in_part(demo: Demo, tmp_path: Path) -> None:
    (tmp_path / "large").write_text("x" * 1_000_000)
    text = answer(demo("read large"))
    assert len(text) < 40_000 and "first 32768 bytes" in text


@pytest.mark.parametrize(
    "message", ["run echo $((6 * 7))", "$ echo $((6 * 7))", "please run the command: echo $((6*7))"]
)
def test_a_command_runs_in_the_workspace_after_it_was_allowed(demo: Demo, tmp_path: Path, message: str) -> None:
    child = demo(message)
    approval = child.wait_event(Approval)
    assert approval.command.startswith("echo") and approval.description
    assert not any(isinstance(e, Tool) for e in child.events)
    child.send(Approve(approval_id=approval.approval_id, choice="once"))
    assert "42" in answer(child)
    [complete] = [e for e in child.events if isinstance(e, ToolComplete)]
    assert complete.snippet == "42\n" and not complete.is_error


def test_a_command_that_was_denied_does_not_run(demo: Demo, tmp_path: Path) -> None:
    child = demo("run touch ran")
    child.send(Approve(approval_id=child.wait_event(Approval).approval_id, choice="deny"))
    assert "did not run" in answer(child)
    assert not (tmp_path / "ran").exists()


def test_a_commands_output_streams_while_it_runs_and_its_exit_code_is_told(demo: Demo, tmp_path: Path) -> None:
    child = demo("run echo first; while [ ! -e go ]; do sleep 0.01; done; echo second >&2; exit 3")
    child.send(Approve(approval_id=child.wait_event(Approval).approval_id, choice="once"))
    child.wait_text("first")
    (tmp_path / "go").touch()
    text = answer(child)
    assert "second" in text and "exit code 3" in text


def test_a_command_without_an_end_is_stopped_by_its_output(demo: Demo) -> None:
    child = demo("run yes")
    child.send(Approve(approval_id=child.wait_event(Approval).approval_id, choice="once"))
    assert "stopped it after" in answer(child)
    assert len(child.text) < 300_000


def test_a_cancel_kills_what_the_command_has_started(demo: Demo, tmp_path: Path) -> None:
    child = demo("run (sleep 600; touch survived) & echo started; wait")
    child.send(Approve(approval_id=child.wait_event(Approval).approval_id, choice="once"))
    child.wait_text("started")
    child.terminate()
    assert child.finish().interrupted  # type: ignore[union-attr]


def test_counting_slowly_can_be_cancelled_and_what_was_said_stays(demo: Demo) -> None:
    child = demo("count to 1000 slowly")
    child.wait_text("2 ")
    child.terminate()
    end = child.finish()
    assert isinstance(end, Result) and end.interrupted
    assert child.text.startswith("1 2 ") and "1000" not in child.text


def test_counting_counts(demo: Demo) -> None:
    assert answer(demo("count to 5")).split() == ["1", "2", "3", "4", "5"]


def test_it_asks_and_repeats_the_answer(demo: Demo) -> None:
    child = demo("ask me")
    clarify = child.wait_event(Clarify)
    assert clarify.choices
    child.send(Answer(clarify_id=clarify.clarify_id, text="cocoa"))
    assert "cocoa" in answer(child)


@pytest.mark.parametrize("text", [" " * 1500, "a " * 1900, "please " * 500, "``" * 1900, "find " + " in" * 1200])
def test_no_request_makes_the_patterns_slow(text: str) -> None:
    import re

    began = time.process_time()
    for pattern, _ in ACTIONS:
        re.fullmatch(pattern, text + "\n!x", re.IGNORECASE | re.DOTALL)
    assert time.process_time() - began < 2.0
