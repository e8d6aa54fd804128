"""The command line: what can be typed, with its help. What a command does is a function elsewhere."""

from __future__ import annotations

import io
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path
from typing import Annotated, Literal, NoReturn

import msgspec
import structlog
from cyclopts import App, Parameter

from hermetic import __version__
from hermetic.client import BadAnswer, Client, ServerError, Unreachable
from hermetic.protocol import api
from hermetic.protocol.errors import HermeticError
from hermetic.supervisor.config import load_config, show
from hermetic.terminal import clean_line

EXIT_CODES = """
Exit codes: 0 done · 1 the turn failed, or the server did · 2 wrong usage, configuration or host ·
3 no server answers · 130 cancelled.
"""

STDIN = "\0"
"""Stands for the argument `-`, which the parser would take for an option; nobody can type it."""

app = App(
    name="hermetic",
    help=f"An agent supervisor: every chat turn in its own child process, streamed to any number of readers.\n{EXIT_CODES}",
    version=f"hermetic {__version__}",
    version_flags=["--version"],
    backend="trio",
    result_action="return_value",
    default_parameter=Parameter(negative=(), show_default=False),
)
config_app = App(name="config", help="The configuration.")
tenants_app = App(name="tenants", help="The tenants of a server: who shares it, apart from each other.")
keys_app = App(name="keys", help="Keys for the API, each of one tenant.")
for sub_app in (config_app, tenants_app, keys_app):
    app.command(sub_app)

ConfigFile = Annotated[Path | None, Parameter(name="--config", help="Configuration file (TOML); without it, defaults.")]
DataDir = Annotated[
    Path | None, Parameter(name="--data", help="Data directory, in place of the configuration's server.data.")
]
ServerUrl = Annotated[
    str | None,
    Parameter(
        name="--server", help="A server's address, such as http://127.0.0.1:8642; without it, this machine's own."
    ),
]


TenantName = Annotated[str, Parameter(help="The tenant's name: a-z, 0-9 and -.")]
OfTenant = Annotated[str, Parameter(name="--tenant", help="The tenant; without it, `local`, the operator's own.")]


@app.command
async def serve(
    *,
    config: ConfigFile = None,
    bind: Annotated[str | None, Parameter(help="HOST:PORT to listen on; port 0 takes any free one.")] = None,
    data: DataDir = None,
    insecure: Annotated[
        bool,
        Parameter(
            help="Allow what is refused for safety: agents that nothing holds (seal level 0), and a bind "
            "that other machines can reach without tenants."
        ),
    ] = False,
) -> int:
    """Run the server: API, event streams, and a page to start with.

    Ctrl-C or SIGTERM stops it: turns that run may finish for a while, then they are cancelled, with all that they said
    kept. The second one stops at once.
    """
    from hermetic.web import server  # loads the whole server; no other command needs it

    log_to_stderr("info")
    loaded = load_config(config, bind=bind, data=data)
    await server.serve(loaded, insecure=insecure, on_ready=lambda url: print(ready_text(url), flush=True))
    return 0


def ready_text(url: str) -> str:
    """Where to go, and one line that makes a session, starts a turn in it and streams the turn."""
    return f"Hermetic is ready: {url}/ (Ctrl-C stops it)\nOne turn, streamed:\n\n  {curl_line(url)}\n"


def curl_line(url: str, message: str = "list files") -> str:
    """For sh, bash and zsh, with curl and sed alone."""

    def post(path: str, body: str, member: str) -> str:
        pick = f"""sed -n 's/.*"{member}":"\\([^"]*\\)".*/\\1/p'"""
        return f"$(curl -s {path} -H content-type:application/json -d '{body}' | {pick})"

    session = post(f"{url}/v1/sessions", "{}", "session_id")
    turn = post(f"{url}/v1/sessions/{session}/turns", msgspec.json.encode({"message": message}).decode(), "turn_id")
    return f"curl -N {url}/v1/turns/{turn}/events"


@app.command
async def chat(
    message: Annotated[str, Parameter(help='What to say to the agent; "-" reads it from stdin.')],
    /,
    *,
    session: Annotated[str | None, Parameter(help="Go on with this session; without it, a new one.")] = None,
    agent: Annotated[str | None, Parameter(help="An agent of the configuration.")] = None,
    profile: Annotated[str | None, Parameter(help="A profile of the configuration.")] = None,
    workspace: Annotated[
        Path | None, Parameter(help="The agent's working directory; without it, the server gives the session its own.")
    ] = None,
    server: ServerUrl = None,
    config: ConfigFile = None,
    data: DataDir = None,
    yes: Annotated[bool, Parameter(name=["--yes", "-y"], help="Allow once whatever the agent asks to do.")] = False,
) -> int:
    """Run one turn and stream its answer.

    The answer goes to stdout; reasoning, tool calls and questions go to stderr. Ctrl-C cancels the turn and keeps what
    was said; the second Ctrl-C leaves at once.

    Without --server it talks to the server that holds the data directory, or runs one for just this turn.
    """
    from hermetic.chat import Request
    from hermetic.chat import chat as run_chat

    log_to_stderr("critical")  # a turn's errors are events and shown as such
    loaded = load_config(config, data=data)
    request = Request(
        message=sys.stdin.read().strip() if message == STDIN else message,
        session_id=session,
        agent=agent,
        profile=profile,
        workspace=None if workspace is None else str(workspace.expanduser().absolute()),
        yes=yes,
    )
    return await run_chat(request, url=server, config=loaded)


@app.command
async def doctor(
    *,
    as_json: Annotated[bool, Parameter(name="--json", help="For programs.")] = False,
    config: ConfigFile = None,
    data: DataDir = None,
) -> int:
    """Say what this host can do for a child, what it cannot, and how to get it.

    Exits with 2 when no turn could run here: the configuration is wrong or the data directory cannot be written.
    """
    from hermetic.doctor import as_text, examine

    report = await examine(config, data)
    print(msgspec.json.format(msgspec.json.encode(report)).decode() if as_json else as_text(report))
    return 0 if report.ok else 2


@config_app.command(name="show")
def config_show(*, config: ConfigFile = None, data: DataDir = None) -> int:
    """Print every setting in force, with its meaning, as TOML."""
    print(show(load_config(config, data=data)), end="")
    return 0


@app.command
async def sessions(
    *,
    search: Annotated[str | None, Parameter(help="Only those whose title or messages have these words.")] = None,
    server: ServerUrl = None,
    config: ConfigFile = None,
    data: DataDir = None,
) -> int:
    """List the newest sessions."""
    from hermetic.listing import hit_lines, session_lines

    async with a_client(server, config, data) as client:
        if search is None:
            text = session_lines((await client.list_sessions()).sessions)
        else:
            text = hit_lines((await client.search_sessions(search)).hits)
    print(text, end="")
    return 0


@app.command(name="show")
async def show_session(
    session: Annotated[str, Parameter(help="Its identifier, as `hermetic sessions` lists it.")],
    /,
    *,
    server: ServerUrl = None,
    config: ConfigFile = None,
    data: DataDir = None,
) -> int:
    """Print a session's messages."""
    from hermetic.listing import transcript

    async with a_client(server, config, data) as client:
        print(transcript(await client.get_session(session)), end="")
    return 0


@tenants_app.command(name="list")
async def tenants_list(*, server: ServerUrl = None, config: ConfigFile = None, data: DataDir = None) -> int:
    """List all tenants with their numbers; `local` is the operator's own."""
    from hermetic import tenants

    async with tenants.an_admin(server, load_config(config, data=data)) as admin:
        print(tenants.tenant_lines((await admin.list_tenants()).tenants), end="")
    return 0


@tenants_app.command(name="add")
async def tenants_add(
    tenant: TenantName,
    /,
    *,
    name: Annotated[str, Parameter(help="What people call it.")] = "",
    workspace_root: Annotated[
        list[Path] | None, Parameter(help="A folder of this host in which its sessions may work; repeat for more.")
    ] = None,
    server: ServerUrl = None,
    config: ConfigFile = None,
    data: DataDir = None,
) -> int:
    """Add a tenant. From the first one on, every request needs a key."""
    from hermetic import tenants

    roots = [str(root.expanduser().absolute()) for root in workspace_root or []]
    async with tenants.an_admin(server, load_config(config, data=data)) as admin:
        made = await admin.add_tenant(api.NewTenant(tenant=tenant, name=name, workspace_roots=roots))
    print(f"{made.tenant} is tenant number {made.number}. A key for it: hermetic keys add --tenant {made.tenant}")
    return 0


@tenants_app.command(name="suspend")
async def tenants_suspend(
    tenant: TenantName, /, *, server: ServerUrl = None, config: ConfigFile = None, data: DataDir = None
) -> int:
    """Refuse a tenant's requests and cancel its turns."""
    return await suspended(True, tenant, server, config, data)


@tenants_app.command(name="resume")
async def tenants_resume(
    tenant: TenantName, /, *, server: ServerUrl = None, config: ConfigFile = None, data: DataDir = None
) -> int:
    """Let a suspended tenant in again."""
    return await suspended(False, tenant, server, config, data)


async def suspended(value: bool, tenant: str, server: str | None, config: Path | None, data: Path | None) -> int:
    from hermetic import tenants

    async with tenants.an_admin(server, load_config(config, data=data)) as admin:
        await admin.change_tenant(tenant, api.ChangeTenant(suspended=value))
    return 0


@tenants_app.command(name="remove")
async def tenants_remove(
    tenant: TenantName, /, *, server: ServerUrl = None, config: ConfigFile = None, data: DataDir = None
) -> int:
    """Remove a tenant with its keys, sessions and turns. The files of its workspaces stay, under another name."""
    from hermetic import tenants

    async with tenants.an_admin(server, load_config(config, data=data)) as admin:
        await admin.remove_tenant(tenant)
    return 0


@keys_app.command(name="list")
async def keys_list(
    *, tenant: OfTenant = "local", server: ServerUrl = None, config: ConfigFile = None, data: DataDir = None
) -> int:
    """List a tenant's keys by their ids; nobody can see a key itself again."""
    from hermetic import tenants

    async with tenants.an_admin(server, load_config(config, data=data)) as admin:
        print(tenants.key_lines((await admin.list_keys(tenant)).keys), end="")
    return 0


@keys_app.command(name="add")
async def keys_add(
    *,
    tenant: OfTenant = "local",
    scope: Annotated[
        list[Literal["run", "read", "admin"]] | None,
        Parameter(help="read: look; run: also start turns; admin: also manage keys. Repeat for more; default: run."),
    ] = None,
    name: Annotated[str, Parameter(help="What it is for.")] = "",
    user: Annotated[str | None, Parameter(help="Whose it is; it goes with the user.")] = None,
    days: Annotated[float | None, Parameter(help="It expires after so many days.")] = None,
    server: ServerUrl = None,
    config: ConfigFile = None,
    data: DataDir = None,
) -> int:
    """Make a key and print it, this once, alone on stdout."""
    from hermetic import tenants

    new = api.NewKey(name=name, user=user, scopes=scope or ["run"], expires_s=None if days is None else days * 86400)
    async with tenants.an_admin(server, load_config(config, data=data)) as admin:
        made = await admin.add_key(tenant, new)
    print(made.key)
    return 0


@keys_app.command(name="revoke")
async def keys_revoke(
    key_id: Annotated[str, Parameter(help="As `hermetic keys list` has it.")],
    /,
    *,
    tenant: OfTenant = "local",
    server: ServerUrl = None,
    config: ConfigFile = None,
    data: DataDir = None,
) -> int:
    """Revoke a key, for good; logins made with it end."""
    from hermetic import tenants

    async with tenants.an_admin(server, load_config(config, data=data)) as admin:
        await admin.revoke_key(tenant, key_id)
    return 0


@asynccontextmanager
async def a_client(server: str | None, config: Path | None, data: Path | None) -> AsyncIterator[Client]:
    """Of the server that was named, else of the one that holds the data directory, else of one started for this."""
    from hermetic.chat import a_server, named_server

    log_to_stderr("critical")
    where = nullcontext(named_server(server)) if server else a_server(load_config(config, data=data))
    async with where as at, Client(at.url, key=at.key) as client:
        yield client


def log_to_stderr(level: str) -> None:
    """stdout belongs to what a command answers."""
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


def exit_code(error: HermeticError) -> int:
    if isinstance(error, Unreachable | BadAnswer):
        return 3
    if isinstance(error, ServerError):
        return 2 if error.problem.fault == "client" else 1
    return 2


def the_error(raised: BaseException) -> HermeticError | None:
    """The first HermeticError of a group that holds nothing else: trio's nurseries raise groups."""
    if isinstance(raised, HermeticError):
        return raised
    if isinstance(raised, BaseExceptionGroup):
        ours, others = raised.split(HermeticError)
        if ours is not None and others is None:
            return the_error(ours.exceptions[0])
    return None


def main() -> NoReturn:
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that cannot show a letter is no reason to stop
    try:
        code = app([STDIN if argument == "-" else argument for argument in sys.argv[1:]])
    except BaseException as raised:
        if (error := the_error(raised)) is None:
            raise
        print(f"hermetic: {clean_line(str(error))}\n{clean_line(error.hint)}", file=sys.stderr)
        code = exit_code(error)
    sys.stdout.flush()
    sys.exit(code if isinstance(code, int) else 0)
