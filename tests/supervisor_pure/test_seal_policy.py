import os
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hermetic.protocol.launch import MECHANISMS
from hermetic.supervisor.config import Agent, Limits
from hermetic.supervisor.seal_policy import level_of, missing_of, policy_of, python_paths, wanted


@pytest.mark.parametrize("root", [True, False])
@pytest.mark.parametrize("level", [0, 1, 2, 3])
def test_what_is_wanted_for_a_level_is_that_level(level: int, root: bool) -> None:
    assert level_of(wanted(level, root=root), root=root) == level
    assert set(wanted(level, root=root)) <= set(MECHANISMS)


@pytest.mark.parametrize("root", [True, False])
def test_no_mechanism_of_level_3_can_be_left_out(root: bool) -> None:
    whole = wanted(3, root=root)
    assert missing_of(whole, root=root) == []
    for name in whole:
        rest = [other for other in whole if other != name]
        if name in missing_of(rest, root=root):
            assert level_of(rest, root=root) < 3


@given(st.sets(st.sampled_from(sorted(MECHANISMS))), st.sampled_from(sorted(MECHANISMS)), st.booleans())
def test_one_more_mechanism_never_lowers_the_level(held: set[str], more: str, root: bool) -> None:
    assert level_of(held | {more}, root=root) >= level_of(held, root=root)


def test_level_2_lacks_cgroups_or_landlock_but_not_both() -> None:
    whole = set(wanted(3, root=True))
    assert level_of(whole - {"cgroup_memory", "cgroup_pids"}, root=True) == 2
    assert level_of(whole - {"landlock"}, root=True) == 2
    assert level_of(whole - {"landlock", "cgroup_memory"}, root=True) == 0


def test_a_server_that_is_root_has_one_tenants_level_without_a_user_of_the_turns_own() -> None:
    assert level_of(set(wanted(3, root=True)) - {"tenant_uid"}, root=True) == 1


def policy(**changes: object):
    given = {"mechanisms": wanted(3, root=True), "uid": 7, "home": "/h", "keeps_home": False, "readable": ["/py"]}
    return policy_of(Agent(python_path=["/code"], readable=["/extra"], writable=["/w"]), Limits(), **(given | changes))


def test_a_home_is_kept_or_a_tmpfs_but_never_both() -> None:
    assert policy().home == "/h" and policy().writable == ["/w"]
    assert policy(keeps_home=True).home is None and policy(keeps_home=True).writable == ["/h", "/w"]


def test_a_policy_without_a_network_of_its_own_has_no_listeners_in_it() -> None:
    assert policy(ports=[1, 2]).ports == [1, 2]
    assert policy(ports=[1, 2], mechanisms=["pid_namespace"]).ports == []


def test_what_an_agent_reads_is_its_python_its_code_and_what_the_configuration_adds() -> None:
    assert policy().readable == ["/py", "/code", "/extra"]


def test_a_python_is_found_with_the_one_that_it_was_made_from() -> None:
    paths = python_paths(sys.executable)
    assert any(Path(os.__file__).is_relative_to(path) for path in paths), "the standard library"
    assert any(Path(pytest.__file__).is_relative_to(path) for path in paths), "the environment's packages"
