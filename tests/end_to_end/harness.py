"""A real server in a process of its own, driven over real sockets by an HTTP client that is not ours."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import httpx
import trio
from httpx_sse._decoders import SSEDecoder

READY_S = 60
"""A bound, not an expectation: a busy machine starts a server in some seconds."""


class Server:
    """One data directory and, between `start` and `stop` or `kill`, one server process on it."""

    def __init__(
        self,
        folder: Path,
        toml: str = "",
        *,
        data: Path | None = None,
        env: dict[str, str] | None = None,
        arguments: Sequence[str] = (),
        prefix: Sequence[str] = (),
    ):
        """`arguments`: more for `hermetic serve`. `prefix`: words before the whole command, which exec it.

        Without a `[seal]` of its own nothing is sealed: the agents of most tests leave notes outside of their workspace.
        What the seal does to a turn is for tests/sandbox.
        """
        if "[seal]" not in toml:
            toml = textwrap.dedent(toml) + "\n[seal]\nlevel_max = 0\n"
            arguments = ["--insecure", *arguments]
        self.data = data or folder / "data"
        self.config = folder / "hermetic.toml"
        self.config.write_text(textwrap.dedent(toml))
        self.agents = folder / "agents"
        self.agents.mkdir(exist_ok=True)
        self.log = folder / "server.log"
        self.process: subprocess.Popen | None = None
        self.url = ""
        self._env = env
        self._arguments = arguments
        self._prefix = prefix

    def write_agent(self, name: str, code: str) -> None:
        (self.agents / f"{name}.py").write_text(textwrap.dedent(code))

    async def start(self) -> None:
        note = self.data / "server.json"
        note.unlink(missing_ok=True)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(  # noqa: ASYNC220 - a millisecond, and a Popen can outlive its trio run
                [
                    *(*self._prefix, sys.executable, "-m", "hermetic", "serve", "--bind", "127.0.0.1:0"),
                    *("--config", str(self.config), "--data", str(self.data), *self._arguments),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._env,
            )
        with trio.fail_after(READY_S):
            while True:
                assert self.process.poll() is None, self.log.read_text()
                try:
                    self.url = json.loads(note.read_text())["url"]
                    async with httpx.AsyncClient() as http:
                        if (await http.get(self.url + "/v1/health")).status_code == 200:
                            return
                except (OSError, ValueError, httpx.HTTPError):
                    pass
                await trio.sleep(0.02)

    async def wait(self, timeout_s: float = 60) -> int:
        assert self.process
        with trio.fail_after(timeout_s):
            while self.process.poll() is None:
                await trio.sleep(0.01)
        return self.process.returncode

    async def stop(self) -> int:
        """SIGTERM, as `systemctl stop` does."""
        assert self.process
        self.process.send_signal(signal.SIGTERM)
        return await self.wait()

    def end(self, timeout_s: float = 60) -> None:
        """For the end of a test, outside of trio as well: SIGTERM if it runs; it must be gone in time."""
        if self.process and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(timeout_s)
            except Exception:
                self.process.kill()
                raise

    def kill(self) -> None:
        """kill -9."""
        assert self.process
        self.process.kill()
        self.process.wait()

    # --- HTTP -----------------------------------------------------------------------------------------------------

    async def call(self, method: str, path: str, body: object = None, *, status: int | None = None, **kwargs) -> dict:
        """A request with a JSON body; its JSON answer. `status`: what must come back (else any 2xx)."""
        async with httpx.AsyncClient(timeout=60) as http:
            if body is not None:
                kwargs["json"] = body
            response = await http.request(method, self.url + path, **kwargs)
        if status is None:
            assert response.is_success, f"{method} {path}: {response.status_code} {response.text}"
        else:
            assert response.status_code == status, f"{method} {path}: {response.status_code} {response.text}"
        return response.json() if response.content else {}

    async def session(self, **new) -> str:
        return (await self.call("POST", "/v1/sessions", new, status=201))["session_id"]

    async def turn(self, message: str, *, session: str | None = None, agent: str | None = None, **more) -> str:
        session = session or await self.session(**({"agent": agent} if agent else {}))
        body = {"message": message, **more}
        return (await self.call("POST", f"/v1/sessions/{session}/turns", body, status=202))["turn_id"]

    async def state(self, turn: str) -> str:
        return (await self.call("GET", f"/v1/turns/{turn}"))["state"]

    async def wait_state(self, turn: str, *states: str, timeout_s: float = 60) -> dict:
        with trio.fail_after(timeout_s):
            while True:
                view = await self.call("GET", f"/v1/turns/{turn}")
                if view["state"] in states:
                    return view
                assert not view["ended"], f"{turn} has ended as {view['state']}, not as {states}"
                await trio.sleep(0.02)

    @asynccontextmanager
    async def stream(self, turn: str, after: str | int | None = None, headers: dict[str, str] | None = None):
        """→ an async iterator of `(seq, name, data)`."""
        params = {} if after is None else {"after": str(after)}
        async with (
            httpx.AsyncClient(timeout=60) as http,
            http.stream("GET", f"{self.url}/v1/turns/{turn}/events", params=params, headers=headers) as response,
        ):
            assert response.status_code == 200, (response.status_code, await response.aread())

            async def events(chunks):
                decoder, rest = SSEDecoder(), b""
                async for chunk in chunks:
                    *lines, rest = (rest + chunk).split(b"\n")
                    for line in lines:
                        if sse := decoder.decode(line.decode()):
                            assert sse.id.startswith(f"{turn}:"), sse
                            yield int(sse.id.rpartition(":")[2]), sse.event, json.loads(sse.data)

            # aclosing: httpx leaves its own generator to the garbage collector when a reader goes early
            async with aclosing(response.aiter_raw()) as chunks, aclosing(events(chunks)) as iterator:
                yield iterator

    async def glimpse(self, turn: str, until: bytes) -> bytes:
        """Reads a turn's stream until `until` has come, then hangs up."""
        host, port = self.url.removeprefix("http://").split(":")
        seen = b""
        async with await trio.open_tcp_stream(host, int(port)) as socket:
            await socket.send_all(f"GET /v1/turns/{turn}/events HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n".encode())
            while until not in seen:
                data = await socket.receive_some(4096)
                assert data, seen
                seen += data
        return seen

    async def events(self, turn: str, after: str | int | None = None) -> list[tuple[int, str, dict]]:
        """All events from `after` to the end of the stream."""
        async with self.stream(turn, after) as events:
            return [event async for event in events]

    async def run(self, message: str, **more) -> list[tuple[int, str, dict]]:
        """One turn, from its start to its end."""
        return await self.events(await self.turn(message, **more))


def names(events) -> list[str]:
    return [name for _, name, _ in events]


def text(events) -> str:
    return "".join(data["text"] for _, name, data in events if name == "token")


def check_whole(events) -> dict:
    """What is true of every turn's events; → its terminal event."""
    assert [seq for seq, _, _ in events] == list(range(1, len(events) + 1)), "without a hole, from 1"
    ends = [name for name in names(events) if name in ("done", "apperror", "cancel")]
    assert len(ends) == 1, f"exactly one terminal event, not {ends}"
    assert names(events)[-2:] == [ends[0], "stream_end"]
    assert events[-1][2]["state"] == events[-2][2]["state"]
    return events[-2][2]


def processes_with(marker: str) -> list[int]:
    """Ids of all processes, in any namespace below ours, that have `marker` in their command line."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                if marker.encode() in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                pass
    return found


async def wait_gone(marker: str, timeout_s: float = 10) -> None:
    with trio.move_on_after(timeout_s):
        while processes_with(marker):
            await trio.sleep(0.02)
        return
    raise AssertionError(f"still alive: {processes_with(marker)}")
