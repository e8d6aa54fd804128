"""Every operation of the OpenAPI document, tried by who must not: without a key, with a dead one, with too small a scope,
and with another tenant's identifiers, which must be answered exactly as identifiers that do not exist."""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

import httpx
import pytest
import trio
from harness import Server
from tenancy import Tenants, bearer

from hermetic.protocol.operations import OPERATIONS, Operation
from hermetic.supervisor.identity import scopes_of

NONE = {
    "session_id": "0" * 12,
    "turn_id": "0" * 16,
    "run_id": "0" * 16,
    "approval_id": "none",
    "clarify_id": "none",
    "tenant": "nobody",
    "user": "nobody",
    "key_id": "0" * 12,
    "profile": "nothing",
    "name": "NOTHING",
}
"""Identifiers that nothing has. A path's own of a kind that is not here make the walk fail: give it one."""
BODIES: dict[str, Any] = {
    "startTurn": {"message": "hi"},
    "startRun": {"message": "hi", "session_id": "SESSION"},
    "giveAnswer": {"text": "x"},
    "answerInRun": {"response": "x"},
    "steerTurn": {"message": "x"},
    "steerRun": {"message": "x"},
    "renameSession": {"title": "taken over"},
    "forgetTurns": {"turn_id": "TURN"},
    "getTicket": {"turn_id": "TURN"},
    "putUser": {"user": "u"},
    "setSecret": {"name": "MY_KEY", "value": "0123456789"},
    "addTenant": {"tenant": "third"},
    "logIn": {"key": "x"},
}
"""What each operation needs in its body; SESSION and TURN stand for identifiers."""
NOT_OF_ONE_THING = {"drain", "startRun"}
"""A drain names nothing; a run in a session that is not there begins it, and is tried below."""


def path_of(operation: Operation, ids: dict[str, str]) -> str:
    return re.sub(r"{(\w+)}", lambda m: ids[m[1]], operation.path)


def body_of(operation: Operation, ids: dict[str, str]) -> Any:
    if operation.request is None:
        return None
    text = json.dumps(BODIES.get(operation.operation_id, {}))
    return json.loads(text.replace("SESSION", ids["session_id"]).replace("TURN", ids["turn_id"]))


async def ask(http: httpx.AsyncClient, operation: Operation, ids: dict[str, str], headers: dict[str, str]):
    path, body = path_of(operation, ids), body_of(operation, ids)
    headers = {**headers, "X-Request-Id": "walk"}
    async with http.stream(operation.method.upper(), path, json=body, headers=headers) as response:
        if response.headers.get("content-type", "").startswith("text/event-stream"):
            return response.status_code, b"a stream", response.headers
        return response.status_code, await response.aread(), response.headers


def without_ids(data: bytes, ids: dict[str, str]) -> bytes:
    for value in sorted(ids.values(), key=len, reverse=True):
        data = data.replace(value.encode(), b"ID")
    return data


class World(NamedTuple):
    server: Server
    tenants: Tenants
    ann: dict[str, str]
    """Headers with all scopes of her tenant, as Bob's."""
    bob: dict[str, str]
    ids: dict[str, str]
    """Ann's."""


@pytest.fixture
async def world(serve) -> World:
    server = await serve()
    tenants = Tenants(server)
    ann = await tenants.add("ann", scopes=["admin"])
    bob = await tenants.add("bob", scopes=["admin"])
    session = await server.call("POST", "/v1/sessions", {"title": "Plum pudding"}, headers=ann)
    sid = session["session_id"]
    turn = await server.call("POST", f"/v1/sessions/{sid}/turns", {"message": "ask me"}, headers=ann)
    with trio.fail_after(60):  # it waits for an answer then, and nothing of it changes by itself
        while not (await server.call("GET", f"/v1/turns/{turn['turn_id']}", headers=ann))["pending"]:
            await trio.sleep(0.02)
    await server.call("POST", "/v1/admin/tenants/ann/users", {"user": "zoe"}, headers=ann)
    keys = (await server.call("GET", "/v1/admin/tenants/ann/keys", headers=ann))["keys"]
    ids = {
        **NONE,
        "session_id": sid,
        "turn_id": turn["turn_id"],
        "run_id": turn["turn_id"],
        "tenant": "ann",
        "user": "zoe",
        "key_id": keys[0]["key_id"],
    }
    return World(server, tenants, ann, bob, ids)


def walked() -> list[Operation]:
    return [operation for operation in OPERATIONS if operation.scope != "open"]


async def test_another_tenants_identifiers_answer_as_those_that_do_not_exist(world):
    server, _, ann, bob, ids = world
    none = {**NONE, "session_id": "1" * 12}
    tried = 0
    async with httpx.AsyncClient(base_url=server.url, timeout=60) as http:
        before = await snapshot(http, ann, ids)
        for operation in walked():
            if operation.operation_id in NOT_OF_ONE_THING or "{" not in operation.path + json.dumps(
                BODIES.get(operation.operation_id, "")
            ).replace("TURN", "{"):
                continue
            theirs = await ask(http, operation, ids, bob)
            nobodys = await ask(http, operation, none, bob)
            assert theirs[0] == nobodys[0] >= 400, (operation.operation_id, theirs, nobodys)
            assert without_ids(theirs[1], ids) == without_ids(nobodys[1], none), operation.operation_id
            assert sorted(theirs[2]) == sorted(nobodys[2]), operation.operation_id
            tried += 1
        assert tried > 25
        assert await snapshot(http, ann, ids) == before, "nothing of Ann's has changed"
        for path in ("/v1/sessions", "/v1/search?q=plum", "/v1/sessions?q=plum", "/v1/turns", "/api/sessions"):
            answer = (await http.get(path, headers=bob)).text
            assert ids["session_id"] not in answer
            assert ids["turn_id"] not in answer
        first = await first_event(server, "/v1/events", ann)
        assert ids["turn_id"].encode() in first
        cursor = next(line for line in first.split(b"\n") if line.startswith(b"id: "))[4:].decode()
        for asked in ("", f"?session_id={ids['session_id']}", f"?after={cursor}"):
            heard = await first_event(server, f"/v1/events{asked}", bob)
            assert heard.startswith((b"retry:", b"id:")), heard
            assert b"event: reset" in heard
            assert ids["turn_id"].encode() not in heard
        health = (await http.get("/v1/health", headers=bob)).json()
        assert (health["sessions"], health["active_turns"], health["queued_turns"]) == (0, 0, 0)
        # The same name is free for Bob, and gives him nothing of Ann's.
        run = (await http.post("/v1/runs", json={"message": "hi", "session_id": ids["session_id"]}, headers=bob)).json()
        assert run["session_id"] == ids["session_id"]
        mine = (await http.get(f"/v1/sessions/{ids['session_id']}", headers=bob)).json()
        assert "Plum" not in json.dumps(mine)
        assert "ask me" not in json.dumps(mine)
        assert await snapshot(http, ann, ids) == before


async def first_event(server: Server, path: str, headers: dict[str, str]) -> bytes:
    """Read without a client, which would not let go of a stream that has no end."""
    host = server.url.removeprefix("http://")
    name, port = host.split(":")
    heard = b""
    async with await trio.open_tcp_stream(name, int(port)) as socket:
        asked = f"GET {path} HTTP/1.1\r\nHost: {host}\r\nAuthorization: {headers['Authorization']}\r\n\r\n"
        await socket.send_all(asked.encode())
        while b"\n\n" not in heard:
            data = await socket.receive_some(4096)
            assert data, heard
            heard += data
    head, _, body = heard.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200"), head
    return body.partition(b"\r\n")[2].partition(b"\n\n")[0]  # without the length of the chunk


async def snapshot(http: httpx.AsyncClient, headers: dict[str, str], ids: dict[str, str]) -> list[Any]:
    shown = []
    for path in (
        f"/v1/sessions/{ids['session_id']}",
        f"/v1/turns/{ids['turn_id']}",
        "/v1/sessions",
        f"/v1/admin/tenants/{ids['tenant']}/users",
    ):
        response = await http.get(path, headers=headers)
        assert response.status_code == 200, response.text
        shown.append(response.json())
    return shown


async def test_without_a_key_with_a_dead_one_or_too_small_a_scope_every_operation_is_refused(world):
    server, tenants, ann, _, ids = world
    dead = await tenants.key("ann", ["admin"])
    key_id = dead["Authorization"].removeprefix("Bearer hk_")[:12]
    await tenants.call("DELETE", f"/v1/admin/tenants/ann/keys/{key_id}", status=204)
    old = await tenants.key("ann", ["admin"], expires_s=0.001)
    wrong = {"Authorization": ann["Authorization"][:-1] + ("A" if ann["Authorization"][-1] != "A" else "B")}
    async with httpx.AsyncClient(base_url=server.url, timeout=60) as http:
        before = await snapshot(http, ann, ids)
        for operation in walked():
            for name, headers in {
                "none": {},
                "revoked": dead,
                "expired": old,
                "wrong": wrong,
                "made up": bearer("hk_000000000000_" + "A" * 43),
                "no key": bearer("x"),
                "basic": {"Authorization": "Basic eDp5"},
                "empty": {"Authorization": "Bearer"},
                "a cookie": {"Cookie": "hermetic_login=x"},
            }.items():
                status, data, got = await ask(http, operation, ids, headers)
                assert status == 401, (operation.operation_id, name, status, data)
                assert json.loads(data)["code"] == "unauthorized"
                assert got["www-authenticate"] == "Bearer"
                assert got["x-request-id"] == "walk" == json.loads(data)["request_id"]
        assert await snapshot(http, ann, ids) == before


@pytest.mark.parametrize("held", ["read", "run", "admin"])
async def test_a_scope_opens_what_it_names_and_nothing_above(world, held):
    server, tenants = world.server, world.tenants
    key = await tenants.key("ann", [held])
    none = {**NONE, "tenant": "ann"}  # nothing is found, so nothing that is allowed is done
    async with httpx.AsyncClient(base_url=server.url, timeout=60) as http:
        for operation in walked():
            if operation.operation_id in ("drain", "startRun", "createSession", "logOut"):
                continue
            status, data, _ = await ask(http, operation, none, key)
            allowed = operation.scope in scopes_of([held])
            refused = status == 403 and json.loads(data)["code"] == "missing_scope"
            assert refused is not allowed, (operation.operation_id, operation.scope, held, status, data)


async def test_a_drain_is_for_the_operator_alone(world):
    server, tenants, ann, _, _ = world
    assert (await server.call("POST", "/v1/drain", headers=ann, status=403))["code"] == "missing_scope"
    await tenants.call("POST", "/v1/drain", status=202)
    assert await server.wait() == 0
