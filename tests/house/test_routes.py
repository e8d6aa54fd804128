"""The OpenAPI document and the application know the same operations."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any, cast

from hermetic.protocol.operations import OPERATIONS
from hermetic.supervisor.config import Config
from hermetic.web.app import make_app

PAGES = {"/", "/static/{name}", "/login", "/login/oidc", "/login/oidc/callback"}


def is_the_web_uis(path: str) -> bool:
    """The paths of another application's page: their shapes are its own, and docs/seed.md has them."""
    return path.startswith("/api/") or path == "/health"


def test_what_is_documented_is_served_and_what_is_served_is_documented() -> None:
    # Routes are laid before any supervisor is asked.
    app = make_app(cast(Any, SimpleNamespace(config=Config(), identities=None)), loopback=True)
    served = {
        (method.lower(), re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule))
        for rule in app.url_map.iter_rules()
        for method in rule.methods - {"HEAD", "OPTIONS"}
    }
    ours = {(method, path) for method, path in served if path not in PAGES and not is_the_web_uis(path)}
    assert ours == {(operation.method, operation.path) for operation in OPERATIONS}
