"""Approvals and clarifications: asked in the event stream, answered in the command stream."""

from __future__ import annotations

import time

import pytest
from child_driver import Run

from hermetic.protocol.commands import Answer, Approve
from hermetic.protocol.events import Approval, Clarify, Result

SYNC = """
def agent(turn):
    turn.token(turn.approve("rm -rf x", "deletes x"))
    turn.token(" " + turn.clarify("which?", ["a", "b"]))
"""
ASYNC = SYNC.replace("def agent", "async def agent").replace("turn.approve", "await turn.approve")
ASYNC = ASYNC.replace("turn.clarify", "await turn.clarify")


@pytest.mark.parametrize("source", [SYNC, ASYNC], ids=["sync", "async"])
def test_an_answer_reaches_the_function_that_asked(run: Run, source: str) -> None:
    began = time.time()
    child = run(source, approval_s=100.0)
    approval = child.wait_event(Approval)
    assert (approval.command, approval.description) == ("rm -rf x", "deletes x")
    assert approval.choices == ["once", "session", "always", "deny"]
    assert began + 99 < approval.expires_at < time.time() + 101
    child.send(Approve(approval_id="another", choice="always"))
    child.send(Approve(approval_id=approval.approval_id, choice="session"))
    child.send(Approve(approval_id=approval.approval_id, choice="deny"))
    clarify = child.wait_event(Clarify)
    assert (clarify.question, clarify.choices) == ("which?", ["a", "b"])
    child.send(Answer(clarify_id=clarify.clarify_id, text="the ü one"))
    assert child.finish() == Result()
    assert child.text == "session the ü one"


@pytest.mark.parametrize("source", [SYNC, ASYNC], ids=["sync", "async"])
def test_without_any_answer_the_child_itself_gives_up_with_deny_and_the_empty_text(run: Run, source: str) -> None:
    child = run(source, approval_s=-2.8)  # 0.2 s after the time at which the supervisor should have answered
    assert child.finish() == Result()
    assert child.text == "deny "


@pytest.mark.parametrize("source", [SYNC, ASYNC], ids=["sync", "async"])
def test_a_cancel_ends_a_function_that_waits_for_an_approval(run: Run, source: str) -> None:
    child = run(source, grace_s=60.0)
    child.wait_event(Approval)
    child.terminate()
    assert child.finish() == Result(interrupted=True)


@pytest.mark.parametrize("source", [SYNC, ASYNC], ids=["sync", "async"])
def test_a_cooperative_function_that_waits_is_answered_with_deny_and_ends_by_itself(run: Run, source: str) -> None:
    child = run(source.replace("(turn):", "(turn):\n    turn.cancelled"), grace_s=60.0)
    child.wait_event(Approval)
    child.terminate()
    assert child.finish() == Result(interrupted=True)
    assert child.text == "deny "
    assert not any(isinstance(event, Clarify) for event in child.events)


def test_several_threads_ask_at_once_and_each_gets_its_own_answer(run: Run) -> None:
    child = run("""
        import threading
        def agent(turn):
            def ask(n):
                answers[n] = turn.clarify(f"question {n}")
            answers = {}
            threads = [threading.Thread(target=ask, args=(n,)) for n in range(8)]
            [t.start() for t in threads]
            [t.join() for t in threads]
            turn.token(repr(sorted(answers.items())))
    """)
    child.wait_event(Clarify, 8)
    for event in reversed([event for event in child.events if isinstance(event, Clarify)]):
        child.send(Answer(clarify_id=event.clarify_id, text=event.question.replace("question", "answer")))
    child.finish()
    assert child.text == repr([(n, f"answer {n}") for n in range(8)])


def test_several_tasks_ask_at_once_and_each_gets_its_own_answer(run: Run) -> None:
    child = run("""
        import asyncio
        async def agent(turn):
            return repr(await asyncio.gather(*(turn.clarify(f"question {n}") for n in range(8))))
    """)
    child.wait_event(Clarify, 8)
    for event in [event for event in child.events if isinstance(event, Clarify)]:
        child.send(Answer(clarify_id=event.clarify_id, text=event.question[-1]))
    child.finish()
    assert child.text == repr([str(n) for n in range(8)])
