"""A stand-in for the server that plays scripted turns, so that the page is tested without one.

It keeps what the page relies on: ids on every event, replay after `?after=` and `Last-Event-ID`, 204 behind the end,
409 for a busy session, problem+json. Everything lives in memory; one thread per connection.
"""

from __future__ import annotations

import json
import re
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import hermetic.web

STATIC = Path(hermetic.web.__file__).parent / "static"
TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
SEAL = {"level": 2, "mechanisms": ["pid_namespace", "mount_namespace", "cgroup_kill"], "missing": ["landlock"]}
Event = dict[str, Any]


@dataclass
class Turn:
    session: Session
    message: str
    turn_id: str = field(default_factory=lambda: uuid.uuid4().hex[:16])
    state: str = "queued"
    journal: list[tuple[str, Event]] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)
    cancelled: threading.Event = field(default_factory=threading.Event)
    answers: dict[str, str] = field(default_factory=dict)
    steers: list[str] = field(default_factory=list)

    @property
    def ended(self) -> bool:
        return bool(self.journal) and self.journal[-1][0] == "stream_end"

    def say(self, name: str, /, **event: Any) -> None:
        with self.changed:
            self.journal.append((name, {"event": name, **event}))
            self.changed.notify_all()

    def wait_answer(self, ask_id: str) -> str | None:
        """None: cancelled."""
        with self.changed:
            self.changed.wait_for(lambda: ask_id in self.answers or self.cancelled.is_set())
        return self.answers.get(ask_id)

    def view(self) -> Event:
        return {
            "turn_id": self.turn_id, "session_id": self.session.session_id, "state": self.state, "ended": self.ended,
            "agent": "demo", "profile": "default", "workspace": "/w", "message": self.message,
            "created_at": self.session.created_at, "last_seq": len(self.journal), "pending": [], "seal": SEAL,
        }  # fmt: skip


@dataclass
class Session:
    session_id: str = field(default_factory=lambda: uuid.uuid4().hex[:12])
    title: str = ""
    archived: bool = False
    created_at: float = field(default_factory=time.time)
    updated_at: float = field(default_factory=time.time)
    messages: list[Event] = field(default_factory=list)
    active: Turn | None = None

    def compact(self) -> Event:
        return {
            "session_id": self.session_id, "title": self.title, "workspace": "/w", "agent": "demo",
            "profile": "default", "message_count": len(self.messages), "created_at": self.created_at,
            "updated_at": self.updated_at, "archived": self.archived,
            "active_turn_id": self.active.turn_id if self.active else None,
        }  # fmt: skip


def script(turn: Turn) -> Iterator[tuple[str, Event]]:
    """What the scripted agent says. The words are those that the demo agent understands, too, and some of its own."""
    text = turn.message
    if text.startswith("count to "):
        last = int(text.split()[2])
        yield "reasoning", {"text": "One after the other.\n"}
        for n in range(1, last + 1):
            if turn.cancelled.wait(0.1 if "slowly" in text else 0):
                return
            yield "token", {"text": f"{n}\n" if n % 10 == 0 else f"{n} "}
        for said in turn.steers:
            yield "token", {"text": f"You said: {said}"}
    elif text.startswith("run "):
        command = text.removeprefix("run ")
        yield "token", {"text": "I ask before I run a command.\n\n"}
        yield "tool", {"name": "shell", "preview": command, "args": {"command": command}, "tid": "t1"}
        approval = {"approval_id": "a1", "command": command, "description": "A shell command in the workspace."}
        choices = ["once", "session", "always", "deny"]
        yield "approval", {**approval, "choices": choices, "expires_at": time.time() + 300}
        choice = turn.wait_answer("a1")
        if choice is None:
            yield "approval_resolved", {"approval_id": "a1", "choice": "deny", "by": "end"}
            return
        yield "approval_resolved", {"approval_id": "a1", "choice": choice, "by": "user"}
        denied = choice == "deny"
        snippet = "denied" if denied else "hi"
        done = {"name": "shell", "tid": "t1", "snippet": snippet, "is_error": denied, "duration_s": 0.042}
        yield "tool_complete", done
        yield "token", {"text": "Not run: denied." if denied else "It printed:\nhi"}
    elif text == "ask me":
        yield "clarify", {"clarify_id": "c1", "question": "Which colour?", "choices": ["red", "blue"]}
        yield "clarify_resolved", {"clarify_id": "c1", "text": turn.wait_answer("c1") or "", "by": "user"}
        yield "token", {"text": f"You like {turn.answers.get('c1')}."}
    elif text == "crash":
        yield "token", {"text": "Before the crash."}
    elif text == "lines":
        yield "token", {"text": "".join(f"line {n} of a long answer that wraps on a phone\n" for n in range(5000))}
    else:
        yield "token", {"text": f"You said: {text}"}


def play(turn: Turn) -> None:
    """Runs the script as the supervisor would: events, then the messages of the session, then one end."""
    turn.state = "running"
    where = {"turn_id": turn.turn_id, "session_id": turn.session.session_id, "epoch": 1}
    turn.say("started", **where, agent="demo", profile="default", workspace="/w", pid=4242, seal=SEAL)
    answer: Event = {"role": "assistant", "content": "", "turn_id": turn.turn_id}
    for name, event in script(turn):
        turn.say(name, **event)
        if name == "token":
            answer["content"] += event["text"]
        elif name == "reasoning":
            answer["reasoning"] = event["text"]
        elif name == "tool":
            call = {"name": event["name"], "arguments": json.dumps(event["args"])}
            answer["tool_calls"] = [{"id": event["tid"], "type": "function", "function": call}]
        elif name == "tool_complete":
            answer["tool_results"] = {event["tid"]: event["snippet"]}
    ends: Event = {"turn_id": turn.turn_id}
    if turn.cancelled.is_set():
        answer["partial"] = True
        name, ends = "cancel", {**ends, "state": "cancelled", "message": "Stopped by the user."}
    elif turn.message == "crash":
        answer["partial"] = True
        about = {"message": "The agent's process was killed by SIGSEGV.", "type": "crashed", "fault": "agent"}
        rest = {"hint": "Look at what it printed.", "signal": "SIGSEGV", "stderr": ["Fatal Python error: oops"]}
        name, ends = "apperror", {**ends, "state": "crashed", **about, **rest}
    else:
        usage = {"input_tokens": 12, "output_tokens": 34, "estimated_cost": 0.0012}
        name, ends = "done", {**ends, "state": "done", "session": {}, "usage": usage}
    turn.session.messages.append(answer)
    turn.session.updated_at = time.time()
    turn.session.active = None
    turn.state = ends["state"]
    turn.say(name, **ends)
    turn.say("stream_end", turn_id=turn.turn_id, state=turn.state)


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.sessions: dict[str, Session] = {}
        self.turns: dict[str, Turn] = {}
        self.keys: dict[str, Turn] = {}
        self.lock = threading.Lock()
        self.streams: set[Any] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that leaves in the middle is no error."""

    def drop_streams(self) -> None:
        """Breaks every open event stream, as a bad network does."""
        for handler in list(self.streams):
            handler.dropped = True


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"
    dropped = False

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def answer(self, status: int, body: Any = None, kind: str = "application/json") -> None:
        data = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Content-Security-Policy", "default-src 'self'; base-uri 'none'; form-action 'none'")
        self.end_headers()
        self.wfile.write(data)

    def problem(self, status: int, code: str, detail: str, hint: str, **more: Any) -> None:
        about = {"type": "about:blank", "title": code, "status": status, "detail": detail, "fault": "client"}
        self.answer(status, {**about, "code": code, "hint": hint, **more}, "application/problem+json")

    def handle_request(self) -> None:
        url = urlsplit(self.path)
        data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = json.loads(data) if data else {}
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        for method, pattern, name in ROUTES:
            found = re.fullmatch(pattern, url.path)
            if method == self.command and found:
                try:
                    getattr(self, name)(*found.groups(), body=body, query=query)
                except KeyError as error:
                    self.problem(404, "not_found", f"There is no {error}.", "Check the identifier.")
                return
        self.problem(404, "not_found", f"Nothing at {url.path}.", "See /openapi.json.")

    do_GET = do_POST = do_PATCH = do_DELETE = handle_request

    def static(self, name: str, **_: Any) -> None:
        path = STATIC / (name or "index.html")
        self.answer(200, path.read_bytes(), TYPES[path.suffix] + "; charset=utf-8")

    def health(self, **_: Any) -> None:
        active = sum(not t.ended for t in self.server.turns.values())
        facts = {"status": "ok", "version": "0.0", "protocol": 1, "level": 2, "seal": SEAL, "active_turns": active}
        self.answer(200, {**facts, "queued_turns": 0, "sessions": 0, "uptime_s": 1, "heartbeat_s": 10})

    def options(self, **_: Any) -> None:
        agents = [
            {"name": "demo", "adapter": "demo", "description": "Works in the folder without a model."},
            {"name": "mine", "adapter": "function", "description": "My own function."},
        ]
        profiles = {"profiles": ["default", "work"], "default_profile": "default"}
        self.answer(200, {"agents": agents, "default_agent": "demo", **profiles, "workspace_roots": ["/srv/projects"]})

    def list(self, query: Event, **_: Any) -> None:
        archived = query.get("archived") == "true"
        found = [s for s in self.server.sessions.values() if s.archived == archived]
        if q := query.get("q"):
            found = [s for s in self.server.sessions.values() if q.lower() in s.title.lower()]
        found.sort(key=lambda s: -s.updated_at)
        self.answer(200, {"sessions": [s.compact() for s in found], "next_before": None})

    def new_session(self, **_: Any) -> None:
        session = Session()
        self.server.sessions[session.session_id] = session
        self.answer(201, session.compact())

    def session(self, sid: str, **_: Any) -> None:
        session = self.server.sessions[sid]
        self.answer(200, {**session.compact(), "messages": session.messages, "tool_calls": []})

    def change(self, sid: str, body: Event, **_: Any) -> None:
        session = self.server.sessions[sid]
        session.title = body.get("title", session.title)
        session.archived = body.get("archived", session.archived)
        self.answer(200, session.compact())

    def delete(self, sid: str, **_: Any) -> None:
        del self.server.sessions[sid]
        self.answer(204)

    def new_turn(self, sid: str, body: Event, **_: Any) -> None:
        session = self.server.sessions[sid]
        key = self.headers["Idempotency-Key"] or uuid.uuid4().hex
        with self.server.lock:
            turn = self.server.keys.get(key)
            if turn is None:
                if body["message"] == "too large":
                    return self.problem(413, "too_large", "The message is over the limit.", "Send less.")
                if session.active:
                    busy = session.active.turn_id
                    return self.problem(409, "session_busy", "A turn runs already.", "Wait for it.", turn_id=busy)
                turn = session.active = Turn(session, body["message"])
                session.title = session.title or turn.message[:64]
                session.messages.append({"role": "user", "content": turn.message, "turn_id": turn.turn_id})
                session.updated_at = time.time()
                self.server.turns[turn.turn_id] = self.server.keys[key] = turn
                threading.Thread(target=play, args=(turn,), daemon=True).start()
        return self.answer(202, turn.view())

    def turn(self, tid: str, **_: Any) -> None:
        self.answer(200, self.server.turns[tid].view())

    def cancel(self, tid: str, **_: Any) -> None:
        turn = self.server.turns[tid]
        if not turn.ended and not turn.cancelled.is_set():
            turn.say("cancelling", message="Stopping.", grace_s=5)
        with turn.changed:
            turn.cancelled.set()
            turn.changed.notify_all()
        self.answer(202, {"turn_id": tid, "state": "cancelling"})

    def respond(self, tid: str, ask: str, body: Event, **_: Any) -> None:
        turn = self.server.turns[tid]
        with turn.changed:
            turn.answers[ask] = str(body["choice"] if "choice" in body else body["text"])
            turn.changed.notify_all()
        self.answer(200, {"approval_id": ask, "choice": turn.answers[ask]})

    def steer(self, tid: str, body: Event, **_: Any) -> None:
        turn = self.server.turns[tid]
        turn.steers.append(body["message"])
        turn.say("steer", text=body["message"])
        self.answer(202, {"turn_id": tid, "state": turn.state})

    def events(self, tid: str, query: Event, **_: Any) -> None:
        turn = self.server.turns[tid]
        after = int((query.get("after") or self.headers.get("Last-Event-ID") or "0").rpartition(":")[2])
        if turn.ended and after >= len(turn.journal):
            return self.answer(204)
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Cache-Control", "no-store, no-transform")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        self.server.streams.add(self)
        while not self.dropped:
            with turn.changed:
                if len(turn.journal) <= after:
                    turn.changed.wait(0.05)
                fresh = turn.journal[after:]
            for name, event in fresh:
                after += 1
                frame = f"id: {tid}:{after}\nevent: {name}\ndata: {json.dumps(event)}\n\n"
                if after == 1:
                    frame = "retry: 200\n" + frame
                self.wfile.write(frame.encode())
                if name == "stream_end":
                    self.server.streams.discard(self)
                    return None
        self.server.streams.discard(self)
        return None

    def drop(self, **_: Any) -> None:
        """Only here: what a test asks for to see the page reconnect."""
        self.server.drop_streams()
        self.answer(204)


ID = r"([\w-]+)"
ROUTES = [
    ("GET", r"/()", "static"),
    ("GET", r"/static/([\w.-]+)", "static"),
    ("GET", r"/v1/health", "health"),
    ("GET", r"/v1/options", "options"),
    ("GET", r"/v1/sessions", "list"),
    ("POST", r"/v1/sessions", "new_session"),
    ("GET", rf"/v1/sessions/{ID}", "session"),
    ("PATCH", rf"/v1/sessions/{ID}", "change"),
    ("DELETE", rf"/v1/sessions/{ID}", "delete"),
    ("POST", rf"/v1/sessions/{ID}/turns", "new_turn"),
    ("GET", rf"/v1/turns/{ID}", "turn"),
    ("GET", rf"/v1/turns/{ID}/events", "events"),
    ("POST", rf"/v1/turns/{ID}/cancel", "cancel"),
    ("POST", rf"/v1/turns/{ID}/approvals/{ID}", "respond"),
    ("POST", rf"/v1/turns/{ID}/clarifications/{ID}", "respond"),
    ("POST", rf"/v1/turns/{ID}/messages", "steer"),
    ("POST", r"/test/drop", "drop"),
]

if __name__ == "__main__":
    server = Server()
    print(server.url, flush=True)
    server.serve_forever()
