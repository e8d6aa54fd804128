"""The load client: reads many event streams in a process of its own, one epoll loop, no parser but one expression.

The measurement talks to it in JSON lines over its stdin and stdout. What it can take at most is measured first
(`ceiling`), so that a slow client is not mistaken for a slow server.
"""

from __future__ import annotations

import json
import os
import re
import select
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple, Self

from bench.report import percentile

IN_FLIGHT = 50
"""Connections on their way at once: half of hypercorn's backlog, so that none waits for a second SYN."""
CONNECT_S = 120
STAMP = re.compile(rb'"text":"(\d+) ')
TAIL = 64
"""Bytes kept between two reads: longer than what STAMP matches."""


class Mark(NamedTuple):
    """What came since the last mark."""

    delivered: int
    p50_ms: float
    p99_ms: float
    cpu_s: float
    """Of the load client itself."""


class Load:
    """The client process, seen from the measurement."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.load"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[1],
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def _ask(self, **question: object) -> dict[str, Any]:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps(question).encode() + b"\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the load client has died")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise RuntimeError(f"load client: {answer['error']}")
        return answer

    def connect(self, port: int, paths: list[str]) -> None:
        """One stream per path. Returns when each has its response's head. Raises RuntimeError."""
        self._ask(do="connect", port=port, paths=paths)

    def mark(self) -> Mark:
        return Mark(**self._ask(do="mark"))

    def close(self) -> int:
        """Hangs up. → how many streams were still open."""
        return int(self._ask(do="close")["open"])


class Reader:
    """Inside the client process."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._epoll.register(0, select.EPOLLIN)
        self._sockets: dict[int, socket.socket] = {}
        self._tails: dict[int, bytes] = {}
        self._delays: list[int] = []
        self._cpu = time.process_time()
        self._commands = b""

    def run(self) -> None:
        while True:
            for fd, _ in self._epoll.poll():
                if fd in self._sockets:
                    self._read(fd)
                if fd:  # else a stream that a command in the same batch has closed
                    continue
                data = os.read(0, 1 << 20)
                if not data:
                    return
                *lines, self._commands = (self._commands + data).split(b"\n")
                for line in lines:
                    question = json.loads(line)
                    try:
                        answer = getattr(self, f"do_{question.pop('do')}")(**question)
                    except Exception as error:  # noqa: BLE001  told to the one who asked
                        answer = {"error": f"{type(error).__name__}: {error}"}
                    os.write(1, json.dumps(answer).encode() + b"\n")

    def _read(self, fd: int) -> None:
        try:
            data = self._sockets[fd].recv(1 << 18)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._epoll.unregister(fd)
            self._sockets.pop(fd).close()
            del self._tails[fd]
            return
        now = time.monotonic_ns()
        data = self._tails[fd] + data
        end = 0
        for match in STAMP.finditer(data):
            self._delays.append(now - int(match[1]))
            end = match.end()
        self._tails[fd] = data[max(end, len(data) - TAIL) :]

    def do_connect(self, port: int, paths: list[str]) -> dict[str, Any]:
        deadline = time.monotonic() + CONNECT_S
        todo = list(reversed(paths))
        heads: dict[int, bytes] = {}
        waiting = select.epoll()
        while todo or heads:
            while todo and len(heads) < IN_FLIGHT:
                made = socket.create_connection(("127.0.0.1", port), timeout=CONNECT_S)
                made.sendall(f"GET {todo.pop()} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode())
                made.setblocking(False)
                self._sockets[made.fileno()] = made
                heads[made.fileno()] = b""
                waiting.register(made.fileno(), select.EPOLLIN)
            for fd, _ in waiting.poll(1):
                data = self._sockets[fd].recv(1 << 16)
                heads[fd] += data
                if not data:
                    raise ConnectionError(f"the server has hung up: {heads[fd][:200]!r}")
                head, blank, rest = heads[fd].partition(b"\r\n\r\n")
                if blank:
                    if not head.startswith((b"HTTP/1.1 200", b"HTTP/1.0 200")):
                        raise ConnectionError(head[:200].decode("latin-1"))
                    del heads[fd]
                    waiting.unregister(fd)
                    self._tails[fd] = rest[-TAIL:]
                    self._epoll.register(fd, select.EPOLLIN)
            if time.monotonic() > deadline:
                raise TimeoutError(f"{len(heads)} streams have no answer, {len(todo)} are not even asked for")
        waiting.close()
        return {}

    def do_mark(self) -> dict[str, Any]:
        cpu, delays = time.process_time(), self._delays
        self._delays = []
        mark = Mark(
            delivered=len(delays),
            p50_ms=percentile(delays, 0.5) / 1e6 if delays else 0.0,
            p99_ms=percentile(delays, 0.99) / 1e6 if delays else 0.0,
            cpu_s=cpu - self._cpu,
        )
        self._cpu = time.process_time()
        return mark._asdict()

    def do_close(self) -> dict[str, Any]:
        for fd, made in self._sockets.items():
            self._epoll.unregister(fd)
            made.close()
        still = len(self._sockets)
        self._sockets.clear()
        self._tails.clear()
        return {"open": still}


if __name__ == "__main__":
    Reader().run()
