"""Which hosts a sealed turn may reach, as plain functions over values: nothing is looked up or connected here.

Two questions are asked of every connection. Before the name is resolved: is this host, with this port, on the list?
After it: is this address one that a host on the Internet can have? The second is what stands between a tenant and
the host's own network, because whoever owns a listed domain decides what its name resolves to (DNS rebinding); so it
is asked of the very address that is then connected to, in whatever form it comes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Final

from msgspec import Struct

from hermetic.protocol.errors import ConfigError

Address = IPv4Address | IPv6Address
Host = str | Address
"""A name in lower case without a trailing dot, or an address."""

DEFAULT_PORT: Final = 443
"""Of an entry without a port. Plain HTTP can be read and changed on its way, so port 80 must be named."""

_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_NUMERIC = re.compile(r"(?:.*\.)?(?:[0-9]+|0x[0-9a-f]*)")
"""A name whose last label is a number: the C library reads `127.1`, `0x7f.1` and `2130706433` as addresses, and a name
of the DNS never ends in one (RFC 1123 2.1, URL Standard "ends in a number")."""


# --- addresses ----------------------------------------------------------------------------------------------------

_DENIED_4: Final = tuple(
    IPv4Network(network)
    for network in (
        "0.0.0.0/8",  # "this network"; 0.0.0.0 connects to this very machine
        "10.0.0.0/8",  # private
        "100.64.0.0/10",  # carrier-grade NAT; clouds put metadata servers here (100.100.100.200)
        "127.0.0.0/8",  # loopback
        "168.63.129.16/32",  # Azure's host agent, the one metadata address in a public range
        "169.254.0.0/16",  # link-local, with the metadata address of most clouds, 169.254.169.254
        "172.16.0.0/12",  # private
        "192.0.0.0/24",  # protocol assignments; a metadata address of Oracle's cloud
        "192.0.2.0/24",  # documentation
        "192.88.99.0/24",  # 6to4 relays
        "192.168.0.0/16",  # private
        "198.18.0.0/15",  # benchmarks
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, and the broadcast address
    )
)
"""RFC 6890 and IANA's registry of special-purpose addresses, with what clouds have made of them."""

_GLOBAL_6: Final = IPv6Network("2000::/3")
"""All that IANA has given out as global unicast. Everything else is denied by not being in it: loopback, unique local
(fc00::/7, with the metadata addresses of Amazon's and Google's clouds), link-local, site-local, multicast, IPv4-mapped
and -compatible forms, the discard prefix, local NAT64 (64:ff9b:1::/48)."""
_DENIED_6: Final = tuple(
    IPv6Network(network)
    for network in (
        "2001::/23",  # protocol assignments: Teredo, which hides an IPv4 address, benchmarks, ORCHID
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4, which hides an IPv4 address, and is no longer used (RFC 7526)
        "3fff::/20",  # documentation
    )
)
_NAT64: Final = IPv6Network("64:ff9b::/96")
"""How a host with IPv6 alone sees the IPv4 Internet (RFC 6052): as good as the IPv4 address in its last 32 bits."""
_ISATAP: Final = (0x0000_5EFE, 0x0200_5EFE)
"""The first half of an interface id that hides an IPv4 address in its second half (RFC 5214 6.1)."""


def canonical(address: Address) -> Address:
    """`::ffff:a.b.c.d` is the IPv4 address for everyone who connects to it, so it is one here too."""
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address


def is_public(address: Address) -> bool:
    """Whether a host on the Internet can have this address. What nobody has thought of is not public."""
    address = canonical(address)
    if isinstance(address, IPv4Address):
        return not any(address in network for network in _DENIED_4)
    last_32 = IPv4Address(int(address) & 0xFFFF_FFFF)
    if address in _NAT64:
        return is_public(last_32)
    if address not in _GLOBAL_6 or any(address in network for network in _DENIED_6):
        return False
    return (int(address) >> 32) & 0xFFFF_FFFF not in _ISATAP or is_public(last_32)


# --- hosts --------------------------------------------------------------------------------------------------------


def parse_host(text: str) -> Host:
    """`Example.org.`, `192.0.2.1`, `[2001:db8::1]` → a `Host`. Raises ValueError for anything else.

    An address has one spelling here: no `127.1`, no `0x7f.0.0.1`, no leading zeros, no zone.
    """
    if text.startswith("[") and text.endswith("]"):
        if "%" in text:
            raise ValueError("an address with a zone")
        return IPv6Address(text[1:-1])
    if not text.isascii():  # before lower(), which makes an ASCII k of the Kelvin sign
        raise ValueError("not ASCII")
    name = text.lower().removesuffix(".")
    if _NUMERIC.fullmatch(name):
        return IPv4Address(text)
    if len(name) > 253 or not _NAME.fullmatch(name):
        raise ValueError("neither a host name nor an address")
    return name


def parse_authority(text: str, default_port: int | None = None) -> tuple[Host, int]:
    """`host:port` (RFC 9112 3.2.3) → both. Without a port it has the default one. Raises ValueError."""
    host, colon, port = text.rpartition(":")
    if not colon or text.endswith("]"):
        if default_port is None:
            raise ValueError("no port")
        return parse_host(text), default_port
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and 1 <= int(port) <= 65535):
        raise ValueError("not a port")
    return parse_host(host), int(port)


class Rules(Struct, frozen=True, kw_only=True):
    """An allow-list. Empty, it allows nothing."""

    names: frozenset[tuple[str, int]] = frozenset()
    suffixes: tuple[tuple[str, int], ...] = ()
    """`(".example.org", 443)`: every name below example.org, not itself. `("", 443)`: every name."""
    addresses: frozenset[tuple[Address, int]] = frozenset()
    """Named one by one, so these may be private: that is the host's own decision."""

    def refusal(self, host: Host, port: int) -> str | None:
        """Why this may not be asked for; None: it may. A name's address is judged when it is known."""
        if not isinstance(host, str):
            return None if (canonical(host), port) in self.addresses else "address_not_listed"
        if (host, port) in self.names or any(port == p and host.endswith(suffix) for suffix, p in self.suffixes):
            return None
        known = any(host == name for name, _ in self.names) or any(host.endswith(s) for s, _ in self.suffixes)
        return "port_not_listed" if known else "host_not_listed"

    def address_refusal(self, address: Address, port: int) -> str | None:
        """Why an address that a listed name has resolved to may not be connected to; None: it may."""
        if is_public(address) or self.is_named(address, port):
            return None
        return "address_not_public"

    def is_named(self, address: Address, port: int) -> bool:
        return (canonical(address), port) in self.addresses


def parse_rules(entries: Iterable[str]) -> Rules:
    """`["pypi.org", "*.pythonhosted.org:443", "10.0.0.5:5432"]` → Rules. Raises `ConfigError` for what is no entry."""
    names, suffixes, addresses = set(), set(), set()
    for entry in entries:
        try:
            wildcard, host, port = _entry(entry)
        except ValueError:
            raise ConfigError(
                f'"{entry}" is not HOST, HOST:PORT, *.DOMAIN or *.DOMAIN:PORT',
                hint="Write names in ASCII (xn--… for others), without http:// and without a path; an IPv6 address in [ ].",
            ) from None
        if isinstance(host, str):
            if wildcard:
                suffixes.add((host, port))
            else:
                names.add((host, port))
            continue
        address = canonical(host)
        if address.is_unspecified or address.is_multicast or address == IPv4Address("255.255.255.255"):
            raise ConfigError(f'"{entry}" is not the address of one host', hint="Take it out of the list.")
        addresses.add((address, port))
    return Rules(names=frozenset(names), suffixes=tuple(sorted(suffixes)), addresses=frozenset(addresses))


def _entry(text: str) -> tuple[bool, Host, int]:
    host, colon, port = text.partition(":")
    if host == "*":
        return True, "", parse_authority(f"any{colon}{port}", DEFAULT_PORT)[1]
    wildcard = text.startswith("*.")
    parsed, number = parse_authority(text.removeprefix("*."), DEFAULT_PORT)
    if wildcard and not isinstance(parsed, str):
        raise ValueError("a wildcard needs a name")
    return wildcard, f".{parsed}" if wildcard else parsed, number
