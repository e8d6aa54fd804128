"""Group commit: many tasks write, one thread commits, and what gathers during a commit shares the next one.

A commit's price is nearly all fixed (a switch to the thread, the transaction, the fsync), so sharing it is what makes
hundreds of turns affordable. There is no timer: when nothing waits, a write is committed at once.

Cancellation is exact. A write that still waits is taken out and never happens: its caller sees `Cancelled`. One whose
commit has begun cannot be stopped: its caller gets the outcome and is cancelled at its next checkpoint. So whoever
sees `Cancelled` knows that nothing was written, and whoever sees a result knows that it was.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Generic, TypeVar, cast

import outcome
import trio

from hermetic.protocol.errors import StorageError

WAITING_MAX = 1024
"""Writes in line or in a commit; further callers wait outside, first come, first served. A turn has one write in
flight, so only a host with more turns than this ever gets there; it bounds what one commit can hold back."""
BATCH_BYTES_MAX = 8 << 20
"""A commit takes no more once it has this much: everybody in it waits for all of it."""

T = TypeVar("T")


class Write(Generic[T]):
    """One caller's write; `result` is set by the commit, whatever happens."""

    __slots__ = ("bytes", "durable", "result", "run", "task", "then")

    def __init__(self, run: Callable[[], T], then: Callable[[T], None] | None, *, durable: bool, bytes: int) -> None:
        self.run = run
        self.then = then
        self.durable = durable
        """On the disk, not only in the operating system's hands, before the caller goes on."""
        self.bytes = bytes
        self.task = trio.lowlevel.current_task()
        self.result: outcome.Outcome[T] | None = None


class GroupCommit:
    """`commit(batch)` runs in a worker thread, alone; it sets every write's `result` and raises nothing."""

    def __init__(self, commit: Callable[[list[Write[Any]]], None]) -> None:
        self._commit = commit
        self._limiter = trio.CapacityLimiter(1)
        self._room = trio.Semaphore(WAITING_MAX)
        self._waiting: dict[Write[Any], None] = {}
        self._writer_idle = trio.lowlevel.ParkingLot()
        self._closed = False
        self.commit_s = 0.0
        """Spent in commits."""
        self._begun: float | None = None
        """When the commit at hand began."""

    async def write(
        self, run: Callable[[], T], then: Callable[[T], None] | None = None, *, durable: bool, bytes: int = 0
    ) -> T:
        """Runs `run` in a shared transaction; returns or raises what it did, once that is committed. `then` is called
        with it in that moment, before anybody's `then` of a later write; what it raises is raised.

        Raises `trio.ClosedResourceError` after `close`.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        try:
            # Without a checkpoint, so that all who woke from one commit are in line for the next.
            self._room.acquire_nowait()
        except trio.WouldBlock:
            await self._room.acquire()
        try:
            if self._closed:
                raise trio.ClosedResourceError("the store is closed")
            write = Write(run, then, durable=durable, bytes=bytes)
            self._waiting[write] = None
            self._writer_idle.unpark()
            return cast(T, await trio.lowlevel.wait_task_rescheduled(partial(self._withdraw, write)))
        finally:
            self._room.release()

    def _withdraw(self, write: Write[Any], _raise_cancel: object) -> trio.lowlevel.Abort:
        if write not in self._waiting:
            return trio.lowlevel.Abort.FAILED
        del self._waiting[write]
        return trio.lowlevel.Abort.SUCCEEDED

    @trio.lowlevel.enable_ki_protection
    async def run(self) -> None:
        """The writer task; ends after `close`, when nothing waits any more.

        It does not heed cancellation: tasks that end their turns under a shield need it to the last.
        """
        with trio.CancelScope(shield=True):
            while True:
                if not self._waiting:
                    if self._closed:
                        return
                    await self._writer_idle.park()
                # Two steps of the scheduler: in the first, all whom the last commit woke (or whom the same event
                # woke) write again; by the second they are in line. Without it every other commit holds one write.
                for _ in range(2):
                    await trio.lowlevel.checkpoint()
                if batch := self._take():
                    self._begun = trio.current_time()
                    try:
                        await trio.to_thread.run_sync(self._commit, batch, limiter=self._limiter)
                    except RuntimeError as error:  # no thread to be had: an agent has used up the host's processes
                        for write in batch:
                            write.result = outcome.Error(StorageError(f"nothing can be written now: {error}"))
                    self.commit_s += trio.current_time() - self._begun
                    self._begun = None
                    for write in batch:
                        trio.lowlevel.reschedule(write.task, _told(write))

    def _take(self) -> list[Write[Any]]:
        batch: list[Write[Any]] = []
        size = 0
        for write in self._waiting:
            batch.append(write)
            size += write.bytes
            if size >= BATCH_BYTES_MAX:
                break
        for write in batch:
            del self._waiting[write]
        return batch

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def lag_s(self) -> float:
        """How long the commit at hand has taken by now: nobody has waited longer for being in it."""
        return 0.0 if self._begun is None else trio.current_time() - self._begun

    def close(self) -> None:
        """No more writes; those in line still happen."""
        self._closed = True
        self._writer_idle.unpark()


def _told(write: Write[Any]) -> outcome.Outcome[Any]:
    """Calls `then`. → what the caller gets."""
    if write.result is None:  # not made in advance: an exception costs more than a write
        return outcome.Error(StorageError("The write was lost on its way.", hint=""))
    if write.then is not None and isinstance(write.result, outcome.Value):
        try:
            write.then(write.result.value)
        except Exception as error:  # noqa: BLE001 (it is the caller's to see)
            return outcome.Error(error)
    return write.result
