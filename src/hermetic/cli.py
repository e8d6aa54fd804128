"""The command line: what can be typed, with its help. What a command does is a function elsewhere."""

from __future__ import annotations

import io
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path
from typing import Annotated, NoReturn

import msgspec
import structlog
from cyclopts import App, Parameter

from hermetic import __version__
from hermetic.client import BadAnswer, Client, ServerError, Unreachable
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
app.command(config_app)

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


@app.command
async def serve(
    *,
    config: ConfigFile = None,
    bind: Annotated[str | None, Parameter(help="HOST:PORT to listen on; port 0 takes any free one.")] = None,
    data: DataDir = None,
    insecure: Annotated[bool, Parameter(help="Allow a bind that other machines can reach.")] = False,
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


@asynccontextmanager
async def a_client(server: str | None, config: Path | None, data: Path | None) -> AsyncIterator[Client]:
    """Of the server that was named, else of the one that holds the data directory, else of one started for this."""
    from hermetic.chat import a_server

    log_to_stderr("critical")
    where = nullcontext(server) if server else a_server(load_config(config, data=data))
    async with where as url, Client(url) as client:
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
