"""How people and pages get in: the login page, a key or the identity provider for a cookie, and tickets for streams."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

import trio
from quart import Blueprint, Response, g, redirect, request
from werkzeug.wrappers import Response as Redirect

from hermetic.protocol import api
from hermetic.protocol.errors import HermeticError, NotFound
from hermetic.supervisor.identities import TICKET_S
from hermetic.supervisor.identity import SCOPES, Caller
from hermetic.supervisor.store.identity import Login
from hermetic.supervisor.supervisor import Supervisor
from hermetic.web.auth import Doorkeeper, caller
from hermetic.web.v1 import body, json_response

if TYPE_CHECKING:
    from hermetic.supervisor.oidc import Provider

FLOW_COOKIE: Final = "hermetic_oidc"
PAGE: Final = Path(__file__).parent / "static" / "login.html"
WITH_PROVIDER: Final = re.compile(r"<!-- provider -->.*?<!-- /provider -->\n", re.DOTALL)
"""What the page shows where there is an identity provider."""


def blueprint(supervisor: Supervisor, door: Doorkeeper) -> Blueprint:
    login = Blueprint("login", __name__)

    def me(found: Caller, kept: Login | None) -> api.Me:
        return api.Me(
            tenant=found.tenant,
            user=found.user,
            scopes=[scope for scope in SCOPES if scope in found.scopes],
            key_id=found.key_id,
            csrf=kept.csrf if kept else None,
            login_needed=door.closed,
        )

    @login.get("/login")
    async def page() -> Response:
        text = await trio.Path(PAGE).read_text(encoding="utf-8")
        if door.provider is None or not door.provider.for_browsers:
            text = WITH_PROVIDER.sub("", text)
        return Response(text, content_type="text/html; charset=utf-8", headers={"Cache-Control": "no-cache"})

    @login.get("/v1/me")
    async def get_me() -> Response:
        return json_response(me(caller(), g.login))

    @login.post("/v1/login")
    async def log_in() -> Response:
        found = await door.by_bearer((await body(api.LogIn)).key.strip())
        token, kept = await door.log_in(found)
        response = json_response(me(found, kept))
        door.keep(response, token, kept)
        return response

    @login.post("/v1/logout")
    async def log_out() -> Response:
        response = Response(b"", 204)
        await door.log_out(response)
        return response

    @login.post("/v1/tickets")
    async def get_ticket() -> Response:
        asked = await body(api.NewTicket, empty=True)
        if asked.turn_id is not None:
            await supervisor.turn(asked.turn_id, by=caller())  # raises NotFound
        ticket = supervisor.identities.give_ticket(caller(), asked.turn_id)
        return json_response(api.Ticket(ticket=ticket, expires_s=TICKET_S), 201)

    @login.get("/login/oidc")
    async def to_provider() -> Redirect:
        provider = _provider(door)
        url, cookie = await provider.begin(f"{_own_url(supervisor)}/login/oidc/callback")
        response = redirect(url, 303)
        response.set_cookie(
            FLOW_COOKIE,
            cookie,
            max_age=int(provider.flow_s),
            path="/login/oidc",
            secure=door.secure,
            httponly=True,
            samesite="Lax",
        )
        response.headers["Cache-Control"] = "no-store"
        return response

    @login.get("/login/oidc/callback")
    async def from_provider() -> Redirect:
        """Whatever goes wrong is said on the login page: the address has a code in it, which no page should keep."""
        provider = _provider(door)
        try:
            found = await provider.end(
                request.cookies.get(FLOW_COOKIE, ""), request.args.get("state", ""), request.args.get("code", "")
            )
            await supervisor.identities.check(found)
        except HermeticError as error:
            response = redirect(f"/login#{quote(error.message)}", 303)
        else:
            response = redirect("/", 303)
            door.keep(response, *await door.log_in(found))
        response.delete_cookie(FLOW_COOKIE, path="/login/oidc", secure=door.secure, httponly=True, samesite="Lax")
        response.headers["Cache-Control"] = "no-store"
        return response

    return login


def _provider(door: Doorkeeper) -> Provider:
    if door.provider is None or not door.provider.for_browsers:
        raise NotFound("this server has no identity provider for browsers", hint="Log in with a key at /login.")
    return door.provider


def _own_url(supervisor: Supervisor) -> str:
    return supervisor.config.server.url or f"{request.scheme}://{request.host}"
