"""Sessions and their messages as text for a terminal."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from hermetic.protocol import api
from hermetic.terminal import Cleaner, clean_line

TITLE_CHARS = 60
"""Of a title or a hit; identifier and date beside it fit into 80 columns."""


def session_lines(sessions: Sequence[api.CompactSession]) -> str:
    return "".join(
        f"{session.session_id}  {_when(session.updated_at)}  {clean_line(session.title, TITLE_CHARS) or '(no title)'}"
        f"{' (running)' if session.active_turn_id else ''}\n"
        for session in sessions
    )


def hit_lines(hits: Sequence[api.SearchHit]) -> str:
    return "".join(
        f"{hit.session_id}  {_when(hit.updated_at)}  {clean_line(hit.title, TITLE_CHARS)}\n    {clean_line(hit.snippet)}\n"
        for hit in hits
    )


def transcript(session: api.SessionView) -> str:
    head = f"{clean_line(session.title) or '(no title)'}\nsession {session.session_id}, {session.workspace}\n"
    return head + "".join(_message(message) for message in session.messages)


def _message(message: Mapping[str, Any]) -> str:
    """One message under its role, each line indented, so that no text can pass for a head of ours."""
    role = clean_line(str(message.get("role", "?")))
    if name := message.get("name"):
        role += f" {clean_line(str(name))}"
    marks = " (partial)" if message.get("partial") else ""
    text = _plain(_text(message.get("content"))).strip("\n")
    calls = [call.get("function", {}).get("name", "?") for call in message.get("tool_calls") or []]
    lines = [*(text.split("\n") if text else []), *(f"▸ {clean_line(str(call))}" for call in calls)]
    return f"\n{role}{marks}:\n" + "".join(f"  {line}".rstrip() + "\n" for line in lines)


def _text(content: Any) -> str:
    """A message's content is text, or a list of parts of which some have text."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "\n".join(str(part.get("text", "")) for part in content if isinstance(part, dict) and part.get("text"))
    return ""


def _plain(text: str) -> str:
    cleaner = Cleaner()
    return cleaner.feed(text) + cleaner.end()


def _when(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
