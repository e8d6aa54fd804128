"""Over HTTP: tenants' secrets, which can be set and not be read; what they have used; the audit log; and metrics."""

from __future__ import annotations

import time
from datetime import UTC, datetime

import msgspec
from quart import Blueprint, Response, request

from hermetic.protocol import api
from hermetic.protocol.errors import NotFound
from hermetic.supervisor.metrics import CONTENT_TYPE
from hermetic.supervisor.store.governance import DAY_S, Secret
from hermetic.supervisor.supervisor import Supervisor
from hermetic.web.auth import caller
from hermetic.web.connection import Cuts
from hermetic.web.v1 import body, json_response, number

RECORDS_MAX = 1000
"""Audit records of one answer: some 400 kB."""
DAYS_MAX = 400
"""Days of one answer: a year and what is left of a month."""


def secret_view(secret: Secret) -> api.SecretView:
    return msgspec.convert(secret, api.SecretView, from_attributes=True)


def blueprint(supervisor: Supervisor) -> Blueprint:
    governance = Blueprint("governance", __name__)
    identities = supervisor.identities
    supervisor.readers_cut = lambda: Cuts.count

    def managed(tenant: str) -> str:
        """Raises `NotFound`, the same for a tenant of others as for none."""
        if caller().tenant == tenant or caller().is_operator:
            return identities.tenant(tenant).tenant
        raise NotFound(f"there is no tenant {tenant[:40]}")

    @governance.get("/v1/admin/tenants/<tenant>/secrets")
    async def secrets(tenant: str) -> Response:
        found = await supervisor.vault.names(managed(tenant))
        return json_response(api.SecretList(secrets=[secret_view(secret) for secret in found]))

    @governance.post("/v1/admin/tenants/<tenant>/secrets")
    async def set_secret(tenant: str) -> Response:
        new = await body(api.NewSecret)
        owner = managed(tenant)
        supervisor.sessions.check_profile(new.profile)
        made = await supervisor.vault.set(owner, new.profile, new.name, new.value)
        return json_response(secret_view(made), 201)

    @governance.delete("/v1/admin/tenants/<tenant>/secrets/<profile>/<name>")
    async def remove_secret(tenant: str, profile: str, name: str) -> Response:
        await supervisor.vault.remove(managed(tenant), profile, name)
        return Response(b"", 204)

    @governance.post("/v1/admin/secrets/rotate")
    async def rotate_secrets() -> Response:
        return json_response(api.Rotated(secrets=await supervisor.vault.rotate()))

    @governance.get("/v1/admin/tenants/<tenant>/usage")
    async def usage(tenant: str) -> Response:
        quotas, running, queued = supervisor.usage(managed(tenant))
        today = int(time.time() // DAY_S)
        since = today + 1 - number("days", int, 30, 1, DAYS_MAX)
        days = await supervisor.store.usage.days(tenant, since=since)
        return json_response(
            api.UsageView(
                quotas=msgspec.structs.asdict(quotas),
                running=running,
                queued=queued,
                days=[
                    api.UsedDay(day=str(datetime.fromtimestamp(day * DAY_S, UTC).date()), **used._asdict())
                    for day, used in sorted(days.items())
                ],
            )
        )

    @governance.get("/v1/admin/audit")
    async def audit() -> Response:
        own = None if caller().is_operator else caller().tenant
        wanted = request.args.get("tenant") or own
        links = await supervisor.store.audit.links(
            number("after", int, 0, 0, 1 << 53),
            limit=number("limit", int, 100, 1, RECORDS_MAX),
            tenant=None if wanted is None else managed(wanted),
        )
        head = await supervisor.store.audit.head()
        records = [msgspec.json.decode(link.line, type=api.AuditRecord) for link in links]
        return json_response(api.AuditPage(records=records, head=head.head))

    @governance.get("/metrics")
    async def metrics() -> Response:
        return Response(supervisor.metrics.text(), content_type=CONTENT_TYPE)

    return governance
