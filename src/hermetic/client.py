"""A client for Hermetic's HTTP API, on trio.

```
async with Client("http://127.0.0.1:8642") as client:
    session = await client.create_session(NewSession())
    turn = await client.start_turn(session.session_id, "list the files")
    async with client.events(turn.turn_id) as events:
        async for cursor, event in events:
            ...
```

The idea of `events`: a turn is a numbered journal, so a reader that remembers the number of the last event it has
handed out can lose its connection anywhere, in the middle of an event or of a character, and go on as if nothing had
happened. `EventStream` keeps that number, throws away what it has already seen, and refuses a hole.

Errors: `ServerError` is a problem document of the server, `Unreachable` a server that does not answer, `BadAnswer` one
that answers something else than Hermetic would. All are `HermeticError`s with a hint.
"""

from __future__ import annotations

import contextlib
import ipaddress
import random
import uuid
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable
from typing import Any, Generic, NamedTuple, Self, TypeVar, get_args
from urllib.parse import quote, urlsplit

import httpx2
import msgspec
import trio

from hermetic.protocol import api
from hermetic.protocol.errors import HermeticError, HostError
from hermetic.protocol.events import (
    Choice,
    DrainingNotice,
    ReaderEvent,
    Reset,
    ResetAll,
    StreamEnd,
    TenantEvent,
    TurnEvent,
    event_name,
)
from hermetic.protocol.sse import Cursor, parse_cursor

CONNECT_S = 5.0
"""For the TCP handshake: a server on this machine needs a millisecond, one across the world less than a second."""
ANSWER_S = 30.0
"""For any answer but a stream; a session's creation waits for a disk at worst."""
HEARTBEAT_S = 10.0
"""What config.Stream.heartbeat_s is by default; used until the server has told its own."""
SILENT_HEARTBEATS = 3
"""One heartbeat may be late and one lost in a stall; three in a row mean that nobody is there."""
BACKOFF_S_MAX = 15.0
"""Longest pause between two attempts: a person who waits sees a server that is back within this time."""
BACKOFF_S_MIN = 0.05
"""Shortest: also a server that says `retry: 0` is asked at most 20 times a second."""
EVENT_BYTES_MAX = 64 << 20
"""One event. A child's are at most 1 MiB, but `done` and `reset` carry a whole turn."""
GIVE_UP_S = 120.0
"""How long a stream may be without any byte of its server: a restart with recovery takes seconds."""

T = TypeVar("T")
Item = TypeVar("Item")
Query = list[tuple[str, str | int | float | bool | None]]
_KNOWN_EVENTS = frozenset(event_name(kind) for kind in get_args(ReaderEvent))
_decode_event = msgspec.json.Decoder(ReaderEvent).decode
_decode_turn_event = msgspec.json.Decoder(TurnEvent).decode
_decode_reset_all = msgspec.json.Decoder(ResetAll).decode
_decode_draining = msgspec.json.Decoder(DrainingNotice).decode
_WORTH_ANOTHER_TRY = frozenset({408, 425, 429, 500, 502, 503, 504})


class ServerError(HermeticError):
    """The server refused. `problem` has its words: `code`, `status`, `fault`, `detail`, `hint`."""

    code = "server_error"
    default_hint = "Read the problem's detail; the server's log may have more."

    def __init__(self, problem: api.Problem) -> None:
        super().__init__(problem.detail or problem.title, hint=problem.hint)
        self.problem = problem


class Unreachable(HostError):
    """Nobody answers at the address, or the connection broke before the answer was whole."""

    code = "unreachable"
    status = 503
    default_hint = "Start a server with `hermetic serve`, or name the right address with --server."


class BadAnswer(HostError):
    """What answers is not Hermetic, or not of this version."""

    code = "bad_answer"
    status = 502
    default_hint = "Check that the address is Hermetic's own and that client and server have the same version."


# --- server-sent events, sans-IO ----------------------------------------------------------------------------------


class RawEvent(NamedTuple):
    id: str
    name: str
    data: bytes


class EventDecoder:
    """Bytes in any split → whole events (WHATWG HTML, section 9.2.6). What a cut leaves unfinished is never given out.

    Works on bytes, so that a character cut in half needs no care and JSON is decoded once; lines end in LF or CRLF (a
    lone CR cannot stand in JSON). `retry_s` is what the server last asked for, in seconds.
    Raises BadAnswer for an event over EVENT_BYTES_MAX.
    """

    def __init__(self) -> None:
        self.retry_s: float | None = None
        self._tail = bytearray()
        self._scanned = 0
        self._id = ""
        self._name = ""
        self._data: list[bytes] = []
        self._size = 0

    def feed(self, chunk: bytes) -> list[RawEvent]:
        self._tail += chunk
        if (last := self._tail.rfind(b"\n", self._scanned)) < 0:
            self._scanned = len(self._tail)
            self._check_size()
            return []
        lines = bytes(self._tail[:last]).split(b"\n")
        del self._tail[: last + 1]
        self._scanned = len(self._tail)
        whole = [event for line in lines if (event := self._line(line.removesuffix(b"\r")))]
        self._check_size()
        return whole

    def _line(self, line: bytes) -> RawEvent | None:
        if not line:
            return self._dispatch()
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            self._data.append(value)
            self._size += len(value)
        elif name == b"event":
            self._name = value.decode(errors="replace")
        elif name == b"id" and b"\0" not in value:
            self._id = value.decode(errors="replace")
        elif name == b"retry" and value.isdigit() and len(value) <= 9:
            self.retry_s = int(value) / 1000
        return None

    def _dispatch(self) -> RawEvent | None:
        event = RawEvent(self._id, self._name, b"\n".join(self._data)) if self._data else None
        self._name, self._data, self._size = "", [], 0
        return event

    def _check_size(self) -> None:
        if self._size + len(self._tail) > EVENT_BYTES_MAX:
            raise BadAnswer(f"One event is over {EVENT_BYTES_MAX} bytes.")


def backoff_s(attempt: int, retry_s: float, jitter: Callable[[float, float], float] = random.uniform) -> float:
    """How long to wait before attempt 0, 1, 2, …: doubling from `retry_s`, jittered so that many readers of a server
    that restarts do not all come back in the same instant."""
    whole = min(BACKOFF_S_MAX, max(retry_s, BACKOFF_S_MIN) * 2.0 ** min(attempt, 16))
    return max(BACKOFF_S_MIN, jitter(0.5, 1.0) * whole)


# --- streams ------------------------------------------------------------------------------------------------------


class _Follower(Generic[Item]):
    """A stream of events as an async iterator that reconnects by itself: after a cut, an end before its time, a silence
    of three heartbeats, a refusal that may pass (503 and its like, with their Retry-After). What it asks for, and what
    it hands out, its two kinds say.

    Resource handling: holds one connection. It is closed at the end, on an error, on cancellation, and by leaving
    `async with`; who stops in the middle of a plain `async for` calls `aclose`.

    Error handling: Unreachable after `give_up_s` without a byte; ServerError for a refusal that will not pass (404);
    BadAnswer for what Hermetic would not say. `on_break(why, pause_s)` is called before each pause.
    """

    def __init__(
        self, client: Client, give_up_s: float, on_break: Callable[[HermeticError, float], None] | None
    ) -> None:
        self._client = client
        self._give_up_s = give_up_s
        self._on_break = on_break
        self._retry_s = 1.0
        self._attempt = 0
        self._broken_since: float | None = None
        self._ready: deque[RawEvent] = deque()
        self._decoder = EventDecoder()
        self._response: httpx2.Response | None = None
        self._chunks: AsyncGenerator[bytes, None] | None = None
        self._ended = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()

    def __aiter__(self) -> Self:
        return self

    def _asks(self) -> tuple[str, Query]:
        """→ path and query of the next connection."""
        raise NotImplementedError

    async def _accept(self, raw: RawEvent) -> Item | None:
        """What is handed out for an event; None for one that is not to be shown."""
        raise NotImplementedError

    async def __anext__(self) -> Item:
        try:
            while not self._ended:
                while self._ready:
                    if (item := await self._accept(self._ready.popleft())) is not None:
                        self._attempt = 0
                        return item
                if self._response is None:
                    await self._connect()
                else:
                    await self._read()
        except BaseException:
            await self.aclose()
            raise
        await self.aclose()
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Close the connection, if one is open; the iterator is at its end then. May be called again."""
        self._ended = True
        await self._hang_up()

    async def _connect(self) -> None:
        silence_s = SILENT_HEARTBEATS * await self._client.heartbeat_s()
        http = self._client._http
        path, query = self._asks()
        request = http.build_request(
            "GET",
            path,
            params=query,
            headers={"Accept": "text/event-stream", "Cache-Control": "no-store"},
            timeout=httpx2.Timeout(silence_s, connect=CONNECT_S),
        )
        try:
            response = await http.send(request, stream=True)
        except httpx2.TransportError as error:
            return await self._pause(self._client.unreachable(error))
        self._response = response
        if response.status_code == 204:
            self._ended = True
        elif response.status_code != 200:
            await self._refused(response)
        elif response.headers.get("content-type", "").partition(";")[0].strip().lower() != "text/event-stream":
            raise BadAnswer(f"{self._client.url} answered for the events with something else than an event stream.")
        else:
            self._decoder = EventDecoder()
            self._chunks = response.aiter_bytes()

    async def _refused(self, response: httpx2.Response) -> None:
        try:
            await response.aread()
        except httpx2.TransportError as error:
            return await self._pause(self._client.unreachable(error))
        refusal = _problem(response)
        if response.status_code not in _WORTH_ANOTHER_TRY:
            raise refusal
        seconds = response.headers.get("retry-after", "")
        await self._pause(refusal, float(seconds) if seconds.isdigit() and len(seconds) <= 6 else 0.0)

    async def _read(self) -> None:
        assert self._chunks is not None
        try:
            chunk = await anext(self._chunks)
        except StopAsyncIteration:
            return await self._pause(Unreachable(f"{self._client.url} closed the stream before its end."))
        except (httpx2.TransportError, httpx2.DecodingError) as error:
            return await self._pause(self._client.unreachable(error))
        self._broken_since = None
        self._ready.extend(self._decoder.feed(chunk))
        if self._decoder.retry_s is not None:
            self._retry_s = self._decoder.retry_s

    async def _pause(self, why: HermeticError, at_least_s: float = 0.0) -> None:
        """Hang up, then wait before the next attempt; raises `why` when that would be later than `give_up_s`."""
        await self._hang_up()
        self._ready.clear()
        now = trio.current_time()
        if self._broken_since is None:
            self._broken_since = now
        pause_s = max(at_least_s, backoff_s(self._attempt, self._retry_s))
        if now + pause_s - self._broken_since > self._give_up_s:
            raise why
        self._attempt += 1
        if self._on_break is not None:
            self._on_break(why, pause_s)
        await trio.sleep(pause_s)

    async def _hang_up(self) -> None:
        response, self._response = self._response, None
        chunks, self._chunks = self._chunks, None
        if response is None:
            return
        with trio.CancelScope(shield=True):  # closing a socket does not wait
            await response.aclose()
            if chunks is not None:
                # The HTTP library reads through nested async generators. Left hanging in the middle they would be
                # finished by the garbage collector, which trio warns of: on the closed socket they run out at once.
                with contextlib.suppress(httpx2.TransportError, httpx2.StreamError, httpx2.DecodingError):
                    async for _ in chunks:
                        pass


class EventStream(_Follower[tuple[Cursor, ReaderEvent]]):
    """The events of one turn after a cursor, as an async iterator of `(Cursor, ReaderEvent)`.

    No event comes twice and none is left out. Ends after `stream_end`, or at once when the turn has ended and nothing is
    left (204). A `reset` is handed out like an event: the reader throws away what it has and draws its snapshot; what
    follows comes after the snapshot.
    """

    def __init__(
        self,
        client: Client,
        turn_id: str,
        after: int,
        give_up_s: float,
        on_break: Callable[[HermeticError, float], None] | None,
    ) -> None:
        super().__init__(client, give_up_s, on_break)
        self.cursor = Cursor(turn_id, after)
        self._hole_at: int | None = None

    def _asks(self) -> tuple[str, Query]:
        return f"/v1/turns/{_part(self.cursor.turn_id)}/events", [("after", str(self.cursor.seq))]

    async def _accept(self, raw: RawEvent) -> tuple[Cursor, ReaderEvent] | None:
        """The event if it is the reader's next, and the cursor moved onto it; None for one that is not to be shown."""
        event: ReaderEvent | None = None
        if raw.name in _KNOWN_EVENTS:  # a newer server may say more; what is unknown still counts for the cursor
            try:
                event = _decode_event(raw.data)
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                raise BadAnswer(f"{self._client.url} sent an event {raw.name!r} that cannot be read: {error}") from None
        if isinstance(event, Reset):
            self.cursor = Cursor(self.cursor.turn_id, event.snapshot.seq)
            self._hole_at = None
            return self.cursor, event
        if isinstance(event, DrainingNotice):
            self._retry_s = event.retry_ms / 1000
            return self.cursor, event
        cursor = parse_cursor(raw.id, self.cursor.turn_id)
        if cursor is None or cursor.turn_id != self.cursor.turn_id:
            raise BadAnswer(f"{self._client.url} sent an event with the id {raw.id!r}, which is not of this turn.")
        if cursor.seq <= self.cursor.seq:
            return None
        if cursor.seq > self.cursor.seq + 1:
            await self._hole(cursor.seq)
            return None
        self.cursor = cursor
        self._ended = isinstance(event, StreamEnd)
        if event is None:
            return None
        self._hole_at = None
        return cursor, event

    async def _hole(self, seq: int) -> None:
        """Ask once more for what is missing; the journal has no holes, so a second one is a fault."""
        message = f"{self._client.url} sent event {seq} after event {self.cursor.seq} and left out what is between."
        if self._hole_at == self.cursor.seq:
            raise BadAnswer(message)
        self._hole_at = self.cursor.seq
        await self._pause(BadAnswer(message))


class AllEvents(_Follower[tuple[str, TenantEvent]]):
    """The events of all turns, or of those of some sessions, as an async iterator of `(cursor, TenantEvent)`.

    It begins with a `ResetAll`, the turns that have not ended, unless it is given the cursor of an earlier one. It never
    ends by itself. What it hands out comes once and in order, over any cut; a `ResetAll` in between says that it could
    not be so (the cursor was too old): throw away what you have of turns that run, and draw its `turns`.
    """

    def __init__(
        self,
        client: Client,
        sessions: Iterable[str],
        after: str | None,
        give_up_s: float,
        on_break: Callable[[HermeticError, float], None] | None,
    ) -> None:
        super().__init__(client, give_up_s, on_break)
        self.cursor = after
        self._sessions: Query = [("session_id", session_id) for session_id in sessions]

    def _asks(self) -> tuple[str, Query]:
        return "/v1/events", [*self._sessions, ("after", self.cursor)] if self.cursor else self._sessions

    async def _accept(self, raw: RawEvent) -> tuple[str, TenantEvent] | None:
        event: TenantEvent | None = None
        try:
            if raw.name == "reset":
                event = _decode_reset_all(raw.data)
            elif raw.name == "draining":
                event = _decode_draining(raw.data)
                self._retry_s = event.retry_ms / 1000
            elif raw.name in _KNOWN_EVENTS:
                event = _decode_turn_event(raw.data)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise BadAnswer(f"{self._client.url} sent an event {raw.name!r} that cannot be read: {error}") from None
        if raw.id == self.cursor and not isinstance(event, ResetAll | DrainingNotice):
            return None  # a ping, or what was seen
        self.cursor = raw.id
        return None if event is None else (raw.id, event)


# --- the client ---------------------------------------------------------------------------------------------------


class Client:
    """One server. `heartbeat_s` None: asked of the server once, before the first stream.

    Requests that do no harm twice are sent again once when a connection breaks under them; so is the start of a turn,
    which carries an idempotency key.
    """

    def __init__(
        self,
        url: str,
        *,
        key: str | None = None,
        headers: dict[str, str] | None = None,
        heartbeat_s: float | None = None,
    ) -> None:
        """`key`: for a server with tenants."""
        self.url = url.rstrip("/")
        scheme, host = urlsplit(self.url).scheme, urlsplit(self.url).hostname
        if not host or scheme not in ("http", "https"):
            raise Unreachable(f"{url!r} is not an address of a server.", hint="Write it like http://127.0.0.1:8642.")
        self._heartbeat_s = heartbeat_s
        self._http = httpx2.AsyncClient(
            base_url=self.url,
            headers={"Authorization": f"Bearer {key}", **(headers or {})} if key else headers,
            timeout=httpx2.Timeout(ANSWER_S, connect=CONNECT_S),
            # Every stream holds a connection for as long as its turn runs: a limit would make the next one wait.
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=8),
            verify=scheme == "https",  # reading the system's certificates takes 20 ms that plain HTTP can save
            trust_env=not _is_loopback(host),  # a proxy from the environment cannot reach this machine's loopback
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        with trio.CancelScope(shield=True):  # closing sockets does not wait
            await self._http.aclose()

    # --- sessions

    async def create_session(self, new: api.NewSession | None = None) -> api.CompactSession:
        body = new or api.NewSession()
        return await self._call("POST", "/v1/sessions", api.CompactSession, body, again=False)

    async def list_sessions(
        self, *, before: float | None = None, limit: int | None = None, archived: bool | None = None
    ) -> api.SessionList:
        query = {"before": before, "limit": limit, "archived": None if archived is None else str(archived).lower()}
        return await self._call("GET", "/v1/sessions", api.SessionList, query=query)

    async def search_sessions(self, text: str, *, limit: int | None = None) -> api.SearchResult:
        return await self._call("GET", "/v1/search", api.SearchResult, query={"q": text, "limit": limit})

    async def get_session(self, session_id: str) -> api.SessionView:
        return await self._call("GET", f"/v1/sessions/{_part(session_id)}", api.SessionView)

    async def change_session(self, session_id: str, change: api.ChangeSession) -> api.CompactSession:
        return await self._call("PATCH", f"/v1/sessions/{_part(session_id)}", api.CompactSession, change)

    async def delete_session(self, session_id: str) -> None:
        await self._call("DELETE", f"/v1/sessions/{_part(session_id)}", None, again=False)

    # --- turns

    async def start_turn(
        self, session_id: str, message: str | api.NewTurn, *, idempotency_key: str | None = None
    ) -> api.TurnView:
        """The same key with the same body answers with the same turn; None: a fresh one."""
        body = api.NewTurn(message=message) if isinstance(message, str) else message
        headers = {"Idempotency-Key": idempotency_key or body.idempotency_key or uuid.uuid4().hex}
        return await self._call("POST", f"/v1/sessions/{_part(session_id)}/turns", api.TurnView, body, headers=headers)

    async def get_turn(self, turn_id: str) -> api.TurnView:
        return await self._call("GET", f"/v1/turns/{_part(turn_id)}", api.TurnView)

    def events(
        self,
        turn_id: str,
        after: int | Cursor = 0,
        *,
        give_up_s: float = GIVE_UP_S,
        on_break: Callable[[HermeticError, float], None] | None = None,
    ) -> EventStream:
        """The turn's events after number `after` (0: from the start)."""
        seq = after if isinstance(after, int) else after.seq
        return EventStream(self, turn_id, seq, give_up_s, on_break)

    def all_events(
        self,
        sessions: Iterable[str] = (),
        after: str | None = None,
        *,
        give_up_s: float = GIVE_UP_S,
        on_break: Callable[[HermeticError, float], None] | None = None,
    ) -> AllEvents:
        """The events of all turns from now on, or after a cursor of an earlier stream; with `sessions`, only theirs."""
        return AllEvents(self, sessions, after, give_up_s, on_break)

    async def cancel(self, turn_id: str) -> api.Accepted:
        """Ask the turn to end; its events tell when it has. Asking twice does no harm."""
        return await self._call("POST", f"/v1/turns/{_part(turn_id)}/cancel", api.Accepted)

    async def approve(self, turn_id: str, approval_id: str, choice: Choice) -> api.ApprovalView:
        path = f"/v1/turns/{_part(turn_id)}/approvals/{_part(approval_id)}"
        return await self._call("POST", path, api.ApprovalView, api.GiveApproval(choice=choice))

    async def answer(self, turn_id: str, clarify_id: str, text: str) -> api.ClarifyView:
        path = f"/v1/turns/{_part(turn_id)}/clarifications/{_part(clarify_id)}"
        return await self._call("POST", path, api.ClarifyView, api.GiveAnswer(text=text))

    async def steer(self, turn_id: str, message: str) -> api.Accepted:
        """Give the running agent a word."""
        path = f"/v1/turns/{_part(turn_id)}/messages"
        return await self._call("POST", path, api.Accepted, api.GiveSteer(message=message), again=False)

    async def run(
        self, session_id: str, message: str | api.NewTurn, on_event: Callable[[ReaderEvent], None] | None = None
    ) -> api.TurnView:
        """Start a turn, read it to its end, return it as it ended (`snapshot.text` is the answer).

        Cancelling this call does not cancel the turn: it goes on in the server.
        """
        turn = await self.start_turn(session_id, message)
        async with self.events(turn.turn_id) as stream:
            async for _, event in stream:
                if on_event is not None:
                    on_event(event)
        return await self.get_turn(turn.turn_id)

    # --- tenants, for admins

    async def list_tenants(self) -> api.TenantList:
        return await self._call("GET", "/v1/admin/tenants", api.TenantList)

    async def add_tenant(self, new: api.NewTenant) -> api.TenantView:
        return await self._call("POST", "/v1/admin/tenants", api.TenantView, new, again=False)

    async def change_tenant(self, tenant: str, change: api.ChangeTenant) -> api.TenantView:
        return await self._call("PATCH", f"/v1/admin/tenants/{_part(tenant)}", api.TenantView, change)

    async def remove_tenant(self, tenant: str) -> None:
        await self._call("DELETE", f"/v1/admin/tenants/{_part(tenant)}", None, again=False)

    async def list_keys(self, tenant: str) -> api.KeyList:
        return await self._call("GET", f"/v1/admin/tenants/{_part(tenant)}/keys", api.KeyList)

    async def add_key(self, tenant: str, new: api.NewKey) -> api.ShownKey:
        return await self._call("POST", f"/v1/admin/tenants/{_part(tenant)}/keys", api.ShownKey, new, again=False)

    async def revoke_key(self, tenant: str, key_id: str) -> None:
        await self._call("DELETE", f"/v1/admin/tenants/{_part(tenant)}/keys/{_part(key_id)}", None)

    async def list_secrets(self, tenant: str) -> api.SecretList:
        return await self._call("GET", f"/v1/admin/tenants/{_part(tenant)}/secrets", api.SecretList)

    async def set_secret(self, tenant: str, new: api.NewSecret) -> api.SecretView:
        return await self._call("POST", f"/v1/admin/tenants/{_part(tenant)}/secrets", api.SecretView, new)

    async def remove_secret(self, tenant: str, profile: str, name: str) -> None:
        path = f"/v1/admin/tenants/{_part(tenant)}/secrets/{_part(profile)}/{_part(name)}"
        await self._call("DELETE", path, None)

    async def rotate_secrets(self) -> api.Rotated:
        return await self._call("POST", "/v1/admin/secrets/rotate", api.Rotated)

    async def list_users(self, tenant: str) -> api.UserList:
        return await self._call("GET", f"/v1/admin/tenants/{_part(tenant)}/users", api.UserList)

    async def put_user(self, tenant: str, new: api.NewUser) -> api.UserView:
        return await self._call("POST", f"/v1/admin/tenants/{_part(tenant)}/users", api.UserView, new)

    async def remove_user(self, tenant: str, user: str) -> None:
        await self._call("DELETE", f"/v1/admin/tenants/{_part(tenant)}/users/{_part(user)}", None, again=False)

    # --- the server

    async def health(self) -> api.Health:
        return await self._call("GET", "/v1/health", api.Health)

    async def options(self) -> api.Choices:
        return await self._call("GET", "/v1/options", api.Choices)

    async def heartbeat_s(self) -> float:
        """What the server keeps, asked once; the default while it does not answer."""
        if self._heartbeat_s is None:
            try:
                self._heartbeat_s = (await self.health()).heartbeat_s
            except (Unreachable, ServerError):
                return HEARTBEAT_S
        return self._heartbeat_s

    def unreachable(self, error: Exception) -> Unreachable:
        if isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout):
            return Unreachable(f"No server answers at {self.url}: {error or 'it takes too long'}.")
        reason = str(error) or type(error).__name__
        return Unreachable(f"The connection to {self.url} broke: {reason}.", hint="Is the server still running?")

    async def _call(
        self,
        method: str,
        path: str,
        kind: type[T] | None,
        body: api.Request | None = None,
        *,
        query: dict[str, Any] | None = None,
        headers: dict[str, str] | None = None,
        again: bool = True,
    ) -> T:
        request_headers = {"Accept": "application/json", **(headers or {})}
        content = None
        if body is not None:
            content = msgspec.json.encode(body)
            request_headers["Content-Type"] = "application/json"
        params = {name: value for name, value in (query or {}).items() if value is not None}
        for last in (not again, True):
            try:
                response = await self._http.request(
                    method, path, content=content, headers=request_headers, params=params
                )
                break
            except httpx2.TransportError as error:
                if last or isinstance(error, httpx2.ConnectError | httpx2.TimeoutException):
                    raise self.unreachable(error) from None
        if not response.is_success:
            raise _problem(response)
        if kind is None:
            return None  # type: ignore[return-value]  # only for calls without an answer
        try:
            return msgspec.json.decode(response.content, type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError) as decode_error:
            raise BadAnswer(f"{self.url} answered {method} {path} with something else: {decode_error}") from None


def _problem(response: httpx2.Response) -> ServerError:
    """The problem document of a refusal; made up from the status when a proxy or a stranger answered."""
    try:
        return ServerError(msgspec.json.decode(response.content, type=api.Problem))
    except (msgspec.DecodeError, UnicodeDecodeError):
        status = response.status_code
        return ServerError(
            api.Problem(
                type="about:blank",
                title=response.reason_phrase,
                status=status,
                detail=f"{response.request.url} answered {status} {response.reason_phrase}.",
                code="not_hermetic",
                fault="host",
                hint=BadAnswer.default_hint,
            )
        )


def _part(identifier: str) -> str:
    """An identifier as one part of a path, whatever is in it."""
    return quote(identifier, safe="")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
