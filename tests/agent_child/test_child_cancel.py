"""SIGTERM, by the control socket or with a Cancel command: the agent is interrupted and says so as its last word."""

from __future__ import annotations

import os
import signal
import time

import pytest
from child_driver import Child, Run

from hermetic.protocol.commands import Cancel, Steer
from hermetic.protocol.events import PendingSteerLeftover, Ready, Result, Token, ToolComplete

AGENTS = {
    "sleeping": "import time\ndef agent(turn):\n    turn.token('on')\n    time.sleep(600)",
    "computing": "def agent(turn):\n    turn.token('on')\n    while True: pass",
    "streaming": "def agent(turn):\n    turn.token('on')\n    while True: turn.token('.')",
    "yielding": "def agent():\n    yield 'on'\n    while True: yield '.'",
    "cooperative": "def agent(turn):\n    turn.token('on')\n    while not turn.cancelled: pass",
    "in a lock": "import threading\ndef agent(turn):\n    turn.token('on')\n    threading.Event().wait()",
    "in a subprocess": "import subprocess\ndef agent(turn):\n    turn.token('on')\n    subprocess.run(['sleep', '600'])",
    "reading a pipe": "import os\ndef agent(turn):\n    turn.token('on')\n    os.read(os.pipe()[0], 1)",
    "joining a thread": """
import threading, time
def agent(turn):
    turn.token("on")
    thread = threading.Thread(target=time.sleep, args=(600,))
    thread.start()
    thread.join()
""",
    "async": "import asyncio\nasync def agent(turn):\n    turn.token('on')\n    await asyncio.sleep(600)",
    "async streaming": """
import asyncio
async def agent():
    yield "on"
    while True:
        await asyncio.sleep(0)
        yield "."
""",
    "async in a thread": """
import asyncio, time
async def agent(turn):
    turn.token("on")
    await asyncio.to_thread(time.sleep, 600)
""",
    "async cooperative": """
import asyncio
async def agent(turn):
    turn.token("on")
    while not turn.cancelled:
        await asyncio.sleep(0.001)
""",
    "at import": """
import time
from hermetic.agent_child import turn
print("importing", flush=True)
time.sleep(600)
""",
}


@pytest.mark.parametrize("by", ["control", "command", "both"])
@pytest.mark.parametrize("agent", AGENTS)
def test_whatever_the_agent_does_a_cancel_ends_it_soon_and_what_it_said_stays(run: Run, agent: str, by: str) -> None:
    child = run(AGENTS[agent], grace_s=600.0)
    if agent == "at import":
        child.wait_until(lambda _: "importing" in child.stderr)
    else:
        child.wait_text("on")
    if by != "command":
        child.terminate()
    if by != "control":
        child.send(Cancel())
    assert child.finish() == Result(interrupted=True)
    assert "Traceback" not in child.stderr


def test_finally_blocks_run_and_may_still_speak(run: Run) -> None:
    child = run("""
        import time
        def agent(turn):
            try:
                with turn.tool("sleep"):
                    turn.token("on")
                    time.sleep(600)
            except Exception:
                turn.token("wrong: a cancel is not an error")
            finally:
                turn.token(" cleaned")
    """)
    child.wait_text("on")
    child.terminate()
    assert child.finish() == Result(interrupted=True)
    assert child.text == "on cleaned"
    [complete] = [e for e in child.events if isinstance(e, ToolComplete)]
    assert complete.is_error and complete.snippet == "cancelled"


def test_a_generators_finally_runs_wherever_the_cancel_strikes(run: Run) -> None:
    child = run("""
        import sys
        def agent():
            try:
                while True:
                    yield "x"
            finally:
                print("cleaned")
    """)
    child.wait_event(Token, 50)
    child.terminate()
    assert child.finish() == Result(interrupted=True)
    assert "cleaned" in child.stderr


def test_a_cooperative_function_that_goes_on_for_too_long_is_struck_after_half_the_grace(run: Run) -> None:
    child = run(
        """
        import time
        def agent(turn):
            assert not turn.cancelled
            turn.token("on")
            try:
                time.sleep(600)
            finally:
                turn.token(" struck " + str(turn.cancelled))
        """,
        grace_s=0.4,
    )
    child.wait_text("on")
    began = time.monotonic()
    child.terminate()
    assert child.finish() == Result(interrupted=True)
    assert time.monotonic() - began >= 0.2
    assert child.text == "on struck True"


def test_a_hundred_cancels_do_what_one_does(run: Run) -> None:
    child = run("""
        import time
        def agent(turn):
            try:
                turn.token("on")
                time.sleep(600)
            finally:
                time.sleep(0.2)
                turn.token(" once")
    """)
    child.wait_text("on")
    for _ in range(50):
        child.terminate()
        child.send(Cancel())
    assert child.finish() == Result(interrupted=True)
    assert child.text == "on once"


def test_an_exception_on_the_way_out_is_no_failure_but_its_traceback_is_kept(run: Run) -> None:
    child = run("""
        import time
        def agent(turn):
            try:
                turn.token("on")
                time.sleep(600)
            finally:
                raise ValueError("on the way out")
    """)
    child.wait_text("on")
    child.terminate()
    assert child.finish() == Result(interrupted=True)
    assert "on the way out" in child.stderr


def test_steers_that_nobody_read_come_back_after_a_cancel(run: Run) -> None:
    child = run("import time\ndef agent(turn):\n    turn.token('on')\n    time.sleep(600)")
    child.wait_text("on")
    child.send(Steer(text="later"))
    child.send(Cancel())
    assert child.finish() == Result(interrupted=True)
    assert child.events[-2] == PendingSteerLeftover(text="later")


@pytest.mark.parametrize("namespaces", [True, False])
def test_a_cancel_before_start_ends_the_child_without_a_word(namespaces: bool) -> None:
    with Child(namespaces=namespaces) as child:
        child.wait_event(Ready)
        child.terminate()
        assert child.wait_exited().exit_code == 0
        assert len(child.events) == 1 and child.stderr == ""


def test_a_cancel_command_in_place_of_start_ends_the_child_without_a_word() -> None:
    with Child() as child:
        child.wait_event(Ready)
        child.send(Cancel())
        assert child.wait_exited().exit_code == 0
        assert len(child.events) == 1 and child.stderr == ""


@pytest.mark.parametrize("namespaces", [True, False])
def test_a_cancel_before_the_agent_exists_is_not_forgotten(namespaces: bool) -> None:
    with Child(namespaces=namespaces) as child:
        child.terminate()
        assert child.wait_exited().exit_code == 0
        assert not any(isinstance(event, Result) for event in child.events)


def test_sigterm_to_the_launcher_is_a_cancel_too(run: Run) -> None:
    child = run(AGENTS["sleeping"])
    child.wait_text("on")
    child.process.send_signal(signal.SIGTERM)
    assert child.finish() == Result(interrupted=True)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP, signal.SIGPIPE])
def test_other_signals_do_not_end_the_launcher(run: Run, number: signal.Signals) -> None:
    child = run(AGENTS["sleeping"])
    child.wait_text("on")
    os.kill(child.process.pid, number)
    child.terminate()
    assert child.finish() == Result(interrupted=True)


def test_an_agent_that_signals_its_whole_process_group_does_not_reach_the_launcher(run: Run) -> None:
    child = run("import os, signal\ndef agent(): os.kill(0, signal.SIGKILL)")
    assert child.wait_exited().signal == "SIGKILL"


@pytest.mark.parametrize("namespaces", [True, False])
def test_an_agent_that_ignores_sigterm_is_killed_at_once_when_the_supervisor_says_so(
    run: Run, namespaces: bool
) -> None:
    source = """
        import signal
        def agent(turn):
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            turn.token("on")
            while True:
                try:
                    signal.pause()
                except BaseException:
                    pass
    """
    child = run(source, namespaces=namespaces)
    child.wait_text("on")
    child.terminate()
    child.kill()
    assert child.wait_exited().signal == "SIGKILL"
    assert child.text == "on"


def test_a_function_that_swallows_the_cancel_goes_on_until_it_is_killed(run: Run) -> None:
    child = run("""
        import time
        def agent(turn):
            says = ["on"]
            while True:
                try:
                    while says:
                        turn.token(says.pop())
                    time.sleep(600)
                except BaseException:
                    turn.token(" swallowed")
    """)
    child.wait_text("on")
    child.terminate()
    child.wait_text("swallowed")
    child.kill()
    assert child.wait_exited().signal == "SIGKILL"
