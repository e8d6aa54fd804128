"""HTTPS: HTTP/2 and HTTP/1.1, with a certificate of our own, streaming and resuming."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import httpx2
import pytest
import trio
from planned import AGENT
from wire import BOUND_S

from hermetic.protocol.errors import ConfigError
from hermetic.supervisor import config as c
from hermetic.web import server as web_server

pytestmark = pytest.mark.xdist_group("stream_connections")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory) -> Path:
    """A folder with cert.pem and key.pem for 127.0.0.1."""
    folder = tmp_path_factory.mktemp("certificate")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
        + [
            "-subj",
            "/CN=localhost",
            "-addext",
            "subjectAltName=IP:127.0.0.1",
            "-keyout",
            "key.pem",
            "-out",
            "cert.pem",
        ],
        cwd=folder,
        capture_output=True,
        check=True,
    )
    return folder


@asynccontextmanager
async def secure_server(folder: Path, certificate: Path):
    (folder / "agents").mkdir()
    (folder / "agents" / "plan.py").write_text(AGENT)
    config = c.Config(
        server=c.Server(
            bind="127.0.0.1:0",
            data=str(folder / "data"),
            drain_s=0.2,
            tls_cert=str(certificate / "cert.pem"),
            tls_key=str(certificate / "key.pem"),
        ),
        stream=c.Stream(heartbeat_s=0.1, retry_ms=20),
        agents={"plan": c.Agent(target="plan:agent", python_path=[str(folder / "agents")])},
    )
    leave = trio.Event()
    async with trio.open_nursery() as nursery:
        url = await nursery.start(
            lambda task_status: web_server.serve_task(config, shutdown=leave.wait, task_status=task_status)
        )
        assert url.startswith("https://127.0.0.1:")
        yield url
        leave.set()


@asynccontextmanager
async def client_of(url: str, certificate: Path, *, http2: bool):
    trusts = ssl.create_default_context(cafile=str(certificate / "cert.pem"))
    async with httpx2.AsyncClient(base_url=url, verify=trusts, http2=http2, http1=not http2, timeout=BOUND_S) as http:
        yield http


async def plan(http: httpx2.AsyncClient, steps: str) -> str:
    session = (await http.post("/v1/sessions", json={"agent": "plan"})).json()["session_id"]
    return str((await http.post(f"/v1/sessions/{session}/turns", json={"message": steps})).json()["turn_id"])


@pytest.mark.parametrize("http2", [True, False], ids=["http2", "http1"])
async def test_a_stream_is_read_live_cut_and_resumed(tmp_path, certificate, http2):
    async with secure_server(tmp_path, certificate) as url, client_of(url, certificate, http2=http2) as http:
        assert (await http.get("/v1/health")).http_version == ("HTTP/2" if http2 else "HTTP/1.1")
        turn = await plan(http, '[["say", "a"], ["wait"], ["flood", 500, "xx"], ["say", "b"]]')
        ids: list[str] = []

        async def read(after: str, until) -> None:
            async with http.stream("GET", f"/v1/turns/{turn}/events", params={"after": after}) as response:
                assert response.status_code == 200
                assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
                lines = response.aiter_lines()
                async for line in lines:
                    if line.startswith("id: "):
                        ids.append(line.removeprefix("id: "))
                    if until(line):
                        break
                await response.aclose()
                # Left hanging, the library's generators would be warned of; over HTTP/2 a closed one waits for ever.
                with trio.move_on_after(0), suppress(httpx2.TransportError, httpx2.StreamError):
                    async for _ in lines:
                        pass

        said: list[str] = []

        def parked(line: str) -> bool:
            """A heartbeat after its first word."""
            said.append(line)
            return line == ":" and any('"text":"a"' in one for one in said)

        await read("0", parked)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read, ids[-1], lambda line: line == f"id: {turn}:200")
            await http.post(f"/v1/turns/{turn}/messages", json={"message": "go"})
        await read(ids[-1], lambda line: False)
        assert ids == [f"{turn}:{n}" for n in range(1, len(ids) + 1)]
        assert len(ids) > 500
        ended = await http.get(f"/v1/turns/{turn}/events", params={"after": ids[-1]})
        assert ended.status_code == 204


async def test_twenty_streams_on_one_connection(tmp_path, certificate):
    """What HTTP/1.1 in a browser has six connections for."""
    async with secure_server(tmp_path, certificate) as url, client_of(url, certificate, http2=True) as http:
        turn = await plan(http, '[["say", "a"], ["wait"], ["flood", 300, "xx"]]')
        counts = [0] * 20

        async def read(n: int, task_status=trio.TASK_STATUS_IGNORED) -> None:
            async with http.stream("GET", f"/v1/turns/{turn}/events") as response:
                spoken = waits = False
                async for line in response.aiter_lines():
                    counts[n] += line.startswith("id: ")
                    spoken = spoken or '"text":"a"' in line
                    if spoken and line == ":" and not waits:
                        waits = True
                        task_status.started()

        async with trio.open_nursery() as nursery:
            for n in range(len(counts)):
                await nursery.start(read, n)
            await http.post(f"/v1/turns/{turn}/messages", json={"message": "go"})
        assert len(set(counts)) == 1 and counts[0] > 300


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
async def test_curl_reads_it_over_http2(tmp_path, certificate):
    async with secure_server(tmp_path, certificate) as url, client_of(url, certificate, http2=True) as http:
        turn = await plan(http, '[["say", "a"], ["sleep", 0.3], ["say", "b"]]')
        done = await trio.run_process(
            ["curl", "-sSN", "--http2", "--cacert", str(certificate / "cert.pem"), "-w", "%{http_version}"]
            + [f"{url}/v1/turns/{turn}/events"],
            capture_stdout=True,
        )
        assert done.stdout.endswith(b"\n\n2")
        assert b'"text":"b"' in done.stdout and b"event: stream_end\n" in done.stdout


@pytest.mark.parametrize("name", ["missing.pem", "key.pem", "text.pem"])
async def test_a_certificate_that_cannot_be_used_is_refused_before_the_start(tmp_path, certificate, name):
    shutil.copytree(certificate, folder := tmp_path / "c")
    (folder / "text.pem").write_text("hello")
    server = c.Server(
        bind="127.0.0.1:0", data=str(tmp_path), tls_cert=str(folder / name), tls_key=str(folder / "key.pem")
    )
    with pytest.raises(ConfigError, match="server.tls_cert"):
        web_server._tls(server)


def test_a_key_without_a_certificate_is_refused(tmp_path):
    (tmp_path / "h.toml").write_text('[server]\ntls_key = "key.pem"\n')
    with pytest.raises(ConfigError, match="server.tls_key"):
        c.load_config(tmp_path / "h.toml")
