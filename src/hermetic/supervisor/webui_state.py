"""The file that a Hermes Web UI in front of this server keeps of each session, written for it at the start and the end of a turn.

Its client for a runner shows what streams, and on reload reads the session from its own state folder, where it expects
the runner to have written it: `<state_dir>/sessions/<session_id>.json`, one JSON object. What that server says about the
session itself (a name that the user gave, a pin, a project) stays as it is there; what turns bring comes from here.
Messages that were there before the session came to us stay in front of ours.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from hermetic.protocol import api

ITS_OWN: Final = ("pinned", "archived", "project_id", "profile", "personality", "created_at", "model_provider")
"""Members that the web UI decides; ours stand only where it has none."""
UNNAMED: Final = ("", "Untitled", "New Chat")
"""Titles that nobody gave."""


def session_file(before: Mapping[str, Any], session: api.SessionView) -> dict[str, Any]:
    """The file's next content; `before` is its present one, empty when there is none.

    Members come before `messages`, because the web UI reads the head of the file alone for its list of sessions.
    """
    ours = session.messages
    earlier = _not_ours(before.get("messages"), ours)
    title = before.get("title")
    provider, model = split_model(session.model)
    made: dict[str, Any] = {
        "session_id": session.session_id,
        "title": title if title and title not in UNNAMED else session.title or "Untitled",
        "workspace": session.workspace,
        "model": model if model else before.get("model"),
        "model_provider": provider,
        "created_at": session.created_at,
        "updated_at": session.updated_at,
        "pinned": session.pinned,
        "archived": session.archived,
        "project_id": session.project_id,
        "profile": session.profile,
        "input_tokens": session.input_tokens,
        "output_tokens": session.output_tokens,
        "estimated_cost": session.estimated_cost,
        "personality": session.personality,
        "active_stream_id": None,  # it knows the streams of its own process alone, and takes others for broken
        "pending_user_message": None,
        "pending_attachments": [],
        "pending_started_at": None,
        "message_count": len(earlier) + len(ours),
    }
    made |= {name: before[name] for name in ITS_OWN if before.get(name) is not None}
    made |= {
        name: value for name, value in before.items() if name not in made and name not in ("messages", "tool_calls")
    }
    made["messages"] = earlier + ours
    made["tool_calls"] = _cards(before.get("tool_calls"), session.tool_calls, len(earlier))
    return made


def split_model(model: str | None) -> tuple[str | None, str | None]:
    """`@provider:model` → `(provider, model)`, any other → `(None, model)`."""
    if model and model.startswith("@") and ":" in model:
        provider, _, name = model[1:].partition(":")
        return provider, name
    return None, model


def _not_ours(messages: Any, ours: list[dict[str, Any]]) -> list[Any]:
    """The messages in front of the first that came from a turn of ours."""
    if not isinstance(messages, list):
        return []
    turns = {message.get("turn_id") for message in ours} - {None}
    earlier: list[Any] = []
    for message in messages:
        if isinstance(message, dict) and (message.get("turn_id") in turns or message in ours):
            break
        earlier.append(message)
    return earlier


def _cards(before: Any, cards: list[api.ToolCard], offset: int) -> list[Any]:
    """Cards of earlier messages, then ours, whose indexes move by `offset`."""
    kept = [
        card
        for card in (before if isinstance(before, list) else [])
        if isinstance(card, dict) and isinstance(index := card.get("assistant_msg_idx"), int) and index < offset
    ]
    return kept + [
        {**msgspec.to_builtins(card), "assistant_msg_idx": card.assistant_msg_idx + offset} for card in cards
    ]


def session_path(state_dir: Path, session_id: str) -> Path:
    return state_dir / "sessions" / f"{session_id}.json"


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def write_session_file(state_dir: Path, session: api.SessionView) -> None:
    """Reads, makes and replaces the file in one rename, so that a reader finds the old one or the new. Blocks.

    Raises `OSError`; a file that is no JSON object counts as none.
    """
    path = session_path(state_dir, session.session_id)
    folder = path.parent
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    before = _read(path)
    if not before and session.continues:  # what its user said of the session holds for the one that goes on
        earlier = _read(session_path(state_dir, session.continues))
        before = {name: earlier[name] for name in ("title", *ITS_OWN) if name in earlier}
    content = session_file(before, session)
    draft = folder / f"{session.session_id}.tmp.{secrets.token_hex(4)}"
    try:
        with open(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as file:
            file.write(json.dumps(content, ensure_ascii=False, indent=2).encode("utf-8", "surrogatepass"))
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
