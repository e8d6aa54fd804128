"""What is left of a turn: events folded into a message, and rules over a session's messages.

The fold is the one reading of the journal: a reader's snapshot, the session's last message and the answer that a
killed child leaves behind come from the same code. It can stop anywhere and go on, and an event that comes twice counts
once.

A message of ours is one mapping for the whole answer of a turn, with its tool calls' results inside (`tool_results`), so
that a partial answer is one thing to show and to replace. `provider_history` unfolds it for a provider.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from hermetic.protocol import api, events
from hermetic.protocol.events import Snapshot, StateName, ToolCall, Usage
from hermetic.supervisor.store.interface import Entry, SessionRow

Message = Mapping[str, Any]

PROVIDER_KEYS: Final = ("role", "content", "tool_calls", "tool_call_id", "name", "refusal")
"""What every provider knows; some answer 400 to any other."""
ATTACHED: Final = "\n\n[Attached files:"
TITLE_CHARACTERS: Final = 64
SNIPPET_CHARACTERS: Final = 200
CARD_ARGS: Final = 6
CARD_ARG_CHARACTERS: Final = 120
SAME_CHARACTERS: Final = 60
"""So much of a message is compared to find it again in what the agent made of it."""

_decode = msgspec.json.Decoder(events.JournalEvent).decode


# --- folding ------------------------------------------------------------------------------------------------------


class Fold:
    """A turn's events so far. Feed it in order of `seq`; what is fed again is passed over.

    A token costs the same at the end of a long answer as at its start: texts are kept as a list and joined when asked.
    """

    def __init__(self) -> None:
        self.last_seq = 0
        self.usage = Usage()
        self.title: str | None = None
        """The last that the agent proposed."""
        self.tool_calls: list[ToolCall] = []
        self.answers: dict[str, str] = {}
        """Approvals and clarifications that are settled, by id: the choice or the text."""
        self._asked: dict[str, events.Approval | events.Clarify] = {}
        self._open: dict[tuple[str, str], list[int]] = {}
        """Calls by ("tid", …) and by ("name", …), the last one last; finished ones are dropped when met. Not a search
        through all calls: an agent may open a million and then finish them, and must not hold up the supervisor."""
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._gap = False

    @property
    def text(self) -> str:
        return _joined(self._text)

    @property
    def reasoning(self) -> str:
        return _joined(self._reasoning)

    @property
    def pending(self) -> list[events.Approval | events.Clarify]:
        """What waits for a person, oldest first."""
        return list(self._asked.values())

    def feed(self, entry: Entry | tuple[int, str, bytes]) -> None:
        """One entry of the journal."""
        seq, _, data = entry
        if seq > self.last_seq:
            self.add(seq, _decode(data))

    def add(self, seq: int, event: events.JournalEvent) -> None:
        """The same for an event that is decoded already."""
        if seq <= self.last_seq:
            return
        self.last_seq = seq
        match event:
            case events.Token(text=text):
                self._say(text)
            case events.Reasoning(text=text):
                self._reasoning.append(text)
            case events.InterimAssistant(text=text, already_streamed=False):
                self._gap = bool(self._text)
                self._say(text)
                self._gap = True
            case events.Tool():
                self._begin(event)
            case events.ToolComplete():
                self._complete(event)
            case events.Approval():
                self._asked[event.approval_id] = event
            case events.Clarify():
                self._asked[event.clarify_id] = event
            case events.ApprovalResolved():
                self._settle(event.approval_id, event.choice)
            case events.ClarifyResolved():
                self._settle(event.clarify_id, event.text)
            case events.Metering(usage=usage):
                self.usage = usage
            case events.Title(title=title):
                self.title = title
            case events.Done(usage=usage):
                self.usage = usage
                self._asked.clear()
            case events.Apperror() | events.Cancel():
                self._asked.clear()

    def _say(self, text: str) -> None:
        """A whole message that was not streamed stands apart from the text around it."""
        if self._gap and text:
            self._gap = False
            self._text.append("\n\n")
        self._text.append(text)

    def _begin(self, event: events.Tool) -> None:
        for key in (("tid", event.tid), ("name", event.name)):
            self._open.setdefault(key, []).append(len(self.tool_calls))
        self.tool_calls.append(ToolCall(tid=event.tid, name=event.name, preview=event.preview, args=event.args))

    def _complete(self, event: events.ToolComplete) -> None:
        """By id, else the last of that name that runs; one that nobody announced is a call as well."""
        index = self._take(("tid", event.tid)) if event.tid else None
        if index is None:
            index = self._take(("name", event.name))
        if index is None:
            index = len(self.tool_calls)
            self.tool_calls.append(ToolCall(tid=event.tid, name=event.name))
        self.tool_calls[index] = replace(
            self.tool_calls[index],
            snippet=event.snippet,
            is_error=event.is_error,
            duration_s=event.duration_s,
            finished=True,
        )

    def _take(self, key: tuple[str, str]) -> int | None:
        indexes = self._open.get(key, [])
        while indexes:
            index = indexes.pop()
            if not self.tool_calls[index].finished:
                return index
        self._open.pop(key, None)
        return None

    def _settle(self, ask_id: str, answer: str) -> None:
        self._asked.pop(ask_id, None)
        self.answers[ask_id] = answer

    def snapshot(self, turn_id: str, state: StateName) -> Snapshot:
        return Snapshot(
            turn_id=turn_id,
            state=state,
            seq=self.last_seq,
            text=self.text,
            reasoning=self.reasoning,
            tool_calls=list(self.tool_calls),
            pending=self.pending,
            usage=self.usage,
            title=self.title,
        )

    def assistant_message(
        self, *, turn_id: str, timestamp: int, partial: bool, final_text: str | None
    ) -> dict[str, Any] | None:
        """The turn's answer as one message of the session; None when nothing at all was said.

        `{role, content, reasoning?, tool_calls?, tool_results?, partial?, turn_id, timestamp}`. `tool_calls` have
        OpenAI's shape, `tool_results` is `{id: snippet}` of those that finished. `final_text`, where there is some,
        replaces what the tokens said.
        """
        content = final_text or self.text
        if not (content or self.reasoning or self.tool_calls):
            return None
        message: dict[str, Any] = {"role": "assistant", "content": content}
        if self.reasoning:
            message["reasoning"] = self.reasoning
        if self.tool_calls:
            ids = _unique([call.tid or f"call_{n}" for n, call in enumerate(self.tool_calls, start=1)])
            message["tool_calls"] = [_openai_call(i, call) for i, call in zip(ids, self.tool_calls, strict=True)]
            message["tool_results"] = {
                i: call.snippet or "" for i, call in zip(ids, self.tool_calls, strict=True) if call.finished
            }
        if partial:
            message["partial"] = True
        return message | {"turn_id": turn_id, "timestamp": timestamp}

    def cards(self) -> list[api.ToolCard]:
        """Of this turn's one message, which is number 0."""
        message = self.assistant_message(turn_id="", timestamp=0, partial=True, final_text=None)
        return tool_cards([message] if message else [])


def _joined(parts: list[str]) -> str:
    if len(parts) > 1:
        parts[:] = ["".join(parts)]
    return parts[0] if parts else ""


def _unique(ids: list[str], taken: set[str] | None = None) -> list[str]:
    """The same ids, each with a number where it was there before."""
    taken = set() if taken is None else taken
    numbers: dict[str, int] = {}  # the next to try: an agent may give ten thousand calls one id
    unique = []
    for original in ids:
        name, number = original, numbers.get(original, 2)
        while name in taken:
            name, number = f"{original}_{number}", number + 1
        numbers[original] = number
        taken.add(name)
        unique.append(name)
    return unique


def _openai_call(call_id: str, call: ToolCall) -> dict[str, Any]:
    arguments = json.dumps(call.args, ensure_ascii=False)
    return {"id": call_id, "type": "function", "function": {"name": call.name, "arguments": arguments}}


# --- messages of a session ----------------------------------------------------------------------------------------


def user_message(text: str, attachments: Sequence[str], *, turn_id: str, timestamp: int) -> dict[str, Any]:
    """What is saved when a turn is accepted: the text, with its attachments named at the end for the agent."""
    message: dict[str, Any] = {"role": "user", "content": text}
    if attachments:
        message["content"] = f"{text}{ATTACHED} {', '.join(attachments)}]"
        message["attachments"] = list(attachments)
    return message | {"turn_id": turn_id, "timestamp": timestamp}


def provider_history(messages: Iterable[Any]) -> list[dict[str, Any]]:
    """What may be sent to a provider: mappings with a role, of those the keys that all know.

    A message of ours with `tool_results` becomes the calls, their results, and the text after them. Calls without a
    result are left out, for providers refuse them, and an answer that is empty then as well. Ids of our calls are made
    unique over the session: they name a call within its turn only.
    """
    taken: set[str] = set()
    unfolded = [
        part
        for message in messages
        if isinstance(message, Mapping) and message.get("role")
        for part in (_unfolded(message, taken) if isinstance(message.get("tool_results"), Mapping) else [message])
    ]
    history = []
    for index, message in enumerate(unfolded):
        kept = {key: message[key] for key in PROVIDER_KEYS if key in message}
        if kept.get("tool_calls"):
            answered = _answered(unfolded, index)
            kept["tool_calls"] = [call for call in _mappings(kept["tool_calls"]) if _call_id(call) in answered]
            if not kept["tool_calls"]:
                del kept["tool_calls"]
                if not kept.get("content"):
                    continue
        history.append(kept)
    return history


def _unfolded(message: Message, taken: set[str]) -> Iterator[Message]:
    results: Mapping[str, Any] = message["tool_results"]
    calls = [call for call in _mappings(message.get("tool_calls")) if _call_id(call) in results]
    if calls:
        ids = _unique([_call_id(call) for call in calls], taken)
        yield {
            "role": message["role"],
            "content": None,
            "tool_calls": [{**call, "id": i} for i, call in zip(ids, calls, strict=True)],
        }
        for call_id, call in zip(ids, calls, strict=True):
            yield {"role": "tool", "tool_call_id": call_id, "content": str(results[_call_id(call)])}
    if message.get("content"):
        yield {key: value for key, value in message.items() if key != "tool_calls"}


def _answered(messages: Sequence[Message], index: int) -> set[str]:
    """Ids of the results that stand directly behind a message."""
    ids = set()
    for position in range(index + 1, len(messages)):
        if messages[position].get("role") != "tool":
            break
        ids.add(_result_id(messages[position]))
    return ids


def index_of_turn(messages: Sequence[Message], turn_id: str) -> int:
    """Where a turn's messages begin: everything before is its history."""
    for index, message in enumerate(messages):
        if message.get("turn_id") == turn_id:
            return index
    return len(messages)


def with_timestamps(messages: Iterable[Any], now: int) -> list[Any]:
    """`timestamp` (int seconds) on each message that has neither `timestamp` nor `_ts`; the others as they are."""
    return [
        {**message, "timestamp": int(now)}
        if isinstance(message, Mapping) and not message.get("timestamp") and not message.get("_ts")
        else message
        for message in messages
    ]


def title_from(messages: Iterable[Any]) -> str:
    """The first text of a user, 64 characters of it; empty when there is none."""
    for message in messages:
        if isinstance(message, Mapping) and message.get("role") == "user":
            title = _text(message.get("content")).partition(ATTACHED)[0].strip()[:TITLE_CHARACTERS].rstrip()
            if title:
                return title
    return ""


def tag_attachments(messages: Iterable[Any], message: str, attachments: Sequence[str]) -> list[Any]:
    """`attachments` on the user's message that is `message`, the last such one.

    An agent may have put a tag in front of it or cut it, so it is the same when the first 60 characters of the one, without
    its list of attached files, are in the other. Returns the messages; those given are not changed.
    """
    tagged = list(messages)
    base = message.partition(ATTACHED)[0][:SAME_CHARACTERS]
    for index in reversed(range(len(tagged) if attachments else 0)):
        candidate = tagged[index]
        if isinstance(candidate, Mapping) and candidate.get("role") == "user":
            content = _text(candidate.get("content"))
            if content and (base in content or content[:SAME_CHARACTERS] in message):
                tagged[index] = {**candidate, "attachments": list(attachments)}
                break
    return tagged


def tool_cards(messages: Iterable[Any]) -> list[api.ToolCard]:
    """Tool calls, for drawing them again on reload, in the order of their results.

    Calls come as Anthropic's `tool_use` blocks or as OpenAI's `tool_calls`, results as messages of the role `tool` or
    in our own `tool_results`. A result whose call is unknown or is named `tool` gives no card. Of our own partial
    messages a call without a result gives one too, with an empty snippet: it is what ran when the turn was stopped.
    """
    open_calls: dict[str, tuple[str, int, Mapping[str, Any]]] = {}
    cards: list[api.ToolCard] = []

    def close(call_id: str, snippet: str) -> None:
        name, index, args = open_calls.pop(call_id, ("", 0, {}))
        if name and name != "tool":
            cards.append(
                api.ToolCard(
                    name=name, snippet=snippet, tid=call_id, assistant_msg_idx=index, args=_cut_arguments(args)
                )
            )

    for index, message in enumerate(messages):
        if not isinstance(message, Mapping):
            continue
        if message.get("role") == "assistant":
            results = message.get("tool_results")
            for call_id, name, args in _calls(message):
                open_calls[call_id] = (name, index, args)
                if isinstance(results, Mapping) and call_id in results:
                    close(call_id, _snippet(results[call_id]))
                elif isinstance(results, Mapping) and message.get("partial"):
                    close(call_id, "")
        elif message.get("role") == "tool":
            close(_result_id(message), _snippet(message.get("content")))
    return cards


def _calls(message: Message) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """→ `(id, name, arguments)` of both shapes."""
    content = message.get("content")
    for block in _mappings(content):
        if block.get("type") == "tool_use":
            yield str(block.get("id") or ""), str(block.get("name") or ""), _arguments(block.get("input"))
    for call in _mappings(message.get("tool_calls")):
        function = call.get("function")
        function = function if isinstance(function, Mapping) else {}
        yield _call_id(call), str(function.get("name") or ""), _arguments(function.get("arguments"))


def _call_id(call: Message) -> str:
    return str(call.get("id") or call.get("call_id") or "")


def _result_id(message: Message) -> str:
    return str(message.get("tool_call_id") or message.get("tool_use_id") or "")


def _arguments(raw: Any) -> Mapping[str, Any]:
    """Bad JSON is `{}`: a card without arguments is better than none."""
    if isinstance(raw, str):
        raw = _json(raw)
    return raw if isinstance(raw, Mapping) else {}


def _cut_arguments(args: Mapping[str, Any]) -> dict[str, str]:
    texts = {str(key): str(value) for key, value in list(args.items())[:CARD_ARGS]}
    return {
        key: text[:CARD_ARG_CHARACTERS] + ("..." if len(text) > CARD_ARG_CHARACTERS else "")
        for key, text in texts.items()
    }


def _snippet(content: Any) -> str:
    text = _text(content)
    parsed = _json(text)
    if isinstance(parsed, Mapping):
        text = str(parsed.get("output") or parsed.get("result") or parsed.get("error") or text)
    return text[:SNIPPET_CHARACTERS]


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _text(content: Any) -> str:
    """Of a message's content, which is text or a list of parts."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        parts = [part for part in _mappings(content) if part.get("type") in ("text", "input_text", "output_text")]
        return " ".join(str(part.get("text") or "") for part in parts)
    return "" if content is None else str(content)


def _mappings(values: Any) -> Iterator[Mapping[str, Any]]:
    """An agent's own messages can have anything where a list belongs."""
    return (value for value in (values if isinstance(values, list) else ()) if isinstance(value, Mapping))


# --- sessions -----------------------------------------------------------------------------------------------------


def compact(row: SessionRow) -> api.CompactSession:
    """A session without its messages."""
    session = row.session
    shared = {name: getattr(session, name) for name in _COMPACT_FIELDS}
    return api.CompactSession(**shared, message_count=row.message_count, active_turn_id=row.active_turn_id)


_COMPACT_FIELDS = tuple(
    name for name in api.CompactSession.__struct_fields__ if name not in ("message_count", "active_turn_id")
)


def markdown_export(session: api.CompactSession, messages: Iterable[Any]) -> str:
    """A session for reading: who said what and when (UTC), reasoning and tool calls included."""
    title = " ".join(session.title.split()) or "Untitled"
    facts = {
        "Session": session.session_id,
        "Agent": session.agent,
        "Profile": session.profile,
        "Model": session.model,
        "Workspace": session.workspace,
        "Created": _moment(session.created_at),
        "Tokens": f"{session.input_tokens} in, {session.output_tokens} out",
    }
    known = list(messages)
    cards: dict[int, list[api.ToolCard]] = {}
    for card in tool_cards(known):
        cards.setdefault(card.assistant_msg_idx, []).append(card)
    parts = [f"# {title}", "\n".join(f"- {name}: {value}" for name, value in facts.items() if value)]
    for index, message in enumerate(known):
        if isinstance(message, Mapping) and message.get("role") and message["role"] != "tool":
            parts += _markdown(message, cards.get(index, []))
    return "\n\n".join(parts) + "\n"


def _markdown(message: Message, cards: list[api.ToolCard]) -> Iterator[str]:
    heading = f"## {str(message['role']).capitalize()}"
    moment = _moment(message.get("timestamp") or message.get("_ts"))
    stopped = "stopped before it was finished" if message.get("partial") else ""
    about = ", ".join(note for note in (moment, stopped) if note)
    yield f"{heading} ({about})" if about else heading
    if reasoning := _text(message.get("reasoning")).strip():
        yield "\n".join(f"> {line}".rstrip() for line in reasoning.splitlines())
    for card in cards:
        arguments = ", ".join(f"{key}={value}" for key, value in card.args.items())
        yield f"Tool call {card.name}:\n\n{_fenced(f'{card.name}({arguments})', card.snippet)}"
    if text := _text(message.get("content")).strip():
        yield text


def _fenced(*texts: str) -> str:
    """A code block whose fence is longer than any that the text has (CommonMark, 4.5)."""
    text = "\n".join(part for part in texts if part)
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}\n{text}\n{fence}"


def _moment(timestamp: Any) -> str:
    try:
        return datetime.fromtimestamp(float(timestamp), UTC).strftime("%Y-%m-%d %H:%M UTC") if timestamp else ""
    except (TypeError, ValueError, OverflowError, OSError):
        return ""
