"""Writes events to the event stream: whole frames, from any thread, none over the limit, none after the last."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator

import msgspec

from hermetic.agent_child.interrupts import Shield
from hermetic.protocol.events import ChildEvent, Failed, InterimAssistant, Reasoning, Result, Token, Warning
from hermetic.protocol.framing import FRAME_BYTES_MAX, frame

_SPLIT = (Token, Reasoning, InterimAssistant)
"""Readers join the texts of these, so a long one can go as several."""
_TEXT_MIN = 64
"""Characters below which a text is not worth cutting; what is still too long then has too many parts, not too much."""


class Emitter:
    """The event stream of one child."""

    def __init__(self, fd: int) -> None:
        self.frame_bytes_max = FRAME_BYTES_MAX
        self.shield = Shield()
        self._fd = fd
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._ended = False

    def emit(self, event: ChildEvent) -> None:
        """Blocks while the supervisor does not read: a fast agent waits, nothing is dropped.

        An event that comes after `Result` or `Failed`, or from a process that the agent has forked, is refused with a
        line on stderr.
        """
        if os.getpid() != self._pid:
            _log(event, "it was emitted in a forked process")
            return
        frames = list(self._frames(event))
        with self.shield, self._lock:
            if self._ended:
                _log(event, "the turn has ended")
                return
            self._ended = isinstance(event, Result | Failed)
            try:
                for data in frames:
                    self._write(data)
            except BrokenPipeError:  # the supervisor is gone, and the keeper is about to kill us
                self._ended = True

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self._fd, view) :]

    def _frames(self, event: ChildEvent) -> Iterator[bytes]:
        data = frame(event)
        if len(data) <= self.frame_bytes_max:
            yield data
        elif isinstance(event, _SPLIT) and len(event.text) > 1:
            middle = len(event.text) // 2
            for text in (event.text[:middle], event.text[middle:]):
                yield from self._frames(msgspec.structs.replace(event, text=text))
        else:
            yield frame(
                Warning(
                    message=f"A {event.__struct_config__.tag} event of {len(data)} bytes was cut to fit into a frame.",
                    code="event_cut",
                    hint=f"Send less than limits.frame_bytes_max ({self.frame_bytes_max} bytes) in one event.",
                )
            )
            yield self._cut(event)

    def _cut(self, event: ChildEvent) -> bytes:
        """Cuts the longest texts first: the limit on a text is halved until the event fits."""
        tree = msgspec.to_builtins(event)
        text_max = self.frame_bytes_max
        while text_max >= _TEXT_MIN:
            text_max //= 2
            data = frame(msgspec.convert(_with_short_texts(tree, text_max), type(event)))
            if len(data) <= self.frame_bytes_max:
                return data
        if isinstance(event, Result):  # too many messages: the supervisor folds them from the events
            return frame(Result(interrupted=event.interrupted, usage=event.usage))
        raise ValueError(f"a {type(event).__name__} event with so many parts does not fit into a frame")


def _with_short_texts(value: object, text_max: int) -> object:
    if isinstance(value, str):
        if len(value) <= text_max:
            return value
        return f"{value[:text_max]}… [{len(value) - text_max} characters cut]"
    if isinstance(value, dict):
        return {_with_short_texts(key, text_max): _with_short_texts(item, text_max) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_short_texts(item, text_max) for item in value]
    return value


def _log(event: ChildEvent, why: str) -> None:
    sys.stderr.write(f"hermetic: a {event.__struct_config__.tag} event was not sent: {why}\n")
