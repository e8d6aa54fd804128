from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path[:0] = [str(Path(__file__).parents[1] / folder) for folder in ("end_to_end", "agent_child")]

from harness import Server
from hermes_environment import CannotInstall, environment
from provider import Provider

CONFIG = """
model:
  default: fake-model
  provider: custom
  base_url: {url}
  api_key: {key}
  context_length: {context}
platform_toolsets:
  cli: [terminal, file, clarify]
{more}
"""


@pytest.fixture(scope="session")
def hermes_python() -> Path:
    try:
        return environment()
    except CannotInstall as error:
        pytest.skip(f"pip cannot install hermes-agent here: {error}")


@pytest.fixture
def provider() -> Iterator[Provider]:
    import threading

    with Provider() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        yield server
        server.closing.set()
        server.shutdown()
        thread.join()


class Hermes:
    """A server whose one agent is the real hermes-agent; profiles are homes that a test may write to."""

    def __init__(self, server: Server, folder: Path, provider: Provider) -> None:
        self.server = server
        self.folder = folder
        self.provider = provider

    def home(self, profile: str = "default") -> Path:
        return self.folder / "homes" / profile

    async def run(self, script: str, **more) -> list[tuple[int, str, dict]]:
        return await self.server.run(f"Please say:\n{script}", **more)

    async def turn(self, script: str, **more) -> str:
        return await self.server.turn(f"Please say:\n{script}", **more)


def write_home(
    home: Path,
    provider_url: str,
    *,
    url: str = "",
    key: str = "secret-key",
    more: str = "",
    env: str = "",
    context: str = "128000",
) -> None:
    url = url or provider_url
    home.mkdir(parents=True)
    (home / "config.yaml").write_text(
        CONFIG.format(url=url, key=key, context=context, more=more.format(url=url) if "{url}" in more else more)
    )
    (home / ".env").write_text(env)


@pytest.fixture
async def hermes(tmp_path: Path, hermes_python: Path, provider: Provider):
    """`await hermes(toml)` → a Hermes, started; `profiles` gives more homes: name → arguments of write_home."""
    made: list[Server] = []

    async def start(toml: str = "", *, profiles: dict[str, dict[str, str]] | None = None, **default: str) -> Hermes:
        homes = {"default": default, **(profiles or {})}
        for name, about in homes.items():
            write_home(tmp_path / "homes" / name, provider.url, **about)
        sections = "".join(f'[profiles.{name}]\nhome = "{tmp_path}/homes/{name}"\n' for name in homes)
        agent = f'[agents.hermes]\nadapter = "hermes"\ninterpreter = "{hermes_python}"\n'
        server = Server(tmp_path, f"{agent}{sections}[turns]\ngrace_s = 60\n{toml}")
        made.append(server)
        await server.start()
        return Hermes(server, tmp_path, provider)

    yield start
    for server in made:
        server.end(30)
