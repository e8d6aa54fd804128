"""What one turn may use: by cgroup where the host has them, by rlimit else; and which limit it was."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from seal_turns import FULL, USERS, Host, folder

MOUNTS = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
MIB = 1 << 20


def hierarchies() -> dict[str, tuple[int, Path]]:
    """Controller → version and top of the hierarchy that has it, for those that we may make folders in."""
    found: dict[str, tuple[int, Path]] = {}
    for _, point, kind, options, *_ in MOUNTS:
        if kind == "cgroup":
            names, version = options.split(","), 1
        elif kind == "cgroup2":
            enabled = Path(point, "cgroup.subtree_control")
            names, version = enabled.read_text().split() if enabled.exists() else [], 2
            names.append("")  # version 2 itself, which can be joined without controllers
        else:
            continue
        if os.access(point, os.W_OK) and os.getuid() == 0:
            found |= {name: (version, Path(point)) for name in names if name in ("memory", "pids", "cpu", "")}
    return found


FOUND = hierarchies()


@pytest.fixture(params=USERS)
def host(request: pytest.FixtureRequest) -> Iterator[Host]:
    with folder() as path:
        yield Host(request.param, path)


@pytest.fixture
def cgroups(host: Host) -> Iterator[list[dict[str, Any]]]:
    """As a policy names them, given to the server's user (as systemd's Delegate= does)."""
    if host.kind == "user" and 2 in (FOUND["memory"][0], FOUND["pids"][0]):
        pytest.skip("in version 2 who moves itself must own where it comes from too")
    made = []
    for controller, (version, top) in FOUND.items():
        path = top / f"hermetic-test-{host.path.name}-{controller or 'none'}"
        path.mkdir()
        host.give(path, 0o755)
        made.append({"controllers": [controller] if controller else [], "version": version, "path": str(path)})
    yield made
    for one in made:
        assert list(Path(one["path"]).glob("*/")) == [], "a turn's folder is removed when it is reaped"
        os.rmdir(one["path"])


needs_cgroups = pytest.mark.skipif(
    not {"memory", "pids"} <= set(FOUND), reason="this host gives no cgroups to this user"
)
WITH_CGROUPS = [*FULL, "cgroup_memory", "cgroup_pids"]
HUNGRY = """
    pid = os.fork()
    if pid == 0:
        eaten = [bytearray(b"x" * (1 << 20)) for _ in range(400)]
        os._exit(0)
    say(status=os.waitpid(pid, 0)[1])
"""
FORKING = """
    children = []
    def fork():
        for _ in range(60):
            pid = os.fork()
            if pid == 0:
                time.sleep(600)
            children.append(pid)
    say(refused=outcome(fork), forked=len(children))
    for pid in children:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
"""


@needs_cgroups
def test_a_turn_that_takes_too_much_memory_loses_its_largest_process(host: Host, cgroups: list[dict[str, Any]]) -> None:
    limits = {"memory_bytes": 150 * MIB}
    policy = host.policy(WITH_CGROUPS, limits=limits, cgroups=cgroups)
    result = host.run(HUNGRY, policy)
    assert {"cgroup_memory", "cgroup_pids"} <= set(result["init"]["held"])
    assert result["status"] == 9, "the agent itself lives and has seen it"
    assert result["over_limit"] == "memory_bytes"


@needs_cgroups
def test_within_its_memory_a_turn_is_left_alone(host: Host, cgroups: list[dict[str, Any]]) -> None:
    """The control."""
    limits = {"memory_bytes": 600 * MIB}
    result = host.run(HUNGRY, host.policy(WITH_CGROUPS, limits=limits, cgroups=cgroups))
    assert (result["status"], result["over_limit"]) == (0, None)


@needs_cgroups
def test_processes_and_threads_of_a_turn_are_counted_together(host: Host, cgroups: list[dict[str, Any]]) -> None:
    policy = host.policy(WITH_CGROUPS, limits={"processes": 20}, cgroups=cgroups)
    result = host.run(FORKING, policy)
    assert (result["refused"], result["forked"]) == ("EAGAIN", 19), "the agent itself is one"
    assert result["over_limit"] == "processes"
    assert host.run(FORKING, host.policy(WITH_CGROUPS, cgroups=cgroups))["forked"] == 60
    threads = host.run(
        """
        stop = threading.Event()
        def start():
            for _ in range(60):
                threading.Thread(target=stop.wait, daemon=True).start()
        try:
            start()
        except RuntimeError as error:
            say(refused=str(error), running=threading.active_count())
        stop.set()
        """,
        policy,
    )
    assert (threads["refused"], threads["running"]) == ("can't start new thread", 20)


@needs_cgroups
def test_the_limits_are_written_where_the_kernel_reads_them(host: Host, cgroups: list[dict[str, Any]]) -> None:
    limits = {"memory_bytes": 200 * MIB, "processes": 30, "cpu_share": 50}
    policy = host.policy(["cgroup_memory", "cgroup_pids"], without="tenant_uid", limits=limits, cgroups=cgroups)
    files = [f"{one['path']}/turn/{file}" for one in cgroups for file in (
        "memory.limit_in_bytes", "memory.max", "pids.max", "cpu.shares", "cpu.weight", "cgroup.procs")]  # fmt: skip
    result = host.run(
        f"say(read={{file: open(file).read().split() for file in {files} if os.path.exists(file)}}, me=os.getpid())",
        policy,
    )
    for path, words in result["read"].items():
        if path.endswith(("limit_in_bytes", "memory.max")):
            assert words == [str(200 * MIB)]
        elif path.endswith("pids.max"):
            assert words == ["31"]
        elif path.endswith("cpu.shares"):
            assert words == ["512"]
        elif path.endswith("cpu.weight"):
            assert words == ["50"]
        else:
            # In version 2 who moves itself must own where it comes from too.
            assert str(result["me"]) in words or (host.kind == "user" and "-none/" in path)


def test_without_a_cgroup_each_process_is_bounded(host: Host) -> None:
    limits = {"memory_bytes": 300 * MIB, "processes": 20}
    result = host.run(FORKING, host.policy(limits=limits))
    assert result["refused"] == "EAGAIN"
    assert result["forked"] < 20
    script = """
        def take():
            try:
                return len(bytearray(400 << 20))
            except MemoryError:
                return "refused"
        say(taken=take())
    """
    assert host.run(script, host.policy(limits=limits))["taken"] == "refused"
    assert host.run(script, host.policy())["taken"] == 400 * MIB


def test_files_and_descriptors_have_bounds_that_cannot_be_raised(host: Host) -> None:
    script = """
        def big():
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            with open("big", "wb", buffering=0) as file:
                file.truncate(1 << 20)
                file.seek(1 << 20)
                file.write(b"x")
        def many():
            held = []
            try:
                while len(held) < 300:
                    held.append(open("/dev/null"))
            finally:
                for one in held:
                    one.close()
        hard = resource.RLIMIT_NOFILE, resource.RLIMIT_CORE, resource.RLIMIT_MEMLOCK
        say(big=outcome(big), many=outcome(many), hard=[resource.getrlimit(kind)[1] for kind in hard])
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
            say(raised="raised")
        except ValueError:
            say(raised="refused")
    """
    result = host.run(script, host.policy(limits={"file_bytes": MIB, "open_files": 64}))
    assert (result["big"], result["many"], result["raised"]) == ("EFBIG", "EMFILE", "refused")
    assert result["hard"] == [64, 0, 0]
    control = host.run(script, host.policy(without="rlimits"))
    assert control["big"] is None
    assert control["hard"][0] > 64


def test_the_turn_is_killed_before_others_when_the_host_has_no_memory_left(host: Host) -> None:
    result = host.run("say(own=open('/proc/self/oom_score_adj').read(), tool=sh('cat /proc/self/oom_score_adj'))")
    assert result["own"].strip() == result["tool"] == "500"
