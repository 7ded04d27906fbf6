"""Tenants, keys and the number of users, on both databases."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from storing import Clock, adapt, new_pair, repository

from service.errors import NotFound, QuotaExceeded
from service.store import Database
from service.store.keys import KeyRepository
from service.store.records import Quotas
from service.store.tenants import TenantRepository


def digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def create(keys: KeyRepository, key_id: str, tenant: str = "acme", **changes: object) -> None:
    fields = {"digest": digest(key_id), "role": "adapt", "name": "", "expires_at": None}
    keys.create(tenant_id=tenant, key_id=key_id, **(fields | changes))  # type: ignore[arg-type]


def test_a_key_is_found_by_its_digest_alone(database: Database) -> None:
    keys = KeyRepository(database)
    create(keys, "one", name="the trainer")
    found = keys.find(digest("one"))
    assert found is not None
    assert (found.key_id, found.tenant_id, found.role, found.name) == ("one", "acme", "adapt", "the trainer")
    assert found.quotas == Quotas()
    assert keys.find(digest("two")) is None


def test_a_revoked_key_stays_listed_with_the_time_of_its_first_revocation(database: Database) -> None:
    clock = Clock()
    keys = KeyRepository(database, clock=clock)
    create(keys, "one")
    create(keys, "two", tenant="other")
    assert keys.count_usable() == 2
    keys.revoke("one")
    revoked_at = clock.now
    clock.move(60)
    keys.revoke("one")
    assert [key.revoked_at for key in keys.list()] == [revoked_at, None]
    assert [key.key_id for key in keys.list("other")] == ["two"]
    assert keys.count_usable() == 1
    with pytest.raises(NotFound):
        keys.revoke("three")


def test_an_expired_key_is_not_usable(database: Database) -> None:
    clock = Clock()
    keys = KeyRepository(database, clock=clock)
    create(keys, "one", expires_at=clock.now + timedelta(seconds=10))
    assert keys.count_usable() == 1
    clock.move(10)
    assert keys.count_usable() == 0


def test_quotas_are_set_one_by_one_and_come_with_the_key(database: Database) -> None:
    tenants, keys = TenantRepository(database), KeyRepository(database)
    create(keys, "one")
    tenants.set_quotas("acme", requests_per_minute=5)
    tenants.set_quotas("acme", max_users=7)
    tenants.set_quotas("new")
    found = keys.find(digest("one"))
    assert found is not None
    assert found.quotas == Quotas(requests_per_minute=5, max_users=7)
    tenants.set_quotas("acme", requests_per_minute=None)
    assert [(t.tenant_id, t.quotas) for t in tenants.list()] == [("acme", Quotas(max_users=7)), ("new", Quotas())]


def test_a_tenant_never_has_more_users_than_it_may(database: Database) -> None:
    TenantRepository(database).set_quotas("tenant", max_users=3)
    users = repository(database)

    def make(name: str) -> str:
        try:
            adapt(users, [new_pair("a")], user=name)
        except QuotaExceeded as error:
            return error.quota
        return "made"

    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(make, [f"user{i}" for i in range(16)]))
    assert (made.count("made"), made.count("users")) == (3, 13)
    kept = [user.user_id for user in users.list("tenant", None, 100)]
    assert len(kept) == 3
    adapt(users, [new_pair("b")], user=kept[0])  # one who is there may go on
    adapt(users, [new_pair("a")], tenant="other", user="user0")  # and so may other tenants
    users.erase("tenant", kept[0])
    adapt(users, [new_pair("a")], user="late")
