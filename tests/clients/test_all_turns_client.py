"""hermetic.client over `GET /v1/events`: every event once, whatever happens to its connections."""

from __future__ import annotations

import json

import pytest
import trio
from cutting_proxy import cutting_proxy
from wire import BOUND_S

from hermetic.client import Client
from hermetic.protocol.events import ResetAll, TurnEvent, encode

pytestmark = pytest.mark.xdist_group("stream_wire")


@pytest.mark.parametrize("cuts", [[], [300, 700, b"\nid: ", b'"seq":', 0, 2500, b"\n\n"]], ids=["whole", "cut"])
async def test_every_event_of_turns_that_begin_and_end_meanwhile(server, cuts):
    sessions = [await server.session(agent="plan") for _ in range(3)]
    async with cutting_proxy(server.url, cuts) as proxy, Client(proxy.url) as client:
        breaks: list[float] = []
        turns: list[str] = []
        said: dict[str, list[TurnEvent]] = {}
        resets = 0
        async with client.all_events(sessions[:2], on_break=lambda _, pause: breaks.append(pause)) as stream:
            with trio.fail_after(BOUND_S):
                async for cursor, event in stream:
                    assert cursor == stream.cursor
                    if isinstance(event, ResetAll):
                        resets += 1
                        steps = [["say", "x "], ["sleep", 0.005]] * 20
                        turns = turns or [await server.plan(*steps, session=session) for session in sessions]
                    elif isinstance(event, TurnEvent):
                        said.setdefault(event.turn_id, []).append(event)
                        if sum(e.event == "stream_end" for events in said.values() for e in events) == 2:
                            break
        assert resets == 1
        assert len(breaks) >= bool(cuts)
        assert set(said) == set(turns[:2])
        for turn, session in zip(turns[:2], sessions, strict=False):
            own = await server.events(turn)
            assert [(e.seq, json.loads(encode(e.data))) for e in said[turn]] == [(seq, data) for seq, _, data in own]
            assert {e.session_id for e in said[turn]} == {session}
        async with Client(server.url) as again, again.all_events(after=cursor) as stream:
            turn = await server.plan(["say", "later"])
            with trio.fail_after(BOUND_S):
                async for _, event in stream:
                    assert isinstance(event, TurnEvent)
                    if (event.turn_id, event.event) == (turn, "stream_end"):
                        break
