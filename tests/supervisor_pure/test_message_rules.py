"""Rules over a session's messages: what a provider gets, titles, tool cards, attachments, export."""

import copy
import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hermetic.protocol import api
from hermetic.protocol.events import Token, Tool, ToolComplete, Usage
from hermetic.supervisor.ending import session_change
from hermetic.supervisor.store.interface import Session, SessionRow
from hermetic.supervisor.summary import (
    PROVIDER_KEYS,
    Fold,
    compact,
    markdown_export,
    provider_history,
    tag_attachments,
    title_from,
    tool_cards,
    user_message,
    with_timestamps,
)


def ours(*, turn_id: str = "t", partial: bool = False, text: str = "Done.") -> dict[str, Any]:
    """A folded message with a finished call `1` and one, `2`, that was running at the end."""
    fold = Fold()
    said = [Tool(name="shell", tid="1", args={"c": "ls"}), ToolComplete(name="shell", tid="1", snippet="out")]
    for seq, event in enumerate([*said, Tool(name="read", tid="2"), Token(text=text)], start=1):
        fold.add(seq, event)
    message = fold.assistant_message(turn_id=turn_id, timestamp=7, partial=partial, final_text=None)
    assert message
    return message


def call(call_id: str, name: str = "f", arguments: Any = "{}", key: str = "id") -> dict[str, Any]:
    return {key: call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def result(call_id: str, content: Any = "out", key: str = "tool_call_id") -> dict[str, Any]:
    return {"role": "tool", key: call_id, "content": content}


keys = st.sampled_from(
    [
        "role",
        "content",
        "tool_calls",
        "tool_call_id",
        "tool_results",
        "id",
        "function",
        "name",
        "arguments",
        "type",
        "text",
        "input",
        "partial",
        "reasoning",
        "timestamp",
    ]
)
words = st.sampled_from(["user", "assistant", "tool", "tool_use", "text", "1"])
anything: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys | st.text(max_size=3), inner | words, max_size=6),
    max_leaves=20,
)


# --- what the provider gets ---------------------------------------------------------------------------------------


def test_only_mappings_with_a_role_and_only_the_six_keys_are_sent() -> None:
    full = {
        "role": "assistant", "content": "x", "name": "n", "refusal": None, "timestamp": 1, "turn_id": "t",
        "reasoning": "r", "attachments": [], "partial": True, "_ts": 1,
    }  # fmt: skip
    sent = provider_history([full, "text", None, {"content": "no role"}, {"role": ""}, {"role": None}, result("1")])
    assert sent == [
        {"role": "assistant", "content": "x", "name": "n", "refusal": None},
        {"role": "tool", "tool_call_id": "1", "content": "out"},
    ]


def test_calls_keep_their_place_when_their_results_follow() -> None:
    history = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": None, "tool_calls": [call("1"), call("2", key="call_id")]},
        result("2"),
        result("1"),
        {"role": "assistant", "content": "done"},
    ]
    assert provider_history(history) == history


def test_calls_without_a_result_are_left_out_and_an_answer_that_is_empty_then() -> None:
    history = [
        {"role": "assistant", "content": "text", "tool_calls": [call("1"), call("2")]},
        result("1"),
        {"role": "assistant", "content": None, "tool_calls": [call("3")]},
        {"role": "user", "content": "stop"},
        result("3"),
        {"role": "assistant", "content": "kept", "tool_calls": [call("4")]},
    ]
    assert provider_history(history) == [
        {"role": "assistant", "content": "text", "tool_calls": [call("1")]},
        history[1],
        history[3],
        history[4],
        {"role": "assistant", "content": "kept"},
    ]


def test_our_message_unfolds_to_the_calls_their_results_and_the_text() -> None:
    assert provider_history([ours(partial=True)]) == [
        {"role": "assistant", "content": None, "tool_calls": [call("1", "shell", '{"c": "ls"}')]},
        {"role": "tool", "tool_call_id": "1", "content": "out"},
        {"role": "assistant", "content": "Done."},
    ]
    assert [m["role"] for m in provider_history([ours(text="")])] == ["assistant", "tool"]


def test_ids_of_our_calls_are_unique_over_the_session() -> None:
    sent = provider_history([ours(turn_id="a"), ours(turn_id="b"), ours(turn_id="c")])
    assert [m["tool_call_id"] for m in sent if m["role"] == "tool"] == ["1", "1_2", "1_3"]
    assert [c["id"] for m in sent for c in m.get("tool_calls", [])] == ["1", "1_2", "1_3"]


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(messages=st.lists(anything, max_size=6))
def test_whatever_an_agent_left_there_a_provider_gets_only_what_it_knows(messages: list[Any]) -> None:
    before = copy.deepcopy(messages)
    sent = provider_history(messages)
    assert all(message.get("role") and set(message) <= set(PROVIDER_KEYS) for message in sent)
    assert provider_history(sent) == sent
    tool_cards(messages), title_from(messages), with_timestamps(messages, 1), tag_attachments(messages, "x", ["a"])
    markdown_export(compact(row()), messages)
    assert messages == before


# --- timestamps, title --------------------------------------------------------------------------------------------


def test_a_timestamp_is_given_to_messages_that_have_none() -> None:
    messages = [{"role": "user"}, {"timestamp": 1}, {"_ts": 2.5}, {"timestamp": None}, "text"]
    stamped = with_timestamps(messages, 9)
    assert stamped == [
        {"role": "user", "timestamp": 9}, {"timestamp": 1}, {"_ts": 2.5}, {"timestamp": 9}, "text",
    ]  # fmt: skip
    assert type(with_timestamps([{}], 9.7)[0]["timestamp"]) is int  # type: ignore[arg-type]
    assert messages[0] == {"role": "user"}


@pytest.mark.parametrize(
    ("messages", "title"),
    [
        ([], ""),
        ([{"role": "assistant", "content": "no"}], ""),
        ([{"role": "user", "content": "  hello  "}], "hello"),
        ([{"role": "user", "content": "x" * 65}], "x" * 64),
        ([{"role": "user", "content": " "}, {"role": "user", "content": "second"}], "second"),
        (
            [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image"}, {"type": "text", "text": "b"}]}],
            "a b",
        ),
        ([{"role": "system", "content": "s"}, {"role": "user", "content": "u"}], "u"),
        ([{"role": "user", "content": None}], ""),
        (["text", {"role": "user", "content": "look\n\n[Attached files: a.png]"}], "look"),
    ],
)  # fmt: skip
def test_the_title_is_the_first_text_of_a_user(messages: list[Any], title: str) -> None:
    assert title_from(messages) == title


# --- cards --------------------------------------------------------------------------------------------------------


def test_cards_come_from_both_shapes() -> None:
    messages = [
        {"role": "user", "content": "hi"},
        {
            "role": "assistant",
            "content": [{"type": "text", "text": "x"}, {"type": "tool_use", "id": "a", "name": "grep", "input": {"q": 1}}],
        },
        result("a", key="tool_use_id"),
        {"role": "assistant", "tool_calls": [call("b", "shell", '{"c": "ls"}'), call("c", "read", key="call_id")]},
        result("c", "two"),
        result("b", "one"),
    ]  # fmt: skip
    assert tool_cards(messages) == [
        api.ToolCard(name="grep", snippet="out", tid="a", assistant_msg_idx=1, args={"q": "1"}),
        api.ToolCard(name="read", snippet="two", tid="c", assistant_msg_idx=3, args={}),
        api.ToolCard(name="shell", snippet="one", tid="b", assistant_msg_idx=3, args={"c": "ls"}),
    ]


def test_results_that_are_unresolved_or_named_tool_give_no_card() -> None:
    messages = [{"role": "assistant", "tool_calls": [call("1", "tool"), call("2", ""), call("3")]}, result("1")]
    assert tool_cards([*messages, result("2"), result("9"), {"role": "tool", "content": "no id"}]) == []


@pytest.mark.parametrize("arguments", ["{bad", "[1]", '"text"', "", None, 3])
def test_bad_arguments_are_no_arguments(arguments: Any) -> None:
    (card,) = tool_cards([{"role": "assistant", "tool_calls": [call("1", "f", arguments)]}, result("1")])
    assert card.args == {}


def test_arguments_are_the_first_six_and_each_is_cut() -> None:
    arguments = {str(n): "x" * (120 + n % 2) for n in range(8)}
    (card,) = tool_cards([{"role": "assistant", "tool_calls": [call("1", "f", json.dumps(arguments))]}, result("1")])
    assert list(card.args) == ["0", "1", "2", "3", "4", "5"]
    assert (card.args["0"], card.args["1"]) == ("x" * 120, "x" * 120 + "...")


@pytest.mark.parametrize(
    ("content", "snippet"),
    [
        ('{"output": "o", "result": "r"}', "o"),
        ('{"output": "", "result": "r", "error": "e"}', "r"),
        ('{"error": "e"}', "e"),
        ('{"other": 1}', '{"other": 1}'),
        ('{"output": {"a": 1}}', "{'a': 1}"),
        ("[1]", "[1]"),
        ("plain", "plain"),
        ("x" * 201, "x" * 200),
        ('{"output": "' + "y" * 300 + '"}', "y" * 200),
        ([{"type": "text", "text": "part"}], "part"),
        (None, ""),
    ],
)
def test_a_snippet_is_what_the_result_says(content: Any, snippet: str) -> None:
    (card,) = tool_cards([{"role": "assistant", "tool_calls": [call("1")]}, result("1", content)])
    assert card.snippet == snippet


def test_our_own_messages_give_cards_and_a_stopped_call_is_shown() -> None:
    assert [(c.tid, c.name, c.snippet) for c in tool_cards([ours()])] == [("1", "shell", "out")]
    stopped = tool_cards([{"role": "user", "content": "x"}, ours(partial=True)])
    assert [(c.tid, c.snippet, c.assistant_msg_idx) for c in stopped] == [("1", "out", 1), ("2", "", 1)]


# --- attachments --------------------------------------------------------------------------------------------------


def test_a_users_message_names_its_attachments_at_the_end() -> None:
    assert user_message("look", [], turn_id="t", timestamp=7) == {
        "role": "user", "content": "look", "turn_id": "t", "timestamp": 7,
    }  # fmt: skip
    message = user_message("look", ["a.png", "b.txt"], turn_id="t", timestamp=7)
    assert message["content"] == "look\n\n[Attached files: a.png, b.txt]"
    assert message["attachments"] == ["a.png", "b.txt"]


@pytest.mark.parametrize(
    "content",
    [
        "look at this",
        "[Workspace: /w]\nlook at this",
        [{"type": "text", "text": "look at this"}],
        "look",
        "look at this\n\n[Attached files: a]",
    ],
)
def test_the_last_message_of_the_user_that_is_the_same_is_tagged(content: Any) -> None:
    messages = [
        {"role": "user", "content": "look at this"},
        {"role": "user", "content": content},
        {"role": "assistant", "content": "look at this"},
        {"role": "user", "content": "another"},
        {"role": "user", "content": ""},
    ]
    tagged = tag_attachments(messages, "look at this\n\n[Attached files: a]", ["a"])
    assert [m.get("attachments") for m in tagged] == [None, ["a"], None, None, None]
    assert "attachments" not in messages[1]


def test_only_sixty_characters_are_compared() -> None:
    long = "x" * 60
    assert "attachments" in tag_attachments([{"role": "user", "content": long + "a"}], long + "b", ["f"])[0]
    short = "x" * 59
    assert "attachments" not in tag_attachments([{"role": "user", "content": short + "a"}], short + "b", ["f"])[0]


def test_without_attachments_or_a_match_nothing_changes() -> None:
    messages = [{"role": "user", "content": "hi"}]
    assert tag_attachments(messages, "hi", []) == messages
    assert tag_attachments(messages, "other", ["a"]) == messages


# --- sessions -----------------------------------------------------------------------------------------------------


def row(**changes: Any) -> SessionRow:
    session = Session(session_id="0123456789ab", title="A\ntitle", workspace="/w", **changes)
    return SessionRow(session, rev=3, message_count=5, active_turn_id="t")


def test_a_compact_session_has_the_sessions_values() -> None:
    shown = compact(row(model="m", pinned=True, input_tokens=4, estimated_cost=0.5, personality="p", project_id="j"))
    assert (shown.message_count, shown.active_turn_id, shown.title) == (5, "t", "A\ntitle")
    assert (shown.model, shown.pinned, shown.input_tokens, shown.estimated_cost) == ("m", True, 4, 0.5)
    assert (shown.personality, shown.project_id, shown.agent, shown.profile) == ("p", "j", "demo", "default")


def test_an_export_reads_from_top_to_bottom() -> None:
    messages = [
        {"role": "user", "content": "hi", "timestamp": 0},
        ours(partial=True, text="so far") | {"reasoning": "hm\n\nwell", "tool_results": {"1": "```\nfence"}},
        result("1"),
        {"role": "user", "content": "hello", "timestamp": 86400},
        {"role": "user", "content": "x", "timestamp": "never"},
        "not a message",
    ]
    assert markdown_export(compact(row(model="m")), messages) == (
        "# A title\n\n"
        "- Session: 0123456789ab\n- Agent: demo\n- Profile: default\n- Model: m\n- Workspace: /w\n"
        "- Tokens: 0 in, 0 out\n\n"
        "## User\n\nhi\n\n"
        "## Assistant (1970-01-01 00:00 UTC, stopped before it was finished)\n\n"
        "> hm\n>\n> well\n\n"
        "Tool call shell:\n\n````\nshell(c=ls)\n```\nfence\n````\n\n"
        "Tool call read:\n\n```\nread()\n```\n\n"
        "so far\n\n"
        "## User (1970-01-02 00:00 UTC)\n\nhello\n\n"
        "## User\n\nx\n"
    )


@pytest.mark.parametrize(
    ("proposed", "kept"),
    [("A plum\n  tree ", "A plum tree"), ("x" * 9000, "x" * 64), (" " * 9000 + "late", "Before"), ("", "Before")],
)
def test_a_title_from_an_agent_is_one_line_of_64_characters(proposed: str, kept: str) -> None:
    change = session_change(1.0, Usage(), proposed)
    assert change(Session(session_id="s", title="Before")).title == kept
    assert change(Session(session_id="s", title="Mine", title_by_user=True)).title == "Mine"
