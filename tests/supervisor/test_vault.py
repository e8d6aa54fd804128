"""Tenants' secrets as their admins and their turns meet them, with keys that change."""

from __future__ import annotations

import msgspec
import pytest

from hermetic.protocol.errors import ClientError, HostError, NotFound
from hermetic.supervisor.secret_box import KeyRing
from hermetic.supervisor.vault import Vault
from hermetic.testing import MemoryStore

ONE, TWO = b"1" * 32, b"2" * 32
KEY = "sk-live-4eC39HqLyjWDarjtT1zdp7dc"


async def test_keys_change_in_three_steps_and_no_secret_is_lost():
    store = MemoryStore()
    old, both, new = (Vault(store.secrets, KeyRing(keys)) for keys in ([ONE], [TWO, ONE], [TWO]))
    await old.set("acme", "work", "MY_KEY", KEY)
    await old.set("other", "home", "MY_KEY", KEY[::-1])
    assert await both.open("acme", "work") == {"MY_KEY": KEY}
    with pytest.raises(HostError, match="does not have"):
        await new.open("acme", "work")
    assert await both.rotate() == 2
    assert await new.open("acme", "work") == {"MY_KEY": KEY}
    assert await new.open("other", "home") == {"MY_KEY": KEY[::-1]}
    with pytest.raises(HostError, match="does not have"):
        await old.open("acme", "work")
    with pytest.raises(HostError, match="does not have"):
        await old.rotate()
    assert await new.open("acme", "work") == {"MY_KEY": KEY}, "a rotation that fails has changed nothing"


async def test_a_sealed_value_that_is_moved_to_another_tenant_does_not_open_there():
    store = MemoryStore()
    vault = Vault(store.secrets, KeyRing([ONE]))
    made = await vault.set("acme", "work", "MY_KEY", KEY)
    await store.secrets.put(msgspec.structs.replace(made, tenant="other"), count_max=9)
    with pytest.raises(HostError, match="not the one that was put there"):
        await vault.open("other", "work")


async def test_what_is_done_to_secrets_is_in_the_audit_log_without_their_values():
    store = MemoryStore()
    vault = Vault(store.secrets, KeyRing([ONE]))
    await vault.set("acme", "work", "MY_KEY", KEY)
    await vault.rotate()
    await vault.remove("acme", "work", "MY_KEY")
    with pytest.raises(NotFound):
        await vault.remove("acme", "work", "MY_KEY")
    with pytest.raises(ClientError):
        await vault.set("acme", "work", "LD_PRELOAD", "/tmp/evil.so")
    lines = [link.line for link in await store.audit.links()]
    assert [msgspec.json.decode(line)["action"] for line in lines] == ["secret.set", "secret.rotate", "secret.remove"]
    assert KEY.encode() not in b"".join(lines)


async def test_without_a_key_only_secrets_need_one():
    vault = Vault(MemoryStore().secrets, None)
    assert await vault.open("acme", "work") == {}
    assert await vault.names("acme") == []
    with pytest.raises(HostError, match="no key"):
        await vault.set("acme", "work", "MY_KEY", KEY)
