"""Who a turn is: namespaces, user, groups, capabilities; and what an optional mechanism that is refused comes to."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from seal_turns import FULL, NAMESPACES, USERS, Host, folder

import hermetic


@pytest.fixture(params=USERS)
def host(request: pytest.FixtureRequest) -> Iterator[Host]:
    with folder() as path:
        yield Host(request.param, path)


STATUS = """
    def status(pid):
        return {line.split(":")[0]: line.split(":")[1].split() for line in open(f"/proc/{pid}/status")}
    keys = ("Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp")
    say(agent={key: status("self")[key] for key in keys}, init={key: status(1)[key] for key in keys[:-1]},
        tool=dict(line.split(":") for line in sh("grep -E '^(CapEff|CapBnd|NoNewPrivs):' /proc/self/status").splitlines()))
"""
NOTHING = "0000000000000000"


def test_init_and_agent_have_no_capability_and_none_to_be_had(host: Host) -> None:
    result = host.run(STATUS)
    for who in ("init", "agent"):
        status = result["said"][who]
        assert {status[key][0] for key in status if key.startswith("Cap")} == {NOTHING}
        assert status["Uid"] == status["Gid"] == [str(host.turn_uid)] * 4
        assert status["NoNewPrivs"] == ["1"]
    assert result["said"]["agent"]["Seccomp"] == ["2"]
    assert result["tool"]["CapBnd"].strip() == NOTHING


@pytest.mark.skipif("root" not in USERS, reason="only root has groups to give up")
def test_a_turn_keeps_none_of_the_servers_groups() -> None:
    with folder() as path:
        host = Host("root", path)
        result = host.run(STATUS, before="os.setgroups([27, 1000])")
        assert result["said"]["agent"]["Groups"] == result["said"]["init"]["Groups"] == []


def test_without_these_mechanisms_a_turn_has_what_the_server_has(host: Host) -> None:
    """The control."""
    result = host.run(STATUS, host.policy(["pid_namespace", "mount_namespace", "proc"], without="tenant_uid"))
    assert result["said"]["agent"]["CapEff"] != [NOTHING]
    assert result["said"]["agent"]["NoNewPrivs"] == ["0"]


def test_a_set_user_id_program_gives_nothing(host: Host) -> None:
    """no_new_privs alone, outside a private root, whose mounts are nosuid."""
    host.give(host.workspace, 0o755)
    if host.kind == "root":
        os.chown(host.workspace, host.turn_uid, host.turn_uid)
    program = host.path / "id"
    program.write_bytes(Path("/usr/bin/id").read_bytes())
    os.chown(program, 3000, 3000)
    program.chmod(0o4755)
    names = ["no_new_privs"]
    assert host.run(f"say(id=sh('{program} -u'))", host.policy(names))["id"] == str(host.turn_uid)
    if not os.statvfs(host.path).f_flag & os.ST_NOSUID:
        assert host.run(f"say(id=sh('{program} -u'))", host.policy([]))["id"] == "3000"


def test_a_turn_lives_in_namespaces_of_its_own(host: Host) -> None:
    script = 'say(links={name: os.readlink(f"/proc/self/ns/{name}") for name in ("pid", "mnt", "ipc", "uts", "net", "cgroup", "user")})'
    inside = host.run(script)["links"]
    for name, link in inside.items():
        assert (link != os.readlink(f"/proc/self/ns/{name}")) == (name != "user" or host.kind == "user"), name
    outside = host.run(script, host.policy(["no_new_privs"], without="tenant_uid"))["links"]
    assert outside == {name: os.readlink(f"/proc/self/ns/{name}") for name in outside}


def test_the_signal_for_the_parents_death_outlives_the_change_of_the_user(host: Host) -> None:
    assert host.run(die_with_parent=True)["init_signal"] == signal.SIGKILL
    assert host.run()["init_signal"] == 0


@pytest.mark.parametrize("refused", ["uts_namespace", "network_namespace"])
def test_a_namespace_that_is_optional_and_refused_is_reported_and_the_others_are_had(host: Host, refused: str) -> None:
    names = ["pid_namespace", "mount_namespace", "proc"]
    policy = host.policy(names, without="tenant_uid", optional=["uts_namespace", "network_namespace"])
    # In the place of its flag CLONE_SIGHAND, which the kernel refuses alone.
    result = host.run("", policy, before=f"seal.namespaces.FLAGS[{refused!r}] = 0x800")
    assert refused in result["init"]["missing"]
    assert {"pid_namespace", "mount_namespace", "proc"} <= set(result["init"]["held"])
    assert refused not in result["init"]["held"]


def test_a_namespace_that_is_required_and_refused_starts_nothing(host: Host) -> None:
    result = host.try_to_run(
        "", host.policy(["uts_namespace"]), before="seal.namespaces.FLAGS['uts_namespace'] = 0x800"
    )
    mechanism, why = result["not_cloned"]
    assert "uts_namespace" in mechanism
    assert why == "Invalid argument"


def test_under_a_filter_that_refuses_namespaces_the_rest_still_holds(host: Host) -> None:
    """A container's, or our own around a server inside a turn."""
    if host.kind == "root":
        os.chown(host.workspace, host.turn_uid, host.turn_uid)
    rest = ["no_new_privs", "no_capabilities", "seccomp", "landlock", "rlimits"]
    before = "privileges.gain_nothing_by_exec(); seccomp.install('host')"
    optional = [*NAMESPACES, "proc", "private_root"]
    result = host.run("say(up=os.listdir('/proc/1/task'))", host.policy(rest, optional=optional), before=before)
    assert set(result["init"]["missing"]) == set(optional)
    assert set(rest) <= set(result["agent"]["held"])
    refused = host.try_to_run("", host.policy(FULL), before=before)["not_cloned"]
    assert "pid_namespace" in refused[0]


@pytest.mark.parametrize("mechanism", ["cgroup_memory", "cgroup_pids"])
def test_a_cgroup_that_is_required_and_not_given_is_refused(host: Host, mechanism: str) -> None:
    assert host.try_to_run("", host.policy([*FULL, mechanism]))["refused"][0] == mechanism
    result = host.run("", host.policy(FULL, optional=[mechanism]))
    assert result["init"]["missing"] == [mechanism]


def test_seccomp_and_landlock_that_are_required_and_not_there_are_refused(host: Host) -> None:
    def refused(before: str, **fields: object) -> object:
        return host.try_to_run("", host.policy(**fields), before=before).get("refused")  # type: ignore[arg-type]

    no_landlock = "syscalls.LANDLOCK_CREATE_RULESET = 9999"
    assert refused(no_landlock) == ["landlock", "[Errno 38] Function not implemented"]
    old = "landlock.abi = lambda: 5"
    assert "version 5" in refused(old)[1]  # type: ignore[index]
    assert refused("syscalls.SECCOMP = 9999")[0] == "seccomp"  # type: ignore[index]
    names = [name for name in FULL if name != "landlock"]
    result = host.run("", host.policy(names, optional=["landlock"]), before=no_landlock)
    assert result["agent"]["missing"] == ["landlock"]


def test_a_mechanism_that_the_seal_does_not_know_is_refused(host: Host) -> None:
    """A policy is the whole truth: nothing in it is passed over."""
    assert host.try_to_run("", host.policy([*FULL, "force_field"]))["refused"][0] == "force_field"


def test_the_caller_of_clone_init_is_as_it_was(host: Host) -> None:
    """Its children, its namespaces and its descriptors: it forks the next turn from where it is."""
    script = f"""
        import json, os
        from hermetic.agent_child import seal
        from hermetic.protocol.launch import Policy
        if os.getuid() == 0 and {host.kind == "user"}:
            os.setresgid(*[{host.server_uid}] * 3)
            os.setresuid(*[{host.server_uid}] * 3)
            seal.privileges.set_dumpable(True)
        def state():
            names = ("pid", "mnt", "ipc", "uts", "net", "cgroup", "user", "pid_for_children")
            return [{{name: os.readlink(f"/proc/self/ns/{{name}}") for name in names}}, os.getuid()]
        before = state()
        policy = Policy(mechanisms={NAMESPACES[:-1]!r})
        for _ in range(3):
            pid = seal.clone_init(policy)
            if pid == 0:
                os._exit(os.getpid())
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1
        assert state() == before
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            print("fine")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        check=True,
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(Path(hermetic.__file__).parent.parent)},
    )
    assert (done.stdout, done.stderr) == ("fine\n", "")
