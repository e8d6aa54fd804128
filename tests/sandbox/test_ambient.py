"""What a turn leaves in its workspace changes neither the next turn's agent nor the server."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from world import World


def test_modules_left_in_the_workspace_are_not_imported(sealed: World) -> None:
    session = sealed.new_session("attacker")
    assert sealed.attack("plant", session=session) == {"did": "planted"}
    origin = sealed.attack("origin", session=session)["did"]
    workspace = sealed._workspace(session)
    assert workspace not in origin["json"] and not origin["ran"], origin
    assert all(not entry.startswith(workspace) and entry not in ("", ".") for entry in origin["path"]), origin
    assert origin["customised"] in ([], ["sitecustomize"]) and origin["preload"] is None
    assert not origin["search"].startswith(workspace)
    assert not (Path(workspace) / "planted-ran").exists(), "the server runs nothing in a workspace either"


def test_code_that_its_folder_closes_to_others_is_read_by_the_agents_turns() -> None:
    """An agent in its owner's closed folder: what the configuration lists, its turns may read, whoever they are."""
    if os.getuid() != 0:
        pytest.skip("needs root, to give turns a user of their own")
    world = World(3, "root")
    try:
        (world.server.agents / "closed.py").touch(0o600)
        world.server.agents.chmod(0o700)
        world.start()
        assert world.attack("who")["did"]["uid"][0] != 0
        assert world.attack("read", path=str(world.server.agents / "closed.py")) == {"did": ""}
        assert "refused" in world.attack("write", path=str(world.server.agents / "closed.py"))
    finally:
        world.close()


def test_a_tool_python_started_as_we_start_ours_ignores_the_workspace(sealed: World) -> None:
    session = sealed.new_session("attacker")
    sealed.attack("plant", session=session)
    got = sealed.attack("tool", session=session, script="import json; print(json.__file__)")
    assert sealed._workspace(session) not in got["did"]


def test_the_servers_own_requests_about_the_workspace_run_nothing_of_it(sealed: World) -> None:
    session = sealed.new_session("attacker")
    sealed.attack("plant", session=session)
    for path in ("", "/turns"):
        assert sealed.http.get(f"/v1/sessions/{session}{path}").status_code == 200
    assert not (Path(sealed._workspace(session)) / "planted-ran").exists()
