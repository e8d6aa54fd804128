"""Waiting for events: a cursor is never ahead of what the turn has published."""

from __future__ import annotations

import trio
from msgspec.structs import replace

from hermetic.protocol import api
from hermetic.supervisor.config import Config, Server
from hermetic.supervisor.identity import OPERATOR
from hermetic.supervisor.store.interface import Entry
from hermetic.supervisor.supervisor import open_supervisor


async def test_what_is_journaled_and_not_published_yet_is_not_given_out(tmp_path, monkeypatch):
    config = replace(Config(), server=Server(data=str(tmp_path), drain_s=0))
    async with open_supervisor(config) as supervisor:
        session = (await supervisor.sessions.create(api.NewSession(), by=OPERATOR)).session_id
        turn = (await supervisor.start_turn(session, api.NewTurn(message="ask me"), by=OPERATOR)).turn_id
        with trio.fail_after(60):
            while not (await supervisor.turn(turn, by=OPERATOR)).pending:  # it waits now and says nothing more
                seen = (await supervisor.turn(turn, by=OPERATOR)).last_seq
                await supervisor.wait_events(turn, seen, wait_s=0.05, bytes_max=1 << 20, by=OPERATOR)
        last = (await supervisor.turn(turn, by=OPERATOR)).last_seq
        read = supervisor.store.read

        async def ahead(turn_id, after, **kwargs):
            return [*await read(turn_id, after, **kwargs), Entry(last + 1, "token", b'{"event":"token","text":"x"}')]

        with monkeypatch.context() as patch:
            patch.setattr(type(supervisor.store), "read", staticmethod(ahead))
            given = await supervisor.wait_events(turn, 0, wait_s=0, bytes_max=1 << 20, by=OPERATOR)
        assert [entry.seq for entry in given] == list(range(1, last + 1))
