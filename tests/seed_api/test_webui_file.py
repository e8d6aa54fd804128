"""The session's file in the web UI's state folder: its shape, and that it is there when the page asks for it."""

from __future__ import annotations

import json
import os
import stat

import pytest
import trio
from stepwise import Stepwise, steps

from hermetic.protocol.api import SessionView, ToolCard
from hermetic.supervisor.webui_state import session_file, write_session_file

HEAD = [
    "session_id", "title", "workspace", "model", "model_provider", "created_at", "updated_at", "pinned", "archived",
    "project_id", "profile", "input_tokens", "output_tokens", "estimated_cost", "personality", "active_stream_id",
    "pending_user_message", "pending_attachments", "pending_started_at", "message_count",
]  # fmt: skip


def view(**members) -> SessionView:
    given = {
        "session_id": "s1", "title": "Ours", "workspace": "/w", "agent": "a", "profile": "default",
        "messages": [
            {"role": "user", "content": "hi", "turn_id": "t1"}, {"role": "assistant", "content": "yes", "turn_id": "t1"},
        ],
        "tool_calls": [ToolCard(name="look", snippet="", tid="c1", assistant_msg_idx=1, args={})],
    } | members  # fmt: skip
    return SessionView(**given)


def test_a_new_file_has_the_web_uis_members_and_its_messages_last():
    made = session_file({}, view(model="@acme:big/one"))
    assert list(made) == [*HEAD, "messages", "tool_calls"]
    assert (made["model"], made["model_provider"], made["message_count"]) == ("big/one", "acme", 2)
    assert (made["active_stream_id"], made["pending_user_message"]) == (None, None)
    assert made["tool_calls"][0]["assistant_msg_idx"] == 1
    assert session_file({}, view(title=""))["title"] == "Untitled"


def test_what_the_web_ui_decides_stays_and_what_it_alone_knows_as_well():
    before = {
        "title": "Named by hand", "pinned": True, "archived": True, "project_id": "p", "created_at": 5.0,
        "share_token": "x", "model_provider": "openrouter", "pending_user_message": "hi", "active_stream_id": "t1",
    }  # fmt: skip
    made = session_file(before, view())
    assert made.items() >= {**before, "pending_user_message": None, "active_stream_id": None}.items()
    assert session_file({"title": "Untitled"}, view())["title"] == "Ours"


def test_messages_from_before_we_knew_the_session_stay_in_front():
    earlier = [{"role": "user", "content": "long ago"}, {"role": "assistant", "content": "indeed"}]
    card = {"name": "old", "assistant_msg_idx": 1, "tid": "c0"}
    once = session_file({"messages": earlier, "tool_calls": [card]}, view())
    assert once["messages"] == earlier + view().messages
    assert [c["assistant_msg_idx"] for c in once["tool_calls"]] == [1, 3]
    assert session_file(once, view()) == once, "a second time changes nothing"


@pytest.mark.parametrize("broken", [b"", b"not json", b"[]", b'{"messages": 7, "tool_calls": {}}', b"\xff\xfe"])
def test_a_broken_file_is_replaced(tmp_path, broken):
    (tmp_path / "sessions").mkdir()
    path = tmp_path / "sessions" / "s1.json"
    path.write_bytes(broken)
    write_session_file(tmp_path, view())
    assert json.loads(path.read_bytes())["messages"] == view().messages
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in path.parent.iterdir()] == ["s1.json"]


async def test_the_file_is_there_before_the_end_is_told(tmp_path):
    state = tmp_path / "state"
    server = Stepwise(tmp_path, webui=f'state_dir = "{state}"')
    await server.start()
    try:
        body = {"session_id": "from-webui_1", "message": steps(["tool", "look"], ["say", "done that"])}
        run = (await server.call("POST", "/v1/runs", body))["run_id"]
        cursor, events = "", []
        while not events or events[-1]["event"] != "stream_end":
            answer = await server.call("GET", f"/v1/runs/{run}/events?cursor={cursor}")
            events, cursor = answer["events"], answer["cursor"]
        written = json.loads((state / "sessions" / "from-webui_1.json").read_bytes())
        assert [m["role"] for m in written["messages"]] == ["user", "assistant"]
        assert written["messages"][1]["content"] == "done that"
        assert [c["name"] for c in written["tool_calls"]] == ["look"]
        assert written["message_count"] == 2
    finally:
        await server.stop()


async def test_its_uploads_are_copied_into_the_workspace_and_nothing_else_is(tmp_path):
    inbox = tmp_path / "state" / "attachments" / "s"
    inbox.mkdir(parents=True)
    (inbox / "note.txt").write_text("from the web UI")
    (tmp_path / "secret").write_text("no")
    os.symlink(tmp_path / "secret", inbox / "trap")
    server = Stepwise(tmp_path, webui=f'state_dir = "{tmp_path / "state"}"')
    await server.start()
    try:
        body = {"session_id": "s", "message": steps(["where"])}
        note = {"name": "note.txt", "path": str(inbox / "note.txt"), "mime": "text/plain", "size": 15}
        run = (await server.call("POST", "/v1/runs", body | {"attachments": [note]}))["run_id"]
        await server.wait_state(run, "done")
        session = await server.call("GET", "/v1/sessions/s")
        assert session["messages"][0]["attachments"] == ["note.txt"]
        assert await (trio.Path(session["workspace"]) / "note.txt").read_text() == "from the web UI"
        for path in inbox / "trap", tmp_path / "secret", inbox / ".." / ".." / ".." / "secret", inbox / "gone":
            trap = {"name": "trap", "path": str(path)}
            await server.call("POST", "/v1/runs", body | {"attachments": [trap]}, status=400)
        assert os.listdir(session["workspace"]) == ["note.txt"]
    finally:
        await server.stop()


async def test_a_turn_ends_whatever_becomes_of_the_file(tmp_path):
    (tmp_path / "in_the_way").write_text("a file, not a folder")
    server = Stepwise(tmp_path, webui=f'state_dir = "{tmp_path / "in_the_way"}"')
    await server.start()
    try:
        events = await server.run(steps(["say", "x"]), agent="steps")
        assert events[-1][2]["state"] == "done"
    finally:
        await server.stop()
    assert "webui_state_not_written" in server.log.read_text()
