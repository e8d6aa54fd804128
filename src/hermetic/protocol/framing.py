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
from typing import Any, Generic, TypeVar

import msgspec

from hermetic.protocol import commands, events
from hermetic.protocol.errors import FrameTooLong, ProtocolError

FRAME_BYTES_MAX = 1 << 20
"""One MiB: a hundred times the largest delta that a provider sends, and a thousandth of what hurts a server."""

NESTING_MAX = 100
"""Levels of lists and mappings in a result's messages. Providers' messages nest about ten deep. msgspec refuses what
reaches the interpreter's recursion limit, but that limit counts the caller's stack too, so without a bound of our own a
value that was decoded here could be too deep to be encoded again where the stack is deeper."""

T = TypeVar("T")
_EVENTS = msgspec.json.Decoder(events.ChildEvent)
_COMMANDS = msgspec.json.Decoder(commands.AnyCommand)
"""Made once: making the larger one takes as long as decoding a hundred events."""
_CONTROL = re.compile(rb"[\x00-\x09\x0b-\x1f]")


class LineSplitter:
    """Feeds on bytes in any split, yields whole lines without their LF.

    Holds at most `frame_bytes_max` bytes between two feeds, in one bytearray: a list of what came in would cost a
    hostile child one byte and us an object. Raises `FrameTooLong` for a line beyond the limit and `ProtocolError` for a
    control character or an end in the middle of a line; the first fault by position counts, so that the split of the
    bytes never decides which it is. After an error it is spent.
    """

    def __init__(self, frame_bytes_max: int = FRAME_BYTES_MAX) -> None:
        self._frame_bytes_max = frame_bytes_max
        self._held = bytearray()

    @property
    def held_bytes(self) -> int:
        """Of the line that has not ended yet."""
        return len(self._held)

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yields the good lines first, then raises: what was said before the fault is not lost."""
        *ends, rest = data.split(b"\n")
        for end in ends:
            self._check(end)
            if self._held:
                self._held += end
                line = bytes(self._held)
                self._held = bytearray()
            else:
                line = end
            yield line
        if rest:
            self._check(rest)
            self._held += rest

    def _check(self, part: bytes) -> None:
        room = self._frame_bytes_max - len(self._held)
        if bad := _CONTROL.search(part, 0, room):
            raise ProtocolError(f"the stream has a control character (byte 0x{part[bad.start()]:02x})")
        if len(part) > room:
            raise FrameTooLong(f"a frame is longer than {self._frame_bytes_max} bytes")

    def close(self) -> None:
        """The stream has ended: nothing may be left."""
        if self._held:
            raise ProtocolError(f"the stream ended in the middle of a frame, after {len(self._held)} bytes of it")


class FrameDecoder(Generic[T]):
    """Bytes in any split → `(frame, struct)` pairs; the frame is the line's own bytes, validated.

    After an error it is spent: every later call raises an error with the same message.
    """

    def __init__(self, decoder: msgspec.json.Decoder[T], frame_bytes_max: int = FRAME_BYTES_MAX) -> None:
        self._decoder = decoder
        self._lines = LineSplitter(frame_bytes_max)
        self._fault: ProtocolError | None = None

    @property
    def held_bytes(self) -> int:
        """Of the frame that has not ended yet; never more than the limit."""
        return self._lines.held_bytes

    def feed(self, data: bytes) -> list[tuple[bytes, T]]:
        """Raises `ProtocolError` when the bytes do not hold; frames before the bad one in the same feed are in the
        error's `extra["before"]`, so that nothing said is lost."""
        before: list[tuple[bytes, T]] = []
        self._refuse_after_fault()
        try:
            for line in self._lines.feed(data):
                message = self._decoder.decode(line)
                if isinstance(message, events.Result) and _nests_deeper_than(
                    NESTING_MAX, [*(message.messages or []), *(message.turn_messages or [])]
                ):
                    raise ProtocolError(f"a result's messages nest deeper than {NESTING_MAX} levels")
                before.append((line, message))
        except ProtocolError as error:
            error.extra["before"] = before
            self._fault = error
            raise
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            self._fault = ProtocolError(f"a frame cannot be read: {error}", before=before)
            raise self._fault from error
        return before

    def close(self) -> None:
        """The stream has ended. Raises `ProtocolError` for half a frame."""
        self._refuse_after_fault()
        self._lines.close()

    def _refuse_after_fault(self) -> None:
        if self._fault is not None:
            raise type(self._fault)(self._fault.message, before=[])


def _nests_deeper_than(levels: int, messages: list[dict[str, Any]]) -> bool:
    """Walks level by level, so that no nesting can exhaust the stack."""
    level: list[Any] = [messages]
    for _ in range(levels):
        level = [
            child
            for parent in level
            for child in (parent.values() if isinstance(parent, dict) else parent)
            if isinstance(child, dict | list)
        ]
    return bool(level)


def event_decoder(frame_bytes_max: int = FRAME_BYTES_MAX) -> FrameDecoder[events.ChildEvent]:
    """For the supervisor's end of the event stream."""
    return FrameDecoder(_EVENTS, frame_bytes_max)


def command_decoder(frame_bytes_max: int) -> FrameDecoder[commands.AnyCommand]:
    """For the child's end of the command stream."""
    return FrameDecoder(_COMMANDS, frame_bytes_max)


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
