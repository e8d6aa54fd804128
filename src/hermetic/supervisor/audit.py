"""The audit log as values: who did what, when, each record bound to the one before it.

A record is one line of canonical JSON (members sorted, no white space, whole numbers only, UTF-8), and it holds the
SHA-256 of the line before it. So a line that was changed, taken out or put in breaks the chain at that place, and
nothing but the lines is needed to see it. What a chain cannot show by itself is that its end was cut off, or that all
of it was written anew: that takes a head, `SEQ:HASH` of the last record at some time, kept where who can write the
database cannot write. The server's log names one at each start; `hermetic audit head` prints one.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

import msgspec
from msgspec import Struct, field

from hermetic.protocol.errors import ClientError, HermeticError

GENESIS: Final = "0" * 64
"""What the first record holds in place of a hash."""
DETAIL_CHARACTERS_MAX: Final = 1000
"""Of one text in a record: names and reasons, never a message. What comes from outside is cut here."""


class Act(Struct, frozen=True, kw_only=True):
    """Something that somebody did. Never a secret, a key, or what a user wrote to an agent."""

    action: str
    """Such as `turn.start` or `key.create`: what it was done to, a dot, a verb."""
    actor: str
    """Who: `key:ID`, `user:NAME`, `local`, `system`, or `unknown` for who was refused."""
    tenant: str = ""
    """Whose. Empty: the host's."""
    target: str = ""
    """The identifier of what it was done to."""
    detail: dict[str, str | int | bool | None] = field(default_factory=dict)


class Record(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An act in its place in the chain."""

    seq: int
    at_ms: int
    """Milliseconds since the epoch, by the server's clock. Whole: a float has more than one way to be written."""
    tenant: str
    actor: str
    action: str
    target: str
    detail: dict[str, str | int | bool | None]
    prev: str
    """The SHA-256 of the record before, in hexadecimal."""


class Link(NamedTuple):
    """A record as it is kept: its own line, and what the next one will hold of it."""

    seq: int
    line: bytes
    hash: str

    @property
    def head(self) -> str:
        return f"{self.seq}:{self.hash}"


START: Final = Link(0, b"", GENESIS)
_decode = msgspec.json.Decoder(Record, strict=True).decode
_encode = msgspec.json.Encoder(order="sorted").encode
_HEAD = re.compile(r"([0-9]{1,15}):([0-9a-f]{64})")


class BrokenChain(HermeticError):
    """The log is not what was written. `extra["seq"]`: the first record that cannot be believed."""

    code = "audit_broken"
    status = 500
    fault = "host"
    default_hint = "Somebody has changed the log, or its disk has: compare it with an earlier export or backup."


def following(last: Link, act: Act, at_ms: int) -> Link:
    """The act as the record after `last`."""
    record = Record(
        seq=last.seq + 1,
        at_ms=at_ms,
        tenant=_cut(act.tenant),
        actor=_cut(act.actor),
        action=_cut(act.action),
        target=_cut(act.target),
        detail={_cut(name): _cut(value) if isinstance(value, str) else value for name, value in act.detail.items()},
        prev=last.hash,
    )
    line = _encode(record)
    return Link(record.seq, line, hash_of(line))


def _cut(text: str) -> str:
    return text[:DETAIL_CHARACTERS_MAX].encode("utf-8", "replace").decode()


def hash_of(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()


def parse_head(text: str) -> Link:
    """`SEQ:HASH` → a link without its line. Raises `ClientError`."""
    if not (match := _HEAD.fullmatch(text.strip())):
        raise ClientError(
            f"{text[:80]!r} is not a head", hint="A head is SEQ:HASH, as `hermetic audit head` prints it."
        )
    return Link(int(match[1]), b"", match[2])


def verify(lines: Iterable[bytes], heads: Sequence[Link] = ()) -> Link:
    """Walks the whole log, from its first record. → the last one.

    Raises `BrokenChain` for a line that is no canonical record, is out of its place or does not follow the one before,
    and when a head is not in it: then its end was cut off, or all after some place was written anew.
    """
    wanted = {head.seq: head.hash for head in heads if head.seq}
    if len(wanted) < len({(head.seq, head.hash) for head in heads if head.seq}):
        raise ClientError("two of the heads name one record with two hashes", hint="They are not heads of one log.")
    last = START
    for line in lines:
        last = _next(last, line)
        if last.hash != wanted.pop(last.seq, last.hash):
            raise BrokenChain(f"record {last.seq} is not the one that the head names", seq=last.seq)
    if wanted:
        seq = min(wanted)
        raise BrokenChain(f"the log ends with record {last.seq}; a head names record {seq}", seq=last.seq + 1)
    return last


def _next(last: Link, line: bytes) -> Link:
    seq = last.seq + 1
    try:
        record = _decode(line)
        canonical = _encode(record) == line
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise BrokenChain(f"record {seq} cannot be read: {error}", seq=seq) from None
    if not canonical:
        raise BrokenChain(f"record {seq} is not written as a record is", seq=seq)
    if record.seq != seq:
        raise BrokenChain(f"record {seq} is missing: after {last.seq} comes {record.seq}", seq=seq)
    if record.prev != last.hash:
        raise BrokenChain(f"record {seq} does not follow the one before it, which was changed or is another", seq=seq)
    return Link(seq, line, hash_of(line))
