"""How callers get in: open on loopback, closed with the first tenant; keys, cookies, CSRF tokens and tickets."""

from __future__ import annotations

import json
import re
import stat
import subprocess
import sys

import httpx
import pytest
import trio
from tenancy import Tenants

PAGE = {"Sec-Fetch-Site": "same-origin"}


@pytest.fixture
async def tenants(serve) -> Tenants:
    return Tenants(await serve())


def hermetic(tenants: Tenants, *arguments: str, fails: bool = False) -> str:
    server = tenants.server
    command = [sys.executable, "-m", "hermetic", *arguments, "--data", str(server.data)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode != 0) is fails, done.stderr
    return done.stderr if fails else done.stdout


async def test_without_tenants_everybody_on_loopback_is_the_operator(tenants):
    server = tenants.server
    me = await server.call("GET", "/v1/me")
    assert (me["tenant"], me["scopes"], me["login_needed"]) == ("local", ["run", "read", "admin"], False)
    await server.session()
    # also with a key that is not known, as a web UI may send one by habit
    await server.call("GET", "/v1/sessions", headers={"Authorization": "Bearer whatever"})


async def test_the_first_tenant_closes_the_door_and_the_last_one_opens_it(tenants):
    server = tenants.server
    mine = await server.session()
    ann = await tenants.add("ann")
    assert (await server.call("GET", "/v1/sessions", status=401))["code"] == "unauthorized"
    assert (await server.call("GET", "/v1/sessions", headers=ann))["sessions"] == []
    await server.call("GET", f"/v1/sessions/{mine}", status=404, headers=ann)
    assert (await tenants.call("GET", f"/v1/sessions/{mine}"))["session_id"] == mine
    await tenants.call("DELETE", "/v1/admin/tenants/ann", status=204)
    await server.call("GET", f"/v1/sessions/{mine}")
    await server.stop()
    await server.start()
    await server.call("GET", f"/v1/sessions/{mine}")


async def test_the_note_with_the_operators_key_is_for_the_servers_user_alone(tenants):
    note = tenants.server.data / "server.json"
    assert stat.S_IMODE(note.stat().st_mode) == 0o600
    first = json.loads(note.read_text())["key"]
    await tenants.server.stop()
    await tenants.server.start()
    assert json.loads(note.read_text())["key"] != first
    await tenants.server.stop()
    assert not note.exists()


async def test_tenants_and_keys_are_managed_from_the_command_line_with_a_server_and_without(tenants):
    server = tenants.server
    hermetic(tenants, "tenants", "add", "ann", "--name", "Ann & Co")
    key = hermetic(tenants, "keys", "add", "--tenant", "ann", "--name", "laptop").strip()
    assert re.fullmatch(r"hk_[0-9a-f]{12}_[A-Za-z0-9_-]{43}", key)
    ann = {"Authorization": f"Bearer {key}"}
    await server.call("GET", "/v1/sessions", headers=ann)
    listed = hermetic(tenants, "keys", "list", "--tenant", "ann")
    assert key[3:15] in listed
    assert "laptop" in listed
    assert key.rpartition("_")[2] not in listed
    await server.stop()
    assert "ann" in hermetic(tenants, "tenants", "list")
    other = hermetic(tenants, "keys", "add", "--tenant", "ann").strip()
    hermetic(tenants, "keys", "revoke", key[3:15], "--tenant", "ann")
    hermetic(tenants, "tenants", "suspend", "ann")
    assert "no tenant" in hermetic(tenants, "tenants", "suspend", "nobody", fails=True)
    await server.start()
    assert "revoked" in (await server.call("GET", "/v1/me", headers=ann, status=401))["detail"]
    late = {"Authorization": f"Bearer {other}"}
    assert (await server.call("GET", "/v1/me", headers=late, status=403))["code"] == "suspended"
    hermetic(tenants, "tenants", "resume", "ann")
    assert (await server.call("GET", "/v1/me", headers=late))["tenant"] == "ann"
    assert "(no title)" in hermetic(tenants, "sessions") or hermetic(tenants, "sessions") == ""


async def test_a_suspended_tenants_turns_are_cancelled_and_its_sessions_are_there_when_it_is_back(tenants):
    server = tenants.server
    ann = await tenants.add("ann")
    sid = (await server.call("POST", "/v1/sessions", {}, headers=ann))["session_id"]
    turn = (await server.call("POST", f"/v1/sessions/{sid}/turns", {"message": "ask me"}, headers=ann))["turn_id"]
    assert (await tenants.call("DELETE", "/v1/admin/tenants/ann", status=409))["code"] == "conflict"
    await tenants.call("PATCH", "/v1/admin/tenants/ann", {"suspended": True})
    await server.call("GET", f"/v1/turns/{turn}", headers=ann, status=403)
    await tenants.call("PATCH", "/v1/admin/tenants/ann", {"suspended": False})
    with trio.fail_after(60):
        while not (view := await server.call("GET", f"/v1/turns/{turn}", headers=ann))["ended"]:
            await trio.sleep(0.02)
    assert view["state"] == "cancelled"


async def test_a_users_keys_go_with_the_user(tenants):
    server = tenants.server
    await tenants.add("ann")
    path = "/v1/admin/tenants/ann/users"
    await tenants.call("POST", path, {"user": "zoe@example.com"}, status=201)
    key = await tenants.key("ann", user="zoe@example.com")
    assert (await server.call("GET", "/v1/me", headers=key))["user"] == "zoe@example.com"
    await tenants.call("POST", path, {"user": "zoe@example.com", "suspended": True}, status=201)
    await server.call("GET", "/v1/me", headers=key, status=403)
    await tenants.call("DELETE", f"{path}/zoe@example.com", status=204)
    await server.call("GET", "/v1/me", headers=key, status=401)


async def test_an_admin_manages_its_own_tenant_and_no_other(tenants):
    server = tenants.server
    ann = await tenants.add("ann", ["admin"])
    await tenants.add("bob")
    listed = await server.call("GET", "/v1/admin/tenants", headers=ann)
    assert [tenant["tenant"] for tenant in listed["tenants"]] == ["ann"]
    made = await server.call("POST", "/v1/admin/tenants/ann/keys", {"scopes": ["read"]}, headers=ann, status=201)
    assert made["scopes"] == ["read"]
    for tenant in ("bob", "nobody", "local"):
        answer = await server.call("POST", f"/v1/admin/tenants/{tenant}/keys", {}, headers=ann, status=404)
        assert answer["detail"] == f"there is no tenant {tenant}"
    for method, path, body in (
        ("POST", "/v1/admin/tenants", {"tenant": "carl"}),
        ("PATCH", "/v1/admin/tenants/ann", {"workspace_roots": ["/srv"]}),
        ("DELETE", "/v1/admin/tenants/ann", None),
    ):
        assert (await server.call(method, path, body, headers=ann, status=403))["code"] == "missing_scope"
    everybody = await tenants.call("GET", "/v1/admin/tenants")
    assert [(tenant["tenant"], tenant["number"]) for tenant in everybody["tenants"]] == [
        ("local", 0),
        ("ann", 1),
        ("bob", 2),
    ]


@pytest.mark.parametrize("name", ["", "local", "A", "a_b", "-a", "a-", "../x", "a" * 33, "ä", "a\n"])
async def test_a_tenants_name_is_a_folders_name_and_nothing_else(tenants, name):
    await tenants.call("POST", "/v1/admin/tenants", {"tenant": name}, status=400)


# --- browsers ---------------------------------------------------------------------------------------------------------


async def logged_in(tenants: Tenants, http: httpx.AsyncClient, tenant: str = "ann", scopes=("run",)) -> dict:
    key = (await tenants.add(tenant, scopes))["Authorization"].removeprefix("Bearer ")
    response = await http.post("/v1/login", json={"key": key}, headers=PAGE)
    assert response.status_code == 200, response.text
    cookies = {line.partition("=")[0]: line for line in response.headers.get_list("set-cookie")}
    assert "HttpOnly" in cookies["hermetic_login"]
    assert "SameSite=Lax" in cookies["hermetic_login"]
    assert "SameSite=Strict" in cookies["hermetic_csrf"]
    assert key not in str(cookies)
    return response.json()


async def test_a_browser_without_a_login_is_sent_to_the_login_page(tenants):
    async with httpx.AsyncClient(base_url=tenants.server.url) as http:
        assert (await http.get("/")).status_code == 200
        await tenants.add("ann")
        response = await http.get("/")
        assert (response.status_code, response.headers["location"]) == (303, "/login")
        page = await http.get("/login")
        assert page.status_code == 200
        assert "/login/oidc" not in page.text
        assert "default-src 'self'" in page.headers["content-security-policy"]
        for name in re.findall(r'(?:src|href)="(/static/[^"]+)"', page.text):
            assert (await http.get(name)).status_code == 200


async def test_a_key_becomes_a_cookie_which_changes_things_only_with_its_token(tenants):
    async with httpx.AsyncClient(base_url=tenants.server.url) as http:
        me = await logged_in(tenants, http)
        assert (await http.get("/")).status_code == 200
        assert (await http.get("/v1/me")).json()["csrf"] == me["csrf"]
        token = {"X-CSRF-Token": me["csrf"]}
        own = tenants.server.url
        for headers in (
            {},
            {"X-CSRF-Token": "x"},
            {**token, "Origin": "https://evil.example"},
            {**token, "Origin": own, "Sec-Fetch-Site": "cross-site"},
            {**token, "Origin": "null"},
            {**token, "Origin": own + "0"},
            {**token, "Origin": own.replace("http:", "ftp:")},
        ):
            response = await http.post("/v1/sessions", json={}, headers=headers)
            assert (response.status_code, response.json()["code"]) == (403, "forbidden"), headers
        for headers in (token, {**token, "Origin": own, **PAGE}):
            assert (await http.post("/v1/sessions", json={}, headers=headers)).status_code == 201
        assert http.cookies["hermetic_csrf"] == me["csrf"]
        # A GET that changes something, of another application's page: the browser vouches for where it comes from.
        cancel = "/api/chat/cancel?stream_id=x"
        assert (await http.get(cancel)).status_code == 403
        assert (await http.get(cancel, headers={"Sec-Fetch-Site": "cross-site"})).status_code == 403
        assert (await http.get(cancel, headers=PAGE)).status_code == 200
        assert (await http.post("/v1/logout", headers=token)).status_code == 204
        assert (await http.get("/v1/me")).status_code == 401


async def test_a_login_ends_with_its_key_and_outlives_the_server(tenants):
    server = tenants.server
    async with httpx.AsyncClient(base_url=server.url) as http:
        me = await logged_in(tenants, http)
        cookies = dict(http.cookies)
    await server.stop()
    await server.start()
    tenants = Tenants(server)
    async with httpx.AsyncClient(base_url=server.url, cookies=cookies) as http:
        assert (await http.get("/v1/me")).json()["key_id"] == me["key_id"]
        await tenants.call("DELETE", f"/v1/admin/tenants/ann/keys/{me['key_id']}", status=204)
        assert (await http.get("/v1/me")).status_code == 401


async def test_a_cookie_that_somebody_kept_is_dead_after_the_logout(tenants):
    async with httpx.AsyncClient(base_url=tenants.server.url) as http:
        me = await logged_in(tenants, http)
        kept = http.cookies["hermetic_login"]
        await http.post("/v1/logout", headers={"X-CSRF-Token": me["csrf"]})
    async with httpx.AsyncClient(base_url=tenants.server.url, cookies={"hermetic_login": kept}) as http:
        assert (await http.get("/v1/me")).status_code == 401


async def test_a_wrong_key_is_no_login_and_behind_https_the_cookie_is_secure(serve):
    server = await serve('[server]\nurl = "https://agents.example.com"\n')
    tenants = Tenants(server)
    key = (await tenants.add("ann"))["Authorization"].removeprefix("Bearer ")
    async with httpx.AsyncClient(base_url=server.url) as http:
        bad = await http.post("/v1/login", json={"key": "hk_x"})
        assert (bad.status_code, bad.headers.get_list("set-cookie")) == (401, [])
        good = await http.post("/v1/login", json={"key": key})
        cookies = good.headers.get_list("set-cookie")
        assert cookies[0].startswith("__Host-hermetic_login=")
        assert all("; Secure" in cookie and "Path=/" in cookie for cookie in cookies)


# --- tickets ----------------------------------------------------------------------------------------------------------


async def test_a_ticket_opens_one_stream_once(tenants):
    server = tenants.server
    ann = await tenants.add("ann")
    sid = (await server.call("POST", "/v1/sessions", {}, headers=ann))["session_id"]
    turn = (await server.call("POST", f"/v1/sessions/{sid}/turns", {"message": "hi"}, headers=ann))["turn_id"]
    path = f"/v1/turns/{turn}/events"

    async def ticket(body: dict | None = None) -> str:
        return (await server.call("POST", "/v1/tickets", body or {}, headers=ann, status=201))["ticket"]

    async with httpx.AsyncClient(base_url=server.url, timeout=60) as http:
        await http.get("/v1/turns/x/events")
        for given in (await ticket(), await ticket({"turn_id": turn})):
            response = await http.get(path, params={"ticket": given})
            assert response.status_code == 200
            assert "event: stream_end" in response.text
            again = await http.get(path, params={"ticket": given})
            assert again.status_code == 401
        assert (await http.get("/v1/sessions", params={"ticket": await ticket()})).status_code == 401
        other = await ticket({"turn_id": turn})
        assert (await http.get("/v1/turns/0/events", params={"ticket": other})).status_code == 401
        assert (await http.get(path, params={"ticket": other})).status_code == 401, "spent by the wrong turn"
        assert (await http.get(path, params={"ticket": "x"})).status_code == 401
        bob = await tenants.add("bob")
        foreign = await server.call("POST", "/v1/tickets", {"turn_id": turn}, headers=bob, status=404)
        nothing = await server.call("POST", "/v1/tickets", {"turn_id": "0" * 16}, headers=bob, status=404)
        assert foreign["detail"].replace(turn, "0" * 16) == nothing["detail"]
        for_bob = (await server.call("POST", "/v1/tickets", headers=bob, status=201))["ticket"]
        assert (await http.get(path, params={"ticket": for_bob})).status_code == 404
    log = server.log.read_text()
    assert "ht_" not in log


# --- what is refused at the start --------------------------------------------------------------------------------------


def test_a_bind_that_others_can_reach_needs_a_tenant(tmp_path):
    def serve(*more: str) -> subprocess.Popen:
        command = [sys.executable, "-m", "hermetic", "serve", "--bind", "0.0.0.0:0", "--data", str(tmp_path / "d")]
        return subprocess.Popen([*command, *more], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    refused = serve()
    _, err = refused.communicate(timeout=60)
    assert refused.returncode == 2
    assert "there are no tenants" in err
    assert "hermetic tenants add" in err

    def starts(*more: str) -> str:
        with serve(*more) as process:
            assert process.stdout and process.stderr
            first = process.stdout.readline()
            process.terminate()
            _, said = process.communicate(timeout=60)
            assert "is ready" in first, said
        return said

    assert "everyone who can reach this may run commands here" in starts("--insecure")
    add = [sys.executable, "-m", "hermetic", "tenants", "add", "ann", "--data", str(tmp_path / "d")]
    subprocess.run(add, check=True, timeout=60)
    assert "everyone" not in starts()


async def test_tenants_need_a_seal_that_holds_their_turns_apart(tmp_path):
    (tmp_path / "c.toml").write_text("[seal]\nlevel_max = 1\n")
    at = ["--data", str(tmp_path / "d"), "--config", str(tmp_path / "c.toml")]
    add = [sys.executable, "-m", "hermetic", "tenants", "add", "ann", *at]
    await trio.run_process(add, capture_stdout=True)
    serve = [sys.executable, "-m", "hermetic", "serve", "--bind", "127.0.0.1:0", *at]
    refused = await trio.run_process(serve, capture_stdout=True, capture_stderr=True, check=False)
    assert refused.returncode == 2
    assert b"does not hold their turns apart" in refused.stderr
