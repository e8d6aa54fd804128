"""The CONNECT proxy on real sockets: what passes, what is denied and told, and what a hostile client tries."""

from __future__ import annotations

import ssl
from ipaddress import ip_address

import pytest
import trio
from internet import Internet, WayOut, client_tls, echo, read_all, read_until, server_tls

from hermetic.supervisor.egress import connect
from hermetic.supervisor.egress.network import Network, dial, leads_home
from hermetic.supervisor.egress.wire import Bounds

PUBLIC = "93.184.216.34"
SOON = Bounds(head_s=0.2, idle_s=0.3, attempt_s=0.2, resolve_s=0.2)


async def over_tls(stream: trio.abc.Stream, name: str) -> trio.SSLStream:
    tls = trio.SSLStream(stream, client_tls(), server_hostname=name, https_compatible=True)
    try:
        await tls.do_handshake()
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise
    return tls


def tls_server(context: ssl.SSLContext):
    async def handler(stream: trio.abc.Stream) -> None:
        tls = trio.SSLStream(stream, context, server_side=True, https_compatible=True)
        try:
            await echo(tls)
        except trio.BrokenResourceError:
            pass

    return handler


# --- what passes --------------------------------------------------------------------------------------------------


async def test_a_listed_host_is_reached_by_tls_end_to_end(nursery, internet: Internet, way_out: WayOut) -> None:
    internet.answers["pypi.org"] = [[PUBLIC]]
    await internet.serve(PUBLIC, 443, tls_server(server_tls("pypi.org")))
    await way_out.open(nursery, ["pypi.org"], network=internet.network)
    tls = await over_tls(await way_out.tunnel("PyPI.org:443"), "pypi.org")
    await tls.send_all(b"hello")
    assert await tls.receive_some(100) == b"hello"
    assert internet.asked == ["pypi.org"]
    assert way_out.denied == []
    await tls.transport_stream.aclose()


async def test_a_half_closed_tunnel_carries_the_rest_of_the_other_half(nursery, internet, way_out) -> None:
    internet.answers["git.example"] = [[PUBLIC]]
    await internet.serve(PUBLIC, 9418, echo)
    await way_out.open(nursery, ["git.example:9418"], network=internet.network)
    async with await way_out.tunnel("git.example:9418") as stream:
        await stream.send_all(b"x" * 300_000)
        await stream.send_eof()
        assert await read_all(stream) == b"x" * 300_000 + b"bye"


async def test_a_server_may_speak_first_and_end_first(nursery, internet, way_out) -> None:
    async def greet(stream) -> None:
        await stream.send_all(b"SSH-2.0-server\r\n")
        await stream.send_eof()
        assert await read_all(stream) == b"thanks"
        heard.set()

    heard = trio.Event()
    internet.answers["git.example"] = [[PUBLIC]]
    await internet.serve(PUBLIC, 22, greet)
    await way_out.open(nursery, ["git.example:22"], network=internet.network)
    async with await way_out.tunnel("git.example:22") as stream:
        assert await read_all(stream) == b"SSH-2.0-server\r\n"
        await stream.send_all(b"thanks")
        await stream.send_eof()
        await heard.wait()


async def test_bytes_behind_the_connect_head_are_the_tunnels(nursery, internet, way_out) -> None:
    internet.answers["git.example"] = [[PUBLIC]]
    await internet.serve(PUBLIC, 9418, echo)
    await way_out.open(nursery, ["git.example:9418"], network=internet.network)
    async with await way_out.dial() as stream:
        await stream.send_all(b"CONNECT git.example:9418 HTTP/1.1\r\nHost: a\r\n\r\nearly")
        assert (await read_until(stream, b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
        assert await read_until(stream, b"early") == b"early"


async def test_the_next_address_is_tried_and_inside_ones_are_left_out(nursery, internet, way_out) -> None:
    internet.answers["git.example"] = [["10.0.0.1", "2a04:4e42::223", "::ffff:127.0.0.1", PUBLIC]]
    await internet.serve(PUBLIC, 9418, echo)
    await way_out.open(nursery, ["git.example:9418"], network=internet.network)
    async with await way_out.tunnel("git.example:9418"):
        assert internet.dialled == [("2a04:4e42::223", 9418), (PUBLIC, 9418)]


async def test_plain_http_is_forwarded_to_a_host_listed_with_port_80(nursery, internet, way_out) -> None:
    seen = []

    async def server(stream) -> None:
        seen.append(await read_until(stream, b"hello"))
        await stream.send_all(b"HTTP/1.1 200 Fine\r\nConnection: X-Hop\r\nX-Hop: 1\r\nX-End: 2\r\n\r\nbody")

    internet.answers["plain.example"] = [[PUBLIC]]
    await internet.serve(PUBLIC, 80, server)
    await way_out.open(nursery, ["plain.example:80"], network=internet.network)
    answer = await way_out.say(
        b"POST http://plain.example/a?b=c HTTP/1.1\r\nHost: plain.example\r\nProxy-Connection: keep-alive\r\n"
        b"Proxy-Authorization: Basic eDp5\r\nConnection: X-Mine\r\nX-Mine: 1\r\nUpgrade: websocket\r\n"
        b"Content-Length: 5\r\nX-Kept: 3\r\n\r\nhello"
    )
    assert answer.startswith(b"HTTP/1.1 200 Fine\r\n")
    assert answer.endswith(b"4\r\nbody\r\n0\r\n\r\n")
    assert b"X-End: 2\r\n" in answer and b"X-Hop" not in answer
    [head] = seen
    lines = head.split(b"\r\n")
    assert lines[0] == b"POST /a?b=c HTTP/1.1"
    assert sorted(lines[1:-2]) == [b"Connection: close", b"Content-Length: 5", b"Host: plain.example", b"X-Kept: 3"]


async def test_a_response_passes_as_it_comes(nursery, internet, way_out) -> None:
    go_on = trio.Event()

    async def server(stream) -> None:
        await read_until(stream, b"\r\n\r\n")
        await stream.send_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n")
        await go_on.wait()
        await stream.send_all(b"4\r\nlast\r\n0\r\n\r\n")

    internet.answers["plain.example"] = [[PUBLIC]]
    await internet.serve(PUBLIC, 80, server)
    await way_out.open(nursery, ["plain.example:80"], network=internet.network)
    async with await way_out.dial() as stream:
        await stream.send_all(b"GET http://plain.example/ HTTP/1.1\r\nHost: plain.example\r\n\r\n")
        await read_until(stream, b"first")
        go_on.set()
        assert (await read_all(stream)).endswith(b"4\r\nlast\r\n0\r\n\r\n")


# --- what is denied -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("evil.example:443", "host_not_listed"),
        ("pypi.org:80", "port_not_listed"),
        ("pypi.org:22", "port_not_listed"),
        ("pypi.org.evil.example:443", "host_not_listed"),
        ("127.0.0.1:443", "address_not_listed"),
        ("169.254.169.254:80", "address_not_listed"),
        ("8.8.8.8:443", "address_not_listed"),
        ("[::1]:443", "address_not_listed"),
        ("[::ffff:169.254.169.254]:80", "address_not_listed"),
        ("localhost:443", "host_not_listed"),
    ],
)
async def test_what_is_not_listed_is_denied_and_told(nursery, internet, way_out, target: str, reason: str) -> None:
    await way_out.open(nursery, ["pypi.org", "*.pythonhosted.org"], network=internet.network)
    answer = await way_out.say(f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 403 Egress denied\r\n")
    [event] = way_out.denied
    host, _, port = target.rpartition(":")
    assert (event.method, event.port, event.reason, event.total) == ("CONNECT", int(port), reason, 1)
    assert event.host == host.strip("[]") or event.host.startswith("::ffff")
    assert reason.encode() in answer
    assert internet.asked == [] == internet.dialled, "nothing was looked up, so nothing leaks through names"


async def test_with_an_empty_list_all_is_denied(nursery, internet, way_out) -> None:
    await way_out.open(nursery, [], network=internet.network)
    assert (await way_out.say(b"CONNECT pypi.org:443 HTTP/1.1\r\nHost: a\r\n\r\n")).startswith(b"HTTP/1.1 403 ")
    plain = await way_out.say(b"GET http://pypi.org/x?secret HTTP/1.1\r\nHost: pypi.org\r\n\r\n")
    assert plain.startswith(b"HTTP/1.1 403 ")
    assert [(e.method, e.host, e.port) for e in way_out.denied] == [
        ("CONNECT", "pypi.org", 443),
        ("GET", "pypi.org", 80),
    ]


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "10.1.2.3", "169.254.169.254", "100.100.100.200", "0.0.0.0", "::1", "::", "fd00::1", "fe80::1"),
        *("::ffff:10.0.0.1", "2002:a00:1::", "64:ff9b::a9fe:a9fe", "224.0.0.1", "168.63.129.16", "fd00:ec2::254"),
    ],
)
async def test_a_listed_name_with_an_inside_address_is_denied(nursery, internet, way_out, address: str) -> None:
    internet.answers["pypi.org"] = [[address]]
    await way_out.open(nursery, ["pypi.org"], network=internet.network)
    assert (await way_out.say(b"CONNECT pypi.org:443 HTTP/1.1\r\nHost: a\r\n\r\n")).startswith(b"HTTP/1.1 403 ")
    assert way_out.reasons == ["address_not_public"]
    assert internet.dialled == []


async def test_a_name_that_changes_its_answer_is_asked_once_a_connection_and_judged_each_time(
    nursery, internet, way_out
) -> None:
    internet.answers["rebind.example"] = [[PUBLIC], ["127.0.0.1"]]
    await internet.serve(PUBLIC, 9418, echo)
    await way_out.open(nursery, ["rebind.example:9418"], network=internet.network)
    async with await way_out.tunnel("rebind.example:9418"):
        assert internet.asked == ["rebind.example"]
        assert internet.dialled == [(PUBLIC, 9418)], "the address that was judged is the one that was connected to"
    again = await way_out.say(b"CONNECT rebind.example:9418 HTTP/1.1\r\nHost: a\r\n\r\n")
    assert again.startswith(b"HTTP/1.1 403 ")
    assert internet.dialled == [(PUBLIC, 9418)]


async def test_a_private_address_that_is_named_exactly_is_reached_for_real(nursery, internet, way_out) -> None:
    port = await internet.serve("127.0.0.1", 1, echo)
    await way_out.open(nursery, [f"127.0.0.1:{port}"])
    async with await way_out.tunnel(f"127.0.0.1:{port}") as stream:
        await stream.send_all(b"hello")
        assert await stream.receive_some(10) == b"hello"
    denied = await way_out.say(b"CONNECT 127.0.0.1:1 HTTP/1.1\r\nHost: a\r\n\r\n")
    assert denied.startswith(b"HTTP/1.1 403 ")


async def test_the_hosts_own_address_is_denied_though_it_be_public(nursery, internet, way_out, monkeypatch) -> None:
    port = await internet.serve("127.0.0.1", 1, echo)
    home = await dial(ip_address("127.0.0.1"), port)
    assert leads_home(home, ip_address("127.0.0.1"))
    assert not leads_home(home, ip_address(PUBLIC))

    monkeypatch.setattr(connect, "leads_home", lambda _, address: address == ip_address(PUBLIC))
    await internet.serve(PUBLIC, 443, echo)
    internet.answers["pypi.org"] = [[PUBLIC]]
    await way_out.open(nursery, ["pypi.org"], network=internet.network)
    answer = await way_out.say(b"CONNECT pypi.org:443 HTTP/1.1\r\nHost: a\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 403 ")
    assert way_out.reasons == ["own_address"]
    await home.aclose()


async def test_a_tunnel_whose_hello_names_another_host_is_cut_before_the_server_sees_it(
    nursery, internet, way_out
) -> None:
    seen = trio.Event()
    data = []

    async def server(stream) -> None:
        data.append(await read_all(stream))
        seen.set()

    internet.answers["allowed.example"] = [[PUBLIC]]
    await internet.serve(PUBLIC, 443, server)
    await way_out.open(nursery, ["allowed.example"], network=internet.network)
    with pytest.raises(trio.BrokenResourceError):
        await over_tls(await way_out.tunnel("allowed.example:443"), "fronted.example")
    await seen.wait()
    assert data == [b""]
    assert [(e.reason, e.host) for e in way_out.denied] == [("server_name_differs", "allowed.example")]


@pytest.mark.parametrize(
    "first", [b"GET / HTTP/1.1\r\nHost: fronted.example\r\n\r\n", b"SSH-2.0-x\r\n", b"\x16\x04\x01\x00"]
)
async def test_what_is_not_tls_does_not_pass_to_port_443(nursery, internet, way_out, first: bytes) -> None:
    internet.answers["allowed.example"] = [[PUBLIC]]
    await internet.serve(PUBLIC, 443, echo)
    await way_out.open(nursery, ["allowed.example"], network=internet.network)
    async with await way_out.tunnel("allowed.example:443") as stream:
        await stream.send_all(first)
        assert await read_all(stream) == b""
    assert way_out.reasons == ["not_tls"]


async def test_a_hello_on_another_port_must_name_the_host_too(nursery, internet, way_out) -> None:
    internet.answers["allowed.example"] = [[PUBLIC]]
    await internet.serve(PUBLIC, 8443, echo)
    await way_out.open(nursery, ["allowed.example:8443"], network=internet.network)
    with pytest.raises(trio.BrokenResourceError):
        await over_tls(await way_out.tunnel("allowed.example:8443"), "fronted.example")
    assert way_out.reasons == ["server_name_differs"]


# --- smuggling ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (b"GET http://plain.example/ HTTP/1.1\r\nHost: evil.example\r\n\r\n", "host_header_differs"),
        (b"GET http://plain.example/ HTTP/1.1\r\nHost: plain.example:81\r\n\r\n", "host_header_differs"),
        (b"GET http://plain.example/ HTTP/1.0\r\n\r\n", "host_header_differs"),
        (b"GET http://plain.example/ HTTP/1.1\r\nHost: \r\n\r\n", "host_header_differs"),
        (b"GET http://plain.example:80/ HTTP/1.1\r\nHost: plain.example, evil\r\n\r\n", "host_header_differs"),
        (b"GET http://evil.example/ HTTP/1.1\r\nHost: evil.example\r\n\r\n", "host_not_listed"),
        (b"GET http://169.254.169.254/latest/ HTTP/1.1\r\nHost: 169.254.169.254\r\n\r\n", "address_not_listed"),
    ],
)
async def test_a_plain_request_that_lies_about_its_host_is_denied(
    nursery, internet, way_out, request_: bytes, reason: str
) -> None:
    internet.answers["plain.example"] = [[PUBLIC]]
    await way_out.open(nursery, ["plain.example:80"], network=internet.network)
    assert (await way_out.say(request_)).startswith(b"HTTP/1.1 403 ")
    assert way_out.reasons == [reason]
    assert internet.dialled == []


@pytest.mark.parametrize(
    "request_",
    [
        b"GET / HTTP/1.1\r\nHost: plain.example\r\n\r\n",
        b"GET https://plain.example/ HTTP/1.1\r\nHost: plain.example\r\n\r\n",
        b"GET ftp://plain.example/ HTTP/1.1\r\nHost: plain.example\r\n\r\n",
        b"GET http://plain.example@evil.example/ HTTP/1.1\r\nHost: plain.example\r\n\r\n",
        b"GET http://u:p@plain.example/ HTTP/1.1\r\nHost: plain.example\r\n\r\n",
        b"GET http://plain.example\\@evil.example/ HTTP/1.1\r\nHost: plain.example\r\n\r\n",
        b"GET http://plain.example/#@evil HTTP/1.1\r\nHost: plain.example\r\n\r\n",
        b"GET http:///plain.example/ HTTP/1.1\r\nHost: plain.example\r\n\r\n",
        b"GET http://127.1/ HTTP/1.1\r\nHost: 127.1\r\n\r\n",
        b"TRACE http://plain.example/ HTTP/1.1\r\nHost: plain.example\r\n\r\n",
        b"GET http://plain.example/ HTTP/1.1\r\nHost: plain.example\r\nHost: evil.example\r\n\r\n",
        b"GET http://plain.example/ HTTP/1.1\r\n\r\n",
        b"GET http://plain.example/ HTTP/2.0\r\nHost: plain.example\r\n\r\n",
        b"GET http://plain.example/ a HTTP/1.1\r\nHost: plain.example\r\n\r\n",
        b"POST http://plain.example/ HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST http://plain.example/ HTTP/1.1\r\nHost: plain.example\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"POST http://plain.example/ HTTP/1.1\r\nHost: plain.example\r\nContent-Length: +1\r\n\r\na",
        b"POST http://plain.example/ HTTP/1.1\r\nHost: plain.example\r\nTransfer-Encoding: xchunked\r\n\r\n",
        b"POST http://plain.example/ HTTP/1.1\r\nHost: plain.example\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
        b"CONNECT plain.example HTTP/1.1\r\nHost: a\r\n\r\n",
        b"CONNECT http://plain.example:80/ HTTP/1.1\r\nHost: a\r\n\r\n",
        b"CONNECT plain.example:80 HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello",
        b"CONNECT 2130706433:80 HTTP/1.1\r\nHost: a\r\n\r\n",
        b"CONNECT user@plain.example:80 HTTP/1.1\r\nHost: a\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n",
        b"\x05\x01\x00\r\n\r\n",
        b"garbage\r\n\r\n",
    ],
)
async def test_what_is_no_request_to_a_proxy_gets_an_error_and_goes_nowhere(
    nursery, internet, way_out, request_: bytes
) -> None:
    internet.answers["plain.example"] = [[PUBLIC]]
    await way_out.open(nursery, ["plain.example:80"], network=internet.network)
    answer = await way_out.say(request_)
    assert answer.split(b" ", 2)[1] in (b"400", b"405", b"501", b"505"), answer
    assert answer.count(b"\r\nContent-Type:") == 1
    assert internet.dialled == []


async def test_a_second_request_on_a_connection_is_never_served(nursery, internet, way_out) -> None:
    seen = []

    async def server(stream) -> None:
        seen.append(await read_until(stream, b"\r\n\r\n"))
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        seen.append(await read_all(stream))

    internet.answers["plain.example"] = [[PUBLIC]]
    internet.answers["evil.example"] = [[PUBLIC]]
    await internet.serve(PUBLIC, 80, server)
    await way_out.open(nursery, ["plain.example:80"], network=internet.network)
    one = b"GET http://plain.example/ HTTP/1.1\r\nHost: plain.example\r\n\r\n"
    answer = await way_out.say(one + one.replace(b"plain.", b"evil.") + one)
    assert answer.count(b"HTTP/1.1 ") == 1 and answer.endswith(b"ok")
    assert len(internet.dialled) == 1
    assert b"evil" not in b"".join(seen)


# --- bounds -------------------------------------------------------------------------------------------------------


async def test_a_head_that_comes_too_slowly_is_answered_and_closed(nursery, internet, way_out) -> None:
    await way_out.open(nursery, [], network=internet.network, bounds=SOON)
    assert (await way_out.say(b"CONNECT pypi.o")).startswith(b"HTTP/1.1 408 ")
    assert (await way_out.say(b"")).startswith(b"HTTP/1.1 408 ")


async def test_a_huge_head_is_refused(nursery, internet, way_out) -> None:
    await way_out.open(nursery, [], network=internet.network)
    answer = await way_out.say(b"GET http://a.example/ HTTP/1.1\r\nX: " + b"x" * (1 << 20))
    assert answer.startswith(b"HTTP/1.1 431 ")


async def test_a_hello_that_comes_too_slowly_ends_the_tunnel(nursery, internet, way_out) -> None:
    internet.answers["pypi.org"] = [[PUBLIC]]
    await internet.serve(PUBLIC, 443, echo)
    await way_out.open(nursery, ["pypi.org"], network=internet.network, bounds=SOON)
    async with await way_out.tunnel("pypi.org:443") as stream:
        await stream.send_all(b"\x16\x03")
        assert await read_all(stream) == b""


async def test_an_idle_tunnel_ends(nursery, internet, way_out) -> None:
    internet.answers["git.example"] = [[PUBLIC]]
    await internet.serve(PUBLIC, 9418, echo)
    await way_out.open(nursery, ["git.example:9418"], network=internet.network, bounds=SOON)
    async with await way_out.tunnel("git.example:9418") as stream:
        await stream.send_all(b"a")
        assert await read_all(stream) == b"a"


async def test_a_tunnels_bytes_have_a_bound_where_one_is_set(nursery, internet, way_out) -> None:
    internet.answers["git.example"] = [[PUBLIC]]
    await internet.serve(PUBLIC, 9418, echo)
    await way_out.open(nursery, ["git.example:9418"], network=internet.network, bounds=Bounds(tunnel_bytes_max=1000))
    async with await way_out.tunnel("git.example:9418") as stream:
        await stream.send_all(b"a" * 900)
        assert len(await read_until(stream, b"a" * 900)) == 900
        await stream.send_all(b"a" * 200)
        assert await read_all(stream) == b""


async def test_more_connections_than_the_bound_wait_their_turn(nursery, internet, way_out) -> None:
    internet.answers["git.example"] = [[PUBLIC]]
    await internet.serve(PUBLIC, 9418, echo)
    await way_out.open(nursery, ["git.example:9418"], network=internet.network, bounds=Bounds(connections_max=2))
    first, second = [await way_out.tunnel("git.example:9418") for _ in range(2)]
    async with trio.open_nursery() as inner:
        third: list[trio.SocketStream] = []

        async def open_third() -> None:
            third.append(await way_out.tunnel("git.example:9418"))

        inner.start_soon(open_third)
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert third == []
        await first.aclose()
    await second.aclose()
    await third[0].aclose()


async def test_a_name_that_cannot_be_resolved_or_reached_is_said_so_and_is_no_denial(
    nursery, internet, way_out
) -> None:
    internet.answers["gone.example"] = [[PUBLIC]]
    await way_out.open(nursery, ["none.example", "gone.example"], network=internet.network)
    for host in ("none.example", "gone.example"):
        answer = await way_out.say(f"CONNECT {host}:443 HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        assert answer.startswith(b"HTTP/1.1 502 ") and host.encode() in answer
    assert way_out.denied == []


async def test_a_name_server_that_is_silent_is_not_waited_for(nursery, way_out) -> None:
    async def silent(host, port):
        await trio.sleep_forever()

    await way_out.open(nursery, ["slow.example"], network=Network(resolve=silent), bounds=SOON)
    answer = await way_out.say(b"CONNECT slow.example:443 HTTP/1.1\r\nHost: a\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 504 ")


async def test_a_server_that_answers_garbage_or_dies_is_a_502_or_a_cut(nursery, internet, way_out) -> None:
    answers = [b"\0\1\2garbage\r\n\r\n", b"", b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf"]

    async def server(stream) -> None:
        await read_until(stream, b"\r\n\r\n")
        await stream.send_all(answers.pop(0))

    internet.answers["plain.example"] = [[PUBLIC]]
    await internet.serve(PUBLIC, 80, server)
    await way_out.open(nursery, ["plain.example:80"], network=internet.network)
    one = b"GET http://plain.example/ HTTP/1.1\r\nHost: plain.example\r\n\r\n"
    assert (await way_out.say(one)).startswith(b"HTTP/1.1 502 ")
    assert (await way_out.say(one)).startswith(b"HTTP/1.1 502 ")
    assert (await way_out.say(one)).endswith(b"half")


async def test_of_a_flood_of_denials_some_are_told_and_all_are_counted(nursery, internet, way_out) -> None:
    await way_out.open(nursery, [], network=internet.network, bounds=Bounds(denials_told=3, accepts_per_s=1000))
    for number in [0] * 9 + [1, 2, 3, 4, 5] + [6] * 20:
        await way_out.say(b"CONNECT evil%d.example:443 HTTP/1.1\r\nHost: a\r\n\r\n" % number)
    told = [(event.host, event.total) for event in way_out.denied]
    assert told == [
        ("evil0.example", 1),
        ("evil0.example", 2),
        ("evil0.example", 4),
        ("evil0.example", 8),
        ("evil1.example", 10),
        ("evil2.example", 11),
        ("evil6.example", 22),
    ]


async def test_what_a_client_says_in_a_denial_is_cut(nursery, internet, way_out) -> None:
    await way_out.open(nursery, [], network=internet.network)
    host = ".".join(["a" * 60] * 4)
    await way_out.say(f"CONNECT {host}:443 HTTP/1.1\r\nHost: a\r\n\r\n".encode())
    await way_out.say(f"{'M' * 500} http://{host}/ HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
    assert [len(event.host) for event in way_out.denied] == [243]


async def test_the_end_of_the_turn_closes_listeners_and_tunnels(nursery, internet, way_out) -> None:
    internet.answers["git.example"] = [[PUBLIC]]
    await internet.serve(PUBLIC, 9418, echo)
    await way_out.open(nursery, ["git.example:9418"], network=internet.network)
    async with await way_out.tunnel("git.example:9418") as stream:
        way_out.scope.cancel()
        assert await read_all(stream) == b""
    with pytest.raises(OSError):
        await way_out.dial()
