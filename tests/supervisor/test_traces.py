"""Spans of a turn, looked at in memory: made from its events, without any of its text."""

from __future__ import annotations

import subprocess
import sys

import pytest
import trio
import trio.testing
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from hermetic.protocol import events
from hermetic.protocol.errors import ConfigError
from hermetic.supervisor import traces
from hermetic.supervisor.config import Trace
from hermetic.supervisor.ending import record
from hermetic.supervisor.hub import Feed
from hermetic.supervisor.store.interface import Entry, Session, TurnSpec
from hermetic.testing import MemoryStore

SPEC = TurnSpec(
    turn_id="t", session_id="s", tenant="acme", agent="coder", profile="default", workspace="/w", message="private words",
    model="m-1",
)  # fmt: skip


async def spans_of(*said: events.Event):
    store, exporter = MemoryStore(), InMemorySpanExporter()
    await store.create_session(Session(session_id="s", tenant="acme"))
    await store.enqueue(SPEC, {"role": "user"}, queue_max=1)
    await store.claim("t", started_at=1.0)
    feed = Feed("t", 0, ring_bytes=1 << 20, ring_events=100)
    tracer = traces.Tracer(Trace(url="http://127.0.0.1:1/"), SimpleSpanProcessor(exporter))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(tracer.follow, SPEC, feed, store, 0)
        for seq, event in enumerate(said, start=1):
            await store.append("t", 1, seq, [record(event)])
            feed.publish([Entry(seq, *record(event))], last=event is said[-1])
            await trio.testing.wait_all_tasks_blocked()
    await tracer.close()
    return {span.name: span for span in exporter.get_finished_spans()}


async def test_a_turn_is_a_span_with_its_tool_calls_as_children():
    spans = await spans_of(
        events.Token(text="private words"),
        events.Tool(name="sh", tid="1", preview="private words", args={"command": "private words"}),
        events.Tool(name="web", tid="2"),
        events.ToolComplete(name="sh", tid="1", snippet="private words", is_error=True),
        events.ToolComplete(name="late", tid="3", duration_s=2.5),
        events.Done(turn_id="t", session={}, usage=events.Usage(input_tokens=7, output_tokens=3)),
    )
    turn = spans["invoke_agent coder"]
    assert dict(turn.attributes) == {
        "gen_ai.operation.name": "invoke_agent",
        "gen_ai.provider.name": "hermetic",
        "gen_ai.agent.name": "coder",
        "gen_ai.conversation.id": "s",
        "gen_ai.request.model": "m-1",
        "gen_ai.usage.input_tokens": 7,
        "gen_ai.usage.output_tokens": 3,
        "hermetic.turn.id": "t",
        "hermetic.tenant": "acme",
    }
    assert set(spans) == {"invoke_agent coder", "execute_tool sh", "execute_tool web", "execute_tool late"}
    for name in ("sh", "web", "late"):
        call = spans[f"execute_tool {name}"]
        assert call.parent.span_id == turn.context.span_id
        assert call.attributes["gen_ai.tool.name"] == name
    assert spans["execute_tool sh"].status.status_code is StatusCode.ERROR
    late = spans["execute_tool late"]
    assert late.end_time - late.start_time >= 2_500_000_000
    assert "private words" not in "".join(span.to_json() for span in spans.values())


async def test_a_turn_that_failed_says_how():
    end = events.Apperror(turn_id="t", message="private words", type="rate_limit", state="failed", fault="agent")
    span = (await spans_of(end))["invoke_agent coder"]
    assert span.attributes["error.type"] == "rate_limit"
    assert span.status.status_code is StatusCode.ERROR


async def test_calls_without_an_end_do_not_pile_up(monkeypatch):
    monkeypatch.setattr(traces, "OPEN_CALLS_MAX", 3)
    spans = await spans_of(*(events.Tool(name=f"n{n}", tid=str(n)) for n in range(9)))
    assert len(spans) == 4


def test_without_opentelemetry_traces_are_refused_and_all_else_works(monkeypatch):
    monkeypatch.setattr(traces, "THERE", False)
    assert traces.open_tracer(Trace()) is None
    with pytest.raises(ConfigError, match="not installed"):
        traces.open_tracer(Trace(url="http://127.0.0.1:1/"))
    hide = "import sys; sys.modules['opentelemetry'] = None; import hermetic.web.server"
    subprocess.run([sys.executable, "-c", hide], check=True)
