"""pip, git and curl as they are, through the CONNECT proxy to a TLS server, with the variables that a sealed turn has."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import trio
from internet import CA, Internet, WayOut, server_tls

from hermetic.supervisor.egress.variables import CONNECT_PORT, egress_variables

ADDRESS = "93.184.216.34"


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def site(tmp_path: Path, internet: Internet) -> Iterator[Path]:
    """A folder that `https://pypi.example`, `https://git.example` and `http://plain.example` show."""
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "hello.txt").write_text("hello from the site")
    handler = functools.partial(Quiet, directory=str(folder))
    servers = [ThreadingHTTPServer(("127.0.0.1", 0), handler) for _ in range(2)]
    servers[0].socket = server_tls("pypi.example", "git.example").wrap_socket(servers[0].socket, server_side=True)
    threads = [threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}) for server in servers]
    for server, port, thread in zip(servers, (443, 80), threads, strict=True):
        internet.local_ports[ADDRESS, port] = server.server_address[1]
        thread.start()
    internet.answers |= {name: [[ADDRESS]] for name in ("pypi.example", "git.example", "plain.example")}
    yield folder
    for server, thread in zip(servers, threads, strict=True):
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def run(tmp_path: Path, way_out: WayOut):
    """`await run(*argv)` → the finished process, with a sealed turn's variables and no others of ours."""
    CA.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    certificates = ("SSL_CERT_FILE", "CURL_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "PIP_CERT", "GIT_SSL_CAINFO")

    async def start(*argv: str) -> subprocess.CompletedProcess[bytes]:
        variables = egress_variables(None, {}, network_namespace=True)
        environment = {
            **{name: value.replace(f":{CONNECT_PORT}", f":{way_out.ports[0]}") for name, value in variables.items()},
            **dict.fromkeys(certificates, str(tmp_path / "ca.pem")),
            "PATH": os.environ["PATH"],
            "HOME": str(tmp_path),
            "GIT_TERMINAL_PROMPT": "0",
            "PIP_CONFIG_FILE": os.devnull,
        }
        with trio.fail_after(120):
            return await trio.run_process(
                argv, env=environment, cwd=tmp_path, capture_stdout=True, capture_stderr=True, check=False
            )

    return start


needs = {name: pytest.mark.skipif(shutil.which(name) is None, reason=f"{name} is not here") for name in ("git", "curl")}


@needs["curl"]
async def test_curl_reaches_listed_hosts_and_no_others(nursery, internet, way_out, site, run) -> None:
    await way_out.open(nursery, ["pypi.example", "plain.example:80"], network=internet.network)
    for url in ("https://pypi.example/hello.txt", "http://plain.example/hello.txt"):
        done = await run("curl", "-sS", url)
        assert (done.returncode, done.stdout) == (0, b"hello from the site"), done.stderr
    assert way_out.denied == []
    denied = await run("curl", "-sS", "https://git.example/hello.txt")
    assert denied.returncode == 56 and b"403" in denied.stderr
    fronted = await run(
        "curl", "-sS", "--connect-to", "git.example:443:pypi.example:443", "https://git.example/hello.txt"
    )
    assert fronted.returncode != 0 and b"hello" not in fronted.stdout
    metadata = await run("curl", "-sS", "http://169.254.169.254/latest/meta-data/")
    assert b"address_not_listed" in metadata.stdout
    assert way_out.reasons == ["host_not_listed", "server_name_differs", "address_not_listed"]


def make_repository(work: Path, bare: Path) -> None:
    def git(*argv: str) -> None:
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b.example", *argv], check=True)

    git("init", "-q", "-b", "main", str(work))
    (work / "file").write_text("content")
    git("-C", str(work), "add", "file")
    git("-C", str(work), "commit", "-q", "-m", "first")
    git("clone", "-q", "--bare", str(work), str(bare))
    git("-C", str(bare), "update-server-info")


@needs["git"]
async def test_git_clones_from_a_listed_host_and_from_no_other(
    nursery, internet, way_out, site, run, tmp_path: Path
) -> None:
    make_repository(tmp_path / "work", site / "repo.git")
    await way_out.open(nursery, ["git.example"], network=internet.network)
    done = await run("git", "clone", "-q", "https://git.example/repo.git", "cloned")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "cloned/file").read_text() == "content"
    denied = await run("git", "clone", "-q", "https://pypi.example/repo.git", "stolen")
    assert denied.returncode != 0 and b"403" in denied.stderr
    assert way_out.reasons[0] == "host_not_listed"


async def test_pip_installs_from_a_listed_host_and_from_no_other(
    nursery, internet, way_out, site, run, tmp_path: Path
) -> None:
    wheel = "tiny_thing-1.0-py3-none-any.whl"
    page = site / "simple/tiny-thing"
    page.mkdir(parents=True)
    info = "tiny_thing-1.0.dist-info"
    with zipfile.ZipFile(page / wheel, "w") as archive:
        archive.writestr("tiny_thing.py", "VALUE = 7\n")
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-thing\nVersion: 1.0\n")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: a\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", f"tiny_thing.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n")
    (page / "index.html").write_text(f'<a href="{wheel}">{wheel}</a>')
    await way_out.open(nursery, ["pypi.example"], network=internet.network)
    pip = (sys.executable, "-I", "-m", "pip", "--disable-pip-version-check", "install", "--no-cache-dir")
    into = ("--retries", "0", "--target", str(tmp_path / "into"), "tiny-thing")
    done = await run(*pip, "--index-url", "https://pypi.example/simple", *into)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "into/tiny_thing.py").read_text() == "VALUE = 7\n"
    denied = await run(*pip, "--index-url", "https://git.example/simple", *into)
    assert denied.returncode != 0
    assert set(way_out.reasons) == {"host_not_listed"}
