"""Prints docs/configuration.md: `python -m hermetic.supervisor.config_reference`. A test holds the two equal."""

from __future__ import annotations

import inspect
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from msgspec import NODEFAULT, Meta, Struct
from msgspec.structs import fields

from hermetic.supervisor.config import (
    Agent,
    AgentLimits,
    Config,
    Limits,
    Log,
    ModelApi,
    Oidc,
    Profile,
    Quotas,
    Seal,
    Secrets,
    Server,
    Stream,
    Trace,
    Turns,
    Webui,
    Workspaces,
)
from hermetic.supervisor.config_toml import field_docs, toml_value
from hermetic.supervisor.environment import BASE, COPIED, OURS

_SECTIONS: dict[str, type[Struct]] = {
    "server": Server,
    "turns": Turns,
    "limits": Limits,
    "stream": Stream,
    "workspaces": Workspaces,
    "seal": Seal,
    "oidc": Oidc,
    "quotas": Quotas,
    "secrets": Secrets,
    "log": Log,
    "trace": Trace,
    "webui": Webui,
    "agents.NAME": Agent,
    "agents.NAME.limits": AgentLimits,
    "agents.NAME.model_api": ModelApi,
    "profiles.NAME": Profile,
}

_PROSE = """\
# Configuration

<!-- Printed by `python -m hermetic.supervisor.config_reference`; change the text there. -->

One TOML file, named with `hermetic serve --config FILE`. Everything has a default, so no file is a valid configuration:
then there is one agent, `demo`, and one profile, `default`. `--bind` and `--data` win over the file.
`hermetic config show` prints what is in force, every key with its meaning; what it prints is itself a valid file.

```toml
[agents.mine]
adapter = "function"
target = "my_agent:run"            # module:callable
python_path = ["/where/the/module/is"]
env = { GREETING = "hello" }
pass_env = ["OPENAI_API_KEY"]      # copied from the server's environment

[profiles.work]
env_file = "work.env"              # read at the start of every turn

[workspaces]
roots = ["~/projects"]
```

The file is read strictly. An unknown key, a wrong type and a value out of range each stop the server at the start,
with the key's path, what was expected and, for an unknown key, the nearest known one. Units are in the names: `_s`
seconds, `_ms` milliseconds, `_bytes` and `_bytes_max` bytes. Relative paths are relative to the file's folder, and `~`
is the home directory of the server's user. Names of agents and profiles have up to 64 of `A-Z a-z 0-9 _ . -` and begin
with a letter or a digit.

## Secrets

They never stand in this file. A tenant's own are set with `hermetic secrets set` or over the API, and are kept encrypted
(docs/operations.md). The host's: name a variable of the server's environment in `pass_env`, or put it into a profile's
`env_file` (readable for the server's user alone). A variable or an option with a value whose name is or ends in
`API_KEY`, or ends in `_TOKEN`, `_SECRET`, `_SECRET_KEY` or `_PASSWORD`, is refused.

## The environment of a turn

It is built from nothing, never copied from the server's. Later lines win:

@environment@

A variable in `pass_env` that the server does not have, or an `env_file` that cannot be read, fails the turn and says
which. Proxy settings (`HTTP_PROXY` and the like) are not copied by themselves: they often hold a password, and how an
agent reaches the network should be said; name them in `pass_env`. The `env_file` is a dotenv file: `NAME=value` lines,
quotes, `export` and comments; `${NAME}` stays as it is written, so that nothing of the server leaks in through it.

## Keys
"""


def reference() -> str:
    parts = [_PROSE.replace("@environment@", _environment()), _table("Top level", Config, only=_top_level())]
    parts += [_table(f"`[{path}]`", section) for path, section in _SECTIONS.items()]
    return "\n".join(parts)


def _environment() -> str:
    base = ", ".join(f"`{name}={value}`" for name, value in BASE.items())
    return "\n".join(
        f"{number}. {line}"
        for number, line in enumerate(
            (
                f"a fixed base: `PATH` (the folder of the agent's Python, then the system's), `HOME`, {base};",
                f"of the server's own, where it has them: {', '.join(f'`{name}`' for name in COPIED)};",
                "the profile: `env_file`, then `env`, then `pass_env`;",
                "the agent: `env`, then `pass_env`;",
                "the secrets of the turn's tenant under this profile;",
                "what leads to the network and to the model (`egress`, `model_api`): [egress.md](egress.md);",
                f"what nobody can override: {', '.join(f'`{name}`' for name in OURS)}.",
            ),
            start=1,
        )
    )


def _top_level() -> set[str]:
    return {name for name in Config.__struct_fields__ if name.startswith("default_")}


def _table(title: str, section: type[Struct], only: set[str] | None = None) -> str:
    prose = "" if only else f"\n{inspect.getdoc(section)}\n"
    rows = [_row(section, name) for name in section.__struct_fields__ if only is None or name in only]
    return f"### {title}\n{prose}\n| Key | Type | Default | Meaning |\n|---|---|---|---|\n" + "".join(rows)


def _row(section: type[Struct], name: str) -> str:
    hint = get_type_hints(section, include_extras=True)[name]
    member = next(field for field in fields(section) if field.name == name)
    default = member.default if member.default_factory is NODEFAULT else member.default_factory()
    if member.required:
        shown = "required"
    elif isinstance(default, Struct):
        shown = "its own"  # a table of its own, below
    else:
        shown = "not set" if default is None else f"`{toml_value(default)}`"
    meaning = field_docs(section).get(name, "").replace("|", "\\|")
    return f"| `{name}` | {_type(hint)} | {shown} | {meaning} |\n"


def _type(hint: Any) -> str:
    if get_origin(hint) is Annotated:
        kind, *rest = get_args(hint)
        return _type(kind) + "".join(_range(meta) for meta in rest if isinstance(meta, Meta))
    simple = {str: "text", int: "integer", float: "number", bool: "true or false"}
    if hint in simple:
        return simple[hint]
    if isinstance(hint, type) and issubclass(hint, Struct):
        return "table, below"
    if get_origin(hint) is list:
        return "list of text"
    if get_origin(hint) is Literal:
        return " or ".join(f"`{word}`" for word in get_args(hint))
    if get_origin(hint) is dict:
        return "table of text" if get_args(hint)[1] is str else "table"
    return _type(get_args(hint)[0])  # X | None


def _range(meta: Meta) -> str:
    low = f"more than {meta.gt}" if meta.gt is not None else f"{meta.ge}" if meta.ge is not None else ""
    return f", {low} to {meta.le}" if meta.gt is None else f", {low}, up to {meta.le}"


if __name__ == "__main__":
    print(reference(), end="")
