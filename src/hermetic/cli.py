"""The command line: what can be typed, with its help. What a command does is a function elsewhere."""

from __future__ import annotations

import io
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, nullcontext
from getpass import getpass
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
secrets_app = App(name="secrets", help="Secrets of tenants: variables that their turns have, kept encrypted.")
audit_app = App(name="audit", help="The audit log: who did what, when.")
for sub_app in (config_app, tenants_app, keys_app, secrets_app, audit_app):
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
SecretName = Annotated[str, Parameter(help="The variable's name.")]
OfProfile = Annotated[str, Parameter(name="--profile", help="The profile whose turns have it.")]
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
    from hermetic.supervisor import logs
    from hermetic.web import server  # loads the whole server; no other command needs it

    loaded = load_config(config, bind=bind, data=data)
    logs.log_to_stderr(loaded.log)
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


@tenants_app.command(name="set")
async def tenants_set(
    tenant: TenantName,
    /,
    *,
    quota: Annotated[
        list[str] | None,
        Parameter(
            help="NAME=NUMBER, a quota of its own, or NAME=none for no limit; repeat for more. They replace all."
        ),
    ] = None,
    weight: Annotated[
        float | None, Parameter(help="Its share of places for turns, where others want them too.")
    ] = None,
    server: ServerUrl = None,
    config: ConfigFile = None,
    data: DataDir = None,
) -> int:
    """Give a tenant quotas of its own, and a share. The configuration's [quotas] has their names."""
    from hermetic import tenants

    change = api.ChangeTenant(
        quotas=msgspec.UNSET if quota is None else tenants.parse_quotas(quota),
        weight=msgspec.UNSET if weight is None else weight,
    )
    async with tenants.an_admin(server, load_config(config, data=data)) as admin:
        await admin.change_tenant(tenant, change)
    return 0


@secrets_app.command(name="list")
async def secrets_list(
    *, tenant: OfTenant = "local", server: ServerUrl = None, config: ConfigFile = None, data: DataDir = None
) -> int:
    """List a tenant's secrets by profile and name; nobody can read a value again."""
    from hermetic import tenants

    async with tenants.an_admin(server, load_config(config, data=data)) as admin:
        for secret in (await admin.list_secrets(tenant)).secrets:
            print(f"{secret.profile}/{secret.name}")
    return 0


@secrets_app.command(name="set")
async def secrets_set(
    name: SecretName,
    /,
    *,
    profile: OfProfile = "default",
    tenant: OfTenant = "local",
    server: ServerUrl = None,
    config: ConfigFile = None,
    data: DataDir = None,
) -> int:
    """Set a secret: a variable of all turns of a tenant under a profile. The value is read from stdin.

    Not from the command line: others on this host can read that. A newline at its end does not count.
    """
    from hermetic import tenants

    value = getpass(f"{name}: ") if sys.stdin.isatty() else sys.stdin.read().removesuffix("\n")
    async with tenants.an_admin(server, load_config(config, data=data)) as admin:
        await admin.set_secret(tenant, api.NewSecret(name=name, value=value, profile=profile))
    return 0


@secrets_app.command(name="remove")
async def secrets_remove(
    name: SecretName,
    /,
    *,
    profile: OfProfile = "default",
    tenant: OfTenant = "local",
    server: ServerUrl = None,
    config: ConfigFile = None,
    data: DataDir = None,
) -> int:
    """Remove a secret; the next turn does not have it."""
    from hermetic import tenants

    async with tenants.an_admin(server, load_config(config, data=data)) as admin:
        await admin.remove_secret(tenant, profile, name)
    return 0


@secrets_app.command(name="new-key")
def secrets_new_key() -> int:
    """Print a new key for secrets.key_file: put it in front of the others there, and then: hermetic secrets rotate."""
    from hermetic.supervisor.secret_box import new_key

    print(new_key())
    return 0


@secrets_app.command(name="rotate")
async def secrets_rotate(*, server: ServerUrl = None, config: ConfigFile = None, data: DataDir = None) -> int:
    """Encrypt all secrets of all tenants with the first key. Then the others may go.

    A server that runs has the keys of its start: start it again before.
    """
    from hermetic import tenants

    async with tenants.an_admin(server, load_config(config, data=data)) as admin:
        print(f"{(await admin.rotate_secrets()).secrets} secrets are encrypted with the first key.")
    return 0


@audit_app.command(name="export")
def audit_export(*, config: ConfigFile = None, data: DataDir = None) -> int:
    """Print the audit log of a data directory, a record a line; its head goes to stderr. A server may run there."""
    from hermetic.supervisor.audit import verify

    lines = audit_lines(config, data)
    print(f"head: {verify(shown(lines)).head}", file=sys.stderr)
    return 0


@audit_app.command(name="head")
def audit_head(*, config: ConfigFile = None, data: DataDir = None) -> int:
    """Print the head of the audit log, SEQ:HASH. Keep it where nobody can change it who can change the database."""
    from hermetic.supervisor.audit import verify

    print(verify(audit_lines(config, data)).head)
    return 0


@audit_app.command(name="verify")
def audit_verify(
    exported: Annotated[
        Path | None, Parameter(help="What `hermetic audit export` printed, in place of a database.")
    ] = None,
    /,
    *,
    head: Annotated[
        list[str] | None,
        Parameter(help="SEQ:HASH that the log must have, from `hermetic audit head`; repeat for more."),
    ] = None,
    heads: Annotated[Path | None, Parameter(help="A file of heads, one a line.")] = None,
    config: ConfigFile = None,
    data: DataDir = None,
) -> int:
    """Say whether the audit log is as it was written: nothing changed, nothing taken out.

    Only a head that was kept elsewhere shows that nothing was cut off at its end. Exits with 1 when it is not whole.
    """
    from hermetic.supervisor.audit import BrokenChain, parse_head, verify

    wanted = [*(head or []), *(heads.read_text().split() if heads else [])]
    with exported.open("rb") if exported else nullcontext() as file:
        lines = (line.removesuffix(b"\n") for line in file) if file else audit_lines(config, data)
        try:
            last = verify(lines, [parse_head(text) for text in wanted])
        except BrokenChain as broken:
            print(f"hermetic: {broken}\n{broken.hint}", file=sys.stderr)
            return 1
    print(f"{last.seq} records, whole{'' if wanted else ' as far as can be seen without a head'}. head: {last.head}")
    return 0


def audit_lines(config: Path | None, data: Path | None) -> Iterator[bytes]:
    from hermetic.supervisor.store.audit_sqlite import read_lines

    return read_lines(Path(load_config(config, data=data).server.data).expanduser() / "hermetic.db")


def shown(lines: Iterator[bytes]) -> Iterator[bytes]:
    for line in lines:
        print(line.decode())
        yield line


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
