"""The paths and shapes of the Hermes Web UI's page, asked for as its page asks."""

from __future__ import annotations

import json

import httpx
import pytest
import trio

COMPACT = {
    "session_id", "title", "workspace", "model", "message_count", "created_at", "updated_at", "pinned", "archived",
    "project_id", "profile", "input_tokens", "output_tokens", "estimated_cost", "personality",
}  # fmt: skip


def text(events) -> str:
    return "".join(data["text"] for _, name, data in events if name == "token")


async def test_a_message_is_started_streamed_and_found_again_in_its_session(server):
    session = await server.new()
    stream = await server.begin(session, ["say", "Hello "], ["tool", "look"], ["say", "there"])
    events = await server.read(stream)
    names = [name for _, name, _ in events]
    assert [name for name in names if name in ("token", "tool", "done", "stream_end")] == [
        "token", "tool", "token", "done", "stream_end",
    ]  # fmt: skip
    assert [id for id, _, _ in events] == [f"{stream}:{n}" for n in range(1, len(events) + 1)], "an id on every event"
    tool = next(data for _, name, data in events if name == "tool")
    assert (tool["name"], tool["args"]) == ("look", {"path": "x"})
    done = events[-2][2]
    assert COMPACT <= done["session"].keys()
    assert {"input_tokens", "output_tokens", "estimated_cost"} <= done["usage"].keys()
    after = (await server.call("GET", f"/api/session?session_id={session}"))["session"]
    assert done["session"]["messages"] == after["messages"]
    assert [m["content"] for m in after["messages"] if m["role"] == "assistant"] == ["Hello there"]
    assert [(c["name"], c["snippet"], c["assistant_msg_idx"]) for c in after["tool_calls"]] == [("look", "seen", 1)]
    assert COMPACT <= after.keys()


async def test_done_has_the_whole_session_not_only_this_turn(server):
    session = await server.new()
    await server.read(await server.begin(session, ["say", "one"]))
    events = await server.read(await server.begin(session, ["say", "two"], ["tool", "t"]))
    whole = events[-2][2]["session"]
    assert [m["content"] for m in whole["messages"] if m["role"] == "assistant"] == ["one", "two"]
    assert [c["assistant_msg_idx"] for c in whole["tool_calls"]] == [3]
    assert whole["message_count"] == 4


@pytest.mark.parametrize("name", ["after_event_id", "after_seq", "cursor"])
async def test_a_page_that_comes_back_reads_on_where_it_was(server, name):
    stream = await server.begin(await server.new(), ["say", "a"], ["wait"], ["say", "b"])
    seen = []
    async with server.page(stream) as events:
        async for event in events:
            seen.append(event)
            if event[1] == "token":
                break
    await server.go_on(stream)
    cursor = seen[-1][0] if name != "after_seq" else seen[-1][0].rpartition(":")[2]
    seen += await server.read(stream, **{name: cursor})
    assert [id for id, _, _ in seen] == [f"{stream}:{n}" for n in range(1, len(seen) + 1)]
    assert text(seen) == "ab"
    assert len(seen[-2][2]["session"]["messages"]) == 2


async def test_two_tabs_read_the_same(server):
    stream = await server.begin(await server.new(), ["wait"], ["say", "both"])
    got = {}

    async def tab(name):
        got[name] = await server.read(stream)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(tab, "one")
        nursery.start_soon(tab, "two")
        await server.go_on(stream)
    assert got["one"] == got["two"]


async def test_status_and_cancel_say_what_is(server):
    session = await server.new()
    stream = await server.begin(session, ["say", "kept"], ["wait"])
    async with server.page(stream) as events:
        async for _, name, _ in events:
            if name == "token":
                break
    status = f"/api/chat/stream/status?stream_id={stream}"
    assert await server.call("GET", status) == {"active": True, "stream_id": stream}
    shown = (await server.call("GET", f"/api/session?session_id={session}"))["session"]
    assert shown["active_stream_id"] == stream
    answer = await server.call("GET", f"/api/chat/cancel?stream_id={stream}")
    assert answer == {"ok": True, "cancelled": True, "stream_id": stream}
    events = await server.read(stream)
    assert [name for _, name, _ in events][-2:] == ["cancel", "stream_end"]
    assert await server.call("GET", status) == {"active": False, "stream_id": stream}
    assert (await server.call("GET", f"/api/chat/cancel?stream_id={stream}"))["cancelled"] is False
    after = (await server.call("GET", f"/api/session?session_id={session}"))["session"]
    assert after["messages"][-1]["content"] == "kept", "what was said before the cancel is kept"


async def test_asking_with_head_cancels_nothing(server):
    stream = await server.begin(await server.new(), ["wait"])
    async with httpx.AsyncClient() as http:
        assert (await http.head(f"{server.url}/api/chat/cancel?stream_id={stream}")).status_code == 405
    assert (await server.call("GET", f"/api/chat/stream/status?stream_id={stream}"))["active"] is True
    await server.call("GET", f"/api/chat/cancel?stream_id={stream}")


async def test_a_busy_session_is_409_with_the_active_stream(server):
    session = await server.new()
    stream = await server.begin(session, ["wait"])
    body = {"session_id": session, "message": "me too", "workspace": "/nowhere"}
    refused = await server.call("POST", "/api/chat/start", body, status=409)
    assert (refused["stream_id"], refused["active_stream_id"]) == (stream, stream)
    assert refused["error"]
    for path in "clear", "truncate", "delete":
        body = {"session_id": session, "keep_count": 0}
        assert (await server.call("POST", f"/api/session/{path}", body, status=409))["stream_id"] == stream
    await server.call("GET", f"/api/chat/cancel?stream_id={stream}")


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/api/chat/start", {"session_id": "SESSION", "message": " \n "}, 400),
        ("POST", "/api/chat/start", {"session_id": "SESSION"}, 400),
        ("POST", "/api/chat/start", {"session_id": "SESSION", "message": 7}, 400),
        ("POST", "/api/chat/start", {"message": "hi"}, 400),
        ("POST", "/api/chat/start", {"session_id": "0123456789ab", "message": "hi"}, 404),
        ("POST", "/api/chat/start", {"session_id": "SESSION", "message": "hi", "attachments": ["a"] * 21}, 413),
        ("POST", "/api/chat/start", {"session_id": "SESSION", "message": "hi", "attachments": ["../a"]}, 400),
        ("POST", "/api/chat/start", {"session_id": "SESSION", "message": "hi", "workspace": "/no/such/folder"}, 400),
        ("POST", "/api/chat/start", ["not an object"], 400),
        ("GET", "/api/chat/stream?stream_id=0123456789abcdef", None, 404),
        ("GET", "/api/chat/stream", None, 400),
        ("GET", "/api/chat/cancel", None, 400),
        ("GET", "/api/session", None, 400),
        ("GET", "/api/session?session_id=0123456789ab", None, 404),
        ("GET", "/api/session/export?session_id=0123456789ab", None, 404),
        ("POST", "/api/session/rename", {"session_id": "SESSION"}, 400),
        ("POST", "/api/session/rename", {"session_id": "0123456789ab", "title": "x"}, 404),
        ("POST", "/api/session/truncate", {"session_id": "SESSION"}, 400),
        ("POST", "/api/session/truncate", {"session_id": "SESSION", "keep_count": -1}, 400),
        ("POST", "/api/session/new", {"workspace": "relative"}, 400),
        ("POST", "/api/session/new", {"profile": "nobody"}, 404),
        ("POST", "/api/personality/set", {"session_id": "SESSION"}, 400),
        ("POST", "/api/approval/respond", {"session_id": "SESSION", "choice": "perhaps"}, 400),
        ("POST", "/api/approval/respond", {"session_id": "SESSION", "choice": "once"}, 409),
    ],
)
async def test_a_refusal_is_an_error_text_in_json_with_its_status(server, method, path, body, status):
    session = await server.new()
    body = json.loads(json.dumps(body).replace("SESSION", session)) if body is not None else None
    answer = await server.call(method, path, body, status=status)
    assert isinstance(answer["error"], str)
    assert answer["error"]


async def test_a_post_from_another_origin_is_forbidden_also_in_this_shape(server):
    async with httpx.AsyncClient() as http:
        answer = await http.post(f"{server.url}/api/session/new", json={}, headers={"Origin": "http://evil.example"})
    assert answer.status_code == 403
    assert answer.json()["error"]


async def test_a_body_that_is_too_large_is_413_in_this_shape(server):
    host, port = server.url.removeprefix("http://").split(":")
    async with await trio.open_tcp_stream(host, int(port)) as socket:
        head = f"POST /api/chat/start HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\n"
        await socket.send_all(f"{head}Content-Length: 99999999\r\nConnection: close\r\n\r\n{{".encode())
        answer = b""
        while b'"error"' not in answer:
            more = await socket.receive_some(4096)
            assert more, answer
            answer += more
    assert answer.startswith(b"HTTP/1.1 413")


async def test_an_approval_is_pending_until_it_is_answered(server):
    session = await server.new()
    path = f"/api/approval/pending?session_id={session}"
    assert (await server.call("GET", path))["pending"] is None
    stream = await server.begin(session, ["approve", "rm -rf x"])
    seen = []
    async with server.page(stream) as events:
        async for _, name, data in events:
            seen.append(name)
            if name == "approval":
                break
    pending = (await server.call("GET", path))["pending"]
    assert pending["command"] == data["command"] == "rm -rf x"
    assert {"pattern_key", "pattern_keys", "description", "approval_id", "choices", "expires_at"} <= pending.keys()
    body = {"session_id": session, "choice": "session"}
    assert await server.call("POST", "/api/approval/respond", body) == {"ok": True, "choice": "session"}
    assert text(await server.read(stream)) == "allowed"
    assert (await server.call("GET", path))["pending"] is None


async def test_an_answer_without_a_choice_denies(server):
    session = await server.new()
    stream = await server.begin(session, ["approve", "x"])
    await server.wait_state(stream, "waiting")
    assert (await server.call("POST", "/api/approval/respond", {"session_id": session}))["choice"] == "deny"
    assert text(await server.read(stream)) == "denied"


async def test_sessions_are_renamed_pinned_archived_cleared_truncated_exported_and_deleted(server):
    session, other = await server.new(), await server.new()
    await server.read(await server.begin(session, ["say", "first pomegranate"]))
    await server.read(await server.begin(session, ["say", "second"]))
    await server.read(await server.begin(other, ["say", "newer"]))
    body = {"session_id": session}

    async def post(what, **more):
        return (await server.call("POST", f"/api/session/{what}", body | more))["session"]

    assert (await post("rename", title="  My name  "))["title"] == "My name"
    assert (await post("pin", pinned=True))["pinned"] is True
    listed = (await server.call("GET", "/api/sessions"))["sessions"]
    mine = [s["session_id"] for s in listed]
    assert mine.index(session) < mine.index(other), "pinned ones come first"
    assert (await post("archive", archived=True))["archived"] is True
    assert session in [s["session_id"] for s in (await server.call("GET", "/api/sessions"))["sessions"]]
    hits = await server.call("GET", "/api/sessions/search?q=pomegranate&content=1&depth=5")
    assert [(h["session_id"], h["match_type"]) for h in hits["sessions"]] == [(session, "content")]
    assert (hits["query"], hits["count"]) == ("pomegranate", 1)
    assert (await server.call("GET", "/api/sessions/search?q=pomegranate&content=0"))["count"] == 0
    hits = await server.call("GET", "/api/sessions/search?q=y%20nam")
    assert [(h["session_id"], h["match_type"]) for h in hits["sessions"]] == [(session, "title")]
    shorter = await post("truncate", keep_count=2)
    assert [m["content"] for m in shorter["messages"]][1:] == ["first pomegranate"]
    async with httpx.AsyncClient() as http:
        export = await http.get(f"{server.url}/api/session/export?session_id={session}")
    assert export.headers["Content-Disposition"] == f'attachment; filename="hermes-{session}.json"'
    assert export.json()["messages"] == shorter["messages"]
    cleared = await post("clear")
    assert (cleared["title"], cleared["message_count"]) == ("Untitled", 0)
    for _ in range(2):
        assert await server.call("POST", "/api/session/delete", body) == {"ok": True}
    await server.call("GET", f"/api/session?session_id={session}", status=404)


async def test_after_a_truncation_the_agent_goes_on_from_what_is_left(server):
    session = await server.new()
    for word in "one", "two":
        await server.read(await server.begin(session, ["say", word]))
    await server.call("POST", "/api/session/truncate", {"session_id": session, "keep_count": 2})
    events = await server.read(await server.begin(session, ["say", "three"]))
    said = [m["content"] for m in events[-2][2]["session"]["messages"] if m["role"] == "assistant"]
    assert said == ["one", "three"]


async def test_workspace_model_and_personality_are_remembered_on_the_session(server, tmp_path):
    folder = tmp_path / "project"
    folder.mkdir()
    session = await server.new(model="first")
    body = {"session_id": session, "workspace": str(folder), "model": "second"}
    updated = (await server.call("POST", "/api/session/update", body))["session"]
    assert (updated["workspace"], updated["model"], updated["messages"]) == (str(folder), "second", [])
    answer = await server.call("POST", "/api/personality/set", {"session_id": session, "name": "pirate"})
    assert (answer["ok"], answer["personality"]) == (True, "pirate")
    assert text(await server.read(await server.begin(session, ["where"], model="third"))) == str(folder)
    shown = (await server.call("GET", f"/api/session?session_id={session}"))["session"]
    assert (shown["model"], shown["personality"]) == ("third", "pirate")
    other = tmp_path / "other"
    other.mkdir()
    assert text(await server.read(await server.begin(session, ["where"], workspace=str(other)))) == str(other)
    shown = (await server.call("GET", f"/api/session?session_id={session}"))["session"]
    assert shown["workspace"] == str(other)


async def test_health_counts_streams(server):
    stream = await server.begin(await server.new(), ["wait"])
    health = await server.call("GET", "/health")
    assert health.keys() == {"status", "sessions", "active_streams", "uptime_seconds"}
    assert health["status"] == "ok"
    assert health["active_streams"] >= 1
    await server.call("GET", f"/api/chat/cancel?stream_id={stream}")


async def test_a_failed_agent_is_an_apperror_after_which_the_stream_closes(server):
    session = await server.new()
    answer = await server.call("POST", "/api/chat/start", {"session_id": session, "message": "no json"})
    events = await server.read(answer["stream_id"])
    assert [name for _, name, _ in events][-2:] == ["apperror", "stream_end"]
    assert events[-2][2]["message"]
