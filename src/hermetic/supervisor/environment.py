"""The environment of a child: built from nothing, by a plain function.

A copy of the server's environment with things taken out would pass on every variable that nobody thought of; here a
variable is in only because a line below, the profile or the agent says so. Two turns of two profiles never share one. It comes
in two parts: what all turns of an agent and profile have, and the little that is one turn's.
"""

from __future__ import annotations

import io
import os
import stat
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from dotenv.parser import parse_stream

from hermetic.protocol.errors import ConfigError
from hermetic.supervisor.config import Agent, Profile, variable_fault
from hermetic.supervisor.egress.variables import egress_variables, holders_of_key

BASE: Final = {
    "LANG": "C.UTF-8",
    "LC_ALL": "C.UTF-8",
    "USER": "agent",
    "LOGNAME": "agent",
    "SHELL": "/bin/sh",
    "TERM": "dumb",
}
"""The same on every host. No TMPDIR: the seal gives a turn its own /tmp, which is where tools look without one."""

SYSTEM_PATH: Final = "/usr/local/bin:/usr/bin:/bin"

COPIED: Final = ("TZ", "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
"""Facts about the host, not secrets: its time zone, and where its certificates are. Not the proxies: their URLs often
hold a password. Never LD_* or PYTHON*: they would run code before the child has claimed its streams."""

OF_A_TURN: Final = ("TERMINAL_CWD", "HERMES_SESSION_KEY")
OURS: Final = (*OF_A_TURN, "HERMES_EXEC_ASK", "HERMES_HOME")
"""Said by the supervisor alone; a value from anywhere else is overridden."""

ENV_FILE_BYTES_MAX: Final = 256 << 10
"""A quarter of a MiB: hundreds of times a real dotenv file, and no harm when someone names a log by mistake."""
VARIABLE_BYTES_MAX: Final = (128 << 10) - 1
"""`NAME=value` with its NUL; the kernel refuses a longer string with E2BIG (MAX_ARG_STRLEN in execve(2))."""
ENVIRONMENT_BYTES_MAX: Final = 1 << 20
"""All of it; execve(2) allows a quarter of the stack's limit, which is 2 MiB where nobody changed it."""


def base_environment(
    agent: Agent,
    profile: Profile,
    *,
    profile_name: str,
    home: str | Path,
    server_environ: Mapping[str, str],
    python: str = sys.executable,
    agent_name: str = "",
    network_namespace: bool = False,
    secrets: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """What all turns of an agent and profile have: the environment that their launcher is born with.

    `server_environ` is looked at by name only; `home` is the profile's, `python` the path of the interpreter that runs
    the child. `network_namespace`: its only way out are the listeners of egress/. `secrets`: the tenant's own.

    Reads the profile's `env_file` and nothing else. Raises `ConfigError` when a variable of `pass_env` is not there,
    when `env_file` cannot be read or parsed, when the key of `model_api` would be seen in a network namespace, and for
    what execve(2) cannot carry. No message has a value in it.
    """
    profile_path, agent_path = f"profiles.{profile_name}", f"agents.{agent_name}" if agent_name else "the agent"
    environment = {
        "PATH": _path(python),
        "HOME": str(home),
        **BASE,
        **{name: server_environ[name] for name in COPIED if name in server_environ},
        **(read_env_file(Path(profile.env_file), f"{profile_path}.env_file") if profile.env_file else {}),
        **profile.env,
        **_passed(profile.pass_env, server_environ, f"{profile_path}.pass_env"),
        **agent.env,
        **_passed(agent.pass_env, server_environ, f"{agent_path}.pass_env"),
        **(secrets or {}),
        **egress_variables(agent.model_api, server_environ, network_namespace=network_namespace),
        "HERMES_EXEC_ASK": "1",
        "HERMES_HOME": str(home),
    }
    for name in OF_A_TURN:
        environment.pop(name, None)
    if network_namespace and (names := holders_of_key(environment, agent.model_api, server_environ)):
        raise ConfigError(
            f"{', '.join(names)} would show the agent the key of {agent_path}.model_api",
            hint=f"Take it out of {profile_path} (env_file, pass_env): the server puts the key into the requests itself.",
        )
    _check(environment)
    return environment


def turn_environment(*, session_id: str, workspace: str | Path) -> dict[str, str]:
    """What a turn has beside that. Raises `ConfigError`, as above."""
    environment = {"TERMINAL_CWD": str(workspace), "HERMES_SESSION_KEY": session_id}
    _check(environment)
    return environment


def _path(python: str) -> str:
    """The child's Python first, as in an activated virtual environment: its tools find the packages they came with."""
    folder = os.path.dirname(python)
    return SYSTEM_PATH if not os.path.isabs(folder) or ":" in folder else f"{folder}:{SYSTEM_PATH}"


def _passed(names: list[str], server_environ: Mapping[str, str], where: str) -> dict[str, str]:
    for name in names:
        if name not in server_environ:
            raise ConfigError(
                f"{where} names {name}, which the server's environment does not have",
                hint=f"Start the server with {name} set, or take it out of pass_env.",
            )
    return {name: server_environ[name] for name in names}


def _check(environment: Mapping[str, str]) -> None:
    total = 0
    for name, value in environment.items():
        if fault := variable_fault(name, value):
            raise ConfigError(f"the environment of the turn cannot be built: {fault}")
        try:
            size = len(os.fsencode(name)) + len(os.fsencode(value)) + 2
        except UnicodeEncodeError:
            raise ConfigError(f"the environment of the turn cannot be built: {name!r} is not text") from None
        if size > VARIABLE_BYTES_MAX:
            raise ConfigError(
                f"the environment of the turn cannot be built: {name} has {size} bytes, "
                f"the kernel takes {VARIABLE_BYTES_MAX} at most",
                hint="Put large values into a file and pass its path.",
            )
        total += size
    if total > ENVIRONMENT_BYTES_MAX:
        raise ConfigError(f"the environment of the turn has {total} bytes, {ENVIRONMENT_BYTES_MAX} at most are passed")


def read_env_file(path: Path, where: str = "env_file") -> dict[str, str]:
    """A dotenv file → its variables, the last of a name. `${NAME}` is not expanded.

    Stricter than most readers of such files: a line that is none of theirs is an error with its number, because a key
    that is left out silently is found much later, in the agent. Raises `ConfigError`, never with the line's text.
    """
    values: dict[str, str] = {}
    for binding in parse_stream(io.StringIO(_env_file_text(path, where))):
        text = binding.original.string
        line = binding.original.line + len(text[: len(text) - len(text.lstrip())].splitlines())
        if binding.error or (binding.key is not None and binding.value is None):
            raise ConfigError(f"{where}: {path}, line {line}: not NAME=value", hint="Correct that line of the file.")
        if binding.key is not None and binding.value is not None:
            if fault := variable_fault(binding.key, binding.value):
                raise ConfigError(f"{where}: {path}, line {line}: {fault}", hint="Correct that line of the file.")
            values[binding.key] = binding.value
    return values


def _env_file_text(path: Path, where: str) -> str:
    hint = "Check that the file is there and that the server's user may read it."
    try:
        # O_NONBLOCK: opening a pipe must not wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise ConfigError(f"{where}: {path} is not a regular file", hint=hint)
            data = file.read(ENV_FILE_BYTES_MAX + 1)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{where}: {path} cannot be read: {getattr(error, 'strerror', error)}", hint=hint) from None
    if len(data) > ENV_FILE_BYTES_MAX:
        raise ConfigError(f"{where}: {path} is larger than {ENV_FILE_BYTES_MAX} bytes", hint="Name the dotenv file.")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{where}: {path} is not UTF-8 at byte {error.start}", hint="Save it as UTF-8.") from None


def turn_options(agent: Agent, asked: Mapping[str, Any]) -> dict[str, Any]:
    """The agent's options with the toolsets that the turn asked for (the runner contract): of those that the host has
    named in `options.toolsets`, where it has. Only hermes-agent has toolsets."""
    wanted = asked.get("toolsets")
    if agent.adapter != "hermes" or not isinstance(wanted, list):
        return agent.options
    allowed = agent.options.get("toolsets")
    chosen = [name for name in wanted if isinstance(name, str) and (not allowed or name in allowed)]
    return {**agent.options, "toolsets": chosen} if chosen else agent.options
