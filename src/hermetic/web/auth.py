"""Who sends a request: from its key, its cookie or its ticket to the `Caller` that it carries from then on."""

from __future__ import annotations

from quart import g

from hermetic.supervisor.identity import OPERATOR, Caller


def caller() -> Caller:
    """Of the request at hand; every handler that is not public has one."""
    found = g.get("caller", OPERATOR)
    assert isinstance(found, Caller)
    return found
