"""What a sealed turn reaches: the hosts its agent's list names and the model's API, both through the server, and no more."""

from __future__ import annotations

import functools
import json
import subprocess
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from world import World, run_as_user_works

KEY = "sk-the-real-one-1234567890"


class Site(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


class Model(BaseHTTPRequestHandler):
    """Two pieces of a streamed answer; the second when the test has seen the first."""

    seen: list[tuple[str, str | None]]
    go_on: threading.Event
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.seen.append((self.path, self.headers["authorization"]))
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("set-cookie", "account=tenants")
        self.send_header("connection", "close")
        self.end_headers()
        self.wfile.write(b"data: first\n\n")
        self.wfile.flush()
        self.go_on.wait(60)
        self.wfile.write(b"data: second\n\n")
        self.close_connection = True


MODELLER = """
import http.client, json, os, subprocess, urllib.parse

def run(turn):
    open("neighbours-secret.txt", "w").close()
    url = urllib.parse.urlsplit(os.environ["OPENAI_BASE_URL"])
    connection = http.client.HTTPConnection(url.hostname, url.port, timeout=60)
    connection.request("POST", url.path + turn.message, "{}", {
        "authorization": "Bearer " + os.environ["OPENAI_API_KEY"], "content-type": "application/json"})
    answer = connection.getresponse()
    turn.token(f"{answer.status} {sorted(dict(answer.getheaders()))} ")
    while piece := answer.read1(1000):
        turn.token(piece.decode())
    return None
"""


def serve(handler: object) -> ThreadingHTTPServer:
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)  # type: ignore[arg-type]
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    return server


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, int]]:
    folder = tmp_path_factory.mktemp("site")
    (folder / "hello.txt").write_text("hello from the site")
    server = serve(functools.partial(Site, directory=str(folder)))
    yield folder, server.server_address[1]
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def model() -> Iterator[ThreadingHTTPServer]:
    Model.seen, Model.go_on = [], threading.Event()
    server = serve(Model)
    yield server
    Model.go_on.set()
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module", params=[(3, "root"), (2, "user")], ids=["root-3", "user-2"])
def world(request: pytest.FixtureRequest, site: tuple[Path, int], model: ThreadingHTTPServer) -> Iterator[World]:
    level, user = request.param
    if not run_as_user_works():
        pytest.skip("needs root and user namespaces")
    world = World(
        level,
        user,
        attacker=f'egress = ["127.0.0.1:{site[1]}"]',
        more=f"""
            [agents.sleeper.model_api]
            url = "http://127.0.0.1:{model.server_address[1]}/v1"
            key_env = "MODEL_KEY"
            """,
        MODEL_KEY=KEY,
    )
    world.server.write_agent(
        "sleeper", MODELLER.replace("url = ", "if turn.message == 'sleep':\n        turn.token('up')\n"
                                             "        import time; time.sleep(600)\n    url = ", 1)
    )  # fmt: skip
    world.start()
    yield world
    world.close()


PROXY = "127.0.0.1:3128"


def sh(world: World, script: str) -> dict:
    """By a tool in a turn. What is listed here is an address of the host's own, which programs would not ask a proxy for."""
    return world.attack("tool", session=world.new_session("attacker"), language="sh", script=f"export NO_PROXY= no_proxy=\n{script}")  # fmt: skip


def test_a_listed_host_is_reached_by_its_port_alone(world: World, site: tuple[Path, int]) -> None:
    port = site[1]
    assert " 200 " in world.attack("through_proxy", proxy=PROXY, target=f"127.0.0.1:{port}")["did"]
    for target in (
        f"127.0.0.1:{world.port}",
        f"localhost:{port}",
        f"127.0.0.2:{port}",
        f"0.0.0.0:{port}",
        "169.254.169.254:80",
        "example.com:443",
    ):
        got = world.attack("through_proxy", proxy=PROXY, target=target)
        assert got.get("refused") == "EACCES", (target, got)


def test_a_denial_is_an_event(world: World) -> None:
    turn = world.begin(
        world.new_session("attacker"),
        json.dumps({"attack": "through_proxy", "with": {"proxy": PROXY, "target": "evil.example:443"}}),
    )
    denied = [event for event in world.events(turn) if event["event"] == "egress_denied"]
    assert [(event["host"], event["port"]) for event in denied] == [("evil.example", 443)]


def test_curl_works_inside(world: World, site: tuple[Path, int]) -> None:
    assert sh(world, f"curl -sS http://127.0.0.1:{site[1]}/hello.txt") == {"did": "hello from the site"}
    assert "hello" not in str(sh(world, f"curl -sS --fail http://127.0.0.1:{world.port}/v1/health"))


def test_git_works_inside(world: World, site: tuple[Path, int], tmp_path: Path) -> None:
    def git(*argv: str) -> None:
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b.example", *argv], check=True)

    bare = site[0] / f"repo-{world.user}.git"
    git("init", "-q", "-b", "main", str(tmp_path / "work"))
    (tmp_path / "work/file").write_text("content")
    git("-C", str(tmp_path / "work"), "add", "file")
    git("-C", str(tmp_path / "work"), "commit", "-q", "-m", "first")
    git("clone", "-q", "--bare", str(tmp_path / "work"), str(bare))
    git("-C", str(bare), "update-server-info")
    got = sh(world, f"git clone -q http://127.0.0.1:{site[1]}/{bare.name} cloned && cat cloned/file")
    assert got == {"did": "content"}


def test_pip_works_inside(world: World, site: tuple[Path, int]) -> None:
    page = site[0] / "simple/tiny-thing"
    page.mkdir(parents=True, exist_ok=True)
    wheel, info = "tiny_thing-1.0-py3-none-any.whl", "tiny_thing-1.0.dist-info"
    with zipfile.ZipFile(page / wheel, "w") as archive:
        archive.writestr("tiny_thing.py", "VALUE = 7\n")
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-thing\nVersion: 1.0\n")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: a\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", f"tiny_thing.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n")
    (page / "index.html").write_text(f'<a href="{wheel}">{wheel}</a>')
    got = sh(
        world,
        "python -I -m pip --disable-pip-version-check install -q --no-cache-dir --retries 0 --target into "
        f"--index-url http://127.0.0.1:{site[1]}/simple --trusted-host 127.0.0.1 tiny-thing >&2 && "
        "PYTHONPATH=into python -c 'import tiny_thing; print(tiny_thing.VALUE)'",
    )
    assert got == {"did": "7\n"}, got


def test_the_model_answers_as_it_speaks_and_its_key_stays_outside(world: World) -> None:
    Model.go_on.clear()
    Model.seen.clear()
    turn = world.begin(world.new_session("sleeper"), "/chat/completions")
    said = ""
    with world.http.stream("GET", f"/v1/turns/{turn}/events") as response:
        for line in response.iter_lines():
            if line.startswith("data: "):
                event = json.loads(line[6:])
                said += event.get("text", "") if event["event"] == "token" else ""
            if "first" in said:
                Model.go_on.set()  # only now does the model say the rest
    assert said.startswith("200") and "second" in said, said
    assert "cookie" not in said
    assert Model.seen == [("/v1/chat/completions", f"Bearer {KEY}")]
    environment = world.attack("find_in_environs", session=world.new_session("attacker"), needle=KEY)
    assert "refused" in environment


@pytest.mark.parametrize("path", ["/files", "/../admin", "/chat/completions/../../files", "/chat%2fcompletions", "//x"])
def test_another_path_of_the_models_api_is_refused(world: World, path: str) -> None:
    Model.seen.clear()
    said = "".join(
        event.get("text", "") for event in world.events(world.begin(world.new_session("sleeper"), path))
        if event["event"] == "token"
    )  # fmt: skip
    assert said.startswith(("403", "400", "404")), said
    assert Model.seen == [] and KEY not in said


def test_the_key_is_nowhere_in_what_a_reader_gets(world: World) -> None:
    Model.go_on.set()
    turn = world.begin(world.new_session("sleeper"), "/chat/completions")
    assert KEY not in str(world.events(turn))
    assert KEY not in world.server.log.read_text()
