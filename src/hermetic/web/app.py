"""The application: the native API, the page, and the guards that stand before both."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

from quart import Response, request, send_from_directory
from quart_trio import QuartTrio

from hermetic.protocol.errors import Forbidden
from hermetic.supervisor.config import is_loopback
from hermetic.supervisor.supervisor import Supervisor
from hermetic.web import problems, runner_api, seed_api, uploads, v1
from hermetic.web.stream import Exchange

STATIC = Path(__file__).parent / "static"
SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
}


def _host_of(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:  # such as `[`: no address at all
        return ""


def _same_host(origin: str, host: str) -> bool:
    try:
        return urlsplit(origin).netloc == host
    except ValueError:
        return False


def make_app(supervisor: Supervisor, *, loopback: bool) -> QuartTrio:
    """`loopback`: the server listens there only, so a request that names another host comes from a page that has
    rebound its DNS name to us."""
    app = QuartTrio("hermetic.web", static_folder=None)
    app.asgi_http_class = Exchange
    app.config["MAX_CONTENT_LENGTH"] = supervisor.config.server.body_bytes_max
    app.url_map.strict_slashes = False
    problems.install(app)

    class Request(uploads.BoundedRequest):
        upload_bytes_max = supervisor.config.server.upload_bytes_max

    app.request_class = Request
    app.register_blueprint(v1.blueprint(supervisor))
    app.register_blueprint(runner_api.blueprint(supervisor))
    app.register_blueprint(seed_api.blueprint(supervisor))

    @app.before_request
    async def guard() -> None:
        host = request.headers.get("Host", "")
        if loopback and not is_loopback(_host_of(f"//{host}")):
            raise Forbidden(f"this server answers only to loopback names, not to {host[:80]!r}")
        origin = request.headers.get("Origin")
        if origin and request.method not in ("GET", "HEAD", "OPTIONS") and not _same_host(origin, host):
            raise Forbidden(f"a page of another origin ({origin[:80]}) may not change anything here")

    @app.after_request
    async def secure(response: Response) -> Response:
        for name, value in SECURITY_HEADERS.items():
            response.headers.setdefault(name, value)
        return response

    @app.get("/")
    async def index() -> Response:
        return await _static("index.html")

    @app.get("/static/<path:name>")
    async def static(name: str) -> Response:
        return await _static(name)

    async def _static(name: str) -> Response:
        response = await send_from_directory(STATIC, name, cache_timeout=0)
        response.headers["Cache-Control"] = "no-cache"
        return response

    return app
