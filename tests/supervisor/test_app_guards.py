"""What names no host at all is refused like a foreign one, and is no mistake of the server's."""

import pytest

from hermetic.supervisor.config import Config, Server
from hermetic.supervisor.supervisor import open_supervisor
from hermetic.web.app import make_app


@pytest.mark.parametrize(
    "headers",
    [{"Host": "["}, {"Host": "a]["}, {"Host": "[::1"}, {"Host": "localhost", "Origin": "http://["}],
)
async def test_a_host_that_cannot_be_read_is_forbidden(tmp_path, headers):
    async with open_supervisor(Config(server=Server(data=str(tmp_path)))) as supervisor:
        client = make_app(supervisor, loopback=True).test_client(use_cookies=False)
        response = await client.post("/v1/sessions", headers=headers)
        assert response.status_code == 403


async def test_who_asks_before_the_tenants_are_known_is_nobody(tmp_path):
    async with open_supervisor(Config(server=Server(data=str(tmp_path)))) as supervisor:
        supervisor.identities._tenants = None
        client = make_app(supervisor, loopback=True).test_client(use_cookies=False)
        response = await client.get("/v1/sessions", headers={"Host": "localhost"})
        assert response.status_code == 401
