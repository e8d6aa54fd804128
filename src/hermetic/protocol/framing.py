"""Bytes ↔ lines ↔ structs, without I/O.

A frame is one line: a JSON object in UTF-8, then LF. A line has a hard limit; more is an error that ends the stream,
never a growing buffer. Control characters are refused even where JSON would allow them as white space: the
supervisor forwards a frame's own bytes to readers, and in a server-sent event a CR ends a line (WHATWG HTML, 9.2.6), so
that `{"event":"token",<CR>"text":…}` would let an agent write SSE fields of its own.

Each line is decoded alone. `Decoder.decode_lines` on the whole chunk would be some tenths of a microsecond cheaper per
event, but it accepts a value broken over two lines and two values on one, so its results and the lines that are
forwarded could disagree.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Generic, TypeVar

import msgspec

from hermetic.protocol import commands, events
from hermetic.protocol.errors import FrameTooLong, ProtocolError

FRAME_BYTES_MAX = 1 << 20
"""One MiB: a hundred times the largest delta that a provider sends, and a thousandth of what hurts a server."""

T = TypeVar("T")
_CONTROL = re.compile(rb"[\x00-\x09\x0b-\x1f]")


class LineSplitter:
    """Feeds on bytes in any split, yields whole lines without their LF.

    Holds at most `frame_bytes_max` bytes between two feeds. Raises `FrameTooLong` for a line beyond the limit and
    `ProtocolError` for a control character or an end in the middle of a line; after an error it is spent.
    """

    def __init__(self, frame_bytes_max: int = FRAME_BYTES_MAX) -> None:
        self._frame_bytes_max = frame_bytes_max
        self._parts: list[bytes] = []
        self._held = 0

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yields the good lines first, then raises: what was said before the fault is not lost."""
        *ends, rest = data.split(b"\n")
        for end in ends:
            self._check(end)
            line = b"".join((*self._parts, end)) if self._parts else end
            self._parts, self._held = [], 0
            yield line
        if rest:
            self._check(rest)
            self._parts.append(rest)
            self._held += len(rest)

    def _check(self, part: bytes) -> None:
        if self._held + len(part) > self._frame_bytes_max:
            raise FrameTooLong(f"a frame is longer than {self._frame_bytes_max} bytes")
        if bad := _CONTROL.search(part):
            raise ProtocolError(f"the stream has a control character (byte 0x{part[bad.start()]:02x})")

    def close(self) -> None:
        """The stream has ended: nothing may be left."""
        if self._held:
            raise ProtocolError(f"the stream ended in the middle of a frame, after {self._held} bytes of it")


class FrameDecoder(Generic[T]):
    """Bytes in any split → `(frame, struct)` pairs; the frame is the line's own bytes, validated."""

    def __init__(self, decoder: msgspec.json.Decoder[T], frame_bytes_max: int = FRAME_BYTES_MAX) -> None:
        self._decoder = decoder
        self._lines = LineSplitter(frame_bytes_max)

    def feed(self, data: bytes) -> list[tuple[bytes, T]]:
        """Raises `ProtocolError` when the bytes do not hold; frames before the bad one in the same feed are in the
        error's `extra["before"]`, so that nothing said is lost."""
        before: list[tuple[bytes, T]] = []
        try:
            for line in self._lines.feed(data):
                before.append((line, self._decoder.decode(line)))
        except ProtocolError as error:
            error.extra["before"] = before
            raise
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise ProtocolError(f"a frame cannot be read: {error}", before=before) from error
        return before

    def close(self) -> None:
        self._lines.close()


def event_decoder(frame_bytes_max: int = FRAME_BYTES_MAX) -> FrameDecoder[events.ChildEvent]:
    """For the supervisor's end of the event stream."""
    return FrameDecoder(msgspec.json.Decoder(events.ChildEvent), frame_bytes_max)


def command_decoder(frame_bytes_max: int) -> FrameDecoder[commands.AnyCommand]:
    """For the child's end of the command stream."""
    return FrameDecoder(msgspec.json.Decoder(commands.AnyCommand), frame_bytes_max)


def frame(message: events.Event | commands.Command) -> bytes:
    """One struct → one line with its LF.

    Text that UTF-8 cannot carry (lone surrogates, as from `os.fsdecode`) is replaced, never an error.
    """
    try:
        return events.encode(message) + b"\n"
    except UnicodeEncodeError:
        return events.encode(_scrubbed(msgspec.to_builtins(message))) + b"\n"


def _scrubbed(value: object) -> object:
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, dict):
        return {_scrubbed(k): _scrubbed(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_scrubbed(v) for v in value]
    return value
