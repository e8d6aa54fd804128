"""The application: the native API, the page, and what stands before both (edge.py, auth.py)."""

from __future__ import annotations

from pathlib import Path

from quart import Response, redirect, send_from_directory
from quart_trio import QuartTrio
from werkzeug.wrappers import Response as Redirect

from hermetic.supervisor.supervisor import Supervisor
from hermetic.web import admin, edge, governance, login, problems, runner_api, seed_api, uploads, v1
from hermetic.web.auth import NOBODY, Doorkeeper, caller
from hermetic.web.stream import Exchange

STATIC = Path(__file__).parent / "static"


def make_app(supervisor: Supervisor, *, loopback: bool) -> QuartTrio:
    """`loopback`: the server listens there only."""
    app = QuartTrio("hermetic.web", static_folder=None)
    app.asgi_http_class = Exchange
    app.config["MAX_CONTENT_LENGTH"] = supervisor.config.server.body_bytes_max
    app.url_map.strict_slashes = False
    problems.install(app)

    class Request(uploads.BoundedRequest):
        upload_bytes_max = supervisor.config.server.upload_bytes_max

    app.request_class = Request
    door = Doorkeeper(supervisor)
    edge.install(app, supervisor.config.server, loopback=loopback)
    app.before_request(door.admit)
    app.register_blueprint(login.blueprint(supervisor, door))
    app.register_blueprint(admin.blueprint(supervisor))
    app.register_blueprint(governance.blueprint(supervisor))
    app.register_blueprint(v1.blueprint(supervisor))
    app.register_blueprint(runner_api.blueprint(supervisor))
    app.register_blueprint(seed_api.blueprint(supervisor))

    @app.get("/")
    async def index() -> Response | Redirect:
        return redirect("/login", 303) if caller() == NOBODY else await _static("index.html")

    @app.get("/static/<path:name>")
    async def static(name: str) -> Response:
        return await _static(name)

    async def _static(name: str) -> Response:
        response = await send_from_directory(STATIC, name, cache_timeout=0)
        response.headers["Cache-Control"] = "no-cache"
        return response

    return app
