"""The start of a turn's child: how long until it is ready, how many a second, what it costs in CPU and memory (targets
1 to 4).

Warm turns are forked from a launcher when they are asked for, standbys before. Heavy ones have an SDK preloaded, or the
real hermes-agent where its environment is there (`make test` makes it). Sealed is level 3, as far as the host gives it.
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from subprocess import PIPE
from tempfile import TemporaryDirectory
from typing import NamedTuple

import trio
from msgspec import structs

from bench import probe
from bench.report import Goal, Report, Row, Size, main, ratios, say
from bench.servers import ROOT
from hermetic.protocol import PROTOCOL_VERSION
from hermetic.protocol.commands import Start
from hermetic.protocol.control import Spawned
from hermetic.protocol.errors import HermeticError
from hermetic.protocol.launch import Policy, Spawn
from hermetic.supervisor.child import Child, open_child
from hermetic.supervisor.config import DEMO, Config, Profile, Seal
from hermetic.supervisor.launchers import Launch, Launchers
from hermetic.supervisor.seal_policy import TREE
from hermetic.supervisor.sealing import Sealing, open_sealing

CTRUE, PYTHON, OURS = "ctrue (C)", "cold python -c 'import msgspec'", "hermetic, cold"
SDK = "openai"
HERMES = ROOT / ".cache" / "hermes-venv" / "bin" / "python"
HERMES_MODULE = "run_agent"
ENVIRONMENT = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8"}
AT_A_TIME = 4
REST_S = 0.06
"""Before a turn that is to find a standby: longer than a launcher's IDLE_MS and a fork."""

Starter = Callable[[], AbstractAsyncContextManager[None]]
"""Entered: the first line is there. Left: the process is gone."""


class Contestant(NamedTuple):
    starter: Starter
    slow: bool = False
    """A fifth of the starts."""
    rests: bool = False


class Sizes(NamedTuple):
    rounds: int
    starts: int
    """Per round and contestant, one after the other."""
    burst: int
    """Per round and contestant, AT_A_TIME."""
    children: int
    """Alive at once, for their memory."""


SIZES: dict[Size, Sizes] = {
    "tiny": Sizes(1, 1, 4, 2),
    "quick": Sizes(3, 5, 12, 5),
    "full": Sizes(5, 15, 40, 20),
}


def measure(size: Size) -> Report:
    with TemporaryDirectory(prefix="hermetic-bench-") as folder:
        ctrue = _compiled(Path(folder))
        return trio.run(_measure, SIZES[size], ctrue, folder)


async def _measure(sizes: Sizes, ctrue: Path | None, folder: str) -> Report:
    async with (
        open_sealing(Config(seal=Seal()), insecure=True) as sealing,
        trio.open_nursery() as nursery,
    ):
        launchers = Launchers(nursery, ready_s=60.0, turns_max=1_000_000, idle_max=100)
        try:
            return await _measured(sizes, ctrue, os.path.realpath(folder), launchers, sealing)
        finally:
            nursery.cancel_scope.cancel()


async def _measured(sizes: Sizes, ctrue: Path | None, folder: str, launchers: Launchers, sealing: Sealing) -> Report:
    contestants: dict[str, Contestant] = {}
    if ctrue:
        contestants[CTRUE] = Contestant(lambda: _process([str(ctrue)]))
    contestants[PYTHON] = Contestant(
        lambda: _process([sys.executable, "-I", "-c", "import msgspec; print('ready', flush=True)"]), slow=True
    )

    def ours(name: str, launch_: Launch, *, slow: bool = False) -> None:
        started = partial(_child, launchers, structs.replace(launch_, agent=name), str(workspace))
        contestants[name] = Contestant(started, slow=slow, rests=launch_.standby > 0)

    workspace = Path(folder, "workspace")
    workspace.mkdir()
    plain = Launch(agent="", profile="bench", environment=ENVIRONMENT, policy=Policy(optional=list(TREE)))
    ours(OURS, structs.replace(plain, cold=True), slow=True)
    for what, modules in ("light", []), ("heavy", [SDK]):
        for standby, how in (0, "warm"), (1, "standby"):
            ours(f"hermetic, {how}, {what}", structs.replace(plain, preload=modules, standby=standby))
    policy = sealing.policy(Config(), DEMO, Profile(), home=Path(folder, "home"), tenant_number=0)
    sealed = structs.replace(plain, policy=policy)
    level = sealing.seal.level
    for what, modules in ("light", []), ("heavy", [SDK]):
        for standby, how in (0, "warm"), (1, "standby"):
            ours(f"hermetic, sealed at level {level}, {how}, {what}",
                 structs.replace(sealed, preload=modules, standby=standby))  # fmt: skip
    notes = [] if ctrue else ["There is no C compiler (`gcc` or `cc`): the rows of ctrue are missing."]
    cold_sdk = [sys.executable, "-I", "-c", f"import msgspec, {SDK}; print('ready', flush=True)"]
    heavy = f"cold python -c 'import {SDK}'"
    contestants[heavy] = Contestant(lambda: _process(cold_sdk), slow=True)
    if HERMES.exists() and sizes.starts > 1:
        hermes = structs.replace(plain, interpreter=str(HERMES), preload=[HERMES_MODULE])
        for standby, how in (0, "warm"), (1, "standby"):
            ours(f"hermetic, {how}, hermes-agent", structs.replace(hermes, standby=standby))
    else:
        notes.append("There is no environment with hermes-agent, or no time for it: its rows are missing.")
    first: dict[str, list[float]] = {who: [] for who in contestants}
    rate: dict[str, list[float]] = {who: [] for who in contestants}
    cpu: dict[str, list[float]] = {who: [] for who in contestants}
    for who, contestant in list(contestants.items()):
        try:
            async with contestant.starter():
                pass  # a launcher that is ready, pages of Python in memory
        except HermeticError as error:
            notes.append(f"{who}: {error}")
            for rows in (contestants, first, rate, cpu):
                del rows[who]
    for n in range(sizes.rounds):
        for who, contestant in contestants.items():
            fewer = 5 if contestant.slow else 1
            first[who].append(await _first_line_ms(contestant, max(sizes.starts // fewer, 1)))
            a_second, cpu_ms = await _burst(contestant.starter, max(sizes.burst // fewer, AT_A_TIME))
            rate[who].append(a_second)
            cpu[who].append(cpu_ms)
            say(f"start, round {n + 1}: {who} {first[who][-1]:.2f} ms, {a_second:.1f}/s")
    rows = [Row("spawn → first line", who, "ms", values) for who, values in first.items()]
    rows += [Row(f"starts, {AT_A_TIME} at a time", who, "1/s", values) for who, values in rate.items()]
    rows += [Row("CPU of a start, all processes of it and the supervisor's part", who, "ms", values)
             for who, values in cpu.items()]  # fmt: skip
    what = f"PSS of a process, {sizes.children} alive, after a collection"
    python, python_sdk = await _python_pss(sizes.children, ""), await _python_pss(sizes.children, SDK)
    pss = {}
    for weight, modules in ("light", []), ("heavy", [SDK]):
        launch_ = structs.replace(plain, agent=f"pss {weight}", preload=modules)
        pss[weight] = await _our_pss(launchers, launch_, sizes.children, folder)
        rows.append(Row(what, f"hermetic, warm, {weight}: the agent", "MiB", [pss[weight][0]]))
        rows.append(Row(what, f"hermetic, warm, {weight}: init + agent", "MiB", [pss[weight][1]]))
    rows += [Row(what, PYTHON, "MiB", [python]), Row(what, f"cold python -c 'import {SDK}'", "MiB", [python_sdk])]

    def first_ratios(who: str, than: str) -> list[float] | None:
        return ratios(_row(first, who), _row(first, than)) if who in first and than in first else None

    def rate_ratios(who: str, than: str) -> list[float] | None:
        return ratios(_row(rate, who), _row(rate, than)) if who in rate and than in rate else None

    goals = [
        Goal(1, "warm, unsealed: first event ≤ 2.2 × ctrue", 2.2, first_ratios("hermetic, warm, light", CTRUE)),
        Goal(1, "forked standby: first event ≤ 1.0 × ctrue", 1.0, first_ratios("hermetic, standby, light", CTRUE)),
        Goal(1, "forked standby, heavy: first event ≤ 1.0 × ctrue", 1.0,
             first_ratios("hermetic, standby, heavy", CTRUE)),
        *([
            Goal(2, "warm and sealed at level 3: first event ≤ 8 × ctrue", 8,
                 first_ratios("hermetic, sealed at level 3, warm, light", CTRUE)),
            Goal(2, "warm and sealed, heavy: first event ≤ 1/50 of cold unsealed", 1 / 50,
                 first_ratios("hermetic, sealed at level 3, warm, heavy", heavy)),
            Goal(2, "sealed standby: first event ≤ 1.2 × ctrue", 1.2,
                 first_ratios("hermetic, sealed at level 3, standby, light", CTRUE)),
            Goal(3, "turns/s, 4 at a time, sealed ≥ 8 × cold unsealed", 8,
                 rate_ratios("hermetic, sealed at level 3, warm, light", OURS), at_least=True),
        ] if level == 3 else []),
        Goal(3, "turns/s, 4 at a time, unsealed ≥ 20 × cold", 20, rate_ratios("hermetic, warm, light", OURS),
             at_least=True),
        Goal(3, "turns/s, 4 at a time, unsealed ≥ 0.75 × ctrue", 0.75, rate_ratios("hermetic, warm, light", CTRUE),
             at_least=True),
        Goal(4, f"PSS of a child ≤ 0.3 × cold Python's ({sizes.children} children)", 0.3, [pss["light"][0] / python]),
        Goal(4, f"heavy: PSS of a child ≤ 0.12 × cold Python's ({sizes.children} children)", 0.12,
             [pss["heavy"][0] / python_sdk]),
    ]  # fmt: skip
    return Report("The start of a child", rows, goals, notes)


def _row(values: dict[str, list[float]], who: str) -> Row:
    return Row("", who, "", values[who])


def _compiled(folder: Path) -> Path | None:
    """None: there is no compiler here."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        return None
    made = folder / "ctrue"
    subprocess.run([compiler, "-O2", "-o", made, Path(__file__).with_name("ctrue.c")], check=True)
    return made


@asynccontextmanager
async def _process(argv: list[str]) -> AsyncIterator[None]:
    process = await trio.lowlevel.open_process(argv, stdin=PIPE, stdout=PIPE, stderr=PIPE, env=ENVIRONMENT, cwd="/")
    assert process.stdin and process.stdout and process.stderr
    try:
        if not await process.stdout.receive_some(4096):
            raise RuntimeError(f"{argv} said nothing")
        yield
    finally:
        await process.stdin.aclose()
        await process.wait()
        await process.stdout.aclose()
        await process.stderr.aclose()


@asynccontextmanager
async def _child(launchers: Launchers, launch_: Launch, workspace: str) -> AsyncIterator[None]:
    """As the supervisor starts one, to its Ready; the end of its commands ends it."""
    async with open_child(launchers, launch_, Spawn(turn_id="t", workspace=workspace)) as child:
        await _ready(child)
        yield
        await child.commands.aclose()
        while await child.report():
            pass


async def _ready(child: Child) -> None:
    data = await child.events.receive_some(4096)
    if b'"ready"' not in data:
        raise RuntimeError(f"no Ready but {bytes(data)!r}")


async def _first_line_ms(contestant: Contestant, count: int) -> float:
    taken = []
    for _ in range(count):
        if contestant.rests:
            await trio.sleep(REST_S)
        begun = time.perf_counter()
        async with contestant.starter():
            taken.append((time.perf_counter() - begun) * 1e3)
    return _middle(taken)


async def _burst(starter: Starter, count: int) -> tuple[float, float]:
    """→ starts per second, and CPU ms of each."""
    left = count

    async def worker() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            async with starter():
                pass

    cpu, begun = _cpu_with_children(), time.perf_counter()
    async with trio.open_nursery() as nursery:
        for _ in range(AT_A_TIME):
            nursery.start_soon(worker)
    taken = time.perf_counter() - begun
    return count / taken, (_cpu_with_children() - cpu) / count * 1e3


def _cpu_with_children() -> float:
    """Children count once they are reaped, with all that they have reaped; launchers count while they live."""
    own = sum(
        usage.ru_utime + usage.ru_stime
        for usage in (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
    )
    return own + sum(map(probe.cpu_with_children_s, probe.children(os.getpid())))


async def _python_pss(count: int, module: str) -> float:
    code = f"import gc, os, sys, msgspec{', ' + module if module else ''}; gc.collect(); print(os.getpid(), flush=True); sys.stdin.read()"
    async with AsyncExitStack() as stack:
        pids = []
        for _ in range(count):
            process = await trio.lowlevel.open_process(
                [sys.executable, "-I", "-c", code], stdin=PIPE, stdout=PIPE, env=ENVIRONMENT, cwd="/"
            )
            assert process.stdin and process.stdout
            stack.push_async_callback(process.wait)
            stack.push_async_callback(process.stdin.aclose)
            stack.push_async_callback(process.stdout.aclose)
            pids.append(int(await process.stdout.receive_some(64)))
        return sum(map(probe.pss_kib, pids)) / count / 1024


async def _our_pss(launchers: Launchers, launch_: Launch, count: int, folder: str) -> tuple[float, float]:
    """→ the agent's alone, and with the init that holds it."""
    start = Start(
        protocol=PROTOCOL_VERSION, turn_id="t", session_id="s", message="go", workspace=folder, history=[],
        attachments=[], agent="rest", profile="default", adapter="function", target="emitters:rest",
        python_path=[str(ROOT / "bench" / "agents")], model=None, options={}, frame_bytes_max=1 << 20,
        approval_s=60.0, grace_s=1.0,
    )  # fmt: skip
    async with AsyncExitStack() as stack:
        agents: list[int] = []
        others: list[int] = []
        for _ in range(count):
            child = await stack.enter_async_context(
                open_child(launchers, launch_, Spawn(turn_id="t", workspace=folder))
            )
            await _ready(child)
            report = await child.report()
            assert isinstance(report, Spawned)
            await child.send(start)
            if b"resting" not in (said := await child.events.receive_some(4096)):
                raise RuntimeError(f"the agent said {bytes(said)!r}")
            agents.append(report.pid)
            others.append(report.init_pid)
        agent = sum(map(probe.pss_kib, agents)) / count / 1024
        return agent, agent + sum(map(probe.pss_kib, others)) / count / 1024


def _middle(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


if __name__ == "__main__":
    main(measure, __doc__)
