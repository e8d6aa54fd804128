"""What the page for hosts asks for: all turns, taking turns out of a session, and the drain."""

from __future__ import annotations

from harness import names

AGENT = """
import os, sys, time

def agent(turn):
    if turn.message == "crash":
        print("about to fall", file=sys.stderr, flush=True)
        os._exit(3)
    if turn.message == "stay":
        turn.token("here")
        time.sleep(60)
    return f"You said {turn.message}"
"""
TOML = """
[turns]
concurrent_max = 1
[server]
drain_s = 0.2
[agents.mine]
adapter = "function"
target = "mine:agent"
python_path = ["agents"]
"""


async def test_running_waiting_and_failed_turns_are_listed_with_what_the_process_printed(serve):
    server = await serve(TOML, agents={"mine": AGENT})
    await server.run("crash", agent="mine")
    stays = await server.turn("stay", agent="mine")
    await server.wait_state(stays, "running")
    await server.turn("later", agent="mine")
    listed = (await server.call("GET", "/v1/turns"))["turns"]
    assert [turn["message"] for turn in listed] == ["stay", "later", "crash"]
    running, waits, failed = listed
    assert running["pid"] > 0
    assert waits["queue_position"] == 1
    assert failed["state"] == "crashed"
    assert "about to fall" in failed["stderr"]
    assert all(turn.get("snapshot") is None for turn in listed)


async def test_a_turn_and_all_after_it_leave_the_session_and_an_unknown_one_leaves_it_whole(serve):
    server = await serve(TOML, agents={"mine": AGENT})
    session = await server.session(agent="mine")
    turns = []
    for message in ("one", "two", "three"):
        turns.append(await server.turn(message, session=session))
        await server.events(turns[-1])
    path = f"/v1/sessions/{session}/forget"
    await server.call("POST", path, {"turn_id": "0" * 16}, status=404)
    left = await server.call("POST", path, {"turn_id": turns[1]})
    assert [message["content"] for message in left["messages"]] == ["one", "You said one"]
    assert names(await server.events(turns[2]))[-1] == "stream_end", "its events stay"
    busy = await server.turn("stay", session=session)
    await server.wait_state(busy, "running")
    await server.call("POST", path, {"turn_id": turns[0]}, status=409)


async def test_a_drain_that_is_asked_for_ends_the_process_like_a_signal(serve):
    server = await serve(TOML, agents={"mine": AGENT})
    stays = await server.turn("stay", agent="mine")
    await server.wait_state(stays, "running")
    await server.call("POST", "/v1/drain", status=202)
    assert await server.wait() == 0
    await server.start()
    assert await server.state(stays) == "cancelled"
