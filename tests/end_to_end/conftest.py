from __future__ import annotations

import pytest
from harness import Server


@pytest.fixture
async def serve(tmp_path):
    """`await serve(toml, agents={"module": code})` → a running server; stopped at the end of the test."""
    servers: list[Server] = []

    async def start(toml: str = "", *, agents: dict[str, str] | None = None, **kwargs) -> Server:
        folder = tmp_path / f"server{len(servers)}"
        folder.mkdir()
        server = Server(folder, toml, **kwargs)
        for module, code in (agents or {}).items():
            server.write_agent(module, code)
        servers.append(server)
        await server.start()
        return server

    yield start
    for server in servers:
        if server.process and server.process.poll() is None:
            server.process.terminate()
    for server in servers:
        if server.process:
            try:
                server.process.wait(30)
            except Exception:
                server.process.kill()
                raise
