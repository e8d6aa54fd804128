"""One TOML file, read strictly: every fault is named with file and key."""

import tomllib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hermetic.protocol.errors import ConfigError
from hermetic.supervisor.config import (
    ADAPTERS,
    DEMO,
    Agent,
    AgentLimits,
    Config,
    Limits,
    Profile,
    Seal,
    Server,
    Stream,
    Turns,
    Workspaces,
    default_agent,
    is_loopback,
    limits_of,
    load_config,
    parse_bind,
    show,
)
from hermetic.supervisor.config_reference import reference
from hermetic.supervisor.config_toml import encode, field_docs

SECTIONS = [Server, Turns, Limits, Seal, Stream, Workspaces, Agent, AgentLimits, Profile]
ISSUE_EXAMPLE = """
[agents.mine]
adapter = "function"
target = "module:callable"
python_path = ["/where/the/module/is"]
env = { KEY = "value" }
"""


def load(folder: Path, text: str) -> Config:
    path = folder / "hermetic.toml"
    path.write_text(text, encoding="utf-8")
    return load_config(path)


def refusal(folder: Path, text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(folder, text)
    assert str(caught.value).startswith(f"{folder / 'hermetic.toml'}: ")
    assert caught.value.hint and caught.value.fault == "host"
    return str(caught.value)


def test_without_a_file_everything_has_its_default() -> None:
    config = load_config(None)
    assert config.agents == {"demo": Agent(adapter="demo")}
    assert config.profiles == {"default": Profile()}
    assert config.turns == Turns() and config.limits == Limits() and config.stream == Stream()
    assert config.server.data == str(Path("~/.local/share/hermetic").expanduser())
    assert default_agent(config) == "demo"


def test_the_example_of_the_readme_loads_and_is_the_default_agent(tmp_path: Path) -> None:
    config = load(tmp_path, ISSUE_EXAMPLE)
    assert config.agents["mine"].env == {"KEY": "value"}
    assert config.agents["mine"].target == "module:callable"
    assert config.agents["demo"] == DEMO
    assert default_agent(config) == "mine"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "demo"),
        ('[agents.a]\ntarget = "m:f"', "a"),
        ('[agents.a]\ntarget = "m:f"\n[agents.b]\ntarget = "m:f"', "demo"),
        ('default_agent = "b"\n[agents.a]\ntarget = "m:f"\n[agents.b]\ntarget = "m:f"', "b"),
        ('default_agent = "demo"\n[agents.a]\ntarget = "m:f"', "demo"),
        ('[agents.demo]\nadapter = "function"\ntarget = "m:f"', "demo"),
        ('[agents.demo]\nadapter = "function"\ntarget = "m:f"\n[agents.a]\ntarget = "m:f"', "demo"),
    ],
)
def test_the_default_agent_is_the_named_the_only_or_demo(tmp_path: Path, text: str, expected: str) -> None:
    assert default_agent(load(tmp_path, text)) == expected


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("[turns]\ngrase_s = 1", ["turns.grase_s", 'unknown key "grase_s" in [turns]', 'did you mean "grace_s"?']),
        ('[agents.mine]\nadaptor = "x"', ["agents.mine.adaptor", 'did you mean "adapter"?']),
        ('[profiles.work]\nenvfile = "x"', ["profiles.work.envfile", 'did you mean "env_file"?']),
        ("[sever]\nport = 1", ["sever", "at the top", 'did you mean "server"?']),
        ("zzz = 1", ["zzz", "known: server, turns"]),
        ('[turns]\nqueue_max = "x"', ["turns.queue_max", "expected `int`, got `str`"]),
        ("[turns]\nqueue_max = 1.5", ["turns.queue_max", "expected `int`, got `float`"]),
        ("[turns]\nqueue_max = true", ["turns.queue_max", "expected `int`, got `bool`"]),
        ("[turns]\nqueue_max = 0", ["turns.queue_max", "expected `int` >= 1, got 0"]),
        ("[turns]\nwall_s = 0", ["turns.wall_s", "> 0"]),
        ("[turns]\nwall_s = inf", ["turns.wall_s", "got inf"]),
        ("[stream]\nheartbeat_s = nan", ["stream.heartbeat_s", "got nan"]),
        ("[stream]\nheartbeat_s = 61", ["stream.heartbeat_s", "<= 60"]),
        ("[turns]\ngrace_s = -1", ["turns.grace_s", ">= 0", "got -1"]),
        ("[limits]\nframe_bytes_max = 10", ["limits.frame_bytes_max", ">= 256"]),
        ("turns = 3", ["turns", "expected a table"]),
        ("[agents]\nmine = 3", ["agents.mine", "expected a table"]),
        ('[workspaces]\nroots = "x"', ["workspaces.roots", "expected `array`, got `str`"]),
        ("[workspaces]\nroots = ['a', 1]", ["workspaces.roots[1]", "expected `str`"]),
        ("[agents.mine]\nenv = { A = 3 }", ["agents.mine.env.A", "expected `str`, got `int`"]),
        ("[agents.mine]\ntarget = 3", ["agents.mine.target", "expected `str`"]),
        ("[agents.mine]", ["agents.mine.target", "missing", "module:callable"]),
        ('[agents.mine]\ntarget = "module"', ["agents.mine.target", '"module"', "module:callable"]),
        ('[agents.mine]\ntarget = "a b:c"', ["agents.mine.target"]),
        ('[agents.mine]\ntarget = "a:"', ["agents.mine.target"]),
        ('[agents.mine]\ntarget = ":a"', ["agents.mine.target"]),
        ('[agents.mine]\ntarget = "a:b:c"', ["agents.mine.target"]),
        ('[agents.mine]\nadapter = "functoin"', ["agents.mine.adapter", 'did you mean "function"?']),
        ('[agents.mine]\nadapter = "zzz"', ["agents.mine.adapter", "known: function, demo"]),
        ('[agents.mine]\nadapter = "demo"\ntarget = "a:b"', ["agents.mine.target", "only the adapter"]),
        ('[agents."a/b"]\ntarget = "a:b"', ['agents."a/b"', "a name is"]),
        ('[profiles.".."]', ['profiles.".."', "a name is"]),
        ('[agents.mine]\ntarget = "a:b"\nenv = { "A=B" = "x" }', ["agents.mine.env", "'='"]),
        ('[agents.mine]\ntarget = "a:b"\nenv = { A = "\\u0000x" }', ["agents.mine.env", "NUL"]),
        ('[profiles.p]\npass_env = ["A", ""]', ["profiles.p.pass_env[1]"]),
        ('default_agent = "nobody"', ["default_agent", '"nobody"', "known: demo"]),
        ('default_profile = "defualt"', ["default_profile", 'did you mean "default"?']),
        ('[server]\nbind = "8642"', ["server.bind", "HOST:PORT"]),
        ('[server]\ndata = ""', ["server.data", "empty"]),
        ("[server]\nbody_bytes_max = 10", ["limits.message_bytes_max", "server.body_bytes_max = 10"]),
        ("[limits]\nevent_bytes_max = 300", ["limits.frame_bytes_max", "limits.event_bytes_max = 300"]),
        ("[turns]\ngrace_s = ", ["not valid TOML", "line 2"]),
        ("a = " + "[" * 3000, ["not valid TOML"]),
    ],
)  # fmt: skip
def test_a_fault_is_named_with_its_key_and_what_is_expected(tmp_path: Path, text: str, parts: list[str]) -> None:
    message = refusal(tmp_path, text + "\n")
    for part in parts:
        assert part in message


def test_a_wrong_type_does_not_repeat_the_value(tmp_path: Path) -> None:
    assert "12345" not in refusal(tmp_path, "[agents.mine]\nenv = { PIN = 12345 }")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.toml", tmp_path):
        with pytest.raises(ConfigError, match="cannot be read") as caught:
            load_config(path)
        assert str(path) in str(caught.value)
    latin = tmp_path / "latin.toml"
    latin.write_bytes(b'default_profile = "\xe9"')
    with pytest.raises(ConfigError, match="not UTF-8 at byte 19"):
        load_config(latin)


@pytest.mark.parametrize("name", ["OPENAI_API_KEY", "API_KEY", "GH_TOKEN", "A_SECRET", "DB_PASSWORD", "X_SECRET_KEY"])
def test_what_looks_like_a_secret_is_refused_and_never_repeated(tmp_path: Path, name: str) -> None:
    for text in (
        f'[profiles.p]\nenv = {{ {name} = "hunter2" }}',
        f'[agents.a]\ntarget = "m:f"\nenv = {{ {name} = "hunter2" }}',
        f'[agents.a]\ntarget = "m:f"\n[agents.a.options.deep]\nlist = [{{ {name.lower()} = "hunter2" }}]',
    ):
        message = refusal(tmp_path, text)
        assert "looks like a secret" in message and "hunter2" not in message
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, f'[profiles.p]\nenv = {{ {name} = "hunter2" }}')
    assert "pass_env" in caught.value.hint and "env_file" in caught.value.hint


@pytest.mark.parametrize("name", ["KEY", "VALUE", "PROFILE_VALUE", "TOKENIZERS_PARALLELISM", "KEYBOARD", "MAX_TOKENS"])
def test_names_that_only_resemble_a_secret_are_taken(tmp_path: Path, name: str) -> None:
    assert load(tmp_path, f'[profiles.p]\nenv = {{ {name} = "value" }}').profiles["p"].env == {name: "value"}


def test_an_empty_secret_and_a_number_are_taken(tmp_path: Path) -> None:
    config = load(
        tmp_path, '[agents.a]\ntarget = "m:f"\nenv = { GH_TOKEN = "" }\noptions = { max_token = 3, end_token = 0 }'
    )
    assert config.agents["a"].options == {"max_token": 3, "end_token": 0}


def test_relative_paths_are_relative_to_the_file_and_home_is_expanded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    config = load(
        tmp_path,
        '[server]\ndata = "d"\n[workspaces]\nroots = ["~/w", "/abs", "rel"]\n'
        '[agents.a]\ntarget = "m:f"\npython_path = ["src"]\n[profiles.p]\nenv_file = "p.env"\nhome = "~"\n',
    )
    assert config.server.data == f"{tmp_path}/d"
    assert config.workspaces.roots == ["/home/someone/w", "/abs", f"{tmp_path}/rel"]
    assert config.agents["a"].python_path == [f"{tmp_path}/src"]
    assert (config.profiles["p"].env_file, config.profiles["p"].home) == (f"{tmp_path}/p.env", "/home/someone")


def test_the_command_line_wins_and_is_checked_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "c.toml"
    path.write_text('[server]\nbind = "127.0.0.1:1"\ndata = "/elsewhere"\n')
    config = load_config(path, bind="[::1]:0", data="here")
    assert (config.server.bind, config.server.data) == ("[::1]:0", str(tmp_path / "here"))
    with pytest.raises(ConfigError, match="^--bind: "):
        load_config(None, bind="nonsense")
    with pytest.raises(ConfigError, match="^--data: "):
        load_config(None, data="")


# --- bind ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("127.0.0.1:8642", ("127.0.0.1", 8642)),
        ("localhost:0", ("localhost", 0)),
        ("0.0.0.0:65535", ("0.0.0.0", 65535)),
        ("[::1]:80", ("::1", 80)),
        ("[::]:80", ("::", 80)),
        ("my-host.example:1", ("my-host.example", 1)),
    ],
)
def test_an_address_has_a_host_and_a_port(text: str, expected: tuple[str, int]) -> None:
    assert parse_bind(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "", "8642", ":8642", "host:", "host:65536", "host:-1", "host:٣", "::1:80", "[::1]", "[::1:80", "[127.0.0.1]:80",
        "127.0.0.256:80", "127.1:80", "a b:80", "http://host:80", "-a:80", "[]:80", "unix:/tmp/socket", "a..b:80",
    ],
)  # fmt: skip
def test_what_is_no_address_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_bind(text)
    assert "127.0.0.1:8642" in caught.value.hint


def test_only_loopback_is_loopback() -> None:
    for host in ("127.0.0.1", "127.9.9.9", "::1", "localhost", "LOCALHOST", "::ffff:127.0.0.1"):
        assert is_loopback(host)
    for host in ("0.0.0.0", "::", "192.168.1.1", "example.org", "localhost.example.org", "::ffff:10.0.0.1", ""):
        assert not is_loopback(host)


# --- text ---------------------------------------------------------------------------------------------------------

names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,10}", fullmatch=True)
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
variables = st.dictionaries(texts.filter(lambda t: t and "=" not in t).map(lambda t: t + "x"), texts, max_size=3)
settings_values = st.recursive(
    st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | texts | st.datetimes() | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts.map(lambda t: t + "x"), inner, max_size=3),
    max_leaves=8,
)
paths = texts.map(lambda t: str(Path(f"/folder/{t}")))
agents = st.builds(
    Agent,
    target=st.just("package.module:name.attribute"),
    python_path=st.lists(paths, max_size=2),
    env=variables,
    pass_env=st.lists(st.just("OPENAI_API_KEY"), max_size=1),
    description=texts,
    model=st.none() | texts,
    options=st.dictionaries(texts.map(lambda t: t + "x"), settings_values, max_size=3),
)
profiles = st.builds(Profile, env=variables, env_file=st.none() | paths)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    agents=st.dictionaries(names, agents, max_size=2),
    profiles=st.dictionaries(names, profiles, max_size=2),
    wall_s=st.floats(1e-9, 1e7),
)
def test_what_is_shown_is_a_file_that_loads_to_the_same(
    tmp_path_factory: pytest.TempPathFactory, agents: dict[str, Agent], profiles: dict[str, Profile], wall_s: float
) -> None:
    path = tmp_path_factory.getbasetemp() / "round.toml"
    made = Config(
        agents={"demo": DEMO} | agents, profiles={"default": Profile()} | profiles, turns=Turns(wall_s=wall_s)
    )
    path.write_text(encode(made), encoding="utf-8", newline="")
    config = load_config(path)
    path.write_text(show(config), encoding="utf-8", newline="")
    assert load_config(path) == config
    assert config.agents == made.agents and config.turns == made.turns


def test_what_is_shown_has_every_key_with_its_meaning_and_no_passed_value(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "hunter2")
    text = show(load(tmp_path, ISSUE_EXAMPLE + 'pass_env = ["OPENAI_API_KEY"]\n'))
    assert 'pass_env = ["OPENAI_API_KEY"]' in text and "hunter2" not in text
    for section in SECTIONS:
        for field in section.__struct_fields__:
            shown = (f"{field} = ", f"# {field} is not set", f"[agents.mine.{field}]")
            assert any(way in text for way in shown)
    assert tomllib.loads(text)["turns"]["grace_s"] == 5.0
    assert "# Between SIGTERM and SIGKILL.\ngrace_s = 5.0\n" in text


def test_every_key_says_what_it_means() -> None:
    for section in SECTIONS:
        assert set(field_docs(section)) == set(section.__struct_fields__), section
    assert all(adapter in field_docs(Agent)["adapter"] for adapter in ADAPTERS)


def test_the_reference_in_the_docs_is_up_to_date() -> None:
    docs = Path(__file__).parents[2] / "docs" / "configuration.md"
    if not docs.exists():
        pytest.skip("the docs are not beside these tests")
    assert docs.read_text(encoding="utf-8") == reference(), (
        "run: python -m hermetic.supervisor.config_reference > docs/configuration.md"
    )


def test_an_agent_changes_only_the_limits_that_it_names(tmp_path: Path) -> None:
    config = load(
        tmp_path, ISSUE_EXAMPLE + "[agents.mine.limits]\nprocesses_max = 7\n[limits]\nmemory_bytes_max = 99_000_000\n"
    )
    limits = limits_of(config, config.agents["mine"])
    assert limits.processes_max == 7 and limits.memory_bytes_max == 99_000_000
    assert limits_of(config, config.agents["demo"]).processes_max == Limits().processes_max
