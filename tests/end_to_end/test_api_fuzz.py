"""Requests made from the OpenAPI document, right ones and wrong ones: none of them is the server's mistake."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
import requests
import schemathesis
import trio
from harness import Server
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis.generation import GenerationMode
from tenancy import bearer

from hermetic.protocol.operations import EVENT_STREAM, OPERATIONS

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "6"))
"""Of each operation and mode; more for whoever looks for more."""
LEFT_OUT = {"drain"} | {
    operation.operation_id
    for operation in OPERATIONS
    if "{" not in operation.path
    for answer in operation.answers.values()
    if any(content.media_type == EVENT_STREAM for content in answer.contents)
}
"""What ends the server, and a stream that has no end."""
PATIENCE_S = 60


@pytest.fixture
def server(tmp_path: Path):
    made = subprocess.run(
        [sys.executable, "-m", "hermetic", "secrets", "new-key"], capture_output=True, text=True, check=True
    )
    server = Server(tmp_path, env={**os.environ, "HERMETIC_SECRETS_KEY": made.stdout.strip()})
    trio.run(server.start)
    yield server
    trio.run(server.stop)


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=["right", "wrong"])
def test_no_request_that_the_document_allows_or_forbids_gets_a_5xx(server: Server, mode: GenerationMode) -> None:
    key = json.loads((server.data / "server.json").read_text())["key"]
    document = httpx.get(server.url + "/openapi.json").json()
    httpx.post(server.url + "/v1/admin/tenants", json={"tenant": "ann"}).raise_for_status()  # closed from here on
    schema = schemathesis.openapi.from_dict(document)
    tried = [probed(server.url, found.ok(), mode, key) for found in schema.get_all_operations()]
    assert sum(tried) > 20
    assert "request_broke" not in server.log.read_text()


def probed(url: str, operation: schemathesis.APIOperation, mode: GenerationMode, key: str) -> bool:
    """Whether any request was sent."""
    name = operation.definition.raw["operationId"]
    sent = False
    if name in LEFT_OUT:
        return False

    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def probe(case: schemathesis.Case) -> None:
        nonlocal sent
        try:
            response = case.call(base_url=url, headers=bearer(key), timeout=PATIENCE_S)
        except (requests.exceptions.InvalidURL, requests.exceptions.InvalidHeader, UnicodeError):
            return  # the client's own refusal: nothing was sent
        sent = True
        assert response.status_code < 500 or response.status_code == 501, (name, response.status_code, response.text)
        if response.status_code >= 400:
            problem = response.json()
            assert problem["status"] == response.status_code
            assert problem["fault"] == "client"

    with suppress(Unsatisfiable):  # nothing about it can be wrong
        probe()
    return sent
