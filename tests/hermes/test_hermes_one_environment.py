"""hermes-agent in the server's own environment: no `interpreter`, one Python for the server and its turns."""

from __future__ import annotations

import sys
import sysconfig
import venv
from pathlib import Path

import pytest
import trio
from harness import Server, check_whole, text

import hermetic

CONFIG = """
model: {{default: fake-model, provider: custom, base_url: "{url}", api_key: key, context_length: 128000}}
platform_toolsets: {{cli: [file]}}
"""
pytestmark = pytest.mark.timeout(300)


async def test_the_agent_runs_in_the_servers_own_environment(tmp_path, hermes_python, provider, monkeypatch):
    """One environment with both on its path, hermes-agent first: what it pins is what the server runs with."""
    venv.create(tmp_path / "env", with_pip=False)
    python = tmp_path / "env" / "bin" / "python"
    packages = {"base": str(tmp_path / "env"), "platbase": str(tmp_path / "env")}
    folders = [
        Path(hermetic.__file__).parents[1],
        next(hermes_python.parents[1].glob("lib/python*/site-packages")),
        Path(trio.__file__).parents[1],
    ]
    Path(sysconfig.get_path("purelib", vars=packages), "both.pth").write_text("\n".join(map(str, folders)))
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "config.yaml").write_text(CONFIG.format(url=provider.url))
    monkeypatch.setattr(sys, "executable", str(python))
    server = Server(tmp_path, f'[agents.hermes]\nadapter = "hermes"\n[profiles.default]\nhome = "{tmp_path}/home"\n')
    try:
        await server.start()
        session = await server.session(agent="hermes")
        events = await server.run("Please say:\nsay Hello from one environment.", session=session)
        check_whole(events)
        assert text(events).strip() == "Hello from one environment."
    finally:
        server.end(30)
