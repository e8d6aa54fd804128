"""Serves the listeners of one turn, in the turn's nursery, until it is cancelled."""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Final

import httpx2
import structlog
import trio
from msgspec import Struct

from hermetic.protocol.events import EgressDenied
from hermetic.supervisor.config import Agent
from hermetic.supervisor.egress.connect import ConnectProxy
from hermetic.supervisor.egress.model import ModelProxy
from hermetic.supervisor.egress.model_rules import Provider, parse_provider, read_key
from hermetic.supervisor.egress.network import Network
from hermetic.supervisor.egress.rules import Rules, parse_rules
from hermetic.supervisor.egress.wire import Bounds, Denials

log = structlog.get_logger()

_OUT_OF_SOMETHING: Final = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS)
_RETRY_S: Final = 0.1


class Egress(Struct, frozen=True, kw_only=True):
    """What one turn may reach."""

    rules: Rules = Rules()
    provider: Provider | None = None
    """None: there is no second listener."""


def egress_of(agent: Agent, server_environ: Mapping[str, str]) -> Egress:
    """The configuration of an agent, with the key read. Raises `ConfigError` when the key is not there."""
    api = agent.model_api
    if api is None:
        return Egress(rules=parse_rules(agent.egress))
    key = read_key(api.key_env, server_environ)
    return Egress(rules=parse_rules(agent.egress), provider=parse_provider(api.url, api.requests, api.key_header, key))


async def serve_egress(
    listeners: Sequence[trio.SocketListener],
    egress: Egress,
    *,
    transport: httpx2.AsyncHTTPTransport,
    tell: Callable[[EgressDenied], Awaitable[None]],
    turn_id: str = "",
    bounds: Bounds = Bounds(),  # noqa: B008  frozen
    network: Network = Network(),  # noqa: B008
) -> None:
    """`listeners` in the order of `variables.ports`: the CONNECT proxy, then the model proxy if there is a provider.

    Runs until it is cancelled, and then closes the listeners, which ends the namespace's life. `transport` is the
    server's one, from `open_upstream`. `tell` is awaited before the denied request is answered; of many denials it is
    told of some (`Bounds.denials_told`). Trouble with one connection ends that connection and nothing else.
    """
    denials = Denials(tell, bounds, turn_id)
    serves = [ConnectProxy(egress.rules, denials, bounds, network).serve]
    if egress.provider is not None:
        serves.append(ModelProxy(egress.provider, denials, bounds, transport).serve)
    async with AsyncExitStack() as stack:
        for listener in listeners:
            await stack.enter_async_context(listener)
        if len(listeners) != len(serves):
            raise ValueError(f"{len(listeners)} listeners for {len(serves)} proxies")
        async with trio.open_nursery() as nursery:
            for listener, serve in zip(listeners, serves, strict=True):
                nursery.start_soon(_accept, listener, serve, bounds)


async def _accept(
    listener: trio.SocketListener, serve: Callable[[trio.SocketStream], Awaitable[None]], bounds: Bounds
) -> None:
    slots = trio.Semaphore(bounds.connections_max)

    async def handle(stream: trio.SocketStream) -> None:
        try:
            async with stream:
                await serve(stream)
        except (trio.BrokenResourceError, OSError):
            pass  # the client is gone
        except Exception:
            log.exception("egress_connection_broke")
        finally:
            slots.release()

    pace = 1 / bounds.accepts_per_s
    free_at = trio.current_time() - 1.0  # the first second's connections are there at once
    async with trio.open_nursery() as nursery:
        while True:
            await slots.acquire()
            free_at = max(free_at + pace, trio.current_time() - 1.0)
            await trio.sleep_until(free_at)
            try:
                stream = await listener.accept()
            except OSError as error:
                slots.release()
                if error.errno not in _OUT_OF_SOMETHING:
                    raise
                log.error("egress_accept_failed", errno=errno.errorcode[error.errno or 0])
                await trio.sleep(_RETRY_S)
            else:
                nursery.start_soon(handle, stream)
