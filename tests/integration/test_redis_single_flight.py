"""Replicas that miss the same texts at the same time compute each once; and nothing of Redis holds a request up."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import Future

import numpy as np
import pytest
from operating import ToyEngine, toy_base_rewards, user_says
from redis_server import RedisServer
from sharing import Replica, until

from service.errors import EngineError, InvalidInput
from service.operations import base_rewards
from service.operations.texts import Text
from service.store import Database, open_database, redis_claims

TEXTS = [Text(user_says("q"), f"text {i}", f"completions[{i}]") for i in range(64)]


class SlowEngine(ToyEngine):
    """Answers when it is told to, on the loop that asked."""

    def __init__(self, failing: bytes | None = None) -> None:
        super().__init__()
        self.failing = failing
        self._waiting: list[tuple[Future[np.ndarray], Sequence[int]]] = []

    def submit(
        self, texts: Sequence[Sequence[int]], *, scope: bytes = b"", deadline: float | None = None
    ) -> list[Future[np.ndarray]]:
        self.texts += [tuple(text) for text in texts]
        new: list[tuple[Future[np.ndarray], Sequence[int]]] = [(Future(), text) for text in texts]
        self._waiting += new
        return [future for future, _ in new]

    def answer(self) -> None:
        waiting, self._waiting = self._waiting, []
        for future, text in waiting:
            if not future.set_running_or_notify_cancel():
                continue
            if self.failing is not None and self.failing in bytes(text):
                future.set_exception(EngineError("the device failed"))
            else:
                future.set_result(toy_base_rewards(text))


class SlowReplica(Replica):
    """A replica whose engine waits for a word."""

    def __init__(self, database: Database, server: RedisServer, failing: bytes | None = None, **options: float) -> None:
        super().__init__(database, server, **options)  # type: ignore[arg-type]
        self.engine: SlowEngine = SlowEngine(failing)
        self.base_rewards._engine = self.engine

    async def read(self, texts: Sequence[Text] = TEXTS, tenant: str = "t") -> np.ndarray:
        return (await self.base_rewards.read(tenant, texts, truncate=False)).rewards_BK


@pytest.fixture
def redis(redis_server: RedisServer) -> RedisServer:
    redis_server.flush()
    return redis_server


@pytest.fixture
def database(sqlite_url: str) -> Iterator[Database]:
    database = open_database(sqlite_url, pool_size=4)
    yield database
    database.close()


def run(path: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(path())  # type: ignore[arg-type]


def claims(server: RedisServer) -> int:
    return len(server.execute("KEYS", "mr:c:*"))


def test_the_same_texts_at_once_at_two_replicas_are_computed_once_each(redis: RedisServer, database: Database) -> None:
    async def path() -> None:
        async with SlowReplica(database, redis) as a, SlowReplica(database, redis) as b:
            reading = [asyncio.create_task(replica.read()) for replica in (a, b)]
            reading += [asyncio.create_task(b.read(TEXTS[:32])), asyncio.create_task(a.read(TEXTS[::-1]))]
            await until(lambda: len(a.engine.texts) + len(b.engine.texts) >= 64)
            assert claims(redis) == 64
            await asyncio.sleep(0.05)  # those who wait ask several times meanwhile
            a.engine.answer()
            b.engine.answer()
            first, second, half, backwards = await asyncio.gather(*reading)
            computed = a.engine.texts + b.engine.texts
            assert len(computed) == len(set(computed)) == 64
            assert first.tolist() == second.tolist() == backwards[::-1].tolist()
            assert first[:32].tolist() == half.tolist()
            joined = a.counted("joined_texts", result="answered") + b.counted("joined_texts", result="answered")
            assert joined >= 64
            assert b.counted("joined_texts", result="late") == a.counted("joined_texts", result="late") == 0
            await a.settled()
            await b.settled()
            assert claims(redis) == 0

    run(path)


def test_replicas_compute_the_parts_of_a_request_that_others_do_not(redis: RedisServer, database: Database) -> None:
    async def path() -> None:
        async with SlowReplica(database, redis) as a, SlowReplica(database, redis) as b:
            first = asyncio.create_task(a.read(TEXTS[:40]))
            await until(lambda: len(a.engine.texts) == 40)
            second = asyncio.create_task(b.read(TEXTS[20:]))
            await until(lambda: len(b.engine.texts) == 24)
            assert set(a.engine.texts).isdisjoint(b.engine.texts)
            a.engine.answer()
            b.engine.answer()
            assert (await first)[20:].tolist() == (await second)[:20].tolist()

    run(path)


def test_tenants_wait_for_nobody_elses_texts(redis: RedisServer, database: Database) -> None:
    async def path() -> None:
        async with SlowReplica(database, redis) as a, SlowReplica(database, redis) as b:
            ours, theirs = (asyncio.create_task(r.read(TEXTS[:4], t)) for r, t in ((a, "ours"), (b, "theirs")))
            await until(lambda: len(a.engine.texts) == len(b.engine.texts) == 4)
            a.engine.answer()
            b.engine.answer()
            await asyncio.gather(ours, theirs)

    run(path)


def test_who_fails_or_leaves_makes_room_for_the_next(
    redis: RedisServer, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_claims, "CLAIM_MS", 600_000)  # none of them ends by itself

    async def path() -> None:
        async with SlowReplica(database, redis, failing=b"text 3") as a, SlowReplica(database, redis) as b:
            failing = asyncio.create_task(a.read(TEXTS[:8]))
            await until(lambda: len(a.engine.texts) == 8)
            waiting = asyncio.create_task(b.read(TEXTS[:8]))
            await asyncio.sleep(0.02)
            a.engine.answer()
            with pytest.raises(EngineError):
                await failing
            await until(lambda: len(b.engine.texts) >= 1)
            assert b"text 3" in bytes(b.engine.texts[0])
            b.engine.answer()
            assert len(await waiting) == 8

            leaving = asyncio.create_task(a.read(TEXTS[10:12]))
            await until(lambda: len(a.engine.texts) == 10)
            leaving.cancel()
            with pytest.raises(asyncio.CancelledError):
                await leaving
            with pytest.raises(InvalidInput):
                await a.read([*TEXTS[12:14], Text(user_says("q"), "long " * 20, "completions[2]")])
            await until(lambda: claims(redis) == 0)

            request = a.base_rewards._shared.claim([b"k" * 32])  # type: ignore[union-attr]
            asking = asyncio.create_task(request.answers())
            await asyncio.sleep(0)
            asking.cancel()
            request.release()
            await until(lambda: request._asking.done())  # type: ignore[attr-defined]
            await a.settled()
            assert claims(redis) == 0

    run(path)


def test_a_replica_that_dies_is_followed_within_its_claims_time(
    redis: RedisServer, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_claims, "CLAIM_MS", 300)

    async def path() -> None:
        async with SlowReplica(database, redis) as dead, SlowReplica(database, redis) as other:
            dead.base_rewards._shared._claims._renew = lambda: None  # type: ignore[union-attr]
            lost = asyncio.create_task(dead.read(TEXTS[:8]))
            await until(lambda: len(dead.engine.texts) == 8)
            waiting = asyncio.create_task(other.read(TEXTS[:8]))
            await until(lambda: len(other.engine.texts) == 8)
            other.engine.answer()
            assert len(await waiting) == 8
            lost.cancel()

    run(path)


def test_a_claim_is_renewed_while_its_owner_computes(
    redis: RedisServer, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_claims, "CLAIM_MS", 1000)
    monkeypatch.setattr(redis_claims, "_RENEW_S", 0.1)

    async def path() -> None:
        async with SlowReplica(database, redis) as slow:
            reading = asyncio.create_task(slow.read(TEXTS[:4]))
            await until(lambda: len(slow.engine.texts) == 4)
            (key, *_) = redis.execute("KEYS", "mr:c:*")
            left = [await asyncio.to_thread(redis.execute, "PTTL", key)]
            while len(left) < 2 or left[-1] <= left[-2]:
                left.append(await asyncio.to_thread(redis.execute, "PTTL", key))
                assert left[-1] > 0, "it expired under its owner's hands"
            slow.engine.answer()
            await reading

    run(path)


def test_an_owner_that_is_too_slow_is_not_waited_for_any_longer(
    redis: RedisServer, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base_rewards, "_JOIN_S", 0.1)

    async def path() -> None:
        async with SlowReplica(database, redis) as stuck, SlowReplica(database, redis) as other:
            lost = asyncio.create_task(stuck.read(TEXTS[:8]))
            await until(lambda: len(stuck.engine.texts) == 8)
            waiting = asyncio.create_task(other.read(TEXTS[:8]))
            await until(lambda: len(other.engine.texts) == 8)
            other.engine.answer()
            assert len(await waiting) == 8
            assert other.counted("joined_texts", result="late") == 8
            stuck.engine.answer()
            await lost

    run(path)


@pytest.mark.parametrize("fault", ["killed", "paused", "full"])
def test_redis_that_goes_wrong_while_others_are_waited_for_costs_its_time_limit_and_no_answer(
    database: Database, fault: str
) -> None:
    server = RedisServer().start()

    async def path() -> None:
        async with (
            SlowReplica(database, server, timeout_s=0.5) as owner,
            SlowReplica(database, server, timeout_s=0.5) as other,
        ):
            first = asyncio.create_task(owner.read(TEXTS[:8]))
            await until(lambda: len(owner.engine.texts) == 8)
            waiting = asyncio.create_task(other.read(TEXTS[:16]))
            await until(lambda: len(other.engine.texts) == 8)
            {"killed": server.kill, "paused": server.pause, "full": lambda: server.set_full(True)}[fault]()
            if fault == "full":
                server.flush()  # so that who waits would write a claim
            await until(lambda: len(other.engine.texts) == 16)
            for replica in (owner, other):
                replica.engine.answer()
            assert len(await waiting) == 16
            assert len(await first) == 8

    try:
        run(path)
    finally:
        server.close()


def test_what_a_miss_costs_when_nobody_else_asks(redis: RedisServer, database: Database) -> None:
    """Claims travel while texts are tokenised: one round trip for all texts of a request, and none for hits."""

    async def path() -> None:
        async with Replica(database, redis) as a:
            calls: list[str] = []
            call = a.client.call

            async def counting(operation: str, *command: bytes | str | int | float) -> object:
                calls.append(operation)
                return await call(operation, *command)

            a.client.call = counting  # type: ignore[method-assign]
            for _ in range(2):
                await a.base_rewards.read("t", TEXTS, truncate=False)
            assert calls == ["base_rewards", "claim"]

    run(path)
