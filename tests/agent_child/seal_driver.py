"""One sealed turn without a supervisor: the launcher's part, an init and an agent that runs a script.

    python seal_driver.py < {"policy", "workspace", "uid", "script", "before", "guarded"}  > {"init", "agent", "said", …}

`uid`: become this user first, as a server that is not root. `before`: Python run in the launcher. The script runs in
the agent after it has entered, in the workspace; what it gives to `say(name=value)` comes back. Everything that a script
may import is imported here: inside there may be no standard library.
"""

import ctypes
import errno
import fcntl
import json
import logging
import mmap
import os
import resource
import signal
import socket
import stat
import struct
import subprocess
import sys
import termios
import threading
import time
import traceback
from contextlib import suppress

import msgspec

from hermetic.agent_child import seal
from hermetic.agent_child.seal import landlock, privileges, roots, seccomp, syscalls, tools
from hermetic.protocol.launch import Policy

FOR_SCRIPTS = (
    ctypes,
    errno,
    fcntl,
    logging,
    mmap,
    resource,
    socket,
    stat,
    struct,
    subprocess,
    termios,
    threading,
    time,
)
FOR_SCRIPTS += (landlock, privileges, roots, seccomp, syscalls)


def outcome(action):
    """The name of the error that it raised, or its result."""
    try:
        return action()
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error.errno))


def sh(command):
    """What a tool prints, errors included."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.run(["/bin/sh", "-c", command], check=False, text=True, **pipes).stdout.strip()


def run_agent(policy, order, init_entered, report):
    said = {}
    agent = seal.AgentSeal(policy)
    try:
        agent.prepare()
        os.write(report, b"{}\n")
        os.read(init_entered, 1)
        agent.enter(order["workspace"])
        os.chdir(order["workspace"])
        if order.get("guarded"):
            tools.guard([report])
        names = globals() | {"say": said.update, "report": report}
        exec(order["script"], names)  # noqa: S102  the test's own
        result = {"agent": {"held": agent.held, "missing": agent.missing}, "said": said}
    except seal.SealError as error:
        result = {"refused": [error.mechanism, error.why]}
    except BaseException:  # noqa: BLE001  told to the test
        result = {"crashed": traceback.format_exc()}
    os.write(report, json.dumps(result).encode() + b"\n")


def run_init(policy, order, report):
    init = seal.InitSeal(policy, order.get("name", "turn"))
    try:
        init.prepare()
        entered, entered_write = os.pipe()
        prepared, prepared_write = os.pipe()
        agent_pid = os.fork()
        if agent_pid == 0:
            os.close(entered_write)
            os.close(prepared)
            for fd in init.listeners:
                os.close(fd)
            run_agent(policy, order, entered, prepared_write)
            os._exit(0)
        os.close(prepared_write)
        with open(prepared) as from_agent:
            line = from_agent.readline()
            if line == "{}\n":
                init.enter(order["workspace"])
                os.write(entered_write, b"x")
            result = {"init": {"held": init.held, "missing": init.missing, "listeners": len(init.listeners)}}
            result |= {"init_signal": privileges.parents_death_signal()}
            if line == "{}\n":
                line = from_agent.readline()
        _, status = os.waitpid(agent_pid, 0)
        result |= json.loads(line or "{}") | {"status": status}
    except seal.SealError as error:
        result = {"refused": [error.mechanism, error.why]}
    except BaseException:  # noqa: BLE001  told to the test
        result = {"crashed": traceback.format_exc()}
    os.write(report, json.dumps(result).encode() + b"\n")


def main():
    order = json.load(sys.stdin)
    policy = msgspec.convert(order["policy"], Policy)
    if uid := order.get("uid"):
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
        privileges.set_dumpable(True)  # as a program that this user has started is
    exec(order.get("before", ""), globals() | {"order": order})  # noqa: S102  the test's own
    results, report = os.pipe()
    try:
        pid = seal.clone_init(policy)
    except seal.SealError as error:
        print(json.dumps({"not_cloned": [error.mechanism, error.why]}))
        return
    if pid == 0:
        try:
            if order.get("die_with_parent"):
                syscalls.prctl(1, signal.SIGKILL)
            run_init(policy, order, report)
        finally:
            os._exit(0)
    os.close(report)
    with open(results) as from_init:
        line = from_init.readline()
    _, status = os.waitpid(pid, 0)
    result = json.loads(line or "{}") | {"init_status": status}
    result["over_limit"] = seal.reap(policy, order.get("name", "turn"))
    print(json.dumps(result))


if __name__ == "__main__":
    with suppress(BrokenPipeError):
        main()
