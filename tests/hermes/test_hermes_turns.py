"""The real hermes-agent under the real server, with a scripted provider: what a person at a page would see."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
import trio
from harness import check_whole, names, processes_with, text, wait_gone

pytestmark = pytest.mark.timeout(300)


async def test_a_plain_turn(hermes) -> None:
    agent = await hermes()
    session = await agent.server.session()
    events = await agent.run("think I should greet.\nsay Hello there, friend.", session=session)
    done = check_whole(events)
    assert text(events) == "Hello there, friend."
    assert "".join(d["text"] for _, name, d in events if name == "reasoning") == "I should greet."
    assert done["usage"]["input_tokens"] == 11
    assert done["usage"]["output_tokens"] == 7
    assert done["usage"]["context_length"] == 128000
    assert done["usage"]["last_prompt_tokens"] == 11
    assert 0 < done["usage"]["threshold_tokens"] < 128000
    view = await agent.server.call("GET", f"/v1/sessions/{session}")
    assert [m["role"] for m in view["messages"]] == ["user", "assistant"]
    assert view["messages"][1]["content"] == "Hello there, friend."


async def test_what_is_sent_to_the_provider(hermes) -> None:
    agent = await hermes()
    session = await agent.server.session()
    workspace = (await agent.server.call("GET", f"/v1/sessions/{session}"))["workspace"]
    await agent.run('call terminal {"command": "echo one"}\n---\nsay Done.', session=session)
    await agent.run("say And again.", session=session)
    requests = agent.provider.wait_requests(3)
    assert requests[0]["authorization"] == "Bearer secret-key"
    assert requests[0]["model"] == "fake-model"
    system = next(m["content"] for m in requests[0]["messages"] if m["role"] == "system")
    assert "This tag alone decides the working directory" in system
    users = [m["content"] for m in requests[2]["messages"] if m["role"] == "user"]
    assert users[1].startswith(f"[Workspace: {workspace}]\nPlease say:")
    assert users[0].startswith("Please say:"), "history is what is stored, without the tag"
    known = {"role", "content", "tool_calls", "tool_call_id", "name", "refusal"}
    assert all(set(message) <= known for message in requests[2]["messages"])
    assert [m["role"] for m in requests[2]["messages"]][1:] == ["user", "assistant", "tool", "assistant", "user"]


async def test_a_tool_call_is_shown_and_kept_whole(hermes) -> None:
    agent = await hermes()
    session = await agent.server.session()
    workspace = (await agent.server.call("GET", f"/v1/sessions/{session}"))["workspace"]
    command = "pwd; seq 200"
    script = f"say First a look.\ncall terminal {json.dumps({'command': command})}\n---\nsay It is done."
    events = await agent.run(script, session=session)
    done = check_whole(events)
    assert text(events).split() == ["First", "a", "look.", "It", "is", "done."]
    assert "reasoning" not in names(events), "the agent reports its visible words as reasoning, too"
    [tool] = [d for _, name, d in events if name == "tool"]
    [complete] = [d for _, name, d in events if name == "tool_complete"]
    assert (tool["name"], tool["args"]) == ("terminal", {"command": command})
    assert tool["preview"].startswith("pwd")
    assert complete["tid"] == tool["tid"] == "call_1"
    assert complete["snippet"].startswith(f"{workspace}\n1\n2\n")
    assert len(complete["snippet"]) == 200
    assert complete["is_error"] is False
    assert complete["duration_s"] >= 0
    assert [m["role"] for m in done["session"]["messages"]] == ["assistant", "tool", "assistant"]
    view = await agent.server.call("GET", f"/v1/sessions/{session}")
    assert [m["role"] for m in view["messages"]] == ["user", "assistant", "tool", "assistant"]
    assert "[Workspace:" not in json.dumps(view["messages"])
    assert all(m["timestamp"] for m in view["messages"])
    assert "\\n200" in view["messages"][2]["content"], "the model is given all of it in the next turn"
    [card] = view["tool_calls"]
    assert (card["name"], card["tid"], card["args"]) == ("terminal", "call_1", {"command": command})
    assert view["title"].startswith("Please say:")
    assert done["usage"]["input_tokens"] == 22, "of both calls"


async def test_several_tools_at_once(hermes, tmp_path: Path) -> None:
    agent = await hermes()
    for name in ("one", "two"):
        (tmp_path / name).write_text(f"text of {name}")
    calls = "\n".join(f"call read_file {json.dumps({'path': str(tmp_path / name)})}" for name in ("one", "two"))
    events = await agent.run(f"{calls}\n---\nsay Ok.")
    check_whole(events)
    for name in ("one", "two"):
        [tool] = [d for _, kind, d in events if kind == "tool" and name in d["args"]["path"]]
        [complete] = [d for _, kind, d in events if kind == "tool_complete" and d["tid"] == tool["tid"]]
        assert f"text of {name}" in complete["snippet"]


async def approved(agent, session: str, choice: str | None, target: Path) -> tuple[list, dict]:
    """A turn that asks whether to remove a folder, and the answer to it. → events, the approval."""
    target.mkdir(exist_ok=True)
    script = f"call terminal {json.dumps({'command': f'rm -rf {target}'})}\n---\nsay The end."
    turn = await agent.turn(script, session=session)
    asked = {}
    async with agent.server.stream(turn) as stream:
        events = []
        async for event in stream:
            events.append(event)
            if event[1] == "approval":
                asked = event[2]
                if choice:
                    path = f"/v1/turns/{turn}/approvals/{asked['approval_id']}"
                    await agent.server.call("POST", path, {"choice": choice})
    check_whole(events)
    return events, asked


async def test_an_approval_once(hermes, tmp_path: Path) -> None:
    agent = await hermes()
    session = await agent.server.session()
    events, asked = await approved(agent, session, "once", tmp_path / "target")
    assert asked["command"] == f"rm -rf {tmp_path / 'target'}"
    assert asked["choices"] == ["once", "session", "always", "deny"]
    assert asked["description"]
    assert asked["pattern_keys"] == [asked["pattern_key"]]
    assert not (tmp_path / "target").exists()
    assert names(events)[-2] == "done"
    _, again = await approved(agent, session, "deny", tmp_path / "target")
    assert again, "once is once"


async def test_an_approval_that_is_denied(hermes, tmp_path: Path) -> None:
    agent = await hermes()
    session = await agent.server.session()
    events, _ = await approved(agent, session, "deny", tmp_path / "target")
    assert (tmp_path / "target").exists()
    assert names(events)[-2] == "done", "the agent is told and goes on"
    assert "BLOCKED" in agent.provider.wait_requests(2)[1]["messages"][-1]["content"]


async def test_an_approval_that_nobody_answers_is_a_denial(hermes, tmp_path: Path) -> None:
    agent = await hermes("approval_s = 0.5")
    events, _ = await approved(agent, await agent.server.session(), None, tmp_path / "target")
    assert (tmp_path / "target").exists()
    assert next(d for _, name, d in events if name == "approval_resolved")["by"] == "timeout"
    assert names(events)[-2] == "done"


async def test_an_approval_for_the_session_holds_in_its_next_turns_alone(hermes, tmp_path: Path) -> None:
    agent = await hermes()
    session = await agent.server.session()
    _, asked = await approved(agent, session, "session", tmp_path / "target")
    assert asked
    _, again = await approved(agent, session, None, tmp_path / "target")
    assert not again
    assert not (tmp_path / "target").exists()
    _, elsewhere = await approved(agent, await agent.server.session(), "deny", tmp_path / "target")
    assert elsewhere, "another session asks for itself"


async def test_an_approval_for_always_lives_in_the_profile(hermes, tmp_path: Path) -> None:
    agent = await hermes(profiles={"other": {}})
    _, asked = await approved(agent, await agent.server.session(), "always", tmp_path / "target")
    assert asked
    _, again = await approved(agent, await agent.server.session(), None, tmp_path / "target")
    assert not again
    assert "command_allowlist" in (agent.home() / "config.yaml").read_text()
    _, other = await approved(agent, await agent.server.session(profile="other"), "deny", tmp_path / "target")
    assert other, "another profile asks for itself"


async def test_usage_is_synced_to_the_agents_own_store_when_that_is_asked_for(hermes) -> None:
    agent = await hermes()
    synced = agent.server.config.read_text().replace(
        'adapter = "hermes"\n', 'adapter = "hermes"\noptions = {sync_insights = true}\n'
    )
    session = await agent.server.session()
    await agent.run("say One.", session=session)
    rows = "SELECT input_tokens, output_tokens, title FROM sessions WHERE id = ?"
    assert not stored_in(agent.home() / "state.db", rows, session), "not unless it is asked for"
    await agent.server.stop()
    agent.server.config.write_text(synced)
    await agent.server.start()
    check_whole(await agent.run("say Two.", session=session))
    [(given, taken, title)] = stored_in(agent.home() / "state.db", rows, session)
    assert (given, taken) == (22, 14), "the session's totals"
    assert title.startswith("Please say:")


def stored_in(path: Path, query: str, *values: str) -> list[tuple]:
    if not path.exists():
        return []
    with closing(sqlite3.connect(path)) as db:
        if not db.execute("SELECT 1 FROM sqlite_master WHERE name = 'sessions'").fetchall():
            return []
        return db.execute(query, values).fetchall()


async def test_a_question_and_its_answer(hermes) -> None:
    agent = await hermes()
    turn = await agent.turn('call clarify {"question": "Tea?", "choices": ["yes", "no"]}\n---\nsay So be it.')
    view = await agent.server.wait_state(turn, "waiting")
    [asked] = view["pending"]
    assert (asked["question"], asked["choices"]) == ("Tea?", ["yes", "no"])
    await agent.server.call("POST", f"/v1/turns/{turn}/clarifications/{asked['clarify_id']}", {"text": "no, coffee"})
    check_whole(await agent.server.events(turn))
    assert "no, coffee" in agent.provider.wait_requests(2)[1]["messages"][-1]["content"]


# --- cancel -------------------------------------------------------------------------------------------------------


async def cancelled(agent, turn: str, marker: str | None = None) -> list:
    """Cancels; nothing of the turn may be left when it has ended."""
    home = str(agent.home())
    with trio.fail_after(50):  # the grace is 60 s: it must not come to the kill
        await agent.server.call("POST", f"/v1/turns/{turn}/cancel")
        events = await agent.server.events(turn)
    check_whole(events)
    assert names(events)[-2] == "cancel"
    await wait_gone(marker or home)
    return events


@pytest.mark.parametrize("how", ["stall", "say word\nstall"])
async def test_cancel_of_a_stalled_provider(hermes, how: str) -> None:
    agent = await hermes()
    session = await agent.server.session()
    turn = await agent.turn(f"say Some words first.\n{how}" if "say" in how else how, session=session)
    agent.provider.wait_requests(1)
    if "say" in how:
        await agent.server.glimpse(turn, b"word")
    await cancelled(agent, turn, str(agent.folder / "homes"))
    view = await agent.server.call("GET", f"/v1/sessions/{session}")
    if "say" in how:
        assert view["messages"][-1]["content"].startswith("Some words first.")
        assert view["messages"][-1]["partial"] is True


async def test_cancel_in_a_long_command(hermes) -> None:
    agent = await hermes()
    session = await agent.server.session()
    turn = await agent.turn(
        'say Wait.\ncall terminal {"command": "sleep 61.357; echo over"}\n---\nsay no', session=session
    )
    with trio.fail_after(60):
        while not processes_with("sleep\x0061.357"):
            await trio.sleep(0.05)
    await cancelled(agent, turn, "61.357")
    message = (await agent.server.call("GET", f"/v1/sessions/{session}"))["messages"][-1]
    assert message["content"].startswith("Wait.")
    assert len(agent.provider.requests) == 1
    check_whole(await agent.run("say The next.", session=session))
    sent = agent.provider.requests[1]["messages"]
    assert any(m["role"] == "assistant" and "Wait." in (m["content"] or "") for m in sent), (
        "the partial answer is known"
    )


async def test_cancel_while_an_approval_waits(hermes, tmp_path: Path) -> None:
    agent = await hermes()
    (tmp_path / "target").mkdir()
    turn = await agent.turn(f'call terminal {{"command": "rm -rf {tmp_path}/target"}}\n---\nsay no')
    await agent.server.wait_state(turn, "waiting")
    events = await cancelled(agent, turn)
    assert (tmp_path / "target").exists()
    assert next(d for _, name, d in events if name == "approval_resolved")["by"] == "end"


async def test_cancel_while_it_is_being_imported(hermes) -> None:
    agent = await hermes()
    turn = await agent.turn("say no")
    await agent.server.wait_state(turn, "running")
    await cancelled(agent, turn)
    assert agent.provider.requests == []


async def test_a_process_left_behind_is_dead_when_the_turn_is(hermes) -> None:
    agent = await hermes()
    command = "setsid nohup sleep 62.468 >/dev/null 2>&1 & sleep 0.1"
    events = await agent.run(f"call terminal {json.dumps({'command': command})}\n---\nsay Left.")
    check_whole(events)
    await wait_gone("62.468")


# --- steer, failures ----------------------------------------------------------------------------------------------


async def test_steer_reaches_the_running_agent(hermes, tmp_path: Path) -> None:
    agent = await hermes()
    flag = tmp_path / "go"
    wait = f"while [ ! -e {flag} ]; do sleep 0.05; done; echo gone on"
    turn = await agent.turn(f"call terminal {json.dumps({'command': wait})}\n---\nsay Ok.")
    await agent.server.glimpse(turn, b"event: tool")
    await agent.server.call("POST", f"/v1/turns/{turn}/messages", {"message": "Use blue paint."})
    flag.touch()
    check_whole(await agent.server.events(turn))
    assert "Use blue paint." in json.dumps(agent.provider.wait_requests(2)[1]["messages"][-1])


async def test_a_rate_limit(hermes) -> None:
    agent = await hermes(more="agent:\n  api_max_retries: 1")
    session = await agent.server.session()
    events = await agent.run("status 429 You are too fast", session=session)
    end = check_whole(events)
    assert (end["type"], end["state"]) == ("rate_limit", "failed")
    assert end["hint"]
    messages = (await agent.server.call("GET", f"/v1/sessions/{session}"))["messages"]
    assert messages[0]["content"].startswith("Please say:"), "the user's message is saved"


async def test_a_bad_request(hermes) -> None:
    agent = await hermes(more="agent:\n  api_max_retries: 1")
    end = check_whole(await agent.run("status 400 This model knows no tools"))
    assert (end["type"], end["state"]) == ("error", "failed")
    assert "This model knows no tools" in end["message"]


async def test_a_connection_that_is_cut(hermes) -> None:
    agent = await hermes(more="agent:\n  api_max_retries: 1")
    events = await agent.run("say The beginning\ncut")
    check_whole(events)
    assert text(events).startswith("The beginning")


# --- profiles -----------------------------------------------------------------------------------------------------


async def test_two_profiles_at_once_never_see_each_other(hermes, tmp_path: Path) -> None:
    agent = await hermes(
        profiles={
            "ann": {"key": "key-of-ann", "env": "COLOUR=red\n"},
            "bob": {"key": "key-of-bob", "env": "COLOUR=blue\n"},
        }
    )
    flag = tmp_path / "go"
    wait = f"touch {flag}.$COLOUR; while [ ! -e {flag} ]; do sleep 0.05; done; echo $COLOUR $HERMES_HOME"
    script = f"call terminal {json.dumps({'command': wait})}\n---\nsay Ok."
    turns = {}
    for name in ("ann", "bob"):
        turns[name] = await agent.turn(script, session=await agent.server.session(profile=name))
    with trio.fail_after(60):
        while not ((tmp_path / "go.red").exists() and (tmp_path / "go.blue").exists()):
            await trio.sleep(0.05)
    flag.touch()
    for name, colour in (("ann", "red"), ("bob", "blue")):
        events = await agent.server.events(turns[name])
        check_whole(events)
        said = next(d["snippet"] for _, kind, d in events if kind == "tool_complete")
        assert said.split() == [colour, str(agent.home(name))]
    keys = [request["authorization"] for request in agent.provider.requests]
    assert sorted(keys) == ["Bearer key-of-ann"] * 2 + ["Bearer key-of-bob"] * 2


async def test_a_personality(hermes) -> None:
    more = "agent:\n  personalities:\n    pirate: {system_prompt: Talk like a pirate., tone: rough, style: short}\n"
    agent = await hermes(more=more)
    check_whole(await agent.run("say Arr.", session=await agent.server.session(personality="pirate")))
    assert "Talk like a pirate.\nTone: rough\nStyle: short" in json.dumps(
        agent.provider.requests[0]["messages"][0]
    ).replace("\\n", "\n")
    events = await agent.run("say Hm.", session=await agent.server.session(personality="cowboy"))
    check_whole(events)
    assert next(d for _, name, d in events if name == "warning")["code"] == "unknown_personality"


async def test_the_profiles_toolsets(hermes) -> None:
    agent = await hermes()
    await agent.run("say Hello.")
    tools = {tool["function"]["name"] for tool in agent.provider.requests[0]["tools"]}
    assert {"terminal", "read_file", "clarify"} <= tools
    assert "web_search" not in tools


async def test_a_running_turn_keeps_the_configuration_that_it_began_with(hermes, tmp_path: Path) -> None:
    agent = await hermes()
    wait = f"touch {tmp_path}/here; while [ ! -e {tmp_path}/go ]; do sleep 0.05; done"
    turn = await agent.turn(f"call terminal {json.dumps({'command': wait})}\n---\nsay Ok.")
    with trio.fail_after(60):
        while not (tmp_path / "here").exists():
            await trio.sleep(0.05)
    config = agent.home() / "config.yaml"
    config.write_text(config.read_text().replace("fake-model", "new-model"))
    check_whole(await agent.run("say Hello."))
    (tmp_path / "go").touch()
    check_whole(await agent.server.events(turn))
    assert [r["model"] for r in agent.provider.wait_requests(3)] == ["fake-model", "new-model", "fake-model"]


async def test_the_fallback_model_answers_when_the_first_does_not(hermes) -> None:
    fallback = 'fallback_model: {{model: second-model, provider: custom, base_url: "{url}"}}'
    agent = await hermes(more=f"agent:\n  api_max_retries: 1\n{fallback}")
    events = await agent.run("refuse fake-model\nsay From the second.")
    check_whole(events)
    assert text(events).strip() == "From the second."
    assert agent.provider.requests[-1]["model"] == "second-model"


async def test_the_sessions_model_wins_over_the_profiles(hermes) -> None:
    agent = await hermes()
    check_whole(await agent.run("say Hello.", session=await agent.server.session(model="@custom:other-model")))
    assert agent.provider.requests[0]["model"] == "other-model"
    assert agent.provider.requests[0]["authorization"] == "Bearer secret-key"


async def test_attached_files_are_named_to_the_agent_and_kept_with_the_message(hermes) -> None:
    agent = await hermes()
    session = await agent.server.session()
    check_whole(await agent.run("say Seen.", session=session, attachments=["a.txt"]))
    assert agent.provider.requests[0]["messages"][-1]["content"].endswith("\n\n[Attached files: a.txt]")
    message = (await agent.server.call("GET", f"/v1/sessions/{session}"))["messages"][0]
    assert message["attachments"] == ["a.txt"]
    assert "[Workspace:" not in message["content"]


async def test_without_the_package_it_says_what_to_install(tmp_path: Path, hermes, provider) -> None:
    agent = await hermes('[agents.here]\nadapter = "hermes"\n')
    end = check_whole(await agent.server.run("hello", agent="here"))
    assert end["message"] == "hermes-agent is not installed where this agent runs"
    assert "pip install hermes-agent" in end["hint"]
    assert end["fault"] == "host"


FILLER = "plum " * 15_000
"""A quarter of a window of 64,000 tokens and more; the agent compresses at 85 % of it, the least that it can be set to."""
COMPRESSION = "compression:\n  protect_first_n: 0\n  protect_last_n: 1\n  in_place: {in_place}"


async def talked_until_compressed(agent, session: str) -> list[tuple[int, str, dict]]:
    for number in range(1, 6):
        script = f"{FILLER}\nPlease say:\nsay Answer {number}."
        events = await agent.server.run(script, session=session)
        check_whole(events)
        if "compressed" in names(events):
            return events
    raise AssertionError("it has not compressed")


async def test_compression_of_the_real_agent_in_place(hermes) -> None:
    agent = await hermes(more=COMPRESSION.format(in_place="true"), context="64000")
    session = await agent.server.session()
    events = await talked_until_compressed(agent, session)
    assert "compressing" in names(events)
    end = check_whole(events)
    assert end["session"]["session_id"] == session
    view = await agent.server.call("GET", f"/v1/sessions/{session}")
    assert view["messages"][-1]["content"].startswith("Answer"), "the newest is whole"
    assert len(str(view["messages"])) < 2.5 * len(FILLER), "and the past is shorter"
    assert "Side work." in str(view["messages"]), "the model's summary stands for it"
    assert "[Workspace: " not in str(view["messages"])
    usage = end["usage"]
    assert (usage["context_length"], usage["threshold_tokens"]) == (64_000, 54_400)
    assert "Answer" in text(await agent.run("say Answer at last.", session=session)), "and it goes on"


async def test_compression_of_the_real_agent_with_another_session_id(hermes) -> None:
    agent = await hermes(more=COMPRESSION.format(in_place="false"), context="64000")
    old = await agent.server.session(title="Plums")
    end = check_whole(await talked_until_compressed(agent, old))
    new = end["session"]["session_id"]
    assert new != old
    assert end["session"]["continues"] == old
    kept, view = [await agent.server.call("GET", f"/v1/sessions/{name}") for name in (old, new)]
    assert kept["continued_as"] == new
    assert str(kept["messages"]).count(FILLER) == kept["message_count"] // 2, "the old transcript is whole"
    assert "Side work." in str(view["messages"])
    assert view["title"] == "Plums"
    assert view["workspace"] == kept["workspace"]
    turn = await agent.server.call(
        "POST", f"/v1/sessions/{old}/turns", {"message": "Please say:\ncall terminal {\"command\": \"pwd\"}\n---\nsay There."},
        status=202,
    )  # fmt: skip
    assert turn["session_id"] == new
    events = await agent.server.events(turn["turn_id"])
    check_whole(events)
    assert any(kept["workspace"] in data.get("snippet", "") for _, _, data in events), "in the same folder"
