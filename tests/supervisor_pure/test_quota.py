import os
from pathlib import Path

import pytest

from hermetic.supervisor.quota import DEPTH_MAX, Unmeasurable, measure

MUCH = 1 << 40


def test_what_is_on_the_disk_counts_and_holes_do_not(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "full").write_bytes(b"x" * 1_000_000)
    with (tmp_path / "sparse").open("wb") as sparse:
        sparse.truncate(1 << 34)
    assert 1_000_000 <= measure(str(tmp_path), MUCH) < 1_200_000


def test_a_link_leads_nowhere(tmp_path: Path) -> None:
    (tmp_path / "root").symlink_to("/")
    (tmp_path / "up").symlink_to("..")
    assert measure(str(tmp_path), MUCH) < 100_000


def test_it_stops_when_it_has_found_enough(tmp_path: Path) -> None:
    for number in range(200):
        (tmp_path / f"{number}").write_bytes(b"x" * 5000)
    assert 100_000 < measure(str(tmp_path), 100_000) < 120_000


def test_empty_files_are_not_free(tmp_path: Path) -> None:
    for number in range(1000):
        (tmp_path / f"{number}").touch()
    assert measure(str(tmp_path), MUCH) >= 1000 * 512


def test_endless_nesting_ends(tmp_path: Path) -> None:
    at = os.open(tmp_path, os.O_RDONLY)
    for _ in range(DEPTH_MAX + 1):
        os.mkdir("d", dir_fd=at)
        deeper = os.open("d", os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = deeper
    os.close(at)
    open_before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(Unmeasurable):
        measure(str(tmp_path), MUCH)
    assert len(os.listdir("/proc/self/fd")) == open_before
