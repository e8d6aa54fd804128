"""Our folders in the hierarchies: found, made, swept of dead servers, removed."""

import os
import signal
import subprocess
from pathlib import Path

import pytest

from hermetic.supervisor.cgroups import Cgroups, Hierarchy, hierarchies, our_name

V1 = """\
9:name=systemd:/
8:pids:/sys
4:cpu,cpuacct:/
3:memory:/one/two
0::/
"""
V1_MOUNTS = """\
30 1 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
31 30 0:27 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
32 30 0:28 /one /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
33 30 0:29 /other /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids
34 30 0:30 / /sys/fs/cgroup/uni\\040fied rw - cgroup2 cgroup2 rw
"""


def test_each_hierarchy_is_found_where_it_is_mounted_and_another_containers_is_not() -> None:
    assert hierarchies(V1, V1_MOUNTS) == [
        Hierarchy(1, ("cpu",), "/sys/fs/cgroup/cpu,cpuacct"),
        Hierarchy(1, ("memory",), "/sys/fs/cgroup/memory/two"),
        Hierarchy(2, (), "/sys/fs/cgroup/uni fied"),
    ]


def test_a_group_outside_of_the_containers_view_is_left_out() -> None:
    assert hierarchies("0::/../elsewhere\n", "1 0 0:1 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw") == []


@pytest.fixture
def cgroups():
    ours = Cgroups.open()
    if not ours.parents:
        pytest.skip("this host lets us make no cgroup: needs root, or a service manager's delegation")
    yield ours
    ours.close()


def test_closing_kills_what_is_left_and_removes_the_folders(cgroups: Cgroups) -> None:
    parent = Path(cgroups.parents[0].path)
    (parent / "turn" / "deeper").mkdir(parents=True)
    left = subprocess.Popen(["sleep", "1000"])
    (parent / "turn" / "deeper" / "cgroup.procs").write_text(str(left.pid))
    cgroups.close()
    assert left.wait() == -signal.SIGKILL
    assert not any(Path(cgroup.path).exists() for cgroup in cgroups.parents)


def test_a_dead_servers_folders_are_swept_and_a_living_ones_stay(cgroups: Cgroups) -> None:
    base = Path(cgroups.parents[0].path).parent
    living = subprocess.Popen(["sleep", "1000"])
    stays, dead = base / our_name(living.pid), base / f"hermetic-{living.pid}-1"  # another start time: another process
    left = subprocess.Popen(["sleep", "1000"])
    try:
        stays.mkdir()
        (dead / "turn").mkdir(parents=True)
        (dead / "turn" / "cgroup.procs").write_text(str(left.pid))
        Cgroups.open()
        assert left.wait() == -signal.SIGKILL
        assert stays.exists() and not dead.exists()
    finally:
        stays.rmdir()
        for process in (living, left):
            process.kill()
            process.wait()


def test_an_unprivileged_user_without_delegation_gets_no_folder_and_no_error() -> None:
    if os.getuid() != 0:
        pytest.skip("needs root, to become another user")
    code = "from hermetic.supervisor.cgroups import Cgroups; print(Cgroups.open().parents)"
    import hermetic

    source = Path(hermetic.__file__).parents[1]
    # As that user it may not even read a package below /root, so it starts as root and changes when all is loaded.
    program = f"import os, hermetic.supervisor.cgroups; os.setgid(65534); os.setuid(65534); {code}"
    import sys

    said = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True, cwd=source)
    assert said.returncode == 0 and said.stdout.splitlines()[-1] == "[]", said
