"""SQLite under the store: opening, the lock, the schema's version, transactions, and what its errors mean.

Everything here blocks and runs in worker threads; one thread at a time per connection.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from contextlib import ExitStack, closing
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import apsw
import msgspec
import outcome

from hermetic.protocol.errors import HostError, StorageError
from hermetic.supervisor.store.group_commit import Write

APPLICATION_ID = 0x4865726D
"""`Herm` in the file's header: a database of another program is never touched."""
BUSY_MS = 5000
"""How long a write waits for another process: none should write, but a person with the sqlite3 shell may."""
WAL_BYTES_KEPT = 64 << 20
"""A write-ahead log that a burst has made larger is cut back to this."""

T = TypeVar("T")


class Engine:
    """One database: a connection that writes, one that reads, and the lock that keeps other servers out."""

    def __init__(self, path: Path) -> None:
        """Opens or makes the database at `path`, its folder too, and brings its schema up to date.

        Raises `HostError` when another server holds it, `StorageError` when it cannot be opened, is damaged, belongs to
        another program or was written by a newer Hermetic; then the file is as it was before.
        """
        self.commits = 0
        """Transactions committed since the start."""
        self._synchronous = ""
        with ExitStack() as stack:
            try:
                path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                stack.callback(os.close, _lock(path))
                # Made here, because SQLite would let others read it; its -wal and -shm take after it.
                os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
                check_version(path)
                self.writer = stack.enter_context(closing(apsw.Connection(str(path))))
                self._prepare()
                self.reader = stack.enter_context(closing(apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)))
                self.reader.set_busy_timeout(BUSY_MS)
            except (apsw.Error, OSError) as error:
                raise translated(error, path) from error
            self._path = path
            self.close = stack.pop_all().close

    def _prepare(self) -> None:
        db = self.writer
        db.set_busy_timeout(BUSY_MS)
        if (mode := db.pragma("journal_mode", "wal")) != "wal":
            raise StorageError(
                f"the database stays in journal mode {mode}",
                hint="The data directory must be on a local file system, not on a network share.",
            )
        db.pragma("foreign_keys", True)
        db.pragma("journal_size_limit", WAL_BYTES_KEPT)
        migrations = _migrations()
        for version in range(_version(db) + 1, len(migrations) + 1):
            db.execute("BEGIN IMMEDIATE")
            db.execute(migrations[version - 1])
            db.execute(f"PRAGMA user_version = {version}")
            db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            db.execute("COMMIT")

    def query(self, run: Callable[[apsw.Connection], T]) -> T:
        """Runs `run` on one consistent state. Raises `StorageError` when the engine fails."""
        try:
            with self.reader:
                result = run(self.reader)
        except (apsw.Error, msgspec.MsgspecError) as error:
            raise translated(error, self._path) from error
        return result

    def commit(self, batch: list[Write[Any]]) -> None:
        """One transaction for all; each write in a savepoint of its own, so that a refused one does not fail the rest.

        When the engine fails (a full disk, a damaged page), all is rolled back and each write tried alone, so that one
        that is too large for the disk, or meets the damage, does not fail the others either.
        """
        try:
            self._transact(batch)
        except (apsw.Error, msgspec.MsgspecError, MemoryError) as error:
            if len(batch) == 1:
                batch[0].result = outcome.Error(translated(error, self._path))
                return
            for write in batch:
                self.commit([write])

    def _transact(self, batch: list[Write[Any]]) -> None:
        db = self.writer
        # FULL adds an fsync of the log to the commit, which takes all earlier commits to the disk with it.
        synchronous = "FULL" if any(write.durable for write in batch) else "NORMAL"
        if synchronous != self._synchronous:
            db.execute(f"PRAGMA synchronous = {synchronous}")
            self._synchronous = synchronous
        try:
            db.execute("BEGIN IMMEDIATE")
            for write in batch:
                db.execute("SAVEPOINT one")
                try:
                    write.result = outcome.Value(write.run())
                except (apsw.Error, msgspec.MsgspecError, MemoryError):
                    raise
                except Exception as error:  # noqa: BLE001 (it is the writer's to see, as from any call)
                    db.execute("ROLLBACK TO one")
                    write.result = outcome.Error(error)
                db.execute("RELEASE one")
            db.execute("COMMIT")
            self.commits += 1
        finally:
            if db.in_transaction:
                db.execute("ROLLBACK")


def translated(error: Exception, path: Path) -> StorageError:
    """What an engine's or the file system's error means to the person who runs the server."""
    what = f"{type(error).__name__}: {error}"
    if isinstance(error, apsw.FullError | apsw.IOError):
        return StorageError(f"the database cannot be written or read; the disk may be full ({what})")
    if isinstance(error, apsw.CorruptError | apsw.NotADBError | msgspec.MsgspecError):
        return StorageError(
            f"the database {path} is damaged ({what})",
            hint="Stop the server and restore the data directory from a backup, or start with an empty one.",
        )
    if isinstance(error, apsw.CantOpenError | apsw.ReadOnlyError | apsw.AuthError | OSError):
        return StorageError(
            f"the database {path} cannot be opened for writing ({what})",
            hint="Check that the data directory belongs to the user who runs the server, and that its disk has space.",
        )
    if isinstance(error, apsw.BusyError):
        return StorageError(
            f"another program has kept the database busy for {BUSY_MS / 1000:g} s",
            hint="Close the program that has a transaction open on it.",
        )
    return StorageError(f"the database engine failed ({what})", hint="Look at the server's log, and report it.")


def _lock(path: Path) -> int:
    """→ the descriptor that holds `<path>.lock` for this process; the kernel frees it however the process ends.

    flock(2) and not fcntl locks: those are lost when any descriptor of the file closes.
    """
    fd = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    except BlockingIOError:
        owner = os.pread(fd, 20, 0).decode("ascii", "replace").strip() or "unknown"
        os.close(fd)
        raise HostError(
            f"another server uses the data directory {path.parent} (process {owner})",
            hint="Stop that server, or give this one a data directory of its own with --data.",
        ) from None
    except BaseException:
        os.close(fd)
        raise
    return fd


def check_version(path: Path) -> None:
    """Raises `StorageError` for a database that is not ours to read. Looks through a connection that cannot write, so that a database which is not ours stays as it is."""
    if path.stat().st_size == 0:
        return
    with closing(apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)) as db:
        application, version, known = db.pragma("application_id"), _version(db), len(_migrations())
        # Without a table it is ours as well: a server may have been killed before its first migration.
        if application != APPLICATION_ID and db.execute("SELECT 1 FROM sqlite_schema LIMIT 1").get:
            raise StorageError(
                f"{path} is a database of another program",
                hint="Give --data another directory; this file has not been touched.",
            )
        if version > known:
            raise StorageError(
                f"{path} has version {version}; this program knows versions up to {known}",
                hint="A newer Hermetic wrote it: install that one again, or restore a backup. The file is untouched.",
            )


def _version(db: apsw.Connection) -> int:
    return int(db.pragma("user_version"))


def _migrations() -> list[str]:
    """The n-th takes version n - 1 to version n."""
    folder = resources.files("hermetic.supervisor.store") / "migrations"
    return [file.read_text() for file in sorted(folder.iterdir(), key=lambda f: f.name) if file.name.endswith(".sql")]
