"""Quotas of tenants: the bucket alone, per process, and through a real Redis that comes and goes."""

from __future__ import annotations

import asyncio
import contextlib
import pickle
from concurrent.futures import Future

import pytest
from operating import Operations, ToyEngine, told, user_says
from redis_server import RedisServer

from service.errors import Overloaded, QuotaExceeded, Unavailable
from service.observability.metrics import Metrics
from service.operations.quotas import TenantLimits, TokenBucket
from service.operations.said import PreferencePair
from service.operations.score import ScoreItem
from service.store import Database
from service.store.records import Quotas
from service.store.redis_client import RedisClient, RedisKeys
from service.store.redis_quotas import RedisCounters
from service.store.tenants import TenantRepository


def take(bucket: TokenBucket, amount: float, now: float, limit: float = 60.0) -> tuple[bool, float]:
    taken = bucket.take(amount, now, limit=limit, window_s=60.0)
    return taken.allowed, round(taken.retry_after_s, 6)


def test_a_bucket_gives_a_minutes_worth_and_refills_steadily() -> None:
    bucket = TokenBucket()
    assert [take(bucket, 1, 1000.0)[0] for _ in range(60)] == [True] * 60
    assert take(bucket, 1, 1000.0) == (False, 1.0)
    assert take(bucket, 5, 1000.0) == (False, 5.0)
    assert take(bucket, 1, 1000.5) == (False, 0.5)
    assert take(bucket, 1, 1001.0) == (True, 0.0)
    assert [take(bucket, 1, 9999.0)[0] for _ in range(61)] == [True] * 60 + [False], "it holds no more than a minute's"


def test_more_than_the_bucket_holds_is_given_when_it_is_full_and_then_owed() -> None:
    bucket = TokenBucket()
    assert take(bucket, 1, 1000.0) == (True, 0.0)
    assert take(bucket, 150, 1000.0) == (False, 1.0)
    assert take(bucket, 150, 1001.0) == (True, 0.0)
    assert take(bucket, 1, 1001.0) == (False, 91.0)


def test_a_smaller_quota_counts_at_once() -> None:
    bucket = TokenBucket()
    assert take(bucket, 30, 1000.0) == (True, 0.0)
    assert take(bucket, 1, 1000.0, limit=20.0)[0] is False
    assert take(bucket, 1, 1000.0)[0] is True


async def requests_let_in(limits: TenantLimits, tenant: str, tries: int) -> int:
    let_in = 0
    for _ in range(tries):
        with contextlib.suppress(QuotaExceeded):
            await limits.charge_request(tenant)
            let_in += 1
    return let_in


def test_tenants_are_counted_apart_and_those_without_a_quota_not_at_all() -> None:
    metrics = Metrics()
    limits = TenantLimits(metrics=metrics)
    for tenant in ("a", "b"):
        limits.learn(tenant, Quotas(requests_per_minute=3))
    limits.learn("free", Quotas())

    async def path() -> None:
        assert await requests_let_in(limits, "a", 10) == 3
        with pytest.raises(QuotaExceeded) as refusal:
            await limits.charge_request("a")
        assert refusal.value.quota == "requests"
        assert 0 < refusal.value.retry_after_s <= 20
        assert await requests_let_in(limits, "b", 2) == 2
        assert await requests_let_in(limits, "free", 100) == 100
        assert await requests_let_in(limits, "never seen", 100) == 100

    asyncio.run(path())
    refusals = {"tenant": "a", "quota": "requests"}
    assert metrics.registry.get_sample_value("metareward_quota_refusals_total", refusals) == 8
    assert metrics.registry.get_sample_value("metareward_tenant_requests_total", {"tenant": "b"}) == 2


def test_replicas_share_a_quota_through_redis_and_count_alone_while_it_is_away(redis_server: RedisServer) -> None:
    async def path() -> None:
        client = RedisClient(redis_server.url, timeout_s=1.0, metrics=Metrics())
        shared = RedisCounters(client, RedisKeys(b"secret"))
        replicas = [TenantLimits(metrics=Metrics(), shared=shared) for _ in range(2)]
        for replica in replicas:
            replica.learn("a", Quotas(requests_per_minute=4))
        assert await requests_let_in(replicas[0], "a", 3) == 3
        assert await requests_let_in(replicas[1], "a", 10) == 1
        redis_server.kill()
        assert [await requests_let_in(replica, "a", 10) for replica in replicas] == [4, 4]
        await client.close()

    asyncio.run(path())
    redis_server.start()


def test_only_what_the_engine_computes_costs_tokens(database: Database) -> None:
    operations = Operations(database)
    limits = TenantLimits(metrics=operations.metrics)
    limits.learn("t", Quotas(tokens_per_minute=20))
    operations.base_rewards._meter = limits

    async def score(completion: str) -> None:
        item = ScoreItem("ada", user_says("q"), [completion])
        await operations.score("t", [item], truncate=False, return_base_rewards=False)

    async def path() -> None:
        for _ in range(5):
            await score("x" * 8)  # 10 tokens with the prompt, once
        await score("y" * 8)
        with pytest.raises(QuotaExceeded) as refusal:
            await score("z" * 8)
        assert refusal.value.quota == "tokens"
        await score("x" * 8)
        with pytest.raises(QuotaExceeded):
            await operations.score(
                "t", [ScoreItem("ada", user_says("q"), ["z" * 8])], truncate=False, return_base_rewards=False
            )

    asyncio.run(path())
    assert len(operations.engine.texts) == 2
    value = operations.metrics.registry.get_sample_value
    assert value("metareward_tenant_tokens_total", {"tenant": "t"}) == 20


class MoodyEngine(ToyEngine):
    """Refuses, fails or keeps texts though it seemed to have room."""

    def __init__(self) -> None:
        super().__init__()
        self.refusal: Exception | None = None
        self.answer: Exception | None = None
        self.keeps = False
        self.kept = asyncio.Event()

    def submit(self, texts, **options):
        if self.refusal is not None:
            raise self.refusal
        if self.keeps:
            self.kept.set()
            return [Future() for _ in texts]
        futures = super().submit(texts, **options)
        if self.answer is not None:
            futures[-1] = Future()
            futures[-1].set_exception(self.answer)
        return futures


@pytest.mark.parametrize("through_redis", [False, True])
def test_tokens_that_the_engine_did_not_compute_are_given_back(
    database: Database, redis_server: RedisServer, through_redis: bool
) -> None:
    redis_server.flush()
    operations = Operations(database)
    engine = operations.base_rewards._engine = MoodyEngine()
    value = operations.metrics.registry.get_sample_value

    def score(*completions: str):
        items = [ScoreItem("ada", user_says("q"), completions)]  # each costs 10 tokens
        return operations.score("t", items, truncate=False, return_base_rewards=False)

    async def path() -> None:
        client = RedisClient(redis_server.url, timeout_s=5.0, metrics=Metrics())
        shared = RedisCounters(client, RedisKeys(b"secret")) if through_redis else None
        limits = operations.base_rewards._meter = TenantLimits(metrics=operations.metrics, shared=shared)
        limits.learn("t", Quotas(tokens_per_minute=60))

        def used() -> float | None:
            return value("metareward_tenant_tokens_total", {"tenant": "t"})

        engine.refusal = Overloaded("full")
        for _ in range(10):
            with pytest.raises(Overloaded):
                await score(*(f"refused{i}" for i in range(3)))
        engine.refusal, engine.answer = None, Unavailable("away")
        for i in range(10):
            with pytest.raises(Unavailable):
                await score(f"failed {i}")
        engine.answer = None
        assert used() is None
        for i in range(2):
            await score(*[f"again {i}!"] * 4)  # one text, four times
        assert used() == 20

        engine.keeps = True
        leaving = asyncio.create_task(score(*(f"leaver {i}" for i in range(3))))
        await engine.kept.wait()
        leaving.cancel()
        await asyncio.wait([leaving])
        assert used() == 50, "who leaves pays"
        engine.keeps = False
        with pytest.raises(QuotaExceeded):
            await score("too much", "too many")
        await score("the last")
        assert used() == 60
        await client.close()

    asyncio.run(path())


def test_one_user_too_many_is_refused_and_counted(database: Database) -> None:
    TenantRepository(database).set_quotas("t", max_users=1)
    operations = Operations(database)
    pairs = [PreferencePair(user_says("p"), "good", "bad", 1.0, None)]

    async def path() -> None:
        await operations.adapt("t", "ada", told(pairs), mode="append", truncate=False)
        with pytest.raises(QuotaExceeded) as refusal:
            await operations.adapt("t", "bob", told(pairs), mode="append", truncate=False)
        assert refusal.value.quota == "users"

    asyncio.run(path())
    refusals = {"tenant": "t", "quota": "users"}
    assert operations.metrics.registry.get_sample_value("metareward_quota_refusals_total", refusals) == 1


@pytest.mark.parametrize(("scope", "told"), [("tenant", {"user", "tokenise", "engine", "total"}), ("shared", {"user"})])
def test_a_shared_cache_does_not_tell_its_times(database: Database, scope: str, told: set[str]) -> None:
    operations = Operations(database, cache_scope=scope)  # type: ignore[arg-type]

    async def times(tenant: str) -> set[str]:
        item = ScoreItem("ada", user_says("q"), ["x"])
        answer = await operations.score(tenant, [item], truncate=False, return_base_rewards=False)
        return set(answer.timings_ms)

    async def path() -> None:
        assert await times("one") == told
        if scope == "shared":
            assert await times("two") == told, "the hit looks as the miss did"

    asyncio.run(path())


def test_the_error_survives_pickling() -> None:
    error = pickle.loads(pickle.dumps(QuotaExceeded("users", "full", 3.0)))
    assert (error.quota, str(error), error.retry_after_s) == ("users", "full", 3.0)
