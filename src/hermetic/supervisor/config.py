"""The configuration: one TOML file, one frozen tree of structs, every limit with its default and its unit.

Secrets never stand in the file: they come from the server's environment (`pass_env` names the variables) or from files
(`env_file`), and a variable or an option whose name says that it is one is refused.

Reading goes file → tables (tomllib) → structs (config_toml) → rules that concern more than one value (here).
"""

from __future__ import annotations

import ipaddress
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal
from urllib.parse import SplitResult, urlsplit

from msgspec import Meta, Struct, field
from msgspec.structs import replace

from hermetic.protocol.errors import ConfigError
from hermetic.supervisor import config_toml
from hermetic.supervisor.egress.model_rules import DEFAULT_REQUESTS, parse_provider
from hermetic.supervisor.egress.rules import parse_rules

ADAPTERS: Final = ("function", "demo", "hermes")
"""What an agent's `adapter` may name; the child has a module of the same name for each."""

Seconds = Annotated[float, Meta(gt=0, le=31_536_000)]
"""More than a year is a slip of the pen, and infinity no limit at all."""
SecondsOrNone = Annotated[float, Meta(ge=0, le=31_536_000)]
"""0: do not wait."""
Count = Annotated[int, Meta(ge=1, le=1_000_000)]
"""A million of anything counted here is beyond one machine."""
Size = Annotated[int, Meta(ge=1, le=1 << 40)]
"""Bytes; a tebibyte is more than the memory of the machines this runs on."""


class Section(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of all sections: an unknown key is an error."""


class Server(Section, frozen=True):
    """Where the server listens and keeps its data."""

    bind: str = "127.0.0.1:8642"
    """HOST:PORT; port 0 lets the kernel choose. Anything but loopback needs tenants (or --insecure)."""
    data: str = "~/.local/share/hermetic"
    """Database, workspaces and kept output of children."""
    tls_cert: str | None = None
    """A certificate with its chain, PEM: the server then speaks HTTPS, with HTTP/2. Browsers allow an HTTP/1.1 server six
    connections, so that a person with seven open turns needs this (or one stream for all: docs/streams.md)."""
    tls_key: str | None = None
    """Its key, PEM, without a password. Not set: it is in the file of tls_cert."""
    body_bytes_max: Size = 4 << 20
    """A request's body; larger than limits.message_bytes_max by what JSON escapes may add."""
    upload_bytes_max: Annotated[int, Meta(ge=1, le=1 << 30)] = 20 << 20
    """One uploaded file; 20 MiB as in the Hermes Web UI."""
    runner_api_key_env: str | None = None
    """The variable of the server's environment with the key that /v1/runs asks for as a bearer. Not set: no key."""
    url: str | None = None
    """The address that people use, where a proxy stands in front, such as https://agents.example.com: cookies are secure
    by it, and an identity provider sends people back to it. Not set: what the request says."""
    cors_origins: list[str] = field(default_factory=list)
    """Origins whose pages may use the API with a key or a ticket, each whole, such as https://app.example.com. Cookies
    work for no other origin than the server's own."""
    access_log: bool = True
    """A line for each request: method, path, status and who asked; never a query, a key or a body."""
    drain_s: SecondsOrNone = 10.0
    """On SIGTERM running turns get this long to finish before they are cancelled."""


class Turns(Section, frozen=True):
    """How many turns run, and how long each step of one may take."""

    concurrent_max: Count = 16
    """Turns that run at once; more wait in the queue. A Python child costs about 10 MiB and a core's share."""
    queue_max: Count = 1000
    """Turns that wait; one more is refused with 429."""
    ready_s: Seconds = 30.0
    """From spawn to the child's `Ready`, and for a launcher to import what it preloads; a cold hermes-agent on a busy
    disk needs up to ten."""
    wall_s: Seconds = 3600.0
    """Wall clock of a turn from its start; then it ends as timed_out."""
    approval_s: Seconds = 300.0
    """How long an approval or a clarification waits before the answer is deny."""
    grace_s: SecondsOrNone = 5.0
    """Between SIGTERM and SIGKILL."""
    exit_s: SecondsOrNone = 5.0
    """Between the agent's result and the end of its process; then the tree is killed, the result stands."""
    launcher_turns_max: Count = 1000
    """After so many turns an agent's launcher is replaced: its turns share an address layout, and what leaks adds up."""
    launchers_idle_max: Annotated[int, Meta(ge=0, le=1000)] = 8
    """Launchers without a running turn that are kept warm, the last used; each has an agent's modules in memory."""


class Limits(Section, frozen=True):
    """How much one turn may say, and how much of the host it may use. Over a limit it ends as over_limit, by name."""

    message_bytes_max: Size = 1 << 20
    """A user's message in UTF-8."""
    frame_bytes_max: Annotated[int, Meta(ge=256, le=64 << 20)] = 1 << 20
    """One event of a child. Under 256 bytes not even its first frame fits; each reader is sent an event whole."""
    event_bytes_max: Size = 32 << 20
    """All events of a turn; then it ends as over_limit. A turn's text is kept in memory while it runs; a model that
    writes a hundred tokens a second for five hours stays below."""
    event_bytes_per_s_max: Size = 32 << 20
    """Events of a turn in any one second. A model writes some kilobytes, a tool's output may be megabytes; by default it is
    what a whole turn may say, so it holds only where it is lowered or that is raised."""
    stderr_bytes_max: Annotated[int, Meta(ge=0, le=64 << 20)] = 64 << 10
    """What is kept of a child's prints: the last part."""
    stderr_lines: Annotated[int, Meta(ge=0, le=1000)] = 20
    """Lines of it in the event of a crash."""
    memory_bytes_max: Annotated[int, Meta(ge=16 << 20, le=1 << 50)] = 2 << 30
    """All processes of a turn together. Without a memory cgroup: the data of each process."""
    processes_max: Annotated[int, Meta(ge=4, le=1 << 22)] = 512
    """Processes and threads of a turn together; three are the turn's own."""
    cpu_share: Annotated[int, Meta(ge=1, le=10_000)] = 100
    """A turn's weight when the host is busy; one with 200 gets twice the time of one with 100."""
    file_bytes_max: Size = 4 << 30
    """One file that a turn writes."""
    open_files_max: Annotated[int, Meta(ge=128, le=1 << 20)] = 1024
    """Of one process. The turn's own streams have the numbers from 100 on."""
    tmp_bytes_max: Annotated[int, Meta(ge=1 << 20, le=1 << 40)] = 256 << 20
    """A turn's own /tmp, and as much again for its home where that is not kept."""
    shm_bytes_max: Annotated[int, Meta(ge=1 << 20, le=1 << 40)] = 64 << 20
    """A turn's own /dev/shm."""
    workspace_bytes_max: Size | None = None
    """All files of the workspace, measured while a turn runs: it ends, the files stay. Not set: no limit."""


class AgentLimits(Section, frozen=True):
    """`[agents.NAME.limits]`: of `[limits]`, those that differ for this agent."""

    event_bytes_max: Size | None = None
    """As in [limits], like all of these."""
    event_bytes_per_s_max: Size | None = None
    """As in [limits]."""
    memory_bytes_max: Annotated[int, Meta(ge=16 << 20, le=1 << 50)] | None = None
    """As in [limits]."""
    processes_max: Annotated[int, Meta(ge=4, le=1 << 22)] | None = None
    """As in [limits]."""
    cpu_share: Annotated[int, Meta(ge=1, le=10_000)] | None = None
    """As in [limits]."""
    file_bytes_max: Size | None = None
    """As in [limits]."""
    open_files_max: Annotated[int, Meta(ge=128, le=1 << 20)] | None = None
    """As in [limits]."""
    tmp_bytes_max: Annotated[int, Meta(ge=1 << 20, le=1 << 40)] | None = None
    """As in [limits]."""
    shm_bytes_max: Annotated[int, Meta(ge=1 << 20, le=1 << 40)] | None = None
    """As in [limits]."""
    workspace_bytes_max: Size | None = None
    """As in [limits]."""


class Seal(Section, frozen=True):
    """What holds a turn (SECURITY.md has the levels)."""

    strict: bool = False
    """Refuse to start where the host cannot give level 3."""
    level_max: Annotated[int, Meta(ge=0, le=3)] = 3
    """Seal no tighter than this, although the host could. 0 needs --insecure: nothing keeps an agent from the files of
    the server's user, nor from the network."""
    uid_base: Annotated[int, Meta(ge=1, le=4_000_000_000)] = 2_000_000
    """A server that runs as root gives each tenant a user id of its own from here on; nobody else may have them."""


class Stream(Section, frozen=True):
    """How readers follow a turn."""

    heartbeat_s: Annotated[float, Meta(gt=0, le=60)] = 10.0
    """A comment line on an idle stream; proxies cut at 30 to 60 s, so that 15 at most is wise."""
    retry_ms: Annotated[int, Meta(ge=0, le=3_600_000)] = 1000
    """What readers are told to wait before they reconnect."""
    ring_bytes: Annotated[int, Meta(ge=0, le=1 << 30)] = 1 << 20
    """Encoded events kept in memory per running turn; what has left is read from the journal."""
    ring_events: Count = 4096
    """The same as a number of events: small ones cost more than their bytes."""
    stall_s: Seconds = 30.0
    """Within this time a client must have taken 64 KiB of what is being sent to it, else its connection is cut; a reader
    of events comes back with its cursor."""
    window_s: Annotated[float, Meta(ge=0, le=0.1)] = 0.005
    """Under load, events are read, journaled and sent together that came within this time; above 20 ms one sees it. Never
    while the server has little to do. 0: never."""
    direct: bool = True
    """Write on readers' sockets from the task that has news (plain HTTP/1.1 only), not from each reader's own: a tenth
    of the cost. Switch it off if you suspect it of a fault, and report that."""


class Workspaces(Section, frozen=True):
    """Where agents may work."""

    roots: list[str] = field(default_factory=lambda: ["/"])
    """Folders in which a session may choose its workspace, beside its own under the data directory. Empty: none. With
    `/`, the default, any folder but the system's own and the data directory: one person's server, on loopback."""


class Oidc(Section, frozen=True):
    """An identity provider whose tokens are taken as bearers, and by which people log in (docs/tenants.md)."""

    issuer: str | None = None
    """Its address, exactly as in its tokens' `iss`. Not set: no tokens are taken."""
    audience: str | None = None
    """What its access tokens must have in `aud`."""
    jwks_url: str | None = None
    """Where its keys are. Not set: as its /.well-known/openid-configuration says."""
    tenant_claim: str = "tenant"
    """The claim with the tenant's name. Nobody but the provider's admins may be able to set it."""
    scopes_claim: str = "scope"
    """The claim with the scopes: a list, or text with spaces. Others than this server's are passed over."""
    scopes_prefix: str = "hermetic:"
    """What stands before a scope there: hermetic:run, hermetic:read, hermetic:admin."""
    scopes: list[str] = field(default_factory=list)
    """What a token may that names none of them."""
    client_id: str | None = None
    """Of this server at the provider, for people who log in with a browser. Not set: they need a key."""
    client_secret_env: str | None = None
    """The variable of the server's environment with the client's secret. Not set: a public client, PKCE alone."""


class Quotas(Section, frozen=True):
    """What each tenant may use; a tenant's own record overrides any of it. The tenant `local`, who runs the server, has
    no limits of this kind."""

    turns_at_once: Count | None = 4
    """Turns that run at once; more wait, and take turns with those of other tenants. A quarter of turns.concurrent_max,
    so that three tenants with endless work leave room for a fourth."""
    turns_queued: Count | None = 100
    """Turns that wait; a tenth of turns.queue_max, so that one tenant cannot fill the queue of all."""
    turns_per_minute: Count | None = 60
    """Turns started; so many also at once, after a minute without one. Each costs a process."""
    tokens_per_day: Annotated[int, Meta(ge=1, le=(1 << 53) - 1)] | None = None
    """Of the models, in and out, from midnight UTC. As agents report it, and known when a turn ends: those that run at
    that time may go beyond. Not set, like all of these: no limit."""
    cost_per_day: Annotated[float, Meta(gt=0, le=1e9)] | None = None
    """The same in US dollars."""
    disk_bytes: Size | None = None
    """All workspaces of the tenant's own together, measured before a turn starts. What it holds of other folders that
    its record allows is not in it."""
    streams: Count | None = 200
    """Event streams open at once. Each is a socket and some kilobytes; a person with ten pages open needs ten."""


class Secrets(Section, frozen=True):
    """The keys that encrypt tenants' secrets in the database (docs/operations.md)."""

    key_file: str | None = None
    """A file that only the server's user can read: a key a line, as `hermetic secrets new-key` prints it. The first one
    encrypts, all of them decrypt."""
    key_env: str = "HERMETIC_SECRETS_KEY"
    """Without a key_file: the variable of the server's environment with the same. No turn can be given it."""


class Log(Section, frozen=True):
    """What the server writes to stderr while it runs."""

    format: Literal["console", "json"] = "console"
    """`console` is for people; `json` is one object a line, for programs."""
    level: Literal["debug", "info", "warning", "error"] = "info"
    """The least important that is written."""


class Trace(Section, frozen=True):
    """OpenTelemetry traces: a span for each turn and each tool call, by the GenAI conventions. They need the extra
    `hermetic[otel]`."""

    url: str | None = None
    """Where spans are sent by OTLP over HTTP, such as http://127.0.0.1:4318/v1/traces. Not set: no traces."""
    service: str = "hermetic"
    """What the server calls itself there."""


class Webui(Section, frozen=True):
    """For a Hermes Web UI in front of this server (docs/webui.md)."""

    state_dir: str | None = None
    """Its HERMES_WEBUI_STATE_DIR: at the end of a turn the session's file there is written. Not set: none is."""


class ModelApi(Section, frozen=True):
    """The model provider whose key a sealed turn does not see: `[agents.NAME.model_api]` (docs/egress.md)."""

    url: str
    """Its base URL, `https://api.openai.com/v1`. Plain http only for a model server on this machine."""
    key_env: str | None = None
    """The variable of the server's environment with the key. Not set: the provider wants none."""
    key_header: str = "authorization"
    """The header that the key is sent in, in lower case. In `authorization` it follows `Bearer`."""
    requests: list[str] = field(default_factory=lambda: list(DEFAULT_REQUESTS))
    """What may be asked: `METHOD /path` after the url; `/*` at the end stands for everything below."""
    url_env: list[str] = field(default_factory=lambda: ["OPENAI_BASE_URL"])
    """Variables of the child that are set to the URL at which it reaches the provider."""
    placeholder_env: list[str] = field(default_factory=lambda: ["OPENAI_API_KEY"])
    """Variables of the child that are set to a placeholder, where its client wants a key."""


class Agent(Section, frozen=True):
    """An agent that sessions can name: `[agents.NAME]`."""

    adapter: str = "function"
    """What runs in the child: `function` (your own callable), `hermes` (hermes-agent, docs/hermes.md) or `demo`."""
    interpreter: str | None = None
    """The Python of the agent's own virtual environment, which must have msgspec. Not set: the server's Python."""
    start: Literal["warm", "cold"] = "warm"
    """`warm`: turns are forked from a launcher that runs this agent's Python and has imported `preload`. `cold`: each turn
    starts that Python anew."""
    preload: list[str] = field(default_factory=list)
    """Modules that the launcher imports before the first turn: what takes long to import. One that starts a thread, or
    leaves a file open, when it is imported is refused."""
    standby: Annotated[int, Meta(ge=0, le=64)] = 1
    """Turns of each profile that are forked in advance; each is used once. One takes some milliseconds off the start of
    a turn and a few MiB of memory."""
    target: str | None = None
    """`module:callable` for the adapter `function`."""
    python_path: list[str] = field(default_factory=list)
    """Put in front of sys.path in the child."""
    env: dict[str, str] = field(default_factory=dict)
    """Variables for the child. Not for secrets: use pass_env or the profile's env_file."""
    pass_env: list[str] = field(default_factory=list)
    """Names of variables that are copied from the server's environment."""
    description: str = ""
    """One line for people who choose an agent."""
    model: str | None = None
    """The model when a session names none."""
    options: dict[str, Any] = field(default_factory=dict)
    """The agent's own settings; they reach the adapter as they are."""
    egress: list[str] = field(default_factory=list)
    """Hosts that a sealed turn may reach: `HOST`, `HOST:PORT`, `*.DOMAIN`, `*` for any on the Internet; port 443 where
    none is named. A private address only by itself (docs/egress.md). Empty: none."""
    model_api: ModelApi | None = None
    """The model provider, reached through the server, which keeps the key."""
    readable: list[str] = field(default_factory=list)
    """Files and folders of the host that its turns see, read-only, beside their Python, its python_path and the system's
    programs."""
    writable: list[str] = field(default_factory=list)
    """The same, writable, beside the workspace: all turns of this agent share them, whoever's they are."""
    limits: AgentLimits = field(default_factory=AgentLimits)
    """What its turns may say and use, where that differs from [limits]."""


class Profile(Section, frozen=True):
    """Whose environment a turn runs in: `[profiles.NAME]`."""

    env_file: str | None = None
    """A dotenv file, read at the start of every turn."""
    env: dict[str, str] = field(default_factory=dict)
    """Variables for the child; they win over env_file. Not for secrets."""
    pass_env: list[str] = field(default_factory=list)
    """Names of variables that are copied from the server's environment."""
    home: str | None = None
    """HERMES_HOME and HOME of the child; not set: a folder of its own under the data directory."""


DEMO: Final = Agent(adapter="demo")
"""The agent `demo` of every configuration that does not define its own."""


class Config(Section, frozen=True):
    """All of it. `load_config` makes one that keeps every rule of this module."""

    server: Server = field(default_factory=Server)
    turns: Turns = field(default_factory=Turns)
    limits: Limits = field(default_factory=Limits)
    stream: Stream = field(default_factory=Stream)
    workspaces: Workspaces = field(default_factory=Workspaces)
    seal: Seal = field(default_factory=Seal)
    oidc: Oidc = field(default_factory=Oidc)
    quotas: Quotas = field(default_factory=Quotas)
    secrets: Secrets = field(default_factory=Secrets)
    log: Log = field(default_factory=Log)
    trace: Trace = field(default_factory=Trace)
    webui: Webui = field(default_factory=Webui)
    agents: dict[str, Agent] = field(default_factory=lambda: {"demo": DEMO})
    """`demo` is there unless the file defines it otherwise."""
    profiles: dict[str, Profile] = field(default_factory=lambda: {"default": Profile()})
    """`default` is there unless the file defines it otherwise."""
    default_agent: str | None = None
    """The agent of a session that names none. Not set: the only one that the file defines, else `demo`."""
    default_profile: str = "default"
    """The profile of a session that names none."""


# --- reading ------------------------------------------------------------------------------------------------------


def load_config(path: Path | None, *, bind: str | None = None, data: str | Path | None = None) -> Config:
    """The configuration in force: the file's, or the defaults without one; `bind` and `data` (command line) win.

    Relative paths in the file are relative to its folder, `data` to the working directory; `~` is expanded. Nothing
    but the file itself is looked at: folders, modules and variables that it names are checked when they are used.
    Raises `ConfigError` for a file that cannot be read or that breaks a rule; the message names file and key.
    """
    table = {} if path is None else _read(path)
    try:
        config = _checked(config_toml.decode(table, Config), Path.cwd() if path is None else path.absolute().parent)
    except ConfigError as error:
        raise ConfigError(error.message if path is None else f"{path}: {error.message}", hint=error.hint) from None
    if bind is not None:
        config = replace(config, server=replace(config.server, bind=bind))
        _named("--bind", parse_bind, bind)
    if data is not None:
        absolute = _path(str(data), Path.cwd(), "--data")
        config = replace(config, server=replace(config.server, data=absolute))
    return config


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"{path}: the configuration cannot be read: {error.strerror or error}",
            hint="Check the path after --config and the file's permissions.",
        ) from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 at byte {error.start}") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from None
    except RecursionError:
        raise ConfigError(f"{path}: not valid TOML: nested too deeply") from None


def _checked(config: Config, folder: Path) -> Config:
    """The rules that a type cannot say, and every path absolute."""
    agents = {"demo": DEMO} | {name: _agent(agent, name, folder) for name, agent in config.agents.items()}
    profiles = {"default": Profile()} | {
        name: _profile(profile, name, folder) for name, profile in config.profiles.items()
    }
    if config.default_agent is not None:
        _one_of("default_agent", config.default_agent, agents)
    _one_of("default_profile", config.default_profile, profiles)
    _named("server.bind", parse_bind, config.server.bind)
    limits, body = config.limits, config.server.body_bytes_max
    _at_most("limits.message_bytes_max", limits.message_bytes_max, "server.body_bytes_max", body)
    _at_most("limits.frame_bytes_max", limits.frame_bytes_max, "limits.event_bytes_max", limits.event_bytes_max)
    state_dir, key_env = config.webui.state_dir, config.server.runner_api_key_env
    if key_env is not None and (fault := variable_fault(key_env)):
        raise ConfigError(f"server.runner_api_key_env: {fault}")
    roots = [_path(root, folder, f"workspaces.roots[{i}]") for i, root in enumerate(config.workspaces.roots)]
    return replace(
        config,
        server=_server(config.server, folder),
        oidc=_oidc(config.oidc),
        workspaces=Workspaces(roots=roots),
        secrets=_secrets(config.secrets, [*agents.items(), *profiles.items()], folder),
        webui=Webui(state_dir=None if state_dir is None else _path(state_dir, folder, "webui.state_dir")),
        agents=agents,
        profiles=profiles,
    )


def _secrets(secrets: Secrets, passing: Iterable[tuple[str, Agent | Profile]], folder: Path) -> Secrets:
    if fault := variable_fault(secrets.key_env):
        raise ConfigError(f"secrets.key_env: {fault}")
    for name, section in passing:
        if secrets.key_env in section.pass_env:
            raise ConfigError(
                f"{name}.pass_env: {secrets.key_env} is the key of all tenants' secrets, which no turn may see",
                hint="Take it out of pass_env.",
            )
    return replace(
        secrets, key_file=None if secrets.key_file is None else _path(secrets.key_file, folder, "secrets.key_file")
    )


def _server(server: Server, folder: Path) -> Server:
    cert, key = server.tls_cert, server.tls_key
    if key is not None and cert is None:
        raise ConfigError("server.tls_key: there is no server.tls_cert that it could belong to")
    if server.url is not None:
        _origin("server.url", server.url)
    for index, origin in enumerate(server.cors_origins):
        _origin(f"server.cors_origins[{index}]", origin)
    return replace(
        server,
        data=_path(server.data, folder, "server.data"),
        tls_cert=None if cert is None else _path(cert, folder, "server.tls_cert"),
        tls_key=None if key is None else _path(key, folder, "server.tls_key"),
    )


def _oidc(oidc: Oidc) -> Oidc:
    if oidc.issuer is None:
        if oidc != Oidc():
            raise ConfigError(
                "oidc: missing issuer", hint="Write the provider's address as its tokens have it in `iss`."
            )
        return oidc
    if oidc.audience is None and oidc.client_id is None:
        raise ConfigError("oidc: missing audience and client_id: tokens that were meant for others would be taken")
    for key in ("issuer", "jwks_url"):
        if (url := getattr(oidc, key)) is not None:
            _remote(f"oidc.{key}", url)
    if unknown := set(oidc.scopes) - {"run", "read", "admin"}:
        raise ConfigError(f'oidc.scopes: unknown scope "{min(unknown)}"; known: run, read, admin')
    if oidc.client_secret_env is not None and (fault := variable_fault(oidc.client_secret_env)):
        raise ConfigError(f"oidc.client_secret_env: {fault}")
    return oidc


def _remote(path: str, url: str) -> None:
    """Whoever can change what comes from there decides who is let in: so no plain HTTP but to this machine."""
    parts = _split(path, url)
    if parts.scheme != "https" and not (parts.scheme == "http" and is_loopback(parts.hostname or "")):
        raise ConfigError(f'{path}: "{url}" is not an https address')


def _origin(path: str, url: str) -> None:
    parts = _split(path, url)
    if parts.scheme not in ("http", "https") or url != f"{parts.scheme}://{parts.netloc}" or "@" in parts.netloc:
        raise ConfigError(f'{path}: "{url}" is not an origin', hint="Write SCHEME://HOST or SCHEME://HOST:PORT alone.")


def _split(path: str, url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        if not parts.hostname:
            raise ValueError("no host")
    except ValueError as error:
        raise ConfigError(f'{path}: "{url}" is not an address: {error}') from None
    return parts


def _agent(agent: Agent, name: str, folder: Path) -> Agent:
    path = _entry_path("agents", name)
    _one_of(f"{path}.adapter", agent.adapter, ADAPTERS)
    if agent.adapter == "function":
        _check_target(agent.target, f"{path}.target")
    elif agent.target is not None:
        raise ConfigError(f'{path}.target: only the adapter "function" has a target, this is "{agent.adapter}"')
    _check_env(agent.env, agent.pass_env, path)
    for index, entry in enumerate(agent.egress):
        _named(f"{path}.egress[{index}]", lambda text: parse_rules([text]), entry)
    if agent.model_api is not None:
        _check_model_api(agent.model_api, agent.pass_env, path)
    for key in _secret_options(agent.options, f"{path}.options"):
        raise ConfigError(
            f"{key}: this option looks like a secret, and secrets do not belong in this file",
            hint=f"Put it into the server's environment, name it in {path}.pass_env and let the agent read it there.",
        )
    return replace(
        agent,
        interpreter=None if agent.interpreter is None else _path(agent.interpreter, folder, f"{path}.interpreter"),
        python_path=[_path(p, folder, f"{path}.python_path[{i}]") for i, p in enumerate(agent.python_path)],
        readable=[_path(p, folder, f"{path}.readable[{i}]") for i, p in enumerate(agent.readable)],
        writable=[_path(p, folder, f"{path}.writable[{i}]") for i, p in enumerate(agent.writable)],
    )


def _check_model_api(api: ModelApi, pass_env: list[str], path: str) -> None:
    _named(
        f"{path}.model_api", lambda url: parse_provider(url, requests=api.requests, key_header=api.key_header), api.url
    )
    names = [*api.url_env, *api.placeholder_env] + ([] if api.key_env is None else [api.key_env])
    for name in names:
        if fault := variable_fault(name):
            raise ConfigError(f"{path}.model_api: {fault}")
    if api.key_env in pass_env:
        raise ConfigError(
            f"{path}.pass_env: {api.key_env} is the key of {path}.model_api, which the agent must not see",
            hint=f"Take {api.key_env} out of pass_env; the server puts the key into the requests itself.",
        )


def _profile(profile: Profile, name: str, folder: Path) -> Profile:
    path = _entry_path("profiles", name)
    _check_env(profile.env, profile.pass_env, path)
    return replace(
        profile,
        env_file=None if profile.env_file is None else _path(profile.env_file, folder, f"{path}.env_file"),
        home=None if profile.home is None else _path(profile.home, folder, f"{path}.home"),
    )


_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


def _entry_path(section: str, name: str) -> str:
    """A profile's name becomes a folder's name, an agent's stands in URLs and logs: so they are plain."""
    path = config_toml.join(section, name)
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{path}: a name is 1 to 64 of A-Z a-z 0-9 _ . - and begins with a letter or a digit")
    return path


def _check_target(target: str | None, path: str) -> None:
    shape = 'the adapter "function" needs target = "module:callable"'
    if target is None:
        raise ConfigError(f"{path}: missing; {shape}")
    module, colon, attribute = target.partition(":")
    if not colon or not all(part.isidentifier() for part in (*module.split("."), *attribute.split("."))):
        raise ConfigError(f'{path}: "{target}" has the wrong shape; {shape}, for example "my_agent:run"')


# --- variables ----------------------------------------------------------------------------------------------------


def is_secret_name(name: str) -> bool:
    """Whether a variable of this name holds a secret, by the look of it."""
    return _SECRET.search(name) is not None


_SECRET = re.compile(r"(?:^|_)API_KEY$|_(?:TOKEN|SECRET|PASSWORD|SECRET_KEY)$", re.IGNORECASE)
"""Only names that leave no doubt: a false alarm would teach people to rename their variables."""


def variable_fault(name: str, value: str = "") -> str | None:
    """Why the kernel could not carry this variable (environ(7)); None: it can. Never names the value."""
    if not name or "=" in name or "\0" in name:
        return f"{name!r} cannot be a variable's name: it is empty or has an '=' or a NUL"
    if "\0" in value:
        return f"the value of {name} has a NUL"
    return None


def _check_env(env: Mapping[str, str], pass_env: list[str], path: str) -> None:
    for name, value in env.items():
        if fault := variable_fault(name, value):
            raise ConfigError(f"{path}.env: {fault}")
        if value and _SECRET.search(name):
            raise ConfigError(
                f"{path}.env.{name}: this looks like a secret, and secrets do not belong in this file",
                hint=f'Put it into the server\'s environment and write pass_env = ["{name}"], '
                "or put it into the env_file of the profile.",
            )
    for index, name in enumerate(pass_env):
        if fault := variable_fault(name):
            raise ConfigError(f"{path}.pass_env[{index}]: {fault}")


def _secret_options(options: Any, path: str) -> Iterator[str]:
    items = options.items() if isinstance(options, dict) else enumerate(options) if isinstance(options, list) else ()
    for key, value in items:
        inner = config_toml.join(path, key) if isinstance(key, str) else f"{path}[{key}]"
        if isinstance(key, str) and isinstance(value, str) and value and _SECRET.search(key):
            yield inner
        yield from _secret_options(value, inner)


# --- single rules -------------------------------------------------------------------------------------------------


def _one_of(path: str, name: str, known: Mapping[str, object] | tuple[str, ...]) -> None:
    if name not in known:
        raise ConfigError(f'{path}: unknown name "{name}"; {config_toml.nearest(name, known)}')


def _at_most(path: str, value: int, bound_path: str, bound: int) -> None:
    if value > bound:
        raise ConfigError(f"{path}: {value} is more than {bound_path} = {bound}", hint=f"Raise {bound_path} as well.")


def _path(text: str, folder: Path, key: str) -> str:
    if not text or "\0" in text:
        raise ConfigError(f"{key}: a path must not be empty or have a NUL")
    try:
        expanded = Path(text).expanduser()
    except RuntimeError as error:  # a home directory that nobody knows
        raise ConfigError(f"{key}: {error}") from None
    return str(folder / expanded)


def _named(path: str, parse: Any, text: str) -> None:
    try:
        parse(text)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error.message}", hint=error.hint) from None


def parse_bind(text: str) -> tuple[str, int]:
    """`127.0.0.1:8642`, `localhost:0`, `[::1]:8642` → `(host, port)`, the host without brackets.

    A name is not looked up. Raises `ConfigError`.
    """
    host, colon, port = text.rpartition(":")
    hint = "Write HOST:PORT, for example 127.0.0.1:8642, [::1]:8642 or 0.0.0.0:8642 for all interfaces."
    if not colon or not host:
        raise ConfigError(f'"{text}" is not HOST:PORT', hint=hint)
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and int(port) <= 65535):
        raise ConfigError(f'the port in "{text}" is not a number from 0 to 65535', hint=hint)
    bracketed = host.startswith("[") and host.endswith("]")
    host = host[1:-1] if bracketed else host
    if not (_is_ipv6(host) if bracketed else _is_host(host)):
        raise ConfigError(f'the host in "{text}" is neither an IPv4 address, an IPv6 one in [ ], nor a name', hint=hint)
    return host, int(port)


def _is_ipv6(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).version == 6
    except ValueError:
        return False


def _is_host(host: str) -> bool:
    """An IPv4 address or a name (RFC 1123); digits and dots alone must be an address, whole."""
    if re.fullmatch(r"[0-9.]+", host):
        try:
            return ipaddress.ip_address(host).version == 4
        except ValueError:
            return False
    label = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
    return len(host) <= 253 and re.fullmatch(rf"{label}(?:\.{label})*", host) is not None


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a socket bound there. Of names only `localhost` is believed."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host.lower() == "localhost"
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


# --- using --------------------------------------------------------------------------------------------------------


def default_agent(config: Config) -> str:
    """`default_agent`, else the only agent that the file defines, else `demo`."""
    if config.default_agent is not None:
        return config.default_agent
    defined = [name for name, agent in config.agents.items() if name != "demo" or agent != DEMO]
    return defined[0] if len(defined) == 1 else "demo"


def limits_of(config: Config, agent: Agent) -> Limits:
    """`[limits]` with what the agent's own table changes."""
    own = {name: value for name in AgentLimits.__struct_fields__ if (value := getattr(agent.limits, name)) is not None}
    return replace(config.limits, **own)


def show(config: Config) -> str:
    """The configuration in force as TOML, every key with its meaning; `load_config` reads the same back from it.

    It has no secrets, because a configuration has none: of pass_env the names, of env_file the path.
    """
    return config_toml.encode(config)
