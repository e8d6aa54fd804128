"""Every client that people read our streams with, each as one function: URL → the events that it gave its user.

A reader follows one turn to its end and returns by itself: nobody tells it that the turn is over. Those that only parse
get the loop that their users write around them: connect with the last id, read, connect again until the answer is 204.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, get_args
from urllib.parse import urlsplit

import httpx
import httpx2
import httpx_sse
import openai
import pytest
import sseclient
import trio
from openai._streaming import SSEDecoder

from hermetic.client import Client
from hermetic.protocol.events import ReaderEvent, encode, event_name

HERE = Path(__file__).parent
PATIENCE_S = 90
"""For one client to read one turn: a bound for a hang. On a quiet machine the slowest needs a second."""
TRIES = 50
"""Connections of one reader; the tests cut a dozen."""


class Said(NamedTuple):
    """One event as a client's user gets it; None for what a client keeps to itself."""

    id: str | None
    name: str | None
    data: Any


Take = Callable[[str | None, str | None, Any], None]


def _follow(read: Callable[[str | None, Take], int], broken: type[Exception] | tuple[type[Exception], ...]):
    """`read(cursor, take)`: one connection; calls `take` for each event, returns the status."""
    said: list[Said] = []

    def take(event_id: str | None, name: str | None, data: Any) -> None:
        said.append(Said(event_id, name, data))

    for _ in range(TRIES):
        # who is told no id counts: a turn's events have no holes
        cursor = (said[-1].id or str(len(said))) if said else None
        try:
            if read(cursor, take) == 204:
                return said
        except broken:
            time.sleep(0.02)
    raise AssertionError(f"no 204 after {TRIES} connections")


def _header(cursor: str | None) -> dict[str, str]:
    return {} if cursor is None else {"Last-Event-ID": cursor}


def by_httpx_sse(url: str) -> list[Said]:
    def read(cursor: str | None, take: Take) -> int:
        with httpx_sse.connect_sse(http, "GET", url, headers=_header(cursor)) as source:
            if source.response.status_code == 200:
                for sse in source.iter_sse():
                    take(sse.id, sse.event, json.loads(sse.data))
            return source.response.status_code

    with httpx.Client(timeout=PATIENCE_S) as http:
        return _follow(read, httpx.TransportError)


def by_sseclient(url: str) -> list[Said]:
    def read(cursor: str | None, take: Take) -> int:
        with http.stream("GET", url, headers=_header(cursor)) as response:
            for sse in sseclient.SSEClient(response.iter_bytes()).events():
                take(sse.id, sse.event, json.loads(sse.data))
            return response.status_code

    with httpx.Client(timeout=PATIENCE_S) as http:
        return _follow(read, httpx.TransportError)


def by_httpx2(url: str) -> list[Said]:
    def read(cursor: str | None, take: Take) -> int:
        with http.sse(url, headers=_header(cursor)) as source:
            if source.response.status_code == 200:
                for sse in source:
                    take(sse.id, sse.event, json.loads(sse.data))
            return source.response.status_code

    with httpx2.Client(timeout=PATIENCE_S) as http:
        return _follow(read, httpx2.TransportError)


def by_openai_decoder(url: str) -> list[Said]:
    def read(cursor: str | None, take: Take) -> int:
        with http.stream("GET", url, headers=_header(cursor)) as response:
            for sse in SSEDecoder().iter_bytes(response.iter_bytes()):
                take(sse.id, sse.event, sse.json())
            return response.status_code

    with httpx2.Client(timeout=PATIENCE_S) as http:
        return _follow(read, httpx2.TransportError)


def by_openai_stream(url: str) -> list[Said]:
    """The SDK's own streams, pointed at a server that is not OpenAI's. They give out the data alone."""
    path = urlsplit(url).path

    def read(cursor: str | None, take: Take) -> int:
        with client.get(
            path,
            cast_to=object,
            options={"params": {"after": cursor or "0"}},
            stream=True,
            stream_cls=openai.Stream[object],
        ) as stream:
            if stream.response.status_code == 200:
                for data in stream:
                    take(None, None, data)
            return stream.response.status_code

    base = url.removesuffix(path)
    with openai.OpenAI(api_key="none", base_url=base, max_retries=0, timeout=PATIENCE_S) as client:
        return _follow(read, (openai.APIConnectionError, httpx2.TransportError))


async def by_hermetic(url: str) -> list[Said]:
    base, _, turn = url.removesuffix("/events").partition("/v1/turns/")
    async with Client(base) as client, client.events(turn) as events:
        return [Said(str(cursor), event_name(event), json.loads(encode(event))) async for cursor, event in events]


NAMES = ",".join(event_name(kind) for kind in get_args(ReaderEvent))
NODE = shutil.which("node")


async def by_node(script: str, url: str, *more: str) -> list[Said]:
    if NODE is None or not (HERE / "node_modules").is_dir():
        pytest.skip(f"{script} needs node, and `npm ci` in tests/clients: this client was NOT tested")
    done = await trio.run_process(
        [NODE, str(HERE / script), url, NAMES, *more],
        capture_stdout=True,
        capture_stderr=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, (done.returncode, done.stderr.decode())
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return [Said(event_id, name, json.loads(data)) for event_id, name, data in lines]


async def by_chromium(url: str) -> list[Said]:
    """In headless mode, from tests/page's own driver."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None or not (HERE.parent / "page" / "node_modules" / "playwright-core").is_dir():
        pytest.skip("needs chromium, and `npm ci` in tests/page: a browser's EventSource was NOT tested")
    return await by_node("chromium.mjs", url, browser)


def in_a_thread(read: Callable[[str], list[Said]]) -> Callable[[str], Awaitable[list[Said]]]:
    return partial(trio.to_thread.run_sync, read)


READERS: dict[str, Callable[[str], Awaitable[list[Said]]]] = {
    "hermetic.client": by_hermetic,
    "httpx-sse": in_a_thread(by_httpx_sse),
    "httpx2": in_a_thread(by_httpx2),
    "sseclient-py": in_a_thread(by_sseclient),
    "openai-decoder": in_a_thread(by_openai_decoder),
    "openai-stream": in_a_thread(by_openai_stream),
    "eventsource": partial(by_node, "eventsource.mjs"),
    "eventsource-parser": partial(by_node, "eventsource_parser.mjs"),
    "fetch-event-source": partial(by_node, "fetch_event_source.mjs"),
    "ag-ui": partial(by_node, "ag_ui.mjs"),
    "chromium": by_chromium,
}
STOP_AT_A_CLEAN_END = {"hermetic.client", "fetch-event-source"}
"""These do not ask again after stream_end and a clean end; the others are told by 204."""
