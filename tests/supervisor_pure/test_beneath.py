"""A folder is opened where it belongs or not at all, by the kernel's own check and without it."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from hermetic.supervisor import beneath
from hermetic.supervisor.beneath import make_beneath, open_beneath


@pytest.fixture(params=["openat2", "by parts"])
def way(request, monkeypatch):
    if request.param == "by parts":

        def unknown(top: int, within: Path) -> int:
            raise OSError(errno.ENOSYS, "a kernel without it")

        monkeypatch.setattr(beneath, "_openat2", unknown)
    return request.param


def opened(root: Path, path: Path) -> str:
    fd = open_beneath(root, path)
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)


def test_a_folder_in_the_root_is_opened_and_the_root_too(way, tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    assert opened(tmp_path, tmp_path / "a" / "b") == str(tmp_path / "a" / "b")
    assert opened(tmp_path, tmp_path) == str(tmp_path)
    assert opened(Path("/"), tmp_path / "a") == str(tmp_path / "a")


def test_a_link_on_the_way_is_not_followed_wherever_it_leads(way, tmp_path):
    (tmp_path / "root" / "inside").mkdir(parents=True)
    (tmp_path / "outside" / "deep").mkdir(parents=True)
    for name, target in {"out": "../outside", "absolute": str(tmp_path / "outside"), "in": "inside"}.items():
        (tmp_path / "root" / name).symlink_to(target)
    for path in ("out", "out/deep", "absolute/deep", "in"):
        with pytest.raises(OSError) as refused:
            opened(tmp_path / "root", tmp_path / "root" / path)
        assert refused.value.errno in (errno.ELOOP, errno.ENOTDIR)


def test_what_is_not_in_the_root_is_refused(way, tmp_path):
    (tmp_path / "root").mkdir()
    for path in (tmp_path, Path("/etc"), tmp_path / "root" / ".." / "root"):
        with pytest.raises(ValueError):
            opened(tmp_path / "root", path)


def test_a_file_or_nothing_is_no_folder(way, tmp_path):
    (tmp_path / "file").write_text("")
    for name, number in {"file": errno.ENOTDIR, "nothing": errno.ENOENT}.items():
        with pytest.raises(OSError) as refused:
            opened(tmp_path, tmp_path / name)
        assert refused.value.errno == number


def test_no_descriptor_is_left_open(way, tmp_path):
    before = len(os.listdir("/proc/self/fd"))
    for name in ("a", "nothing/deep"):
        with pytest.raises(OSError):
            opened(tmp_path, tmp_path / name)
    make_beneath(tmp_path, tmp_path / "b" / "c")
    opened(tmp_path, tmp_path / "b" / "c")
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_folder_is_made_below_none_that_is_a_link(tmp_path):
    make_beneath(tmp_path, tmp_path / "a" / "b")
    make_beneath(tmp_path, tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o700
    (tmp_path / "outside").mkdir()
    (tmp_path / "link").symlink_to("outside")
    with pytest.raises(OSError):
        make_beneath(tmp_path, tmp_path / "link" / "b")
    assert list((tmp_path / "outside").iterdir()) == []


def test_a_folder_that_is_swapped_for_a_link_all_the_time_never_leads_out(way, tmp_path):
    root, outside = tmp_path / "root", tmp_path / "outside"
    (root / "real" / "w").mkdir(parents=True)
    (outside / "w").mkdir(parents=True)
    (root / "link").symlink_to(outside)
    done = threading.Event()

    def swap() -> None:
        while not done.is_set():
            os.rename(root / "real", root / "a")
            os.rename(root / "a", root / "real")
            os.rename(root / "link", root / "a")
            os.rename(root / "a", root / "link")

    swapper = threading.Thread(target=swap)
    swapper.start()
    try:
        seen = set()
        for _ in range(2000):
            try:
                seen.add(opened(root, root / "a" / "w"))
            except OSError:
                continue
    finally:
        done.set()
        swapper.join()
    assert not any(path.startswith(str(outside)) for path in seen), seen
