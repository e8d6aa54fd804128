"""Landlock where it is the first wall: a turn without any namespace."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest
from seal_turns import USERS, WITHOUT_NAMESPACES, Host, folder


@pytest.fixture(params=USERS)
def host(request: pytest.FixtureRequest) -> Iterator[Host]:
    with folder() as path:
        host = Host(request.param, path)
        if host.kind == "root":  # without mounts nobody translates ids
            os.chown(host.workspace, host.turn_uid, host.turn_uid)
        yield host


LEVEL_1 = WITHOUT_NAMESPACES
NO_LANDLOCK = [name for name in WITHOUT_NAMESPACES if name not in ("landlock", "seccomp")]


@pytest.fixture
def open_to_all(host: Host) -> str:
    path = host.write("open", mode=0o666)
    return str(path)


FILES = """
    say(read=outcome(lambda: open({path!r}).read()), write=outcome(lambda: open({path!r}, "w").close()),
        truncate=outcome(lambda: os.truncate({path!r}, 0)), tmp=outcome(lambda: open("/tmp/hermetic-seal-made", "w").close()),
        listed=outcome(lambda: len(os.listdir("/tmp")) > 0), passwd=outcome(lambda: len(open("/etc/passwd").read()) > 0),
        link=outcome(lambda: os.symlink({path!r}, "link")), through=outcome(lambda: open("link").read()),
        own=outcome(lambda: open("own", "w").close()), device=outcome(lambda: open("/dev/null", "w").close()),
        environ=outcome(lambda: open("/proc/%d/environ" % os.getppid()).read()))
"""


def test_a_turn_reads_what_the_policy_names_and_writes_its_workspace(host: Host, open_to_all: str) -> None:
    result = host.run(FILES.format(path=open_to_all), host.policy(LEVEL_1))
    assert set(LEVEL_1) <= {*result["init"]["held"], *result["agent"]["held"]}
    for name in ("read", "write", "truncate", "tmp", "listed", "through", "environ"):
        assert result[name] == "EACCES", name
    for name in ("own", "device", "link"):
        assert result[name] is None, name
    assert result["passwd"] is True


def test_without_landlock_the_host_lies_open(host: Host, open_to_all: str) -> None:
    """The control."""
    try:
        result = host.run(FILES.format(path=open_to_all), host.policy(NO_LANDLOCK))
        assert (result["read"], result["through"], result["listed"]) == ("text", "", True)
        for name in ("write", "truncate", "tmp"):
            assert result[name] is None, name
    finally:
        os.unlink("/tmp/hermetic-seal-made")


def test_one_that_is_too_old_for_scopes_is_laid_on_and_promised_to_nobody(host: Host, open_to_all: str) -> None:
    names = [name for name in LEVEL_1 if name != "landlock"]
    script = f"say(read=outcome(lambda: open({open_to_all!r}).read()), own=outcome(lambda: open('own', 'w').close()))"
    result = host.run(script, host.policy(names, optional=["landlock"]), before="landlock.abi = lambda: 3")
    assert result["agent"]["missing"] == ["landlock"]
    assert (result["read"], result["own"]) == ("EACCES", None)


PROCESSES = """
    def connect():
        with socket.socket(socket.AF_UNIX) as one:
            one.connect({address!r})
            return "connected"
    say(signal=outcome(lambda: os.kill({pid}, 0)), init=outcome(lambda: os.kill(os.getppid(), 0)),
        own=outcome(lambda: os.kill(os.getpid(), 0)), connected=outcome(connect))
"""


# A process of the turn's own user, so that nothing but the border is in the way.
SLEEPER = """
pid = os.fork()
if pid == 0:
    os.setresuid({uid}, {uid}, {uid})
    syscalls.prctl(1, signal.SIGKILL)
    os.close(1), os.close(2)
    time.sleep(600)
order["script"] = order["script"].replace("PID", str(pid))
"""


def test_signals_and_abstract_sockets_stop_at_the_border(host: Host) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("\0hermetic-seal-" + os.urandom(8).hex())
        listener.listen()
        address = listener.getsockname().decode()
        order = {"before": SLEEPER.format(uid=host.turn_uid)}
        script = PROCESSES.format(pid="PID", address=address)
        result = host.run(script, host.policy(LEVEL_1), **order)
        assert (result["signal"], result["init"], result["connected"]) == ("EPERM", "EPERM", "EPERM")
        assert result["own"] is None
        control = host.run(script, host.policy(NO_LANDLOCK), **order)
        assert (control["signal"], control["init"], control["connected"]) == (None, None, "connected")


NETWORK = """
    def tcp(port, flags=0):
        with socket.socket() as one:
            if flags:
                return one.sendto(b"x", flags, ("127.0.0.1", port))
            one.connect(("127.0.0.1", port))
            return "connected"
    def bind():
        with socket.socket() as one:
            one.bind(("127.0.0.1", 0))
            return "bound"
    say(allowed=outcome(lambda: tcp({allowed})), other=outcome(lambda: tcp({other})), bind=outcome(bind),
        fast=outcome(lambda: tcp({other}, socket.MSG_FASTOPEN)), udp=outcome(lambda: socket.socket(2, 2).close()),
        mptcp=outcome(lambda: socket.socket(2, 1, 262).close()))
"""


@pytest.fixture
def ports() -> Iterator[tuple[int, int]]:
    """Two that accept."""
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as two:
        yield one.getsockname()[1], two.getsockname()[1]


def test_where_there_is_no_network_namespace_tcp_is_ruled_by_port(host: Host, ports: tuple[int, int]) -> None:
    policy = host.policy(LEVEL_1, optional=["network_namespace"], ports=[ports[0]])
    script = NETWORK.format(allowed=ports[0], other=ports[1])
    # The namespace's flag is replaced by CLONE_SIGHAND, which the kernel refuses alone.
    result = host.run(script, policy, before="seal.namespaces.FLAGS['network_namespace'] = 0x800")
    assert result["init"]["missing"] == ["network_namespace"]
    assert result["init"]["listeners"] == 0
    assert result["allowed"] == "connected"
    for name in ("other", "bind", "udp"):
        assert result[name] == "EACCES", name
    assert result["fast"] == "EPERM"
    assert result["mptcp"] == "EPROTONOSUPPORT"


def test_a_policy_that_does_not_speak_of_the_network_leaves_it_as_it_is(host: Host, ports: tuple[int, int]) -> None:
    """The control of the one above too."""
    result = host.run(NETWORK.format(allowed=ports[0], other=ports[1]), host.policy(LEVEL_1))
    assert (result["other"], result["bind"], result["udp"]) == ("connected", "bound", None)


def test_a_network_of_its_own_has_the_loopback_and_the_listeners_that_init_made(
    host: Host, ports: tuple[int, int]
) -> None:
    policy = host.policy(["network_namespace", *LEVEL_1, "mount_namespace", "private_root"], ports=[3128, 80])
    result = host.run(NETWORK.format(allowed=3128, other=ports[1]), policy)
    assert result["init"]["listeners"] == 2
    assert (result["allowed"], result["bind"], result["udp"]) == ("connected", "bound", None)
    assert result["other"] == "ECONNREFUSED", "the host's own loopback is another"


@pytest.mark.skipif("root" not in USERS, reason="only root has turns of other users")
def test_a_workspace_of_somebody_else_needs_a_private_root() -> None:
    with folder() as path:
        host = Host("root", path)
        refused = host.try_to_run("", host.policy(LEVEL_1))["refused"]
    assert refused[0] == "tenant_uid"
    assert "must belong to user" in refused[1]


def test_threads_and_tools_are_inside_too(host: Host, open_to_all: str) -> None:
    result = host.run(
        f"""
        seen = []
        thread = threading.Thread(target=lambda: seen.append(outcome(lambda: open({open_to_all!r}))))
        thread.start()
        thread.join()
        say(thread=seen[0], tool=sh("cat {open_to_all}"))
        """,
        host.policy(LEVEL_1),
    )
    assert result["thread"] == "EACCES"
    assert "Permission denied" in result["tool"]
