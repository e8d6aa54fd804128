"""The contestants, each a server process that says events on request, with its own gate and its own load client."""

from __future__ import annotations

import http.client
import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bench import probe
from bench.gate import Gate
from bench.load import Load, Mark

ROOT = Path(__file__).parents[1]
READY_S = 60
"""A bound, not an expectation."""
SETTLE_S = 0.4
"""From the opening of a gate to the begin of the window: longer than any emitter needs to notice it."""

AGENTS = ("steady", "counted", "hello", "rest", "forks")


class Contestant:
    """A server that runs. `streams(n)`: paths of n streams, spread over its turns."""

    def __init__(self, name: str, pid: int, port: int, gate: Gate, load: Load) -> None:
        self.name = name
        self.pid = pid
        self.port = port
        self.gate = gate
        self.load = load
        self.turns: list[str] = []
        """Paths of the streams of its turns, one each."""
        self.key: str | None = None
        """What requests are sent with."""

    def authorization(self) -> str:
        """A line of a request's head, or none."""
        return f"Authorization: Bearer {self.key}\r\n" if self.key else ""

    def connect(self, readers: int) -> None:
        self.load.connect(self.port, [self.turns[n % len(self.turns)] for n in range(readers)])

    def window(self, seconds: float) -> Window:
        """Opens the gate, lets it settle, and measures for so long."""
        with self.gate.opened():
            time.sleep(SETTLE_S)
            self.load.mark()
            before, begun = probe.cpu_s(self.pid), time.monotonic()
            time.sleep(seconds)
            mark, after = self.load.mark(), probe.cpu_s(self.pid)
            return Window(mark, after - before, time.monotonic() - begun)


class Window:
    """What was seen while a gate was open."""

    def __init__(self, mark: Mark, cpu_s: float, wall_s: float) -> None:
        if not mark.delivered:
            raise RuntimeError("nothing was delivered in the window")
        self.mark = mark
        self.cpu_s = cpu_s
        self.wall_s = wall_s

    @property
    def us_per_delivery(self) -> float:
        """CPU of the server process."""
        return self.cpu_s / self.mark.delivered * 1e6

    @property
    def load_share(self) -> float:
        """Of one core, used by the load client; near 1 the client is what was measured."""
        return self.mark.cpu_s / self.wall_s


class Host(ExitStack):
    """Everything that one measurement starts, in a folder that goes with it. Use as `with Host() as host:`."""

    def __init__(self) -> None:
        super().__init__()
        self._folder = Path(
            self.enter_context(TemporaryDirectory(prefix="hermetic-bench-", ignore_cleanup_errors=True))
        )
        self._count = 0

    def _new(self, name: str) -> Path:
        self._count += 1
        folder = self._folder / f"{self._count}-{name}"
        folder.mkdir()
        return folder

    def hermetic(self, name: str = "hermetic", *, journal: bool = True, turns_max: int = 64) -> Hermetic:
        """Our server as users run it: `hermetic serve`."""
        folder = self._new("hermetic")
        config = folder / "hermetic.toml"
        config.write_text(_CONFIG.format(turns_max=turns_max) + "".join(_AGENT.format(name=a, path=json.dumps(
            str(ROOT / "bench" / "agents")), gates=json.dumps(str(folder / "gates"))) for a in AGENTS) + _COLD.format(path=json.dumps(
            str(ROOT / "bench" / "agents"))))  # fmt: skip
        module = "hermetic" if journal else "bench.peers.hermetic_memory"
        log = (folder / "log").open("w+")
        process = self._start(
            ["-m", module, "serve", "--bind=127.0.0.1:0", f"--config={config}", f"--data={folder}"], log
        )
        note = folder / "server.json"
        port = 0
        for _ in _tries(lambda: f"{name} does not start: {_read(log)}", process):
            try:
                port = int(json.loads(note.read_text())["url"].rpartition(":")[2])
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except (OSError, ValueError):
                pass
        return Hermetic(name, process.pid, port, self._gate(folder), self.enter_context(Load()))

    def peer(self, module: str, name: str, *, turns: int = 1, rate: float = 50) -> Contestant:
        folder = self._new(module)
        gate = self._gate(folder)
        process = self._start(
            ["-m", f"bench.peers.{module}", f"--turns={turns}", f"--rate={rate}", f"--gate={gate.path}"],
            subprocess.PIPE,
        )
        assert process.stdout
        line = process.stdout.readline()
        if not line:
            raise RuntimeError(f"{name} does not start")
        made = Contestant(name, process.pid, int(line), gate, self.enter_context(Load()))
        made.turns = [f"/{turn}/events" for turn in range(turns)]
        return made

    def _gate(self, folder: Path) -> Gate:
        (folder / "gates").mkdir()  # a folder of its own: sealed agents see it, and nothing else here
        gate = Gate(folder / "gates" / "gate")
        self.callback(gate.remove)
        return gate

    def _start(self, arguments: Sequence[str], stdout: Any) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=None if stdout is subprocess.PIPE else subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"},
        )
        self.callback(_end, process)
        return process


class Hermetic(Contestant):
    """Ours, with what only it has: sessions and turns over HTTP."""

    @contextmanager
    def _asking(self) -> Iterator[http.client.HTTPConnection]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            yield connection
        finally:
            connection.close()

    def call(self, method: str, path: str, body: object = None) -> dict[str, Any]:
        with self._asking() as connection:
            data = None if body is None else json.dumps(body)
            bearer = {"Authorization": f"Bearer {self.key}"} if self.key else {}
            connection.request(method, path, data, {"Content-Type": "application/json", **bearer})
            response = connection.getresponse()
            answer = response.read()
        if response.status >= 300:
            raise RuntimeError(f"{method} {path}: {response.status} {answer[:500]!r}")
        decoded: dict[str, Any] = json.loads(answer)
        return decoded

    def note_key(self) -> str:
        """The operator's: who can read the data directory has it."""
        return str(json.loads(Path(self.gate.path).parents[1].joinpath("server.json").read_text())["key"])

    def add_tenant(self, tenant: str, operator: str, at_once: int) -> str:
        """→ a key for it. From the first tenant on every request needs one."""
        self.key = operator
        self.call(
            "POST",
            "/v1/admin/tenants",
            {"tenant": tenant, "quotas": {"turns_at_once": at_once, "turns_per_minute": None}},
        )
        return str(self.call("POST", f"/v1/admin/tenants/{tenant}/keys", {})["key"])

    def session(self, agent: str) -> str:
        return str(self.call("POST", "/v1/sessions", {"agent": agent})["session_id"])

    def turn(self, agent: str, asked: object = "go") -> str:
        """A new turn in a session of its own. → its id."""
        message = asked if isinstance(asked, str) else json.dumps(asked)
        answer = self.call("POST", f"/v1/sessions/{self.session(agent)}/turns", {"message": message})
        return str(answer["turn_id"])

    def wait(self, turn: str, done: Callable[[dict[str, Any]], bool], timeout_s: float = 120) -> dict[str, Any]:
        deadline = time.monotonic() + timeout_s
        while not done(view := self.call("GET", f"/v1/turns/{turn}")):
            if time.monotonic() > deadline or (view["ended"] and view["state"] != "done"):
                raise RuntimeError(f"turn {turn}: {view['state']}, {view['last_seq']} events, {view['stderr']}")
            time.sleep(0.05)
        return view

    def run(self, agent: str, asked: object = "go") -> dict[str, Any]:
        """A turn from its start to its end."""
        return self.wait(self.turn(agent, asked), lambda view: bool(view["ended"]))

    def start_steady(self, turns: int, rate: float) -> None:
        """So many turns that emit at this rate while the gate is open; each has begun on return."""
        ids = [self.turn("steady", {"gate": str(self.gate.path), "rate": rate}) for _ in range(turns)]
        for turn in ids:
            view = self.wait(turn, lambda view: int(view["last_seq"]) >= 2)  # `started` and its first words
            if view["ended"]:
                raise RuntimeError(f"turn {turn} does not emit: {view['state']}, {view['stderr']}")
        self.turns = [f"/v1/turns/{turn}/events" for turn in ids]


# Turns that wait at a closed gate must be able to outlive a long measurement; those that flood, to flood.
_CONFIG = """
[server]
drain_s = 0
[turns]
concurrent_max = {turns_max}
wall_s = 86400
grace_s = 0.2
ready_s = 120
[limits]
event_bytes_max = 1099511627776
"""
_AGENT = """
[agents.{name}]
target = "emitters:{name}"
python_path = [{path}]
readable = [{gates}]
limits = {{ processes_max = 32 }}
"""
_COLD = """
[agents.hello_cold]
target = "emitters:hello"
python_path = [{path}]
start = "cold"
"""


def has_starlette() -> bool:
    return all(importlib.util.find_spec(name) for name in ("sse_starlette", "uvicorn", "uvloop", "httptools"))


NO_STARLETTE = "sse-starlette is not there (`pip install -e '.[bench]'`): its rows are missing."


def _tries(failure: Callable[[], str], process: subprocess.Popen[bytes]) -> Iterator[None]:
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline and process.poll() is None:
        yield
        time.sleep(0.02)
    raise RuntimeError(failure())


def _read(log: Any) -> str:
    log.seek(0)
    return str(log.read())[-2000:]


def _end(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL: keepers notice the end of their control socket and kill their trees."""
    process.kill()
    process.wait()
    if process.stdout:
        process.stdout.close()
