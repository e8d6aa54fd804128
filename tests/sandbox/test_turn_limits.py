"""Over a limit a turn ends by its name, and its neighbours do not notice."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from world import World, alive

LIMITS = """
memory_bytes_max = 200_000_000
processes_max = 40
file_bytes_max = 50_000_000
open_files_max = 150
tmp_bytes_max = 20_000_000
shm_bytes_max = 10_000_000
workspace_bytes_max = 40_000_000
"""


@pytest.fixture(scope="module")
def narrow() -> Iterator[World]:
    if os.getuid() != 0:
        pytest.skip("needs root, for cgroups of its own")
    world = World(3, "root", limits=LIMITS)
    world.start()
    yield world
    world.close()


@pytest.fixture(scope="module")
def narrow_level_2() -> Iterator[World]:
    if os.getuid() != 0:
        pytest.skip("needs root, to be root")
    world = World(2, "root", limits=LIMITS)
    world.start()
    yield world
    world.close()


def neighbour_lives(world: World) -> bool:
    return alive(world.neighbours_pid) and world.attack("who", session=world.new_session("attacker")).get("did")


@pytest.mark.parametrize("bomb", ["memory_bomb", "memory_bomb_in_tools"])
def test_a_memory_bomb_ends_its_own_turn_by_name(narrow: World, bomb: str) -> None:
    got = narrow.attack(bomb, session=narrow.new_session("attacker"))
    assert got.get("ended") == "over_limit" and "memory_bytes_max" in got["message"], got
    assert neighbour_lives(narrow)


def test_a_fork_bomb_ends_its_own_turn_by_name(narrow: World) -> None:
    got = narrow.attack("fork_bomb", session=narrow.new_session("attacker"))
    assert got.get("ended") == "over_limit" and "processes_max" in got["message"], got
    assert neighbour_lives(narrow)


def test_a_file_over_the_size_is_refused(narrow: World) -> None:
    # In /var/tmp, were it there; in the workspace the quota would come first for a slow writer.
    got = narrow.attack("fill", session=narrow.new_session("attacker"), path="big")
    assert got.get("refused") == "EFBIG" or "file_bytes_max" in got.get("message", ""), got


@pytest.mark.parametrize("place", ["/tmp/big", "/dev/shm/big"])
def test_a_full_scratch_folder_is_the_turns_own(narrow: World, place: str) -> None:
    before = os.statvfs(Path(place).parent).f_bavail
    got = narrow.attack("fill", session=narrow.new_session("attacker"), path=place)
    assert got.get("refused") == "ENOSPC", got
    assert before - os.statvfs(Path(place).parent).f_bavail < 100_000_000 and not Path(place).exists()
    again = narrow.attack("listing", session=narrow.new_session("attacker"), path=str(Path(place).parent))
    assert "big" not in again["did"], "the next turn finds nothing of it"


def test_descriptors_run_out_for_the_process_alone(narrow: World) -> None:
    assert narrow.attack("many_descriptors", session=narrow.new_session("attacker"))["did"] <= 150
    assert neighbour_lives(narrow)


QUOTA = """
import os, time
def run(turn):
    for number in range(1000):
        with open(f"part-{number}", "wb") as file:
            file.write(b"x" * 1_000_000)
        turn.token(".")
        time.sleep(0.02)
"""


def test_a_workspace_over_its_quota_ends_the_turn_and_keeps_the_files(narrow: World) -> None:
    narrow.server.write_agent("sleeper", QUOTA)  # the next turn of this agent; its running one has its code already
    session = narrow.new_session("sleeper")
    turn = narrow.begin(session, "write")
    end = next(event for event in narrow.events(turn) if event["event"] == "apperror")
    assert end["state"] == "over_limit" and "workspace_bytes_max" in end["message"], end
    files = list(Path(narrow._workspace(session)).iterdir())
    assert len(files) >= 40, "what was written stays"


@pytest.mark.parametrize("name", ["memory_bytes_max", "processes_max"])
def test_without_cgroups_each_process_is_held(narrow_level_2: World, name: str) -> None:
    """Level 2: rlimits stand in. The turn ends, or its bomb does; nobody else does."""
    world, attack = narrow_level_2, {"memory_bytes_max": "memory_bomb", "processes_max": "fork_count"}[name]
    got = world.attack(attack, session=world.new_session("attacker"))
    if attack == "fork_count":
        assert got["did"] <= 40, got
    else:
        assert "did" not in got, got
    assert neighbour_lives(world)


def test_a_flood_of_events_ends_the_turn_by_name(world_of: Callable[[str], World]) -> None:
    world = World(3, "root", limits="event_bytes_per_s_max = 1_000_000\nevent_bytes_max = 900_000_000")
    try:
        world.server.write_agent("sleeper", "def run(turn):\n    open('neighbours-secret.txt', 'w').close()\n"
                                            "    turn.token('x')\n    import time; time.sleep(600)\n")  # fmt: skip
        world.start()
        world.server.write_agent("flood", "def run(turn):\n    while True: turn.token('x' * 1000)\n")
        world.server.write_agent("sleeper", "from flood import run\n")
        turn = world.begin(world.new_session("sleeper"), "go")
        end = next(event for event in world.events(turn) if event["event"] == "apperror")
        assert end["state"] == "over_limit" and "event_bytes_per_s_max" in end["message"], end
    finally:
        world.close()
