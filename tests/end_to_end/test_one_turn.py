"""One turn from the first request to the last event, as a user meets it."""

from __future__ import annotations

import httpx
import pytest
import trio
from harness import check_whole, names, processes_with, text, wait_gone

FUNCTION = """
[turns]
grace_s = {grace_s}

[server]
drain_s = 0.2

[agents.mine]
adapter = "function"
target = "mine:agent"
python_path = ["agents"]
"""


def toml(grace_s: float = 2.0, more: str = "") -> str:
    return FUNCTION.format(grace_s=grace_s) + more


async def test_a_turn_streams_its_events_and_ends_once(serve):
    server = await serve(toml(), agents={"mine": "def agent(turn):\n    yield 'Hello, '\n    yield turn.message\n"})
    events = await server.run("world", agent="mine")
    assert names(events) == ["started", "token", "token", "done", "stream_end"]
    assert text(events) == "Hello, world"
    done = check_whole(events)
    assert done["session"]["messages"][-1]["content"] == "Hello, world"
    session = await server.call("GET", f"/v1/sessions/{done['session']['session_id']}")
    assert [(m["role"], m["content"]) for m in session["messages"]] == [
        ("user", "world"),
        ("assistant", "Hello, world"),
    ]
    assert session["title"] == "world"


async def test_the_demo_agent_runs_with_no_configuration(serve):
    server = await serve()
    session = await server.call("POST", "/v1/sessions", {})
    events = await server.run("hello", session=session["session_id"])
    check_whole(events)
    assert "demo" in text(events).lower()


async def test_a_session_remembers_what_was_said(serve):
    code = """
    def agent(turn):
        return f"{len(turn.history)} earlier: " + " | ".join(m["content"] for m in turn.history)
    """
    server = await serve(toml(), agents={"mine": code})
    session = await server.session(agent="mine")
    assert text(await server.run("one", session=session)) == "0 earlier: "
    assert text(await server.run("two", session=session)) == "2 earlier: one | 0 earlier: "


async def test_a_reader_that_comes_late_or_again_reads_the_same(serve):
    server = await serve(toml(), agents={"mine": "def agent(turn):\n    yield from ('%d ' % n for n in range(50))\n"})
    turn = await server.turn("go", agent="mine")
    whole = await server.events(turn)
    check_whole(whole)
    assert await server.events(turn, after=0) == whole
    for cursor in (7, f"{turn}:7"):
        assert await server.events(turn, after=cursor) == whole[7:]
    async with server.stream(turn, headers={"Last-Event-ID": f"{turn}:20"}) as events:
        assert [event async for event in events] == whole[20:]
    async with server.stream(turn, after=0, headers={"Last-Event-ID": f"{turn}:20"}) as events:
        assert [event async for event in events] == whole[20:], "an EventSource that reconnects keeps its URL"


async def test_a_reader_that_has_seen_the_end_is_told_so_with_204(serve):
    server = await serve(toml(), agents={"mine": "def agent(turn):\n    return 'x'\n"})
    turn = await server.turn("go", agent="mine")
    last = (await server.events(turn))[-1][0]
    async with httpx.AsyncClient() as http:
        response = await http.get(f"{server.url}/v1/turns/{turn}/events?after={last}")
        assert (response.status_code, response.content) == (204, b"")


@pytest.mark.parametrize("cursor", ["99999", "nonsense", "-3", "{other}:1", "99999999999999999999999", "1:2:3"])
async def test_an_unknown_cursor_is_reset_with_a_snapshot_never_skipped(serve, cursor):
    server = await serve(toml(), agents={"mine": "def agent(turn):\n    yield 'all '\n    yield 'of it'\n"})
    other = await server.turn("a", agent="mine")
    turn = await server.turn("b", agent="mine")
    whole = await server.events(turn)
    events = await server.events(turn, after=cursor.format(other=other))
    assert names(events)[0] == "reset"
    snapshot = events[0][2]["snapshot"]
    assert (snapshot["text"], snapshot["state"], snapshot["seq"]) == ("all of it", "done", len(whole))
    assert events[0][0] == len(whole), "the id of the reset is where the stream goes on"


async def test_readers_that_join_at_any_time_all_read_the_same(serve):
    code = """
    import time
    def agent(turn):
        for n in range(300):
            yield f"{n} "
            if n % 10 == 0:
                time.sleep(0.01)
    """
    server = await serve(toml(more="\n[stream]\nring_events = 20\n"), agents={"mine": code})
    turn = await server.turn("go", agent="mine")
    read = []

    async def reader(delay):
        await trio.sleep(delay)
        read.append(await server.events(turn))

    async with trio.open_nursery() as nursery:
        for n in range(12):
            nursery.start_soon(reader, n * 0.03)
    check_whole(read[0])
    assert text(read[0]) == "".join(f"{n} " for n in range(300))
    assert all(other == read[0] for other in read)


async def test_what_the_agent_prints_is_kept_with_the_turn_and_not_in_its_stream(serve):
    code = """
    import os, subprocess, sys
    def agent(turn):
        print("a print")
        os.write(1, b"a raw write\\n")
        subprocess.run(["echo", "a subprocess"])
        print("an error", file=sys.stderr)
        return "answer"
    """
    server = await serve(toml(), agents={"mine": code})
    turn = await server.turn("go", agent="mine")
    events = await server.events(turn)
    assert text(events) == "answer"
    assert names(events) == ["started", "token", "done", "stream_end"]
    stderr = (await server.call("GET", f"/v1/turns/{turn}"))["stderr"]
    for said in ("a print", "a raw write", "a subprocess", "an error"):
        assert said in stderr


# --- cancel ---------------------------------------------------------------------------------------------------------

STUBBORN = """
import os, signal, subprocess, sys, time
def agent(turn):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    for how in ([], ["setsid"]):
        subprocess.Popen([*how, sys.executable, "-c", "import signal,time; signal.signal(15, 1); time.sleep(600)",
                          turn.message], start_new_session=bool(how))
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.execv(sys.executable, [sys.executable, "-c", "import signal,time;signal.signal(15,1);time.sleep(600)",
                                      turn.message])
        os._exit(0)
    turn.reasoning("I will not go.")
    turn.token("still here")
    with turn.tool("sleep", {"seconds": 600}):
        while True:
            try:
                time.sleep(600)
            except BaseException:
                pass
"""


async def test_cancel_kills_the_whole_tree_and_keeps_what_was_said(serve, tmp_path):
    server = await serve(toml(grace_s=0.5), agents={"mine": STUBBORN})
    marker = f"marker-{tmp_path.name}"
    session = await server.session(agent="mine")
    turn = await server.turn(marker, session=session)
    seen: list[list] = [[], []]

    async def read(into):
        async with server.stream(turn) as events:
            async for event in events:
                into.append(event)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read, seen[0])
        nursery.start_soon(read, seen[1])
        with trio.fail_after(30):
            while "tool" not in names(seen[0]) or len(processes_with(marker)) < 3:
                await trio.sleep(0.02)
        answer = await server.call("POST", f"/v1/turns/{turn}/cancel", status=202)
        assert answer["state"] == "cancelling"
        again = await server.call("POST", f"/v1/turns/{turn}/cancel", status=202)
        assert again["state"] in ("cancelling", "cancelled")
    assert processes_with(marker) == [], "when the stream has ended, everything is dead"
    assert seen[0] == seen[1], "a cancel by one shows to all"
    assert names(seen[0])[-3:] == ["cancelling", "cancel", "stream_end"]
    assert check_whole(seen[0])["state"] == "cancelled"
    message = (await server.call("GET", f"/v1/sessions/{session}"))["messages"][-1]
    assert message["partial"] is True
    assert message["content"] == "still here"
    assert message["reasoning"] == "I will not go."
    assert message["tool_calls"][0]["function"]["name"] == "sleep"
    assert (await server.call("POST", f"/v1/turns/{turn}/cancel", status=202))["state"] == "cancelled"


async def test_a_polite_agent_says_its_last_words_when_cancelled(serve):
    code = """
    import time
    def agent(turn):
        turn.token("begin ")
        while not turn.cancelled:
            time.sleep(0.01)
        turn.token("goodbye")
    """
    server = await serve(toml(), agents={"mine": code})
    turn = await server.turn("go", agent="mine")
    async with server.stream(turn) as stream:
        events = []
        async for event in stream:
            events.append(event)
            if event[1] == "token" and event[2]["text"] == "begin ":
                await server.call("POST", f"/v1/turns/{turn}/cancel")
    assert check_whole(events)["state"] == "cancelled"
    assert text(events) == "begin goodbye"


async def test_a_turn_cancelled_before_its_start_is_never_started(serve, tmp_path):
    code = f"""
    import pathlib, time
    def agent(turn):
        pathlib.Path({str(tmp_path)!r}, "started-" + turn.message).touch()
        while not turn.cancelled:
            time.sleep(0.01)
        return "x"
    """
    server = await serve(toml().replace("[turns]", "[turns]\nconcurrent_max = 1"), agents={"mine": code})
    first = await server.turn("first", agent="mine")
    await server.wait_state(first, "running")
    second = await server.turn("second", agent="mine")
    view = await server.call("GET", f"/v1/turns/{second}")
    assert (view["state"], view["queue_position"]) == ("queued", 1)
    assert (await server.call("POST", f"/v1/turns/{second}/cancel", status=202))["state"] == "cancelled"
    events = await server.events(second)
    assert names(events) == ["queued", "cancel", "stream_end"]
    assert "before" in check_whole(events)["message"]
    await server.call("POST", f"/v1/turns/{first}/cancel")
    await server.wait_state(first, "cancelled")
    assert {p.name for p in tmp_path.glob("started-*")} == {"started-first"}


async def test_cancel_reaches_a_turn_at_every_moment_of_its_start(serve):
    """Forty turns, each cancelled a little later in its life than the one before."""
    server = await serve(toml(), agents={"mine": "import time\ndef agent(turn):\n    time.sleep(60)\n"})

    async def one(delay):
        turn = await server.turn("go", agent="mine")
        await trio.sleep(delay)
        await server.call("POST", f"/v1/turns/{turn}/cancel", status=202)
        events = await server.events(turn)
        assert check_whole(events)["state"] == "cancelled"

    for batch in range(5):
        async with trio.open_nursery() as nursery:
            for n in range(8):
                nursery.start_soon(one, (batch * 8 + n) * 0.008)


async def test_the_last_reader_that_leaves_cancels_when_asked_to(serve):
    server = await serve(
        toml(), agents={"mine": "import time\ndef agent(turn):\n    turn.token('x')\n    time.sleep(60)\n"}
    )
    stays = await server.turn("stay", agent="mine")
    goes = await server.turn("go", agent="mine", on_disconnect="cancel")
    for turn in (stays, goes):
        await server.glimpse(turn, b"event: token")
    await server.wait_state(goes, "cancelled")
    assert await server.state(stays) == "running"


# --- how turns end --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dies", "expected"),
    [
        ("os._exit(3)", {"exit_code": 3, "signal": None}),
        ("os.kill(os.getpid(), 11)", {"exit_code": None, "signal": "SIGSEGV"}),
        ("os.kill(os.getpid(), 9)", {"exit_code": None, "signal": "SIGKILL"}),
        ("os._exit(0)", {"exit_code": 0, "signal": None}),
    ],
)
async def test_a_crash_names_the_signal_or_exit_code_and_the_last_lines(serve, dies, expected):
    code = f"""
    import os, sys
    def agent(turn):
        turn.token("before")
        print("last words", file=sys.stderr, flush=True)
        {dies}
    """
    server = await serve(toml(), agents={"mine": code})
    session = await server.session(agent="mine")
    end = check_whole(await server.run("go", session=session))
    assert {key: end[key] for key in expected} == expected
    assert (end["state"], end["type"], end["fault"]) == ("crashed", "crashed", "agent")
    assert end["stderr"][-1] == "last words"
    message = (await server.call("GET", f"/v1/sessions/{session}"))["messages"][-1]
    assert (message["content"], message["partial"]) == ("before", True)
    assert text(await server.run("again", session=await server.session())) != "", "the server is unmoved"


async def test_a_turn_over_the_wall_clock_times_out(serve):
    server = await serve(
        toml().replace("[turns]", "[turns]\nwall_s = 0.8"),
        agents={"mine": "import time\ndef agent(turn):\n    turn.token('x')\n    time.sleep(60)\n"},
    )
    end = check_whole(await server.run("go", agent="mine"))
    assert (end["state"], end["type"]) == ("timed_out", "timed_out")
    assert "wall_s" in end["message"]


async def test_a_turn_that_says_too_much_ends_with_the_limit_named(serve):
    server = await serve(
        toml(more="\n[limits]\nframe_bytes_max = 50_000\nevent_bytes_max = 100_000\n"),
        agents={"mine": "def agent(turn):\n    while True:\n        turn.token('x' * 1000)\n"},
    )
    end = check_whole(await server.run("go", agent="mine"))
    assert (end["state"], end["type"]) == ("over_limit", "over_limit")
    assert "event_bytes_max" in end["message"]


async def test_daemons_that_a_finished_turn_leaves_behind_die_with_it(serve, tmp_path):
    marker = f"left-{tmp_path.name}"
    code = """
    import subprocess, sys
    def agent(turn):
        subprocess.Popen(["setsid", sys.executable, "-c", "import time; time.sleep(600)", turn.message])
        return "done"
    """
    server = await serve(toml(), agents={"mine": code})
    assert check_whole(await server.run(marker, agent="mine"))["state"] == "done"
    await wait_gone(marker, 1)


# --- approvals and clarifications -----------------------------------------------------------------------------------

ASKING = """
async def agent(turn):
    choice = await turn.approve("rm -rf /", "Delete everything?")
    turn.token(f"approved: {choice}; ")
    turn.token("answered: " + await turn.clarify("Which one?", ["a", "b"]))
"""


async def test_an_approval_waits_for_a_person_and_survives_a_reload(serve):
    server = await serve(toml(), agents={"mine": ASKING})
    turn = await server.turn("go", agent="mine")
    view = await server.wait_state(turn, "waiting")
    [pending] = view["pending"]
    assert (pending["event"], pending["command"]) == ("approval", "rm -rf /")
    path = f"/v1/turns/{turn}/approvals/{pending['approval_id']}"
    await server.call("POST", path, {"choice": "perhaps"}, status=400)
    await server.call("POST", f"/v1/turns/{turn}/approvals/unknown", {"choice": "once"}, status=404)
    assert (await server.call("POST", path, {"choice": "once"}))["choice"] == "once"
    assert (await server.call("POST", path, {"choice": "once"}))["choice"] == "once", "twice the same is no error"
    await server.call("POST", path, {"choice": "deny"}, status=409)
    with trio.fail_after(30):
        while not (pending := (await server.call("GET", f"/v1/turns/{turn}"))["pending"]):
            await trio.sleep(0.02)
    await server.call("POST", f"/v1/turns/{turn}/clarifications/{pending[0]['clarify_id']}", {"text": "b"})
    events = await server.events(turn)
    assert text(events) == "approved: once; answered: b"
    assert [n for n in names(events) if "approv" in n or "clarif" in n] == [
        "approval", "approval_resolved", "clarify", "clarify_resolved"]  # fmt: skip


async def test_without_an_answer_the_answer_is_deny(serve):
    server = await serve(toml().replace("[turns]", "[turns]\napproval_s = 0.3"), agents={"mine": ASKING})
    events = await server.run("go", agent="mine")
    assert text(events) == "approved: deny; answered: "
    assert [d["by"] for _, n, d in events if n.endswith("_resolved")] == ["timeout", "timeout"]


async def test_a_default_answer_is_deny(serve):
    server = await serve(toml(), agents={"mine": ASKING})
    turn = await server.turn("go", agent="mine")
    view = await server.wait_state(turn, "waiting")
    answer = await server.call("POST", f"/v1/turns/{turn}/approvals/{view['pending'][0]['approval_id']}")
    assert answer["choice"] == "deny"
    await server.call("POST", f"/v1/turns/{turn}/cancel")
    end = await server.events(turn)
    assert check_whole(end)["state"] == "cancelled"


async def test_an_approval_that_is_open_when_the_turn_ends_is_denied_in_the_journal(serve):
    server = await serve(toml(), agents={"mine": ASKING})
    turn = await server.turn("go", agent="mine")
    await server.wait_state(turn, "waiting")
    await server.call("POST", f"/v1/turns/{turn}/cancel")
    events = await server.events(turn)
    resolved = [data for _, name, data in events if name == "approval_resolved"]
    assert [(r["choice"], r["by"]) for r in resolved] == [("deny", "end")]


async def test_a_running_agent_can_be_steered(serve):
    code = """
    import time
    def agent(turn):
        turn.token("waiting ")
        while not (said := turn.steers()):
            time.sleep(0.01)
        return said[0]
    """
    server = await serve(toml(), agents={"mine": code})
    turn = await server.turn("go", agent="mine")
    await server.wait_state(turn, "running")
    await server.call("POST", f"/v1/turns/{turn}/messages", {"message": "go left"}, status=202)
    events = await server.events(turn)
    assert text(events).endswith("go left")
    assert "steer" in names(events)
    await server.call("POST", f"/v1/turns/{turn}/messages", {"message": "too late"}, status=409)


# --- two profiles ---------------------------------------------------------------------------------------------------


async def test_two_profiles_run_fifty_turns_side_by_side_and_no_value_crosses(serve, tmp_path, monkeypatch):
    """The reason for this project."""
    for name in ("red", "blue"):
        (tmp_path / f"{name}.env").write_text(f"COLOUR={name}\nONLY_{name.upper()}=yes\n")
    monkeypatch.setenv("SERVER_SECRET", "never-in-a-child")
    code = """
    import json, os, subprocess, time
    def agent(turn):
        for _ in range(5):
            yield os.environ["COLOUR"] + " "
            time.sleep(0.01)
        below = subprocess.run(["env"], capture_output=True, text=True).stdout
        yield json.dumps([dict(os.environ), below])
    """
    profiles = "".join(f'\n[profiles.{n}]\nenv_file = "{tmp_path}/{n}.env"\n' for n in ("red", "blue"))
    server = await serve('default_profile = "red"\n' + toml(more=profiles), agents={"mine": code})
    answers = {"red": [], "blue": []}

    async def one(profile):
        session = await server.session(agent="mine", profile=profile)
        answers[profile].append(text(await server.run("go", session=session)))

    async with trio.open_nursery() as nursery:
        for n in range(50):
            nursery.start_soon(one, ("red", "blue")[n % 2])
    for own, other in (("red", "blue"), ("blue", "red")):
        assert len(answers[own]) == 25
        for answer in answers[own]:
            assert answer.startswith(f"{own} " * 5)
            assert f"ONLY_{own.upper()}" in answer
            assert f"ONLY_{other.upper()}" not in answer
            assert f"COLOUR={other}" not in answer
            assert "never-in-a-child" not in answer


# --- requests -------------------------------------------------------------------------------------------------------


async def test_a_busy_session_rejects_or_queues_as_asked(serve):
    code = """
    import time
    def agent(turn):
        time.sleep(0.5 if turn.message == "slow" else 0)
        return turn.message
    """
    server = await serve(toml(), agents={"mine": code})
    session = await server.session(agent="mine")
    first = await server.turn("slow", session=session)
    problem = await server.call("POST", f"/v1/sessions/{session}/turns", {"message": "no"}, status=409)
    assert (problem["code"], problem["turn_id"]) == ("session_busy", first)
    second = await server.turn("second", session=session, on_busy="queue")
    third = await server.turn("third", session=session, on_busy="queue")
    assert text(await server.events(third)) == "third"
    assert [await server.state(t) for t in (first, second, third)] == ["done"] * 3
    messages = (await server.call("GET", f"/v1/sessions/{session}"))["messages"]
    assert [m["content"] for m in messages] == ["slow", "slow", "second", "second", "third", "third"]


async def test_the_same_idempotency_key_is_the_same_turn(serve):
    server = await serve(toml(), agents={"mine": "def agent(turn):\n    return 'x'\n"})
    session = await server.session(agent="mine")
    path = f"/v1/sessions/{session}/turns"
    first = await server.call("POST", path, {"message": "a"}, headers={"Idempotency-Key": "k"})
    await server.events(first["turn_id"])
    again = await server.call("POST", path, {"message": "a"}, headers={"Idempotency-Key": "k"}, status=202)
    assert (again["turn_id"], again["state"]) == (first["turn_id"], "done")
    await server.call("POST", path, {"message": "b"}, headers={"Idempotency-Key": "k"}, status=409)
    assert len((await server.call("GET", f"/v1/sessions/{session}"))["messages"]) == 2


async def test_two_identical_requests_at_once_start_one_turn(serve):
    server = await serve(toml(), agents={"mine": "def agent(turn):\n    return 'x'\n"})
    session = await server.session(agent="mine")
    turns = []

    async def post():
        body = {"message": "a", "idempotency_key": "same"}
        turns.append((await server.call("POST", f"/v1/sessions/{session}/turns", body, status=202))["turn_id"])

    async with trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon(post)
    assert len(set(turns)) == 1


async def test_sessions_can_be_listed_found_renamed_archived_exported_and_deleted(serve):
    server = await serve(toml(), agents={"mine": "def agent(turn):\n    return 'the answer is a zebra'\n"})
    session = await server.session(agent="mine")
    await server.run("which animal?", session=session)
    other = await server.session(title="Another one")
    listed = (await server.call("GET", "/v1/sessions"))["sessions"]
    assert {s["session_id"] for s in listed} == {session, other}
    found = (await server.call("GET", "/v1/search?q=zebr"))["hits"]
    assert [hit["session_id"] for hit in found] == [session]
    assert [s["session_id"] for s in (await server.call("GET", "/v1/sessions?q=zebra"))["sessions"]] == [session]
    renamed = await server.call("POST", f"/v1/sessions/{session}/rename", {"title": "Mine"})
    assert renamed["title"] == "Mine"
    await server.run("and now?", session=session)
    assert (await server.call("GET", f"/v1/sessions/{session}"))["title"] == "Mine", "a user's title stays"
    await server.call("POST", f"/v1/sessions/{session}/archive")
    assert [s["session_id"] for s in (await server.call("GET", "/v1/sessions"))["sessions"]] == [other]
    archived = (await server.call("GET", "/v1/sessions?archived=true"))["sessions"]
    assert [s["session_id"] for s in archived] == [session]
    assert len((await server.call("GET", f"/v1/sessions/{session}/export"))["messages"]) == 4
    async with httpx.AsyncClient() as http:
        markdown = await http.get(f"{server.url}/v1/sessions/{session}/export?format=markdown")
        assert "zebra" in markdown.text
        assert markdown.headers["content-disposition"].startswith("attachment")
    await server.call("DELETE", f"/v1/sessions/{session}", status=204)
    await server.call("GET", f"/v1/sessions/{session}", status=404)


async def test_usage_is_the_turns_in_done_and_the_sum_in_the_session(serve):
    code = "def agent(turn):\n    turn.usage(input_tokens=10, output_tokens=5, estimated_cost=0.25)\n    return 'x'\n"
    server = await serve(toml(), agents={"mine": code})
    session = await server.session(agent="mine")
    for _ in range(2):
        end = check_whole(await server.run("go", session=session))
        assert (end["usage"]["input_tokens"], end["usage"]["output_tokens"]) == (10, 5)
    view = await server.call("GET", f"/v1/sessions/{session}")
    assert (view["input_tokens"], view["output_tokens"], view["estimated_cost"]) == (20, 10, 0.5)


async def test_a_session_without_a_workspace_gets_its_own_and_the_agent_works_there(serve):
    server = await serve(toml(), agents={"mine": "import os\ndef agent(turn):\n    return os.getcwd()\n"})
    session = await server.call("POST", "/v1/sessions", {"agent": "mine"})
    assert text(await server.run("go", session=session["session_id"])) == session["workspace"]
    assert session["workspace"].startswith(str(server.data))


def test_the_harness_finds_processes(tmp_path):
    import subprocess
    import sys

    marker = f"find-me-{tmp_path.name}"
    command = [sys.executable, "-c", "print('up', flush=True); input()", marker]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        # Popen returns in the middle of execve(2), when /proc/PID/cmdline can still be empty.
        assert process.stdout.readline() == b"up\n"
        assert process.pid in processes_with(marker)
        process.stdin.write(b"\n")
        process.stdin.close()
