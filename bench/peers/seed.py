"""What came before, as a small model: the standard library's HTTP server with a thread per request, the agent in a
thread, one queue per stream, one write and flush per event.

`POST /turns` starts a turn that says one token, for the time from a request to its first event.
"""

from __future__ import annotations

import itertools
import json
import queue
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from bench.gate import is_open, wait_open
from bench.peers import common

options = common.options()
lock = threading.Lock()
readers: list[set[queue.Queue[tuple[int, str]]]] = [set() for _ in range(options.turns)]
started: dict[int, queue.Queue[tuple[int, str]]] = {}
numbers = itertools.count(options.turns)


class Server(ThreadingHTTPServer):
    request_queue_size = 1024
    daemon_threads = True


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        turn = next(numbers)
        started[turn] = queue.Queue()
        threading.Thread(target=lambda: started[turn].put((1, common.data())), daemon=True).start()
        body = json.dumps({"turn_id": str(turn)}).encode()
        self.send_response(202)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        turn = int(self.path.split("/")[1])
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        mine = started.pop(turn, None) or queue.Queue()
        with lock:
            if turn < options.turns:
                readers[turn].add(mine)
        try:
            while True:
                seq, data = mine.get()
                self.wfile.write(f"id: {turn:016x}:{seq}\nevent: token\ndata: {data}\n\n".encode())
                self.wfile.flush()
        except OSError:
            pass
        finally:
            with lock:
                if turn < options.turns:
                    readers[turn].discard(mine)


def tick(turn: int) -> None:
    seq = 0
    while True:
        wait_open(options.gate)
        due = common.first_due(options.rate)
        checked = time.monotonic()
        while True:
            time.sleep(max(0.0, due - time.monotonic()))
            if time.monotonic() - checked > common.GATE_S:
                if not is_open(options.gate):
                    break
                checked = time.monotonic()
            due += 1 / options.rate
            seq += 1
            data = common.data()
            with lock:
                for reader in readers[turn]:
                    reader.put((seq, data))


if __name__ == "__main__":
    server = Server(("127.0.0.1", 0), Handler)
    for number in range(options.turns):
        threading.Thread(target=tick, args=(number,), daemon=True).start()
    common.announce(server.server_address[1])
    server.serve_forever()
