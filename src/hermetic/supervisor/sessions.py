"""Sessions: made, found, changed and deleted; what their turns need to know of them.

A session's agent, profile and workspace are names that came from outside: they are checked whenever they are set and
again before each turn, because the configuration and the file system may have changed in between.

An agent that compresses its context may go on under another id (`continuation` in store/interface.py). Then the old id
has the transcript from before, and whoever comes with it to say something, or to change what later turns are given, is
taken to the session that goes on (`current`).
"""

from __future__ import annotations

import secrets
import time
from pathlib import Path
from typing import Any

import msgspec
import trio

from hermetic.protocol import api
from hermetic.protocol.errors import ClientError, Conflict, NotFound, SessionContinued
from hermetic.supervisor.ballast import Ballast
from hermetic.supervisor.config import Config, default_agent
from hermetic.supervisor.identities import Identities
from hermetic.supervisor.identity import LOCAL, Caller
from hermetic.supervisor.store.interface import SESSION_ID, Session, SessionRow, Store
from hermetic.supervisor.summary import compact, tool_cards
from hermetic.supervisor.webui_state import session_path

RETRY_CONFLICT = 5
"""Tries of a read-change-write on a session; each loser lost to a write that succeeded."""
FOR_TURNS = frozenset({"agent", "profile", "workspace", "model", "personality"})
"""What a session keeps for its turns. A title, a pin or a place in the archive belongs to the transcript itself."""


class Sessions:
    """A supervisor's sessions. All methods raise `HermeticError`s from protocol/errors.py."""

    def __init__(self, config: Config, store: Store, identities: Identities, ballast: Ballast) -> None:
        self._config = config
        self._store = store
        self._identities = identities
        self._ballast = ballast

    async def create(self, new: api.NewSession, *, by: Caller, session_id: str | None = None) -> api.CompactSession:
        """`session_id`: one that another server has given out; `Conflict` when the tenant has it already."""
        self._ballast.check()
        if session_id is None:
            session_id = secrets.token_hex(6)
        elif not SESSION_ID.fullmatch(session_id):
            raise ClientError("a session's id is 1 to 64 letters, digits, _ and -", hint="Send another session_id.")
        agent = new.agent or default_agent(self._config)
        profile = new.profile or self._config.default_profile
        self.check_names(agent, profile)
        workspace = await trio.to_thread.run_sync(self.resolve, new.workspace, session_id, by.tenant)
        now = time.time()
        session = Session(
            session_id=session_id,
            tenant=by.tenant,
            title=(new.title or "").strip(),
            title_by_user=bool((new.title or "").strip()),
            agent=agent,
            profile=profile,
            workspace=str(workspace),
            model=new.model or self._config.agents[agent].model,
            personality=new.personality,
            project_id=new.project_id,
            created_at=now,
            updated_at=now,
        )
        await self._store.create_session(session)
        return compact(await self.row(by.tenant, session_id))

    async def find(self, session_id: str, *, by: Caller) -> api.CompactSession | None:
        row = await self._store.session(by.tenant, session_id)
        return row and compact(row)

    async def find_current(self, session_id: str, *, by: Caller) -> api.CompactSession | None:
        """The same, or the session that goes on from it."""
        row = await self._store.session(by.tenant, session_id)
        return row and compact(await self._last(row))

    async def view(self, session_id: str, *, by: Caller) -> api.SessionView:
        row = await self.row(by.tenant, session_id)
        messages = await self._store.messages(by.tenant, session_id)
        shown = {name: getattr(compact(row), name) for name in api.CompactSession.__struct_fields__}
        return api.SessionView(**shown, messages=messages, tool_calls=tool_cards(messages))

    async def page(
        self, *, by: Caller, before: float | None = None, limit: int = 50, archived: bool | None = False
    ) -> api.SessionList:
        rows = await self._store.sessions(by.tenant, before=before, limit=limit, archived=archived)
        following = rows[-1].session.updated_at if len(rows) == limit else None
        return api.SessionList(sessions=[compact(row) for row in rows], next_before=following)

    async def search(self, query: str, *, by: Caller, limit: int = 20) -> api.SearchResult:
        hits = await self._store.search(by.tenant, query, limit=limit)
        return api.SearchResult(
            hits=[
                api.SearchHit(
                    session_id=row.session.session_id,
                    title=row.session.title,
                    snippet=snippet,
                    updated_at=row.session.updated_at,
                )
                for row, snippet in hits
            ]
        )

    async def search_compact(self, query: str, *, by: Caller, limit: int = 50) -> list[api.CompactSession]:
        return [compact(row) for row, _snippet in await self._store.search(by.tenant, query, limit=limit)]

    async def change(self, session_id: str, change: api.ChangeSession, *, by: Caller) -> api.CompactSession:
        asked: dict[str, Any] = {
            name: value for name in change.__struct_fields__ if (value := getattr(change, name)) is not msgspec.UNSET
        }
        changes = dict(asked)
        if "title" in changes:
            changes["title"] = changes["title"].strip()
            changes["title_by_user"] = bool(changes["title"])
        for _ in range(RETRY_CONFLICT):
            row = await (self.row if FOR_TURNS.isdisjoint(changes) else self.current)(by.tenant, session_id)
            if "workspace" in asked:
                changes["workspace"] = str(await self._resolved(asked["workspace"], row.session))
            self.check_names(changes.get("agent", row.session.agent), changes.get("profile", row.session.profile))
            try:
                await self._store.put_session(msgspec.structs.replace(row.session, **changes), if_rev=row.rev)
                return compact(await self.row(by.tenant, row.session.session_id))
            except Conflict:
                continue
        raise Conflict("the session keeps changing under this request", hint="Send it again.")

    async def truncate(self, session_id: str, keep: int, *, by: Caller, untitled: bool = False) -> api.SessionView:
        """Forgets all messages but the first `keep`. `untitled`: also the title. Raises `SessionBusy`, and
        `SessionContinued`: nobody would go on from what is left."""
        now = time.time()
        cleared = {"title": "", "title_by_user": False} if untitled else {}

        def change(session: Session) -> Session:
            refuse_continued(session)
            return msgspec.structs.replace(session, updated_at=now, **cleared)

        await self._store.truncate(by.tenant, session_id, keep, change=change)
        return await self.view(session_id, by=by)

    async def workspace(self, session_id: str, *, by: Caller) -> Path:
        """The folder in which the session's next turn would work, allowed at this moment."""
        session = (await self.current(by.tenant, session_id)).session
        return await self._resolved(session.workspace, session)

    async def delete(self, session_id: str, *, by: Caller) -> None:
        if not await self._store.delete_session(by.tenant, session_id):
            raise NotFound(f"there is no session {session_id[:40]}")
        # Its workspace stays: files of a person are never deleted with a conversation.

    async def row(self, tenant: str, session_id: str) -> SessionRow:
        """As the store has it. Raises `NotFound`."""
        row = await self._store.session(tenant, session_id)
        if row is None:
            raise NotFound(f"there is no session {session_id[:40]}")
        return row

    async def current(self, tenant: str, session_id: str) -> SessionRow:
        """The same, or the session that goes on from it: where its turns are. Raises `NotFound`."""
        return await self._last(await self.row(tenant, session_id))

    async def _last(self, row: SessionRow) -> SessionRow:
        # It ends: a session begins as the last one of its line, and each has one before it at most.
        while (following := row.session.continued_as) is not None:
            row = await self.row(row.session.tenant, following)
        return row

    async def is_free(self, tenant: str, session_id: str) -> bool:
        """Whether an agent may call its session so; the store has the last word on its own sessions. A web UI in front
        of us may have one that we have not seen, and the file of that one must not become ours."""
        if not SESSION_ID.fullmatch(session_id) or await self._store.session(tenant, session_id) is not None:
            return False
        state_dir = self._config.webui.state_dir if tenant == LOCAL else None
        return state_dir is None or not await trio.Path(session_path(Path(state_dir), session_id)).exists()

    def check_names(self, agent: str, profile: str) -> None:
        """Raises `NotFound` unless the configuration has both."""
        if agent not in self._config.agents:
            known = ", ".join(sorted(self._config.agents))
            raise NotFound(f"there is no agent {agent[:80]!r}", hint=f"This server has: {known}.")
        self.check_profile(profile)

    def check_profile(self, profile: str) -> None:
        """Raises `NotFound` unless the configuration has it."""
        if profile not in self._config.profiles:
            known = ", ".join(sorted(self._config.profiles))
            raise NotFound(f"there is no profile {profile[:80]!r}", hint=f"This server has: {known}.")

    async def _resolved(self, asked: str | None, session: Session) -> Path:
        return await trio.to_thread.run_sync(self.resolve, asked, session.folder or session.session_id, session.tenant)

    def resolve(self, asked: str | None, folder: str, tenant: str) -> Path:
        """A workspace that a session may have whose own is called `folder` (workspaces.py). Blocks on the file system."""
        return self._identities.workspace(tenant, asked, folder, self._config.workspaces.roots)


def refuse_continued(session: Session) -> None:
    """Raises `SessionContinued`. Inside a step of the store: a turn may end between a look and a write."""
    if session.continued_as is not None:
        raise SessionContinued(
            f"session {session.session_id} goes on as {session.continued_as}", continued_as=session.continued_as
        )
