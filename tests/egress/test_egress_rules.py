"""What the rules of egress decide: hosts, addresses in every form, ClientHellos, requests to a model, the key's ways."""

from __future__ import annotations

import ssl
from functools import cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hermetic.protocol.errors import ConfigError
from hermetic.supervisor.egress.hello import HELLO_BYTES_MAX, NotAHello, read_hello
from hermetic.supervisor.egress.model_rules import (
    DEFAULT_REQUESTS,
    PLACEHOLDER,
    Key,
    Redactor,
    parse_provider,
    read_key,
)
from hermetic.supervisor.egress.rules import is_public, parse_authority, parse_host, parse_rules

# --- addresses ----------------------------------------------------------------------------------------------------

INSIDE = [
    IPv4Network(n)
    for n in (
        *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12"),
        *("192.168.0.0/16", "198.18.0.0/15", "224.0.0.0/4", "240.0.0.0/4", "168.63.129.16/32", "192.0.0.0/24"),
    )
]
FORMS = {
    "itself": lambda a: a,
    "IPv4-mapped": lambda a: IPv6Address(int(a) | 0xFFFF << 32),
    "IPv4-compatible": lambda a: IPv6Address(int(a)),
    "IPv4-translated": lambda a: IPv6Address(int(a) | 0xFFFF << 48),
    "6to4": lambda a: IPv6Address(0x2002 << 112 | int(a) << 80 | 1),
    "NAT64": lambda a: IPv6Address(0x64_FF9B << 96 | int(a)),
    "local NAT64": lambda a: IPv6Address(0x64_FF9B_0001 << 80 | int(a)),
    "Teredo server": lambda a: IPv6Address(0x2001_0000 << 96 | int(a) << 64 | 0x1234),
    "Teredo client": lambda a: IPv6Address(0x2001_0000 << 96 | int(a) ^ 0xFFFF_FFFF),
    "ISATAP": lambda a: IPv6Address(0x2A00_1450_4001_0800 << 64 | 0x5EFE << 32 | int(a)),
    "global ISATAP": lambda a: IPv6Address(0x2A00_1450_4001_0800 << 64 | 0x0200_5EFE << 32 | int(a)),
}
inside = st.sampled_from(INSIDE).flatmap(
    lambda net: st.integers(int(net.network_address), int(net.broadcast_address)).map(IPv4Address)
)


@given(inside, st.sampled_from(sorted(FORMS)))
def test_no_form_of_an_inside_address_is_public(address: IPv4Address, form: str) -> None:
    assert not is_public(FORMS[form](address))


@pytest.mark.parametrize("net", INSIDE, ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_the_ends_of_inside_networks_in_every_form(net: IPv4Network, form: str) -> None:
    for address in (net.network_address, net.broadcast_address):
        assert not is_public(FORMS[form](address))


@given(st.integers(0, 2**32 - 1).map(IPv4Address) | st.integers(0, 2**128 - 1).map(IPv6Address))
def test_whatever_is_public_here_is_global_to_the_standard_library(address: IPv4Address | IPv6Address) -> None:
    if is_public(address):
        mapped = getattr(address, "ipv4_mapped", None) or address
        assert mapped.is_global or mapped in IPv6Network("64:ff9b::/96")
        assert not (mapped.is_multicast or mapped.is_loopback or mapped.is_link_local or mapped.is_private)


@pytest.mark.parametrize(
    "text",
    ["::", "::1", "fe80::1", "fec0::1", "fc00::1", "fd00:ec2::254", "fd20:ce::254", "ff02::1", "100::1", "2001:db8::1"],
)
def test_an_address_of_no_internet_host_is_not_public(text: str) -> None:
    assert not is_public(ip_address(text))


@pytest.mark.parametrize(
    "text",
    ["8.8.8.8", "151.101.0.223", "2a04:4e42::223", "2606:4700::1111", "64:ff9b::808:808", "::ffff:8.8.8.8"]
    + ["172.15.255.255", "172.32.0.0", "100.63.255.255", "100.128.0.0", "126.255.255.255", "128.0.0.0"],
)
def test_an_address_of_an_internet_host_is_public(text: str) -> None:
    assert is_public(ip_address(text))


# --- hosts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        *("127.1", "0x7f.0.0.1", "0x7f000001", "2130706433", "017700000001", "127.0.0.01", "1.2.3.4.", "0x", "a.0x7f"),
        *("1.2.3", "host.1", "", ".", "a..b", "-a", "a-", "a b", "a/b", "a@b", "a%2eb", "a\0b", "ä.de", "a:b"),
        *(
            "[fe80::1%eth0]",
            "[::1",
            "::1",
            "[1.2.3.4]",
            "[]",
            "a" * 64,
            ".".join(["a" * 60] * 5),
            "a\n",
            "１２７.0.0.1",
        ),
    ],
)
def test_what_is_no_host_in_one_spelling_is_none(text: str) -> None:
    with pytest.raises(ValueError):
        parse_host(text)


def test_a_host_has_one_spelling() -> None:
    assert parse_host("PyPI.Org.") == "pypi.org"
    assert parse_host("192.0.2.1") == IPv4Address("192.0.2.1")
    assert parse_host("[2001:DB8:0::1]") == IPv6Address("2001:db8::1")


@pytest.mark.parametrize(
    "text", ["a", "a:", "a:0", "a:65536", "a:+1", "a:1_0", "a: 1", "[::1]", "[::1]x:1", "a:٣", ":1"]
)
def test_a_connect_target_has_a_host_and_a_port(text: str) -> None:
    with pytest.raises(ValueError):
        parse_authority(text)


@given(st.text(max_size=40) | st.from_regex(r"[a-zA-Z0-9.\[\]:%x_-]{0,30}", fullmatch=True))
def test_any_text_is_a_host_or_a_value_error(text: str) -> None:
    try:
        host, port = parse_authority(text, 443)
    except ValueError:
        return
    assert 1 <= port <= 65535
    again = f"[{host}]" if isinstance(host, IPv6Address) else str(host)
    assert parse_host(again) == host


@given(st.from_regex(r"[a-z0-9.]{1,20}", fullmatch=True), st.integers(1, 65535))
def test_an_empty_list_allows_nothing(host: str, port: int) -> None:
    assert parse_rules([]).refusal(host, port)


def test_names_ports_and_wildcards() -> None:
    rules = parse_rules(["PyPI.org", "*.pythonhosted.org:443", "plain.example:80", "git.example:9418"])
    assert rules.refusal("pypi.org", 443) is None
    assert rules.refusal("pypi.org", 80) == "port_not_listed"
    assert rules.refusal("files.pythonhosted.org", 443) is None
    assert rules.refusal("a.b.pythonhosted.org", 443) is None
    assert rules.refusal("pythonhosted.org", 443) == "host_not_listed"
    assert rules.refusal("evilpythonhosted.org", 443) == "host_not_listed"
    assert rules.refusal("pypi.org.evil.example", 443) == "host_not_listed"
    assert rules.refusal("plain.example", 80) is None
    assert rules.refusal("plain.example", 443) == "port_not_listed"
    assert rules.refusal("git.example", 9418) is None


def test_a_star_is_every_name_and_no_address() -> None:
    rules = parse_rules(["*"])
    assert rules.refusal("anything.example", 443) is None
    assert rules.refusal("anything.example", 80) == "port_not_listed"
    assert rules.refusal(IPv4Address("8.8.8.8"), 443) == "address_not_listed"
    assert rules.address_refusal(IPv4Address("10.0.0.1"), 443) == "address_not_public"


def test_an_address_must_be_named_exactly_and_may_then_be_private() -> None:
    rules = parse_rules(["10.0.0.5:5432", "[fd00::1]", "db.internal:5432"])
    assert rules.refusal(IPv4Address("10.0.0.5"), 5432) is None
    assert rules.refusal(IPv6Address("::ffff:10.0.0.5"), 5432) is None
    assert rules.refusal(IPv4Address("10.0.0.5"), 443) == "address_not_listed"
    assert rules.refusal(IPv4Address("10.0.0.6"), 5432) == "address_not_listed"
    assert rules.refusal(IPv6Address("fd00::1"), 443) is None
    assert rules.address_refusal(IPv4Address("10.0.0.5"), 5432) is None
    assert rules.address_refusal(IPv4Address("10.0.0.5"), 22) == "address_not_public"


@pytest.mark.parametrize(
    "entry",
    [
        *("", "https://pypi.org", "pypi.org/simple", "*pypi.org", "a.*.org", "*.", "**", "*.10.0.0.1", "10.0.0.0/8"),
        *(
            "pypi.org:",
            "pypi.org:0",
            "user@pypi.org",
            "0.0.0.0",
            "224.0.0.1",
            "[::]",
            "255.255.255.255",
            "127.1",
            "::1",
        ),
        *("bücher.example", "*.*", "*:x", " pypi.org"),
    ],
)
def test_what_is_no_entry_is_a_config_error(entry: str) -> None:
    with pytest.raises(ConfigError):
        parse_rules([entry])


# --- ClientHello --------------------------------------------------------------------------------------------------


@cache
def client_hello(name: str | None) -> bytes:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing, server_hostname=name).do_handshake()
    return outgoing.read()


def split_records(hello: bytes, size: int) -> bytes:
    body = hello[5:]
    pieces = [body[i : i + size] for i in range(0, len(body), size)]
    return b"".join(b"\x16\x03\x01" + len(piece).to_bytes(2) + piece for piece in pieces)


def test_the_server_name_is_read_from_a_real_hello_whole_or_byte_by_byte() -> None:
    hello = client_hello("Files.PythonHosted.org")
    for length in range(len(hello)):
        assert read_hello(hello[:length]) is None
    found = read_hello(hello + b"more")
    assert found and found.server_name == "files.pythonhosted.org"


def test_a_hello_in_many_records_is_read_as_one() -> None:
    split = split_records(client_hello("pypi.org"), 7)
    assert read_hello(split[:-1]) is None
    found = read_hello(split)
    assert found and found.server_name == "pypi.org"


def test_a_hello_without_a_name_has_none() -> None:
    found = read_hello(client_hello(None))
    assert found and found.server_name is None


def test_a_hello_that_never_ends_is_refused() -> None:
    head = b"\x01" + (1 << 20).to_bytes(3)
    with pytest.raises(NotAHello):
        read_hello(split_records(b"\0" * 5 + head + b"\0" * HELLO_BYTES_MAX, 4096))


def test_two_names_in_one_hello_are_refused() -> None:
    hello = client_hello("pypi.org")
    name = b"\x00\x00\x08pypi.org"
    extension = b"\x00\x00" + (2 + len(name)).to_bytes(2) + len(name).to_bytes(2) + name
    assert extension in hello
    twice = name + b"\x00\x00\x04evil"
    longer = b"\x00\x00" + (2 + len(twice)).to_bytes(2) + len(twice).to_bytes(2) + twice
    body = bytearray(hello[5:].replace(extension, longer))
    grown = len(longer) - len(extension)
    body[1:4] = (int.from_bytes(body[1:4]) + grown).to_bytes(3)
    at = 4 + 34
    at += 1 + body[at]
    at += 2 + int.from_bytes(body[at : at + 2])
    at += 1 + body[at]
    body[at : at + 2] = (int.from_bytes(body[at : at + 2]) + grown).to_bytes(2)
    with pytest.raises(NotAHello):
        read_hello(b"\x16\x03\x01" + len(body).to_bytes(2) + bytes(body))


@given(st.binary(max_size=200) | st.binary(max_size=200).map(lambda b: b"\x16\x03\x01\x00\xc0\x01\x00\x00\x40" + b))
def test_any_bytes_are_a_hello_or_need_more_or_are_refused(data: bytes) -> None:
    try:
        read_hello(data)
    except NotAHello:
        pass


@given(st.data())
def test_a_damaged_hello_never_breaks_the_reader(data: st.DataObject) -> None:
    hello = bytearray(client_hello("pypi.org"))
    for _ in range(data.draw(st.integers(1, 8))):
        hello[data.draw(st.integers(0, len(hello) - 1))] = data.draw(st.integers(0, 255))
    try:
        read_hello(bytes(hello))
    except NotAHello:
        pass


# --- requests to a model ------------------------------------------------------------------------------------------

OPENAI = parse_provider("https://api.openai.com/v1", DEFAULT_REQUESTS, "authorization", Key("sk-real"))


def test_what_the_default_list_allows() -> None:
    assert OPENAI.allows("POST", "/v1/chat/completions")
    assert OPENAI.allows("GET", "/v1/models")
    assert OPENAI.allows("GET", "/v1/models/gpt-5:latest")
    assert parse_provider("https://api.anthropic.com/").allows("POST", "/v1/messages")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/chat/completions"),  # other tenants' stored answers
        ("DELETE", "/v1/models/gpt-5"),
        ("GET", "/v1/responses/resp_1"),
        ("GET", "/v1/files"),
        ("POST", "/v1/chat/completions/"),
        ("POST", "/v1/chat/completionsx"),
        ("POST", "/chat/completions"),
        ("post", "/v1/chat/completions"),
        ("GET", "/v1/models/../files"),
        ("GET", "/v1/models/./x"),
        ("GET", "/v1/models//files"),
        ("GET", "/v1/models/%2e%2e/files"),
        ("GET", "/v1/models/..%2ffiles"),
        ("GET", "/v1/models/..\\files"),
        ("GET", "/v1/models/..;/files"),
        ("GET", "/v1/models/x\ty"),
        ("GET", "//v1/models"),
        ("GET", "http://evil.example/v1/models"),
        ("GET", "evil.example/v1/models"),
        ("GET", ""),
        ("GET", "*"),
    ],
)
def test_no_other_request_passes(method: str, path: str) -> None:
    assert not OPENAI.allows(method, path)


@given(st.text(max_size=30).map(lambda tail: f"/v1/models/{tail}"))
def test_below_a_prefix_no_path_leads_out_of_it(path: str) -> None:
    if OPENAI.allows("GET", path):
        assert not {"", ".", ".."} & set(path.split("/")[1:])
        assert not set("%\\?#; ") & set(path)


def test_only_the_named_headers_go_up_and_the_key_takes_the_place_of_the_childs() -> None:
    sent = [
        *((b"authorization", b"Bearer stolen"), (b"x-api-key", b"k"), (b"cookie", b"c"), (b"openai-project", b"p")),
        *((b"x-original-url", b"/v1/files"), (b"x-http-method-override", b"DELETE"), (b"host", b"h")),
        *((b"content-type", b"application/json"), (b"x-stainless-lang", b"python"), (b"accept-encoding", b"gzip")),
    ]
    assert OPENAI.request_headers(sent) == [
        (b"content-type", b"application/json"),
        (b"x-stainless-lang", b"python"),
        (b"accept-encoding", b"identity"),
        (b"authorization", b"Bearer sk-real"),
    ]
    other = parse_provider("https://api.anthropic.com", key_header="x-api-key", key=Key("sk-ant"))
    assert (b"x-api-key", b"sk-ant") in other.request_headers(sent)
    assert not any(name == b"authorization" for name, _ in other.request_headers(sent))


def test_no_cookie_account_or_key_comes_down() -> None:
    sent = [
        *((b"Set-Cookie", b"c"), (b"openai-organization", b"acme"), (b"x-request-id", b"sk-real"), (b"server", b"s")),
        *((b"Content-Type", b"text/event-stream"), (b"x-ratelimit-remaining-tokens", b"7"), (b"location", b"/")),
    ]
    assert OPENAI.response_headers(sent) == [
        (b"content-type", b"text/event-stream"),
        (b"x-ratelimit-remaining-tokens", b"7"),
    ]


@given(
    st.lists(
        st.sampled_from([b"s", b"k", b"-", b"sk-", b"real", b"sk-sk-real", b"sk-real", b"\n", b"ss"]), max_size=30
    ),
    st.data(),
)
def test_the_key_never_comes_through_in_any_split_and_nothing_else_is_lost(parts: list[bytes], data) -> None:
    whole = b"".join(parts)
    redactor, passed, at = Redactor(b"sk-real"), b"", 0
    while at < len(whole):
        end = data.draw(st.integers(at + 1, len(whole)))
        passed += redactor.feed(whole[at:end])
        at = end
    passed += redactor.end()
    assert passed == whole.replace(b"sk-real", b"*******")


def test_a_piece_that_cannot_begin_the_key_is_passed_on_at_once() -> None:
    redactor = Redactor(b"sk-real")
    assert redactor.feed(b"data: token\n\n") == b"data: token\n\n"
    assert redactor.feed(b"data: ask") == b"data: a"
    assert redactor.feed(b"ed") == b"sked"


@pytest.mark.parametrize(
    "url",
    [
        *("http://api.openai.com/v1", "http://10.0.0.5:8000/v1", "http://127.0.0.1.evil.example/", "ftp://a", "a", ""),
        *("https://", "https://a/?k=v", "https://a/#f", "https://user:pw@a/", "https://a/v1/../x", "https://a:x/"),
        *("https://a//b", "https://a/%76", "https://ä.de/", "https://a\n/"),
    ],
)
def test_what_is_no_base_url_is_a_config_error(url: str) -> None:
    with pytest.raises(ConfigError):
        parse_provider(url)


@pytest.mark.parametrize(
    "request_", ["/models", "DELETE /models", "GET models", "GET /a b", "GET /a*", "GET /*", "GET //a"]
)
def test_what_is_no_request_is_a_config_error(request_: str) -> None:
    with pytest.raises(ConfigError):
        parse_provider("https://a/v1", [request_])


@pytest.mark.parametrize("header", ["Authorization", "host", "content-length", "a b", "", "a:b", "x\r\ny"])
def test_what_is_no_header_for_a_key_is_a_config_error(header: str) -> None:
    with pytest.raises(ConfigError):
        parse_provider("https://a/v1", key_header=header)


def test_a_key_does_not_show_itself() -> None:
    assert "sk-real" not in f"{OPENAI!r}{OPENAI}{OPENAI.key!r}{[OPENAI]}"
    for value in ("sk real", "sk-réal", "sk\nreal", ""):
        with pytest.raises(ConfigError) as caught:
            read_key("K", {"K": value})
        assert not value or value not in f"{caught.value.message}{caught.value.hint}"
    assert read_key(None, {}) is None
    assert read_key("K", {"K": " sk-real\n"}).value == "sk-real"  # type: ignore[union-attr]
    assert PLACEHOLDER
