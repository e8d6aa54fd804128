"""The start of a child: how long until it is ready, how many a second, what it costs in CPU and memory (targets 1 to 4).

Children are started cold as yet: keeper → init → agent, each turn a new interpreter. There is no warm launcher, no
standby and no full seal, so targets 1 to 3 have nothing to measure; what they would be compared with is measured.
"""

from __future__ import annotations

import resource
import shutil
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path
from subprocess import PIPE
from tempfile import TemporaryDirectory
from typing import NamedTuple

import trio

from bench import probe
from bench.report import Goal, Report, Row, Size, main, ratios, say
from bench.servers import ROOT
from hermetic.protocol import PROTOCOL_VERSION
from hermetic.protocol.commands import Start
from hermetic.protocol.control import Spawned
from hermetic.supervisor.child import Child, open_child

CTRUE, PYTHON, OURS = "ctrue (C)", "cold python -c 'import msgspec'", "hermetic, cold"
ENVIRONMENT = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8"}
AT_A_TIME = 4

Starter = Callable[[], AbstractAsyncContextManager[None]]
"""Entered: the first line is there. Left: the process is gone."""


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
    starters: dict[str, Starter] = {}
    if ctrue:
        starters[CTRUE] = lambda: _process([str(ctrue)])
    starters[PYTHON] = lambda: _process([sys.executable, "-I", "-c", "import msgspec; print('ready', flush=True)"])
    starters[OURS] = _cold_child
    first: dict[str, list[float]] = {who: [] for who in starters}
    rate: dict[str, list[float]] = {who: [] for who in starters}
    cpu: dict[str, list[float]] = {who: [] for who in starters}
    for n in range(sizes.rounds):
        for who, starter in starters.items():
            first[who].append(await _first_line_ms(starter, sizes.starts))
            a_second, cpu_ms = await _burst(starter, sizes.burst)
            rate[who].append(a_second)
            cpu[who].append(cpu_ms)
            say(f"start, round {n + 1}: {who} {first[who][-1]:.2f} ms, {a_second:.1f}/s")
    rows = [Row("spawn → first line", who, "ms", values) for who, values in first.items()]
    rows += [Row(f"starts, {AT_A_TIME} at a time", who, "1/s", values) for who, values in rate.items()]
    rows += [Row("CPU of a start, all processes of it and the supervisor's part", who, "ms", values)
             for who, values in cpu.items()]  # fmt: skip
    python, (agent, tree) = await _python_pss(sizes.children), await _our_pss(sizes.children, folder)
    rows += [
        Row(f"PSS of a process, {sizes.children} alive, after a collection", PYTHON, "MiB", [python]),
        Row(f"PSS of a process, {sizes.children} alive, after a collection", f"{OURS}: the agent", "MiB", [agent]),
        Row(
            f"PSS of a process, {sizes.children} alive, after a collection",
            f"{OURS}: keeper + init + agent",
            "MiB",
            [tree],
        ),
    ]
    notes = [] if ctrue else ["There is no C compiler (`gcc` or `cc`): the rows of ctrue are missing."]
    of = {row.who: row for row in rows if row.what == "spawn → first line"}
    now = f"cold it is {_middle(ratios(of[OURS], of[CTRUE])):.0f} × ctrue" if ctrue else "cold is all there is"
    needs = "needs the launcher (not built)"
    goals = [
        Goal(1, "warm, unsealed: first event ≤ 2.2 × ctrue", 2.2, None, note=f"{needs}; {now}"),
        Goal(1, "forked standby: first event ≤ 1.0 × ctrue", 1.0, None, note=needs),
        Goal(2, "warm and sealed at level 3: first event ≤ 8 × ctrue", 8, None, note="needs the launcher and the seal (not built)"),
        Goal(3, "turns/s, 4 at a time, unsealed ≥ 20 × cold and ≥ 0.75 × ctrue; sealed ≥ 8 × cold", 20, None, at_least=True, note=needs),
        Goal(4, f"PSS of a child ≤ 0.3 × cold Python's ({sizes.children} children)", 0.3, [agent / python], note=needs),
    ]  # fmt: skip
    return Report("The start of a child", rows, goals, notes)


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
async def _cold_child() -> AsyncIterator[None]:
    """As the supervisor starts one, to its Ready; the end of its commands ends it."""
    async with open_child(ENVIRONMENT) as child:
        await _ready(child)
        yield
        await child.commands.aclose()
        while await child.report():
            pass


async def _ready(child: Child) -> None:
    data = await child.events.receive_some(4096)
    if b'"ready"' not in data:
        raise RuntimeError(f"no Ready but {bytes(data)!r}")


async def _first_line_ms(starter: Starter, count: int) -> float:
    taken = []
    for _ in range(count):
        begun = time.perf_counter()
        async with starter():
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
    """Children count once they are reaped, with all that they have reaped."""
    return sum(
        usage.ru_utime + usage.ru_stime
        for usage in (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
    )


async def _python_pss(count: int) -> float:
    code = "import gc, os, sys, msgspec; gc.collect(); print(os.getpid(), flush=True); sys.stdin.read()"
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


async def _our_pss(count: int, folder: str) -> tuple[float, float]:
    """→ the agent's alone, and with the two processes that hold it."""
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
            child = await stack.enter_async_context(open_child(ENVIRONMENT))
            await _ready(child)
            report = await child.report()
            assert isinstance(report, Spawned)
            await child.send(start)
            if b"resting" not in (said := await child.events.receive_some(4096)):
                raise RuntimeError(f"the agent said {bytes(said)!r}")
            agents.append(report.pid)
            others += [report.init_pid, _parent(report.init_pid)]
        agent = sum(map(probe.pss_kib, agents)) / count / 1024
        return agent, agent + sum(map(probe.pss_kib, others)) / count / 1024


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def _middle(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


if __name__ == "__main__":
    main(measure, __doc__)
