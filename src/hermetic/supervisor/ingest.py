"""All children's events come in through one epoll, and under load in ticks.

What an event costs is the wake-up, not its bytes: the loop turns, a task runs, a commit is made, sockets are written
on. So when wake-ups come faster than one per `window_s`, they are held back to that, and what has gathered is read,
committed and sent together. A wake-up is never held back while there is credit, and an idle server has the credit of
BURST wake-ups: a turn's first words, or a turn that speaks alone, are never late.

The same bounds a child that emits as fast as it can: it is read once in a window, so that its share of the loop is
what one read costs, and others come in between.
"""

from __future__ import annotations

import os
import select

import trio

BURST = 32
"""Wake-ups in credit: what a few turns that begin at once say first."""


class Ingest:
    """Use `receive` while `run` runs. `window_s` 0: never hold anything back."""

    def __init__(self, window_s: float) -> None:
        self.wakeups = 0
        self._window_s = window_s
        self._epoll = select.epoll()  # close-on-exec
        self._waiting: dict[int, trio.lowlevel.Task] = {}

    async def receive(self, stream: trio.abc.ReceiveStream, bytes_max: int) -> bytes:
        """The next bytes of a pipe; empty at its end. Any other stream is read as it is."""
        if not isinstance(stream, trio.lowlevel.FdStream):
            try:
                return bytes(await stream.receive_some(bytes_max))
            except trio.BrokenResourceError:
                return b""
        fd = stream.fileno()
        while True:
            await self._wait_readable(fd)
            try:
                return os.read(fd, bytes_max)
            except BlockingIOError:
                continue
            except OSError:
                return b""

    async def _wait_readable(self, fd: int) -> None:
        self._epoll.register(fd, select.EPOLLIN | select.EPOLLONESHOT)
        self._waiting[fd] = trio.lowlevel.current_task()

        def abort(_: object) -> trio.lowlevel.Abort:
            del self._waiting[fd]
            return trio.lowlevel.Abort.SUCCEEDED

        try:
            await trio.lowlevel.wait_task_rescheduled(abort)
        finally:
            # Now, not when the next read begins: by then the turn may have ended and the number be another file's.
            self._epoll.unregister(fd)

    async def run(self) -> None:
        credit, last = float(BURST), trio.current_time()
        try:
            while True:
                await trio.lowlevel.wait_readable(self._epoll.fileno())
                if self._window_s:
                    now = trio.current_time()
                    credit = min(BURST, credit + (now - last) / self._window_s)
                    last = now
                    if credit < 1:
                        await trio.sleep((1 - credit) * self._window_s)
                        credit = 1.0
                        last = trio.current_time()
                    credit -= 1
                self.wakeups += 1
                for fd, _ in self._epoll.poll(0):
                    trio.lowlevel.reschedule(self._waiting.pop(fd))
        finally:
            self._epoll.close()
