"""Token buckets that replicas share through a real Redis."""

from __future__ import annotations

import asyncio

import pytest
from redis_server import RedisServer
from sharing import replica_client

from service.store.redis_client import RedisKeys
from service.store.redis_quotas import RedisCounters


@pytest.fixture(autouse=True)
def empty(redis_server: RedisServer) -> None:
    redis_server.flush()


def test_replicas_take_from_one_bucket_and_others_have_their_own(redis_server: RedisServer) -> None:
    async def path() -> None:
        async with replica_client(redis_server) as here, replica_client(redis_server) as there:
            a, b = (RedisCounters(client, RedisKeys(b"secret")) for client in (here, there))
            answers = await asyncio.gather(
                *(counters.take("t", "requests", 1, limit=10, window_s=3600.0) for counters in (a, b) for _ in range(8))
            )
            assert sum(answer is not None and answer.allowed for answer in answers) == 10
            refused = await a.take("t", "requests", 1, limit=10, window_s=3600.0)
            assert refused is not None
            assert not refused.allowed
            assert 0 < refused.retry_after_s <= 360.0
            for other in (("u", "requests"), ("t", "tokens")):
                taken = await b.take(*other, 10, limit=10, window_s=3600.0)
                assert taken is not None
                assert taken.allowed

    asyncio.run(path())


def test_a_bucket_refills_evenly_and_may_owe(redis_server: RedisServer) -> None:
    async def path() -> None:
        async with replica_client(redis_server) as client:
            counters = RedisCounters(client, RedisKeys(b"secret"))
            taken = await counters.take("t", "tokens", 30, limit=10, window_s=1000.0)  # larger than the bucket
            assert taken is not None
            assert taken.allowed
            owing = await counters.take("t", "tokens", 0, limit=10, window_s=1000.0)
            assert owing is not None
            assert not owing.allowed
            assert 1900.0 < owing.retry_after_s <= 2000.0
            forced = await counters.take("t", "tokens", 10, limit=10, window_s=1000.0, force=True)
            assert forced is not None
            assert forced.allowed
            more = await counters.take("t", "tokens", 10, limit=10, window_s=1000.0)
            assert more is not None
            assert 3900.0 < more.retry_after_s <= 4000.0

            assert (await counters.take("t", "requests", 1, limit=1, window_s=0.2)).allowed  # type: ignore[union-attr]
            await asyncio.sleep(0.25)
            assert (await counters.take("t", "requests", 1, limit=1, window_s=0.2)).allowed  # type: ignore[union-attr]

    asyncio.run(path())
    kept = [key for key in redis_server.execute("KEYS", "mr:q:*") if redis_server.execute("PTTL", key) < 0]
    assert kept == []


def test_without_redis_there_is_no_answer(redis_server: RedisServer) -> None:
    async def path() -> None:
        async with replica_client(redis_server, password="wrong") as client:
            counters = RedisCounters(client, RedisKeys(b"secret"))
            assert await counters.take("t", "requests", 1, limit=1, window_s=1.0) is None

    asyncio.run(path())


def test_an_impossible_quota_is_a_fault_of_the_caller(redis_server: RedisServer) -> None:
    async def path() -> None:
        async with replica_client(redis_server) as client:
            counters = RedisCounters(client, RedisKeys(b"secret"))
            for amount, limit, window_s in ((-1, 1, 1), (1, 0, 1), (1, 1, 0), (float("nan"), 1, 1)):
                with pytest.raises(ValueError, match="finite"):
                    await counters.take("t", "requests", amount, limit=limit, window_s=window_s)

    asyncio.run(path())
