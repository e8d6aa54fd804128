"""Folding a turn's events: stopping anywhere and going on gives the same as going through."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hermetic.protocol import events
from hermetic.protocol.events import (
    Apperror,
    Approval,
    ApprovalResolved,
    Cancel,
    Clarify,
    ClarifyResolved,
    Done,
    InterimAssistant,
    JournalEvent,
    Metering,
    Reasoning,
    StreamEnd,
    Title,
    Token,
    Tool,
    ToolComplete,
    Usage,
    Warning,
)
from hermetic.supervisor.store.interface import Entry
from hermetic.supervisor.summary import Fold


def entries(*said: JournalEvent) -> list[Entry]:
    return [Entry(seq, events.event_name(event), events.encode(event)) for seq, event in enumerate(said, start=1)]


def folded(*said: JournalEvent) -> Fold:
    fold = Fold()
    for entry in entries(*said):
        fold.feed(entry)
    return fold


def message(fold: Fold, *, partial: bool = True, final_text: str | None = None) -> Any:
    return fold.assistant_message(turn_id="t", timestamp=7, partial=partial, final_text=final_text)


ids = st.sampled_from(["", "a", "b", "c"])
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
something = st.one_of(
    st.builds(Token, text=texts),
    st.builds(Reasoning, text=texts),
    st.builds(Tool, name=ids, tid=ids),
    st.builds(ToolComplete, name=ids, tid=ids, snippet=texts),
    st.builds(Approval, approval_id=ids, command=texts),
    st.builds(Clarify, clarify_id=ids, question=texts),
    st.builds(ApprovalResolved, approval_id=ids, choice=st.just("deny"), by=st.just("user")),
    st.builds(ClarifyResolved, clarify_id=ids, text=texts, by=st.just("timeout")),
    st.builds(Metering, usage=st.builds(Usage, input_tokens=st.integers(0, 9))),
    st.builds(Title, title=texts),
    st.builds(Warning, message=texts),
    st.builds(Cancel, turn_id=st.just("t"), message=texts),
)
turns = st.lists(something | st.builds(InterimAssistant, text=texts, already_streamed=st.booleans()), max_size=30)


@settings(deadline=None)
@given(said=turns, data=st.data())
def test_folding_a_prefix_and_then_the_rest_is_folding_the_whole(said: list[JournalEvent], data: st.DataObject) -> None:
    whole = folded(*said)
    split = data.draw(st.integers(0, len(said)))
    again = data.draw(st.integers(0, split))
    parts = Fold()
    for entry in entries(*said)[:split]:
        parts.feed(entry)
    parts.snapshot("t", "running")
    message(parts)
    for entry in entries(*said)[again:]:  # what was fed before counts once
        parts.feed(entry)
    assert parts.snapshot("t", "done") == whole.snapshot("t", "done")
    assert message(parts) == message(whole)
    assert parts.answers == whole.answers
    assert whole.last_seq == len(said)


@settings(deadline=None)
@given(said=st.lists(something | st.builds(InterimAssistant, text=texts), max_size=30))
def test_the_text_is_what_the_tokens_said(said: list[JournalEvent]) -> None:
    snapshot = folded(*said).snapshot("t", "running")
    assert snapshot.text == "".join(event.text for event in said if isinstance(event, Token))
    assert snapshot.reasoning == "".join(event.text for event in said if isinstance(event, Reasoning))


@settings(deadline=None)
@given(said=turns)
def test_events_decoded_already_fold_to_the_same(said: list[JournalEvent]) -> None:
    fold = Fold()
    for seq, event in enumerate(said, start=1):
        fold.add(seq, event)
        fold.add(seq, event)  # counts once
    assert fold.snapshot("t", "running") == folded(*said).snapshot("t", "running")


@settings(deadline=None)
@given(said=turns)
def test_no_call_is_lost_and_every_id_in_the_message_is_unique(said: list[JournalEvent]) -> None:
    fold = folded(*said)
    begun = sum(isinstance(event, Tool) for event in said)
    completed = sum(isinstance(event, ToolComplete) for event in said)
    assert max(begun, completed) <= len(fold.tool_calls) <= begun + completed
    assert sum(call.finished for call in fold.tool_calls) == completed
    if fold.tool_calls:
        calls = [call["id"] for call in message(fold)["tool_calls"]]
        assert len(set(calls)) == len(calls) and all(calls)
        assert set(message(fold)["tool_results"]) <= set(calls)


def test_a_call_is_completed_by_its_id_else_the_last_of_its_name_that_runs() -> None:
    fold = folded(
        Tool(name="read", tid="1"),
        Tool(name="read", tid="2"),
        Tool(name="shell"),
        Tool(name="shell"),
        ToolComplete(name="read", tid="1", snippet="one"),
        ToolComplete(name="shell", snippet="second", is_error=True, duration_s=1.5),
        ToolComplete(name="shell", snippet="first"),
        ToolComplete(name="other", tid="9", snippet="never begun"),
    )
    calls = [(call.name, call.tid, call.snippet, call.finished) for call in fold.tool_calls]
    assert calls == [
        ("read", "1", "one", True),
        ("read", "2", None, False),
        ("shell", "", "first", True),
        ("shell", "", "second", True),
        ("other", "9", "never begun", True),
    ]
    assert (fold.tool_calls[3].is_error, fold.tool_calls[3].duration_s) == (True, 1.5)


def test_what_waits_for_a_person_is_pending_until_it_is_settled() -> None:
    ask, question = Approval(approval_id="a", command="rm"), Clarify(clarify_id="c", question="which?")
    assert folded(ask, question).pending == [ask, question]
    fold = folded(ask, question, ApprovalResolved(approval_id="a", choice="once", by="user"))
    assert (fold.pending, fold.answers) == ([question], {"a": "once"})
    fold = folded(ask, question, ClarifyResolved(clarify_id="c", text="this", by="user"))
    assert (fold.pending, fold.answers) == ([ask], {"c": "this"})


@pytest.mark.parametrize(
    "end",
    [
        Done(turn_id="t", session={}, usage=Usage(input_tokens=5)),
        Cancel(turn_id="t", message="x"),
        Apperror(turn_id="t", message="x", type="lost", state="lost", fault="host"),
    ],
)
def test_nothing_waits_after_the_end(end: JournalEvent) -> None:
    fold = folded(Approval(approval_id="a", command="rm"), end, StreamEnd(turn_id="t", state="lost"))
    assert fold.pending == [] and fold.last_seq == 3


def test_the_last_usage_and_the_last_title_count() -> None:
    fold = folded(Metering(usage=Usage(input_tokens=9)), Title(title="a"), Metering(usage=Usage(input_tokens=3)))
    assert (fold.usage, fold.title) == (Usage(input_tokens=3), "a")
    assert folded(Title(title="a"), Title(title="b")).title == "b"
    assert folded(Done(turn_id="t", session={}, usage=Usage(output_tokens=5))).usage == Usage(output_tokens=5)


def test_a_whole_message_that_was_not_streamed_stands_apart_in_the_text() -> None:
    whole = InterimAssistant(text="Looking.", already_streamed=False)
    assert folded(Token(text="a"), whole, Token(text="b")).text == "a\n\nLooking.\n\nb"
    assert folded(whole).text == "Looking."
    assert folded(Token(text="a"), InterimAssistant(text="a"), Token(text="b")).text == "ab"


def test_a_partial_answer_keeps_text_reasoning_and_calls_in_one_message() -> None:
    fold = folded(
        Reasoning(text="hm"),
        Token(text="Let me "),
        Tool(name="shell", tid="1", args={"command": "ls"}),
        ToolComplete(name="shell", tid="1", snippet="a.txt"),
        Tool(name="shell", tid="2"),
        Token(text="see"),
    )
    assert message(fold) == {
        "role": "assistant",
        "content": "Let me see",
        "reasoning": "hm",
        "tool_calls": [
            {"id": "1", "type": "function", "function": {"name": "shell", "arguments": '{"command": "ls"}'}},
            {"id": "2", "type": "function", "function": {"name": "shell", "arguments": "{}"}},
        ],
        "tool_results": {"1": "a.txt"},
        "partial": True,
        "turn_id": "t",
        "timestamp": 7,
    }
    assert json.loads(json.dumps(message(fold))) == message(fold)


def test_a_whole_answer_is_not_marked_and_a_final_text_replaces_the_tokens() -> None:
    fold = folded(Token(text="draft"))
    assert message(fold, partial=False, final_text="final") == {
        "role": "assistant", "content": "final", "turn_id": "t", "timestamp": 7,
    }  # fmt: skip
    assert message(fold, partial=False)["content"] == "draft"
    assert message(fold, partial=False, final_text="")["content"] == "draft"


def test_there_is_no_message_when_nothing_was_said() -> None:
    assert message(folded()) is None
    assert message(folded(Warning(message="x"), Metering(usage=Usage(input_tokens=1)), Token(text=""))) is None
    for said in (Token(text="x"), Reasoning(text="x"), Tool(name="x")):
        assert message(folded(said)) is not None


def test_cards_belong_to_the_turns_one_message() -> None:
    fold = folded(Tool(name="shell", tid="1", args={"a": "b"}), ToolComplete(name="shell", tid="1", snippet="out"))
    (card,) = fold.cards()
    assert (card.name, card.tid, card.snippet, card.args, card.assistant_msg_idx) == (
        "shell",
        "1",
        "out",
        {"a": "b"},
        0,
    )
    assert Fold().cards() == []


def test_a_long_answer_and_many_open_calls_stay_cheap() -> None:
    """Quadratic work here would hold up every other turn: 20,000 calls would take minutes, they take a second."""
    calls = 20_000
    fold = Fold()
    for seq in range(1, calls + 1):
        fold.add(seq, Tool(name="x", tid=str(seq)))
    for seq in range(1, calls + 1):
        fold.add(calls + 2 * seq, ToolComplete(name="x", tid=str(seq)))
        fold.add(calls + 2 * seq + 1, Token(text="x"))
    assert all(call.finished for call in fold.tool_calls)
    assert fold.text == "x" * calls


def test_a_token_appends_and_does_not_copy_what_was_said() -> None:
    fold = folded(*(Token(text="x") for _ in range(100)))
    assert len(fold._text) == 100
    assert fold.text == "x" * 100 and len(fold._text) == 1
