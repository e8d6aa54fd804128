"""The contract of supervisor/store/identity.py, against every store there is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hermetic.protocol.errors import Conflict, NotFound
from hermetic.supervisor.store.identity import IdentityStore, Key, Login, Tenant, User
from hermetic.supervisor.store.interface import Finish, Session, Store, TurnSpec
from hermetic.supervisor.store.sqlite import open_sqlite
from hermetic.testing import MemoryStore


@pytest.fixture(params=["memory", "sqlite"])
async def store(request, tmp_path):
    if request.param == "memory":
        yield MemoryStore()
    else:
        async with open_sqlite(tmp_path / "hermetic.db") as store:
            yield store


@pytest.fixture
def identities(store: Store) -> IdentityStore:
    return store.identities


def key(key_id: str, tenant: str = "a", **members: Any) -> Key:
    return Key(key_id=key_id, tenant=tenant, sha256=key_id.encode() * 4, scopes=["run"], **members)


def login(token: bytes, tenant: str = "a", **members: Any) -> Login:
    return Login(sha256=token, tenant=tenant, csrf="c", **members)


async def a_turn(store: Store, tenant: str, name: str, *, ended: bool) -> None:
    await store.create_session(Session(session_id=f"s{name}", tenant=tenant))
    spec = TurnSpec(
        turn_id=f"t{name}",
        session_id=f"s{name}",
        tenant=tenant,
        agent="demo",
        profile="default",
        workspace="/w",
        message="hi",
    )
    await store.enqueue(spec, {"role": "user", "content": "hi"}, queue_max=9)
    if ended:
        await store.finish(
            Finish(turn_id=f"t{name}", epoch=0, state="cancelled", first_seq=1, records=[], ended_at=1.0)
        )


async def test_a_tenant_has_a_number_that_no_other_ever_gets(identities):
    first = await identities.add_tenant(Tenant(tenant="a"))
    assert await identities.remove_tenant("a")
    again = await identities.add_tenant(Tenant(tenant="a", name="A"))
    other = await identities.add_tenant(Tenant(tenant="b"))
    assert [first.number, again.number, other.number] == [1, 2, 3]
    assert await identities.tenants() == [again, other]
    assert await identities.tenant("a") == again
    assert await identities.tenant("c") is None


async def test_a_tenants_name_is_its_own(identities):
    await identities.add_tenant(Tenant(tenant="a"))
    with pytest.raises(Conflict):
        await identities.add_tenant(Tenant(tenant="a"))


async def test_a_change_of_a_tenant_keeps_its_number(identities):
    await identities.add_tenant(Tenant(tenant="a"))
    await identities.put_tenant(Tenant(tenant="a", number=77, suspended=True, workspace_roots=["/w"]))
    changed = await identities.tenant("a")
    assert (changed.number, changed.suspended, changed.workspace_roots) == (1, True, ["/w"])
    with pytest.raises(NotFound):
        await identities.put_tenant(Tenant(tenant="b"))


async def test_with_a_tenant_goes_all_that_was_its_own_and_nothing_else(store, identities):
    for name in "ab":
        await identities.add_tenant(Tenant(tenant=name))
        await identities.put_user(User(tenant=name, user="u"))
        await identities.add_key(key(f"k{name}", name))
        await identities.add_login(login(b"l" + name.encode(), name, expires_at=9))
        await a_turn(store, name, name, ended=True)
    assert await identities.remove_tenant("a")
    assert not await identities.remove_tenant("a")
    assert await identities.users("a") == [] == await identities.keys("a")
    assert await identities.key("ka") is None is await identities.login(b"la")
    assert await store.session("a", "sa") is None is await store.turn("ta")
    assert await identities.user("b", "u")
    assert await identities.key("kb")
    assert await identities.login(b"lb")
    assert await store.turn("tb")


async def test_a_tenant_with_a_turn_that_has_not_ended_stays(store, identities):
    await identities.add_tenant(Tenant(tenant="a"))
    await a_turn(store, "a", "1", ended=False)
    with pytest.raises(Conflict):
        await identities.remove_tenant("a")
    assert await identities.tenant("a")
    assert await store.turn("t1")


async def test_a_user_is_its_tenants(identities):
    await identities.add_tenant(Tenant(tenant="a"))
    await identities.add_tenant(Tenant(tenant="b"))
    await identities.put_user(User(tenant="a", user="u", name="one"))
    await identities.put_user(User(tenant="a", user="u", name="two", suspended=True))
    await identities.put_user(User(tenant="a", user="t"))
    assert [user.user for user in await identities.users("a")] == ["t", "u"]
    assert (await identities.user("a", "u")).name == "two"
    assert await identities.user("b", "u") is None
    assert not await identities.remove_user("b", "u")
    with pytest.raises(NotFound):
        await identities.put_user(User(tenant="nobody", user="u"))


async def test_with_a_user_go_its_keys_and_logins(identities):
    await identities.add_tenant(Tenant(tenant="a"))
    await identities.put_user(User(tenant="a", user="u"))
    await identities.add_key(key("k1", user="u"))
    await identities.add_key(key("k2", user="v"))
    await identities.add_login(login(b"1", user="u"))
    assert await identities.remove_user("a", "u")
    assert [each.key_id for each in await identities.keys("a")] == ["k2"]
    assert await identities.login(b"1") is None


async def test_the_local_tenant_is_there_without_a_row(identities):
    await identities.put_user(User(tenant="local", user="u"))
    await identities.add_key(key("k1", "local"))
    assert (await identities.key("k1")).tenant == "local"
    assert await identities.tenants() == []


async def test_a_key_comes_back_as_it_was_kept(identities):
    await identities.add_tenant(Tenant(tenant="a"))
    kept = key("k1", user="u", name="ci", created_at=1.5, expires_at=2.5)
    await identities.add_key(kept)
    assert await identities.key("k1") == kept
    with pytest.raises(Conflict):
        await identities.add_key(key("k1"))
    with pytest.raises(NotFound):
        await identities.add_key(key("k2", "nobody"))
    assert await identities.keys("a") == [kept]


async def test_a_key_is_revoked_once_and_only_by_its_own_tenant_and_its_logins_end(identities):
    await identities.add_tenant(Tenant(tenant="a"))
    await identities.add_tenant(Tenant(tenant="b"))
    await identities.add_key(key("k1"))
    await identities.add_login(login(b"1", key_id="k1"))
    assert not await identities.revoke_key("b", "k1", 5.0)
    assert (await identities.key("k1")).revoked_at is None
    assert await identities.revoke_key("a", "k1", 6.0)
    assert await identities.revoke_key("a", "k1", 7.0)
    assert (await identities.key("k1")).revoked_at == 6.0
    assert await identities.login(b"1") is None
    assert not await identities.revoke_key("a", "k9", 7.0)


async def test_a_key_that_was_used_says_so(identities):
    await identities.add_tenant(Tenant(tenant="a"))
    await identities.add_key(key("k1"))
    await identities.touch_key("k1", 8.0)
    await identities.touch_key("k9", 8.0)
    assert (await identities.key("k1")).last_used_at == 8.0


async def test_a_login_ends(identities):
    kept = login(b"\x00\xff" * 16, expires_at=10.0, scopes=["read"])
    await identities.add_login(kept)
    await identities.add_login(login(b"2", expires_at=20.0))
    assert await identities.login(kept.sha256) == kept
    assert await identities.forget_logins(10.5) == 1
    assert await identities.login(kept.sha256) is None
    assert await identities.remove_login(b"2")
    assert not await identities.remove_login(b"2")


async def test_the_hash_is_all_that_the_disk_has_of_a_key(tmp_path: Path):
    from hermetic.supervisor.identity import hash_of, new_key

    made = new_key()
    async with open_sqlite(tmp_path / "hermetic.db") as store:
        await store.identities.add_key(Key(key_id=made.key_id, tenant="local", sha256=made.sha256))
    assert made.sha256 == hash_of(made.secret)
    for file in tmp_path.iterdir():
        assert made.secret.rpartition("_")[2].encode() not in file.read_bytes(), file
