"""A host with something to steal on it, and servers that seal their turns as tightly as they are told to.

The host has a secret file, a key, sockets, shared memory and a second session whose turn is running. Attacks
(attacks.py) run inside turns of the first session; what they got comes back as JSON.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import httpx
import trio

import hermetic

sys.path.insert(0, str(Path(__file__).parents[1] / "end_to_end"))
from harness import Server

USER = 54_321
"""An ordinary user of the host, for servers that are not root: nobody else has it."""
TURN_S = 90
libc = ctypes.CDLL(None, use_errno=True)

SLEEPER = """
import os, time
def run(turn):
    open("neighbours-secret.txt", "w").write("NEIGHBOUR-FILE")
    print(os.environ.get("NEIGHBOUR_KNOWS"))
    turn.token("up")
    time.sleep(600)
"""


class World:
    """One server with the seal held at `level` at most, run by root or by an ordinary user."""

    def __init__(self, level: int, user: str, more: str = "", limits: str = "", attacker: str = "", **env: str) -> None:
        """`more`, `limits`, `attacker`: TOML for the end of the file, `[limits]` and the attackers' agent. `env`: more for
        the server's environment."""
        self.level, self.user = level, user
        # Not pytest's folder: that is closed to every user but root.
        self.folder = Path(tempfile.mkdtemp(prefix="hermetic-sandbox-"))
        self.folder.chmod(0o755)
        self._cleanup: list[object] = []
        (self.folder / "private").mkdir()
        self.secret = self._file("private/secret.txt", "HOST-SECRET")
        self.ssh_key = self._file("private/.ssh/id_ed25519", "HOST-KEY")
        self.server = Server(
            self.folder,
            f"""
            [seal]
            level_max = {level}
            [limits]
            {limits or "memory_bytes_max = 800_000_000"}
            [agents.attacker]
            adapter = "function"
            target = "attacks:run"
            python_path = ["agents"]
            {attacker}
            [agents.sleeper]
            adapter = "function"
            target = "sleeper:run"
            python_path = ["agents"]
            [profiles.neighbour]
            env = {{ NEIGHBOUR_KNOWS = "NEIGHBOUR-ENV" }}
            {more}
            """,
            arguments=["--insecure"] if level == 0 else [],
            prefix=[] if user == "root" else as_user(self.folder),
            env={**os.environ, "SERVER_SECRET": "SERVER-ENV", **env},
        )
        shutil.copy(Path(__file__).with_name("attacks.py"), self.server.agents / "attacks.py")
        self.server.write_agent("sleeper", SLEEPER)
        if user != "root":
            for path in (self.folder, *self.folder.rglob("*")):
                os.chown(path, USER, USER)

    def _file(self, name: str, text: str) -> str:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return str(path)

    def start(self) -> None:
        try:
            self._start()
        except BaseException:
            self.close()
            raise

    def _start(self) -> None:
        trio.run(self.server.start)
        self.http = httpx.Client(base_url=self.server.url, timeout=TURN_S)
        self.health = self.http.get("/v1/health").json()
        self.session = self.new_session("attacker")
        self.neighbour = self.new_session("sleeper", profile="neighbour")
        self.neighbours_turn = self.begin(self.neighbour, "sleep")
        self.neighbours_workspace = self._workspace(self.neighbour)
        self.workspace = self._workspace(self.session)
        self.neighbours_file = os.path.join(self.neighbours_workspace, "neighbours-secret.txt")
        wait_until(lambda: os.path.exists(self.neighbours_file))
        self.neighbours_pid = self.started(self.neighbours_turn)["pid"]
        self.port = int(self.server.url.rsplit(":", 1)[1])
        self._listen()

    def _listen(self) -> None:
        """Things on the host that a turn must not reach."""
        self.unix_path = str(self.folder / "host.sock")
        self.abstract = f"@{self.folder.name}"
        for address in (self.unix_path, "\0" + self.abstract[1:]):
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(address)
            listener.listen()
            self._serve(listener, b"UNIX")
        os.chmod(self.unix_path, 0o777)
        tcp = socket.create_server(("127.0.0.1", 0))
        self.tcp_port = tcp.getsockname()[1]
        self._serve(tcp, b"TCP!")
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        udp.bind(("127.0.0.1", 0))
        self.udp_port = udp.getsockname()[1]
        self._cleanup.append(udp)

        def echo() -> None:
            while True:
                try:
                    udp.sendto(b"UDP!", udp.recvfrom(100)[1])
                except OSError:
                    return

        threading.Thread(target=echo, daemon=True).start()
        self.shm_key = 0x48000000 | (os.getpid() & 0xFFFF) << 4 | self.level << 1 | (self.user == "root")
        self.shm = libc.shmget(self.shm_key, 4096, 0o1666)  # IPC_CREAT
        assert self.shm >= 0, os.strerror(ctypes.get_errno())

    def _serve(self, listener: socket.socket, greeting: bytes) -> None:
        self._cleanup.append(listener)

        def accept() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                    connection.sendall(greeting)
                    connection.close()
                except OSError:
                    if listener.fileno() < 0:
                        return

        threading.Thread(target=accept, daemon=True).start()

    def close(self) -> None:
        if hasattr(self, "http"):
            self.http.close()
        if self.server.process and self.server.process.poll() is None:
            self.server.process.send_signal(signal.SIGKILL)
            self.server.process.wait()
        for listener in self._cleanup:
            listener.close()
        if hasattr(self, "shm"):
            libc.shmctl(self.shm, 0, None)  # IPC_RMID
        shutil.rmtree(self.folder, ignore_errors=True)

    # --- turns ----------------------------------------------------------------------------------------------------

    def new_session(self, agent: str, **more: str) -> str:
        answer = self.http.post("/v1/sessions", json={"agent": agent, **more})
        assert answer.status_code == 201, answer.text
        return answer.json()["session_id"]

    def _workspace(self, session: str) -> str:
        return self.http.get(f"/v1/sessions/{session}").json()["workspace"]

    def begin(self, session: str, message: str) -> str:
        answer = self.http.post(f"/v1/sessions/{session}/turns", json={"message": message})
        assert answer.status_code == 202, answer.text
        return answer.json()["turn_id"]

    def events(self, turn: str) -> list[dict]:
        """All of a turn, to its end."""
        with self.http.stream("GET", f"/v1/turns/{turn}/events") as response:
            return [json.loads(line[6:]) for line in response.iter_lines() if line.startswith("data: ")]

    def started(self, turn: str) -> dict:
        with self.http.stream("GET", f"/v1/turns/{turn}/events") as response:
            for line in response.iter_lines():
                if line.startswith("data: ") and (event := json.loads(line[6:]))["event"] == "started":
                    return event
                assert "apperror" not in line, line
        raise AssertionError("the turn did not start")

    def attack(self, attack: str, *, session: str | None = None, **arguments: object) -> dict:
        """→ `{"did": …}` or `{"refused": ERRNO, "said": …}`; `{"ended": STATE, …}` when the turn did not survive it."""
        turn = self.begin(session or self.session, json.dumps({"attack": attack, "with": arguments}))
        said = self.events(turn)
        done = next((event for event in said if event["event"] == "done"), None)
        if done is None:
            end = next(event for event in said if event["event"] in ("apperror", "cancel"))
            return {"ended": end.get("state", "cancelled"), "message": end["message"], "events": said}
        return json.loads(done["session"]["messages"][-1]["content"])

    def mechanisms(self) -> set[str]:
        return set(self.health["seal"]["mechanisms"])


def as_user(folder: Path) -> list[str]:
    """The words before a command that run it as USER, who can read our Python although it may lie where only root goes.

    In a mount namespace of its own every closed folder on the way is covered by an empty one that holds just what is
    needed; the host's folders stay as they are.
    """
    needed = [sys.prefix, sys.base_prefix, str(Path(hermetic.__file__).parents[1])]
    closed: dict[str, list[str]] = {}
    for path in map(os.path.realpath, needed):
        for ancestor in reversed(Path(path).parents):
            if not ancestor.stat().st_mode & 0o001:
                closed.setdefault(str(ancestor), []).append(path)
                break
    script = ["set -e", "stage=$(mktemp -d)"]
    for number, (ancestor, paths) in enumerate(closed.items()):
        for index, path in enumerate(paths):
            script += [f'mkdir "$stage/{number}-{index}"', f'mount --bind "{path}" "$stage/{number}-{index}"']
        script += [f'mount -t tmpfs -o mode=755 cover "{ancestor}"']
        for index, path in enumerate(paths):
            script += [f'mkdir -p "{path}"', f'mount --move "$stage/{number}-{index}" "{path}"']
    script += ['rm -rf "$stage"', f'export HOME="{folder}"']
    script += [f'exec setpriv --reuid={USER} --regid={USER} --clear-groups "$@"']
    return ["unshare", "--mount", "sh", "-c", "\n".join(script), "sh"]


def wait_until(true: object, timeout_s: float = 30) -> None:
    deadline = time.monotonic() + timeout_s
    while not true():  # type: ignore[operator]
        assert time.monotonic() < deadline, "did not come true"
        time.sleep(0.01)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def run_as_user_works() -> bool:
    """Whether this host lets us make an ordinary user with namespaces: root, util-linux, and user namespaces on."""
    if os.getuid() != 0 or not shutil.which("unshare") or not shutil.which("setpriv"):
        return False
    done = subprocess.run(
        ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", "unshare", "--user", "true"],
        check=False,
        capture_output=True,
    )
    return done.returncode == 0
