"""Turns forked from launchers: real processes, held from the supervisor's side."""

from __future__ import annotations

import json
import os
import signal
import textwrap
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from hermetic.protocol import PROTOCOL_VERSION, launch
from hermetic.protocol.commands import Answer, Start
from hermetic.protocol.control import Exited, Spawned
from hermetic.protocol.errors import AgentError, HermeticError, HostError
from hermetic.protocol.framing import event_decoder
from hermetic.supervisor import launchers as module
from hermetic.supervisor.child import Child, open_child
from hermetic.supervisor.launchers import DEATHS_MAX, Budget, Launch, Launchers
from hermetic.supervisor.seal_policy import TREE

PATIENCE_S = 30.0
WALK = launch.Policy()
NAMESPACES = launch.Policy(optional=list(TREE))
STAYS = """
    import time
    def agent(turn):
        turn.token("on")
        time.sleep(600)
"""


class Host:
    """Launchers, and a folder with an agent's code in it."""

    def __init__(self, launchers: Launchers, folder: Path) -> None:
        self.launchers = launchers
        self.folder = folder

    def write(self, name: str, code: str) -> Path:
        path = self.folder / f"{name}.py"
        path.write_text(textwrap.dedent(code))
        return path

    def launch(self, **more) -> Launch:
        base = {
            "agent": "mine",
            "profile": "default",
            "environment": {"PATH": os.environ["PATH"]},
            "python_path": [str(self.folder)],
            "policy": NAMESPACES,
        }
        return Launch(**(base | more))

    @asynccontextmanager
    async def child(self, launch_: Launch, target: str = "given:agent"):
        """A turn that has been given its Start."""
        spawn = launch.Spawn(turn_id="t", workspace=str(self.folder), environment={"TERMINAL_CWD": str(self.folder)})
        with trio.fail_after(PATIENCE_S):
            async with open_child(self.launchers, launch_, spawn) as child:
                command = Start(
                    protocol=PROTOCOL_VERSION,
                    turn_id="t",
                    session_id="0123456789ab",
                    message="go",
                    workspace=str(self.folder),
                    adapter="function",
                    target=target,
                    python_path=[str(self.folder)],
                )
                try:
                    await child.send(command)
                except trio.BrokenResourceError:
                    pass
                yield child

    async def said(self, launch_: Launch, target: str = "given:agent") -> str:
        """What the agent says in one whole turn."""
        async with self.child(launch_, target) as child:
            text, _ = await read(child)
            spawned, exited = await child.report(), await child.report()
            assert isinstance(spawned, Spawned) and exited == Exited(exit_code=0), exited
            return text

    def current(self) -> list[module.Launcher]:
        return [slot.current for slot in self.launchers._slots.values() if slot.current]


async def read(child: Child, until: str | None = None) -> tuple[str, list]:
    """To the end of the stream, or until the text has come."""
    decoder, heard = event_decoder(), []
    text = ""
    while until is None or until not in text:
        data = await child.events.receive_some(65536)
        if not data:
            break
        heard += [event for _, event in decoder.feed(bytes(data))]
        text = "".join(event.text for event in heard if type(event).__name__ == "Token")
    return text, heard


@pytest.fixture
async def host(tmp_path):
    async with hosted(tmp_path) as made:
        yield made


@asynccontextmanager
async def hosted(folder, **settings):
    async with trio.open_nursery() as nursery:
        yield Host(Launchers(nursery, **({"ready_s": PATIENCE_S, "turns_max": 1000, "idle_max": 8} | settings)), folder)
        nursery.cancel_scope.cancel()


def gone(pid: int) -> bool:
    """Also as a zombie that nobody but the reaper of all orphans can collect."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


async def wait_gone(*pids: int) -> None:
    with trio.fail_after(5):
        while not all(map(gone, pids)):
            await trio.sleep(0.005)


def below(pid: int) -> set[int]:
    """All processes that descend from it."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                pass
    found, more = set(), {pid}
    while more := {child for child, parent in parents.items() if parent in more} - found:
        found |= more
    return found


async def wait_standbys(launcher: module.Launcher, processes: int) -> set[int]:
    with trio.fail_after(10):
        while len(found := below(launcher.pid)) != processes:
            await trio.sleep(0.005)
    return found


# --- one launcher -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", [NAMESPACES, WALK], ids=["namespaces", "walk"])
@pytest.mark.parametrize("standby", [0, 2])
async def test_turns_of_one_launcher_are_strangers_to_each_other(host, policy, standby):
    host.write("given", """
        import json, os, random, uuid
        seen = []
        def agent(turn):
            seen.append(1)
            env = {name: os.environ[name] for name in ("OF_THE_PROFILE", "TERMINAL_CWD")}
            fds = len(os.listdir("/proc/self/fd"))
            return json.dumps([len(seen), random.random(), str(uuid.uuid4()), env, fds])
    """)  # fmt: skip
    launch_ = host.launch(
        policy=policy, standby=standby, preload=["given"], environment={"PATH": "/bin", "OF_THE_PROFILE": "x"}
    )
    said = [json.loads(await host.said(launch_)) for _ in range(4)]
    assert [one[0] for one in said] == [1] * 4, "what a turn leaves in a module is gone with it"
    assert len({one[1] for one in said}) == len({one[2] for one in said}) == 4
    assert all(one[3] == {"OF_THE_PROFILE": "x", "TERMINAL_CWD": str(host.folder)} for one in said)
    assert {one[4] for one in said} == {6}, "three standard descriptors, two streams, and the listing's own"
    [launcher] = host.current()
    assert launcher.turns == 4, "one launcher for all of them"


async def test_preloaded_modules_are_not_imported_again(host):
    host.write("slow", "import os\npid = os.getpid()\n")
    host.write("given", "import os, slow\ndef agent(turn):\n    return f'{slow.pid} {os.getppid()}'\n")
    imported_by, _ = (await host.said(host.launch(preload=["slow"]))).split()
    assert int(imported_by) == host.current()[0].pid


async def test_a_garbage_collection_and_threads_work_in_a_turn(host):
    host.write("given", """
        import gc, threading, asyncio
        def agent(turn):
            class Knot: pass
            knot = Knot(); knot.self = knot; del knot
            said = []
            thread = threading.Thread(target=lambda: said.append(asyncio.run(asyncio.sleep(0, "from a thread"))))
            thread.start(); thread.join()
            return f"{gc.isenabled()} {gc.collect() > 0} {said[0]}"
    """)  # fmt: skip
    assert await host.said(host.launch()) == "True True from a thread"


async def test_a_module_that_starts_a_thread_is_refused_with_its_name(host):
    host.write("given", "def agent(): return 'x'")
    host.write("threaded", """
        import threading, time
        threading.Thread(target=time.sleep, args=(600,), name="its-thread", daemon=True).start()
    """)  # fmt: skip
    with pytest.raises(HostError, match=r'"threaded" starts a thread .*its-thread') as caught:
        await host.said(host.launch(preload=["json", "threaded"]))
    assert "preload" in caught.value.hint


async def test_a_module_that_keeps_a_file_open_is_refused_with_its_name(host):
    host.write("given", "def agent(): return 'x'")
    host.write("opening", f"file = open({str(host.folder / 'log')!r}, 'w')")
    with pytest.raises(HostError, match=r'"opening" keeps a file or socket open .*/log'):
        await host.said(host.launch(preload=["opening"]))


@pytest.mark.parametrize(
    ("code", "kind", "message"),
    [
        (None, HostError, 'preloading the module "broken" failed: ModuleNotFoundError'),
        ("1 / 0", AgentError, 'preloading the module "broken" failed: ZeroDivisionError: division by zero'),
        ("import nowhere_at_all", AgentError, "No module named 'nowhere_at_all'"),
        ("raise SystemExit(3)", AgentError, "SystemExit: 3"),
        ("import os; os._exit(4)", HostError, "ended with exit code 4 before it was ready"),
        ("import os; os.kill(os.getpid(), 9)", HostError, "was killed by signal 9 before it was ready"),
    ],
)
async def test_a_preload_that_fails_names_the_module_and_the_error(host, code, kind, message):
    if code is not None:
        host.write("broken", code)
    with pytest.raises(kind, match=message):
        await host.said(host.launch(preload=["broken"]))


async def test_a_launcher_that_is_not_ready_in_time_is_ended(tmp_path):
    async with hosted(tmp_path, ready_s=0.5) as host:
        host.write("slow", "import time; time.sleep(600)")
        with pytest.raises(HostError, match=r"not ready within turns\.ready_s = 0\.5 s"):
            await host.said(host.launch(preload=["slow"]))


async def test_an_interpreter_that_is_none_is_an_error_that_names_the_setting(host):
    with pytest.raises(HostError, match="the agent's interpreter cannot be started") as caught:
        await host.said(host.launch(interpreter="/there/is/no/python"))
    assert "`interpreter`" in caught.value.hint


# --- which launcher -----------------------------------------------------------------------------------------------


async def test_what_differs_never_shares_a_launcher(host):
    host.write("given", "import os\ndef agent(): return f'{os.environ.get(\"WHO\")}'")
    one = host.launch(profile="one", environment={"WHO": "one"})
    two = host.launch(profile="two", environment={"WHO": "two"})
    assert [await host.said(launch_) for launch_ in (one, two, one, two)] == ["one", "two", "one", "two"]
    await host.said(host.launch(profile="one", environment={"WHO": "one"}, policy=WALK))
    await host.said(host.launch(profile="one", environment={"WHO": "one"}, agent="another"))
    assert len({launcher.pid for launcher in host.current()}) == 4
    for launcher, who in zip(host.current(), ["one", "two"], strict=False):
        environ = Path(f"/proc/{launcher.pid}/environ").read_bytes()
        assert f"WHO={who}\0".encode() in environ and environ.count(b"WHO=") == 1


async def test_another_environment_is_for_the_next_turn_and_a_running_one_keeps_its_own(host):
    host.write("given", """
        import os
        def agent(turn):
            turn.token("on ")
            answer = turn.clarify("?")
            return os.environ["KEY"]
    """)  # fmt: skip
    host.write("quick", "import os\ndef agent(): return os.environ['KEY']")
    old, new = (host.launch(environment={"KEY": key}) for key in ("old", "new"))
    async with host.child(old) as child:
        await read(child, until="on ")
        [launcher] = host.current()
        assert await host.said(new, "quick:agent") == "new"
        assert not launcher.ended.is_set(), "it has a turn to end"
        await child.send(Answer(clarify_id="clarify-1", text="go on"))
        text, _ = await read(child)
        assert text == "old"
    with trio.fail_after(PATIENCE_S):
        await launcher.ended.wait()


async def test_code_that_is_edited_after_it_was_preloaded_is_new_in_the_next_turn(host):
    host.write("given", "def agent(): return 'first'")
    launch_ = host.launch(preload=["given"], standby=1)
    assert await host.said(launch_) == "first"
    [launcher] = host.current()
    await wait_standbys(launcher, 2)
    host.write("given", "def agent(): return 'the second'")
    assert await host.said(launch_) == "the second"
    assert await host.said(launch_) == "the second"
    with trio.fail_after(PATIENCE_S):
        await launcher.ended.wait()


async def test_a_watched_file_that_appears_makes_the_launcher_old(host):
    host.write("given", "import os\ndef agent(): return str(os.getppid())")
    launch_ = host.launch(watch=[str(host.folder / ".env")])
    await host.said(launch_)
    [first] = host.current()
    await host.said(launch_)
    assert host.current() == [first]
    (host.folder / ".env").write_text("A=1")
    await host.said(launch_)
    assert host.current() != [first]


async def test_after_its_number_of_turns_a_launcher_is_replaced_without_a_wait(tmp_path):
    async with hosted(tmp_path, turns_max=3) as host:
        host.write("given", "def agent(): return 'x'")
        pids = set()
        with trio.fail_after(PATIENCE_S):
            while len(pids) < 3:
                await host.said(host.launch())
                pids |= {launcher.pid for launcher in host.current()}
        [current] = host.current()
        await wait_gone(*(pids - {current.pid}))


async def test_launchers_that_are_idle_are_bounded_and_the_last_used_stay(tmp_path):
    async with hosted(tmp_path, idle_max=2) as host:
        host.write("given", "def agent(): return 'x'")
        for profile in ("a", "b", "a", "c"):
            await host.said(host.launch(profile=profile))
        assert {launcher.launch.profile for launcher in host.current()} == {"a", "c"}


# --- death --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", [NAMESPACES, WALK], ids=["namespaces", "walk"])
async def test_a_launcher_that_is_killed_takes_its_turns_along_and_the_next_turn_works(host, policy):
    host.write("given", STAYS)
    host.write("quick", "def agent(): return 'x'")
    launch_ = host.launch(policy=policy, standby=1)
    async with host.child(launch_) as one, host.child(launch_) as two:
        pids = []
        for child in (one, two):
            await read(child, until="on")
            spawned = await child.report()
            pids += [spawned.pid, spawned.init_pid]
        [launcher] = host.current()
        everyone = below(launcher.pid)
        os.kill(launcher.pid, signal.SIGKILL)
        for child in (one, two):
            assert await child.report() is None
            assert "was killed by signal 9 while this turn ran" in await child.wait_exited()
        await wait_gone(*pids, *everyone)
    assert await host.said(launch_, "quick:agent") == "x"


async def test_a_launcher_that_keeps_dying_is_given_up_and_tried_again_later(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "BACKOFF_S", 0.001)
    marker = tmp_path / "starts"
    async with hosted(tmp_path) as host:
        host.write("broken", f"open({str(marker)!r}, 'a').write('x')\n1 / 0")
        for _ in range(DEATHS_MAX + 3):
            with pytest.raises(HermeticError, match="ZeroDivisionError"):
                await host.said(host.launch(preload=["broken"]))
        assert len(marker.read_text()) == DEATHS_MAX
        monkeypatch.setattr(module, "DEATHS_S", 0.0)
        host.write("broken", "")
        host.write("given", "def agent(): return 'mended'")
        assert await host.said(host.launch(preload=["broken"])) == "mended"


def test_a_budget_waits_longer_after_each_death_gives_up_and_forgets():
    budget = Budget()
    assert budget.start_at() == 0 and not budget.given_up(0)
    waits = []
    for n in range(DEATHS_MAX):
        budget.died(10.0 + n, HostError("why"))
        waits.append(round(budget.start_at() - 10 - n, 3))
    assert waits == [0.1, 0.2, 0.4, 0.8, 1.6]
    assert budget.given_up(15) and not budget.given_up(10 + module.DEATHS_S)
    budget.lived()
    assert not budget.given_up(15) and budget.start_at() == 0


async def test_nothing_is_left_when_the_launchers_are_ended(tmp_path):
    async with hosted(tmp_path) as host:
        host.write("given", "def agent(): return 'x'")
        for policy in (NAMESPACES, WALK):
            await host.said(host.launch(policy=policy, standby=2))
        everyone = {launcher.pid for launcher in host.current()}
        for launcher, processes in zip(host.current(), (4, 6), strict=True):
            everyone |= await wait_standbys(launcher, processes)
    await wait_gone(*everyone)


# --- standbys -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", [NAMESPACES, WALK], ids=["namespaces", "walk"])
async def test_a_standby_is_used_once_and_another_is_forked(host, policy):
    host.write("given", STAYS)
    launch_ = host.launch(policy=policy, standby=1)
    processes = 2 if policy is NAMESPACES else 3
    async with host.child(launch_) as first:
        await read(first, until="on")
        [launcher] = host.current()
        before = await wait_standbys(launcher, 2 * processes)
        used = (await first.report()).pid
        async with host.child(launch_) as second:
            await read(second, until="on")
            spawned = await second.report()
            assert spawned.pid in before and spawned.pid != used, "it was forked before its turn was known"
            after = await wait_standbys(launcher, 3 * processes)
            assert before < after


@pytest.mark.parametrize("which", [min, max], ids=["init", "agent"])
async def test_a_standby_that_dies_is_nobodys_loss(host, which):
    host.write("given", "def agent(): return 'x'")
    launch_ = host.launch(standby=1)
    await host.said(launch_)
    [launcher] = host.current()
    for _ in range(3):
        standby = await wait_standbys(launcher, 2)
        os.kill(which(standby), signal.SIGKILL)
        await wait_gone(*standby)
        assert await host.said(launch_) == "x"
    assert host.current() == [launcher]


async def test_a_standby_that_dies_with_its_turn_in_hand_is_replaced(host):
    """Stopped, so that it cannot begin; killed when the turn is in its socket."""
    host.write("given", "def agent(): return 'x'")
    launch_ = host.launch(standby=1)
    await host.said(launch_)
    [launcher] = host.current()
    standby = await wait_standbys(launcher, 2)
    os.kill(min(standby), signal.SIGSTOP)
    async with host.child(launch_) as child:
        with trio.move_on_after(0.3):
            await child.report()
            raise AssertionError("a stopped process has begun a turn")
        os.kill(min(standby), signal.SIGKILL)
        text, _ = await read(child)
        assert text == "x"


# --- many, and cancelled ------------------------------------------------------------------------------------------


async def test_fifty_turns_at_once_and_then_nothing_is_left_open(host):
    host.write("given", "def agent(turn): return turn.message")
    launch_ = host.launch(standby=1)
    await host.said(launch_)
    [launcher] = host.current()
    await wait_standbys(launcher, 2)

    def descriptors() -> tuple[int, int]:
        return len(os.listdir(f"/proc/{launcher.pid}/fd")), len(os.listdir("/proc/self/fd"))

    before = descriptors()
    said = []

    async def turn():
        said.append(await host.said(launch_))

    for _ in range(2):
        async with trio.open_nursery() as nursery:
            for _ in range(50):
                nursery.start_soon(turn)
    assert said == ["go"] * 100
    await wait_standbys(launcher, 2)
    with trio.fail_after(5):
        while descriptors() != before:
            await trio.sleep(0.01)


@pytest.mark.parametrize("number", range(1, 8))
async def test_a_turn_that_is_cancelled_while_it_is_spawned_leaves_nothing(host, number):
    host.write("given", STAYS)
    launch_ = host.launch()
    async with host.child(launch_):
        pass
    [launcher] = host.current()
    await wait_standbys(launcher, 0)
    fds = len(os.listdir("/proc/self/fd"))
    with trio.CancelScope() as scope:

        class Count(trio.abc.Instrument):
            steps = 0

            def before_task_step(self, task):
                if task is here:
                    self.steps += 1
                    if self.steps == number:
                        scope.cancel()

        here = trio.lowlevel.current_task()
        instrument = Count()
        trio.lowlevel.add_instrument(instrument)
        try:
            async with host.child(launch_) as child:
                await child.report()
                await trio.sleep_forever()
        finally:
            trio.lowlevel.remove_instrument(instrument)
    assert scope.cancelled_caught
    await wait_standbys(launcher, 0)
    assert len(os.listdir("/proc/self/fd")) == fds and launcher.running == 0


async def test_a_launcher_that_was_stopped_does_not_hold_up_the_end_of_a_turn(host, monkeypatch):
    monkeypatch.setattr("hermetic.supervisor.child.KILL_S", 0.2)
    host.write("given", STAYS)
    host.write("quick", "def agent(): return 'x'")
    async with host.child(host.launch()) as child:
        await read(child, until="on")
        spawned = await child.report()
        [launcher] = host.current()
        os.kill(launcher.pid, signal.SIGSTOP)
    await wait_gone(spawned.pid)
    assert await host.said(host.launch(), "quick:agent") == "x", "by another launcher"


@pytest.mark.parametrize("standby", [0, 1])
@pytest.mark.parametrize("tree", [["pid_namespace"], []], ids=["namespace", "walk"])
async def test_a_required_mechanism_that_cannot_be_had_refuses_every_turn(host, tree, standby):
    host.write("given", "def agent(): return 'x'")
    policy = launch.Policy(mechanisms=[*tree, "cgroup_memory"])  # without any folder to make one in
    for _ in range(3):
        async with host.child(host.launch(policy=policy, standby=standby)) as child:
            text, heard = await read(child)
            report = await child.report()
            assert isinstance(report, Exited) and report.refused and "cgroup_memory" in report.refused
            assert (text, heard) == ("", [])


async def test_a_required_namespace_that_cannot_be_had_is_no_launcher_at_all(host):
    policy = launch.Policy(mechanisms=["pid_namespace"])
    program = "import os, resource; resource.setrlimit(resource.RLIMIT_NPROC, (0, 0)); os.setuid(65534)"
    host.write("poor", program)
    with pytest.raises(HostError, match="the seal cannot be made"):
        await host.said(host.launch(policy=policy, preload=["poor"]))
