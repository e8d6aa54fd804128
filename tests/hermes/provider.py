"""A provider of models that does as it is told: OpenAI's chat completions over HTTP, streamed, on loopback.

What it does is read from the newest message of the user, so that a test needs no second channel: the text after `say:`
is a script, one step per line, and each request of the same turn (a tool's result has come back) takes the next part,
parts being separated by a line `---`.

    say TEXT          one delta for each word
    think TEXT        the same as reasoning_content
    call NAME JSON    a tool call; several stand at the end of their part
    status N TEXT     answers with this HTTP status
    refuse MODEL      answers 429 when this model is asked for, else the part goes on
    stall             sends nothing more, until the client hangs up
    cut               closes the connection in the middle
"""

from __future__ import annotations

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Provider(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[dict[str, Any]] = []
        """Bodies of the chat requests that streamed, each with its `authorization`."""
        self.arrived = threading.Condition()
        self.closing = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is what many tests are about."""

    def wait_requests(self, number: int, timeout_s: float = 60) -> list[dict[str, Any]]:
        with self.arrived:
            assert self.arrived.wait_for(lambda: len(self.requests) >= number, timeout_s), self.requests
            return list(self.requests)


def text_of(content: Any) -> str:
    if isinstance(content, list):
        return "\n".join(part.get("text", "") for part in content)
    return content or ""


def script_of(body: dict[str, Any]) -> list[str]:
    """The steps for this request."""
    messages = body["messages"]
    newest = max(
        (i for i, m in enumerate(messages) if m["role"] == "user" and "say:" in text_of(m["content"])), default=0
    )
    script = text_of(messages[newest].get("content")).partition("say:")[2]
    parts = re.split(r"^---$", script, flags=re.MULTILINE)
    answered = sum(1 for m in messages[newest + 1 :] if m["role"] == "assistant")
    part = parts[answered] if answered < len(parts) else "say The script is over."
    return [line.strip() for line in part.strip().splitlines()] or ["say Nothing to do."]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Provider

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._json(200, {"object": "list", "data": [{"id": "fake-model", "object": "model", "context_length": 128000}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or b"{}")
        if not self.path.endswith("/chat/completions"):
            self._json(404, {"error": {"message": "no such path"}})
            return
        if not body.get("stream"):  # a title, a summary: side work of the agent
            choice = {"index": 0, "message": {"role": "assistant", "content": "Side work."}, "finish_reason": "stop"}
            self._json(200, {**_head(body), "object": "chat.completion", "choices": [choice], "usage": _usage()})
            return
        with self.server.arrived:
            self.server.requests.append({**body, "authorization": self.headers.get("Authorization")})
            self.server.arrived.notify_all()
        self._play(body, script_of(body))

    def _play(self, body: dict[str, Any], steps: list[str]) -> None:
        word, _, rest = steps[0].partition(" ")
        if word == "refuse":
            if body["model"] == rest:
                self._json(429, {"error": {"message": "rate limit", "type": "fake", "code": None}})
                return
            steps = steps[1:]
        if word == "status":
            number, _, text = rest.partition(" ")
            self._json(int(number), {"error": {"message": text, "type": "fake", "code": None}})
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        finish, calls = "stop", 0
        for step in steps:
            word, _, rest = step.partition(" ")
            if word == "say":
                for piece in re.findall(r"\S+\s*", rest):
                    self._chunk(body, {"content": piece})
            elif word == "think":
                for piece in re.findall(r"\S+\s*", rest):
                    self._chunk(body, {"reasoning_content": piece})
            elif word == "call":
                name, _, arguments = rest.partition(" ")
                number = f"{len(self.server.requests)}{calls or ''}"
                call = {"index": calls, "id": f"call_{number}", "type": "function"}
                calls += 1
                self._chunk(body, {"tool_calls": [{**call, "function": {"name": name, "arguments": arguments}}]})
                finish = "tool_calls"
            elif word == "stall":
                self._until_they_leave()
                return
            elif word == "cut":
                self.connection.close()
                return
        self._chunk(body, {}, finish)
        self._write({**_head(body), "object": "chat.completion.chunk", "choices": [], "usage": _usage()})
        self.wfile.write(b"data: [DONE]\n\n")

    def _until_they_leave(self) -> None:
        self.connection.settimeout(0.2)
        while not self.server.closing.is_set():
            try:
                if not self.connection.recv(1):
                    return
            except TimeoutError:
                continue
            except OSError:
                return

    def _chunk(self, body: dict[str, Any], delta: dict[str, Any], finish: str | None = None) -> None:
        choice = {"index": 0, "delta": {"role": "assistant", **delta}, "finish_reason": finish}
        self._write({**_head(body), "object": "chat.completion.chunk", "choices": [choice]})

    def _write(self, value: dict[str, Any]) -> None:
        self.wfile.write(b"data: " + json.dumps(value).encode() + b"\n\n")
        self.wfile.flush()

    def _json(self, status: int, value: dict[str, Any]) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def _head(body: dict[str, Any]) -> dict[str, Any]:
    return {"id": "chatcmpl-1", "created": 1, "model": body.get("model", "fake-model")}


def _usage() -> dict[str, int]:
    return {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}
