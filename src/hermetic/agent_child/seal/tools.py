"""The agent above its tools.

A tool runs as the agent's user, in its namespaces, with its files. What keeps it from ending the agent, reading it, or
speaking in its name: each process that the agent starts enters one more Landlock domain before it runs anything, and a
domain cannot signal or trace what is outside it (landlock.py); the agent is not dumpable, so its memory, environment
and descriptors are root's in /proc; and the two descriptors of the protocol are closed in every child.

It happens in the child between fork and exec, by a hook that Python runs after a fork (os.register_at_fork). Python
leaves its hooks out where it starts a program without forking itself: vfork in subprocess, posix_spawn, system(3).
These are made to fork. The hook is called in a process that was a copy of one with threads, any of which may have held
any lock; so it is one prepared system call per step, and imports, logs and opens nothing.

Domains are at most 16 deep, so a child of a child enters none: it is in its parent's already.

Not held: a program that an extension in C starts behind Python's back stays in the agent's own domain. It can still not
read the agent, but it can signal it.
"""

from __future__ import annotations

import _posixsubprocess
import os
import signal
import subprocess
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, NoReturn

from hermetic.agent_child.seal import landlock, privileges, syscalls

_PREEXEC = 21
"""The place of preexec_fn among the arguments of _posixsubprocess.fork_exec. Given one, it forks and runs the hooks."""
_NOT_FOUND = 127
_FROM_TERMINAL = (signal.SIGINT, signal.SIGQUIT)


def guard(private: Iterable[int]) -> None:
    """In the interpreter that will run the agent, before any of the agent's code. `private`: the protocol's descriptors.

    Once for a process, and only in a sealed one: without no_new_privs nothing would hold, and tools are left as they
    are. In children that do not exec, a private descriptor leads to /dev/null from then on.
    """
    if not privileges.gains_nothing_by_exec():
        return
    privileges.set_dumpable(False)  # an exec has made it dumpable again
    _Guard(list(private)).install()


class _Guard:
    def __init__(self, private: list[int]) -> None:
        self._private = private
        self._null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        self._ruleset = landlock.below_the_agent()
        self._below = False

    def install(self) -> None:
        os.register_at_fork(after_in_child=self._enter_below)
        fork_exec = _posixsubprocess.fork_exec

        def fork_exec_with_hooks(*arguments: Any) -> int:
            if arguments[_PREEXEC] is None:
                arguments = (*arguments[:_PREEXEC], _nothing, *arguments[_PREEXEC + 1 :])
            return fork_exec(*arguments)

        changed: Any = (_posixsubprocess, subprocess)
        changed[0].fork_exec = fork_exec_with_hooks
        changed[1]._fork_exec = fork_exec_with_hooks
        changed[1]._USE_POSIX_SPAWN = False
        os.system = _system
        os.posix_spawn = _posix_spawn
        os.posix_spawnp = _posix_spawnp

    def _enter_below(self) -> None:
        if self._below:
            return
        self._below = True
        for fd in self._private:
            # Not closed: the number would go to the next file that is opened, and the emitter would write there.
            os.dup2(self._null, fd, inheritable=False)
        if self._ruleset >= 0:
            try:
                syscalls.call(syscalls.LANDLOCK_RESTRICT_SELF, self._ruleset, 0)
            except OSError:  # no memory, say: a tool that is not held must not run
                os._exit(_NOT_FOUND)


def _nothing() -> None:
    """A preexec_fn."""


def _system(command: Any) -> int:
    """os.system: a wait status. The caller ignores what a terminal sends while the command runs (system(3))."""
    ignored: dict[int, Any] = {}
    with suppress(ValueError):  # not the main thread
        ignored = {number: signal.signal(number, signal.SIG_IGN) for number in _FROM_TERMINAL}
    try:
        heeded = [number for number, handler in ignored.items() if handler is not signal.SIG_IGN]
        pid = _posix_spawn("/bin/sh", ["sh", "-c", command], os.environ, setsigdef=heeded)
        return os.waitpid(pid, 0)[1]
    finally:
        for number, handler in ignored.items():
            signal.signal(number, handler)


def _posix_spawn(path: Any, argv: Any, env: Any, **options: Any) -> int:
    return _spawn(os.execve, path, argv, env, options)


def _posix_spawnp(path: Any, argv: Any, env: Any, **options: Any) -> int:
    return _spawn(os.execvpe, path, argv, env, options)


def _spawn(execute: Callable[..., NoReturn], path: Any, argv: Any, env: Any, options: dict[str, Any]) -> int:
    """As posix_spawn(3). Raises the child's OSError."""
    failed_read, failed_write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            _set_up(options)
            execute(path, argv, env)
        except OSError as error:
            os.write(failed_write, b"%d" % (error.errno or 0))
        finally:
            os._exit(_NOT_FOUND)
    os.close(failed_write)
    with open(failed_read, "rb") as failed:
        number = failed.read()  # ends with the exec, which closes the other end
    if number:
        os.waitpid(pid, 0)
        raise OSError(int(number), os.strerror(int(number)), path)
    return pid


def _set_up(options: dict[str, Any]) -> None:
    """In the child, in the order of posix_spawn(3)."""
    if (group := options.get("setpgroup")) is not None:
        os.setpgid(0, group)
    if options.get("setsid") or options.get("setsid_np"):
        os.setsid()
    if (scheduler := options.get("scheduler")) is not None:
        policy, parameter = scheduler
        if policy is None:
            os.sched_setparam(0, parameter)
        else:
            os.sched_setscheduler(0, policy, parameter)
    for number in options.get("setsigdef", ()):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, options.get("setsigmask", signal.pthread_sigmask(signal.SIG_BLOCK, ())))
    for action, *arguments in options.get("file_actions") or ():
        if action == os.POSIX_SPAWN_OPEN:
            wanted, path, flags, mode = arguments
            fd = os.open(path, flags, mode)
            if fd != wanted:
                os.dup2(fd, wanted)
                os.close(fd)
            else:
                os.set_inheritable(fd, True)
        elif action == os.POSIX_SPAWN_CLOSE:
            with suppress(OSError):
                os.close(arguments[0])
        elif action == os.POSIX_SPAWN_DUP2:
            os.dup2(*arguments)
