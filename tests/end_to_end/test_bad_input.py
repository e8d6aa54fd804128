"""Whatever is wrong, whoever's fault: a clear error, the turn ended, nothing lost, the server unmoved."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import trio
from harness import Server, check_whole, names, text

TOML = """
[turns]
grace_s = 1
ready_s = 20
[server]
drain_s = 0.2
body_bytes_max = 20_000
[limits]
message_bytes_max = 10_000
frame_bytes_max = 50_000
"""


def agent_toml(name: str = "mine", target: str | None = None) -> str:
    target = target or f"{name}:agent"
    return f'[agents.{name}]\nadapter = "function"\ntarget = "{target}"\npython_path = ["agents"]\n'


async def check_unmoved(server: Server) -> None:
    assert (await server.call("GET", "/v1/health"))["status"] == "ok"
    events = await server.run("hello", agent="demo")
    assert check_whole(events)["event"] == "done"


# --- requests -------------------------------------------------------------------------------------------------------


REQUESTS = {
    "an empty message": ("POST", "/v1/sessions/{s}/turns", {"message": " \n\t "}, 400, "empty_message"),
    "no message": ("POST", "/v1/sessions/{s}/turns", {}, 400, "invalid_request"),
    "a message that is no text": ("POST", "/v1/sessions/{s}/turns", {"message": 7}, 400, "invalid_request"),
    "a message over the limit": ("POST", "/v1/sessions/{s}/turns", {"message": "x" * 10_001}, 413, "too_large"),
    "a body over the limit": ("POST", "/v1/sessions/{s}/turns", {"message": "x" * 30_000}, 413, "too_large"),
    "an unknown member": ("POST", "/v1/sessions/{s}/turns", {"message": "x", "mesage": 1}, 400, "invalid_request"),
    "bad on_busy": ("POST", "/v1/sessions/{s}/turns", {"message": "x", "on_busy": "wait"}, 400, "invalid_request"),
    "too many attachments": (
        "POST", "/v1/sessions/{s}/turns", {"message": "x", "attachments": ["a"] * 21}, 413, "too_large"),
    "an attachment outside": (
        "POST", "/v1/sessions/{s}/turns", {"message": "x", "attachments": ["../../etc/passwd"]}, 400, "invalid_request"),
    "an unknown session": ("POST", "/v1/sessions/ffffffffffff/turns", {"message": "x"}, 404, "not_found"),
    "an unknown session to read": ("GET", "/v1/sessions/ffffffffffff", None, 404, "not_found"),
    "an unknown turn": ("GET", "/v1/turns/ffff", None, 404, "not_found"),
    "an unknown turn to stream": ("GET", "/v1/turns/ffff/events", None, 404, "not_found"),
    "an unknown turn to cancel": ("POST", "/v1/turns/ffff/cancel", None, 404, "not_found"),
    "an unknown agent": ("POST", "/v1/sessions", {"agent": "nobody"}, 404, "not_found"),
    "an unknown profile": ("POST", "/v1/sessions", {"profile": "nobody"}, 404, "not_found"),
    "a workspace that is not allowed": ("POST", "/v1/sessions", {"workspace": "/etc"}, 403, "workspace_not_allowed"),
    "an unknown address": ("GET", "/v2/nothing", None, 404, "not_found"),
    "a method that is not taken": ("PUT", "/v1/sessions", {}, 405, "method_not_allowed"),
    "a page that is no number": ("GET", "/v1/sessions?limit=many", None, 400, "invalid_request"),
    "a page that is too large": ("GET", "/v1/sessions?limit=100000", None, 400, "invalid_request"),
    "an empty search": ("GET", "/v1/search?q=", None, 400, "invalid_request"),
}  # fmt: skip


async def test_each_bad_request_is_a_problem_that_says_whose_fault_it_is_and_what_to_do(serve):
    server = await serve(TOML)
    session = await server.session()
    for what, (method, path, body, status, code) in REQUESTS.items():
        problem = await server.call(method, path.format(s=session), body, status=status)
        assert problem["code"] == code, what
        assert problem["fault"] == "client", what
        assert problem["hint"] and problem["detail"] and problem["title"], what
        assert problem["status"] == status, what
    for what, content, kind, status in [
        ("bad JSON", b'{"message": ', "application/json", 400),
        ("JSON that is not UTF-8", b'{"message": "\xff"}', "application/json", 400),
        ("JSON too deep", b"[" * 19_000, "application/json", 400),
        ("a list", b"[]", "application/json", 400),
        ("a form", b"message=x", "application/x-www-form-urlencoded", 415),
        ("text", b'{"message": "x"}', "text/plain", 415),
        ("no body", b"", "application/json", 400),
    ]:
        problem = await server.call(
            "POST", f"/v1/sessions/{session}/turns", content=content, headers={"Content-Type": kind}, status=status
        )
        assert problem["fault"] == "client", what
    assert (await server.call("GET", f"/v1/sessions/{session}"))["messages"] == []
    await check_unmoved(server)


async def test_a_page_of_another_origin_and_a_rebound_name_are_refused(serve):
    server = await serve(TOML)
    problem = await server.call("POST", "/v1/sessions", {}, headers={"Origin": "https://evil.example"}, status=403)
    assert problem["code"] == "forbidden"
    await server.call("GET", "/v1/health", headers={"Host": "evil.example"}, status=403)
    await server.call("POST", "/v1/sessions", {}, headers={"Origin": server.url}, status=201)


async def test_a_queue_that_is_full_answers_429_with_retry_after(serve):
    server = await serve(
        TOML.replace("[turns]", "[turns]\nconcurrent_max = 1\nqueue_max = 2") + agent_toml(),
        agents={"mine": "import time\ndef agent(turn):\n    time.sleep(60)\n"},
    )
    first = await server.turn("x", agent="mine")
    await server.wait_state(first, "running")
    for _ in range(2):
        await server.turn("x", agent="mine")
    session = await server.session(agent="mine")
    async with httpx.AsyncClient() as http:
        response = await http.post(f"{server.url}/v1/sessions/{session}/turns", json={"message": "x"})
    assert response.status_code == 429
    assert int(response.headers["retry-after"]) > 0
    assert response.json()["code"] == "queue_full"


async def test_a_workspace_that_is_gone_fails_before_the_turn_starts(serve, tmp_path):
    room = tmp_path / "room"
    (room / "here").mkdir(parents=True)
    (room / "link").symlink_to("/etc")
    server = await serve(TOML + f'[workspaces]\nroots = ["{room}"]\n')
    session = await server.session(workspace=str(room / "here"))
    for path, code in [("missing", "workspace_not_found"), ("link", "workspace_not_allowed")]:
        async with httpx.AsyncClient() as http:
            response = await http.post(server.url + "/v1/sessions", json={"workspace": str(room / path)})
        problem = response.json()
        assert (problem["code"], problem["fault"]) == (code, "client")
    (room / "here").rmdir()
    async with httpx.AsyncClient() as http:
        response = await http.post(f"{server.url}/v1/sessions/{session}/turns", json={"message": "x"})
    assert response.json()["code"] == "workspace_not_found"
    await check_unmoved(server)


# --- agents ---------------------------------------------------------------------------------------------------------

AGENTS = {
    "the module is missing": ("nowhere:agent", "", "nowhere"),
    "the name is missing in it": ("bad:nothing", "x = 1", "nothing"),
    "the module raises at import": ("bad:agent", "raise ValueError('at import')", "at import"),
    "the module has a syntax error": ("bad:agent", "def agent(:", "SyntaxError"),
    "the target cannot be called": ("bad:agent", "agent = 7", "agent"),
    "the callable wants too much": ("bad:agent", "def agent(a, b, c): return 'x'", "wrong shape"),
    "it raises": ("bad:agent", "def agent(turn):\n    raise RuntimeError('no luck')", "no luck"),
    "it raises in the middle": (
        "bad:agent", "def agent(turn):\n    yield 'half'\n    raise RuntimeError('no luck')", "no luck"),
    "an async one raises": ("bad:agent", "async def agent(turn):\n    raise RuntimeError('no luck')", "no luck"),
    "it returns nothing": ("bad:agent", "def agent(turn):\n    pass", "nothing"),
    "it returns a number": ("bad:agent", "def agent(turn):\n    return 7", "int"),
    "it yields a number": ("bad:agent", "def agent(turn):\n    yield 7", "int"),
    "it exits": ("bad:agent", "import sys\ndef agent(turn):\n    sys.exit(0)", "sys.exit"),
}  # fmt: skip


async def test_each_bad_agent_ends_its_turn_with_a_clear_error(serve):
    toml = TOML
    agents = {}
    for number, (target, code, _) in enumerate(AGENTS.values()):
        module = f"bad{number}"
        agents[module] = code
        toml += agent_toml(module, target.replace("bad:", f"{module}:"))
    server = await serve(toml, agents=agents)
    for number, (what, (_, code, said)) in enumerate(AGENTS.items()):
        session = await server.session(agent=f"bad{number}")
        events = await server.run("go", session=session)
        end = check_whole(events)
        assert (end["event"], end["state"]) == ("apperror", "failed"), what
        assert end["fault"] in ("agent", "host") and end["hint"], what
        assert said in end["message"], (what, end["message"])
        assert str(server.agents) not in end["message"], "paths of the host stay on the host"
        messages = (await server.call("GET", f"/v1/sessions/{session}"))["messages"]
        assert messages[0]["content"] == "go", "the user's message is kept"
        if "half" in code:
            assert (messages[-1]["content"], messages[-1]["partial"]) == ("half", True)
    await check_unmoved(server)


# The agent finds the descriptor of its event stream and writes to it what it likes.
RAW = """
import os, stat, time
def event_fd():
    for name in os.listdir("/proc/self/fd"):
        fd = int(name)
        try:
            if fd > 2 and stat.S_ISFIFO(os.fstat(fd).st_mode) and open(f"/proc/self/fdinfo/{{fd}}").read().split(
                    "flags:")[1].split()[0][-1] in "1":
                return fd
        except OSError:
            pass
    raise SystemExit("no event stream found")
def agent(turn):
    turn.token("before ")
    fd = event_fd()
    {does}
    time.sleep(30)
"""
TOKEN = '{"event":"token","text":"x"}'
GARBAGE = {
    "garbage": "os.write(fd, b'not json\\n')",
    "an empty line": "os.write(fd, b'\\n')",
    "an unknown event": """os.write(fd, b'{"event":"nope"}\\n')""",
    "a forged end": """os.write(fd, b'{"event":"stream_end","turn_id":"x","state":"done"}\\n')""",
    "a forged done": """os.write(fd, b'{"event":"done","turn_id":"x","session":{},"usage":{}}\\n')""",
    "half a frame": """os.write(fd, b'{"event":"tok'); os._exit(0)""",
    "a frame over the limit": "[os.write(fd, b'x' * 4096) for _ in range(100)]",
    "bytes that are not UTF-8": """os.write(fd, b'{"event":"token","text":"\\xff\\xfe"}\\n')""",
    "a carriage return": """os.write(fd, b'{"event":"token",\\r"text":"id: 9"}\\n')""",
    "Ready twice": """os.write(fd, b'{"event":"ready","protocol":1,"pid":1,"python":"3"}\\n')""",
    "the same approval twice": """os.write(fd, 2 * b'{"event":"approval","approval_id":"a","command":"x"}\\n')""",
}


async def test_a_child_that_breaks_the_protocol_ends_its_turn_and_keeps_what_it_said_before(serve):
    toml, agents = TOML, {}
    for number, does in enumerate(GARBAGE.values()):
        agents[f"raw{number}"] = RAW.format(does=does)
        toml += agent_toml(f"raw{number}")
    server = await serve(toml, agents=agents)
    for number, what in enumerate(GARBAGE):
        session = await server.session(agent=f"raw{number}")
        events = await server.run("go", session=session)
        end = check_whole(events)
        assert end["event"] == "apperror", what
        assert end["state"] in ("failed", "crashed"), what
        assert end["fault"] == "agent" and end["hint"], what
        assert end["type"] in ("protocol", "frame_too_long"), (what, end)
        assert text(events) == "before ", what
        last = (await server.call("GET", f"/v1/sessions/{session}"))["messages"][-1]
        assert (last["content"], last["partial"]) == ("before ", True), what
    await check_unmoved(server)


async def test_good_frames_before_a_bad_one_in_the_same_write_are_kept(serve):
    does = f"os.write(fd, b'{TOKEN}\\n{TOKEN}\\nbad\\n{TOKEN}\\n')"
    server = await serve(TOML + agent_toml(), agents={"mine": RAW.format(does=does)})
    events = await server.run("go", agent="mine")
    assert text(events) == "before xx"
    assert check_whole(events)["type"] == "protocol"


async def test_events_after_the_end_are_dropped_with_a_warning_and_the_result_stands(serve):
    result = '{"event":"result"}'
    does = f"os.write(fd, b'{result}\\n{TOKEN}\\n{TOKEN}\\n'); os._exit(0)"
    server = await serve(TOML + agent_toml(), agents={"mine": RAW.format(does=does)})
    events = await server.run("go", agent="mine")
    assert names(events)[-3:] == ["warning", "done", "stream_end"]
    assert text(events) == "before "
    assert "2 events" in events[-3][2]["message"]
    check_whole(events)


async def test_a_child_that_never_says_ready_is_given_up(serve):
    """The agent's environment cannot start Python; the keeper's tree says nothing at all."""
    server = await serve(
        TOML.replace("ready_s = 20", "ready_s = 0.001") + agent_toml(), agents={"mine": "def agent(turn): return 'x'"}
    )
    events = await server.run("go", agent="mine")
    end = check_whole(events)
    assert (end["state"], end["type"]) == ("failed", "no_ready")
    assert "ready_s" in end["hint"]


async def test_a_profile_whose_env_file_is_missing_fails_its_turns_and_says_so(serve):
    server = await serve(TOML + '[profiles.broken]\nenv_file = "/does/not/exist.env"\n')
    session = await server.session(profile="broken")
    events = await server.run("hello", session=session)
    end = check_whole(events)
    assert (end["state"], end["fault"]) == ("failed", "host")
    assert "env_file" in end["message"] + end["hint"]
    await check_unmoved(server)


# --- the host -------------------------------------------------------------------------------------------------------


def refused_start(folder: Path, toml: str = "", *, data: Path | None = None, bind: str = "127.0.0.1:0") -> str:
    """What the server says when it cannot start."""
    config = folder / "hermetic.toml"
    config.write_text(toml)
    paths = ["--config", str(config), "--data", str(data or folder / "data"), "--bind", bind]
    command = [sys.executable, "-m", "hermetic", "serve", *paths]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2, (done.returncode, done.stderr)
    assert "Traceback" not in done.stderr
    return done.stderr


def test_an_unknown_configuration_key_names_the_nearest_known_one(tmp_path):
    assert "grace_s" in refused_start(tmp_path, "[turns]\ngrase_s = 3\n")


def test_an_address_that_others_can_reach_is_refused_without_insecure(tmp_path):
    said = refused_start(tmp_path, bind="0.0.0.0:0")
    assert "--insecure" in said and "tenants" in said


async def test_a_port_that_is_taken_is_named(serve, tmp_path):
    server = await serve(TOML)
    assert "listen" in await trio.to_thread.run_sync(
        lambda: refused_start(tmp_path, bind=server.url.removeprefix("http://"))
    )


async def test_a_second_server_on_the_same_data_is_refused(serve, tmp_path):
    server = await serve(TOML)
    said = await trio.to_thread.run_sync(lambda: refused_start(tmp_path, data=server.data))
    assert str(server.process.pid) in said
    await check_unmoved(server)


async def test_a_database_of_a_newer_version_is_refused_and_left_alone(serve, tmp_path):
    server = await serve(TOML)
    await server.stop()
    path = server.data / "hermetic.db"
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA user_version = 9999")
    database.close()
    before = path.read_bytes()
    assert "newer" in await trio.to_thread.run_sync(lambda: refused_start(tmp_path, data=server.data))
    assert path.read_bytes() == before


@contextmanager
def small_disk(folder, bytes_max: int):
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={bytes_max}", "tmpfs", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="NOT TESTED: a full disk needs root, to mount a small tmpfs")
@pytest.mark.parametrize("left_bytes", [1 << 20, 14 << 20], ids=["a short answer", "an answer larger than the reserve"])
async def test_a_full_disk_ends_the_turn_and_work_goes_on_when_there_is_room(serve, tmp_path, left_bytes):
    code = """
    def agent(turn):
        turn.token("first ")
        for n in range(int(turn.message)):
            turn.token("x" * 10_000)
    """
    disk = tmp_path / "disk"
    with small_disk(disk, 32 << 20):
        toml = TOML.replace("[limits]", "[limits]\nevent_bytes_per_s_max = 1_000_000_000") + agent_toml()
        server = await serve(toml, agents={"mine": code}, data=disk / "data")
        small = await server.session(agent="mine")
        assert check_whole(await server.run("3", session=small))["event"] == "done"
        session = await server.session(agent="mine")
        free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
        (disk / "filler").write_bytes(bytes(free - left_bytes))
        events = await server.run("5000", session=session)
        end = check_whole(events)
        assert (end["state"], end["type"], end["fault"]) == ("failed", "storage_error", "host")
        assert "space" in end["hint"]
        last = (await server.call("GET", f"/v1/sessions/{session}"))["messages"][-1]
        assert last["partial"] is True
        whole = text(events)
        assert last["content"] == whole or whole.startswith(last["content"].partition("\n\n[The disk was full.")[0])
        assert last["content"] == whole or left_bytes > 1 << 20, "what readers saw is what is kept"
        problem = await server.call("POST", f"/v1/sessions/{small}/turns", {"message": "1"}, status=507)
        assert problem["fault"] == "host"
        (disk / "filler").unlink()
        with trio.fail_after(60):
            while True:
                async with httpx.AsyncClient() as http:
                    again = await http.post(f"{server.url}/v1/sessions/{small}/turns", json={"message": "1"})
                if again.status_code == 202:
                    break
                await trio.sleep(0.2)
        assert check_whole(await server.events(again.json()["turn_id"]))["event"] == "done"
        await server.stop()
