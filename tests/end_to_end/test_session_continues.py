"""An agent that compresses its context and goes on under another session id: the session follows it, whole or not at all."""

from __future__ import annotations

import itertools
import random
import textwrap
from pathlib import Path

import pytest
import trio
from harness import Server, check_whole, names

AGENT = """
import pathlib, time
class AIAgent:
    def __init__(self, model="", session_id=None, stream_delta_callback=None):
        self.session_id, self.say = session_id, stream_delta_callback
    def interrupt(self): ...
    def run_conversation(self, user_message, conversation_history=None):
        what = user_message.partition("\\n")[2]
        word, _, rest = what.partition(" ")
        seen = [row["content"] for row in conversation_history]
        if word == "wait":
            self.say("waiting ")
            while not pathlib.Path(rest.split()[0]).exists():
                time.sleep(0.002)
            word, rest = "as", rest.split()[1]
        self.say(f"{self.session_id} has seen {seen}")
        answer = f"{self.session_id} has seen {seen}"
        new = [{"role": "user", "content": user_message}, {"role": "assistant", "content": answer}]
        messages = [*conversation_history, *new]
        if word == "as":
            self.session_id = rest
            messages = [{"role": "user", "content": "SUMMARY"}, *new]
        if word == "bare":
            self.session_id, messages = rest, []
        return {"final_response": answer, "completed": True, "messages": messages, "input_tokens": 3}
"""
APPROVAL = "def approve_session(key, pattern): ...\ndef register_gateway_notify(key, notify): ..."
TOML = """
[agents.mine]
adapter = "hermes"
python_path = ["agents"]
[turns]
concurrent_max = 4
"""


async def started(serve, folder: Path, toml: str = TOML) -> Server:
    modules = {
        "run_agent": AGENT, "tools/approval": APPROVAL, "hermes_cli/config": "def load_config(): return {}",
        "hermes_cli/runtime_provider": "def resolve_runtime_provider(requested=None): return {}",
    }  # fmt: skip
    (folder / "fake" / "tools").mkdir(parents=True)
    (folder / "fake" / "hermes_cli").mkdir()
    for name, code in modules.items():
        (folder / "fake" / f"{name}.py").write_text(textwrap.dedent(code))
    return await serve(toml.replace('"agents"', f'"{folder}/fake"'))


async def say(server: Server, session: str, message: str) -> dict:
    return check_whole(await server.run(message, session=session))


def said(view: dict) -> list[str]:
    return [message["content"] for message in view["messages"]]


async def test_the_session_goes_on_under_the_new_id_and_the_old_one_keeps_its_transcript(serve, tmp_path):
    server = await started(serve, tmp_path)
    old = await server.session(agent="mine", title="Plums", model="m1")
    folder = (await server.call("GET", f"/v1/sessions/{old}"))["workspace"]
    await say(server, old, "one")
    end = await say(server, old, "as 20260101_120000_abcdef")
    new = "20260101_120000_abcdef"
    assert (end["session"]["session_id"], end["session"]["continues"], end["session"]["title"]) == (new, old, "Plums")
    assert (end["session"]["message_count"], end["session"]["input_tokens"]) == (3, 6)

    before, after = [await server.call("GET", f"/v1/sessions/{name}") for name in (old, new)]
    assert said(before) == ["one", f"{old} has seen []"]
    assert (before["continued_as"], before["archived"]) == (new, True)
    assert said(after)[:2] == ["SUMMARY", f"as {new}"]
    assert (after["title"], after["model"], after["workspace"]) == ("Plums", "m1", folder)
    assert (after["input_tokens"], after["archived"]) == (6, False)
    listed = (await server.call("GET", "/v1/sessions"))["sessions"]
    assert [session["session_id"] for session in listed] == [new], "once, and under the id that goes on"

    turn = await server.call("POST", f"/v1/sessions/{old}/turns", {"message": "two"}, status=202)
    assert turn["session_id"] == new, "who comes with the old id is taken along"
    end = check_whole(await server.events(turn["turn_id"]))
    assert "SUMMARY" in end["session"]["messages"][-1]["content"]
    assert f"{new} has seen" in end["session"]["messages"][-1]["content"], "the agent is given its own id"

    changed = await server.call("PATCH", f"/v1/sessions/{old}", {"model": "m2"})
    assert (changed["session_id"], changed["model"]) == (new, "m2"), "settings are for the turns"
    assert (await server.call("PATCH", f"/v1/sessions/{old}", {"title": "Old plums"}))["session_id"] == old
    refused = await server.call("POST", "/api/session/truncate", {"session_id": old, "keep_count": 0}, status=409)
    assert refused["code"] == "session_continued"


async def test_turns_that_wait_go_on_in_the_new_session_one_after_the_other(serve, tmp_path):
    server = await started(serve, tmp_path)
    old = await server.session(agent="mine")
    turns = [await server.turn(f"wait {tmp_path}/go fresh", session=old)]
    for number in range(3):
        turns.append(await server.turn(f"later {number}", session=old, on_busy="queue"))
    (tmp_path / "go").touch()
    for turn in turns:
        assert check_whole(await server.events(turn))["session"]["session_id"] == "fresh"
    view = await server.call("GET", "/v1/sessions/fresh")
    assert [text for text in said(view) if text.startswith("later")] == [f"later {number}" for number in range(3)]
    runs = (await server.call("GET", "/v1/sessions/fresh/turns"))["turns"]
    assert [run["turn_id"] for run in runs] == turns
    for earlier, later in itertools.pairwise(runs):
        assert earlier["ended_at"] <= later["started_at"], "one at a time"
    assert (await server.call("GET", f"/v1/sessions/{old}/turns"))["turns"] == []


async def test_an_agent_that_does_not_say_with_which_messages_takes_them_all_along(serve, tmp_path):
    server = await started(serve, tmp_path)
    old = await server.session(agent="mine")
    await say(server, old, "one")
    await say(server, old, "bare fresh")
    view = await server.call("GET", "/v1/sessions/fresh")
    assert said(view)[:3] == ["one", f"{old} has seen []", "bare fresh"]
    assert len(said(view)) == 4


@pytest.mark.parametrize("kind", ["another session's", "a path", "too long", "another's file"])
async def test_an_id_that_cannot_be_used_is_refused_and_the_turn_is_kept(serve, tmp_path, kind):
    state = tmp_path / "webui"
    server = await started(serve, tmp_path, f'{TOML}\n[webui]\nstate_dir = "{state}"\n')
    session, other = await server.session(agent="mine"), await server.session(agent="mine", title="Another's")
    (state / "sessions").mkdir(parents=True, exist_ok=True)
    (state / "sessions" / "theirs.json").write_text('{"session_id": "theirs", "messages": []}')
    wanted = {
        "another session's": other, "a path": "../../etc", "too long": "x" * 65, "another's file": "theirs",
    }[kind]  # fmt: skip
    await say(server, session, "one")
    events = await server.run(f"as {wanted}", session=session)
    end = check_whole(events)
    assert end["session"]["session_id"] == session
    assert [data["code"] for _, name, data in events if name == "warning"] == ["session_id_refused"]
    view = await server.call("GET", f"/v1/sessions/{session}")
    assert said(view)[0] == "SUMMARY", "as after a compression in place"
    assert (view["continued_as"], view["archived"]) == (None, False)
    untouched = await server.call("GET", f"/v1/sessions/{other}")
    assert (untouched["title"], untouched["messages"]) == ("Another's", [])
    assert (state / "sessions" / "theirs.json").read_text() == '{"session_id": "theirs", "messages": []}'


async def test_a_server_that_is_killed_around_the_step_leaves_all_of_it_or_nothing(serve, tmp_path):
    server = await started(serve, tmp_path)
    rng = random.Random(7)
    outcomes = set()
    for number in range(6):
        old, new, go = await server.session(agent="mine"), f"next-{number}", tmp_path / f"go-{number}"
        await say(server, old, "one")
        turn = await server.turn(f"wait {go} {new}", session=old)
        await server.glimpse(turn, b"waiting")
        if number != 0:  # else killed long before it
            go.touch()
        if number == 1:  # long after it
            await server.wait_state(turn, "done")
        elif number > 1:
            await trio.sleep(rng.uniform(0.0, 0.06))
        server.kill()
        await server.start()
        with trio.fail_after(60):
            while not (await server.call("GET", f"/v1/turns/{turn}"))["ended"]:
                await trio.sleep(0.02)
        run = await server.call("GET", f"/v1/turns/{turn}")
        before = await server.call("GET", f"/v1/sessions/{old}")
        ends = names(await server.events(turn))[-2:]
        outcomes.add(run["state"])
        if run["state"] == "done":
            after = await server.call("GET", f"/v1/sessions/{new}")
            assert (run["session_id"], before["continued_as"], after["continues"]) == (new, new, old)
            assert said(before) == ["one", f"{old} has seen []"]
            assert said(after)[0] == "SUMMARY"
            assert ends == ["done", "stream_end"]
        else:
            await server.call("GET", f"/v1/sessions/{new}", status=404)
            assert (run["session_id"], before["continued_as"]) == (old, None)
            assert said(before)[:2] == ["one", f"{old} has seen []"]
            assert said(before)[2].startswith("wait "), "and what was said is there"
            assert said(before)[3].startswith("waiting ")
            assert ends == ["apperror", "stream_end"]
    assert outcomes == {"done", "lost"}
