from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest
from world import World, run_as_user_works

WORLDS = {
    "root-3": (3, "root"),
    "root-2": (2, "root"),
    "user-2": (2, "user"),
    "root-0": (0, "root"),
    "user-0": (0, "user"),
}


@pytest.fixture(scope="session")
def world_of() -> Iterator[Callable[[str], World]]:
    """Worlds by name, each started when it is first asked for."""
    worlds: dict[str, World] = {}

    def find(name: str) -> World:
        level, user = WORLDS[name]
        if os.getuid() != 0:
            pytest.skip("needs root, to be root and to become another user")
        if user == "user" and not run_as_user_works():
            pytest.skip("this host gives an ordinary user no namespaces")
        if name not in worlds:
            worlds[name] = World(level, user)
            worlds[name].start()
        return worlds[name]

    yield find
    for world in worlds.values():
        world.close()


@pytest.fixture(params=["root-3", "root-2", "user-2"])
def sealed(request: pytest.FixtureRequest, world_of: Callable[[str], World]) -> World:
    return world_of(request.param)


@pytest.fixture(params=["root-0", "user-0"])
def unsealed(request: pytest.FixtureRequest, world_of: Callable[[str], World]) -> World:
    """The control: where nothing is sealed the attacks must succeed, or they prove nothing."""
    return world_of(request.param)
