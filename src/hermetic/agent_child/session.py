"""The agent's process: says Ready, takes Start, runs one adapter, says one Result or Failed, ends.

Three things can happen at any moment: a command (read in a thread), SIGTERM (whose handler Python runs in the main
thread, between two bytecodes of whatever runs there), and the adapter's end. The handler's action therefore goes
through the emitter's shield, and does nothing once the adapter has ended.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import NoReturn

import msgspec

from hermetic.agent_child import adapters
from hermetic.agent_child.adapters import Adapter
from hermetic.agent_child.emitter import Emitter
from hermetic.agent_child.failures import CannotRun, failed_by
from hermetic.agent_child.interrupts import TurnCancelled, wake_main_thread
from hermetic.agent_child.out import Out
from hermetic.protocol import PROTOCOL_VERSION
from hermetic.protocol.commands import Answer, AnyCommand, Approve, Cancel, Start, Steer
from hermetic.protocol.errors import ProtocolError
from hermetic.protocol.events import Failed, Ready, Result
from hermetic.protocol.framing import command_decoder, frame

COMMAND_BYTES_MAX = 1 << 30
"""A Start carries the session's whole history, and comes from the supervisor, which we trust and which bounds it."""
_READ_BYTES = 1 << 18


def ready() -> bytes:
    """The first frame, to be written before `run`."""
    return frame(Ready(protocol=PROTOCOL_VERSION, pid=os.getpid(), python=sys.version.split()[0]))


def run(events_fd: int, commands_fd: int) -> NoReturn:
    """The life of the agent's process, from the moment that it is ready."""
    emitter = Emitter(events_fd)
    commands = read_commands(commands_fd)
    try:
        start = next(commands, None)
    except ProtocolError as error:
        end(emitter, Failed(message=f"the command stream broke: {error}", type="protocol", fault="hermetic"))
    if not isinstance(start, Start):  # the end of the stream, or a cancel: there is nothing to do
        os._exit(0)
    emitter.frame_bytes_max = start.frame_bytes_max
    end(emitter, Session(start, emitter).outcome(commands))


def read_commands(fd: int) -> Iterator[AnyCommand]:
    """Until the end of the stream. Raises ProtocolError, after the commands that came before the fault."""
    decoder = command_decoder(COMMAND_BYTES_MAX)
    while data := os.read(fd, _READ_BYTES):
        try:
            frames = decoder.feed(data)
        except ProtocolError as error:
            for _, command in error.extra["before"]:
                yield command
            raise
        for _, command in frames:
            yield command
    decoder.close()


def end(emitter: Emitter, last: Result | Failed) -> NoReturn:
    """The last event, what is left in the buffers of stdout and stderr, and out: no atexit, no waiting for threads."""
    emitter.emit(last)
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):  # whatever the agent has put in their place
            stream.flush()
    os._exit(0)


class Session:
    """One turn in its process."""

    def __init__(self, start: Start, emitter: Emitter) -> None:
        self._start = start
        self._emitter = emitter
        self._out = Out(emitter, start.approval_s)
        self._adapter: Adapter | None = None
        self._interrupted = False
        self._over = False

    def outcome(self, commands: Iterator[AnyCommand]) -> Result | Failed:
        """Runs the adapter. Never raises: every end is a value."""
        try:
            self._emitter.shield.guards(self._interrupt)
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, lambda *_: self._emitter.shield.act())
            try:
                result = self._run(commands)
            finally:
                self._over = True
            return msgspec.structs.replace(result, interrupted=True) if self._interrupted else result
        except BaseException as error:  # noqa: BLE001  sys.exit in an agent must not be a silent end
            self._over = True
            _print_traceback(error)
            return Result(interrupted=True) if self._interrupted else failed_by(error)

    def _run(self, commands: Iterator[AnyCommand]) -> Result:
        start = self._start
        if start.protocol != PROTOCOL_VERSION:
            raise CannotRun(
                f"the server speaks version {start.protocol} of the protocol, this environment {PROTOCOL_VERSION}",
                hint="Install the same version of Hermetic in the agent's environment and the server's.",
                fault="host",
                type="protocol",
            )
        try:
            os.chdir(start.workspace)
        except OSError as error:
            raise CannotRun(
                f"the workspace cannot be entered: {error.strerror}",
                hint="Check that the session's workspace exists and that the agent's user may enter it.",
                fault="host",
            ) from error
        # A launcher that has preloaded modules has them there already.
        sys.path[:0] = [path for path in start.python_path if path not in sys.path]
        for path in start.python_path:  # as it was when the launcher looked, which may be long ago
            sys.path_importer_cache.pop(path, None)
        self._adapter = adapters.load(start.adapter)
        threading.Thread(target=self._obey, args=(commands,), name="hermetic-commands", daemon=True).start()
        if self._interrupted:
            raise TurnCancelled
        return self._adapter.run(start, self._out)

    def _interrupt(self) -> None:
        """In the main thread, and again for each signal."""
        if self._over:
            return
        self._interrupted = True
        self._out.release()
        if self._adapter is not None:
            self._adapter.interrupt()

    def _obey(self, commands: Iterator[AnyCommand]) -> None:
        # Python's handlers run in the main thread, but only a signal that the kernel gives to that thread wakes it.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
        try:
            for command in commands:
                match command:
                    case Approve():
                        self._out.answer(command.approval_id, command.choice)
                    case Answer():
                        self._out.answer(command.clarify_id, command.text)
                    case Steer():
                        if self._adapter is not None:
                            self._adapter.steer(command.text)
                    case Cancel():
                        wake_main_thread()
                    case Start():
                        sys.stderr.write("hermetic: a second start was ignored\n")
        except ProtocolError as error:
            sys.stderr.write(f"hermetic: no more commands: {error}\n")


def _print_traceback(error: BaseException) -> None:
    """On stderr, unless our own words say all there is."""
    if isinstance(error, TurnCancelled) or (isinstance(error, CannotRun) and error.__cause__ is None):
        return
    shown = error.__cause__ if isinstance(error, CannotRun) and error.__cause__ is not None else error
    import traceback

    with suppress(Exception):
        traceback.print_exception(shown)
