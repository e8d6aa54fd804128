"""A server whose agent does, step by step, what its message says."""

from __future__ import annotations

import json
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from urllib.parse import urlencode

import trio
from harness import Server
from httpx_sse._decoders import SSEDecoder

TOML = """
[server]
drain_s = 0.2
upload_bytes_max = 300000
{server}

[turns]
grace_s = 1

[agents.steps]
adapter = "function"
target = "steps:agent"
python_path = ["agents"]

[webui]
{webui}
"""

AGENT = """
import json
import time


def agent(turn):
    for what, *args in json.loads(turn.message):
        if what == "say":
            turn.token(args[0])
        elif what == "tool":
            turn.tool(args[0], {"path": "x"}).complete("seen")
        elif what == "ask":
            turn.token(turn.clarify(args[0]))
        elif what == "approve":
            turn.token("allowed" if turn.approve(args[0]) != "deny" else "denied")
        elif what == "where":
            turn.token(turn.workspace)
        else:
            while not turn.steers():
                time.sleep(0.01)
"""


def steps(*each: list) -> str:
    return json.dumps(each)


class Stepwise(Server):
    def __init__(self, folder: Path, *, server: str = "", webui: str = "", **kwargs):
        super().__init__(folder, TOML.format(server=server, webui=webui), **kwargs)
        self.write_agent("steps", AGENT)

    async def new(self, **body) -> str:
        """A session, begun as the page begins one."""
        answer = await self.call("POST", "/api/session/new", body)
        return answer["session"]["session_id"]

    async def begin(self, session: str, *each: list, **more) -> str:
        """→ the id of the stream."""
        body = {"session_id": session, "message": steps(*each), **more}
        answer = await self.call("POST", "/api/chat/start", body)
        assert answer["session_id"] == session
        return answer["stream_id"]

    async def go_on(self, stream: str) -> None:
        """The word that a `["wait"]` waits for."""
        await self.wait_state(stream, "running", "waiting")
        await self.call("POST", f"/v1/turns/{stream}/messages", {"message": "go on"}, status=202)

    @asynccontextmanager
    async def page(self, stream: str, **params):
        """What an EventSource of the page reads: an iterator of `(id, name, data)`. On a bare socket, which can be left
        in the middle; HTTP/1.0, so that the body has no chunks."""
        host, port = self.url.removeprefix("http://").split(":")
        path = f"/api/chat/stream?{urlencode(params | {'stream_id': stream})}"
        async with await trio.open_tcp_stream(host, int(port)) as socket:
            await socket.send_all(f"GET {path} HTTP/1.0\r\nHost: {host}:{port}\r\n\r\n".encode())

            async def events():
                decoder, rest, in_head = SSEDecoder(), b"", True
                while data := await socket.receive_some(65536):
                    rest += data
                    if in_head and b"\r\n\r\n" in rest:
                        head, _, rest = rest.partition(b"\r\n\r\n")
                        assert b" 200 " in head.split(b"\r\n")[0], head + rest
                        in_head = False
                    if not in_head:
                        *lines, rest = rest.split(b"\n")
                        for line in lines:
                            if sse := decoder.decode(line.decode()):
                                yield sse.id, sse.event, json.loads(sse.data)

            async with aclosing(events()) as iterator:
                yield iterator

    async def read(self, stream: str, **params) -> list[tuple[str, str, dict]]:
        async with self.page(stream, **params) as events:
            return [event async for event in events]
