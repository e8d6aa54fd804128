"""A server with tenants, as its operator sees it."""

from __future__ import annotations

import json
from collections.abc import Iterable

from harness import Server


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


class Tenants:
    """`server` runs. The operator's key is the one in the note that only the server's own user can read."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.operator = bearer(json.loads((server.data / "server.json").read_text())["key"])

    async def call(self, method: str, path: str, body: object = None, *, status: int | None = None, **kwargs) -> dict:
        return await self.server.call(method, path, body, status=status, headers=self.operator, **kwargs)

    async def add(self, tenant: str, scopes: Iterable[str] = ("run",), **new: object) -> dict[str, str]:
        """→ the headers of a caller in a new tenant."""
        await self.call("POST", "/v1/admin/tenants", {"tenant": tenant, **new}, status=201)
        return await self.key(tenant, scopes)

    async def key(self, tenant: str, scopes: Iterable[str] = ("run",), **new: object) -> dict[str, str]:
        body = {"scopes": list(scopes), **new}
        return bearer((await self.call("POST", f"/v1/admin/tenants/{tenant}/keys", body, status=201))["key"])
