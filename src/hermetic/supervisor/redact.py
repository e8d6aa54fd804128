"""Keeps a turn's secrets out of what it says: before the journal, so before any reader.

An agent that prints its environment, or a tool that echoes a key in an error, does so by accident, and that is what this
is for. It is no wall: who can run code in a turn can also write a key backwards. The walls are the seal, the list of
hosts that a turn may reach, and not giving a turn the key at all (docs/egress.md).

What is looked for is each value as it is, escaped as in JSON and in URLs, in hexadecimal, and in base64 at each of its
three alignments, so also within something longer. A long value is looked for in pieces (PIECES), so that a part of it,
as in a preview that was cut, does not pass either; an end of a text that is at least half of a piece counts as well.

A streamed text comes in parts of any size. What is held back of it is only what could be the beginning of a piece, so
never more than one piece, and only until the next part, or until something is said that the words before it must precede.
`Scrubber` gives the same text for any split (a property test holds it to that).
"""

from __future__ import annotations

import base64
import codecs
import json
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final, TypeVar
from urllib.parse import quote

import msgspec
from msgspec import Struct

from hermetic.protocol import events
from hermetic.supervisor.config import is_secret_name
from hermetic.supervisor.egress.model_rules import PLACEHOLDER

MARK: Final = "[redacted]"
VALUE_CHARACTERS_MIN: Final = 8
"""A shorter value would be found everywhere: `true`, `8080`, `admin`."""
PIECE_CHARACTERS_MIN: Final = 64
LINE_CHARACTERS_MIN: Final = 16
LINES_MAX: Final = 64
"""A PEM key of 4,096 bits has 50."""
PIECES: Final = 8
"""A value is looked for in so many pieces at most, each of PIECE_CHARACTERS_MIN or more: a few of a key's, of a
certificate's 1,700 characters each 212."""
CUT: Final = ("...", "…")
"""What stands after a text that was cut: `Tool.args` and many tools write so."""

FINDS_MAX: Final = 200
"""Searching a text for one piece after the other takes a third of a nanosecond a character and piece, looking up each of
its places in a table sixty: the searches are cheaper for fewer pieces than this."""

Frame = tuple[bytes, Any]
T = TypeVar("T")


def secret_values(environment: Mapping[str, str], names: Iterable[str] = ()) -> list[str]:
    """The values of a turn's environment that are secrets: of `names`, and of all whose name looks like it, but for the
    placeholder that stands where there is no key."""
    known = set(names)
    held = {name: value for name, value in environment.items() if name in known or is_secret_name(name)}
    return [value for value in held.values() if value != PLACEHOLDER]


def pieces_of(values: Iterable[str]) -> list[str]:
    """All that is to be looked for, the longest first."""
    found: dict[str, None] = {}
    for value in values:
        for form in _forms(value):
            size = max(PIECE_CHARACTERS_MIN, -(-len(form) // PIECES))
            cut = [form[at : at + size] for at in range(0, len(form), size)]
            if len(cut) > 1 and len(cut[-1]) < VALUE_CHARACTERS_MIN:
                cut[-2:] = [cut[-2] + cut[-1]]
            found |= dict.fromkeys(piece for piece in cut if len(piece) >= VALUE_CHARACTERS_MIN)
        found |= dict.fromkeys(_lines(value))
    return sorted(found, key=len, reverse=True)


def repeats_itself(value: str) -> bool:
    """Whether a long piece of `value` is a short one over and over. To look for that takes the square of its length."""
    return any(len(piece) >= PIECE_CHARACTERS_MIN and _period(piece) < len(piece) // 2 for piece in pieces_of([value]))


def _period(text: str) -> int:
    """The smallest shift at which `text` agrees with itself (Knuth, Morris and Pratt)."""
    border = [0] * len(text)
    for at in range(1, len(text)):
        size = border[at - 1]
        while size and text[at] != text[size]:
            size = border[size - 1]
        border[at] = size + (text[at] == text[size])
    return len(text) - border[-1]


def _lines(value: str) -> list[str]:
    """Of a value of more than one, such as a PEM key: others indent it, or fold it."""
    lines = [line.strip() for line in value.split("\n")]
    return [line for line in lines if len(line) >= LINE_CHARACTERS_MIN and not line.startswith("-----")][:LINES_MAX]


def _forms(value: str) -> Iterator[str]:
    for text in dict.fromkeys((value, value.strip())):
        if len(text) < VALUE_CHARACTERS_MIN:
            continue
        data = text.encode("utf-8", "surrogateescape")
        yield text
        yield json.dumps(text)[1:-1]
        yield json.dumps(text, ensure_ascii=False)[1:-1]
        yield quote(data, safe="")
        yield quote(data)
        yield data.hex()
        yield data.hex().upper()
        for shift in range(3):
            # What lies before the value is not known, so a digit that has a bit of it is left out; so at the end.
            encoded = base64.b64encode(b"\0" * shift + data)
            begin, bits = -(-shift * 8 // 6), (shift + len(data)) * 8
            inner = encoded[begin : bits // 6].decode()
            yield inner
            yield inner.translate(_URL_SAFE)


_URL_SAFE: Final = str.maketrans("+/", "-_")


class Scrubber:
    """One text, in parts. `feed` gives what may be said of it by now, `close` the rest; then it may begin anew."""

    def __init__(self, pieces: list[str]) -> None:
        self._pieces = pieces
        self._sorted = sorted(pieces)
        self._heads = frozenset(piece[0] for piece in pieces)
        self._by_gram: dict[str, list[str]] = {}
        for piece in pieces:
            self._by_gram.setdefault(piece[:VALUE_CHARACTERS_MIN], []).append(piece)
        self._longest = max(map(len, pieces), default=1) - 1
        self._held = ""
        self._covered: int | None = None
        """So many of the first held characters belong to something that was marked, and the mark is said. 0: the text
        before them ended with a mark."""

    def feed(self, part: str) -> str:
        text = self._held + part if self._held else part
        spans, end = self._spans(text), self._hold_from(text)
        if not spans and end == len(text) and self._covered is None:
            self._held = ""
            return text
        return self._say(text, spans, end)

    def close(self) -> str:
        text = self._held
        spans = self._spans(text)
        if (beginning := self._cut_piece(text)) is not None:
            spans.append(beginning)
        said = self._say(text, spans, len(text))
        self._covered = None
        return said

    def _say(self, text: str, spans: list[tuple[int, int]], end: int) -> str:
        """`text` up to `end`, and marks for the spans that begin before it."""
        said: list[str] = []
        at, marked = 0, self._covered is not None
        if self._covered:
            at = self._covered
        for begin, stop in sorted(spans):
            if begin >= end and begin > at:
                break
            if begin > at:
                said.append(text[at:begin])
                marked = False
            if not marked:
                said.append(MARK)
                marked = True
            at = max(at, stop)
        if at < end:
            said.append(text[at:end])
            at, marked = end, False
        self._held = text[end:]
        self._covered = at - end if marked else None
        return "".join(said)

    def _spans(self, text: str) -> list[tuple[int, int]]:
        """Wherever a piece is; they may overlap."""
        if len(text) < VALUE_CHARACTERS_MIN:  # most words of a stream
            return []
        spans = []
        if len(self._pieces) > max(min(len(text), FINDS_MAX), 1):
            for at in range(len(text) - VALUE_CHARACTERS_MIN + 1):
                for piece in self._by_gram.get(text[at : at + VALUE_CHARACTERS_MIN], ()):
                    if text.startswith(piece, at):
                        spans.append((at, at + len(piece)))
        else:
            for piece in self._pieces:
                at = text.find(piece)
                while at >= 0:
                    spans.append((at, at + len(piece)))
                    at = text.find(piece, at + 1)
        return spans

    def _beginning_with(self, text: str) -> Iterator[str]:
        for index in range(bisect_left(self._sorted, text), len(self._sorted)):
            if not self._sorted[index].startswith(text):
                return
            yield self._sorted[index]

    def _hold_from(self, text: str) -> int:
        """Where the longest end of the text begins that is the beginning of a piece, and not all of it."""
        for at in range(max(0, len(text) - self._longest), len(text)):
            if text[at] in self._heads:
                end = text[at:]
                if any(len(piece) > len(end) for piece in self._beginning_with(end)):
                    return at
        return len(text)

    def _cut_piece(self, text: str) -> tuple[int, int] | None:
        """The end of a text that will not go on, where that is at least half of a piece."""
        for at in range(len(text) - VALUE_CHARACTERS_MIN + 1):
            size = len(text) - at
            if any(len(piece) // 2 <= size < len(piece) for piece in self._beginning_with(text[at:])):
                return at, len(text)
        return None

    def whole(self, text: str) -> str:
        """A text that does not go on; between two others."""
        cut = next((cut for cut in CUT if text.endswith(cut)), "")
        return self.feed(text.removesuffix(cut)) + self.close() + cut


class BytesScrubber:
    """The same for bytes that should be UTF-8 and need not be, such as what a child prints."""

    def __init__(self, pieces: list[str]) -> None:
        self._scrubber = Scrubber(pieces)
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")

    def feed(self, part: bytes) -> bytes:
        return self._scrubber.feed(self._decoder.decode(part)).encode("utf-8", "surrogateescape")

    def close(self) -> bytes:
        rest = self._scrubber.feed(self._decoder.decode(b"", final=True)) + self._scrubber.close()
        return rest.encode("utf-8", "surrogateescape")


class Redactor:
    """One turn's. Without secrets there is none, and nothing of this is done."""

    def __init__(self, values: Iterable[str]) -> None:
        self._pieces = pieces_of(values)
        self._whole = Scrubber(self._pieces)
        self._streams: dict[type[events.Event], Scrubber] = {
            kind: Scrubber(self._pieces) for kind in (events.Token, events.Reasoning)
        }

    def __bool__(self) -> bool:
        return bool(self._pieces)

    def text(self, text: str) -> str:
        return self._whole.whole(text)

    def value(self, value: T) -> T:
        """The same value where it has no secret in it, else one without."""
        clean: T = _mapped(value, self.text)
        return clean

    def scrubber(self) -> BytesScrubber:
        """For a stream of its own, such as stderr."""
        return BytesScrubber(self._pieces)

    def frames(self, frames: list[Frame]) -> list[Frame]:
        """Events of the child, in order → those that may be journaled. One that has nothing to hide keeps its own bytes.

        A word of the answer may be held back until the next one. Before anything that a person sees behind the answer
        (a tool's call, a question, the end) all of it is said; what is only about the turn (its usage, its title) may
        come between two words and does not count.
        """
        out: list[Frame] = []
        for frame, event in frames:
            if (stream := self._streams.get(type(event))) is not None:
                text = stream.feed(event.text)
                if text == event.text:
                    out.append((frame, event))
                elif text:
                    out.append(_framed(type(event)(text=text)))
                continue
            if not isinstance(event, events.Metering | events.Title):
                out += self.rest()
            clean = self.value(event)
            out.append((frame, event) if clean is event else _framed(clean))
        return out

    def rest(self) -> list[Frame]:
        """What is held back, when nothing follows it."""
        return [_framed(kind(text=text)) for kind, stream in self._streams.items() if (text := stream.close())]


def _framed(event: Any) -> Frame:
    return events.encode(event), event


def _mapped(value: Any, change: Callable[[str], str]) -> Any:
    """Every text in `value`, keys of mappings too; members' names and tags are not texts of the child's."""
    match value:
        case str():
            changed = change(value)
            return value if changed == value else changed
        case dict():
            items = [(_mapped(key, change), _mapped(member, change)) for key, member in value.items()]
            same = all(key is k and member is m for (k, m), (key, member) in zip(value.items(), items, strict=True))
            return value if same else dict(items)
        case list():
            members = [_mapped(member, change) for member in value]
            return value if all(a is b for a, b in zip(value, members, strict=True)) else members
        case Struct():
            fields = {name: getattr(value, name) for name in value.__struct_fields__}
            clean = {name: _mapped(member, change) for name, member in fields.items()}
            differing = {name: member for name, member in clean.items() if member is not fields[name]}
            return msgspec.structs.replace(value, **differing) if differing else value
    return value
