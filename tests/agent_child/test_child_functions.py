"""A user's function as an agent: every kind that works, and what is said of those that do not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from child_driver import Run

from hermetic.protocol.commands import Answer, Steer
from hermetic.protocol.events import (
    Clarify,
    Failed,
    Metering,
    PendingSteerLeftover,
    Reasoning,
    Result,
    Title,
    Token,
    Tool,
    ToolComplete,
    Usage,
    Warning,
)

KINDS = {
    "returns": "def agent(): return 'hello'",
    "turn": "def agent(turn): turn.token('hel'); turn.token(None); turn.token('lo')",
    "streams and returns the same": "def agent(turn):\n    turn.token('hel'); turn.token('lo'); return 'hello'",
    "streams and returns the rest": "def agent(turn):\n    turn.token('hel'); return 'lo'",
    "by message": "def agent(message): return message",
    "annotated": "def agent(prompt: str): return prompt",
    "annotated in the future": "from __future__ import annotations\ndef agent(prompt: str): return prompt",
    "another name": "def agent(t): t.token('hello')",
    "positional only": "def agent(t, /): return t.message",
    "keyword only": "def agent(*, message, workspace): return message",
    "with a default": "def agent(message, unknown=1, *rest, **more): return message",
    "generator": "def agent(message):\n    yield 'hel'\n    yield 'lo'",
    "generator that returns": "def agent():\n    yield 'hel'\n    return 'lo'",
    "iterator": "def agent(): return iter(['hel', 'lo'])",
    "async": "async def agent(message): return message",
    "async turn": "async def agent(turn): turn.token('hello')",
    "async generator": "async def agent(turn):\n    yield 'hel'\n    yield 'lo'",
    "object": "class A:\n    def __call__(self, message): return message\nagent = A()",
    "async object": "class A:\n    async def __call__(self, message): return message\nagent = A()",
    "async generator object": "class A:\n    async def __call__(self):\n        yield 'hello'\nagent = A()",
    "bound method": "class A:\n    def go(self, turn): return turn.message\nagent = A().go",
    "partial": "from functools import partial\nagent = partial(lambda a, message: message, 1)",
    "async partial": "from functools import partial\nasync def f(a, message): return message\nagent = partial(f, 1)",
    "lambda": "agent = lambda turn: turn.message",
    "decorated": """
from functools import wraps
def d(f):
    @wraps(f)
    def wrapper(*args, **kwargs): return f(*args, **kwargs)
    return wrapper
@d
def agent(message): return message
""",
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_callable_answers(run: Run, kind: str) -> None:
    child = run(KINDS[kind])
    assert child.finish() == Result()
    assert child.text == "hello"
    assert child.stderr == ""


def test_a_target_may_be_an_attribute_of_an_attribute(run: Run) -> None:
    child = run("class A:\n    class B:\n        @staticmethod\n        def go(): return 'x'", target="given_0:A.B.go")
    child.finish()
    assert child.text == "x"


def test_a_function_is_given_what_it_names(run: Run, tmp_path: Path) -> None:
    child = run(
        """
        import json, os
        def agent(message, history, workspace, session_id, attachments, model, options, turn):
            turn.token(json.dumps([message, history, workspace == os.getcwd(), session_id, attachments, model, options,
                                   turn.turn_id, turn.profile]))
        """,
        history=[{"role": "user", "content": "before"}],
        attachments=["a.txt"],
        model="m",
        options={"temperature": 0.5},
        profile="work",
    )
    child.finish()
    assert json.loads(child.text) == [
        "hello", [{"role": "user", "content": "before"}], True, "0123456789ab", ["a.txt"], "m", {"temperature": 0.5},
        "t1", "work",
    ]  # fmt: skip


def test_a_turn_says_everything_there_is_to_say(run: Run) -> None:
    child = run("""
        def agent(turn):
            turn.reasoning("hm")
            call = turn.tool("shell", {"a": 1, "b": "x" * 500, "c": None, "d": [1], "e": "fifth"}, preview="ls")
            call.complete("r" * 500)
            call.complete("again")
            turn.usage(input_tokens=3, output_tokens=4, estimated_cost=0.5)
            turn.usage(input_tokens=1)
            turn.title("A title")
            turn.warning("careful")
            with turn.tool("quiet"):
                pass
            try:
                with turn.tool("loud"):
                    raise OSError(2, "No such file", "/home/secret/file.txt")
            except OSError:
                pass
    """)
    usage = Usage(input_tokens=4, output_tokens=4, estimated_cost=0.5)
    assert child.finish() == Result(usage=usage)
    reasoning, tool, complete, first, second, title, warning, _, quiet, _, loud, _ = child.events[1:]
    assert reasoning == Reasoning(text="hm")
    args = {"a": "1", "b": "x" * 120 + "...", "c": "None", "d": "[1]"}
    assert tool == Tool(name="shell", preview="ls", args=args, tid="tool-1")
    assert isinstance(complete, ToolComplete)
    assert (complete.tid, complete.snippet, complete.is_error) == ("tool-1", "r" * 200, False)
    assert complete.duration_s is not None and 0 <= complete.duration_s < 5
    assert (first, second) == (
        Metering(usage=Usage(input_tokens=3, output_tokens=4, estimated_cost=0.5)),
        Metering(usage=usage),
    )
    assert (title, warning) == (Title(title="A title"), Warning(message="careful"))
    assert isinstance(quiet, ToolComplete) and not quiet.is_error
    assert isinstance(loud, ToolComplete) and loud.is_error and loud.snippet == "[Errno 2] No such file: 'file.txt'"


FAILURES = {
    "returns nothing": ("def agent(): print('x')", "returned nothing", "turn.token", "agent"),
    "returns the empty text": ("def agent(): return ''", "returned nothing", "turn.token", "agent"),
    "yields nothing": ("def agent():\n    return\n    yield", "returned nothing", "yield", "agent"),
    "returns a number": ("def agent(): return 5", "type int", "str", "agent"),
    "returns bytes": ("def agent(): return b'x'", "type bytes", "str", "agent"),
    "yields a dict": ("def agent():\n    yield 'a'\n    yield {}", "type dict", "str", "agent"),
    "yields bytes, async": ("async def agent():\n    yield b'x'", "type bytes", "str", "agent"),
    "returns a coroutine": ("async def f(): pass\ndef agent(): return f()", "not async", "async def", "agent"),
    "tokens of numbers": ("def agent(turn): turn.token(5)", "TypeError: turn.token takes text", "traceback", "agent"),
    "two unknown parameters": ("def agent(a, b): pass", "wrong shape", "def agent(turn)", "agent"),
    "an unknown one beside a known": ("def agent(turn, b): pass", "wrong shape", "def agent(turn)", "agent"),
    "an unknown keyword": ("def agent(*, b): pass", "wrong shape", "def agent(turn)", "agent"),
    "not callable": ("agent = 5", "not a callable", "def agent(turn)", "host"),
    "raises": ("def agent(): raise ValueError('bad')", "ValueError: bad", "traceback", "agent"),
    "raises without words": ("def agent(): raise ValueError", "ValueError", "traceback", "agent"),
    "raises async": ("async def agent(): raise ValueError('bad')", "ValueError: bad", "traceback", "agent"),
    "raises in a generator": ("def agent():\n    yield 'a'\n    raise ValueError('bad')", "ValueError", "", "agent"),
    "exits": ("import sys\ndef agent(): sys.exit(0)", "sys.exit(0)", "Return", "agent"),
    "exits at import": ("import sys; sys.exit(0)", "SystemExit", "stderr", "agent"),
    "interrupts itself": ("def agent(): raise KeyboardInterrupt", "KeyboardInterrupt", "traceback", "agent"),
    "interrupts itself, async": ("async def agent(): raise KeyboardInterrupt", "KeyboardInterrupt", "", "agent"),
    "cancels itself": (
        "import asyncio\nasync def agent(): raise asyncio.CancelledError",
        "cancelled itself",
        "return",
        "agent",
    ),
    "raises at import": ("1 / 0", "ZeroDivisionError", "python_path", "agent"),
    "imports what is not there": ("import nowhere_to_be_found", "nowhere_to_be_found", "python_path", "agent"),
    "a syntax error": ("def agent(:", "SyntaxError", "stderr", "agent"),
    "no such attribute": ("other = 1", 'has no "agent"', "given_0.py", "host"),
}


@pytest.mark.parametrize("case", FAILURES)
def test_a_failure_says_what_whose_fault_and_what_to_do(run: Run, case: str) -> None:
    source, message, hint, fault = FAILURES[case]
    child = run(source)
    end = child.finish()
    assert isinstance(end, Failed)
    assert message in end.message
    assert hint in end.hint
    assert (end.fault, end.type) == (fault, "error")


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("nowhere:agent", 'no module "nowhere"'),
        ("nowhere.at.all:agent", 'no module "nowhere"'),
        ("nowhere", "not of the form"),
        (":agent", "not of the form"),
        ("", "no target"),
        (None, "no target"),
        ("given_0.sub:agent", "no module"),
    ],
)
def test_a_target_that_cannot_be_found_is_the_hosts_fault(run: Run, target: str | None, message: str) -> None:
    end = run("def agent(): return 'x'", target=target).finish()
    assert isinstance(end, Failed)
    assert message in end.message and end.fault == "host" and end.hint


def test_an_unknown_module_is_answered_with_python_path(run: Run) -> None:
    end = run("", target="nowhere:agent").finish()
    assert isinstance(end, Failed) and "python_path" in end.hint


def test_the_traceback_is_on_stderr_and_the_path_is_not_in_the_message(run: Run, tmp_path: Path) -> None:
    child = run("def agent(): open('/no/such/folder/file.txt')")
    end = child.finish()
    assert isinstance(end, Failed)
    assert end.message == "FileNotFoundError: [Errno 2] No such file or directory: 'file.txt'"
    assert "Traceback" in child.stderr and str(tmp_path) in child.stderr


@pytest.mark.parametrize(
    "error",
    [
        "RuntimeError('Rate Limit reached')",
        "RuntimeError('HTTP 429')",
        "type('MyRateLimitErrorX', (Exception,), {})('x')",
    ],
)
def test_a_rate_limit_is_told_apart(run: Run, error: str) -> None:
    end = run(f"def agent(): raise {error}").finish()
    assert isinstance(end, Failed) and end.type == "rate_limit" and "wait" in end.hint


def test_what_was_streamed_before_a_failure_stays(run: Run) -> None:
    child = run("def agent(turn):\n    turn.token('so far')\n    raise ValueError")
    assert isinstance(child.finish(), Failed)
    assert child.events[1] == Token(text="so far")


def test_a_workspace_that_is_gone_is_the_hosts_fault(run: Run) -> None:
    end = run("def agent(): return 'x'", workspace="/no/such/place").finish()
    assert isinstance(end, Failed) and end.fault == "host" and "workspace" in end.message
    assert "/no/such" not in end.message


def test_a_module_in_the_workspace_does_not_shadow_the_standard_library(run: Run, tmp_path: Path) -> None:
    (tmp_path / "workspace").mkdir()
    (tmp_path / "workspace" / "wave.py").write_text("raise RuntimeError('shadowed')")
    child = run("def agent():\n    import wave\n    return wave.__name__")
    assert child.finish() == Result()


def test_an_agent_that_kills_itself_leaves_no_result_and_its_signal_is_reported(run: Run) -> None:
    child = run("import os, signal\ndef agent(turn):\n    turn.token('a')\n    os.kill(os.getpid(), signal.SIGSEGV)")
    exited = child.wait_exited()
    assert (exited.exit_code, exited.signal) == (None, "SIGSEGV")
    assert child.text == "a" and isinstance(child.events[-1], Token)


def test_an_agent_that_leaves_by_os_exit_is_reported_with_its_code(run: Run) -> None:
    child = run("import os\ndef agent(): os._exit(7)")
    assert child.wait_exited().exit_code == 7


def test_the_agents_atexit_and_threads_do_not_delay_the_end(run: Run) -> None:
    child = run("""
        import atexit, threading, time
        atexit.register(time.sleep, 600)
        threading.Thread(target=time.sleep, args=(600,)).start()
        def agent(): return "x"
    """)
    assert child.finish() == Result()


def test_an_async_agents_other_tasks_run_their_finally_before_the_result(run: Run) -> None:
    child = run("""
        import asyncio
        async def other(turn):
            try:
                await asyncio.sleep(600)
            finally:
                turn.token("cleaned")
        async def agent(turn):
            task = asyncio.create_task(other(turn))
            await asyncio.sleep(0)
    """)
    assert child.finish() == Result()
    assert child.text == "cleaned"


def test_steers_reach_the_function_and_unread_ones_come_back(run: Run) -> None:
    child = run("""
        import time
        def agent(turn):
            turn.token("ready ")
            while not (steers := turn.steers()):
                time.sleep(0.005)
            turn.token(repr(steers))
            turn.clarify("wait for one more")
            turn.clarify("and one more")
    """)
    child.wait_text("ready")
    child.send(Steer(text="left"))
    child.wait_text("left")
    child.send(Steer(text="unread 1"))
    child.send(Steer(text="unread 2"))
    child.wait_event(Clarify)
    child.send(Answer(clarify_id="clarify-1", text="x"))
    child.wait_event(Clarify, 2)
    child.send(Answer(clarify_id="clarify-2", text="x"))
    assert child.finish() == Result()
    assert child.events[-3:-1] == [PendingSteerLeftover(text="unread 1"), PendingSteerLeftover(text="unread 2")]
