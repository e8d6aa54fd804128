"""The limit: no HTTP library, no queue, no task per reader; the ticker sends the same bytes on every socket itself."""

from __future__ import annotations

import socket
import time

import trio

from bench.gate import is_open
from bench.peers import common

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-store\r\nTransfer-Encoding: chunked\r\n\r\n"


async def main() -> None:
    options = common.options()
    readers: list[list[socket.socket]] = [[] for _ in range(options.turns)]

    async def tick(turn: int) -> None:
        seq = 0
        while True:
            while not is_open(options.gate):
                await trio.sleep(common.GATE_S)
            due = common.first_due(options.rate)
            checked = time.monotonic()
            while True:
                await trio.sleep(max(0.0, due - time.monotonic()))
                if time.monotonic() - checked > common.GATE_S:
                    if not is_open(options.gate):
                        break
                    checked = time.monotonic()
                due += 1 / options.rate
                seq += 1
                frame = common.frame(turn, seq)
                chunk = b"%x\r\n%s\r\n" % (len(frame), frame)
                for reader in readers[turn]:
                    try:
                        reader.send(chunk)
                    except BlockingIOError:
                        pass  # a limit has no slow readers

    async def serve(stream: trio.SocketStream) -> None:
        request = b""
        while b"\r\n\r\n" not in request:
            data = await stream.receive_some(4096)
            if not data:
                return
            request += data
        turn = int(request.split(b"/", 2)[1])
        await stream.send_all(HEAD)
        # Its own descriptor for direct sends; trio's waits for the end.
        direct = socket.socket(fileno=stream.socket.dup().detach())
        direct.setblocking(False)
        readers[turn].append(direct)
        try:
            while await stream.receive_some(4096):
                pass
        except trio.BrokenResourceError:
            pass
        finally:
            readers[turn].remove(direct)
            direct.close()

    async with trio.open_nursery() as nursery:
        for turn in range(options.turns):
            nursery.start_soon(tick, turn)
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1", backlog=1024)
        nursery.start_soon(trio.serve_listeners, serve, listeners)
        common.announce(listeners[0].socket.getsockname()[1])


if __name__ == "__main__":
    trio.run(main)
