"""Keys against a real database: good, refused, remembered, and while the database is away."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta

import pytest
from servers import PostgresServer

from service.errors import Overloaded, Unauthenticated, Unavailable
from service.observability import context
from service.observability.metrics import Metrics
from service.operations import authenticator as module
from service.operations.authenticator import Authenticator
from service.operations.keys import Keys
from service.store import Database, open_database
from service.store.keys import KeyRepository
from service.store.records import ApiKey


class CountedKeys(KeyRepository):
    """The real repository, and how often it was asked."""

    asked = 0

    def find(self, digest: bytes) -> ApiKey | None:
        self.asked += 1
        return super().find(digest)


class Door:
    """An authenticator, its metrics and its repository."""

    def __init__(self, database: Database, *, trust_s: float = 60.0, stale_s: float = 60.0) -> None:
        self.metrics = Metrics()
        self.repository = CountedKeys(database)
        self.keys = Keys(self.repository)
        self.now = datetime.now(UTC)
        self.authenticator = Authenticator(
            repository=self.repository,
            metrics=self.metrics,
            trust_s=trust_s,
            stale_s=stale_s,
            wall_clock=lambda: self.now,
        )

    def counted(self, result: str) -> float:
        return self.metrics.registry.get_sample_value("metareward_authentications_total", {"result": result}) or 0.0

    async def refused(self, key: str) -> str:
        with pytest.raises(Unauthenticated) as refusal:
            await self.authenticator.verify(key)
        return str(refusal.value)


def random_key() -> str:
    return f"mr_{'a' * 10}_{secrets.token_urlsafe(32)}"


async def until(what: Callable[[], Awaitable[bool]], within_s: float = 20.0) -> None:
    give_up_at = time.monotonic() + within_s
    while not await what():
        assert time.monotonic() < give_up_at
        await asyncio.sleep(0.02)


def test_a_good_key_is_looked_up_once(database: Database) -> None:
    door = Door(database)
    secret = door.keys.create("acme", "score", "mine").secret

    async def path() -> None:
        callers = await asyncio.gather(*(door.authenticator.verify(secret) for _ in range(20)))
        assert {(key.tenant_id, key.role) for key in callers} == {("acme", "score")}
        await door.authenticator.verify(secret)

    asyncio.run(path())
    assert door.repository.asked == 1
    assert door.counted("ok") == 21


def test_what_is_no_key_of_ours_never_reaches_the_database(database: Database) -> None:
    door = Door(database)
    secret = door.keys.create("acme", "score").secret

    async def path() -> None:
        for key in ("", "x", secret[:-1], secret + "a", secret.upper(), secret + "\n", "mr_" + "a" * 9999, "é" * 20):
            assert "not known" in await door.refused(key)

    asyncio.run(path())
    assert door.repository.asked == 0
    assert door.counted("unknown") == 8


def test_unknown_revoked_and_expired_keys_are_refused(database: Database) -> None:
    door = Door(database)
    revoked, expiring = door.keys.create("acme", "score"), door.keys.create("acme", "score", lasts=timedelta(hours=1))
    door.keys.revoke(revoked.key_id)

    async def path() -> None:
        assert "not known" in await door.refused(random_key())
        for _ in range(2):  # looked up, and remembered
            context.key_id.set("")
            assert "revoked" in await door.refused(revoked.secret)
            assert (context.tenant.get(), context.key_id.get()) == ("acme", revoked.key_id), "the log says whose"
        await door.authenticator.verify(expiring.secret)
        door.now += timedelta(hours=2)
        assert "expired" in await door.refused(expiring.secret), "also one that is remembered as good"

    asyncio.run(path())
    assert [door.counted(result) for result in ("unknown", "revoked", "expired")] == [1, 2, 1]


def test_a_revoked_key_stops_within_its_time_of_trust(sqlite_url: str) -> None:
    database = open_database(sqlite_url)
    door = Door(database, trust_s=0.4)
    key = door.keys.create("acme", "score")

    async def works() -> bool:
        try:
            await door.authenticator.verify(key.secret)
        except Unauthenticated:
            return False
        return True

    async def looked_up_again() -> bool:
        assert await works()
        return door.repository.asked >= 2

    async def refused() -> bool:
        return not await works()

    async def path() -> None:
        await until(looked_up_again)
        door.keys.revoke(key.key_id)
        await asyncio.sleep(0.4)
        assert await refused()
        assert await refused()

    asyncio.run(path())
    database.close()


def test_a_flood_of_random_keys_costs_few_look_ups_and_little_memory(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MAX_REMEMBERED", 50)
    database = open_database(sqlite_url)
    door = Door(database)
    good = door.keys.create("acme", "score").secret

    async def path() -> None:
        await door.authenticator.verify(good)
        results = await asyncio.gather(
            *(door.authenticator.verify(random_key()) for _ in range(3000)), return_exceptions=True
        )
        assert {type(result) for result in results} == {Unauthenticated, Overloaded}
        one_that_was_unknown = random_key()
        await asyncio.sleep(1.0)  # the bound is on a rate
        for _ in range(5):
            await door.refused(one_that_was_unknown)
        await door.authenticator.verify(good)

    asyncio.run(path())
    assert door.repository.asked <= 1 + 64 + 1
    assert len(door.authenticator._refused) <= 50
    database.close()


@pytest.mark.parametrize("how", ["killed", "hung"])
def test_without_the_database_verified_keys_stay_good_and_others_get_an_error(
    own_postgres: PostgresServer, how: str
) -> None:
    database = open_database(own_postgres.url(), pool_size=2, statement_timeout_s=1.0)
    door = Door(database, trust_s=0.05, stale_s=30.0)
    known, unseen = door.keys.create("acme", "score").secret, door.keys.create("acme", "score").secret

    async def path() -> None:
        await door.authenticator.verify(known)
        (own_postgres.kill if how == "killed" else own_postgres.pause)()
        await asyncio.sleep(0.06)
        assert (await door.authenticator.verify(known)).tenant_id == "acme"
        assert door.counted("stale") == 1
        with pytest.raises(Unavailable):
            await door.authenticator.verify(unseen)
        with pytest.raises(Unavailable):
            await door.authenticator.verify(random_key())
        # Nobody waits to learn of an outage that is known.
        asked = door.repository.asked
        for _ in range(200):
            await door.authenticator.verify(known)
        assert door.repository.asked <= asked + 5

        (own_postgres.start if how == "killed" else own_postgres.resume)()

        async def back() -> bool:
            try:
                await door.authenticator.verify(unseen)
            except Unavailable:
                return False
            return True

        await until(back)

    try:
        asyncio.run(path())
    finally:
        if how == "hung":
            own_postgres.resume()
        database.close()


def test_a_verified_key_does_not_stay_good_for_ever(own_postgres: PostgresServer) -> None:
    database = open_database(own_postgres.url(), pool_size=2, statement_timeout_s=1.0)
    door = Door(database, trust_s=0.05, stale_s=0.1)
    known = door.keys.create("acme", "score").secret

    async def path() -> None:
        await door.authenticator.verify(known)
        own_postgres.kill()
        await asyncio.sleep(0.2)
        with pytest.raises(Unavailable):
            await door.authenticator.verify(known)

    asyncio.run(path())
    database.close()
