"""The server: supervisor and application under hypercorn, from the first socket to the last.

Three things that hypercorn 0.18 does not do for an open stream are done here. The last message of a response is
shielded, because quart-trio cancels itself on disconnect before hypercorn's close runs and keep-alive connections would
stay for ever. Turns are drained before hypercorn stops, because it cuts connections before it tells the application. And
a reader that has stalled cannot hold up the exit: hypercorn shields its sends, so the process leaves after a bound.
"""

from __future__ import annotations

import os
import resource
import signal
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import hypercorn
import hypercorn.trio
import msgspec
import structlog
import trio

from hermetic.protocol.errors import ConfigError, HostError
from hermetic.supervisor.config import Config, is_loopback, parse_bind
from hermetic.supervisor.supervisor import open_supervisor
from hermetic.web.app import make_app

log = structlog.get_logger()

CLOSE_S = 2.0
"""From the last turn's end to the exit: readers get its last events, a stalled one does not get more."""
KEEP_ALIVE_S = 30.0
"""How long a connection may stay without a request, the first one too: a busy client on a busy host takes seconds to send
it. Hypercorn 0.18 also holds a connection that its client has closed for this long: its idle timer does not hear of it."""
FILES_MAX = 1 << 16
"""Open files: a socket per reader, six per running turn. A soft limit of 1,024, as most shells give, ends in a refusal
to start turns."""


def _listen(host: str, port: int) -> tuple[str, hypercorn.Config]:
    """→ the URL, and hypercorn's configuration with the listening socket in it. Ours, so that its errors are as well."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family)
    except OSError as error:
        raise HostError(
            f"cannot listen on {host}:{port}: {error.strerror}",
            hint="Another program may hold the port; choose one with --bind, port 0 for any.",
        ) from error
    port = listener.getsockname()[1]
    made = hypercorn.Config()
    made.bind = [f"fd://{listener.detach()}"]
    made.accesslog = None
    made.errorlog = None
    made.include_server_header = False
    made.keep_alive_timeout = KEEP_ALIVE_S
    made.graceful_timeout = CLOSE_S / 2
    made.h11_max_incomplete_size = 64 << 10
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}", made


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


async def serve_task(
    config: Config,
    *,
    insecure: bool = False,
    shutdown: Callable[[], Awaitable[object]] = trio.sleep_forever,
    on_stopping: Callable[[], None] = lambda: None,
    task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serves until `shutdown` returns or the task is cancelled; starts with the server's URL.

    `on_stopping` is called when all turns have ended and only connections are left to close.

    Raises `ConfigError`, `HostError`, `StorageError` before it has started.
    """
    host, port = parse_bind(config.server.bind)
    loopback = is_loopback(host)
    if not loopback and not insecure:
        raise ConfigError(
            f"server.bind = {config.server.bind!r} is reachable from other machines, and there are no tenants",
            hint="Bind to 127.0.0.1, or say --insecure if everyone who can reach it may run commands here.",
        )
    async with open_supervisor(config) as supervisor:
        stop = trio.Event()
        url, made = _listen(host, port)
        async with trio.open_nursery() as nursery:
            app = _shielded_end(make_app(supervisor, loopback=loopback))
            await nursery.start(
                lambda task_status: hypercorn.trio.serve(app, made, shutdown_trigger=stop.wait, task_status=task_status)
            )
            note = Path(config.server.data).expanduser() / "server.json"
            await trio.Path(note).write_bytes(msgspec.json.encode({"url": url, "pid": os.getpid()}))
            task_status.started(url)
            try:
                await shutdown()
                await supervisor.drain()
            finally:
                note.unlink(missing_ok=True)
                on_stopping()
                stop.set()


async def serve(config: Config, *, insecure: bool = False, on_ready: Callable[[str], None]) -> None:
    """The server as a process: runs until SIGTERM or SIGINT, then drains. A second signal leaves at once."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= soft < FILES_MAX:
        resource.setrlimit(resource.RLIMIT_NOFILE, (FILES_MAX if hard < 0 else min(hard, FILES_MAX), hard))
    stopping = trio.Event()

    async def first_signal() -> None:
        number = await anext(signals)
        log.info("stopping", signal=signal.Signals(number).name, drain_s=config.server.drain_s)
        nursery.start_soon(second_signal)

    async def second_signal() -> None:
        await anext(signals)
        os._exit(1)

    async def leave_stalled_readers() -> None:
        await stopping.wait()
        await trio.sleep(CLOSE_S)
        log.warning("left_with_stalled_readers")
        os._exit(0)  # everything is in the store: each turn's end was durable before this clock started

    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(leave_stalled_readers)

            async def run(task_status: trio.TaskStatus[str]) -> None:
                await serve_task(
                    config, insecure=insecure, shutdown=first_signal, on_stopping=stopping.set, task_status=task_status
                )
                nursery.cancel_scope.cancel()

            on_ready(await nursery.start(run))
