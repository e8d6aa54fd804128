"""The variables that lead a sealed turn's programs to the listeners inside its network namespace. A plain function.

Ports are fixed: the namespace is the turn's own and empty, so nothing else can have them, and an agent's configuration
file can name them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from hermetic.supervisor.config import ModelApi
from hermetic.supervisor.egress.model_rules import PLACEHOLDER, parse_provider, read_key

CONNECT_PORT: Final = 3128
"""The HTTP proxy: first of `ports`."""
MODEL_PORT: Final = 3129
"""The model's API: second of `ports`, for an agent with `model_api`."""

_PROXY: Final = f"http://127.0.0.1:{CONNECT_PORT}"
_NOT_PROXIED: Final = "127.0.0.1,localhost,::1"


def ports(model_api: ModelApi | None) -> list[int]:
    """launch.Policy.ports for an agent: the CONNECT proxy, then the model proxy if it has one."""
    return [CONNECT_PORT] if model_api is None else [CONNECT_PORT, MODEL_PORT]


def model_url(url: str) -> str:
    """The provider's URL as the sealed child sees it: the same path at the listener."""
    return f"http://127.0.0.1:{MODEL_PORT}{parse_provider(url).base_path}"


def egress_variables(
    model_api: ModelApi | None, server_environ: Mapping[str, str], *, network_namespace: bool
) -> dict[str, str]:
    """They win over what was configured, for a turn cannot reach anything else.

    Without a network namespace (a seal below level 2) there is no listener, the list of hosts is not kept by anything,
    and the child itself must talk to the provider: it gets the real URL and the real key. Raises `ConfigError` when
    the key is not there.
    """
    variables = dict.fromkeys(_both("http_proxy", "https_proxy", "all_proxy"), _PROXY) if network_namespace else {}
    if network_namespace:
        variables |= dict.fromkeys(_both("no_proxy"), _NOT_PROXIED)
    if model_api is not None:
        key = read_key(model_api.key_env, server_environ)
        url = model_url(model_api.url) if network_namespace else model_api.url
        shown = PLACEHOLDER if network_namespace or key is None else key.value
        variables |= dict.fromkeys(model_api.url_env, url) | dict.fromkeys(model_api.placeholder_env, shown)
    return variables


def _both(*names: str) -> list[str]:
    """Programs disagree about which case they read; curl reads `http_proxy` in lower case alone."""
    return [spelling for name in names for spelling in (name, name.upper())]


def holders_of_key(
    environment: Mapping[str, str], model_api: ModelApi | None, server_environ: Mapping[str, str]
) -> list[str]:
    """The variables of a sealed child in which the real key stands all the same, for example out of an env_file."""
    key = read_key(model_api.key_env, server_environ) if model_api else None
    return sorted(name for name, value in environment.items() if key and key.value in value)
