"""The server: supervisor and application behind hypercorn's connections, from the first socket to the last.

Accepting and closing is done here and not by hypercorn, which cuts open streams before it tells the application. Turns
are drained first; then connections get a moment for what is on its way, and whoever does not read it is left behind.
What is mended in each connection is in connection.py. One mend is of the application: the last message of a response is
shielded, because quart-trio cancels itself on disconnect before hypercorn's close runs, and keep-alive connections
would stay for ever.
"""

from __future__ import annotations

import os
import resource
import signal
import socket
import ssl
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import hypercorn
import msgspec
import structlog
import trio
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.utils import wrap_app

from hermetic.protocol.errors import ConfigError, HostError
from hermetic.supervisor.config import Config, Server, is_loopback, parse_bind
from hermetic.supervisor.supervisor import open_supervisor
from hermetic.web.app import make_app
from hermetic.web.connection import Connection

log = structlog.get_logger()

APART = 2
"""The lowest level of the seal that promises something between tenants (SECURITY.md)."""
CLOSE_S = 1.0
"""From the last turn's end to the exit: readers get its last events, a stalled one does not get more."""
KEEP_ALIVE_S = 30.0
"""How long a connection may stay without a request, the first one too: a busy client on a busy host takes seconds to send
it."""
HANDSHAKE_S = 15.0
"""For TLS: a few round trips of the slowest network."""
BACKLOG = 1024
"""Connections that wait to be accepted: all pages of a restarted server come back within seconds."""
FILES_MAX = 1 << 16
"""Open files: a socket per reader, six per running turn. A soft limit of 1,024, as most shells give, ends in a refusal
to start turns."""


def _listen(server: Server) -> tuple[str, trio.abc.Listener[Any]]:
    """→ the URL, and the listening socket behind it.

    Raises `HostError` when the port cannot be had, `ConfigError` when the certificate cannot be used.
    """
    host, port = parse_bind(server.bind)
    secure = _tls(server)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise HostError(
            f"cannot listen on {host}:{port}: {error.strerror}",
            hint="Another program may hold the port; choose one with --bind, port 0 for any.",
        ) from error
    port = listener.getsockname()[1]
    plain = trio.SocketListener(trio.socket.from_stdlib_socket(listener))
    url = f"//[{host}]:{port}" if ":" in host else f"//{host}:{port}"
    if secure is None:
        return f"http:{url}", plain
    return f"https:{url}", trio.SSLListener(plain, secure, https_compatible=True)


def _tls(server: Server) -> ssl.SSLContext | None:
    """As hypercorn makes it: TLS 1.2 at least, HTTP/2 preferred."""
    if server.tls_cert is None:
        return None
    made = hypercorn.Config()
    made.certfile, made.keyfile = server.tls_cert, server.tls_key
    try:
        return made.create_ssl_context()
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"server.tls_cert, server.tls_key: {error.strerror or error}",
            hint="Both are PEM files that the server's user can read; the certificate comes first, then its chain.",
        ) from error


def _connection_config() -> hypercorn.Config:
    made = hypercorn.Config()
    made.accesslog = None
    made.errorlog = None
    made.include_server_header = False
    made.keep_alive_timeout = KEEP_ALIVE_S
    made.ssl_handshake_timeout = HANDSHAKE_S
    made.h11_max_incomplete_size = 64 << 10
    return made


def _shielded_end(app: Any) -> Any:
    async def wrapped(scope: Any, receive: Any, send: Any) -> None:
        async def send_whole(message: Any) -> None:
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                with trio.CancelScope(shield=True):
                    await send(message)
            else:
                await send(message)

        await app(scope, receive, send_whole if scope["type"] == "http" else send)

    return wrapped


async def _serve_connections(
    app: Any,
    listener: trio.abc.Listener[Any],
    stall_s: float,
    shutdown: Callable[[], Awaitable[object]],
    task_status: trio.TaskStatus[None],
) -> None:
    """Accepts until `shutdown` returns, then leaves open connections CLOSE_S to end."""
    context = WorkerContext(None)
    there: set[Connection] = set()
    config = _connection_config()
    handler = partial(Connection, wrap_app(app, config.wsgi_max_body_size, "asgi"), config, context, stall_s, there)

    async def cut_late(connections: trio.CancelScope) -> None:
        await trio.sleep(CLOSE_S)
        cut(connections)

    def cut(connections: trio.CancelScope) -> None:
        for connection in there:
            connection.give_up_sending()  # a send is shielded from the cancel
        connections.cancel()

    async with trio.open_nursery() as closing:
        async with trio.open_nursery() as connections:
            try:
                async with trio.open_nursery() as accepting:
                    accepting.start_soon(
                        partial(trio.serve_listeners, handler, [listener], handler_nursery=connections)
                    )
                    task_status.started()
                    await shutdown()
                    accepting.cancel_scope.cancel()
                await context.terminated.set()
            except BaseException:
                cut(connections.cancel_scope)
                raise
            closing.start_soon(cut_late, connections.cancel_scope)
        closing.cancel_scope.cancel()


async def serve_task(
    config: Config,
    *,
    insecure: bool = False,
    shutdown: Callable[[], Awaitable[object]] = trio.sleep_forever,
    task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serves until `shutdown` returns or the task is cancelled; starts with the server's URL.

    Raises `ConfigError`, `HostError`, `StorageError` before it has started.
    """
    host, _ = parse_bind(config.server.bind)
    loopback = is_loopback(host)
    async with open_supervisor(config, insecure=insecure) as supervisor:
        if not loopback and not supervisor.identities.configured and config.oidc.issuer is None:
            if not insecure:
                raise ConfigError(
                    f"server.bind = {config.server.bind!r} is reachable from other machines, and there are no tenants: "
                    "everyone who can reach it could run commands here",
                    hint="Add a tenant first (`hermetic tenants add NAME`), bind to 127.0.0.1, or say --insecure.",
                )
            log.warning("insecure", bind=config.server.bind, detail="everyone who can reach this may run commands here")
        if supervisor.identities.configured and supervisor.seal.level < APART and not insecure:
            raise HostError(
                f"there are tenants, and seal level {supervisor.seal.level} does not hold their turns apart",
                hint="`hermetic doctor` says how to get level 2 or 3; say --insecure if the tenants trust each other.",
            )
        stop = trio.Event()
        url, listener = _listen(config.server)
        async with trio.open_nursery() as nursery:
            app = _shielded_end(make_app(supervisor, loopback=loopback))
            await nursery.start(_serve_connections, app, listener, config.stream.stall_s, stop.wait)
            note = Path(config.server.data).expanduser() / "server.json"
            await trio.to_thread.run_sync(_write_note, note, url, supervisor.identities.note_key)
            task_status.started(url)
            try:
                await shutdown()
                await supervisor.drain()
            finally:
                note.unlink(missing_ok=True)
                stop.set()


def _write_note(note: Path, url: str, key: str) -> None:
    """For commands of this user: where the server is, and the key that makes them its operator. Nobody else may read it."""
    note.unlink(missing_ok=True)
    with open(os.open(note, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW, 0o600), "wb") as file:
        file.write(msgspec.json.encode({"url": url, "pid": os.getpid(), "key": key}))


async def serve(config: Config, *, insecure: bool = False, on_ready: Callable[[str], None]) -> None:
    """The server as a process: runs until SIGTERM or SIGINT, then drains. A second signal leaves at once."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= soft < FILES_MAX:
        resource.setrlimit(resource.RLIMIT_NOFILE, (FILES_MAX if hard < 0 else min(hard, FILES_MAX), hard))

    async def first_signal() -> None:
        number = await anext(signals)
        log.info("stopping", signal=signal.Signals(number).name, drain_s=config.server.drain_s)
        nursery.start_soon(second_signal)

    async def second_signal() -> None:
        await anext(signals)
        os._exit(1)

    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:

            async def run(task_status: trio.TaskStatus[str]) -> None:
                await serve_task(config, insecure=insecure, shutdown=first_signal, task_status=task_status)
                nursery.cancel_scope.cancel()

            on_ready(await nursery.start(run))
