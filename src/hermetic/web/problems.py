"""Errors at the edge, all of one shape: RFC 9457 problem details with `code`, `fault` and `hint`."""

from __future__ import annotations

from http import HTTPStatus

import msgspec
import structlog
from quart import Quart, Response
from werkzeug.exceptions import HTTPException

from hermetic.protocol import api
from hermetic.protocol.errors import (
    ClientError,
    Draining,
    HermeticError,
    MethodNotAllowed,
    NotFound,
    QueueFull,
    TooLarge,
)
from hermetic.web.edge import request_id

log = structlog.get_logger()

RETRY_AFTER_S = 5
"""What a refused client is told to wait: a few turns' time."""


def problem_response(error: HermeticError) -> Response:
    status = error.status
    problem = api.Problem(
        type=f"urn:hermetic:{error.code}",
        title=HTTPStatus(status).phrase,
        status=status,
        detail=error.message,
        code=error.code,
        fault=error.fault,
        hint=error.hint,
        turn_id=error.extra.get("turn_id"),
        quota=error.extra.get("quota"),
        limit=error.extra.get("limit"),
        request_id=request_id(),
    )
    response = Response(msgspec.json.encode(problem), status, content_type="application/problem+json")
    response.headers["Cache-Control"] = "no-store"
    if isinstance(error, QueueFull | Draining):
        response.headers["Retry-After"] = str(error.extra.get("retry_after_s", RETRY_AFTER_S))
    return response


def install(app: Quart) -> None:
    """Every error that leaves a handler becomes a problem document."""

    @app.errorhandler(HermeticError)
    async def known(error: HermeticError) -> Response:
        if error.fault in ("host", "hermetic"):
            log.error("request_failed", code=error.code, detail=error.message)
        return problem_response(error)

    @app.errorhandler(HTTPException)
    async def http(error: HTTPException) -> Response:
        described = error.description or error.name
        match error.code:
            case 404:
                return problem_response(
                    NotFound("there is nothing at this address", hint="GET /openapi.json lists all addresses.")
                )
            case 405:
                response = problem_response(MethodNotAllowed("this address does not take this method"))
                if allow := error.get_headers():
                    response.headers.update({k: v for k, v in allow if k == "Allow"})
                return response
            case 413:
                return problem_response(TooLarge("the body is larger than server.body_bytes_max"))
            case code if code is not None and 400 <= code < 500:
                return problem_response(ClientError(described))
        log.error("request_failed", detail=described)
        return problem_response(HermeticError(described))

    @app.errorhandler(Exception)
    async def unknown(error: Exception) -> Response:
        log.exception("request_broke", exc_info=error)
        return problem_response(HermeticError("the server made a mistake while it answered this request"))
