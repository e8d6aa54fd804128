"""The environment of a child holds what was named, and nothing else of the server's."""

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hermetic.protocol.errors import ConfigError
from hermetic.supervisor.config import DEMO, Agent, Profile
from hermetic.supervisor.environment import (
    BASE,
    COPIED,
    OURS,
    base_environment,
    read_env_file,
    turn_environment,
)


def build(agent: Agent = DEMO, profile: Profile | None = None, **changes: Any) -> dict[str, str]:
    """The whole of a turn's."""
    given: dict[str, Any] = {
        "profile_name": "work",
        "home": "/h",
        "server_environ": {},
        "python": "/venv/bin/python",
        "agent_name": "mine",
    }
    base = base_environment(agent, profile or Profile(), **(given | changes))
    of_a_turn = turn_environment(session_id="0123456789ab", workspace="/w")
    assert not base.keys() & of_a_turn.keys()
    return base | of_a_turn


def profile_with(tmp_path: Path, content: bytes | str, **more: Any) -> Profile:
    path = tmp_path / "p.env"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return Profile(env_file=str(path), **more)


def test_without_anything_named_there_are_the_base_and_our_own() -> None:
    assert build() == {
        **BASE,
        "PATH": "/venv/bin:/usr/local/bin:/usr/bin:/bin",
        "HOME": "/h",
        "TERMINAL_CWD": "/w",
        "HERMES_EXEC_ASK": "1",
        "HERMES_SESSION_KEY": "0123456789ab",
        "HERMES_HOME": "/h",
    }


names = st.from_regex(r"[A-Z_][A-Z0-9_]{0,12}", fullmatch=True) | st.sampled_from(
    ["LD_PRELOAD", "LD_LIBRARY_PATH", "PYTHONPATH", "PYTHONSTARTUP", "HTTP_PROXY", "PATH", "HOME", *COPIED, *OURS]
)


@settings(deadline=None)
@given(server=st.dictionaries(names, st.uuids().map(str)), data=st.data())
def test_no_value_of_the_server_is_there_unless_it_was_named(server: dict[str, str], data: st.DataObject) -> None:
    named = st.lists(st.sampled_from(sorted(server)), max_size=3) if server else st.just([])
    by_agent, by_profile = data.draw(named), data.draw(named)
    environment = build(Agent(adapter="demo", pass_env=by_agent), Profile(pass_env=by_profile), server_environ=server)
    allowed = {*COPIED, *by_agent, *by_profile} - set(OURS)
    for name, value in server.items():
        if name in allowed:
            assert environment[name] == value
        else:
            assert value not in " ".join(environment.values())
    assert set(environment) <= set(build()) | allowed


def test_two_profiles_never_see_each_others_values() -> None:
    server = {"A": "of the server", "TZ": "Europe/Vienna"}
    one = build(profile=Profile(env={"VALUE": "one", "ONLY_ONE": "1"}), server_environ=server)
    two = build(profile=Profile(env={"VALUE": "two"}), server_environ=server)
    assert (one["VALUE"], two["VALUE"]) == ("one", "two") and "ONLY_ONE" not in two and "A" not in one | two
    assert one["TZ"] == "Europe/Vienna"


def test_later_sources_win_and_nobody_overrides_our_own(tmp_path: Path) -> None:
    ours = dict.fromkeys(OURS, "stolen")
    for upto in range(1, 6):
        # The file, profile.env, profile.pass_env, agent.env and agent.pass_env: one more each time.
        environment = build(
            Agent(
                adapter="demo",
                env={"X": "4", **ours} if upto >= 4 else {},
                pass_env=["X", *OURS] if upto >= 5 else [],
            ),
            profile_with(
                tmp_path,
                "X=1\nTERMINAL_CWD=stolen\nLANG=de_AT.UTF-8",
                env={"X": "2", **ours} if upto >= 2 else {},
                pass_env=["X"] if upto >= 3 else [],
            ),
            server_environ={"X": "3" if upto < 5 else "5", **ours},
        )
        assert environment["X"] == str(upto)
        assert environment["LANG"] == "de_AT.UTF-8"
        assert "stolen" not in environment.values()


def test_a_variable_to_pass_that_is_missing_is_named_with_its_place() -> None:
    with pytest.raises(ConfigError, match=r"profiles\.work\.pass_env names NOWHERE") as caught:
        build(profile=Profile(pass_env=["NOWHERE"]))
    assert caught.value.fault == "host" and "NOWHERE" in caught.value.hint
    with pytest.raises(ConfigError, match=r"agents\.mine\.pass_env names NOWHERE"):
        build(Agent(pass_env=["NOWHERE"]))
    assert build(Agent(pass_env=["EMPTY"]), server_environ={"EMPTY": ""})["EMPTY"] == ""


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ({"": "x"}, "empty"),
        ({"A=B": "x"}, "'='"),
        ({"A\0": "x"}, "NUL"),
        ({"A": "hunter2\0"}, "value of A has a NUL"),
        ({"A": "hunter2" * 20_000}, "A has 140003 bytes"),
        ({"A": "\ud800hunter2"}, "'A' is not text"),
        ({f"A{n}": "x" * 100_000 for n in range(12)}, "1048576 at most"),
    ],
)
def test_what_the_kernel_cannot_carry_is_refused_without_its_value(env: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build(Agent(env=env))
    assert message in str(caught.value) and "hunter2" not in str(caught.value)


def test_bytes_that_are_not_utf8_pass_as_the_server_has_them() -> None:
    value = os.fsdecode(b"\xff")
    assert build(Agent(pass_env=["A"]), server_environ={"A": value})["A"] == value


def test_a_python_whose_folder_would_break_the_path_is_left_out() -> None:
    for python in ("/a:b/python", "python", ""):
        assert build(python=python)["PATH"] == "/usr/local/bin:/usr/bin:/bin"


# --- env_file -----------------------------------------------------------------------------------------------------


def test_a_dotenv_file_is_read_without_expanding_anything(tmp_path: Path) -> None:
    content = "\ufeff# a comment\nA=1\nexport B='x y'\n\nC=\"a\\nb\"\nD=${HOME}$A\nE=\nF=a # said\nA=2\n"
    environment = build(profile=profile_with(tmp_path, content), server_environ={"HOME": "/server"})
    assert {name: environment[name] for name in "ABCDEF"} == {
        "A": "2", "B": "x y", "C": "a\nb", "D": "${HOME}$A", "E": "", "F": "a",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("A=1\n\n\nhunter2\n", 4),
        ("A=1\nthis is hunter2\n", 2),
        ("A='hunter2\n", 1),
        ("=hunter2\n", 1),
        ("A=1\nB=hunter2\0\n", 2),
    ],
)
def test_a_line_that_is_no_variable_is_named_by_number_and_not_shown(tmp_path: Path, content: str, line: int) -> None:
    with pytest.raises(ConfigError) as caught:
        build(profile=profile_with(tmp_path, content))
    assert f"line {line}: " in str(caught.value) and "profiles.work.env_file" in str(caught.value)
    assert "hunter2" not in str(caught.value) + caught.value.hint


def test_an_env_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path, message in (
        (tmp_path / "missing", "cannot be read"),
        (tmp_path, "(cannot be read|not a regular file)"),
        (pipe, "not a regular file"),
        (Path("/dev/zero"), "not a regular file"),
        (Path("a\0b"), "cannot be read"),
    ):
        with pytest.raises(ConfigError, match=message) as caught:
            build(profile=Profile(env_file=str(path)))
        assert str(path) in str(caught.value)
    with pytest.raises(ConfigError, match="larger than"):
        build(profile=profile_with(tmp_path, b"#" * 300_000))
    with pytest.raises(ConfigError, match="not UTF-8 at byte 2"):
        build(profile=profile_with(tmp_path, b"A=\xff"))


@settings(deadline=None)
@given(content=st.text())
def test_any_file_is_either_read_or_refused(tmp_path_factory: pytest.TempPathFactory, content: str) -> None:
    path = tmp_path_factory.getbasetemp() / "any.env"
    path.write_text(content, encoding="utf-8", errors="surrogatepass")
    try:
        assert all(name and "=" not in name for name in read_env_file(path))
    except ConfigError:
        pass
