import os

import pytest

from hermetic.supervisor.seal_check import NAMESPACES, broken, look

SEALED = """\
Name:\thermetic-agent
Uid:\t2000007\t2000007\t2000007\t2000007
Groups:\t
CapInh:\t0000000000000000
CapPrm:\t0000000000000000
CapEff:\t0000000000000000
CapBnd:\t0000000000000000
CapAmb:\t0000000000000000
NoNewPrivs:\t1
Seccomp:\t2
"""
ASKED = [*NAMESPACES, "no_new_privs", "seccomp", "no_capabilities", "tenant_uid", "landlock", "rlimits"]


def test_a_seal_that_holds_has_nothing_broken() -> None:
    assert broken(ASKED, SEALED, 2000007, lambda link: False) == []


@pytest.mark.parametrize(
    ("line", "instead", "mechanism"),
    [
        ("NoNewPrivs:\t1", "NoNewPrivs:\t0", "no_new_privs"),
        ("Seccomp:\t2", "Seccomp:\t0", "seccomp"),
        ("CapBnd:\t0000000000000000", "CapBnd:\t0000000000000400", "no_capabilities"),
        ("CapEff:\t0000000000000000", "CapEff:\t000001ffffffffff", "no_capabilities"),
        ("Uid:\t2000007\t2000007\t2000007\t2000007", "Uid:\t2000007\t0\t2000007\t2000007", "tenant_uid"),
        ("Groups:\t", "Groups:\t0", "tenant_uid"),
    ],
)
def test_each_wall_that_is_missing_is_seen(line: str, instead: str, mechanism: str) -> None:
    assert broken(ASKED, SEALED.replace(line, instead), 2000007, lambda link: False) == [mechanism]


@pytest.mark.parametrize("mechanism", NAMESPACES)
def test_a_namespace_that_is_ours_is_none(mechanism: str) -> None:
    assert broken(ASKED, SEALED, 2000007, lambda link: link == NAMESPACES[mechanism]) == [mechanism]


def test_what_was_not_asked_for_is_not_missed() -> None:
    assert broken([], "", None, lambda link: True) == []


def test_this_very_process_is_not_sealed() -> None:
    assert "pid_namespace" in look(os.getpid(), ASKED, None)


def test_a_process_that_is_gone_is_not_judged() -> None:
    assert look(1 << 30, ASKED, None) == []
