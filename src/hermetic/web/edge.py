"""What every request passes on its way in and out: its id, the host it names, the origin it comes from, the access log.

Answers carry the security headers. A page of another origin reads answers only where the configuration names its origin
exactly (CORS, Fetch standard 3.2), and never with a cookie.
"""

from __future__ import annotations

import re
import secrets
import time
from typing import Final
from urllib.parse import urlsplit

import structlog
import trio
from quart import Quart, Response, g, request
from werkzeug.exceptions import HTTPException

from hermetic.protocol.errors import Forbidden
from hermetic.supervisor.config import Server, is_loopback
from hermetic.web.auth import CSRF_HEADER, NOBODY, same_host

log = structlog.get_logger()

SECURITY_HEADERS: Final = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
}
REQUEST_ID: Final = "X-Request-Id"
_SANE_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
CORS_METHODS: Final = "GET, HEAD, POST, PATCH, PUT, DELETE"
CORS_HEADERS: Final = "Authorization, Content-Type, Idempotency-Key, Last-Event-ID, Cache-Control, X-Request-Id"
CORS_EXPOSED: Final = "X-Request-Id, Retry-After, Content-Disposition"
CORS_S: Final = 600
"""How long a browser may remember that it has asked."""
REST_BYTES_MAX: Final = 64 << 10
"""Of the body of a refused request, read so that its connection can stay; more is cheaper to cut."""
REST_S: Final = 1.0
PATH_CHARACTERS: Final = 300
"""Of a path, in the log."""


def request_id() -> str:
    """Of the request at hand; in the answer, in the log and in a problem."""
    return str(g.get("request_id", ""))


def install(app: Quart, server: Server, *, loopback: bool) -> None:
    """`loopback`: the server listens there only, so a request that names another host comes from a page that has
    rebound its DNS name to us."""
    allowed = frozenset(server.cors_origins)

    @app.before_request
    async def begin() -> None:
        given = request.headers.get(REQUEST_ID, "")
        g.request_id = given if _SANE_ID.fullmatch(given) else secrets.token_hex(8)
        g.began = time.perf_counter()
        g.caller = NOBODY
        structlog.contextvars.bind_contextvars(request_id=g.request_id)

    @app.before_request
    async def guard() -> Response | None:
        host = request.headers.get("Host", "")
        if loopback and not is_loopback(_host_of(f"//{host}")):
            raise Forbidden(f"this server answers only to loopback names, not to {host[:80]!r}")
        origin = request.headers.get("Origin")
        if origin is None or origin in allowed or same_host(origin, host):
            if origin in allowed and request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers:
                return _preflight()
            return None
        if request.method not in ("GET", "HEAD", "OPTIONS"):
            raise Forbidden(f"a page of another origin ({origin[:80]}) may not change anything here")
        return None

    @app.after_request
    async def finish(response: Response) -> Response:
        for name, value in SECURITY_HEADERS.items():
            response.headers.setdefault(name, value)
        response.headers[REQUEST_ID] = request_id()
        if response.status_code >= 400 and not await _rest_read() and request.http_version != "2":
            response.headers["Connection"] = "close"
        if response.status_code == 401:
            response.headers.setdefault("WWW-Authenticate", "Bearer")
        if allowed:
            response.headers.add("Vary", "Origin")
            if (origin := request.headers.get("Origin")) in allowed:
                response.headers["Access-Control-Allow-Origin"] = str(origin)
                response.headers["Access-Control-Expose-Headers"] = CORS_EXPOSED
        if server.access_log:
            _log(response)
        return response


async def _rest_read() -> bool:
    """A request that was refused before its body was read: what is left of it. Left there, it would have the connection
    closed under the client's next request."""
    if request.method in ("GET", "HEAD", "OPTIONS"):
        return True
    if (request.content_length or 0) > REST_BYTES_MAX or "Transfer-Encoding" in request.headers:
        return False
    with trio.move_on_after(REST_S):
        try:
            await request.get_data(cache=False)
            return True
        except HTTPException:  # too large after all
            pass
    return False


def _preflight() -> Response:
    response = Response(b"", 204)
    response.headers["Access-Control-Allow-Methods"] = CORS_METHODS
    response.headers["Access-Control-Allow-Headers"] = f"{CORS_HEADERS}, {CSRF_HEADER}"
    response.headers["Access-Control-Max-Age"] = str(CORS_S)
    return response


def _log(response: Response) -> None:
    """Without the query, where tickets are; a path has identifiers alone. A stream is logged when it begins."""
    found = g.caller
    log.info(
        "request",
        method=request.method[:16],
        path=ascii(request.path[:PATH_CHARACTERS])[1:-1],
        status=response.status_code,
        ms=round((time.perf_counter() - g.began) * 1000, 1),
        tenant=found.tenant,
        user=found.user,
        key=found.key_id,
        client=request.remote_addr,
    )


def _host_of(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:  # such as `[`: no address at all
        return ""
