"""From the configuration to what a turn may reach, and to the variables that lead it there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hermetic.protocol.errors import ConfigError
from hermetic.supervisor.config import Agent, ModelApi, Profile, load_config, show
from hermetic.supervisor.egress.model_rules import PLACEHOLDER
from hermetic.supervisor.egress.serve import egress_of
from hermetic.supervisor.egress.variables import CONNECT_PORT, MODEL_PORT, egress_variables, ports
from hermetic.supervisor.environment import base_environment

API = ModelApi(url="https://api.openai.com/v1", key_env="REAL_KEY")
SERVER = {"REAL_KEY": "sk-real", "OTHER": "x sk-real x", "HTTPS_PROXY": "http://user:pw@proxy"}


def build(api: ModelApi | None = API, *, network_namespace: bool = True, **profile: Any) -> dict[str, str]:
    return base_environment(
        Agent(adapter="demo", model_api=api, env={"http_proxy": "http://mine"}),
        Profile(**profile),
        profile_name="work",
        home="/h",
        server_environ=SERVER,
        python="/usr/bin/python3",
        network_namespace=network_namespace,
    )


def test_a_sealed_child_sees_the_listeners_and_a_placeholder() -> None:
    environment = build()
    proxy = f"http://127.0.0.1:{CONNECT_PORT}"
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        assert environment[name] == environment[name.lower()] == proxy
    assert environment["NO_PROXY"] == environment["no_proxy"] == "127.0.0.1,localhost,::1"
    assert environment["OPENAI_BASE_URL"] == f"http://127.0.0.1:{MODEL_PORT}/v1"
    assert environment["OPENAI_API_KEY"] == PLACEHOLDER
    assert "sk-real" not in " ".join(environment.values())
    assert "REAL_KEY" not in environment


def test_without_a_network_namespace_the_child_talks_to_the_provider_itself() -> None:
    environment = build(network_namespace=False)
    assert environment["OPENAI_BASE_URL"] == "https://api.openai.com/v1"
    assert environment["OPENAI_API_KEY"] == "sk-real"
    assert environment["http_proxy"] == "http://mine" and "HTTPS_PROXY" not in environment


def test_an_agent_without_a_model_api_has_the_proxy_alone() -> None:
    assert set(build(None)) - set(build(None, network_namespace=False)) >= {"HTTPS_PROXY", "no_proxy"}
    assert "OPENAI_BASE_URL" not in build(None)
    assert ports(None) == [CONNECT_PORT]
    assert ports(API) == [CONNECT_PORT, MODEL_PORT]


@pytest.mark.parametrize("name", ["REAL_KEY", "OTHER"])
def test_a_key_that_would_reach_the_child_another_way_stops_the_turn(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=name) as caught:
        build(pass_env=[name])
    assert "sk-real" not in f"{caught.value.message}{caught.value.hint}"
    (tmp_path / "p.env").write_text("MY_KEY=sk-real\n")
    with pytest.raises(ConfigError, match="MY_KEY"):
        build(env_file=str(tmp_path / "p.env"))
    assert build(pass_env=[name], network_namespace=False)[name]


def test_a_key_that_is_not_there_stops_the_turn() -> None:
    for network_namespace in (True, False):
        with pytest.raises(ConfigError, match="NOT_SET"):
            egress_variables(ModelApi(url="https://a", key_env="NOT_SET"), SERVER, network_namespace=network_namespace)


TOML = """
[agents.mine]
adapter = "demo"
egress = ["pypi.org", "*.pythonhosted.org:443"]
{more}
[agents.mine.model_api]
url = "https://api.anthropic.com"
key_env = "REAL_KEY"
key_header = "x-api-key"
url_env = ["ANTHROPIC_BASE_URL"]
placeholder_env = ["ANTHROPIC_API_KEY"]
"""


def load(tmp_path: Path, text: str) -> Agent:
    (tmp_path / "c.toml").write_text(text)
    config = load_config(tmp_path / "c.toml")
    (tmp_path / "shown.toml").write_text(show(config))
    assert load_config(tmp_path / "shown.toml").agents["mine"] == config.agents["mine"]
    return config.agents["mine"]


def test_the_configuration_becomes_what_a_turn_may_reach(tmp_path: Path) -> None:
    egress = egress_of(load(tmp_path, TOML.format(more="")), SERVER)
    assert egress.rules.refusal("files.pythonhosted.org", 443) is None
    assert egress.rules.refusal("evil.example", 443)
    assert egress.provider and egress.provider.allows("POST", "/v1/messages")
    assert egress.provider.key and egress.provider.key.value == "sk-real"
    assert "sk-real" not in repr(egress)
    assert egress_of(Agent(adapter="demo"), {}).provider is None


@pytest.mark.parametrize(
    ("change", "names"),
    [
        (("*.pythonhosted.org:443", "http://a"), r"agents\.mine\.egress\[1\]"),
        (("https://api.anthropic.com", "http://api.anthropic.com"), r"agents\.mine\.model_api.*unencrypted"),
        (('key_header = "x-api-key"', 'key_header = "X-Api-Key"'), r"agents\.mine\.model_api: key_header"),
        (('key_header = "x-api-key"', 'requests = ["GET files"]'), r"agents\.mine\.model_api.*GET files"),
        (('url = "https://api.anthropic.com"', ""), r"agents\.mine\.model_api\.url: missing"),
        (('key_env = "REAL_KEY"', 'key_env = "A=B"'), r"agents\.mine\.model_api: 'A=B'"),
        (('key_env = "REAL_KEY"', 'key = "REAL_KEY"'), r"agents\.mine\.model_api\.key: unknown key"),
        (("{more}", 'pass_env = ["REAL_KEY"]'), r"agents\.mine\.pass_env: REAL_KEY"),
    ],
)
def test_a_fault_in_it_is_named_with_its_key(tmp_path: Path, change: tuple[str, str], names: str) -> None:
    assert change[0] in TOML
    with pytest.raises(ConfigError, match=names):
        load(tmp_path, TOML.replace(*change).replace("{more}", ""))
