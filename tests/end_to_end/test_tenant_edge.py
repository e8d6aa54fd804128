"""The edge: request ids, CORS, what the log says, whose workspaces are whose, and an identity provider's people."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import httpx
import pytest
import trio
from tenancy import Tenants

sys.path.insert(0, str(Path(__file__).parents[1] / "supervisor"))
from test_oidc_tokens import Issuer, issuer  # noqa: F401 (the same provider, as a fixture)

APP = "https://app.example.com"


async def test_a_sane_request_id_is_kept_and_another_is_replaced(serve):
    server = await serve()
    async with httpx.AsyncClient(base_url=server.url) as http:
        assert (await http.get("/v1/health", headers={"X-Request-Id": "ab.C-1_2"})).headers[
            "x-request-id"
        ] == "ab.C-1_2"
        for odd in ("", "a b", "x" * 65, '"', "é".encode("latin-1")):
            given = (await http.get("/v1/turns/x", headers={"X-Request-Id": odd})).headers["x-request-id"]
            assert re.fullmatch(r"[0-9a-f]{16}", given)
        problem = await http.get("/v1/turns/x", headers={"X-Request-Id": "seen"})
        assert problem.json()["request_id"] == "seen"
    assert "request_id=seen" in server.log.read_text()


async def test_a_page_of_another_origin_reads_and_writes_only_where_the_configuration_names_it(serve):
    server = await serve(f'[server]\ncors_origins = ["{APP}"]\n')
    tenants = Tenants(server)
    ann = await tenants.add("ann")
    async with httpx.AsyncClient(base_url=server.url) as http:
        asked = {
            "Origin": APP,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization",
        }
        preflight = await http.options("/v1/sessions", headers=asked)
        assert preflight.status_code == 204
        assert preflight.headers["access-control-allow-origin"] == APP
        assert "Authorization" in preflight.headers["access-control-allow-headers"]
        made = await http.post("/v1/sessions", json={}, headers={**ann, "Origin": APP})
        assert made.status_code == 201
        assert made.headers["access-control-allow-origin"] == APP
        assert "Origin" in made.headers["vary"]
        assert "access-control-allow-credentials" not in made.headers
        refused = await http.get("/v1/sessions", headers={"Origin": APP})
        assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, APP)
        for origin in (APP + ".evil.example", "http://app.example.com", "null", APP.upper()):
            response = await http.get("/v1/sessions", headers={**ann, "Origin": origin})
            assert "access-control-allow-origin" not in response.headers
            response = await http.options("/v1/sessions", headers={**asked, "Origin": origin})
            assert "access-control-allow-origin" not in response.headers
            response = await http.post("/v1/sessions", json={}, headers={**ann, "Origin": origin})
            assert response.status_code == 403
        key = ann["Authorization"].removeprefix("Bearer ")
        me = (await http.post("/v1/login", json={"key": key})).json()
        page = {"Origin": APP, "X-CSRF-Token": me["csrf"]}
        assert (await http.post("/v1/sessions", json={}, headers=page)).status_code == 403, (
            "a cookie is for our own page"
        )


async def test_the_log_has_each_request_and_no_secret(serve):
    server = await serve()
    tenants = Tenants(server)
    ann = await tenants.add("ann")
    key = ann["Authorization"].removeprefix("Bearer ")
    async with httpx.AsyncClient(base_url=server.url) as http:
        await http.get("/v1/sessions?q=plum", headers=ann)
        await http.get(f"/v1/turns/x/events?ticket={key}")
        await http.get("/v1/turns/%0aforged%1b[31m", headers=ann)
        await http.post("/v1/login", json={"key": key})
        cookie = http.cookies["hermetic_login"]
        await http.get("/v1/me")
    log = server.log.read_text()
    assert re.search(r"method=GET .*path=/v1/sessions .*status=200 tenant=ann", log)
    assert f"key={key[3:15]}" in log
    for secret in (key.rpartition("_")[2], cookie, "plum", tenants.operator["Authorization"][10:]):
        assert secret not in log
    assert "\nforged" not in log
    assert "\x1b[31m" not in log


@pytest.mark.parametrize(
    ("head", "body"),
    [
        (b"GET / HTTP/1.1\r\n", b"X-A: " + b"a" * 100_000),
        (b"GET /" + b"a" * 100_000, b""),
        (b"POST /v1/sessions HTTP/1.1\r\nHost: HOST\r\nContent-Length: 2000001\r\n\r\n", b"{"),
        (b"POST /v1/sessions HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: chunked\r\n\r\n", b"1000\r\n" + b" " * 4096),
    ],
    ids=["a header", "an address", "a body", "a body in chunks"],
)
async def test_what_has_no_end_is_refused(serve, head, body):
    server = await serve("[server]\nbody_bytes_max = 2000000\n[limits]\nmessage_bytes_max = 1000000\n")
    host = server.url.removeprefix("http://")
    name, port = host.split(":")
    answer = b""
    with trio.fail_after(60):
        async with await trio.open_tcp_stream(name, int(port)) as socket:
            try:
                await socket.send_all(head.replace(b"HOST", host.encode()))
                await socket.send_all(body)
                for _ in range(1000):
                    with trio.move_on_after(0.01):
                        answer += await socket.receive_some(65536)
                    if answer:
                        break
                    await socket.send_all(b"\r\n1000\r\n" + b" " * 4096 if b"chunked" in head else b"a" * 4096)
            except trio.BrokenResourceError:
                pass  # cut while we were writing
    assert answer == b"" or answer.split(b" ")[1] in (b"400", b"413", b"414", b"431"), answer[:200]
    await server.call("GET", "/v1/health")


# --- workspaces -------------------------------------------------------------------------------------------------------


async def test_a_tenants_workspaces_are_in_its_own_folder_and_its_own_roots(serve, tmp_path):
    server = await serve()
    tenants = Tenants(server)
    mine, his, shared = tmp_path / "anns", tmp_path / "bobs", tmp_path / "elsewhere"
    for folder in (mine / "deep", his, shared):
        folder.mkdir(parents=True)
    (mine / "out").symlink_to(his)
    ann = await tenants.add("ann", workspace_roots=[str(mine)])
    bob = await tenants.add("bob", workspace_roots=[str(his)])
    data = os.path.realpath(server.data)

    async def ask(headers: dict[str, str], workspace: Path | str | None) -> tuple[int, str]:
        async with httpx.AsyncClient(base_url=server.url) as http:
            response = await http.post(
                "/v1/sessions", json={"workspace": workspace and str(workspace)}, headers=headers
            )
        return response.status_code, response.json().get("workspace", response.json().get("code"))

    status, own = await ask(ann, None)
    assert status == 201
    assert own.startswith(f"{data}/tenants/ann/workspaces/")
    assert await ask(ann, mine / "deep") == (201, str(mine / "deep"))
    assert (await tenants.call("POST", "/v1/sessions", {}))["workspace"].startswith(f"{data}/workspaces/")
    for foreign in (
        his, shared, mine / "out", mine / ".." / "bobs", "/", "/etc", data, f"{data}/tenants", f"{data}/tenants/bob",
        f"{data}/workspaces", own.replace("/ann/", "/bob/"), Path(own).parent, f"{own}/../other",
    ):  # fmt: skip
        assert await ask(ann, foreign) == (403, "workspace_not_allowed"), foreign
    assert (await ask(bob, own))[0] == 403
    options = await server.call("GET", "/v1/options", headers=ann)
    assert options["workspace_roots"] == [str(mine)]


@pytest.mark.parametrize("root", ["/", "/..", "relative", "", "//"])
async def test_the_whole_host_is_no_tenants_root(serve, root):
    tenants = Tenants(await serve())
    await tenants.call("POST", "/v1/admin/tenants", {"tenant": "ann", "workspace_roots": [root]}, status=400)


async def test_the_folder_of_a_tenant_that_was_removed_is_not_the_next_ones(serve):
    server = await serve()
    tenants = Tenants(server)
    ann = await tenants.add("ann")
    first = (await server.call("POST", "/v1/sessions", {}, headers=ann))["workspace"]
    (Path(first) / "diary.txt").write_text("mine")
    await tenants.call("DELETE", "/v1/admin/tenants/ann", status=204)
    assert not Path(first).exists()
    assert [p.name for p in (server.data / "tenants").iterdir()] == ["ann.removed-1"]
    again = await tenants.add("ann")
    assert (await server.call("GET", "/v1/sessions", headers=again))["sessions"] == []
    numbers = {t["tenant"]: t["number"] for t in (await tenants.call("GET", "/v1/admin/tenants"))["tenants"]}
    assert numbers["ann"] == 2


# --- an identity provider ---------------------------------------------------------------------------------------------


async def test_people_of_an_identity_provider_come_with_tokens_and_with_browsers(serve, issuer):  # noqa: F811
    server = await serve(f'[oidc]\nissuer = "{issuer.url}"\naudience = "hermetic"\nclient_id = "browser"\n')
    tenants = Tenants(server)
    await server.call("GET", "/v1/sessions", status=401)  # closed, also before the first tenant
    await tenants.call("POST", "/v1/admin/tenants", {"tenant": "ann"}, status=201)

    def bearing(**claims: object) -> dict[str, str]:
        return {"Authorization": f"Bearer {issuer.token(**claims)}"}

    me = await server.call("GET", "/v1/me", headers=bearing())
    assert (me["tenant"], me["user"], me["scopes"]) == ("ann", "zoe", ["run", "read"])
    await server.call("POST", "/v1/sessions", {}, headers=bearing(), status=201)
    assert (await server.call("GET", "/v1/me", headers=bearing(scope=""), status=403))["code"] == "missing_scope"
    await server.call("GET", "/v1/me", headers=bearing(tenant="nobody"), status=401)
    await server.call("GET", "/v1/me", headers=bearing(aud="other"), status=401)
    async with httpx.AsyncClient(base_url=server.url) as http:
        assert "/login/oidc" in (await http.get("/login")).text
        away = await http.get("/login/oidc")
        assert away.status_code == 303
        asked = dict(httpx.URL(away.headers["location"]).params)
        assert asked["redirect_uri"] == f"{server.url}/login/oidc/callback"
        issuer.codes["c"] = asked
        wrong = await http.get("/login/oidc/callback", params={"state": "x", "code": "c"})
        assert wrong.headers["location"].startswith("/login#")
        away = await http.get("/login/oidc")
        asked = dict(httpx.URL(away.headers["location"]).params)
        issuer.codes["c"] = asked
        back = await http.get("/login/oidc/callback", params={"state": asked["state"], "code": "c"})
        assert (back.status_code, back.headers["location"]) == (303, "/")
        assert (await http.get("/v1/me")).json()["user"] == "zoe"
        await tenants.call("POST", "/v1/admin/tenants/ann/users", {"user": "zoe", "suspended": True}, status=201)
        assert (await http.get("/v1/me")).status_code == 403
    await server.call("GET", "/v1/me", headers=bearing(), status=403)
