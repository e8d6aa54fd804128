"""The contract of supervisor/store/interface.py, against every store there is."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import structs

from hermetic.protocol.errors import Conflict, Fenced, NotFound, QueueFull, SessionBusy
from hermetic.supervisor.store.interface import Entry, Finish, Record, Session, Store, TurnRow, TurnSpec
from hermetic.supervisor.store.sqlite import open_sqlite
from hermetic.testing import MemoryStore

StoreMaker = Callable[[], AbstractAsyncContextManager[Store]]


@asynccontextmanager
async def open_memory() -> AsyncIterator[Store]:
    yield MemoryStore()


@asynccontextmanager
async def open_on_disk() -> AsyncIterator[Store]:
    with TemporaryDirectory() as folder:
        async with open_sqlite(Path(folder) / "hermetic.db") as store:
            yield store


@pytest.fixture(params=[open_memory, open_on_disk], ids=["memory", "sqlite"])
def maker(request: pytest.FixtureRequest) -> StoreMaker:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
async def store(maker: StoreMaker) -> AsyncIterator[Store]:
    async with maker() as store:
        yield store


def spec(turn_id: str, session_id: str = "s", **members: Any) -> TurnSpec:
    return TurnSpec(
        turn_id=turn_id, session_id=session_id, agent="demo", profile="default", workspace="/w", message="hi", **members
    )


def said(text: Any, role: str = "user") -> dict[str, Any]:
    return {"role": role, "content": text}


def tokens(first: int, count: int = 1) -> list[Record]:
    return [("token", b'{"event":"token","text":"%d"}' % seq) for seq in range(first, first + count)]


def entries(records: list[Record], first: int = 1) -> list[Entry]:
    return [Entry(seq, *record) for seq, record in enumerate(records, first)]


async def enqueued(store: Store, turn_id: str, session_id: str = "s", **members: Any) -> TurnRow:
    row, new = await store.enqueue(spec(turn_id, session_id, **members), said(f"for {turn_id}"), queue_max=1000)
    assert new
    return row


async def running(store: Store, turn_id: str = "t", session_id: str = "s", tenant: str = "local") -> None:
    if await store.session(tenant, session_id) is None:
        await store.create_session(Session(session_id=session_id, tenant=tenant))
    await enqueued(store, turn_id, session_id, tenant=tenant)
    assert await store.claim(turn_id, started_at=1.0)


def the_end(turn_id: str = "t", epoch: int = 1, first_seq: int = 1, **members: Any) -> Finish:
    members.setdefault("records", [("done", b"{}"), ("stream_end", b"{}")])
    return Finish(turn_id=turn_id, epoch=epoch, state="done", first_seq=first_seq, ended_at=2.0, **members)


# --- journal --------------------------------------------------------------------------------------------------------


async def test_events_come_back_in_order_from_every_cursor(store: Store) -> None:
    await running(store)
    records: list[Record] = []
    for count in (1, 4, 1, 7):
        new = tokens(len(records) + 1, count)
        await store.append("t", 1, len(records) + 1, new)
        records += new
        assert await store.last_seq("t") == len(records)
    for after in range(-1, 16):
        assert await store.read("t", after) == entries(records)[max(after, 0) :]


async def test_a_read_stops_at_about_its_bytes_but_never_before_one_event(store: Store) -> None:
    await running(store)
    records: list[Record] = [("token", b"x" * 100) for _ in range(10)]
    await store.append("t", 1, 1, records[:7])
    await store.append("t", 1, 8, records[7:])
    assert len(await store.read("t", 0, bytes_max=250)) == 2
    assert len(await store.read("t", 5, bytes_max=300)) == 3
    assert [entry.seq for entry in await store.read("t", 4, bytes_max=1)] == [5]
    assert len(await store.read("t", 0, bytes_max=1000)) == 10


async def test_reading_a_turn_without_events_or_without_existence_gives_nothing(store: Store) -> None:
    await running(store)
    for turn_id in "t", "unknown":
        assert await store.read(turn_id, 0) == []
        assert await store.last_seq(turn_id) == 0


async def test_what_is_read_is_what_was_appended_byte_for_byte(store: Store) -> None:
    await running(store)
    records: list[Record] = [
        ("tool_complete", '{"snippet":"a b  c é 😀"}'.encode()),
        ("x", b""),
        ("x", b" "),
        ("x", b"\0\r"),
    ]
    await store.append("t", 1, 1, records)
    await store.append("t", 1, 5, [])
    assert await store.read("t", 0) == entries(records)


@pytest.mark.parametrize("first_seq", [0, 1, 3, 5, 1000])
async def test_a_hole_or_an_overlap_is_refused(store: Store, first_seq: int) -> None:
    await running(store)
    await store.append("t", 1, 1, tokens(1, 3))
    with pytest.raises(Fenced):
        await store.append("t", 1, first_seq, tokens(first_seq))
    with pytest.raises(Fenced):
        await store.append_durable("t", 1, first_seq, tokens(first_seq))
    with pytest.raises(Fenced):
        await store.finish(the_end(first_seq=first_seq))
    assert await store.read("t", 0) == entries(tokens(1, 3))


@pytest.mark.parametrize("epoch", [-1, 0, 2])
async def test_only_the_current_epoch_may_write(store: Store, epoch: int) -> None:
    await running(store)
    with pytest.raises(Fenced):
        await store.append("t", epoch, 1, tokens(1))
    with pytest.raises(Fenced):
        await store.finish(the_end(epoch=epoch))
    assert (await store.read("t", 0), (await _turn(store)).state) == ([], "running")


async def test_nobody_writes_to_a_turn_that_has_ended_or_does_not_exist(store: Store) -> None:
    await running(store)
    await store.finish(the_end())
    for turn_id in "t", "unknown":
        with pytest.raises(Fenced):
            await store.append(turn_id, 1, 3, tokens(3))
        with pytest.raises(Fenced):
            await store.finish(the_end(turn_id, first_seq=3))


@pytest.mark.parametrize("record", [("two words", b""), ("", b""), ("a\n", b""), ("token", b"two\nlines")])
async def test_what_is_not_one_line_is_refused(store: Store, record: Record) -> None:
    await running(store)
    with pytest.raises(ValueError):
        await store.append("t", 1, 1, [*tokens(1), record])
    with pytest.raises(ValueError):
        await store.finish(the_end(records=[record]))
    assert await store.last_seq("t") == 0


async def test_fifty_turns_append_at_once_and_none_disturbs_another(store: Store) -> None:
    async def one(number: int) -> None:
        turn_id = f"t{number}"
        await running(store, turn_id, f"s{number}")
        for seq in range(1, 31, 3):
            append = store.append_durable if seq % 2 else store.append
            await append(turn_id, 1, seq, [("token", b"%d:%d" % (number, s)) for s in range(seq, seq + 3)])
            with pytest.raises(Fenced):
                await store.append(turn_id, 1, seq, tokens(seq))

    async with trio.open_nursery() as nursery:
        for number in range(50):
            nursery.start_soon(one, number)
    for number in range(50):
        assert [entry.data for entry in await store.read(f"t{number}", 0)] == [
            b"%d:%d" % (number, s) for s in range(1, 31)
        ]


_line = st.text(st.characters(codec="utf-8", exclude_characters="\n")).map(str.encode)
_batches = st.lists(st.lists(st.tuples(st.sampled_from(["token", "tool", "done"]), _line), max_size=5), max_size=8)


@given(batches=_batches, bytes_max=st.integers(1, 60))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_batches_read_from_any_cursor_are_the_exact_tail(
    maker: StoreMaker, batches: list[list[Record]], bytes_max: int
) -> None:
    async def check() -> None:
        async with maker() as store:
            await running(store)
            records: list[Record] = []
            for batch in batches:
                await store.append("t", 1, len(records) + 1, batch)
                records += batch
            for after in range(len(records) + 2):
                assert await store.read("t", after) == entries(records)[after:]
                paged: list[Entry] = []
                while page := await store.read("t", after + len(paged), bytes_max=bytes_max):
                    assert len(page) == 1 or sum(len(entry.data) for entry in page) <= bytes_max
                    paged += page
                assert paged == entries(records)[after:]

    trio.run(check)


# --- turns ----------------------------------------------------------------------------------------------------------


async def _turn(store: Store, turn_id: str = "t") -> TurnRow:
    row = await store.turn(turn_id)
    assert row is not None
    return row


async def test_a_turn_goes_from_queued_to_running_to_its_verdict(store: Store) -> None:
    await store.create_session(Session(session_id="s"))
    wanted = spec("t", attachments=["a.txt"], model="m", on_disconnect="cancel", created_at=5.5, idempotency_key="k")
    row, new = await store.enqueue(wanted, said("hello"), queue_max=1)
    assert (row, new) == (TurnRow(spec=wanted, state="queued", epoch=0), True)
    assert await _turn(store) == row
    assert await store.messages("local", "s") == [said("hello")]
    await store.append("t", 0, 1, tokens(1))
    assert await store.claim("t", started_at=7.5) == (wanted, 1, 1)
    expected = TurnRow(spec=wanted, state="running", epoch=1, last_seq=1, started_at=7.5)
    assert await _turn(store) == expected
    assert await store.unended() == [expected]
    await store.finish(the_end(first_seq=2, stderr="oops"))
    expected = msgspec.structs.replace(expected, state="done", last_seq=3, ended_at=2.0, stderr="oops")
    assert await _turn(store) == expected
    assert await store.unended() == []
    assert await store.session_turns("local", "s") == [expected]


async def test_turns_that_have_ended_lately_are_listed_by_tenant_the_newest_first(store: Store) -> None:
    for session, tenant in (("s", "local"), ("o", "other")):
        await store.create_session(Session(session_id=session, tenant=tenant))
    for name, session, tenant in (
        ("t1", "s", "local"),
        ("t2", "s", "local"),
        ("t3", "o", "other"),
        ("t4", "s", "local"),
    ):
        await store.enqueue(spec(name, session_id=session, tenant=tenant), said("x"), queue_max=9)
    for name in ("t2", "t1", "t3"):
        await store.finish(the_end(turn_id=name, epoch=0, first_seq=1))
    assert [row.spec.turn_id for row in await store.recent_turns("local", limit=9)] == ["t2", "t1"]
    assert [row.spec.turn_id for row in await store.recent_turns("local", limit=1)] == ["t2"]


async def test_a_turn_of_an_unknown_session_or_another_tenants_is_refused(store: Store) -> None:
    await store.create_session(Session(session_id="s", tenant="one"))
    for turn in spec("t", "unknown"), spec("t", "s", tenant="two"):
        with pytest.raises(NotFound):
            await store.enqueue(turn, said("hi"), queue_max=10)
    assert await store.turn("t") is None
    assert await store.messages("local", "s") == []


async def test_the_same_idempotency_key_gives_the_same_turn_and_writes_nothing(store: Store) -> None:
    await store.create_session(Session(session_id="s"))
    await store.create_session(Session(session_id="other"))
    await enqueued(store, "t1", idempotency_key="k")
    for again in store.enqueue, store.enqueue_if_idle:  # even when the queue is full and the session busy
        row, new = await again(spec("t2", idempotency_key="k"), said("again"), queue_max=0)
        assert (row, new) == (await _turn(store, "t1"), False)
    await store.claim("t1", started_at=1.0)
    await store.finish(the_end("t1"))
    row, new = await store.enqueue(spec("t2", idempotency_key="k"), said("again"), queue_max=10)
    assert (row, new) == (await _turn(store, "t1"), False)
    assert await store.turn("t2") is None
    assert len(await store.messages("local", "s")) == 1
    await enqueued(store, "t3", idempotency_key="k2")
    await enqueued(store, "t4")
    await enqueued(store, "t5")
    await enqueued(store, "t6", "other", idempotency_key="k")


async def test_one_key_sent_by_many_at_once_makes_one_turn(store: Store) -> None:
    await store.create_session(Session(session_id="s"))
    made = []

    async def send(number: int) -> None:
        turn = spec(f"t{number}", idempotency_key="k")
        row, new = await store.enqueue(turn, said("hi"), queue_max=1)
        made.append((row.spec.turn_id, new))

    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(send, number)
    assert len({turn_id for turn_id, _ in made}) == 1
    assert sum(new for _, new in made) == 1
    assert len(await store.messages("local", "s")) == 1


async def test_a_turn_id_is_used_once(store: Store) -> None:
    await store.create_session(Session(session_id="s"))
    await enqueued(store, "t")
    with pytest.raises(Conflict):
        await store.enqueue(spec("t"), said("again"), queue_max=10)
    assert len(await store.messages("local", "s")) == 1


async def test_enqueue_if_idle_refuses_a_busy_session_and_names_its_oldest_turn(store: Store) -> None:
    await running(store, "t1")
    await enqueued(store, "t2")
    for busy_with in "t1", "t2":
        with pytest.raises(SessionBusy) as busy:
            await store.enqueue_if_idle(spec("t3"), said("hi"), queue_max=10)
        assert busy.value.extra["turn_id"] == busy_with
        row = await store.session("local", "s")
        assert row is not None
        assert row.active_turn_id == busy_with
        await store.finish(the_end(busy_with, epoch=(await _turn(store, busy_with)).epoch))
    _, new = await store.enqueue_if_idle(spec("t3"), said("hi"), queue_max=10)
    assert new


async def test_the_queue_takes_as_many_as_it_may_and_running_turns_do_not_count(store: Store) -> None:
    await running(store, "t1")
    await store.enqueue(spec("t2"), said("hi"), queue_max=2)
    await store.enqueue(spec("t3"), said("hi"), queue_max=2)
    with pytest.raises(QueueFull):
        await store.enqueue(spec("t4"), said("hi"), queue_max=2)
    assert await store.claim("t2", started_at=1.0)
    await store.enqueue(spec("t4"), said("hi"), queue_max=2)
    assert [row.spec.turn_id for row in await store.unended()] == ["t1", "t2", "t3", "t4"]


async def test_of_many_that_claim_a_turn_one_gets_it(store: Store) -> None:
    await store.create_session(Session(session_id="s"))
    await enqueued(store, "t")
    claims = []

    async def claim() -> None:
        claims.append(await store.claim("t", started_at=1.0))

    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(claim)
    assert sum(claim is not None for claim in claims) == 1
    assert (await _turn(store)).epoch == 1
    assert await store.claim("unknown", started_at=1.0) is None
    await store.finish(the_end())
    assert await store.claim("t", started_at=1.0) is None


async def test_of_many_that_finish_a_turn_one_does(store: Store) -> None:
    await running(store)
    outcomes = []

    async def finish(number: int) -> None:
        try:
            await store.finish(the_end(messages=[said(str(number), "assistant")]))
        except Fenced:
            pass
        else:
            outcomes.append(number)

    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(finish, number)
    (winner,) = outcomes
    assert await store.messages("local", "s") == [said("for t"), said(str(winner), "assistant")]
    assert await store.last_seq("t") == 2


async def test_a_turn_is_enqueued_with_its_session_changed_in_one_step(store: Store) -> None:
    await store.create_session(Session(session_id="s"))

    def rename(session: Session) -> Session:
        return structs.replace(session, title=session.title + "named", updated_at=7.0)

    await store.enqueue(spec("t1", idempotency_key="k"), said("hi"), queue_max=9, change=rename)
    row = await store.session("local", "s")
    assert row and (row.session.title, row.session.updated_at) == ("named", 7.0)
    await store.enqueue(spec("t2", idempotency_key="k"), said("hi"), queue_max=9, change=rename)
    with pytest.raises(SessionBusy):
        await store.enqueue_if_idle(spec("t3"), said("hi"), queue_max=9, change=rename)
    row = await store.session("local", "s")
    assert row and row.session.title == "named", "what did not enqueue has changed nothing"


async def test_a_queued_turn_can_be_finished_without_ever_running(store: Store) -> None:
    await store.create_session(Session(session_id="s"))
    await enqueued(store, "t")
    await store.finish(the_end(epoch=0))
    assert (await _turn(store)).state == "done"
    assert await store.claim("t", started_at=1.0) is None


async def test_finish_is_one_step_with_messages_and_session(store: Store) -> None:
    await running(store)
    await store.finish(
        the_end(
            messages=[said("answer", "assistant")],
            change=lambda s: msgspec.structs.replace(s, title="named", input_tokens=s.input_tokens + 7),
        )
    )
    row = await store.session("local", "s")
    assert row is not None
    assert (row.session.title, row.session.input_tokens, row.rev, row.message_count) == ("named", 7, 2, 2)
    assert row.active_turn_id is None
    assert [row.session.session_id for row, _ in await store.search("local", "named answer")] == ["s"]


async def test_a_finish_that_fails_leaves_nothing_of_itself(store: Store) -> None:
    await running(store)
    before = await store.session("local", "s")

    def change(_: Session) -> Session:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        await store.finish(the_end(messages=[said("never", "assistant")], change=change))
    with pytest.raises(TypeError):
        await store.finish(the_end(messages=[{"content": object()}]))
    assert await store.session("local", "s") == before
    assert await store.last_seq("t") == 0
    assert await store.messages("local", "s") == [said("for t")]
    assert await store.search("local", "never") == []
    assert (await _turn(store)).state == "running"
    await store.finish(the_end())


async def test_messages_stand_in_the_order_of_their_turns_whichever_ends_first(store: Store) -> None:
    await running(store, "t1")
    await running(store, "t2")
    await store.finish(the_end("t2", messages=[said("second", "assistant"), said("third", "tool")]))
    await store.finish(the_end("t1", messages=[said("first", "assistant")]))
    texts = [message["content"] for message in await store.messages("local", "s")]
    assert texts == ["for t1", "first", "for t2", "second", "third"]
    assert await store.messages("local", "unknown") == []


async def test_a_history_replaces_all_messages_but_those_of_later_turns(store: Store) -> None:
    await running(store, "t1")
    await store.finish(the_end("t1", messages=[said("forgotten", "assistant")]))
    await running(store, "t2")
    await enqueued(store, "t3")
    await running(store, "x", "other")
    await store.finish(the_end("t2", messages=[said("unused")], history=[said("summary"), said("latest", "assistant")]))
    assert [message["content"] for message in await store.messages("local", "s")] == ["summary", "latest", "for t3"]
    assert await store.search("local", "forgotten") == []
    assert await store.search("local", "unused") == []
    assert len(await store.search("local", "summary")) == 1
    assert [message["content"] for message in await store.messages("local", "other")] == ["for x"]
    await store.claim("t3", started_at=1.0)
    await store.finish(the_end("t3", history=[]))
    assert await store.messages("local", "s") == []


_texts = st.lists(st.sampled_from("abc"), max_size=5)


@given(turns=st.lists(st.tuples(st.booleans(), _texts), max_size=6))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_mix_of_messages_and_histories_gives_what_the_last_ones_said(
    maker: StoreMaker, turns: list[tuple[bool, list[str]]]
) -> None:
    async def check() -> None:
        expected: list[str] = []
        async with maker() as store:
            for number, (replaces, texts) in enumerate(turns):
                await running(store, f"t{number}")
                said_now = [said(text) for text in texts]
                how: dict[str, Any] = {"history": said_now} if replaces else {"messages": said_now}
                await store.finish(the_end(f"t{number}", **how))
                expected = texts if replaces else [*expected, f"for t{number}", *texts]
                assert [message["content"] for message in await store.messages("local", "s")] == expected
                for word in "abc":
                    assert len(await store.search("local", f"{word} ")) == any(t.startswith(word) for t in expected)

    trio.run(check)


async def continued(store: Store, **members: Any) -> None:
    """Session s has an ended turn t1; t2 ends it as session n while t3 waits."""
    begun = Session(session_id="s", tenant="ann", title="Plum", pinned=True, workspace="/w", input_tokens=5)
    await store.create_session(begun)
    for turn in ("t1", "t2", "t3"):
        await enqueued(store, turn, tenant="ann")
    await store.finish(the_end("t1", epoch=0, messages=[said("old answer", "assistant")]))
    history = [said("summary"), said("for t2"), said("new answer", "assistant")]
    await store.finish(the_end("t2", epoch=0, history=history, continue_as="n", **members))


async def test_a_session_that_goes_on_under_another_id_takes_all_but_the_old_transcript(store: Store) -> None:
    await continued(store, change=lambda session: structs.replace(session, input_tokens=7, updated_at=9.0))
    old, new = await store.session("ann", "s"), await store.session("ann", "n")
    assert old and new
    assert old.session == Session(
        session_id="s", tenant="ann", title="Plum", workspace="/w", input_tokens=5, archived=True, continued_as="n"
    )
    assert new.session == Session(
        session_id="n", tenant="ann", title="Plum", workspace="/w", input_tokens=7, pinned=True, updated_at=9.0,
        continues="s", folder="s",
    )  # fmt: skip
    assert await store.messages("ann", "s") == [said("for t1"), said("old answer", "assistant")]
    assert await store.messages("ann", "n") == [
        said("summary"), said("for t2"), said("new answer", "assistant"), said("for t3"),
    ]  # fmt: skip
    assert (old.message_count, old.active_turn_id, new.message_count, new.active_turn_id) == (2, None, 4, "t3")
    assert [row.spec.turn_id for row in await store.session_turns("ann", "s")] == ["t1"]
    assert [(row.spec.turn_id, row.spec.session_id) for row in await store.session_turns("ann", "n")] == [
        ("t2", "n"), ("t3", "n"),
    ]  # fmt: skip
    claim = await store.claim("t3", started_at=2.0)
    assert claim and claim.spec.session_id == "n"
    assert await store.read("t2", 0), "its events go with the turn"
    assert await found(store, "answer", tenant="ann") in (["n", "s"], ["s", "n"])
    assert await found(store, "new answer", tenant="ann") == ["n"]
    assert await found(store, "old answer", tenant="ann") == ["s"]
    assert await found(store, "for t3", tenant="ann") == ["n"]


async def test_a_session_goes_on_again_and_its_own_folder_is_still_the_first_ones(store: Store) -> None:
    await continued(store)
    await store.finish(the_end("t3", epoch=0, history=[said("shorter")], continue_as="m"))
    last = await store.session("ann", "m")
    assert last and (last.session.continues, last.session.folder) == ("n", "s")
    assert await store.messages("ann", "m") == [said("shorter")]
    assert len(await store.messages("ann", "n")) == 3


async def test_deleting_either_part_leaves_the_other_whole(store: Store) -> None:
    await continued(store)
    await store.finish(the_end("t3", epoch=0))
    assert await store.delete_session("ann", "n")
    old = await store.session("ann", "s")
    assert old and old.session.continued_as is None, "it takes turns again"
    assert await store.messages("ann", "s") == [said("for t1"), said("old answer", "assistant")]
    assert await store.turn("t2") is None
    await enqueued(store, "t4", tenant="ann")
    await store.finish(the_end("t4", epoch=0, history=[said("again")], continue_as="n"))
    assert await store.delete_session("ann", "s")
    assert await store.messages("ann", "n") == [said("again")]


async def test_an_id_that_is_taken_is_refused_and_nothing_is_written(store: Store) -> None:
    await store.create_session(Session(session_id="n", tenant="ann", title="Ann's"))
    with pytest.raises(Conflict):
        await continued(store)
    old, taken = await store.session("ann", "s"), await store.session("ann", "n")
    assert old and taken
    assert (old.session.continued_as, old.active_turn_id) == (None, "t2")
    assert taken.session == Session(session_id="n", tenant="ann", title="Ann's")
    assert await store.messages("ann", "n") == []
    await store.finish(the_end("t2", epoch=0, history=[said("mine")]))
    assert await store.messages("ann", "s") == [said("mine"), said("for t3")]


async def test_two_tenants_sessions_of_one_name_are_two(store: Store) -> None:
    for tenant in ("local", "ann", "bob"):
        await running(store, f"t-{tenant}", tenant=tenant)
        await store.finish(the_end(f"t-{tenant}", messages=[said(f"of {tenant}")]))
    for tenant in ("local", "ann", "bob"):
        assert [message["content"] for message in await store.messages(tenant, "s")][1:] == [f"of {tenant}"]
        assert [row.spec.turn_id for row in await store.session_turns(tenant, "s")] == [f"t-{tenant}"]
        assert await store.count_sessions(tenant) == 1
    assert await store.truncate("ann", "s", 0) == 0
    assert await store.delete_session("ann", "s")
    assert await store.session("ann", "s") is None
    assert await store.turn("t-ann") is None
    for tenant in ("local", "bob"):
        assert len(await store.messages(tenant, "s")) == 2
    assert not await store.delete_session("carl", "s")
    with pytest.raises(NotFound):
        await store.put_session(Session(session_id="s", tenant="carl"), if_rev=1)
    with pytest.raises(NotFound):
        await store.enqueue(spec("t", tenant="carl"), said("hi"), queue_max=9)


async def test_going_on_under_the_name_of_another_tenants_session_touches_that_one_not(store: Store) -> None:
    await store.create_session(Session(session_id="n", tenant="bob", title="Bob's"))
    await continued(store)
    ours, his = await store.session("ann", "n"), await store.session("bob", "n")
    assert ours and his
    assert ours.session.continues == "s"
    assert (his.session.title, his.message_count) == ("Bob's", 0)


async def test_a_change_that_raises_enqueues_nothing(store: Store) -> None:
    await store.create_session(Session(session_id="s"))

    def refuse(session: Session) -> Session:
        raise Conflict("it has gone on")

    with pytest.raises(Conflict):
        await store.enqueue(spec("t"), said("hi"), queue_max=9, change=refuse)
    assert (await store.turn("t"), await store.messages("local", "s")) == (None, [])


async def test_a_cancel_is_noted_until_the_turn_ends(store: Store) -> None:
    await store.create_session(Session(session_id="s"))
    await enqueued(store, "t")
    assert await store.request_cancel("t") is True
    assert (await _turn(store)).cancel_requested
    assert await store.claim("t", started_at=1.0)
    assert await store.request_cancel("t") is True
    assert (await _turn(store)).cancel_requested
    await store.finish(the_end())
    assert await store.request_cancel("t") is False
    assert await store.request_cancel("unknown") is False


# --- sessions -------------------------------------------------------------------------------------------------------


async def test_a_session_comes_back_as_it_went_in(store: Store) -> None:
    session = Session(
        session_id="s", tenant="t", title="é 'quoted\"", title_by_user=True, agent="a", profile="p", workspace="/w",
        model="m", personality="x", project_id="q", pinned=True, archived=True, created_at=1.5, updated_at=2.5,
        input_tokens=1, output_tokens=2, estimated_cost=0.25,
    )  # fmt: skip
    await store.create_session(session)
    assert await store.session("t", "s") == (session, 1, 0, None)
    assert await store.session("local", "unknown") is None
    with pytest.raises(Conflict):
        await store.create_session(Session(session_id="s", tenant="t"))
    assert await store.count_sessions("t") == 1


async def test_a_session_is_changed_only_by_who_knows_its_current_rev(store: Store) -> None:
    session = Session(session_id="s", title="old")
    await store.create_session(session)
    assert await store.put_session(msgspec.structs.replace(session, title="new"), if_rev=1) == 2
    for rev in (1, 3):
        with pytest.raises(Conflict):
            await store.put_session(session, if_rev=rev)
    with pytest.raises(NotFound):
        await store.put_session(Session(session_id="unknown"), if_rev=1)
    row = await store.session("local", "s")
    assert row is not None
    assert (row.session.title, row.rev) == ("new", 2)


async def test_a_deleted_session_takes_all_that_is_its_own_and_nothing_else(store: Store) -> None:
    for session_id in "s", "other":
        await running(store, f"{session_id}-t", session_id)
        await store.append(f"{session_id}-t", 1, 1, tokens(1, 3))
        await store.finish(the_end(f"{session_id}-t", first_seq=4, messages=[said("kiwi", "assistant")]))
    assert await store.delete_session("local", "s") is True
    assert await store.delete_session("local", "s") is False
    assert await store.session("local", "s") is None
    assert await store.turn("s-t") is None
    assert await store.read("s-t", 0) == []
    assert await store.messages("local", "s") == []
    assert await store.session_turns("local", "s") == []
    assert [row.session.session_id for row, _ in await store.search("local", "kiwi")] == ["other"]
    assert len(await store.read("other-t", 0)) == 5
    assert await store.count_sessions("local") == 1
    await running(store, "s-t", "s")
    assert (await store.messages("local", "s"), await store.last_seq("s-t")) == ([said("for s-t")], 0)


async def test_a_session_with_an_unended_turn_is_not_deleted(store: Store) -> None:
    await running(store)
    with pytest.raises(SessionBusy) as busy:
        await store.delete_session("local", "s")
    assert busy.value.extra["turn_id"] == "t"
    await store.finish(the_end())
    assert await store.delete_session("local", "s") is True


async def test_truncate_keeps_the_first_messages_and_forgets_the_rest_also_in_the_search(store: Store) -> None:
    for turn in "t1", "t2":
        await running(store, turn)
        await store.finish(the_end(turn, messages=[said(f"plum {turn}", "assistant")]))
    everything = await store.messages("local", "s")
    assert len(everything) == 4
    assert await store.truncate("local", "s", 3, change=lambda s: structs.replace(s, title="shorter")) == 3
    assert await store.messages("local", "s") == everything[:3]
    row = await store.session("local", "s")
    assert row is not None
    assert (row.message_count, row.session.title) == (3, "shorter")
    assert [snippet for _, snippet in await store.search("local", "plum t1")] != []
    assert await store.search("local", "t2 plum") != [], "the words of t2 are still in its question"
    assert await store.truncate("local", "s", 99) == 3, "nothing is made up"
    assert await store.truncate("local", "s", -1) == 0
    assert (await store.messages("local", "s"), await store.search("local", "plum")) == ([], [])
    assert len(await store.session_turns("local", "s")) == 2, "turns and events stay"
    await running(store, "t3")
    await store.finish(the_end("t3", messages=[said("after", "assistant")]))
    assert await store.messages("local", "s") == [said("for t3"), said("after", "assistant")]


async def test_truncate_refuses_a_busy_session_and_an_unknown_one(store: Store) -> None:
    with pytest.raises(NotFound):
        await store.truncate("local", "s", 0)
    await running(store)
    with pytest.raises(SessionBusy) as busy:
        await store.truncate("local", "s", 0)
    assert busy.value.extra["turn_id"] == "t"
    assert len(await store.messages("local", "s")) == 1


async def test_sessions_are_paged_by_their_time_newest_first(store: Store) -> None:
    for number in range(7):
        await store.create_session(Session(session_id=f"s{number}", updated_at=float(number)))
    await store.create_session(Session(session_id="theirs", tenant="other", updated_at=3.0))
    pages, before = [], None
    while page := await store.sessions("local", before=before, limit=3):
        pages.append([row.session.session_id for row in page])
        before = page[-1].session.updated_at
    assert pages == [["s6", "s5", "s4"], ["s3", "s2", "s1"], ["s0"]]
    assert await store.sessions("local", limit=0) == []
    assert await store.sessions("nobody") == []
    row = await store.session("local", "s0")
    assert row is not None
    await store.put_session(msgspec.structs.replace(row.session, updated_at=9.0), if_rev=row.rev)
    assert (await store.sessions("local"))[0].session.session_id == "s0"


async def test_archived_sessions_are_listed_only_when_asked_for(store: Store) -> None:
    for name, archived in ("in", False), ("out", True):
        await store.create_session(Session(session_id=name, archived=archived))

    async def listed(**how: Any) -> set[str]:
        return {row.session.session_id for row in await store.sessions("local", **how)}

    assert await listed() == {"in"}
    assert await listed(archived=True) == {"out"}
    assert await listed(archived=None) == {"in", "out"}


async def found(store: Store, query: str, tenant: str = "local", limit: int = 20) -> list[str]:
    return [row.session.session_id for row, _ in await store.search(tenant, query, limit=limit)]


async def with_texts(store: Store, *texts: Any, session_id: str = "s", tenant: str = "local", title: str = "") -> None:
    await store.create_session(Session(session_id=session_id, tenant=tenant, title=title))
    await enqueued(store, f"t-{session_id}", session_id, tenant=tenant)
    answers = [said(text, "assistant") for text in texts]
    await store.finish(the_end(f"t-{session_id}", epoch=0, messages=answers))


async def test_search_needs_every_word_and_takes_the_last_as_a_prefix(store: Store) -> None:
    await with_texts(store, "the quick brown fox", "jumps over", title="A fable")
    for query in "quick fox", "fox QUICK", "qui", "quick bro", "fable jumps", "brown, (fox)", "over quick":
        assert await found(store, query) == ["s"], query
    for query in "quick cat", "qui fox", "row", "foxes", "jump over", "fab les":
        assert await found(store, query) == [], query


@pytest.mark.parametrize(
    "query",
    ['"', "'", '"quick', 'quick"fox"', "quick*", "quick^", "quick:fox", "text:quick", "-quick", "(quick", "NOT quick",
     "quick AND", "NEAR(quick fox)", "{quick}", "a\0b", "\ud800", "\\", "%", "_", ";--", "*", "", " \n ", "😀", "x " * 9999],
)  # fmt: skip
async def test_any_input_is_a_query(store: Store, query: str) -> None:
    await with_texts(store, "the quick brown fox")
    assert await found(store, query) in ([], ["s"])


async def test_operators_and_quotes_are_plain_text(store: Store) -> None:
    await with_texts(store, "salt AND pepper", session_id="and")
    await with_texts(store, "salt pepper or not", session_id="or")
    assert await found(store, "salt AND pepper") == ["and"]
    assert await found(store, "salt OR pepper nothing") == []
    assert await found(store, "pepper NOT") == ["or"]
    assert sorted(await found(store, '"salt" pepper*')) == ["and", "or"]


async def test_search_knows_other_alphabets_and_accents(store: Store) -> None:
    await with_texts(store, "Crème brûlée, Übergröße", session_id="latin")
    await with_texts(store, "Привет мир", session_id="cyrillic")
    await with_texts(store, "cafe\u0301s", session_id="decomposed")
    assert await found(store, "creme BRULEE") == ["latin"]
    assert await found(store, "ubergr") == ["latin"]
    assert await found(store, "ПРИВЕТ") == ["cyrillic"]
    assert await found(store, "cafés") == ["decomposed"]
    assert await found(store, "cafe\u0301s") == ["decomposed"]


async def test_search_reads_parts_with_text_and_skips_what_has_none(store: Store) -> None:
    await with_texts(
        store, [{"type": "text", "text": "mango"}, {"type": "image", "url": "papaya"}, "guava", {"text": 5}], None, 7
    )
    assert await found(store, "mango") == ["s"]
    assert await found(store, "papaya") == []


async def test_search_never_shows_another_tenants_session(store: Store) -> None:
    await with_texts(store, "secret", session_id="mine", tenant="me", title="plan")
    await with_texts(store, "secret", session_id="theirs", tenant="them", title="plan")
    for query in "secret", "plan", "plan secret":
        assert await found(store, query, tenant="me") == ["mine"]
        assert await found(store, query, tenant="nobody") == []


async def test_search_follows_a_title_that_changes(store: Store) -> None:
    await store.create_session(Session(session_id="s", title="apple"))
    await store.put_session(Session(session_id="s", title="banana"), if_rev=1)
    assert await found(store, "apple") == []
    assert await found(store, "banana") == ["s"]


async def test_search_gives_each_session_once_with_a_marked_snippet_and_up_to_its_limit(store: Store) -> None:
    for number in range(5):
        await with_texts(
            store, "plum tart", "plum", "plum jam " + "and more " * 50, session_id=f"s{number}", title="plum"
        )
    hits = await store.search("local", "plum")
    assert sorted(row.session.session_id for row, _ in hits) == [f"s{number}" for number in range(5)]
    assert all("«plum»" in snippet for _, snippet in hits)
    assert len(await store.search("local", "plum", limit=2)) == 2
    assert await store.search("local", "plum", limit=0) == []
    (_, snippet), *_ = await store.search("local", "tart plu")
    assert snippet == "«plum» «tart»"


# --- cancellation ---------------------------------------------------------------------------------------------------


async def test_whoever_is_cancelled_has_written_nothing_and_whoever_returns_has(store: Store) -> None:
    """A storm: every append races a cancellation; the journal must agree with what each caller was told."""
    told: dict[str, list[int]] = {}

    async def one(number: int) -> None:
        turn_id = f"t{number}"
        await running(store, turn_id, f"s{number}")
        seqs = told[turn_id] = []
        for round_ in range(15):
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_cancel_after, (number + round_) % 7, scope)
                    seq = len(seqs) + 1
                    await (store.append_durable if round_ % 5 == 0 else store.append)(turn_id, 1, seq, tokens(seq))
                    seqs.append(seq)
                    nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        for number in range(30):
            nursery.start_soon(one, number)
    assert 0 < sum(map(len, told.values())) < 30 * 15
    for turn_id, seqs in told.items():
        assert [entry.seq for entry in await store.read(turn_id, 0)] == seqs


async def _cancel_after(steps: int, scope: trio.CancelScope) -> None:
    for _ in itertools.repeat(None, steps):
        await trio.lowlevel.checkpoint()
    scope.cancel()
