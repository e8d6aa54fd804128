"""Bytes in any split either decode to what was encoded or raise the protocol's error; never more than the limit is held."""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from protocol_values import ALL_EVENTS, CHILD_EVENTS, COMMANDS, JSON, READER_EVENTS, TEXT, in_any_split, values_of

from hermetic.protocol import commands, events, framing
from hermetic.protocol.errors import AgentError, FrameTooLong, ProtocolError

LIMIT = 64
CHILD_EVENT = st.one_of([values_of(kind) for kind in CHILD_EVENTS])


def token(text: str) -> bytes:
    return framing.frame(events.Token(text=text))


def outcome(chunks: list[bytes], limit: int) -> tuple[list[tuple[bytes, Any]], str, type[Exception] | None]:
    """→ (all frames before the fault, the fault's sentence, its type), with the limit checked after every feed."""
    decoder = framing.event_decoder(limit)
    frames: list[tuple[bytes, Any]] = []
    try:
        for chunk in chunks:
            frames += decoder.feed(chunk)
            assert decoder.held_bytes <= limit
        decoder.close()
    except ProtocolError as error:
        assert decoder.held_bytes <= limit
        return frames + error.extra.get("before", []), str(error), type(error)
    return frames, "", None


@given(st.data(), st.lists(CHILD_EVENT, max_size=6))
def test_events_fed_in_any_split_decode_to_what_was_encoded_with_the_same_bytes(
    data: st.DataObject, said: list[events.Event]
) -> None:
    frames = [framing.frame(event) for event in said]
    _, chunks = data.draw(in_any_split(st.just(b"".join(frames))))
    got, fault, _ = outcome(chunks, framing.FRAME_BYTES_MAX)
    assert fault == ""
    assert [event for _, event in got] == said
    assert b"".join(line + b"\n" for line, _ in got) == b"".join(frames)


@pytest.mark.parametrize("kind", ALL_EVENTS, ids=lambda k: k.__name__)
def test_every_event_is_one_line_that_decodes_to_itself(kind: type[events.Event]) -> None:
    @given(values_of(kind))
    @settings(max_examples=20)
    def round_trip(event: events.Event) -> None:
        line = framing.frame(event)
        assert line.endswith(b"\n")
        assert not any(byte < 0x20 for byte in line[:-1])
        assert msgspec.json.decode(line, type=kind) == event
        assert json.loads(line)["event"] == events.event_name(event)

    round_trip()


@pytest.mark.parametrize("kind", COMMANDS, ids=lambda k: k.__name__)
def test_every_command_fed_in_any_split_decodes_to_itself(kind: type[commands.Command]) -> None:
    @given(st.data(), values_of(kind))
    @settings(max_examples=20)
    def round_trip(data: st.DataObject, command: commands.Command) -> None:
        line = framing.frame(command)
        _, chunks = data.draw(in_any_split(st.just(line)))
        decoder = framing.command_decoder(framing.FRAME_BYTES_MAX)
        assert [pair for chunk in chunks for pair in decoder.feed(chunk)] == [(line[:-1], command)]
        decoder.close()

    round_trip()


# Bytes that are nearly right find more than bytes that are random.
GOOD = st.one_of([TEXT.map(token), CHILD_EVENT.map(framing.frame)])
BAD = st.one_of(
    st.binary(max_size=2 * LIMIT),
    st.sampled_from(
        [
            b"\n",
            b"\r",
            b"\0",
            b"\xff",
            b"\xef\xbb\xbf",
            b'{"event":"token",\r"text":"x"}\n',
            b'{"event":"done"}\n',
            b'{"event":"token"',
            b"[" * LIMIT,
            b"9" * LIMIT,
        ]
    ),
)


@given(in_any_split(st.lists(GOOD | BAD, max_size=6).map(b"".join)), st.integers(1, 4 * LIMIT))
@example((b"x" * 65 + b"\r", [b"x" * 65 + b"\r"]), 64)
@example((b"x" * 10 + b"\r" + b"x" * 65, [b"x" * 10 + b"\r" + b"x" * 65]), 64)
@example((b'{"event":"token","text":"a"}\n{"bad"\n\r', [b'{"event":"token","text":"a"}\n{"bad"\n\r']), 64)
def test_any_bytes_have_one_outcome_whatever_their_split(split: tuple[bytes, list[bytes]], limit: int) -> None:
    data, chunks = split
    whole = outcome([data], limit)
    assert outcome(chunks, limit) == whole
    assert outcome([data[i : i + 1] for i in range(len(data))], limit) == whole
    frames, fault, _ = whole
    if not fault:
        assert b"".join(line + b"\n" for line, _ in frames) == data


@pytest.mark.parametrize("text", ["é", "🦀", "\u2028", "a\nb\r\nc", "\ud800 lone", "\0"])
def test_text_of_any_kind_passes(text: str) -> None:
    [(_, event)] = framing.event_decoder().feed(token(text))
    assert event == events.Token(text=text.replace("\ud800", "?"))


def test_a_frame_of_the_limit_passes_and_one_byte_more_does_not() -> None:
    line = token("x" * 10)[:-1]
    assert framing.event_decoder(len(line)).feed(line + b"\n") == [(line, events.Token(text="x" * 10))]
    with pytest.raises(FrameTooLong, match=f"longer than {len(line) - 1} bytes"):
        framing.event_decoder(len(line) - 1).feed(line + b"\n")


def test_a_line_that_never_ends_is_refused_at_the_limit_not_after_it() -> None:
    decoder = framing.event_decoder(LIMIT)
    for _ in range(LIMIT):
        decoder.feed(b"x")
    assert decoder.held_bytes == LIMIT
    with pytest.raises(FrameTooLong):
        decoder.feed(b"x")
    assert decoder.held_bytes == LIMIT


def test_a_line_fed_in_pairs_of_bytes_costs_no_more_memory_than_its_bytes() -> None:
    size = 1 << 15
    decoder = framing.event_decoder(size)
    tracemalloc.start()
    try:
        for _ in range(size // 2):
            decoder.feed(bytes(bytearray(b"xy")))
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # A bytearray grows by an eighth more than it needs.
    assert held < 1.3 * size


REFUSED = {
    "a CR that would end an SSE line": b'{"event":"token",\r"text":"data: forged"}\n',
    "CRLF line ends": b'{"event":"token","text":"x"}\r\n',
    "a NUL": b'{"event":"token","text":"x"}\0\n',
    "a tab between members": b'{"event":"token",\t"text":"x"}\n',
    "a raw control character in a text": b'{"event":"token","text":"\x07"}\n',
    "a byte that is not UTF-8": b'{"event":"token","text":"\xff"}\n',
    "a lone surrogate in UTF-8": b'{"event":"token","text":"\xed\xa0\x80"}\n',
    "an escaped lone surrogate": b'{"event":"token","text":"\\ud800"}\n',
    "a key that is not UTF-8": b'{"event":"token","\xff":""}\n',
    "a byte order mark": b'\xef\xbb\xbf{"event":"token","text":"x"}\n',
    "an empty line": b"\n",
    "nothing but spaces": b"   \n",
    "two objects on one line": b'{"event":"token","text":"x"}{"event":"token","text":"x"}\n',
    "one object on two lines": b'{"event":"token",\n"text":"x"}\n',
    "a list": b'[{"event":"token","text":"x"}]\n',
    "a print": b"Hello, world!\n",
    "no tag": b'{"text":"x"}\n',
    "an unknown tag": b'{"event":"nonsense","text":"x"}\n',
    "a tag given twice, the second forged": b'{"event":"token","text":"x","event":"done"}\n',
    "a tag of another type": b'{"event":1,"text":"x"}\n',
    "an unknown member": b'{"event":"token","text":"x","more":1}\n',
    "a missing member": b'{"event":"token"}\n',
    "a member of another type": b'{"event":"token","text":1}\n',
    "a whole number beyond all": b'{"event":"metering","usage":{"input_tokens":' + b"9" * 5000 + b"}}\n",
    "a number that JavaScript would change": b'{"event":"metering","usage":{"input_tokens":9007199254740992}}\n',
    "a negative count": b'{"event":"metering","usage":{"input_tokens":-1}}\n',
    "a cost below nothing": b'{"event":"metering","usage":{"estimated_cost":-0.5}}\n',
    "a float beyond all": b'{"event":"metering","usage":{"estimated_cost":1e999}}\n',
    "a number that is not one": b'{"event":"metering","usage":{"estimated_cost":NaN}}\n',
    "nesting that exhausts a stack": b'{"event":"result","messages":[{"a":' + b"[" * 9999 + b"]" * 9999 + b"}]}\n",
    "nesting that exhausts a deeper stack": b'{"event":"result","messages":[{"a":' + b"[" * 200 + b"]" * 200 + b"}]}\n",
}


@pytest.mark.parametrize("line", REFUSED.values(), ids=REFUSED.keys())
def test_refused_and_what_was_said_before_is_kept(line: bytes) -> None:
    good = token("kept")
    decoder = framing.event_decoder()
    with pytest.raises(ProtocolError) as caught:
        decoder.feed(good + line + token("too late"))
    assert caught.value.extra["before"] == [(good[:-1], events.Token(text="kept"))]
    assert caught.value.fault == "agent"
    assert caught.value.hint
    with pytest.raises(ProtocolError) as again:
        decoder.feed(token("much too late"))
    assert str(again.value) == str(caught.value)
    with pytest.raises(ProtocolError):
        decoder.close()


@pytest.mark.parametrize("name", sorted(kind.__struct_config__.tag for kind in set(READER_EVENTS) - set(CHILD_EVENTS)))
def test_a_child_cannot_say_what_only_the_supervisor_says(name: str) -> None:
    with pytest.raises(ProtocolError, match="Invalid value"):
        framing.event_decoder().feed(b'{"event":"%s","turn_id":"t","state":"done"}\n' % name.encode())


def test_a_child_cannot_send_a_command_as_an_event() -> None:
    with pytest.raises(ProtocolError):
        framing.event_decoder().feed(framing.frame(commands.Cancel()))


def test_a_key_given_twice_counts_as_its_last_as_in_javascript_and_python() -> None:
    line = b'{"event":"token","text":"first","text":"last"}'
    [(_, event)] = framing.event_decoder().feed(line + b"\n")
    assert event == events.Token(text=json.loads(line)["text"]) == events.Token(text="last")


@pytest.mark.parametrize("cut", [1, 10, -1])
def test_half_a_frame_at_the_end_is_an_error_that_says_how_much(cut: int) -> None:
    decoder = framing.event_decoder()
    half = token("x")[:-1][:cut]
    decoder.feed(token("whole") + half)
    with pytest.raises(ProtocolError, match=f"in the middle of a frame, after {len(half)} bytes"):
        decoder.close()


def test_a_stream_that_ends_between_frames_is_whole() -> None:
    decoder = framing.event_decoder()
    decoder.close()
    decoder = framing.event_decoder()
    decoder.feed(token("x"))
    decoder.close()


@given(JSON)
def test_messages_that_are_decoded_can_be_encoded_again(value: Any) -> None:
    line = framing.frame(events.Result(messages=[{"role": "tool", "content": value}]))
    [(_, event)] = framing.event_decoder().feed(line)
    assert framing.frame(event) == line


def test_messages_as_deep_as_the_limit_pass() -> None:
    inner = framing.NESTING_MAX - 2
    deep = b'{"event":"result","messages":[{"a":' + b"[" * inner + b"]" * inner + b"}]}\n"
    assert framing.event_decoder().feed(deep)
    deeper = deep.replace(b":[[", b":[[[", 1).replace(b"]]}", b"]]]}", 1)
    with pytest.raises(ProtocolError, match="deeper than 100 levels"):
        framing.event_decoder().feed(deeper)


def test_a_protocol_error_is_the_agents_fault() -> None:
    assert issubclass(FrameTooLong, ProtocolError)
    assert issubclass(ProtocolError, AgentError)
