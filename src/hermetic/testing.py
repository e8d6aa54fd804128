"""What users and we need for tests: fakes that keep the contracts of the real parts.

`MemoryStore` passes the same contract test as the store on disk and loses all when it goes.
"""

from __future__ import annotations

import secrets
import unicodedata
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import msgspec
import trio

from hermetic.protocol.errors import Conflict, Fenced, NotFound, QueueFull, SessionBusy
from hermetic.supervisor.audit import Act
from hermetic.supervisor.identity import LOCAL
from hermetic.supervisor.store.governance import DAY_S, Admit, Used
from hermetic.supervisor.store.governance_memory import MemoryAudit, MemorySecrets, MemoryUsage
from hermetic.supervisor.store.identity import Key, Login, Tenant, User
from hermetic.supervisor.store.interface import (
    Change,
    Claim,
    Entry,
    Finish,
    Place,
    Record,
    Session,
    SessionRow,
    Then,
    TurnRow,
    TurnSpec,
    Writing,
    continuation,
)
from hermetic.supervisor.store.journal_rows import pack
from hermetic.supervisor.store.search import text_of, words_of

__all__ = ["MemoryIdentities", "MemoryStore"]

Messages = list[dict[str, Any]]
At = tuple[str, str]
"""A session's key: its tenant and its id."""


class MemoryStore:
    """A `Store` in memory (supervisor/store/interface.py). Use it as `store = MemoryStore()`, in one trio run.

    Every method is a checkpoint first and then one step without another, so a cancelled call has not happened.
    """

    def __init__(self) -> None:
        self._sessions: dict[At, Session] = {}
        self._revs: dict[At, int] = {}
        # In the order of admission, as dicts keep it.
        self._turns: dict[str, TurnRow] = {}
        self._journal: dict[str, list[Entry]] = {}
        self._name = secrets.token_hex(8)
        self._positions: dict[str, int] = {}
        self._order: dict[str, list[tuple[int, str, Entry]]] = {}
        # By turn; as JSON, so that nobody shares a message with the store.
        self._messages: dict[str, list[bytes]] = {}
        self.identities = MemoryIdentities(self)
        self.audit = MemoryAudit()
        self.secrets = MemorySecrets(self.audit)
        self.usage = MemoryUsage(
            lambda tenant: sum(t.spec.tenant == tenant and t.state == "queued" for t in self._turns.values())
        )

    @property
    def writing(self) -> Writing:
        return Writing()

    # --- journal ---------------------------------------------------------------------------------------------------

    async def append(
        self, turn_id: str, epoch: int, first_seq: int, records: Sequence[Record], then: Then | None = None
    ) -> None:
        pack(records)  # only for its checks
        await trio.lowlevel.checkpoint()
        self._append(turn_id, epoch, first_seq, records, then)

    async def append_durable(
        self,
        turn_id: str,
        epoch: int,
        first_seq: int,
        records: Sequence[Record],
        then: Then | None = None,
        *,
        act: Act | None = None,
    ) -> None:
        await self.append(turn_id, epoch, first_seq, records, then)
        self.audit.note(act)

    async def read(self, turn_id: str, after: int, *, bytes_max: int = 1 << 20) -> list[Entry]:
        await trio.lowlevel.checkpoint()
        entries: list[Entry] = []
        size = 0
        for entry in self._journal.get(turn_id, [])[max(after, 0) :]:
            size += len(entry.data)
            if entries and size > bytes_max:
                break
            entries.append(entry)
        return entries

    async def last_seq(self, turn_id: str) -> int:
        await trio.lowlevel.checkpoint()
        return len(self._journal.get(turn_id, []))

    async def name(self) -> str:
        await trio.lowlevel.checkpoint()
        return self._name

    async def position(self, tenant: str, then: Then | None = None) -> int:
        await trio.lowlevel.checkpoint()
        position = self._positions.get(tenant, 0)
        if then is not None:
            then(position)
        return position

    async def read_tenant(
        self, tenant: str, after: int, upto: int, *, sessions: Collection[str] | None = None, bytes_max: int = 1 << 20
    ) -> tuple[list[Place], int]:
        await trio.lowlevel.checkpoint()
        places: list[Place] = []
        size = 0
        for position, turn_id, entry in self._order.get(tenant, []):
            if turn_id not in self._turns or not after < position <= upto:
                continue
            session_id = self._turns[turn_id].spec.session_id
            if sessions is None or session_id in sessions:
                size += len(entry.data)
                if places and size > bytes_max:
                    return places, position - 1
                places.append(Place(position, turn_id, session_id, entry))
        return places, upto

    # --- turns -----------------------------------------------------------------------------------------------------

    async def enqueue(
        self,
        spec: TurnSpec,
        message: dict[str, Any],
        *,
        queue_max: int,
        change: Change | None = None,
        admit: Admit | None = None,
        act: Act | None = None,
    ) -> tuple[TurnRow, bool]:
        return await self._enqueue(spec, message, queue_max, change, admit, act, if_idle=False)

    async def enqueue_if_idle(
        self,
        spec: TurnSpec,
        message: dict[str, Any],
        *,
        queue_max: int,
        change: Change | None = None,
        admit: Admit | None = None,
        act: Act | None = None,
    ) -> tuple[TurnRow, bool]:
        return await self._enqueue(spec, message, queue_max, change, admit, act, if_idle=True)

    async def _enqueue(
        self,
        spec: TurnSpec,
        message: dict[str, Any],
        queue_max: int,
        change: Change | None,
        admit: Admit | None,
        act: Act | None,
        *,
        if_idle: bool,
    ) -> tuple[TurnRow, bool]:
        packed = _packed([message])
        await trio.lowlevel.checkpoint()
        at = _at(spec)
        session = self._sessions.get(at)
        if session is None:
            raise NotFound(f"there is no session {spec.session_id}")
        for turn in self._of_session(at):
            if spec.idempotency_key is not None and turn.spec.idempotency_key == spec.idempotency_key:
                return self._row(turn), False
        if if_idle:
            self._refuse_busy(at)
        if spec.turn_id in self._turns:
            raise Conflict(f"there is a turn {spec.turn_id} already")
        waiting = sum(turn.state == "queued" for turn in self._turns.values())
        if waiting >= queue_max:
            raise QueueFull(f"{waiting} turns wait already")
        changed = session if change is None else change(session)  # before anything is kept, because it may raise
        if admit is not None:
            pace = admit(self.usage.now(spec.tenant, int(spec.created_at // DAY_S)))
            self.usage.keep_pace(spec.tenant, pace)
        self.audit.note(act)
        row = TurnRow(spec=spec, state="queued", epoch=0)
        self._turns[spec.turn_id] = row
        self._journal[spec.turn_id] = []
        self._messages[spec.turn_id] = packed
        if change is not None:
            self._put(changed)
        return row, True

    async def claim(self, turn_id: str, *, started_at: float) -> Claim | None:
        await trio.lowlevel.checkpoint()
        turn = self._turns.get(turn_id)
        if turn is None or turn.state != "queued":
            return None
        turn = _replace(turn, state="running", epoch=turn.epoch + 1, started_at=started_at)
        self._turns[turn_id] = turn
        return Claim(turn.spec, turn.epoch, len(self._journal[turn_id]))

    async def finish(self, end: Finish, then: Then | None = None) -> None:
        pack(end.records)
        packed = _packed(end.messages if end.history is None else end.history)
        await trio.lowlevel.checkpoint()
        turn = self._own_turn(end.turn_id, end.epoch, end.first_seq)
        at = _at(turn.spec)
        before = self._sessions[at]
        after = before if end.change is None else end.change(before)  # first, because it may raise
        if (turn.spec.tenant, end.continue_as) in self._sessions:
            raise Conflict(f"there is a session {end.continue_as} already")
        position = self._append(end.turn_id, end.epoch, end.first_seq, end.records)
        self._turns[end.turn_id] = _replace(turn, state=end.state, ended_at=end.ended_at, stderr=end.stderr)
        if end.usage is not None:
            used = Used(1, end.usage.input_tokens, end.usage.output_tokens, end.usage.estimated_cost)
            self.usage.add(turn.spec.tenant, int(end.ended_at // DAY_S), used)
        if end.continue_as is not None:
            self._continue(at, end.turn_id, *continuation(before, after, end.continue_as))
            at = turn.spec.tenant, end.continue_as
        elif end.change is not None:
            self._put(after)
        if end.history is None:
            self._messages[end.turn_id][1:] = packed
        else:
            for earlier in self._of_session(at):
                if earlier.spec.turn_id == end.turn_id:
                    break
                self._messages[earlier.spec.turn_id] = []
            self._messages[end.turn_id] = packed
        if then is not None:
            then(position)

    def _continue(self, at: At, turn_id: str, before: Session, after: Session) -> None:
        self._put(before)
        self._put(after)
        turns = self._of_session(at)
        first = next(at for at, turn in enumerate(turns) if turn.spec.turn_id == turn_id)
        for turn in turns[first:]:
            moved = msgspec.structs.replace(turn.spec, session_id=after.session_id)
            self._turns[turn.spec.turn_id] = _replace(turn, spec=moved)

    async def turn(self, turn_id: str) -> TurnRow | None:
        await trio.lowlevel.checkpoint()
        turn = self._turns.get(turn_id)
        return turn and self._row(turn)

    async def unended(self) -> list[TurnRow]:
        await trio.lowlevel.checkpoint()
        return [self._row(turn) for turn in self._turns.values() if turn.ended_at is None]

    async def session_turns(self, tenant: str, session_id: str) -> list[TurnRow]:
        await trio.lowlevel.checkpoint()
        return [self._row(turn) for turn in self._of_session((tenant, session_id))]

    async def recent_turns(self, tenant: str, *, limit: int) -> list[TurnRow]:
        await trio.lowlevel.checkpoint()
        ended = [turn for turn in self._turns.values() if turn.ended_at is not None and turn.spec.tenant == tenant]
        return [self._row(turn) for turn in ended[::-1][:limit]]

    async def request_cancel(self, turn_id: str, *, act: Act | None = None) -> bool:
        await trio.lowlevel.checkpoint()
        turn = self._turns.get(turn_id)
        if turn is None or turn.ended_at is not None:
            return False
        if not turn.cancel_requested:
            self.audit.note(act)
        self._turns[turn_id] = _replace(turn, cancel_requested=True)
        return True

    # --- sessions --------------------------------------------------------------------------------------------------

    async def create_session(self, session: Session) -> None:
        await trio.lowlevel.checkpoint()
        if _at(session) in self._sessions:
            raise Conflict(f"there is a session {session.session_id} already")
        self._put(session)

    async def session(self, tenant: str, session_id: str) -> SessionRow | None:
        await trio.lowlevel.checkpoint()
        at = tenant, session_id
        return self._session_row(at) if at in self._sessions else None

    async def put_session(self, session: Session, *, if_rev: int) -> int:
        await trio.lowlevel.checkpoint()
        rev = self._revs.get(_at(session))
        if rev is None:
            raise NotFound(f"there is no session {session.session_id}")
        if rev != if_rev:
            raise Conflict(f"session {session.session_id} has been changed in the meantime", rev=rev)
        self._put(session)
        return rev + 1

    async def delete_session(self, tenant: str, session_id: str) -> bool:
        await trio.lowlevel.checkpoint()
        at = tenant, session_id
        if at not in self._sessions:
            return False
        self._refuse_busy(at)
        for turn in self._of_session(at):
            del self._turns[turn.spec.turn_id], self._journal[turn.spec.turn_id], self._messages[turn.spec.turn_id]
        continues = self._sessions[at].continues
        del self._sessions[at], self._revs[at]
        earlier = self._sessions.get((tenant, continues or ""))
        if earlier and earlier.continued_as == session_id:
            self._put(msgspec.structs.replace(earlier, continued_as=None))
        return True

    async def messages(self, tenant: str, session_id: str) -> Messages:
        await trio.lowlevel.checkpoint()
        return self._unpacked((tenant, session_id))

    async def truncate(self, tenant: str, session_id: str, keep: int, *, change: Change | None = None) -> int:
        await trio.lowlevel.checkpoint()
        at = tenant, session_id
        if at not in self._sessions:
            raise NotFound(f"there is no session {session_id}")
        self._refuse_busy(at)
        if change is not None:  # first, because it may raise
            self._put(change(self._sessions[at]))
        left = max(keep, 0)
        for turn in self._of_session(at):
            kept = self._messages[turn.spec.turn_id][:left]
            self._messages[turn.spec.turn_id] = kept
            left -= len(kept)
        return max(keep, 0) - left

    async def sessions(
        self, tenant: str, *, before: float | None = None, limit: int = 50, archived: bool | None = False
    ) -> list[SessionRow]:
        await trio.lowlevel.checkpoint()
        found = [
            session
            for session in reversed(self._sessions.values())
            if session.tenant == tenant
            and (before is None or session.updated_at < before)
            and (archived is None or session.archived == archived)
        ]
        found.sort(key=lambda session: session.updated_at, reverse=True)
        return [self._session_row(_at(session)) for session in found[: max(limit, 0)]]

    async def search(self, tenant: str, query: str, *, limit: int = 20) -> list[tuple[SessionRow, str]]:
        await trio.lowlevel.checkpoint()
        words = [_folded(word) for word in words_of(query)]
        hits = []
        for session in self._sessions.values():
            texts = [session.title, *map(text_of, self._unpacked(_at(session)))]
            found = [_mark(text, words) for text in texts]
            if words and session.tenant == tenant and set().union(*(seen for seen, _ in found)) == set(words):
                seen, snippet = max(found, key=lambda mark: len(mark[0]))
                hits.append((len(seen), self._session_row(_at(session)), snippet))
        hits.sort(key=lambda hit: hit[0], reverse=True)
        return [(row, snippet) for _, row, snippet in hits[: max(limit, 0)]]

    async def count_sessions(self, tenant: str) -> int:
        await trio.lowlevel.checkpoint()
        return sum(session.tenant == tenant for session in self._sessions.values())

    # --- what several methods do -----------------------------------------------------------------------------------

    def _own_turn(self, turn_id: str, epoch: int, first_seq: int) -> TurnRow:
        turn = self._turns.get(turn_id)
        if turn is None:
            raise Fenced(f"there is no turn {turn_id}")
        if turn.ended_at is not None:
            raise Fenced(f"turn {turn_id} has ended")
        if turn.epoch != epoch:
            raise Fenced(f"turn {turn_id} has epoch {turn.epoch}, not {epoch}")
        if first_seq != len(self._journal[turn_id]) + 1:
            raise Fenced(f"turn {turn_id} has {len(self._journal[turn_id])} events; {first_seq} cannot be the next")
        return turn

    def _append(
        self, turn_id: str, epoch: int, first_seq: int, records: Sequence[Record], then: Then | None = None
    ) -> int:
        """→ the position of its last event."""
        tenant = self._own_turn(turn_id, epoch, first_seq).spec.tenant
        for seq, (name, data) in enumerate(records, first_seq):
            entry = Entry(seq, name, bytes(data))
            self._journal[turn_id].append(entry)
            self._positions[tenant] = self._positions.get(tenant, 0) + 1
            self._order.setdefault(tenant, []).append((self._positions[tenant], turn_id, entry))
        position = self._positions.get(tenant, 0)
        if then is not None:
            then(position)
        return position

    def _row(self, turn: TurnRow) -> TurnRow:
        return _replace(turn, last_seq=len(self._journal[turn.spec.turn_id]))

    def _of_session(self, at: At) -> list[TurnRow]:
        return [turn for turn in self._turns.values() if _at(turn.spec) == at]

    def _refuse_busy(self, at: At) -> None:
        for turn in self._of_session(at):
            if turn.ended_at is None:
                turn_id = turn.spec.turn_id
                raise SessionBusy(f"turn {turn_id} of this session has not ended", turn_id=turn_id)

    def _put(self, session: Session) -> None:
        at = _at(session)
        self._sessions[at] = session
        self._revs[at] = self._revs.get(at, 0) + 1

    def _session_row(self, at: At) -> SessionRow:
        turns = self._of_session(at)
        return SessionRow(
            self._sessions[at],
            self._revs[at],
            sum(len(self._messages[turn.spec.turn_id]) for turn in turns),
            next((turn.spec.turn_id for turn in turns if turn.ended_at is None), None),
        )

    def _unpacked(self, at: At) -> Messages:
        turns = self._of_session(at)
        return [msgspec.json.decode(data) for turn in turns for data in self._messages[turn.spec.turn_id]]


class MemoryIdentities:
    """An `IdentityStore` in memory (supervisor/store/identity.py), part of a `MemoryStore`."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store
        self._given = 0
        self._tenants: dict[str, Tenant] = {}
        self._users: dict[tuple[str, str], User] = {}
        self._keys: dict[str, Key] = {}
        self._logins: dict[bytes, Login] = {}

    async def tenants(self) -> list[Tenant]:
        await trio.lowlevel.checkpoint()
        return list(self._tenants.values())

    async def tenant(self, tenant: str) -> Tenant | None:
        await trio.lowlevel.checkpoint()
        return self._tenants.get(tenant)

    async def add_tenant(self, tenant: Tenant, *, act: Act | None = None) -> Tenant:
        await trio.lowlevel.checkpoint()
        if tenant.tenant in self._tenants:
            raise Conflict(f"there is a tenant {tenant.tenant} already")
        self._given += 1
        made = msgspec.structs.replace(tenant, number=self._given)
        self._tenants[tenant.tenant] = made
        self._store.audit.note(act)
        return made

    async def put_tenant(self, tenant: Tenant, *, act: Act | None = None) -> None:
        await trio.lowlevel.checkpoint()
        if (before := self._tenants.get(tenant.tenant)) is None:
            raise NotFound(f"there is no tenant {tenant.tenant}")
        self._tenants[tenant.tenant] = msgspec.structs.replace(tenant, number=before.number)
        self._store.audit.note(act)

    async def remove_tenant(self, tenant: str, *, act: Act | None = None) -> bool:
        await trio.lowlevel.checkpoint()
        if any(turn.spec.tenant == tenant and turn.ended_at is None for turn in self._store._turns.values()):
            raise Conflict(f"turns of the tenant {tenant} have not ended", hint="Suspend it first, and wait.")
        if self._tenants.pop(tenant, None) is None:
            return False
        for session in [session for session in self._store._sessions.values() if session.tenant == tenant]:
            await self._store.delete_session(tenant, session.session_id)
        self._users = {at: user for at, user in self._users.items() if user.tenant != tenant}
        self._forget(lambda it: it.tenant == tenant)
        self._store.secrets.forget(tenant)
        self._store.usage.forget(tenant)
        self._store.audit.note(act)
        return True

    async def users(self, tenant: str) -> list[User]:
        await trio.lowlevel.checkpoint()
        return [user for _, user in sorted(self._users.items()) if user.tenant == tenant]

    async def user(self, tenant: str, user: str) -> User | None:
        await trio.lowlevel.checkpoint()
        return self._users.get((tenant, user))

    async def put_user(self, user: User, *, act: Act | None = None) -> None:
        await trio.lowlevel.checkpoint()
        self._check_tenant(user.tenant)
        self._users[user.tenant, user.user] = user
        self._store.audit.note(act)

    async def remove_user(self, tenant: str, user: str, *, act: Act | None = None) -> bool:
        await trio.lowlevel.checkpoint()
        if self._users.pop((tenant, user), None) is None:
            return False
        self._forget(lambda it: (it.tenant, it.user) == (tenant, user))
        self._store.audit.note(act)
        return True

    async def add_key(self, key: Key, *, act: Act | None = None) -> None:
        await trio.lowlevel.checkpoint()
        self._check_tenant(key.tenant)
        if key.key_id in self._keys:
            raise Conflict(f"there is a key {key.key_id} already")
        self._keys[key.key_id] = key
        self._store.audit.note(act)

    async def key(self, key_id: str) -> Key | None:
        await trio.lowlevel.checkpoint()
        return self._keys.get(key_id)

    async def keys(self, tenant: str) -> list[Key]:
        await trio.lowlevel.checkpoint()
        return [key for key in self._keys.values() if key.tenant == tenant]

    async def revoke_key(self, tenant: str, key_id: str, at: float, *, act: Act | None = None) -> bool:
        await trio.lowlevel.checkpoint()
        key = self._keys.get(key_id)
        if key is None or key.tenant != tenant:
            return False
        if key.revoked_at is None:
            self._keys[key_id] = msgspec.structs.replace(key, revoked_at=at)
        self._logins = {at: login for at, login in self._logins.items() if login.key_id != key_id}
        self._store.audit.note(act)
        return True

    async def touch_key(self, key_id: str, at: float) -> None:
        await trio.lowlevel.checkpoint()
        if key := self._keys.get(key_id):
            self._keys[key_id] = msgspec.structs.replace(key, last_used_at=at)

    async def add_login(self, login: Login, *, act: Act | None = None) -> None:
        await trio.lowlevel.checkpoint()
        self._logins[login.sha256] = login
        self._store.audit.note(act)

    async def login(self, sha256: bytes) -> Login | None:
        await trio.lowlevel.checkpoint()
        return self._logins.get(sha256)

    async def remove_login(self, sha256: bytes) -> bool:
        await trio.lowlevel.checkpoint()
        return self._logins.pop(sha256, None) is not None

    async def forget_logins(self, before: float) -> int:
        await trio.lowlevel.checkpoint()
        kept = {at: login for at, login in self._logins.items() if login.expires_at >= before}
        gone, self._logins = len(self._logins) - len(kept), kept
        return gone

    def _check_tenant(self, tenant: str) -> None:
        if tenant != LOCAL and tenant not in self._tenants:
            raise NotFound(f"there is no tenant {tenant}")

    def _forget(self, gone: Callable[[Key | Login], bool]) -> None:
        self._keys = {at: key for at, key in self._keys.items() if not gone(key)}
        self._logins = {at: login for at, login in self._logins.items() if not gone(login)}


def _at(whose: Session | TurnSpec) -> At:
    return whose.tenant, whose.session_id


def _replace(turn: TurnRow, **members: Any) -> TurnRow:
    return msgspec.structs.replace(turn, **members)


def _packed(messages: Sequence[Mapping[str, Any]]) -> list[bytes]:
    return [msgspec.json.encode(message) for message in messages]


def _folded(text: str) -> str:
    """Without case and accents."""
    return "".join(c for c in unicodedata.normalize("NFD", text.casefold()) if not unicodedata.combining(c))


def _mark(text: str, words: list[str]) -> tuple[set[str], str]:
    """→ which of the words occur (the last as a prefix), and the text with those marked."""
    seen: set[str] = set()
    pieces = text.split()
    for at, piece in enumerate(pieces):
        for part in words_of(piece):
            folded = _folded(part)
            hits = {word for word in words if folded == word or (word == words[-1] and folded.startswith(word))}
            if hits:
                pieces[at] = pieces[at].replace(part, f"«{part}»")
                seen |= hits
    return seen, " ".join(pieces)
