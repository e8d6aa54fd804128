"""How a turn ends, as values: what is known of it → the one write that ends it. No clock, no store, no process.

The same for a turn that its child has finished, one that was stopped or has crashed, and one that a dead server has left:
the last events (what nobody answered, the terminal event, `stream_end`), the message that stays in the session, and the
session's totals.
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from hermetic.protocol import events
from hermetic.protocol.control import Exited
from hermetic.protocol.errors import HermeticError
from hermetic.supervisor.config import Limits
from hermetic.supervisor.store.interface import (
    SESSION_ID,
    Change,
    Finish,
    Record,
    Session,
    SessionRow,
    TurnSpec,
    continuation,
)
from hermetic.supervisor.summary import TITLE_CHARACTERS, Fold, compact, tag_attachments, with_timestamps

BRIEF_CHARACTERS = 64 << 10
"""Of an answer whose whole does not fit on the disk any more: a hundredth of the ballast."""
BRIEF_NOTE = "\n\n[The disk was full. The rest of this answer is in the turn's events.]"
TOKENS_MAX = (1 << 53) - 1
"""Of a session; as the bound of one turn's."""
COST_MAX = 1e300
"""Of a session. Two turns that each name the largest float would add up to infinity, which JSON cannot carry: the
session could be written, and then no list that has it could be read again."""
TITLE_READ = 1000
"""Of an agent's title; what stands behind so much white space is no title."""
LONG_PARTS = ("reasoning", "tool_calls", "tool_results")

Sliced = TypeVar("Sliced", str, list[str])


class Cause(msgspec.Struct, frozen=True):
    """Why a turn ended other than by its result: what the terminal event will say."""

    message: str
    type: str
    fault: str = "agent"
    hint: str = ""


BY_USER = Cause("Cancelled by the user. What was said so far is kept in the session.", "cancelled", "client")
BEFORE_START = Cause("Cancelled before the agent started.", "cancelled", "client")
SERVER_STOPS = Cause("The server is stopping. What was said so far is kept in the session.", "cancelled", "host")
SERVER_DIED = Cause(
    "The server stopped while this turn ran. What was said until then is kept in the session.",
    "lost",
    "host",
    "Send the message again, or ask the agent to go on.",
)
OUR_MISTAKE = Cause(
    "the server made a mistake while it ran this turn", "internal", "hermetic", HermeticError.default_hint
)


def cause_of(error: HermeticError | OSError) -> Cause:
    if isinstance(error, HermeticError):
        return Cause(error.message, error.code, error.fault, error.hint)
    return Cause(str(error), "host_error", "host", "The host must look at the server's log.")


class Ending(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a turn when it ends."""

    spec: TurnSpec
    epoch: int
    first_seq: int
    """Of the events that end it."""
    verdict: events.Verdict
    fold: Fold
    """Of everything that the journal has."""
    result: events.Result | events.Failed | None = None
    cause: Cause | None = None
    """None: the child's result or its exit says it."""
    exited: Exited | None = None
    stderr: str = ""
    late: int = 0
    """Events that the child sent after its result."""
    earlier: list[dict[str, Any]] | None = None
    """The session's messages up to the user's own of this turn: asked for by `needs_earlier`."""
    id_taken: bool = False
    """The id that the agent wants for its session is somebody else's."""


def new_id(known: Ending) -> str | None:
    """The id under which the agent goes on after compressing its context, whatever it is worth; None: it has kept its
    own."""
    wanted = known.result.session_id if isinstance(known.result, events.Result) else None
    return wanted if wanted and wanted != known.spec.session_id else None


def needs_earlier(known: Ending) -> bool:
    """Whether the session goes on under a new id and its agent did not say with which messages."""
    return new_id(known) is not None and isinstance(known.result, events.Result) and known.result.messages is None


def finish_of(known: Ending, row: SessionRow | None, limits: Limits, now: float, *, brief: bool = False) -> Finish:
    """`row`: the session as it is, for the terminal event. `brief`: the store has refused the whole of it; a long answer
    is cut, the journal has the rest."""
    result = known.result if isinstance(known.result, events.Result) else None
    usage = result.usage if result and result.usage else known.fold.usage
    messages = _messages(known, result, int(now), brief=brief)
    history = _history(known.spec, result, int(now))
    change = session_change(now, usage, result.title if result and result.title else known.fold.title)
    wanted = new_id(known)
    follows = wanted if wanted and SESSION_ID.fullmatch(wanted) and not known.id_taken and not brief else None
    if follows and history is None:
        history = [*(known.earlier or []), *messages]
    if wanted and not follows and brief:
        history = None  # with the transcript it would take the room of the place where that is kept
    said: list[events.Event] = [*_unanswered(known.fold)]
    if known.late:
        said.append(
            events.Warning(
                code="protocol",
                message=f"{known.late} events that the agent sent after its end were dropped",
                hint="Send nothing after Result or Failed.",
            )
        )
    if wanted and not follows and not brief:
        said.append(
            events.Warning(
                code="session_id_refused",
                message="the agent has changed its session's id to one that cannot be used; the session keeps its own",
                hint="A session's id is 1 to 64 letters, digits, _ and -, and of no other session.",
            )
        )
    if known.verdict == "done":
        shown = compact(_as_it_will_be(row, change, messages, history, follows)) if row else None
        calls = known.fold.cards() if any("tool_calls" in message for message in messages) else []
        session = {
            **(msgspec.to_builtins(shown) if shown else {}),
            "messages": messages,
            "tool_calls": msgspec.to_builtins(calls),
        }
        said.append(events.Done(turn_id=known.spec.turn_id, session=session, usage=usage))
    else:
        said.append(_apology(known, limits))
    said.append(events.StreamEnd(turn_id=known.spec.turn_id, state=known.verdict))
    return Finish(
        turn_id=known.spec.turn_id,
        epoch=known.epoch,
        state=known.verdict,
        first_seq=known.first_seq,
        records=[record(event) for event in said],
        messages=messages,
        history=history,
        continue_as=follows,
        change=change,
        usage=usage,
        ended_at=now,
        stderr=_last(known.stderr, limits.stderr_bytes_max) or None,
    )


def _as_it_will_be(
    row: SessionRow,
    change: Change,
    messages: list[dict[str, Any]],
    history: list[dict[str, Any]] | None,
    follows: str | None,
) -> SessionRow:
    """The session after the write, for the event that is a part of it."""
    session: Session = change(row.session)
    if follows:
        _, session = continuation(row.session, session, follows)
    count = row.message_count + len(messages) if history is None else len(history)
    return row._replace(session=session, message_count=count)


def record(event: events.Event) -> Record:
    """An event of ours as the journal keeps it."""
    return events.event_name(event), events.encode(event)


def session_change(now: float, usage: events.Usage, title: str | None) -> Change:
    """What the end of a turn does to its session: totals, time, and the agent's title unless the user gave one."""
    return lambda session: msgspec.structs.replace(
        session,
        title=session.title if session.title_by_user or not title else _one_line(title) or session.title,
        updated_at=now,
        input_tokens=min(session.input_tokens + usage.input_tokens, TOKENS_MAX),
        output_tokens=min(session.output_tokens + usage.output_tokens, TOKENS_MAX),
        estimated_cost=min(session.estimated_cost + usage.estimated_cost, COST_MAX),
    )


def _one_line(title: str) -> str:
    return " ".join(title[:TITLE_READ].split())[:TITLE_CHARACTERS].rstrip()


def _messages(known: Ending, result: events.Result | None, now: int, *, brief: bool) -> list[dict[str, Any]]:
    if result and result.turn_messages and known.verdict == "done" and not brief:
        return with_timestamps([{**said, "turn_id": known.spec.turn_id} for said in result.turn_messages], now)
    message = known.fold.assistant_message(
        turn_id=known.spec.turn_id,
        timestamp=now,
        partial=known.verdict != "done",
        final_text=result.text if result else None,
    )
    if message is None:
        return []
    return [_brief(message) if brief else message]


def _history(spec: TurnSpec, result: events.Result | None, now: int) -> list[dict[str, Any]] | None:
    """An agent that keeps the conversation itself gives all of it; ours are the times and the attachments."""
    if result is None or result.messages is None:
        return None
    return tag_attachments(with_timestamps(result.messages, now), spec.message, spec.attachments)


def _unanswered(fold: Fold) -> list[events.Event]:
    return [
        events.ApprovalResolved(approval_id=ask.approval_id, choice="deny", by="end")
        if isinstance(ask, events.Approval)
        else events.ClarifyResolved(clarify_id=ask.clarify_id, text="", by="end")
        for ask in fold.pending
    ]


def _apology(known: Ending, limits: Limits) -> events.Event:
    cause, exited, verdict = _why(known), known.exited, known.verdict
    if verdict == "cancelled":
        return events.Cancel(turn_id=known.spec.turn_id, message=cause.message)
    return events.Apperror(
        turn_id=known.spec.turn_id,
        message=cause.message,
        type=cause.type,
        state=verdict,
        fault=cause.fault,
        hint=cause.hint,
        exit_code=exited.exit_code if exited and verdict == "crashed" else None,
        signal=exited.signal if exited and verdict == "crashed" else None,
        stderr=_last(known.stderr.splitlines(), limits.stderr_lines) if verdict in ("crashed", "failed") else [],
    )


def _why(known: Ending) -> Cause:
    if known.verdict == "failed" and isinstance(known.result, events.Failed):
        failed = known.result
        return Cause(failed.message, failed.type, failed.fault, failed.hint)
    if known.cause:
        return known.cause
    exited = known.exited
    if exited and exited.signal:
        how = f"was killed by {exited.signal}"
    else:
        how = f"exited with code {exited.exit_code if exited else '?'}"
    return Cause(
        f"the agent's process {how} without giving a result",
        "crashed",
        hint="What it printed last is in `stderr`; what it said until then is kept in the session.",
    )


def _last(what: Sliced, count: int) -> Sliced:
    """The last `count`; not `what[-count:]`, which is all of it when `count` is 0."""
    return what[max(len(what) - count, 0) :]


def _brief(message: dict[str, Any]) -> dict[str, Any]:
    """Only what must be in the session when there is no room: some of the answer, none of the rest if it is long."""
    rest = {name: value for name, value in message.items() if name not in LONG_PARTS}
    long = sum(len(msgspec.json.encode(message[name])) for name in LONG_PARTS if name in message) > BRIEF_CHARACTERS
    if not long and len(message["content"]) <= BRIEF_CHARACTERS:
        return message
    return (rest if long else message) | {"content": message["content"][:BRIEF_CHARACTERS] + BRIEF_NOTE}
