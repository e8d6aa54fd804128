"""Tenants, users and keys over HTTP. The operator manages all of them, another tenant's admin its own: to it, every other
tenant is one that does not exist."""

from __future__ import annotations

import msgspec
from msgspec import UNSET
from quart import Blueprint, Response

from hermetic.protocol import api
from hermetic.protocol.errors import NotFound
from hermetic.supervisor.identities import Shown
from hermetic.supervisor.store.identity import Key, Tenant, User
from hermetic.supervisor.supervisor import Supervisor
from hermetic.web.auth import caller
from hermetic.web.v1 import body, json_response


def tenant_view(tenant: Tenant) -> api.TenantView:
    return msgspec.convert(tenant, api.TenantView, from_attributes=True)


def user_view(user: User) -> api.UserView:
    return msgspec.convert(user, api.UserView, from_attributes=True)


def key_view(key: Key) -> api.KeyView:
    return msgspec.convert(key, api.KeyView, from_attributes=True)


def shown_key(made: Shown) -> api.ShownKey:
    view = msgspec.structs.asdict(key_view(made.key))
    return api.ShownKey(**view, key=made.secret)


def blueprint(supervisor: Supervisor) -> Blueprint:
    admin = Blueprint("admin", __name__)
    identities = supervisor.identities

    def managed(tenant: str) -> str:
        """Raises `NotFound`, the same for a tenant of others as for none."""
        if caller().tenant == tenant or caller().is_operator:
            return identities.tenant(tenant).tenant
        raise NotFound(f"there is no tenant {tenant[:40]}")

    @admin.get("/v1/admin/tenants")
    async def tenants() -> Response:
        shown = identities.tenants() if caller().is_operator else [identities.tenant(caller().tenant)]
        return json_response(api.TenantList(tenants=[tenant_view(tenant) for tenant in shown]))

    @admin.post("/v1/admin/tenants")
    async def add_tenant() -> Response:
        new = await body(api.NewTenant)
        made = await identities.add_tenant(
            new.tenant, name=new.name, workspace_roots=new.workspace_roots, quotas=new.quotas, weight=new.weight
        )
        return json_response(tenant_view(made), 201)

    @admin.get("/v1/admin/tenants/<tenant>")
    async def get_tenant(tenant: str) -> Response:
        return json_response(tenant_view(identities.tenant(managed(tenant))))

    @admin.patch("/v1/admin/tenants/<tenant>")
    async def change_tenant(tenant: str) -> Response:
        change = await body(api.ChangeTenant)
        asked = {name: value for name in change.__struct_fields__ if (value := getattr(change, name)) is not UNSET}
        changed = await identities.change_tenant(managed(tenant), **asked)
        if changed.suspended:
            await supervisor.cancel_all(tenant)
        return json_response(tenant_view(changed))

    @admin.delete("/v1/admin/tenants/<tenant>")
    async def remove_tenant(tenant: str) -> Response:
        await supervisor.remove_tenant(managed(tenant))
        return Response(b"", 204)

    @admin.get("/v1/admin/tenants/<tenant>/users")
    async def users(tenant: str) -> Response:
        shown = await identities.users(managed(tenant))
        return json_response(api.UserList(users=[user_view(user) for user in shown]))

    @admin.post("/v1/admin/tenants/<tenant>/users")
    async def put_user(tenant: str) -> Response:
        new = await body(api.NewUser)
        made = await identities.put_user(managed(tenant), new.user, name=new.name, suspended=new.suspended)
        return json_response(user_view(made), 201)

    @admin.delete("/v1/admin/tenants/<tenant>/users/<user>")
    async def remove_user(tenant: str, user: str) -> Response:
        await identities.remove_user(managed(tenant), user)
        return Response(b"", 204)

    @admin.get("/v1/admin/tenants/<tenant>/keys")
    async def keys(tenant: str) -> Response:
        shown = await identities.keys(managed(tenant))
        return json_response(api.KeyList(keys=[key_view(key) for key in shown]))

    @admin.post("/v1/admin/tenants/<tenant>/keys")
    async def add_key(tenant: str) -> Response:
        new = await body(api.NewKey)
        made = await identities.add_key(
            managed(tenant), name=new.name, user=new.user, scopes=list(new.scopes), expires_s=new.expires_s
        )
        return json_response(shown_key(made), 201)

    @admin.delete("/v1/admin/tenants/<tenant>/keys/<key_id>")
    async def revoke_key(tenant: str, key_id: str) -> Response:
        await identities.revoke_key(managed(tenant), key_id)
        return Response(b"", 204)

    return admin
