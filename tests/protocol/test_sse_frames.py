"""What goes out as server-sent events is read back unchanged by clients that we did not write."""

from __future__ import annotations

import json

import httpx
import httpx2
import httpx_sse
import pytest
import sseclient
from hypothesis import given
from hypothesis import strategies as st
from protocol_values import READER_EVENTS, TEXT, in_any_split, values_of

from hermetic.protocol import events, sse

Message = tuple[str, str, str, int | None]
"""Event name, data, id, retry."""

READER_EVENT = st.one_of([values_of(kind) for kind in READER_EVENTS])


def by_httpx_sse(chunks: list[bytes]) -> list[Message]:
    response = httpx.Response(200, headers={"Content-Type": "text/event-stream"}, content=iter(chunks))
    return [(got.event, got.data, got.id, got.retry) for got in httpx_sse.EventSource(response).iter_sse()]


def by_httpx2(chunks: list[bytes]) -> list[Message]:
    response = httpx2.Response(
        200,
        headers={"Content-Type": "text/event-stream"},
        content=iter(chunks),
        request=httpx2.Request("GET", "http://localhost/"),
    )
    return [(got.event, got.data, got.id, got.retry) for got in httpx2.EventSource(response)]


def by_sseclient(chunks: list[bytes]) -> list[Message]:
    return [(got.event, got.data, got.id, got.retry) for got in sseclient.SSEClient(iter(chunks)).events()]


READERS = (by_httpx_sse, by_httpx2, by_sseclient)


def stream_of(said: list[events.Event]) -> bytes:
    return b"".join(
        sse.sse_frame(f"t:{seq}", events.event_name(event), events.encode(event), 1500 if seq == 1 else None)
        + sse.HEARTBEAT
        for seq, event in enumerate(said, 1)
    )


@given(st.data(), st.lists(READER_EVENT, max_size=5))
def test_any_events_with_heartbeats_between_them_are_read_back(data: st.DataObject, said: list[events.Event]) -> None:
    stream = stream_of(said)
    _, chunks = data.draw(in_any_split(st.just(stream)))
    for read in READERS:
        got = read(chunks)
        assert [(name, json.loads(text), event_id) for name, text, event_id, _ in got] == [
            (events.event_name(event), json.loads(events.encode(event)), f"t:{seq}")
            for seq, event in enumerate(said, 1)
        ]
        if got:
            assert int(got[0][3] or 0) == 1500


@given(READER_EVENT)
def test_an_event_is_whole_lines_of_which_no_text_can_make_more(event: events.Event) -> None:
    frame = sse.sse_frame("t:1", events.event_name(event), events.encode(event))
    assert frame.startswith(b"event: ")
    assert frame.endswith(b"\nid: t:1\n\n"), "behind the data: a cut before it leaves every client's cursor alone"
    assert frame.count(b"\n") == 4
    assert b"\r" not in frame


@given(TEXT)
def test_a_text_cannot_forge_a_field(text: str) -> None:
    event = events.Token(text=f"{text}\n\nevent: done\ndata: {{}}\n\n")
    for read in READERS:
        got = read([sse.sse_frame("t:1", "token", events.encode(event))])
        assert [(name, json.loads(data)["text"]) for name, data, _, _ in got] == [("token", event.text)]


def test_retry_rides_in_the_event_so_that_no_block_is_without_data() -> None:
    frame = sse.sse_frame("t:1", "token", b"{}", 1000)
    assert frame == b"retry: 1000\nevent: token\ndata: {}\nid: t:1\n\n"


def test_the_heartbeat_is_one_comment_line_and_dispatches_nothing() -> None:
    assert sse.HEARTBEAT == b":\n"
    for read in READERS:
        assert read([sse.HEARTBEAT] * 3) == []


@given(st.from_regex(r"[0-9a-f]{1,32}", fullmatch=True), st.integers(0, 10**18 - 1))
def test_a_cursor_parses_to_itself(turn_id: str, seq: int) -> None:
    cursor = sse.Cursor(turn_id, seq)
    assert sse.parse_cursor(str(cursor), "another") == cursor
    assert sse.parse_cursor(f" {seq} ", turn_id) == cursor


@given(st.text() | st.from_regex(r"[\w:.+-]{0,24}"))
def test_any_text_is_a_cursor_or_none_never_an_error(text: str) -> None:
    cursor = sse.parse_cursor(text, "t")
    if cursor is not None:
        assert 0 <= cursor.seq < 10**18


@pytest.mark.parametrize(
    "text", ["", ":", "t:", "-1", "t:-1", "1.0", "1e3", "+1", "١", "²", "9" * 19, "t:1:", "t 1", "1_000", "0x1"]
)
def test_what_is_no_cursor(text: str) -> None:
    assert sse.parse_cursor(text, "t") is None


def test_a_cursor_of_another_turn_keeps_that_turns_name() -> None:
    assert sse.parse_cursor("other:3", "mine") == sse.Cursor("other", 3)
    assert sse.parse_cursor(":3", "mine") == sse.Cursor("", 3)
