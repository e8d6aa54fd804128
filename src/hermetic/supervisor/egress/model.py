"""The credential proxy of a sealed turn: requests to one model provider, with the key put in outside.

The child sends a placeholder; the supervisor sends the key, over a connection of its own, to one base URL, for the
requests that are on the list. Pieces of a body pass in both directions as they come, so that a token is with the agent
when the provider has sent it. When the child hangs up, the request to the provider is ended: nobody pays for the rest.
A half-closed connection counts as hung up.

What goes wrong is said in OpenAI's form of an error, which the clients of other providers show as well.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Final

import h11
import httpx2
import structlog
import trio
from msgspec import json

from hermetic.supervisor.egress.model_rules import Provider, is_query
from hermetic.supervisor.egress.wire import Bounds, Denials, Peer, Refused, denied, has_body, pair

log = structlog.get_logger()

CONNECT_S: Final = 15.0
"""To the provider, with TLS."""
_TYPE: Final = b"application/json"


@asynccontextmanager
async def open_upstream() -> AsyncIterator[httpx2.AsyncHTTPTransport]:
    """The connections to providers, one pool for all turns of a server: a turn does not pay for a TLS handshake.

    Certificates are checked against the host's trust store. A transport and not a client: a client keeps cookies,
    follows redirects and reads ~/.netrc and proxy variables, each of which could carry one tenant's state, or the key,
    to somewhere else.
    """
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=20, keepalive_expiry=30)
    async with httpx2.AsyncHTTPTransport(
        verify=ssl.create_default_context(), trust_env=False, limits=limits
    ) as transport:
        yield transport


class ModelProxy:
    """Serves the connections of one turn."""

    def __init__(
        self, provider: Provider, denials: Denials, bounds: Bounds, transport: httpx2.AsyncHTTPTransport
    ) -> None:
        self._provider = provider
        self._denials = denials
        self._bounds = bounds
        self._transport = transport

    async def serve(self, stream: trio.SocketStream) -> None:
        """One connection, to its end. Raises trio.BrokenResourceError when the client is gone."""
        peer = Peer(stream, self._bounds)
        try:
            request = await peer.request()
            if request is not None:
                await self._pass_on(peer, request)
        except Refused as refused:
            if refused.denial:
                await self._denials.happened(refused.denial)
            await peer.refuse(refused.status, _TYPE, _error(refused))

    async def _pass_on(self, peer: Peer, request: h11.Request) -> None:
        ours = self._request(peer, request)
        async with pair() as nursery:
            nursery.start_soon(_cancel_when_gone, peer, nursery.cancel_scope)
            if not has_body(request):
                async for _ in peer.body():
                    pass
            await self._exchange(peer, ours)
            nursery.cancel_scope.cancel()

    def _request(self, peer: Peer, request: h11.Request) -> httpx2.Request:
        """Raises Refused."""
        method, target = request.method.decode("ascii"), request.target.decode("ascii", "replace")
        path, mark, query = target.partition("?")
        provider = self._provider
        if not provider.allows(method, path) or not is_query(query):
            message = f"This agent may not send {method[:20]} {path[:200]} to its model provider (path_not_allowed)."
            raise denied("path_not_allowed", message, method=method, host=provider.host, port=provider.port, path=path)
        read_s, write_s = self._bounds.think_s, self._bounds.idle_s
        return httpx2.Request(
            method,
            f"{provider.origin}{path}{mark}{query}",
            headers=provider.request_headers(request.headers),
            content=peer.body(self._bounds.body_bytes_max) if has_body(request) else None,
            extensions={"timeout": {"connect": CONNECT_S, "read": read_s, "write": write_s, "pool": CONNECT_S}},
        )

    async def _exchange(self, peer: Peer, ours: httpx2.Request) -> None:
        """Raises Refused before a response has begun; later the connection just breaks, so that it is seen as cut."""
        try:
            response = await self._transport.handle_async_request(ours)
        except httpx2.TimeoutException:
            raise Refused(504, "upstream_timeout", "The model provider did not answer in time.") from None
        except httpx2.ConnectError:
            raise Refused(502, "upstream_unreachable", "The model provider cannot be reached.") from None
        except (httpx2.TransportError, ssl.SSLError, OSError, h11.ProtocolError):
            raise Refused(502, "upstream_error", "The connection to the model provider broke.") from None
        parts = response.aiter_raw()
        try:
            self._check(response)
            await peer.respond(response.status_code, self._provider.response_headers(response.headers.raw))
            redactor = self._provider.redactor()
            async for data in parts:
                await peer.send(redactor.feed(data))
            await peer.send(redactor.end())
            await peer.end()
        except (httpx2.TransportError, OSError):
            log.info("model_response_cut", host=self._provider.host)
        finally:
            await _give_up(parts)
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 1):
                await response.aclose()

    def _check(self, response: httpx2.Response) -> None:
        """Raises Refused for a response that is not passed on as it is."""
        status = response.status_code
        if status in (401, 407):  # its text often has half of the key in it
            log.warning("model_key_refused", host=self._provider.host, status=status)
            raise Refused(401, "key_refused", "The model provider refused the key of this server. Tell who runs it.")
        if 300 <= status < 400:
            log.warning("model_url_redirects", host=self._provider.host, status=status)
            raise Refused(502, "upstream_redirect", "The model provider's URL redirects, which is not followed.")
        if response.headers.get("content-encoding", "identity") != "identity":
            raise Refused(502, "upstream_encoding", "The model provider compressed its answer without being asked to.")


async def _give_up(parts: AsyncIterator[bytes]) -> None:
    """Ends an iterator that may not have come to its end.

    It is several generators deep, and closing the outermost leaves the inner ones to the garbage collector. A cancel
    that reaches the innermost, where the network is read, goes out through all of them.
    """
    with trio.CancelScope(shield=True) as scope:
        scope.cancel()
        with suppress(httpx2.TransportError):
            async for _ in parts:
                pass


async def _cancel_when_gone(peer: Peer, scope: trio.CancelScope) -> None:
    await peer.wait_gone()
    scope.cancel()


def _error(refused: Refused) -> bytes:
    """OpenAI's form."""
    kind = "invalid_request_error" if refused.status < 500 else "upstream_error"
    return json.encode({"error": {"message": refused.message, "type": kind, "param": None, "code": refused.code}})
