"""A turn's root: what is there, what is not, what can be written, and who owns it on the host."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from seal_turns import FULL, USERS, Host, folder


@pytest.fixture(params=USERS)
def host(request: pytest.FixtureRequest) -> Iterator[Host]:
    with folder() as path:
        yield Host(request.param, path)


def test_all_that_was_asked_for_is_held_by_init_or_agent(host: Host) -> None:
    result = host.run()
    assert set(FULL) <= {*result["init"]["held"], *result["agent"]["held"]}
    assert result["init"]["missing"] == result["agent"]["missing"] == []


def test_the_root_has_what_programs_need_and_nothing_of_the_host(host: Host) -> None:
    host.write("secret.txt", mode=0o644)
    result = host.run(
        """
        def seen(path):
            return outcome(lambda: sorted(os.listdir(path)))
        say(root=seen("/"), etc=seen("/etc"), dev=seen("/dev"), home=seen("/home"), up=seen(".."),
            shadow=outcome(lambda: os.stat("/etc/shadow")), ssh=outcome(lambda: os.listdir("/root/.ssh")),
            sys=outcome(lambda: os.stat("/sys")), mounts=open("/proc/self/mounts").read(),
            ids=[os.getpid(), sorted(int(one) for one in os.listdir("/proc") if one.isdigit())], names=sh("id -un; uname -n"))
        """
    )
    assert set(result["root"]) <= {
        *("bin", "dev", "etc", "home", "lib", "lib32", "lib64", "libx32", "proc", "run", "sbin", "tmp", "usr", "var")
    }
    assert {"passwd", "group", "hosts", "resolv.conf", "nsswitch.conf"} <= set(result["etc"])
    assert set(result["dev"]) == {
        *("null", "zero", "full", "random", "urandom", "tty", "pts", "ptmx", "shm", "fd", "stdin", "stdout", "stderr")
    }
    assert result["home"] == ["agent"]
    assert result["up"] == ["workspace"], "beside the workspace there is nothing of the folder that it is in"
    assert (result["shadow"], result["sys"]) == ("ENOENT", "ENOENT")
    assert result["ssh"] in ("ENOENT", "EACCES")
    assert result["ids"] == [2, [1, 2]]
    assert result["names"] == "agent\nhermetic"
    assert "cgroup" not in result["mounts"]


def test_only_workspace_home_and_temporary_folders_can_be_written(host: Host) -> None:
    readable = host.make("readable", 0o777)
    writable = host.make("writable")
    result = host.run(
        f"""
        def write(folder):
            def attempt():
                with open(folder + "/made", "w") as file:
                    file.write("x")
                return "written"
            return outcome(attempt)
        say(**{{name: write(name) for name in (
            ".", "/home/agent", "/tmp", "/var/tmp", "/dev/shm", "{writable}",
            "/", "/etc", "/usr", "/dev", "/home", "/proc", "/run", "{readable}")}})
        """,
        host.policy(readable=[str(readable)], writable=[str(writable)]),
    )
    for name in (".", "/home/agent", "/tmp", "/var/tmp", "/dev/shm", str(writable)):
        assert result[name] == "written", name
    for name in ("/", "/etc", "/usr", "/dev", "/home", "/proc", "/run", str(readable)):
        assert result[name] in ("EROFS", "EACCES", "ENOENT"), name
    assert not (readable / "made").exists()


def test_without_landlock_the_mounts_alone_keep_the_host_from_being_written(host: Host) -> None:
    readable = host.make("readable", 0o777)
    script = (
        f'say(made=outcome(lambda: os.mkdir("{readable}/made")), chmod=outcome(lambda: os.chmod("{readable}", 0o700)))'
    )
    result = host.run(script, host.policy(without="landlock", readable=[str(readable)]))
    assert (result["made"], result["chmod"]) == ("EROFS", "EROFS")


def test_without_a_private_root_the_host_is_seen(host: Host) -> None:
    """The control: what the tests above find missing is there."""
    host.write("secret.txt", mode=0o644)
    host.path.chmod(0o755)
    host.give(host.workspace, 0o755)
    if host.kind == "root":
        os.chown(host.workspace, host.turn_uid, host.turn_uid)
    mechanisms = ["mount_namespace", "pid_namespace", "proc"]
    result = host.run(
        'say(root=os.listdir("/"), up=sorted(os.listdir("..")), secret=open("../secret.txt").read())',
        host.policy(mechanisms),
    )
    assert "sys" in result["root"]
    assert result["up"] == ["secret.txt", "workspace"]
    assert result["secret"] == "text"


def test_what_a_turn_writes_belongs_to_the_workspaces_owner_on_the_host(host: Host) -> None:
    script = """
        os.mkdir("folder"); open("folder/file", "w").close(); os.symlink("file", "folder/link"); os.chmod("folder", 0o750)
        say(seen=[os.stat("folder/file").st_uid, os.stat(".").st_uid], me=os.getuid())
    """
    result = host.run(script)
    assert result["seen"] == [host.turn_uid, host.turn_uid]
    assert result["me"] == host.turn_uid
    for path in (host.workspace / "folder", host.workspace / "folder/file", host.workspace / "folder/link"):
        assert path.lstat().st_uid == host.server_uid
    assert stat.S_IMODE((host.workspace / "folder").stat().st_mode) == 0o750


@pytest.mark.skipif("root" not in USERS, reason="only root has workspaces of others")
def test_under_root_a_workspace_may_be_anybodys_and_the_turn_reads_and_writes_it() -> None:
    with folder() as path:
        host = Host("root", path)
        kept = host.workspace / "kept"
        kept.write_text("before")
        strange = host.workspace / "strange"
        strange.write_text("root's own")
        strange.chmod(0o600)
        for one in (host.workspace, kept):
            os.chown(one, 1000, 1001)
        kept.chmod(0o600)
        result = host.run(
            """
            say(kept=open("kept").read(), strange=outcome(lambda: open("strange").read()))
            open("made", "w").close()
            """
        )
        assert result["kept"] == "before"
        assert result["strange"] == "EACCES", "what is not the workspace owner's stays closed"
        made = (host.workspace / "made").stat()
        assert (made.st_uid, made.st_gid) == (1000, 1001)


@pytest.mark.parametrize("place", ["deep/er/workspace", "readable/workspace", "writable/workspace"])
def test_the_workspace_may_lie_anywhere_also_below_another_mount(host: Host, place: str) -> None:
    policy = host.policy()
    for name in ("readable", "writable"):
        policy[name] = [str(host.make(name, 0o755))]
    host.workspace = host.make(place)
    result = host.run(
        """
        open("made", "w").close()
        outcome(lambda: open("../beside", "w").close())
        say(here=os.getcwd())
        """,
        policy,
    )
    assert result["here"] == str(host.workspace)
    assert (host.workspace / "made").exists()
    assert (host.workspace.parent / "beside").exists() == place.startswith("writable")


def test_a_workspace_below_the_hosts_var_tmp_is_mounted_there() -> None:
    """A folder that is often a link elsewhere, and is a mount inside."""
    for kind in USERS:
        with tempfile.TemporaryDirectory(prefix="hermetic-seal-", dir="/var/tmp") as path:
            os.chmod(path, 0o755)
            host = Host(kind, Path(path).resolve())
            result = host.run(
                "open('made', 'w').close(); open('/var/tmp/x', 'w').close(); say(same=os.listdir('/tmp'))"
            )
            assert (host.workspace / "made").exists()
            assert "x" in result["same"]


def test_a_servers_umask_does_not_shut_the_turn_out(host: Host) -> None:
    host.workspace = host.make("deep/er/workspace")
    result = host.run(
        "say(here=os.listdir('.'), home=os.listdir('/home/agent'), mask=os.umask(0))", before="os.umask(0o077)"
    )
    assert (result["here"], result["home"], result["mask"]) == ([], [], 0o077)


def test_the_hosts_root_is_no_workspace(host: Host) -> None:
    assert "the host's root" in host.try_to_run("", workspace="/")["refused"][1]


@pytest.mark.parametrize("place", ["venv", "deep/er/venv"])
def test_what_may_only_be_read_stays_so_inside_the_workspace(host: Host, place: str) -> None:
    inside = host.workspace
    for step in place.split("/"):
        inside /= step
        inside.mkdir()
        host.give(inside, 0o755)
    script = f"""
        say(inside=outcome(lambda: open("{inside}/made", "w")), chmod=outcome(lambda: os.chmod("{inside}", 0o700)),
            moved=outcome(lambda: os.rename("{place.split("/")[0]}", "away")), removed=outcome(lambda: os.rmdir("{inside}")))
        open("{inside}/../beside", "w").close()
    """
    result = host.run(script, host.policy(readable=[str(inside)], without="landlock"))
    assert (result["inside"], result["chmod"], result["moved"], result["removed"]) == (
        "EROFS",
        "EROFS",
        "EBUSY",
        "EBUSY",
    )
    assert (inside.parent / "beside").stat().st_uid == host.server_uid


@pytest.mark.skipif("root" not in USERS, reason="only root has workspaces of others")
def test_a_strangers_folder_on_the_way_to_what_is_read_stays_a_strangers() -> None:
    with folder() as path:
        host = Host("root", path)
        os.chown(host.workspace, 1000, 1000)
        strange = host.make("workspace/strange", 0o755)
        inside = host.make("workspace/strange/venv", 0o755)
        script = "say(made=outcome(lambda: os.mkdir('strange/made')), owner=os.stat('strange').st_uid, own=outcome(lambda: os.mkdir('own')))"
        result = host.run(script, host.policy(readable=[str(inside)]))
        assert (result["made"], result["owner"], result["own"]) == ("EACCES", 65534, None)
        assert strange.stat().st_uid == 0


def test_where_the_root_cannot_be_changed_nothing_has_changed(host: Host) -> None:
    names = ["pid_namespace", "mount_namespace", "proc", "no_new_privs"]
    result = host.run(
        "say(tmp=os.listdir('/tmp'), here=os.getcwd())",
        host.policy(names, without="tenant_uid", optional=["private_root"]),
        before="syscalls.PIVOT_ROOT = 9999",
    )
    assert result["init"]["missing"] == ["private_root"]
    assert host.path.name in result["tmp"]


@pytest.mark.parametrize("what", ["workspace", "readable", "writable"])
def test_a_link_in_the_way_of_a_mount_is_refused(host: Host, what: str) -> None:
    """A path was resolved by the supervisor; a link there now was put there since."""
    aim = host.make("aim/inner", 0o755)
    link = host.path / "link"
    link.symlink_to(host.path / "aim")
    policy = host.policy()
    if what == "workspace":
        host.workspace = link / "inner"
    else:
        policy[what] = [str(link / "inner")]
    assert aim.exists()
    refused = host.try_to_run("", policy)["refused"]
    assert refused[0] == "private_root"
    assert "symbolic link" in refused[1]


def test_a_path_of_the_policy_that_is_not_there_is_named(host: Host) -> None:
    refused = host.try_to_run("", host.policy(readable=["/no/such/place"]))["refused"]
    assert refused == ["private_root", "/no/such/place cannot be mounted: No such file or directory"]


def test_nothing_leads_back_to_the_hosts_root(host: Host) -> None:
    result = host.run(
        """
        fds = [outcome(lambda: os.readlink(f"/proc/self/fd/{fd}")) for fd in os.listdir("/proc/self/fd")]
        fds.remove("ENOENT")  # that of the listing itself
        say(fds=fds, init=outcome(lambda: os.listdir("/proc/1/root")),
            init_fds=outcome(lambda: os.listdir("/proc/1/fd")), environ=outcome(lambda: open("/proc/1/environ")),
            dots=os.path.realpath("/../../.."), mounts=open("/proc/self/mountinfo").read(),
            pivot=outcome(lambda: os.chroot(".")))
        """
    )
    assert all(name.startswith(("pipe:", "/dev/null", "socket:", "/proc/")) for name in result["fds"]), result["fds"]
    assert (result["init"], result["init_fds"], result["environ"], result["pivot"]) == (
        "EACCES",
        "EACCES",
        "EACCES",
        "EPERM",
    )
    assert result["dots"] == "/"
    assert sum(line.split()[4] == "/" for line in result["mounts"].splitlines()) == 1


def test_temporary_folders_have_a_cap_in_bytes_and_in_files(host: Host) -> None:
    limits = {"tmp_bytes": 4 << 20, "shm_bytes": 2 << 20}
    result = host.run(
        """
        def fill(folder):
            written = 0
            with open(folder + "/big", "wb", buffering=0) as file:
                try:
                    while True:
                        written += file.write(bytes(1 << 20))
                except OSError as error:
                    os.unlink(folder + "/big")
                    return [written >> 20, errno.errorcode[error.errno]]
        def litter(folder):
            for number in range(5000):
                try:
                    os.close(os.open(f"{folder}/{number}", os.O_CREAT))
                except OSError as error:
                    return errno.errorcode[error.errno]
        say(tmp=fill("/tmp"), home=fill("/home/agent"), shm=fill("/dev/shm"), files=litter("/tmp"))
        """,
        host.policy(limits=limits),
    )
    assert result["tmp"] == [4, "ENOSPC"]
    assert result["home"] == [4, "ENOSPC"]
    assert result["shm"] == [2, "ENOSPC"]
    assert result["files"] == "ENOSPC"


def test_devices_work_and_none_can_be_made_or_changed(host: Host) -> None:
    result = host.run(
        """
        open("/dev/null", "w").write("x")
        say(random=len(open("/dev/urandom", "rb").read(8)), full=outcome(lambda: os.write(os.open("/dev/full", os.O_WRONLY), b"x")),
            mode=outcome(lambda: os.chmod("/dev/null", 0o666)), owner=os.stat("/dev/null").st_mode & 0o777,
            node=outcome(lambda: os.mknod("node", stat.S_IFCHR | 0o600, os.makedev(1, 3))),
            terminal=sh("script -qc 'tty' /dev/null") if os.path.exists("/usr/bin/script") else "/dev/pts/0")
        """
    )
    assert (result["random"], result["full"], result["owner"]) == (8, "ENOSPC", 0o666)
    assert result["mode"] in ("EROFS", "EPERM")
    assert result["node"] == "EPERM"
    assert result["terminal"].strip() == "/dev/pts/0"


def test_the_kernels_settings_cannot_be_written_even_by_a_turn_that_is_root(host: Host) -> None:
    script = """
        say(core=outcome(lambda: open("/proc/sys/kernel/core_pattern", "w")),
            sysrq=outcome(lambda: open("/proc/sysrq-trigger", "w")))
    """
    result = host.run(script, host.policy(without="tenant_uid"))
    assert result["core"] in ("EROFS", "EACCES")
    assert result["sysrq"] in ("EROFS", "EACCES", "ENOENT")


@pytest.mark.skipif("root" not in USERS, reason="only root can make a host's mounts shared")
def test_mounts_follow_the_hosts_and_never_reach_it() -> None:
    """So that a waiting standby does not hold a disk that the host unmounts."""
    with folder() as path:
        result = Host("root", path).run(
            before="""
            plain = seal.InitSeal.prepare
            def prepare(self):
                plain(self)
                mounts = open("/proc/self/mountinfo").read()
                assert " master:" in mounts and " shared:" not in mounts, mounts
            seal.InitSeal.prepare = prepare
            syscalls.call(syscalls.UNSHARE, 0x20000)
            syscalls.mount(b"none", b"/", None, (1 << 14) | (1 << 20))  # MS_REC | MS_SHARED
            """
        )
    assert "private_root" in result["init"]["held"]
