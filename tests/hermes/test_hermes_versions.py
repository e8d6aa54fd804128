"""The adapter with agents of other versions, played by a few lines: what the real one of today does not do."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from child_driver import Child

from hermetic.protocol.commands import Approve
from hermetic.protocol.events import (
    Approval,
    Compressed,
    Failed,
    Metering,
    PendingSteerLeftover,
    Reasoning,
    Result,
    Token,
    Tool,
    ToolComplete,
    Usage,
    Warning,
)

APPROVAL = """
    import threading
    _lock = threading.Lock()
    _gateway_queues, notify, approved = {}, {}, set()
    class Entry:
        def __init__(self, data):
            self.data, self.event, self.result = data, threading.Event(), None
    def register_gateway_notify(key, cb): notify[key] = cb
    def approve_session(key, pattern): approved.add(pattern)
    def resolve_gateway_approval(key, choice, resolve_all=False, reason=None):
        with _lock:
            entry = _gateway_queues[key].pop(0)
        entry.result = choice
        entry.event.set()
        return 1
    def ask(command):
        [(key, cb)] = notify.items()
        entry = Entry({"command": command, "pattern_key": "p", "pattern_keys": ["p"], "description": "d"})
        with _lock:
            _gateway_queues.setdefault(key, []).append(entry)
        cb(entry.data)
        entry.event.wait(30)
        return entry.result
"""

Agent = Callable[..., Child]


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    """`agent(code)`: a child whose `run_agent` module is this code."""

    def write(name: str, code: str) -> None:
        path = tmp_path / "fake" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(code))

    with ExitStack() as stack:

        def start(
            code: str,
            *,
            approval: str = APPROVAL,
            config: str = "{}",
            modules: dict[str, str] | None = None,
            **fields: Any,
        ) -> Child:
            for name, source in (modules or {}).items():
                write(name, source)
            write("run_agent.py", code)
            write("tools/approval.py", approval)
            write("hermes_cli/config.py", f"def load_config(): return {config}")
            write(
                "hermes_cli/runtime_provider.py",
                "def resolve_runtime_provider(*, requested=None): return {'api_key': 'k', 'base_url': 'http://rt'}",
            )
            child = stack.enter_context(Child(env={"HERMES_HOME": str(tmp_path / "home")}))
            child.start(adapter="hermes", python_path=[str(tmp_path / "fake")], workspace=str(tmp_path), **fields)
            return child

        yield start


def said(child: Child, kind: type) -> list[Any]:
    return [event for event in child.events if isinstance(event, kind)]


def test_an_old_version_gets_only_what_it_takes_and_is_heard(agent: Agent) -> None:
    child = agent("""
        class AIAgent:
            def __init__(self, model, base_url=None, api_key=None, quiet_mode=False,
                         stream_delta_callback=None, tool_progress_callback=None):
                self.say, self.progress = stream_delta_callback, tool_progress_callback
                self.got = (model, base_url, api_key, quiet_mode)
            def interrupt(self): ...
            def run_conversation(self, user_message, conversation_history=None):
                self.say("Hello ")
                self.say(None)
                self.progress("_thinking", "Hello")
                self.progress("_thinking", "a real thought")
                self.progress("terminal", "ls", {"command": "ls"})
                self.say("friend " + repr(self.got))
                return {"final_response": "Hello friend", "completed": True}
    """, config="{'model': 'house'}")  # fmt: skip
    assert isinstance(child.finish(), Result)
    assert child.text == "Hello friend ('house', 'http://rt', 'k', True)"
    assert said(child, Reasoning) == [Reasoning(text="a real thought")], "what was said is no reasoning"
    assert said(child, Tool) == [Tool(name="terminal", preview="ls", args={"command": "ls"}, tid="tool-1")]


NEW = """
    class AIAgent:
        def __init__(self, model="", session_id=None, stream_delta_callback=None, reasoning_callback=None,
                     tool_progress_callback=None, tool_start_callback=None, tool_complete_callback=None,
                     status_callback=None, **rest):
            self.session_id, self.say, self.reason = session_id, stream_delta_callback, reasoning_callback
            self.progress, self.start, self.complete = tool_progress_callback, tool_start_callback, tool_complete_callback
            self.status = status_callback
            self.stopped = False
        def interrupt(self, message=None):
            self.stopped = True
        def steer(self, text):
            return True
        def run_conversation(self, user_message, system_message=None, conversation_history=None, task_id=None,
                             persist_user_message=None):
            self.message, self.history = user_message, conversation_history or []
            return self.turn() or {"final_response": "", "completed": True}
        def turn(self):
{turn}
"""


def new(turn: str) -> str:
    return NEW.replace("{turn}", textwrap.indent(textwrap.dedent(turn).strip(), "            "))


def test_todays_callbacks(agent: Agent) -> None:
    child = agent(
        new("""
        self.reason("Let me see.")
        self.say("Look: ")
        self.say(None)
        self.progress("reasoning.available", "_thinking", "Look:", None)
        self.progress("tool.started", "terminal", "one", {"command": "one"})
        self.progress("tool.started", "terminal", "two", {"command": "two"})
        self.start("c1", "terminal", {"command": "one"})
        self.start("c2", "terminal", {"command": "two"})
        self.progress("tool.completed", "terminal", None, None, duration=0.5, is_error=True, result="x")
        self.complete("c1", "terminal", {"command": "one"}, '{"output": "1", "error": null}')
        self.complete("c2", "terminal", {"command": "two"}, "plain")
        self.status("lifecycle", "Compressing the conversation")
        self.status("warn", "see /home/ann/file.txt")
        print("not an event")
        return {"final_response": "Look: and more", "completed": True}
    """)
    )
    last = child.finish()
    assert isinstance(last, Result)
    assert child.text == "Look: Look: and more", "an answer that was not streamed is said at the end"
    assert said(child, Reasoning) == [Reasoning(text="Let me see.")]
    assert [(t.tid, t.preview, t.args) for t in said(child, Tool)] == [
        ("c1", "one", {"command": "one"}), ("c2", "two", {"command": "two"})]  # fmt: skip
    assert said(child, ToolComplete) == [
        ToolComplete(name="terminal", tid="c1", snippet="1", is_error=True, duration_s=0.5),
        ToolComplete(name="terminal", tid="c2", snippet="plain"),
    ]
    assert [w.message for w in said(child, Warning)] == ["see file.txt"]
    assert "not an event" in child.stderr


def test_a_session_id_that_compression_has_changed(agent: Agent) -> None:
    child = agent(new("""
        self.session_id = "another"
        self.say("On.")
        return {"final_response": "On.", "completed": True, "session_id": "another", "messages": [
            {"role": "user", "content": "summary"}, {"role": "user", "content": self.message},
            {"role": "assistant", "content": "On."}]}
    """), history=[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])  # fmt: skip
    last = child.finish()
    assert isinstance(last, Result)
    assert last.session_id == "another"
    assert len(said(child, Compressed)) == 1
    assert last.messages is not None
    assert [m["content"] for m in last.messages] == ["summary", "hello", "On."], "without the tag"
    assert last.turn_messages == [{"role": "assistant", "content": "On."}]


def test_compression_in_place(agent: Agent) -> None:
    child = agent(new("""
        class compressor: compression_count, context_length, last_prompt_tokens, threshold_tokens = 1, 10, 5, 7
        self.context_compressor = compressor
        self.say("On.")
        return {"final_response": "On.", "completed": True, "input_tokens": 3, "estimated_cost_usd": 0.5, "messages": [
            {"role": "user", "content": self.message}, {"role": "assistant", "content": "On."}]}
    """), history=[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])  # fmt: skip
    last = child.finish()
    assert isinstance(last, Result)
    assert (last.session_id, len(said(child, Compressed))) == (None, 1)
    assert last.messages is not None
    assert [m["content"] for m in last.messages] == ["hello", "On."]
    usage = Usage(input_tokens=3, estimated_cost=0.5, context_length=10, last_prompt_tokens=5, threshold_tokens=7)
    assert last.usage == usage
    assert said(child, Metering)[-1] == Metering(usage=usage)


def test_a_past_that_is_unchanged_is_not_sent_back(agent: Agent) -> None:
    history = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    child = agent(new("""
        self.say("On.")
        return {"final_response": "On.", "completed": True, "messages": [*self.history,
            {"role": "user", "content": self.message}, {"role": "assistant", "content": "On.", "extra": 1}]}
    """), history=history)  # fmt: skip
    last = child.finish()
    assert isinstance(last, Result)
    assert last.messages is None
    assert last.turn_messages == [{"role": "assistant", "content": "On."}]
    assert said(child, Compressed) == []


def test_messages_that_do_not_fit_into_a_frame_are_folded_instead(agent: Agent) -> None:
    child = agent(new("""
        self.say("On.")
        return {"final_response": "On.", "completed": True, "messages": [
            {"role": "user", "content": self.message},
            {"role": "tool", "content": "x" * 5000}, {"role": "assistant", "content": "On."}]}
    """), frame_bytes_max=4096)  # fmt: skip
    last = child.finish()
    assert isinstance(last, Result)
    assert (last.messages, last.turn_messages) == (None, None)
    assert said(child, Warning) == []


STATE = """
    import json
    class SessionDB:
        def ensure_session(self, session_id, source, model): self.rows = [[session_id, source, model]]
        def update_token_counts(self, session_id, **counts): self.rows.append(counts)
        def set_session_title(self, session_id, title):
            print(json.dumps([*self.rows, title]))
            raise ValueError("there is one already")
"""


def test_insights_are_the_sessions_totals(agent: Agent) -> None:
    child = agent(
        new("self.say('On.'); return {'completed': True, 'input_tokens': 3, 'estimated_cost_usd': 0.5}"),
        modules={"hermes_state.py": STATE},
        options={"sync_insights": True}, model="m", title="A talk",
        used=Usage(input_tokens=10, output_tokens=20, estimated_cost=1.0),
    )  # fmt: skip
    assert isinstance(child.finish(), Result)
    totals = {"input_tokens": 13, "output_tokens": 20, "estimated_cost_usd": 1.5, "model": "m", "absolute": True}
    assert json.dumps([["0123456789ab", "hermetic", "m"], totals, "A talk"]) in child.stderr
    assert said(child, Warning) == []


def test_insights_that_fail_do_not_break_the_turn(agent: Agent) -> None:
    child = agent(
        new("self.say('On.'); return {'completed': True}"),
        modules={"hermes_state.py": "class SessionDB:\n    def __init__(self): raise OSError('disk full')"},
        options={"sync_insights": True},
    )  # fmt: skip
    assert isinstance(child.finish(), Result)
    assert [w.code for w in said(child, Warning)] == ["insights_not_synced"]


def test_a_steer_that_came_too_late_goes_back(agent: Agent) -> None:
    child = agent(
        new("""
        self.say("On.")
        return {"final_response": "On.", "completed": True, "pending_steer": "use blue"}
    """)
    )
    child.finish()
    assert said(child, PendingSteerLeftover) == [PendingSteerLeftover(text="use blue")]


def test_an_end_without_an_answer_is_a_failure(agent: Agent) -> None:
    last = agent(new("return {}")).finish()
    assert isinstance(last, Failed)
    assert last.message == "the agent ended without an answer"


def test_the_figures_of_a_failed_run_are_kept(agent: Agent) -> None:
    child = agent(
        new("""
        self.say("Half")
        return {"failed": True, "error": "HTTP 429", "input_tokens": 5}
    """)
    )
    last = child.finish()
    assert isinstance(last, Failed)
    assert last.type == "rate_limit"
    assert said(child, Metering)[-1].usage.input_tokens == 5
    assert said(child, Token)


def test_attachments_and_the_tag_are_in_the_message(agent: Agent, tmp_path: Path) -> None:
    child = agent(new("self.say(self.message)"), attachments=["a.txt", "b.txt"])
    child.finish()
    assert child.text == f"[Workspace: {tmp_path}]\nhello\n\n[Attached files: a.txt, b.txt]"


def test_a_turn_installs_nothing_unless_its_environment_says_so(agent: Agent) -> None:
    child = agent(new("import os; self.say(os.environ['HERMES_DISABLE_LAZY_INSTALLS'])"))
    child.finish()
    assert child.text == "1"


def test_an_option_that_is_none_is_named(agent: Agent) -> None:
    last = agent(new("return {}"), options={"toolset": []}).finish()
    assert isinstance(last, Failed)
    assert last.message == 'the adapter "hermes" has no option "toolset"'
    assert last.fault == "host"


BOTH = new("""
    import threading
    from tools.approval import ask
    answers = {}
    def tool(command):
        answers[command] = ask(command)
    first = threading.Thread(target=tool, args=("first",))
    first.start()
    while len(__import__("tools.approval").approval._gateway_queues) < 1: pass
    self.say("one")
    second = threading.Thread(target=tool, args=("second",))
    second.start()
    first.join(); second.join()
    self.say(repr(sorted(answers.items())))
""")


@pytest.mark.parametrize("approval", [APPROVAL, APPROVAL.replace("_gateway_queues", "_queues")], ids=["seen", "unseen"])
@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_an_answer_is_for_the_request_that_it_names(agent: Agent, order: tuple[int, int], approval: str) -> None:
    seen = approval == APPROVAL
    child = agent(BOTH if seen else BOTH.replace("_gateway_queues", "_queues"), approval=approval)
    asked = [child.wait_event(Approval, 1), child.wait_event(Approval, 2)]
    choices = {"first": "deny", "second": "once"}
    for index in order:
        request = asked[index]
        child.send(Approve(approval_id=request.approval_id, choice=choices[request.command]))
    child.finish()
    assert child.text == "one[('first', 'deny'), ('second', 'once')]"


def test_approvals_of_one_turn_have_a_key_of_their_own(agent: Agent) -> None:
    child = agent(new("from tools.approval import notify; self.say(repr(list(notify)))"), turn_id="t7")
    child.finish()
    assert child.text == "['0123456789ab:t7']"


def test_a_cancel_reaches_the_agents_interrupt(agent: Agent) -> None:
    child = agent(
        new("""
        import time
        self.say("on")
        while not self.stopped:
            time.sleep(0.01)
        return {"interrupted": True, "completed": True, "final_response": "on, but"}
    """)
    )
    child.wait_text("on")
    child.terminate()
    last = child.finish()
    assert isinstance(last, Result)
    assert last.interrupted
    assert (child.text, last.turn_messages) == ("on", None)


def test_a_cancel_during_the_import_ends_it(agent: Agent) -> None:
    child = agent("import sys, time\nprint('importing', file=sys.stderr)\ntime.sleep(60)")
    child.wait_until(lambda c: "importing" in c.stderr)
    child.terminate()
    assert child.finish() == Result(interrupted=True)


def test_a_module_that_the_agent_needs_and_has_not(agent: Agent) -> None:
    last = agent("import no_such_module_at_all").finish()
    assert isinstance(last, Failed)
    assert "no_such_module_at_all" in last.message
