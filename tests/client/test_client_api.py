"""The client's requests and answers against a scripted HTTP server on a real socket."""

from collections.abc import Callable
from contextlib import asynccontextmanager

import h11
import msgspec
import pytest
import trio

from hermetic.client import BadAnswer, Client, ServerError, Unreachable
from hermetic.protocol import api

SESSION = api.CompactSession(session_id="0123456789ab", title="t", workspace="/w", agent="demo", profile="default")
TURN = api.TurnView(
    turn_id="t1", session_id=SESSION.session_id, state="queued", ended=False, agent="demo", profile="default",
    workspace="/w", message="hi", created_at=1.0,
)  # fmt: skip
ACCEPTED = api.Accepted(turn_id="t1", state="running")

Answer = Callable[[h11.Request, bytes], tuple[int, object] | None]


@asynccontextmanager
async def answering(answer: Answer):
    """A keep-alive HTTP server; `answer` gives (status, body) for a request, or None to hang up on it."""

    async def handle(stream: trio.SocketStream) -> None:
        connection, body, request = h11.Connection(h11.SERVER), b"", None
        async with stream:
            while True:
                event = connection.next_event()
                if event is h11.NEED_DATA:
                    connection.receive_data(await stream.receive_some(65536))
                elif isinstance(event, h11.Request):
                    request, body = event, b""
                elif isinstance(event, h11.Data):
                    body += event.data
                elif isinstance(event, h11.EndOfMessage):
                    if (given := answer(request, body)) is None:
                        return
                    content = given[1] if isinstance(given[1], bytes) else msgspec.json.encode(given[1])
                    head = h11.Response(status_code=given[0], headers=[("content-length", str(len(content)))])
                    for part in (head, h11.Data(content), h11.EndOfMessage()):
                        await stream.send_all(connection.send(part))
                    connection.start_next_cycle()
                else:
                    return

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, handle, 0)
        port = listeners[0].socket.getsockname()[1]
        with trio.fail_after(10):
            async with Client(f"http://127.0.0.1:{port}", heartbeat_s=1) as client:
                yield client
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("call", "method", "target", "body", "answer"),
    [
        (lambda c: c.create_session(api.NewSession(agent="a")), "POST", "/v1/sessions", {"agent": "a"}, SESSION),
        (lambda c: c.list_sessions(limit=5), "GET", "/v1/sessions?limit=5", None, api.SessionList(sessions=[SESSION])),
        (lambda c: c.search_sessions("a b"), "GET", "/v1/search?q=a+b", None, api.SearchResult(hits=[])),
        (lambda c: c.get_session("x/y"), "GET", "/v1/sessions/x%2Fy", None, api.SessionView(**msgspec.structs.asdict(SESSION))),
        (lambda c: c.change_session("s", api.ChangeSession(title="n")), "PATCH", "/v1/sessions/s", {"title": "n"}, SESSION),
        (lambda c: c.start_turn("s", "hi"), "POST", "/v1/sessions/s/turns", {"message": "hi"}, TURN),
        (lambda c: c.get_turn("t1"), "GET", "/v1/turns/t1", None, TURN),
        (lambda c: c.cancel("t1"), "POST", "/v1/turns/t1/cancel", None, ACCEPTED),
        (
            lambda c: c.approve("t1", "a1", "once"), "POST", "/v1/turns/t1/approvals/a1", {"choice": "once"},
            api.ApprovalView(approval_id="a1", choice="once"),
        ),
        (
            lambda c: c.answer("t1", "c1", "yes"), "POST", "/v1/turns/t1/clarifications/c1", {"text": "yes"},
            api.ClarifyView(clarify_id="c1", text="yes"),
        ),
        (lambda c: c.steer("t1", "left"), "POST", "/v1/turns/t1/messages", {"message": "left"}, ACCEPTED),
    ],
)  # fmt: skip
async def test_every_call_sends_what_the_api_asks_for_and_gives_its_answer(call, method, target, body, answer):
    seen = []

    def serve(request, content):
        seen.append((request.method.decode(), request.target.decode(), msgspec.json.decode(content or b"null")))
        return 200, answer

    async with answering(serve) as client:
        assert await call(client) == answer
    (seen_method, seen_target, seen_body) = seen[0]
    assert (seen_method, seen_target) == (method, target)
    assert seen_body is None if body is None else body.items() <= seen_body.items()


async def test_a_session_can_be_deleted_though_nothing_is_answered():
    async with answering(lambda request, body: (204, b"")) as client:
        assert await client.delete_session("s") is None


async def test_a_problem_is_raised_with_its_words():
    problem = api.Problem(
        type="t", title="Busy", status=409, detail="A turn runs.", code="session_busy", fault="client", hint="Wait.",
        turn_id="t7",
    )  # fmt: skip
    async with answering(lambda request, body: (409, problem)) as client:
        with pytest.raises(ServerError, match="A turn runs") as caught:
            await client.start_turn("s", "hi")
    assert caught.value.problem == problem
    assert caught.value.hint == "Wait."


async def test_a_refusal_of_a_stranger_becomes_a_problem_that_names_the_address_and_the_status():
    async with answering(lambda request, body: (502, b"<html>bad gateway</html>")) as client:
        with pytest.raises(ServerError, match="127.0.0.1.*502"):
            await client.health()


async def test_an_answer_of_another_shape_is_refused():
    async with answering(lambda request, body: (200, b'{"hello":"world"}')) as client:
        with pytest.raises(BadAnswer, match="/v1/health"):
            await client.health()


async def test_nobody_at_the_address_is_an_error_with_the_address_and_what_to_do():
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    await listeners[0].aclose()
    async with Client(f"http://127.0.0.1:{port}") as client:
        with pytest.raises(Unreachable, match=f"127.0.0.1:{port}") as caught:
            await client.health()
    assert "hermetic serve" in caught.value.hint


@pytest.mark.parametrize("url", ["", "127.0.0.1:8642", "ftp://host", "http://"])
def test_what_is_not_an_address_is_refused_with_an_example(url):
    with pytest.raises(Unreachable) as caught:
        Client(url)
    assert "http://127.0.0.1:8642" in caught.value.hint


async def test_a_turn_whose_start_broke_is_asked_for_again_under_the_same_key():
    keys = []

    def serve(request, body):
        keys.append(dict(request.headers)[b"idempotency-key"])
        return None if len(keys) == 1 else (202, TURN)

    async with answering(serve) as client:
        assert (await client.start_turn("s", "hi")).turn_id == "t1"
    assert len(keys) == 2 and keys[0] == keys[1]


async def test_what_would_do_harm_twice_is_not_sent_again():
    count = 0

    def serve(request, body):
        nonlocal count
        count += 1

    async with answering(serve) as client:
        with pytest.raises(Unreachable, match="broke"):
            await client.steer("t1", "left")
        with pytest.raises(Unreachable, match="broke"):
            await client.create_session()
    assert count == 2


async def test_the_heartbeat_is_asked_of_the_server_once():
    health = {
        "status": "ok", "version": "0", "protocol": 1, "level": 0, "seal": {"level": 0}, "sessions": 0,
        "active_turns": 0, "queued_turns": 0, "uptime_s": 1, "heartbeat_s": 2.5, "something_newer": True,
    }  # fmt: skip
    count = 0

    def serve(request, body):
        nonlocal count
        count += 1
        return 200, health

    async with answering(serve) as served, Client(served.url) as client:
        assert [await client.heartbeat_s(), await client.heartbeat_s()] == [2.5, 2.5]
    assert count == 1
