"""The model proxy on real sockets, over real TLS: the key goes up and never comes down, tokens pass as they come."""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable

import h11
import openai
import pytest
import trio
from internet import CA, Internet, WayOut, read_all, read_until, server_tls

from hermetic.supervisor.egress.model import open_upstream
from hermetic.supervisor.egress.model_rules import DEFAULT_REQUESTS, PLACEHOLDER, Key, parse_provider
from hermetic.supervisor.egress.wire import Bounds

KEY = "sk-real-7f3a9c"
BODY = b'{"model":"m"}'


def post(body: bytes = BODY, path: str = "/v1/chat/completions", more: bytes = b"") -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: model\r\nAuthorization: Bearer {PLACEHOLDER}\r\n"
    return head.encode() + more + b"Content-Length: " + str(len(body)).encode() + b"\r\n\r\n" + body


class Upstream:
    """A provider. `script` answers one request: it gets the head, the body and the stream to write on."""

    def __init__(self) -> None:
        self.heads: list[h11.Request] = []
        self.bodies: list[bytes] = []
        self.script: Callable[[trio.abc.Stream], Awaitable[None]] = self.answer_ok
        self.connections = 0

    async def answer_ok(self, stream: trio.abc.Stream) -> None:
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}")

    def headers(self, index: int = 0) -> dict[bytes, bytes]:
        return dict(self.heads[index].headers)

    def tls(self, context) -> Callable[[trio.abc.Stream], Awaitable[None]]:
        async def handler(stream: trio.abc.Stream) -> None:
            await self(trio.SSLStream(stream, context, server_side=True, https_compatible=True))

        return handler

    async def __call__(self, stream: trio.abc.Stream) -> None:
        self.connections += 1
        try:
            while True:
                connection = h11.Connection(h11.SERVER)
                body = b""
                while not isinstance(event := connection.next_event(), h11.EndOfMessage):
                    if event is h11.NEED_DATA:
                        data = await stream.receive_some(65536)
                        if not data:
                            return
                        connection.receive_data(bytes(data))
                    elif isinstance(event, h11.Request):
                        self.heads.append(event)
                    elif isinstance(event, h11.Data):
                        body += event.data
                self.bodies.append(body)
                await self.script(stream)
        except (trio.BrokenResourceError, trio.ClosedResourceError, h11.RemoteProtocolError):
            pass


@pytest.fixture
def upstream() -> Upstream:
    return Upstream()


@pytest.fixture
async def transport(tmp_path, monkeypatch):
    CA.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))  # the host's trust store
    async with open_upstream() as opened:
        yield opened


@pytest.fixture
async def model(nursery, internet: Internet, way_out: WayOut, upstream: Upstream, transport):
    """`await model()` → a WayOut in front of the upstream."""

    async def start(*, header: str = "authorization", tls_name: str = "localhost", **more) -> WayOut:
        port = await internet.serve("", 0, upstream.tls(server_tls(tls_name)))
        provider = parse_provider(f"https://localhost:{port}/v1", DEFAULT_REQUESTS, header, Key(KEY))
        return await way_out.open(nursery, [], provider=provider, transport=transport, **more)

    return start


def error_of(answer: bytes) -> dict[str, object]:
    error = json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


# --- the key ------------------------------------------------------------------------------------------------------


async def test_the_key_takes_the_place_of_the_childs_credentials(model, upstream: Upstream) -> None:
    out = await model()
    more = b"X-Api-Key: mine\r\nCookie: c=1\r\nOpenAI-Organization: o\r\nX-Original-URL: /v1/files\r\nX-Title: t\r\n"
    answer = await out.say(post(more=more), 1)
    assert answer.startswith(b"HTTP/1.1 200 ") and answer.endswith(b"\r\n\r\n{}")
    assert upstream.heads[0].target == b"/v1/chat/completions"
    assert upstream.bodies == [BODY]
    headers = upstream.headers()
    assert headers.pop(b"host").startswith(b"localhost:")
    assert headers == {
        b"authorization": f"Bearer {KEY}".encode(),
        b"x-title": b"t",
        b"content-length": b"13",
        b"accept-encoding": b"identity",
    }
    assert out.denied == []


async def test_the_key_can_go_in_another_header(model, upstream: Upstream) -> None:
    out = await model(header="x-api-key")
    await out.say(post(more=b"X-Api-Key: mine\r\n"), 1)
    assert upstream.headers()[b"x-api-key"] == KEY.encode()
    assert b"authorization" not in upstream.headers()


async def test_a_provider_that_repeats_the_key_does_not_hand_it_on(model, upstream: Upstream, capfd) -> None:
    echoes = [
        b"HTTP/1.1 200 " + KEY.encode() + b"\r\nX-Request-Id: " + KEY.encode() + b"\r\nSet-Cookie: k=" + KEY.encode()
        + b"\r\nContent-Length: 20\r\n\r\n123" + KEY.encode() + b"456",
        b"HTTP/1.1 400 Bad\r\nTransfer-Encoding: chunked\r\n\r\n7\r\n" + KEY[:7].encode() + b"\r\n7\r\n" + KEY[7:].encode()
        + b"\r\n0\r\n\r\n",
        b"HTTP/1.1 401 No\r\nContent-Length: 14\r\n\r\nsk-rea****3a9c",
        b"HTTP/1.1 302 Go\r\nLocation: https://evil.example/" + KEY.encode() + b"\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 14\r\n\r\n" + KEY.encode(),
        b"HTTP/1.1 200 OK\r\nX: " + KEY.encode() + b"\0\r\n\r\n",
        KEY.encode() + b"\r\n\r\n",
    ]  # fmt: skip

    async def echo_key(stream) -> None:
        await stream.send_all(echoes.pop(0))
        await stream.aclose()

    upstream.script = echo_key
    logging.getLogger("httpcore2").setLevel(logging.DEBUG)
    out = await model()
    answers = [await out.say(post(), 1) for _ in range(len(echoes))]
    assert [int(answer.split(b" ", 2)[1]) for answer in answers] == [200, 400, 401, 502, 502, 502, 502]
    assert answers[0].endswith(b"123" + b"*" * len(KEY) + b"456")
    assert [error_of(answer)["code"] for answer in answers[2:]] == [
        *("key_refused", "upstream_redirect", "upstream_encoding", "upstream_error", "upstream_error")
    ]
    seen = b"".join(answers) + "".join(capfd.readouterr()).encode()
    for piece in (KEY, "evil.example", "3a9c"):
        assert piece.encode() not in seen


async def test_cookies_of_a_provider_are_kept_for_nobody(model, upstream: Upstream) -> None:
    async def give_cookie(stream) -> None:
        await stream.send_all(b"HTTP/1.1 200 OK\r\nSet-Cookie: session=1\r\nContent-Length: 0\r\n\r\n")

    upstream.script = give_cookie
    out = await model()
    assert b"ookie" not in await out.say(post(), 1)
    await out.say(post(), 1)
    assert b"cookie" not in upstream.headers(1)
    assert upstream.connections == 1, "the connection to the provider is used again"


# --- streaming ----------------------------------------------------------------------------------------------------


async def test_each_token_is_with_the_child_before_the_next_is_sent(model, upstream: Upstream) -> None:
    tokens = [f"data: {n} sk-\n\n".encode() for n in range(5)]
    arrived = trio.Semaphore(0)

    async def stream_tokens(stream) -> None:
        await stream.send_all(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        for token in tokens:
            await stream.send_all(f"{len(token):x}\r\n".encode() + token + b"\r\n")
            await arrived.acquire()
        await stream.send_all(b"0\r\n\r\n")

    upstream.script = stream_tokens
    out = await model()
    async with await out.dial(1) as child:
        await child.send_all(post())
        for token in tokens:
            await read_until(child, token)
            arrived.release()
        assert await read_all(child) == b"\r\n0\r\n\r\n"


async def test_the_parts_of_a_request_pass_as_they_come(nursery, internet, way_out, transport) -> None:
    first = trio.Event()

    async def server(stream) -> None:
        await read_until(stream, b"5\r\nfirst\r\n")
        first.set()
        await read_until(stream, b"4\r\nlast\r\n0\r\n\r\n")
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    provider = parse_provider(f"http://127.0.0.1:{await internet.serve('', 0, server)}/v1")
    out = await way_out.open(nursery, [], provider=provider, transport=transport)
    async with await out.dial(1) as child:
        await child.send_all(
            b"POST /v1/responses HTTP/1.1\r\nHost: m\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n"
        )
        await first.wait()
        await child.send_all(b"4\r\nlast\r\n0\r\n\r\n")
        assert (await read_all(child)).startswith(b"HTTP/1.1 200 ")


async def test_when_the_child_hangs_up_the_provider_is_hung_up_on(model, upstream: Upstream) -> None:
    began, left = trio.Event(), trio.Event()

    async def never_ending(stream) -> None:
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: a\n\n")
        began.set()
        await read_all(stream)
        left.set()

    upstream.script = never_ending
    out = await model()
    child = await out.dial(1)
    await child.send_all(post())
    await began.wait()
    await child.aclose()
    with trio.fail_after(10):
        await left.wait()


async def test_a_provider_that_is_thinking_is_hung_up_on_as_well(model, upstream: Upstream) -> None:
    began, left = trio.Event(), trio.Event()

    async def silent(stream) -> None:
        began.set()
        await read_all(stream)
        left.set()

    upstream.script = silent
    out = await model()
    child = await out.dial(1)
    await child.send_all(post())
    await began.wait()
    await child.aclose()
    with trio.fail_after(10):
        await left.wait()


async def test_a_provider_that_dies_in_the_middle_is_seen_as_cut(model, upstream: Upstream) -> None:
    async def die(stream) -> None:
        await stream.send_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
        await trio.aclose_forcefully(stream)

    upstream.script = die
    out = await model()
    answer = await out.say(post(), 1)
    assert answer.startswith(b"HTTP/1.1 200 ") and answer.endswith(b"5\r\nhello\r\n"), "no end of the chunks"


async def test_openais_client_streams_through_it(model, upstream: Upstream) -> None:
    async def completion(stream) -> None:
        chunks = [{"choices": [{"index": 0, "delta": {"content": text}}]} for text in ("Hello", " there")]
        events = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"
        head = f"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: {len(events)}\r\n\r\n"
        await stream.send_all(head.encode() + events.encode())

    upstream.script = completion
    out = await model()

    def ask() -> str:
        with openai.OpenAI(base_url=f"{out.model_url}/v1", api_key=PLACEHOLDER, max_retries=0) as client:
            parts = client.chat.completions.create(model="m", messages=[], stream=True)
            said = "".join(part.choices[0].delta.content or "" for part in parts)
            with pytest.raises(openai.PermissionDeniedError, match="path_not_allowed"):
                client.files.list()
        return said

    assert await trio.to_thread.run_sync(ask) == "Hello there"
    assert upstream.headers()[b"authorization"] == f"Bearer {KEY}".encode()
    assert [(e.method, e.path) for e in out.denied] == [("GET", "/v1/files")]


# --- what is denied, and what goes wrong --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "target",
    [
        *("/v1/files", "/v1/models/../files", "/v1/models/%2e%2e/files", "//v1/models", "/v1/chat/completions"),
        *("http://evil.example/v1/models", "/v1/models/x%2f..%2f..%2ffiles", "/v1/models/x#y", "*", "/v1/models?a#b"),
    ],
)
async def test_another_path_is_denied_and_told_without_its_query(model, upstream: Upstream, target: str) -> None:
    out = await model()
    answer = await out.say(f"GET {target} HTTP/1.1\r\nHost: m\r\n\r\n".encode(), 1)
    assert answer.startswith(b"HTTP/1.1 403 ")
    assert error_of(answer)["code"] == "path_not_allowed"
    [event] = out.denied
    assert (event.host, event.reason, event.path) == ("localhost", "path_not_allowed", target.partition("?")[0])
    assert upstream.heads == []


async def test_a_query_goes_along(model, upstream: Upstream) -> None:
    out = await model()
    assert (await out.say(b"GET /v1/models?limit=5&after=%20x HTTP/1.1\r\nHost: m\r\n\r\n", 1)).startswith(
        b"HTTP/1.1 200 "
    )
    assert upstream.heads[0].target == b"/v1/models?limit=5&after=%20x"


async def test_a_second_request_on_a_connection_is_thrown_away(model, upstream: Upstream) -> None:
    out = await model()
    answer = await out.say(post() + b"GET /v1/files HTTP/1.1\r\nHost: m\r\n\r\n" + post(), 1)
    assert answer.count(b"HTTP/1.1 ") == 1
    assert len(upstream.heads) == 1 and upstream.bodies == [BODY]


@pytest.mark.parametrize(
    "request_",
    [
        b"POST /v1/responses HTTP/1.1\r\nHost: m\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /v1/responses HTTP/1.1\r\nHost: m\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nabcd",
        b"POST /v1/responses HTTP/1.1\r\nHost: m\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        b"POST /v1/responses HTTP/1.1\r\nHost: m\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nabc\r\n0\r\n\r\n",
        b"POST /v1/responses HTTP/1.1\r\nHost: m\r\nA b: c\r\n\r\n",
        b"garbage\r\n\r\n",
    ],
)
async def test_a_request_with_two_meanings_gets_an_error_and_reaches_no_answer(
    model, upstream: Upstream, request_: bytes
) -> None:
    out = await model()
    answer = await out.say(request_, 1)
    assert answer.split(b" ", 2)[1] in (b"400", b"501"), answer
    assert error_of(answer)["code"] == "malformed_request"
    assert upstream.bodies == []


async def test_a_body_that_is_too_large_is_refused(model, upstream: Upstream) -> None:
    out = await model(bounds=Bounds(body_bytes_max=1000))
    answer = await out.say(post(b"x" * 5000), 1)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert error_of(answer)["code"] == "too_large"
    assert upstream.bodies == []


async def test_a_provider_with_a_certificate_of_another_name_is_unreachable(model, upstream: Upstream) -> None:
    out = await model(tls_name="other.example")
    answer = await out.say(post(), 1)
    assert answer.startswith(b"HTTP/1.1 502 ")
    assert error_of(answer)["type"] == "upstream_error"
    assert upstream.heads == [], "no key is sent to whom we do not know"


async def test_a_provider_that_is_not_there_is_a_502(nursery, way_out, transport) -> None:
    [gone] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    url = f"http://127.0.0.1:{gone.socket.getsockname()[1]}"
    await gone.aclose()
    out = await way_out.open(nursery, [], provider=parse_provider(url), transport=transport)
    answer = await out.say(post(path="/chat/completions"), 1)
    assert answer.startswith(b"HTTP/1.1 502 ")
    assert error_of(answer)["code"] == "upstream_unreachable"


async def test_a_provider_that_says_nothing_is_a_504(model, upstream: Upstream) -> None:
    async def silent(stream) -> None:
        await read_all(stream)

    upstream.script = silent
    out = await model(bounds=Bounds(think_s=0.2))
    answer = await out.say(post(), 1)
    assert answer.startswith(b"HTTP/1.1 504 ")
    assert error_of(answer)["code"] == "upstream_timeout"


async def test_an_error_of_the_provider_comes_through_with_what_clients_wait_by(model, upstream: Upstream) -> None:
    async def limit(stream) -> None:
        body = b'{"error":{"message":"slow down"}}'
        await stream.send_all(
            b"HTTP/1.1 429 Too Many\r\nRetry-After: 7\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
        )

    upstream.script = limit
    out = await model()
    answer = await out.say(post(), 1)
    assert answer.startswith(b"HTTP/1.1 429 ") and b"retry-after: 7\r\n" in answer and b"slow down" in answer


async def test_a_model_server_on_this_machine_needs_no_tls_and_no_key(nursery, internet, way_out, upstream, transport):
    port = await internet.serve("", 0, upstream)
    provider = parse_provider(f"http://127.0.0.1:{port}/v1")
    out = await way_out.open(nursery, [], provider=provider, transport=transport)
    assert (await out.say(post(), 1)).startswith(b"HTTP/1.1 200 ")
    assert b"authorization" not in upstream.headers()


async def test_a_head_that_is_too_slow_or_too_long_is_refused_in_the_clients_form(model) -> None:
    out = await model(bounds=Bounds(head_s=0.2))
    assert error_of(await out.say(b"POST /v1/re", 1))["code"] == "timeout"
    assert (
        error_of(await out.say(b"POST /v1/responses HTTP/1.1\r\nX: " + b"x" * 100_000, 1))["code"]
        == "malformed_request"
    )
