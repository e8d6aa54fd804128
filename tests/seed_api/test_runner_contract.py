"""/v1/runs from the side of its client: a web UI that polls, sleeps after an empty answer, and survives our restart."""

from __future__ import annotations

import json
import os
import time
import urllib.error
import urllib.request

import httpx
import pytest
import trio
from stepwise import Stepwise, steps

CLOSE = {"stream_end", "cancel", "apperror"}
"""After these the web UI reads no more."""


class WebUI:
    """As its runner client does it: urllib, JSON, 60 s a call, a pause after an empty answer, no second thoughts."""

    def __init__(self, server: Stepwise, key: str = "", sleep_s: float = 0.05):
        self.server = server
        self.key = key
        self.sleep_s = sleep_s
        self.empty = 0

    def _call(self, method: str, path: str, body: object = None) -> dict:
        headers = {"Content-Type": "application/json", "User-Agent": "Hermes-WebUI-RunnerClient"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        data = None if body is None else json.dumps(body).encode()
        asked = urllib.request.Request(self.server.url + path, data, headers, method=method)
        try:
            with urllib.request.urlopen(asked, timeout=60) as answer:
                return json.loads(answer.read())
        except urllib.error.HTTPError as error:
            error.close()
            raise

    async def get(self, path: str) -> dict:
        return await trio.to_thread.run_sync(self._call, "GET", path)

    async def post(self, path: str, body: object) -> dict:
        return await trio.to_thread.run_sync(self._call, "POST", path, body)

    async def start(self, session: str, message: str, **more) -> dict:
        body = {
            "session_id": session, "message": message, "attachments": [], "workspace": None, "profile": None,
            "provider": None, "model": None, "toolsets": [], "source": "webui", "metadata": {"route": "/api/chat/start"},
        } | more  # fmt: skip
        return await self.post("/v1/runs", body)

    async def observe(self, run: str, cursor: str | None = None, until: str | None = None) -> list[dict]:
        """All events after `cursor`, to the end or to the first named `until`. A call that fails is made again, as a
        page that reconnects does."""
        events: list[dict] = []
        with trio.fail_after(60):
            while True:
                query = f"?cursor={cursor}" if cursor else ""
                try:
                    answer = await self.get(f"/v1/runs/{run}/events{query}")
                except (OSError, ValueError):
                    await trio.sleep(self.sleep_s)
                    continue
                assert answer["run_id"] == run
                events += answer["events"]
                cursor = answer["cursor"]
                if any(e["event"] in CLOSE or e["event"] == until for e in answer["events"]):
                    return events
                if not answer["events"]:
                    self.empty += 1
                    state = await self.get(f"/v1/runs/{run}")
                    if state["terminal_state"] in ("completed", "failed", "cancelled"):
                        return events
                    await trio.sleep(self.sleep_s)


@pytest.fixture
def webui(server):
    return WebUI(server)


def fresh() -> str:
    """An id such as another server might give out."""
    return f"api-{os.urandom(4).hex()}_X"


def without_a_hole(run: str, events: list[dict]) -> None:
    assert [e["seq"] for e in events] == list(range(1, len(events) + 1))
    assert [e["event_id"] for e in events] == [f"{run}:{e['seq']}" for e in events]
    assert all(e["payload"]["event"] == e["event"] for e in events)


async def test_a_run_in_an_unknown_session_begins_it_and_streams_to_its_end(webui):
    session = fresh()
    run = await webui.start(session, steps(["say", "Hello "], ["say", "you"]), unheard_of={"kept": None})
    assert run["run_id"] == run["stream_id"]
    assert (run["session_id"], run["status"]) in {(session, "running"), (session, "queued")}
    events = await webui.observe(run["run_id"])
    without_a_hole(run["run_id"], events)
    assert [e["event"] for e in events][-2:] == ["done", "stream_end"]
    assert "".join(e["payload"]["text"] for e in events if e["event"] == "token") == "Hello you"
    assert [m["role"] for m in events[-2]["payload"]["session"]["messages"]] == ["user", "assistant"]
    state = await webui.get(f"/v1/runs/{run['run_id']}")
    assert (state["session_id"], state["status"], state["terminal_state"]) == (session, "completed", "completed")


async def test_done_has_the_whole_session(webui):
    session = fresh()
    for word in "one", "two":
        events = await webui.observe((await webui.start(session, steps(["say", word])))["run_id"])
    messages = events[-2]["payload"]["session"]["messages"]
    assert [m["content"] for m in messages if m["role"] == "assistant"] == ["one", "two"]


async def test_a_call_for_events_is_held_until_there_is_one(webui, server):
    run = (await webui.start(fresh(), steps(["wait"], ["say", "now"])))["run_id"]
    await server.wait_state(run, "running")
    seen = await webui.observe(run, until="started")
    answers = []

    async def poll():
        answers.append(await webui.get(f"/v1/runs/{run}/events?cursor={seen[-1]['event_id']}"))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(poll)
        await trio.sleep(0.3)
        assert answers == [], "nothing has happened, so there is no answer yet"
        await server.go_on(run)
    assert answers[0]["events"][0]["event"] == "steer"
    assert (await webui.observe(run, answers[0]["cursor"]))[-1]["event"] == "stream_end"


async def test_a_call_is_held_no_longer_than_it_says_and_then_is_empty_with_the_same_cursor(webui, server):
    run = (await webui.start(fresh(), steps(["wait"])))["run_id"]
    seen = await webui.observe(run, until="started")
    cursor, before = seen[-1]["event_id"], time.monotonic()
    answer = await webui.get(f"/v1/runs/{run}/events?cursor={cursor}&wait_s=0.2")
    assert time.monotonic() - before >= 0.2
    assert answer == {"run_id": run, "events": [], "cursor": cursor}
    await server.call("GET", f"/v1/runs/{run}/events?wait_s=26", status=400)
    await webui.post(f"/v1/runs/{run}/cancel", {})


@pytest.mark.parametrize("cursor", ["{run}:2", "2"])
async def test_a_reload_in_the_middle_reads_on_after_its_cursor(webui, cursor):
    run = (await webui.start(fresh(), steps(["say", "a"], ["say", "b"])))["run_id"]
    everything = await webui.observe(run)
    assert await webui.observe(run, cursor.format(run=run)) == everything[2:]
    assert await webui.observe(run, everything[-1]["event_id"]) == []


@pytest.mark.parametrize("cursor", ["nonsense", "event:2", "999999", "%00", "{run}:-1"])
async def test_a_cursor_that_cannot_be_used_reads_from_the_start_and_loses_nothing(webui, cursor):
    run = (await webui.start(fresh(), steps(["say", "a"])))["run_id"]
    everything = await webui.observe(run)
    assert await webui.observe(run, cursor.format(run=run)) == everything


async def test_cancel_ends_a_run_and_keeps_what_it_said(webui, server):
    session = fresh()
    run = (await webui.start(session, steps(["say", "kept"], ["wait"])))["run_id"]
    await webui.observe(run, until="token")
    assert (await webui.post(f"/v1/runs/{run}/cancel", {}))["ok"] is True
    events = await webui.observe(run)
    without_a_hole(run, events)
    assert [e["event"] for e in events][-2:] == ["cancel", "stream_end"]
    state = await webui.get(f"/v1/runs/{run}")
    assert (state["status"], state["terminal_state"]) == ("cancelled", "cancelled")
    messages = (await server.call("GET", f"/v1/sessions/{session}"))["messages"]
    assert (messages[-1]["content"], messages[-1]["partial"]) == ("kept", True)
    assert (await webui.post(f"/v1/runs/{run}/cancel", {}))["status"] == "cancelled", "again does no harm"


@pytest.mark.parametrize("named", [True, False])
async def test_an_approval_is_answered_by_its_id_or_as_the_one_that_waits(webui, named):
    run = (await webui.start(fresh(), steps(["approve", "make"])))["run_id"]
    events = await webui.observe(run, until="approval")
    asked = next(e["payload"] for e in events if e["event"] == "approval")
    state = await webui.get(f"/v1/runs/{run}")
    assert state["pending_approval_id"] == asked["approval_id"]
    body = {"choice": "once", "approval_id": asked["approval_id"] if named else None}
    assert (await webui.post(f"/v1/runs/{run}/approval", body))["ok"] is True
    events = await webui.observe(run)
    assert [e["payload"]["text"] for e in events if e["event"] == "token"] == ["allowed"]


async def test_a_question_is_answered_and_a_running_agent_steered(webui):
    run = (await webui.start(fresh(), steps(["ask", "which?"], ["wait"])))["run_id"]
    events = await webui.observe(run, until="clarify")
    clarify = next(e["payload"] for e in events if e["event"] == "clarify")
    assert (await webui.get(f"/v1/runs/{run}"))["pending_clarify_id"] == clarify["clarify_id"]
    await webui.post(f"/v1/runs/{run}/clarifications/{clarify['clarify_id']}/respond", {"response": "that"})
    await webui.observe(run, until="token")
    assert (await webui.post(f"/v1/runs/{run}/messages", {"message": "go on", "mode": "queue"}))["ok"] is True
    events = await webui.observe(run)
    assert [e["payload"]["text"] for e in events if e["event"] == "token"] == ["that"]
    assert events[-1]["payload"]["state"] == "done"


async def test_a_failed_run_is_an_apperror_and_its_state_failed(webui):
    run = (await webui.start(fresh(), "no json"))["run_id"]
    events = await webui.observe(run)
    assert [e["event"] for e in events][-2:] == ["apperror", "stream_end"]
    assert (await webui.get(f"/v1/runs/{run}"))["terminal_state"] == "failed"


async def test_what_the_request_said_is_kept_with_the_turn(webui, server):
    import sqlite3

    run = (await webui.start(fresh(), steps(["say", "x"]), from_tomorrow=[1, None], toolsets=["web"]))["run_id"]
    await webui.observe(run)
    with sqlite3.connect(f"file:{server.data / 'hermetic.db'}?mode=ro", uri=True) as db:
        (spec,) = db.execute("SELECT spec FROM turn WHERE id = ?", (run,)).fetchone()
    db.close()
    asked = json.loads(spec)["asked"]
    assert (asked["from_tomorrow"], asked["toolsets"], asked["metadata"]["route"]) == (
        [1, None], ["web"], "/api/chat/start",
    )  # fmt: skip


async def test_workspace_and_model_are_remembered_on_the_session(webui, server, tmp_path):
    session = fresh()
    more = {"workspace": str(tmp_path), "model": "big", "provider": "acme"}
    events = await webui.observe((await webui.start(session, steps(["where"]), **more))["run_id"])
    assert [e["payload"]["text"] for e in events if e["event"] == "token"] == [str(tmp_path)]
    shown = await server.call("GET", f"/v1/sessions/{session}")
    assert (shown["workspace"], shown["model"]) == (str(tmp_path), "@acme:big")


async def test_a_refused_start_reaches_the_web_uis_user_with_its_reason(webui):
    session = fresh()
    run = (await webui.start(session, steps(["wait"])))["run_id"]
    refused = await webui.start(session, steps(["say", "me too"]), workspace="/no/such/folder")
    assert (refused["_status"], refused["code"], refused["active_stream_id"]) == (409, "session_busy", run)
    assert refused["error"]
    assert "run_id" not in refused
    await webui.post(f"/v1/runs/{run}/cancel", {})
    assert (await webui.start(fresh(), " "))["_status"] == 400
    assert (await webui.start(fresh(), "x", profile="nobody"))["_status"] == 404


async def test_to_any_other_client_a_refusal_is_a_problem_document(server):
    session = fresh()
    body = {"session_id": session, "message": steps(["wait"])}
    run = (await server.call("POST", "/v1/runs", body))["run_id"]
    problem = await server.call("POST", "/v1/runs", body, status=409)
    assert (problem["code"], problem["turn_id"]) == ("session_busy", run)
    await server.call("POST", f"/v1/runs/{run}/cancel")
    for wrong, status in (
        ({"message": " "}, 400),
        ({"session_id": session}, 400),
        ({"message": "x", "session_id": "../etc"}, 400),
        ({"message": "x", "session_id": "x" * 65}, 400),
        ({"message": "x", "attachments": [{"name": "passwd", "path": "/etc/passwd"}]}, 400),
        ({"message": "x", "attachments": [7]}, 400),
    ):
        assert (await server.call("POST", "/v1/runs", wrong, status=status))["hint"], wrong
    for path in "/v1/runs/nothing", "/v1/runs/nothing/events":
        await server.call("GET", path, status=404)
    await server.call("POST", f"/v1/runs/{run}/approval", {"choice": "once"}, status=409)


async def test_goals_are_refused_with_a_hint_and_not_pretended(server):
    for method, body in ("GET", None), ("POST", {"action": "set", "text": "win"}):
        problem = await server.call(method, "/v1/sessions/0123456789ab/goal", body, status=501)
        assert (problem["code"], bool(problem["hint"])) == ("not_supported", True)


async def test_a_restart_in_the_middle_loses_nothing_that_was_said(own):
    await own.start()
    webui, session = WebUI(own), fresh()
    run = (await webui.start(session, steps(["say", "before"], ["wait"])))["run_id"]
    seen = await webui.observe(run, until="token")
    got = []

    async def page():
        got.extend(await webui.observe(run, seen[-1]["event_id"]))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(page)
        own.kill()
        await own.start()
    without_a_hole(run, seen + got)
    assert [e["event"] for e in got] == ["apperror", "stream_end"]
    assert got[0]["payload"]["type"] == "lost"
    messages = (await own.call("GET", f"/v1/sessions/{session}"))["messages"]
    assert messages[-1]["content"] == "before"
    again = await webui.observe((await webui.start(session, steps(["say", "after"])))["run_id"])
    assert again[-1]["payload"]["state"] == "done", "the session is not stuck"


async def test_with_a_key_only_those_who_have_it_are_served(tmp_path):
    environ = {**os.environ, "THE_KEY": "open sesame"}
    server = Stepwise(tmp_path, server='runner_api_key_env = "THE_KEY"', env=environ)
    await server.start()
    try:
        webui = WebUI(server, key="open sesame")
        run = (await webui.start(fresh(), steps(["say", "in"])))["run_id"]
        assert (await webui.observe(run))[-1]["event"] == "stream_end"
        for headers in (
            {}, {"Authorization": "Bearer sesame"}, {"Authorization": "Basic open sesame"},
            {"Authorization": "Bearer open sesame2"}, {"Authorization": "Bearer \u00e9".encode()},
        ):  # fmt: skip
            async with httpx.AsyncClient() as http:
                for path in f"/v1/runs/{run}", f"/v1/runs/{run}/events":
                    answer = await http.get(server.url + path, headers=headers)
                    assert answer.status_code == 401, headers
                    assert answer.headers["WWW-Authenticate"] == "Bearer"
                answer = await http.post(server.url + "/v1/runs", headers=headers, json={"message": "x"})
                assert answer.status_code == 401
        assert (await server.call("GET", "/v1/health"))["status"] == "ok", "it guards the runner's addresses alone"
    finally:
        await server.stop()


async def test_a_key_that_is_named_and_not_there_stops_the_server_at_its_start(tmp_path):
    environ = {name: value for name, value in os.environ.items() if name != "THE_KEY"}
    server = Stepwise(tmp_path, server='runner_api_key_env = "THE_KEY"', env=environ)
    with pytest.raises(AssertionError, match="THE_KEY"):
        await server.start()
