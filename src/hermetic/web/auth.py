"""Who sends a request: from its key, its token, its ticket or its cookie to the `Caller` that it carries from then on.

The first of these that a request has counts, and a bad one is refused even if a good one follows. Where there are no
tenants nobody is asked: whoever reaches the server is its operator.

A cookie comes along whoever makes a browser send a request, so a request that changes something must also show that it
comes from our own page (CSRF): the cookie is SameSite=Lax, the request's Origin must be the server's own, and it must
carry the token that only our own page can read. A key, a token and a ticket are never sent by a browser on its own.

What a request needs is in the table of operations; an address that is not there and not in `OPEN` needs a caller all the
same, so that a new one is closed until somebody opens it.
"""

from __future__ import annotations

import hmac
import os
import re
from typing import TYPE_CHECKING, Final

from quart import g, request
from werkzeug.sansio.response import Response as AnyResponse

from hermetic.protocol.errors import (
    ConfigError,
    Forbidden,
    HermeticError,
    MissingScope,
    TenantSuspended,
    Unauthorized,
)
from hermetic.protocol.operations import OPERATIONS, Needs
from hermetic.supervisor.acting import act_for
from hermetic.supervisor.identities import LOGIN_S
from hermetic.supervisor.identity import LOCAL, OPERATOR, Caller, key_id_of, same, scopes_of
from hermetic.supervisor.store.identity import Login
from hermetic.supervisor.supervisor import Supervisor

if TYPE_CHECKING:
    from hermetic.supervisor.config import Oidc
    from hermetic.supervisor.oidc import Provider

LOGIN_COOKIE: Final = "hermetic_login"
CSRF_COOKIE: Final = "hermetic_csrf"
"""Readable by our own page, which sends it back as CSRF_HEADER."""
CSRF_HEADER: Final = "X-CSRF-Token"
NOBODY: Final = Caller(tenant="")
"""Where nobody is asked for and nobody has said."""
OPEN: Final = frozenset({"/", "/static/<path:name>", "/login", "/login/oidc", "/login/oidc/callback", "/health"})
"""Addresses beside the API's own that need no caller."""
STREAMS: Final = {
    "/v1/turns/<turn_id>/events": "turn_id",
    "/v1/events": "",
    "/api/chat/stream": "stream_id",
}
"""Addresses that a ticket opens: an EventSource can set no header. → where the turn's id is."""
GETS_THAT_CHANGE: Final = frozenset({"/api/chat/cancel"})
"""Another application's addresses, which its page asks with GET."""
RUNNER = "runs"
"""The blueprint whose addresses also take the key of `server.runner_api_key_env`."""

_NEEDS: Final = {
    (operation.method.upper(), re.sub(r"{(\w+)}", r"<\1>", operation.path)): operation.scope for operation in OPERATIONS
}


def caller() -> Caller:
    """Of the request at hand."""
    found = g.caller
    assert isinstance(found, Caller)
    return found


def needs() -> Needs:
    """What the request at hand must be allowed."""
    rule = request.url_rule.rule if request.url_rule else ""
    method = "GET" if request.method == "HEAD" else request.method
    if method == "OPTIONS" or rule in OPEN:
        return "open"
    if (known := _NEEDS.get((method, rule))) is not None:
        return known
    return "run" if _changes() else "read"


def _provider(config: Oidc) -> Provider | None:
    if not config.issuer:
        return None
    from hermetic.supervisor.oidc import Provider  # its cryptography takes a tenth of a server's start to load

    return Provider(config)


class Doorkeeper:
    """Lets requests in."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._identities = supervisor.identities
        self._runner_key = _runner_key(supervisor.config.server.runner_api_key_env)
        self.provider = _provider(supervisor.config.oidc)

    @property
    def closed(self) -> bool:
        """Every request needs a caller."""
        return self._identities.configured or self.provider is not None

    async def admit(self) -> None:
        """Raises `Unauthorized`, `MissingScope`, `TenantSuspended`, `Forbidden`; else the request has its caller."""
        g.caller, g.login = NOBODY, None
        needed = needs()
        try:
            g.caller = await self._who()
        except HermeticError:
            if needed != "open":
                raise
        act_for(g.caller)
        if needed != "open":
            check_scope(g.caller, needed)

    async def _who(self) -> Caller:
        scheme, _, given = request.headers.get("Authorization", "").partition(" ")
        given = given.strip()
        is_runner = request.url_rule is not None and request.url_rule.endpoint.startswith(f"{RUNNER}.")
        if is_runner and self._runner_key:
            if scheme.lower() == "bearer" and hmac.compare_digest(given.encode(), self._runner_key):
                return Caller(tenant=LOCAL, user="runner", scopes=scopes_of(["run"]))
            if not self.closed:
                raise Unauthorized("this address needs the runner's key")
        if not self.closed:
            return OPERATOR
        if scheme:
            if scheme.lower() != "bearer" or not given:
                raise Unauthorized("this server takes `Authorization: Bearer KEY` alone")
            return await self.by_bearer(given)
        rule = request.url_rule.rule if request.url_rule else ""
        if (ticket := request.args.get("ticket")) and rule in STREAMS:
            turn_id = (request.view_args or {}).get(STREAMS[rule]) or request.args.get(STREAMS[rule])
            return await self._identities.by_ticket(ticket, turn_id)
        if cookie := request.cookies.get(self._cookie_name()):
            found, login = await self._identities.by_login(cookie)
            if _changes():
                _check_own_page(login)
            g.login = login
            return found
        raise Unauthorized("this address needs a key, and the request has none")

    async def by_bearer(self, text: str) -> Caller:
        """A key of ours, or a token of the identity provider. What is refused is in the audit log."""
        try:
            return await self._by_bearer(text)
        except (Unauthorized, TenantSuspended) as error:
            await self._supervisor.note_refusal(error.message, client=request.remote_addr or "", key=key_id_of(text))
            raise

    async def _by_bearer(self, text: str) -> Caller:
        if self.provider is not None and text.count(".") == 2:
            found = await self.provider.caller(text)
            await self._identities.check(found)
            return found
        return await self._identities.by_key(text)

    # --- cookies ---------------------------------------------------------------------------------------------------

    @property
    def secure(self) -> bool:
        """People come by HTTPS, also where a proxy ends it."""
        url = self._supervisor.config.server.url
        return request.scheme == "https" if url is None else url.startswith("https:")

    def _cookie_name(self) -> str:
        """With the prefix a browser takes it from nobody but this host, over HTTPS (RFC 6265bis, 4.1.3.2)."""
        return f"__Host-{LOGIN_COOKIE}" if self.secure else LOGIN_COOKIE

    async def log_in(self, found: Caller) -> tuple[str, Login]:
        """→ the cookie's value, and what is kept of it. Another login of the same browser ends."""
        if token := request.cookies.get(self._cookie_name()):
            await self._identities.log_out(token)
        return await self._identities.log_in(found)

    def keep(self, response: AnyResponse, token: str, login: Login) -> None:
        """The cookies."""
        life = int(LOGIN_S)
        response.set_cookie(
            self._cookie_name(), token, max_age=life, path="/", secure=self.secure, httponly=True, samesite="Lax"
        )
        response.set_cookie(CSRF_COOKIE, login.csrf, max_age=life, path="/", secure=self.secure, samesite="Strict")

    async def log_out(self, response: AnyResponse) -> None:
        if token := request.cookies.get(self._cookie_name()):
            await self._identities.log_out(token)
        response.delete_cookie(self._cookie_name(), path="/", secure=self.secure, httponly=True, samesite="Lax")
        response.delete_cookie(CSRF_COOKIE, path="/", secure=self.secure, samesite="Strict")


def check_scope(found: Caller, needed: Needs) -> None:
    """Raises `MissingScope`."""
    if needed == "operator":
        if not found.is_operator:
            raise MissingScope("only the operator of this server may do this", hint="Use an admin key of `local`.")
    elif needed != "open" and not found.may(needed):
        raise MissingScope(f"this needs the scope {needed!r}, and the caller has not got it")


def same_host(origin: str, host: str) -> bool:
    return origin.partition("://")[2] == host and origin.startswith(("http://", "https://"))


def _changes() -> bool:
    rule = request.url_rule.rule if request.url_rule else ""
    return request.method not in ("GET", "HEAD", "OPTIONS") or rule in GETS_THAT_CHANGE


def _check_own_page(login: Login) -> None:
    """Raises `Forbidden` unless our own page has sent the request at hand, which has the login's cookie."""
    origin, site = request.headers.get("Origin"), request.headers.get("Sec-Fetch-Site")
    own = origin is None or same_host(origin, request.headers.get("Host", ""))
    if not own or site not in (None, "same-origin"):
        raise Forbidden("a page of another origin may not use this login")
    shown = request.headers.get(CSRF_HEADER)
    # What another application's page asks with GET it asks without our header: then the browser must vouch for it.
    if shown is None and request.method == "GET" and site == "same-origin":
        return
    if shown is None or not same(shown.encode("utf-8", "surrogatepass"), login.csrf.encode()):
        raise Forbidden(
            f"a request with a login needs the header {CSRF_HEADER}",
            hint=f"Send what the cookie {CSRF_COOKIE} has, or use a key in place of the login.",
        )


def _runner_key(variable: str | None) -> bytes:
    """Empty: none. Raises `ConfigError`: a missing key must not open the door."""
    if variable is None:
        return b""
    if not (key := os.environ.get(variable, "").strip()):
        raise ConfigError(
            f"server.runner_api_key_env names {variable}, and the server's environment does not have it",
            hint="Set the variable for the server and, as HERMES_WEBUI_RUNNER_API_KEY, for the web UI.",
        )
    return key.encode()
