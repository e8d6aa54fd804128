"""OpenTelemetry traces, where the configuration asks for them: a span for each turn, its tool calls as children, by the
semantic conventions for generative AI (agent and tool spans). Names, times and counts alone: no text of a turn leaves by
this way.

They are made from a turn's events by a reader like any other, in a task of its own, so a turn does not wait for them.
What it has seen is exported by OpenTelemetry's own thread, which drops spans when it cannot keep up.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import msgspec
import trio

from hermetic import __version__
from hermetic.protocol.errors import ConfigError, StorageError
from hermetic.protocol.events import Apperror, Cancel, Done, Tool, ToolComplete
from hermetic.supervisor.config import Trace
from hermetic.supervisor.hub import Feed
from hermetic.supervisor.store.interface import Entry, EventLog, TurnSpec

try:
    from opentelemetry import trace
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.trace import Span, StatusCode
except ImportError:
    THERE = False
else:
    THERE = True

FLUSH_MS = 5000
"""For the last spans, when the server stops: a collector that is away must not hold it up."""
OPEN_CALLS_MAX = 1000
"""Tool calls whose end has not been seen. More are not in the trace: an agent that never ends them must not cost memory."""
_decode = msgspec.json.Decoder(Tool | ToolComplete | Done | Apperror | Cancel).decode
_DECODED = frozenset({"tool", "tool_complete", "done", "apperror", "cancel"})


def open_tracer(config: Trace) -> Tracer | None:
    """None: no traces are asked for. Raises `ConfigError` when what they need is not installed."""
    if config.url is None:
        return None
    if not THERE:
        raise ConfigError("trace.url is set, but OpenTelemetry is not installed", hint="pip install 'hermetic[otel]'")
    return Tracer(config, BatchSpanProcessor(OTLPSpanExporter(endpoint=config.url)))


class Tracer:
    def __init__(self, config: Trace, processor: SpanProcessor) -> None:
        resource = Resource.create({"service.name": config.service, "service.version": __version__})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("hermetic", __version__)

    async def follow(self, spec: TurnSpec, feed: Feed, log: EventLog, after: int) -> None:
        """One turn, from its events after `after` to its end."""
        name = f"invoke_agent {spec.agent}"
        turn = _Turn(self._tracer, self._tracer.start_span(name, attributes=_about(spec)))
        try:
            while True:
                await feed.wait_news(after)
                entries = await log.read(spec.turn_id, after)
                if not entries:
                    return
                for entry in entries:
                    turn.feed(entry)
                after = entries[-1].seq
        except StorageError:
            pass  # a trace with a hole is better than a server that stops for it
        finally:
            turn.end()

    async def close(self) -> None:
        """Sends what is left, for some seconds at most."""
        await trio.to_thread.run_sync(self._provider.force_flush, FLUSH_MS)
        await trio.to_thread.run_sync(self._provider.shutdown)


def _about(spec: TurnSpec) -> dict[str, str]:
    return {
        "gen_ai.operation.name": "invoke_agent",
        "gen_ai.provider.name": "hermetic",
        "gen_ai.agent.name": spec.agent,
        "gen_ai.conversation.id": spec.session_id,
        "hermetic.turn.id": spec.turn_id,
        "hermetic.tenant": spec.tenant,
    } | ({"gen_ai.request.model": spec.model} if spec.model else {})


class _Turn:
    def __init__(self, tracer: trace.Tracer, span: Span, now: Callable[[], int] = time.time_ns) -> None:
        self._tracer = tracer
        self._span = span
        self._now = now
        self._calls: dict[str, Span] = {}

    def feed(self, entry: Entry) -> None:
        if entry.name not in _DECODED:
            return
        match _decode(entry.data):
            case Tool() as tool:
                if len(self._calls) < OPEN_CALLS_MAX:
                    self._calls[tool.tid or tool.name] = self._call(tool.name, tool.tid, self._now())
            case ToolComplete() as done:
                span = self._calls.pop(done.tid or done.name, None)
                if span is None:
                    span = self._call(done.name, done.tid, self._now() - int((done.duration_s or 0) * 1e9))
                if done.is_error:
                    span.set_attribute("error.type", "tool_error")
                    span.set_status(StatusCode.ERROR)
                span.end(self._now())
            case Done(usage=usage):
                self._span.set_attribute("gen_ai.usage.input_tokens", usage.input_tokens)
                self._span.set_attribute("gen_ai.usage.output_tokens", usage.output_tokens)
            case Apperror() as error:
                self._span.set_attribute("error.type", error.type)
                self._span.set_status(StatusCode.ERROR)
            case Cancel():
                self._span.set_attribute("error.type", "cancelled")

    def _call(self, name: str, tid: str, at_ns: int) -> Span:
        about = {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": name, "gen_ai.tool.type": "function"}
        return self._tracer.start_span(
            f"execute_tool {name}",
            trace.set_span_in_context(self._span),
            attributes=about | ({"gen_ai.tool.call.id": tid} if tid else {}),
            start_time=at_ns,
        )

    def end(self) -> None:
        for span in self._calls.values():
            span.end(self._now())
        self._span.end(self._now())
