"""What names no host at all is refused like a foreign one, and is no mistake of the server's."""

import pytest

from hermetic.protocol import events
from hermetic.supervisor.config import Config
from hermetic.supervisor.supervisor import Supervisor
from hermetic.testing import MemoryStore
from hermetic.web.app import make_app


@pytest.mark.parametrize(
    "headers",
    [{"Host": "["}, {"Host": "a]["}, {"Host": "[::1"}, {"Host": "localhost", "Origin": "http://["}],
)
async def test_a_host_that_cannot_be_read_is_forbidden(tmp_path, nursery, headers):
    supervisor = Supervisor(Config(), MemoryStore(), tmp_path, nursery, events.Seal(level=0), {})
    client = make_app(supervisor, loopback=True).test_client(use_cookies=False)
    response = await client.post("/v1/sessions", headers=headers)
    assert response.status_code == 403
