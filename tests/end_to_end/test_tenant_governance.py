"""Quotas, the fair queue, secrets, the audit log, metrics and logs of a real server, over real HTTP."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys

import httpx
import pytest
import trio
from harness import Server, check_whole, text
from tenancy import Tenants, bearer

from hermetic.supervisor.audit import parse_head, verify
from hermetic.supervisor.secret_box import new_key
from hermetic.supervisor.store.audit_sqlite import read_lines

KEY = "sk-live-4eC39HqLyjWDarjtT1zdp7dc"
TOML = """
[turns]
concurrent_max = {places}
grace_s = 0.2
[agents.mine]
target = "mine:agent"
python_path = ["agents"]
[profiles.work]
{more}
"""
WAITS = """
import os, time
def agent(turn):
    yield "here"
    while not os.path.exists(turn.message):
        time.sleep(0.01)
"""


def toml(places: int = 4, more: str = "") -> str:
    return TOML.format(places=places, more=more)


async def call(server: Server, headers: dict[str, str], method: str, path: str, body: object = None) -> httpx.Response:
    async with httpx.AsyncClient(timeout=60, base_url=server.url, headers=headers) as http:
        return await http.request(method, path, json=body) if body is not None else await http.request(method, path)


async def begin(server: Server, headers: dict[str, str], message: str = "hi", **more: object) -> httpx.Response:
    """A turn in a session of its own."""
    made = await call(server, headers, "POST", "/v1/sessions", {"agent": "mine", **more})
    return await call(server, headers, "POST", f"/v1/sessions/{made.json()['session_id']}/turns", {"message": message})


async def until(server: Server, headers: dict[str, str], turn: str, *states: str) -> dict:
    with trio.fail_after(60):
        while (view := (await call(server, headers, "GET", f"/v1/turns/{turn}")).json())["state"] not in states:
            await trio.sleep(0.02)
    return view


async def records(server: Server, headers: dict[str, str]) -> list[dict]:
    return (await call(server, headers, "GET", "/v1/admin/audit?limit=1000")).json()["records"]


# --- quotas -----------------------------------------------------------------------------------------------------------


async def test_a_quota_refuses_with_its_name_and_a_time_to_come_back_and_outlives_a_crash(serve):
    server = await serve(toml(), agents={"mine": "def agent(turn):\n    return 'x'\n"})
    tenants = Tenants(server)
    acme = await tenants.add("acme", quotas={"turns_per_minute": 2})
    other = await tenants.add("other")
    assert [(await begin(server, acme)).status_code for _ in range(2)] == [202, 202]
    for crash in (False, True):
        if crash:
            server.kill()
            await server.start()
        refused = await begin(server, acme)
        problem = refused.json()
        assert refused.status_code == 429
        assert (problem["code"], problem["quota"], problem["limit"]) == ("quota_exceeded", "turns_per_minute", 2)
        assert 1 <= int(refused.headers["Retry-After"]) <= 30
    assert (await begin(server, other)).status_code == 202, "another's quota is another's"
    await tenants_change(server, "acme", quotas={"turns_per_minute": None})
    assert (await begin(server, acme)).status_code == 202


async def tenants_change(server: Server, tenant: str, **change: object) -> dict:
    return await Tenants(server).call("PATCH", f"/v1/admin/tenants/{tenant}", change)


async def test_tokens_and_money_of_a_day_are_counted_by_what_turns_report(serve):
    code = "def agent(turn):\n    turn.usage(input_tokens=600, output_tokens=400, estimated_cost=0.5)\n"
    server = await serve(toml(), agents={"mine": code})
    tenants = Tenants(server)
    acme = await tenants.add("acme", quotas={"tokens_per_day": 2000})
    for _ in range(2):
        await until(server, acme, (await begin(server, acme)).json()["turn_id"], "done")
    refused = await begin(server, acme)
    assert (refused.status_code, refused.json()["quota"]) == (429, "tokens_per_day")
    assert 1 <= int(refused.headers["Retry-After"]) <= 86_400
    usage = await tenants.call("GET", "/v1/admin/tenants/acme/usage")
    assert [{**day, "day": ""} for day in usage["days"]] == [
        {"day": "", "turns": 2, "input_tokens": 1200, "output_tokens": 800, "cost": 1.0}
    ]
    assert usage["quotas"]["tokens_per_day"] == 2000
    await tenants_change(server, "acme", quotas={"cost_per_day": 1.0})
    assert (await begin(server, acme)).json()["quota"] == "cost_per_day"


async def test_a_full_disk_of_a_tenant_refuses_its_turns(serve):
    code = "def agent(turn):\n    open('big', 'wb').write(b'x' * 300_000)\n    return 'written'\n"
    server = await serve(toml(), agents={"mine": code})
    acme = await Tenants(server).add("acme", quotas={"disk_bytes": 200_000})
    await until(server, acme, (await begin(server, acme)).json()["turn_id"], "done")
    refused = await begin(server, acme)
    assert (refused.status_code, refused.json()["quota"]) == (429, "disk_bytes")


async def test_streams_beyond_the_quota_are_refused_and_one_that_closes_makes_room(serve, tmp_path):
    server = await serve(toml(), agents={"mine": WAITS})
    acme = await Tenants(server).add("acme", quotas={"streams": 1})
    turn = (await begin(server, acme, str(tmp_path / "go"))).json()["turn_id"]
    await until(server, acme, turn, "running")
    host, port = server.url.removeprefix("http://").split(":")
    asked = (
        f"GET /v1/turns/{turn}/events HTTP/1.1\r\nHost: {host}:{port}\r\nAuthorization: {acme['Authorization']}\r\n\r\n"
    )
    async with await trio.open_tcp_stream(host, int(port)) as reader:
        await reader.send_all(asked.encode())
        assert (await reader.receive_some(15)) == b"HTTP/1.1 200 \r\n"[:15]
        for path in (f"/v1/turns/{turn}/events", "/v1/events"):
            refused = await call(server, acme, "GET", path)
            assert (refused.status_code, refused.json()["quota"]) == (429, "streams")
    (tmp_path / "go").touch()
    await until(server, acme, turn, "done")
    assert (await call(server, acme, "GET", f"/v1/turns/{turn}/events")).status_code == 200


async def test_quotas_that_nobody_knows_are_refused(serve):
    tenants = Tenants(await serve(toml(), agents={"mine": WAITS}))
    for quotas in ({"turns": 1}, {"streams": 0}, {"streams": "many"}, {"streams": 1.5}):
        await tenants.call("POST", "/v1/admin/tenants", {"tenant": "acme", "quotas": quotas}, status=400)


# --- the queue --------------------------------------------------------------------------------------------------------


async def test_a_tenant_with_many_turns_does_not_delay_anothers_first(serve, tmp_path):
    server = await serve(toml(places=1), agents={"mine": WAITS})
    tenants = Tenants(server)
    many = await tenants.add("many", quotas={"turns_queued": 6})
    one = await tenants.add("one")
    gates = [tmp_path / f"gate{n}" for n in range(8)]
    queued = [(await begin(server, many, str(gate))).json()["turn_id"] for gate in gates[:7]]
    refused = await begin(server, many)
    assert (refused.status_code, refused.json()["quota"]) == (429, "turns_queued")
    late = (await begin(server, one, str(gates[7]))).json()
    assert late["queue_position"] == 1
    views = [(await call(server, many, "GET", f"/v1/turns/{turn}")).json() for turn in queued]
    assert [view["queue_position"] for view in views] == [None, 2, 3, 4, 5, 6, 7]
    assert (await call(server, many, "POST", f"/v1/turns/{queued[1]}/cancel", {})).json()["state"] == "cancelled"
    gates[0].touch()
    await until(server, one, late["turn_id"], "running")
    assert [(await call(server, many, "GET", f"/v1/turns/{turn}")).json()["state"] for turn in queued] == [
        "done", "cancelled", *["queued"] * 5,
    ]  # fmt: skip
    for gate in gates:
        gate.touch()
    for turn in queued[2:]:
        await until(server, many, turn, "done")


async def test_a_tenant_never_has_more_turns_at_once_than_it_may(serve, tmp_path):
    server = await serve(toml(places=8), agents={"mine": WAITS})
    acme = await Tenants(server).add("acme", quotas={"turns_at_once": 2})
    gate = tmp_path / "gate"
    turns = [(await begin(server, acme, str(gate))).json()["turn_id"] for _ in range(4)]
    await until(server, acme, turns[1], "running")
    states = [(await call(server, acme, "GET", f"/v1/turns/{turn}")).json()["state"] for turn in turns]
    assert states.count("queued") == 2
    gate.touch()
    for turn in turns:
        await until(server, acme, turn, "done")


# --- secrets ----------------------------------------------------------------------------------------------------------

TELLS = """
import base64, hashlib, os, sys
def agent(turn):
    key = os.environ["MY_KEY"]
    yield "sha256 " + hashlib.sha256(key.encode()).hexdigest() + "\\n"
    for letter in "key: " + key + " ":
        yield letter
    turn.reasoning("I think of " + key[:11])
    turn.reasoning(key[11:])
    turn.tool("sh", {"command": "echo " + key}, preview=key).complete("out: " + key)
    print("printed", key)
    sys.stderr.write("err " + key[:9]); sys.stderr.flush()
    sys.stderr.write(key[9:] + "\\n"); sys.stderr.flush()
    turn.title("about " + key)
    yield base64.b64encode(("user:" + key).encode()).decode()
    if turn.message == "fail":
        raise RuntimeError("bad key " + key)
    return None
"""


@pytest.mark.parametrize("message", ["go", "fail"])
async def test_a_secret_reaches_the_turn_and_nothing_else(serve, message):
    environ = {**os.environ, "HERMETIC_SECRETS_KEY": new_key(), "OTHER_TOKEN": "host-token-0123456789"}
    more = 'pass_env = ["OTHER_TOKEN"]'
    server = await serve(toml(more=more), agents={"mine": TELLS}, env=environ)
    tenants = Tenants(server)
    acme = await tenants.add("acme", scopes=["admin"])
    secrets = "/v1/admin/tenants/acme/secrets"
    made = await call(server, acme, "POST", secrets, {"name": "MY_KEY", "value": KEY, "profile": "work"})
    assert made.status_code == 201
    assert KEY not in made.text
    listed = await call(server, acme, "GET", secrets)
    assert [(one["profile"], one["name"]) for one in listed.json()["secrets"]] == [("work", "MY_KEY")]

    turn = (await begin(server, acme, message, profile="work")).json()["turn_id"]
    view = await until(server, acme, turn, "done", "failed")
    async with server.stream(turn, headers=acme) as stream:
        events = [event async for event in stream]
    check_whole(events)
    assert hashlib.sha256(KEY.encode()).hexdigest() in text(events), "the turn has the value itself"
    assert "key: [redacted] " in text(events)
    assert "printed [redacted]" in view["stderr"]
    assert "err [redacted]" in view["stderr"]
    shown = json.dumps(events) + json.dumps(view)
    shown += (await call(server, acme, "GET", f"/v1/sessions/{view['session_id']}")).text
    assert await server.stop() == 0
    files = [path for path in server.data.rglob("*") if path.is_file()]
    kept = b"".join(path.read_bytes() for path in [*files, server.log])
    assert b"MY_KEY" in kept
    for form in (KEY, KEY.encode().hex(), base64.b64encode(KEY.encode()).decode()[:-4], "dXNlcjpzay1saXZl"):
        assert form not in shown
        assert form.encode() not in kept, form


async def test_a_secret_is_its_tenants_alone_and_gone_when_it_is_removed(serve):
    code = "import os\ndef agent(turn):\n    return str('MY_KEY' in os.environ)\n"
    environ = {**os.environ, "HERMETIC_SECRETS_KEY": new_key()}
    server = await serve(toml(), agents={"mine": code}, env=environ)
    tenants = Tenants(server)
    acme, other = await tenants.add("acme", scopes=["admin"]), await tenants.add("other", scopes=["admin"])
    secrets = "/v1/admin/tenants/acme/secrets"
    assert (await call(server, acme, "POST", secrets, {"name": "MY_KEY", "value": KEY})).status_code == 201

    async def has(headers: dict[str, str]) -> str:
        turn = (await begin(server, headers)).json()["turn_id"]
        view = await until(server, headers, turn, "done")
        session = (await call(server, headers, "GET", f"/v1/sessions/{view['session_id']}")).json()
        return session["messages"][-1]["content"]

    assert (await has(acme), await has(other)) == ("True", "False")
    for method, path in (("GET", secrets), ("DELETE", f"{secrets}/default/MY_KEY")):
        assert (await call(server, other, method, path)).status_code == 404
    run = await tenants.key("acme", ["run"])
    assert (await call(server, run, "GET", secrets)).status_code == 403
    assert (await call(server, acme, "DELETE", f"{secrets}/default/MY_KEY")).status_code == 204
    assert (await call(server, acme, "DELETE", f"{secrets}/default/MY_KEY")).status_code == 404
    assert await has(acme) == "False"


async def test_a_server_without_a_key_takes_no_secrets_and_says_so(serve):
    environ = {name: value for name, value in os.environ.items() if name != "HERMETIC_SECRETS_KEY"}
    server = await serve(toml(), agents={"mine": "def agent(turn):\n    return 'x'\n"}, env=environ)
    new = {"name": "MY_KEY", "value": KEY}
    problem = await server.call("POST", "/v1/admin/tenants/local/secrets", new, status=500)
    assert "secrets.key_file" in problem["hint"]
    assert check_whole(await server.run("hi", agent="mine"))["state"] == "done", "who has none needs no key"


# --- the audit log ----------------------------------------------------------------------------------------------------


async def test_the_audit_log_has_who_did_what_and_survives_kill_9(serve, tmp_path):
    code = WAITS.replace('yield "here"', 'yield str(turn.approve("rm x"))')
    server = await serve(toml(), agents={"mine": code})
    tenants = Tenants(server)
    acme = await tenants.add("acme", scopes=["admin"])
    key_id = acme["Authorization"].split("_")[1]
    turn = (await begin(server, acme, str(tmp_path / "never"))).json()["turn_id"]
    view = await until(server, acme, turn, "waiting")
    approval = view["pending"][0]["approval_id"]
    await call(server, acme, "POST", f"/v1/turns/{turn}/approvals/{approval}", {"choice": "once"})
    await call(server, acme, "POST", f"/v1/turns/{turn}/cancel", {})
    assert (await call(server, bearer("hk_000000000000_" + "x" * 43), "GET", "/v1/sessions")).status_code == 401
    assert (await call(server, {}, "POST", "/v1/login", {"key": "nonsense"})).status_code == 401
    assert (await call(server, {}, "POST", "/v1/login", {"key": acme["Authorization"].split()[1]})).status_code == 200
    await until(server, acme, turn, "cancelled")

    page = (await call(server, tenants.operator, "GET", "/v1/admin/audit")).json()
    seen = [(record["action"], record["actor"], record["target"]) for record in page["records"]]
    assert seen == [
        ("server.start", "system", ""),
        ("tenant.add", "operator", "acme"),
        ("key.add", "user:note", key_id),
        ("turn.start", f"key:{key_id}", turn),
        ("turn.approve", f"key:{key_id}", turn),
        ("turn.cancel", f"key:{key_id}", turn),
        ("login.refused", "unknown", "000000000000"),
        ("login.refused", "unknown", ""),
        ("login", f"key:{key_id}", ""),
    ]
    own = await records(server, acme)
    assert {record["tenant"] for record in own} == {"acme"}
    assert (await call(server, acme, "GET", "/v1/admin/audit?tenant=local")).status_code == 404
    server.kill()
    head = parse_head(page["head"])
    assert verify(read_lines(server.data / "hermetic.db"), [head]).seq == head.seq
    assert acme["Authorization"].split()[1] not in json.dumps(page)


async def test_the_command_line_exports_and_verifies(serve, tmp_path):
    server = await serve(toml(), agents={"mine": "def agent(turn):\n    return 'x'\n"})
    await server.run("hi", agent="mine")

    def hermetic(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "hermetic", *arguments], capture_output=True, text=True, check=False
        )

    data = ["--data", str(server.data)]
    exported = await trio.to_thread.run_sync(hermetic, "audit", "export", *data)
    head = (await trio.to_thread.run_sync(hermetic, "audit", "head", *data)).stdout.strip()
    assert exported.stderr.strip() == f"head: {head}"
    file = tmp_path / "audit.jsonl"
    file.write_text(exported.stdout)
    good = await trio.to_thread.run_sync(hermetic, "audit", "verify", str(file), "--head", head)
    assert (good.returncode, f"head: {head}" in good.stdout) == (0, True)
    file.write_text(exported.stdout.replace("turn.start", "turn.stop"))
    bad = await trio.to_thread.run_sync(hermetic, "audit", "verify", str(file), "--head", head)
    assert (bad.returncode, bad.stdout) == (1, "")
    file.write_text("".join(exported.stdout.splitlines(keepends=True)[:-1]))
    cut = await trio.to_thread.run_sync(hermetic, "audit", "verify", str(file), "--head", head)
    assert "the log ends with record" in cut.stderr
    assert (await trio.to_thread.run_sync(hermetic, "audit", "verify", str(file))).returncode == 0


# --- metrics and logs -------------------------------------------------------------------------------------------------


async def test_metrics_say_how_turns_went_to_the_operator_alone(serve):
    server = await serve(toml(), agents={"mine": "def agent(turn):\n    return 'x'\n"})
    for _ in range(2):
        check_whole(await server.run("hi", agent="mine"))
    async with httpx.AsyncClient(base_url=server.url) as http:
        answer = await http.get("/metrics")
        assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        values = dict(line.rsplit(" ", 1) for line in answer.text.splitlines() if not line.startswith("#"))
        assert values['hermetic_turns_ended_total{state="done"}'] == "2.0"
        for name in ("spawn", "first_event", "queue"):
            assert values[f"hermetic_turn_{name}_seconds_count"] == "2.0"
        for state in ("queued", "starting", "running", "waiting", "ending", "cancelling"):
            assert values[f'hermetic_turns{{state="{state}"}}'] == "0.0"
        for name in ("readers", "readers_cut_total", "journal_lag_seconds", "journal_waiting_writes", "seal_level"):
            assert float(values[f"hermetic_{name}"]) >= 0
        assert float(values["hermetic_journal_commits_total"]) > 0
        tenants = Tenants(server)
        acme = await tenants.add("acme", scopes=["admin"])
        assert (await http.get("/metrics")).status_code == 401
        assert (await http.get("/metrics", headers=acme)).status_code == 403
        again = await http.get("/metrics", headers=tenants.operator)
        assert "acme" not in again.text, "no label names a tenant"


async def test_logs_are_one_json_object_a_line_where_that_is_asked_for(serve):
    server = await serve(toml(more='[log]\nformat = "json"\n'), agents={"mine": "def agent(turn):\n    return 'x'\n"})
    await server.run("hi", agent="mine")
    await server.stop()
    lines = [line for line in server.log.read_text().splitlines() if line.startswith("{")]
    said = [json.loads(line) for line in lines]
    assert {"audit_head", "request", "stopping"} <= {one["event"] for one in said}
    assert all({"level", "timestamp"} <= one.keys() for one in said)
