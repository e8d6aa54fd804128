"""Whatever happens to the server, nothing that anyone has seen is lost, nothing is doubled, and no child is left."""

from __future__ import annotations

import random

import httpx
import trio
from harness import Server, check_whole, processes_with, text, wait_gone

COUNTING = """
import subprocess, sys, time
def agent(turn):
    subprocess.Popen(["setsid", sys.executable, "-c", "import time; time.sleep(600)", turn.message])
    for n in range(10_000):
        turn.token(f"{n} ")
        time.sleep(0.002)
"""
TOML = """
[turns]
grace_s = 30
concurrent_max = 2
[server]
drain_s = 0.2
[agents.mine]
adapter = "function"
target = "mine:agent"
python_path = ["agents"]
"""


def counted(n: int) -> str:
    return "".join(f"{i} " for i in range(n))


async def read_until_cut(server: Server, turn: str, into: list) -> None:
    """Adds what is new to `into`, like a reader that reconnects with its cursor."""
    try:
        async with server.stream(turn, after=into[-1][0] if into else 0) as events:
            async for event in events:
                into.append(event)
    except (httpx.HTTPError, OSError):
        pass


async def test_a_turn_whose_server_is_killed_is_lost_with_all_that_it_said(serve, tmp_path):
    server = await serve(TOML, agents={"mine": COUNTING})
    marker = f"child-of-killed-{tmp_path.name}"
    session = await server.session(agent="mine")
    turn = await server.turn(marker, session=session)
    seen: list = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(read_until_cut, server, turn, seen)
        with trio.fail_after(30):
            while len(seen) < 50 or not processes_with(marker):
                await trio.sleep(0.01)
        server.kill()
    await wait_gone(marker, 5)
    await server.start()
    whole = await server.events(turn)
    end = check_whole(whole)
    assert (end["state"], end["type"], end["fault"]) == ("lost", "lost", "host")
    assert whole[: len(seen)] == seen, "every event that a reader saw is there, and the same"
    session_view = await server.call("GET", f"/v1/sessions/{session}")
    last = session_view["messages"][-1]
    assert last["partial"] is True
    assert last["content"] == text(whole) == counted(len(text(whole).split()))
    assert session_view["active_turn_id"] is None, "no session is stuck"
    assert await server.events(turn, after=seen[-1][0]) == whole[len(seen) :], "a reader goes on where it was"


async def test_turns_that_waited_when_the_server_was_killed_run_after_its_restart(serve):
    code = "import time\ndef agent(turn):\n    time.sleep(float(turn.message))\n    return 'slept'\n"
    server = await serve(TOML, agents={"mine": code})
    running = [await server.turn("600", agent="mine") for _ in range(2)]
    for turn in running:
        await server.wait_state(turn, "running")
    waiting = [await server.turn("0", agent="mine") for _ in range(3)]
    server.kill()
    await server.start()
    for turn in running:
        assert check_whole(await server.events(turn))["state"] == "lost"
    for turn in waiting:
        assert text(await server.events(turn)) == "slept"
        assert await server.state(turn) == "done"


async def test_a_cancel_that_was_accepted_outlives_the_server(serve):
    code = """
    import signal, time
    def agent(turn):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        turn.token("x")
        while True:
            try:
                time.sleep(60)
            except BaseException:
                pass
    """
    server = await serve(TOML, agents={"mine": code})
    running = [await server.turn("go", agent="mine") for _ in range(2)]
    for turn in running:
        await server.wait_state(turn, "running")
    waiting = await server.turn("go", agent="mine")
    assert (await server.call("POST", f"/v1/turns/{running[0]}/cancel", status=202))["state"] == "cancelling"
    assert (await server.call("POST", f"/v1/turns/{waiting}/cancel", status=202))["state"] == "cancelled"
    server.kill()
    await server.start()
    states = [check_whole(await server.events(turn))["state"] for turn in (*running, waiting)]
    assert states == ["cancelled", "lost", "cancelled"]


async def test_sigterm_stops_running_turns_and_keeps_what_they_said(serve, tmp_path):
    server = await serve(TOML, agents={"mine": COUNTING})
    marker = f"child-of-stopped-{tmp_path.name}"
    session = await server.session(agent="mine")
    turn = await server.turn(marker, session=session)
    seen: list = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(read_until_cut, server, turn, seen)
        with trio.fail_after(30):
            while len(seen) < 10:
                await trio.sleep(0.01)
        assert await server.stop() == 0
    assert check_whole(seen)["state"] == "cancelled", "its readers see the end before the server goes"
    assert processes_with(marker) == []
    await server.start()
    assert await server.events(turn) == seen
    last = (await server.call("GET", f"/v1/sessions/{session}"))["messages"][-1]
    assert (last["content"], last["partial"]) == (text(seen), True)


async def test_sigterm_lets_a_turn_finish_that_is_almost_done(serve):
    code = "import time\ndef agent(turn):\n    turn.token('a')\n    time.sleep(0.5)\n    turn.token('b')\n"
    server = await serve(TOML.replace("drain_s = 0.2", "drain_s = 30"), agents={"mine": code})
    turn = await server.turn("go", agent="mine")
    await server.wait_state(turn, "running")
    assert await server.stop() == 0
    await server.start()
    events = await server.events(turn)
    assert (check_whole(events)["state"], text(events)) == ("done", "ab")


async def test_a_server_that_stops_takes_no_new_turns(serve):
    code = "import time\ndef agent(turn):\n    turn.token('a')\n    time.sleep(2)\n"
    server = await serve(TOML.replace("drain_s = 0.2", "drain_s = 30"), agents={"mine": code})
    session = await server.session(agent="mine")
    turn = await server.turn("go", agent="mine")
    await server.wait_state(turn, "running")
    assert server.process
    server.process.terminate()
    with trio.fail_after(10):
        while (await server.call("GET", "/v1/health"))["status"] != "draining":
            await trio.sleep(0.01)
    problem = await server.call("POST", f"/v1/sessions/{session}/turns", {"message": "x"}, status=503)
    assert problem["code"] == "draining"
    assert await server.wait() == 0


async def test_thirty_kills_under_load_lose_nothing_and_double_nothing(serve, tmp_path):
    """Readers follow six sessions through thirty deaths of their server, each at a moment nobody chose."""
    code = """
    import time
    def agent(turn):
        for n in range(int(turn.message)):
            turn.token(f"{n} ")
            if n % 7 == 0:
                time.sleep(0.004)
    """
    server = await serve(TOML.replace("concurrent_max = 2", "concurrent_max = 6"), agents={"mine": code})
    rng = random.Random(20261122)
    seen: dict[str, list] = {}
    said: dict[str, int] = {}
    sessions = [await server.session(agent="mine") for _ in range(6)]
    up = trio.Event()
    up.set()
    over = False

    async def follow(turn: str) -> None:
        while not (seen[turn] and seen[turn][-1][1] == "stream_end"):
            await up.wait()
            await read_until_cut(server, turn, seen[turn])
            await trio.sleep(0.01)

    async def talk(session: str) -> None:
        """One turn after another, as long as the killing goes on."""
        while not over:
            await up.wait()
            count = rng.randrange(5, 200)
            try:
                turn = await server.turn(str(count), session=session, on_busy="queue")
            except (httpx.HTTPError, OSError):
                continue  # not acknowledged: it may be there or not
            said[turn], seen[turn] = count, []
            await follow(turn)

    async with trio.open_nursery() as nursery:
        for session in sessions:
            nursery.start_soon(talk, session)
        for _ in range(30):
            # Measured in what readers have got, so that a busy machine is hit at the same kinds of moments.
            goal = sum(map(len, seen.values())) + rng.choice([0, 1, rng.randrange(2, 600)])
            with trio.move_on_after(20):
                while sum(map(len, seen.values())) < goal:
                    await trio.sleep(0.001)
            up = trio.Event()
            server.kill()
            await server.start()
            up.set()
        over = True
    endings = set()
    for turn, count in said.items():
        whole = await server.events(turn)
        end = check_whole(whole)
        endings.add(end["state"])
        assert seen[turn] == whole, "a reader that followed through every death has each event once, in order"
        length = len(text(whole).split())
        assert text(whole) == counted(length)
        assert end["state"] in ("done", "lost")
        assert length == count if end["state"] == "done" else length <= count
    assert endings == {"done", "lost"}, "some were hit and some were not"
    for session in sessions:
        view = await server.call("GET", f"/v1/sessions/{session}")
        assert view["active_turn_id"] is None
        spoken = [m for m in view["messages"] if m["role"] == "user"]
        assert len({m["turn_id"] for m in spoken}) == len(spoken), "no message is there twice"
