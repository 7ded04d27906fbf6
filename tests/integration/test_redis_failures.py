"""Everything that can happen to Redis, times everything that is asked of a server: nothing fails, and it recovers.

A replica that did the same without Redis says what the answers must be.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from operating import ToyEngine
from redis_server import RedisServer
from sharing import Replica

from service.errors import ConfigurationError
from service.observability.metrics import Metrics
from service.operations.lifecycle import Lifecycle
from service.operations.readiness import ReadinessCheck
from service.store import Database, open_database
from service.store.redis_client import RedisClient

REQUESTS = 12


def change_password(server: RedisServer, password: str) -> None:
    """Let nobody in who does not know another password, those who are connected included."""
    server.execute("CONFIG", "SET", "requirepass", password)
    server.password = password
    server.execute("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")


@dataclass(frozen=True)
class Fault:
    """What is done to Redis and undone, and whether replicas have to do without it meanwhile."""

    begin: Callable[[RedisServer], object]
    end: Callable[[RedisServer], object]
    lasts: bool = True


FAULTS = {
    "killed": Fault(RedisServer.kill, RedisServer.start),
    "stopped": Fault(RedisServer.stop, RedisServer.start),
    "paused": Fault(RedisServer.pause, RedisServer.resume),
    "read-only": Fault(lambda server: server.set_read_only(True), lambda server: server.set_read_only(False)),
    "full": Fault(lambda server: server.set_full(True), lambda server: server.set_full(False)),
    "another password": Fault(
        lambda server: change_password(server, "changed"), lambda server: change_password(server, "open-sesame")
    ),
    "flushed": Fault(RedisServer.flush, RedisServer.flush, lasts=False),
    "restarted": Fault(RedisServer.restart, lambda server: None, lasts=False),
}


async def cached(replica: Replica, i: int) -> object:
    return (await replica.scored("known", text="seen before")).rewards


async def fresh(replica: Replica, i: int) -> object:
    return (await replica.scored("known", text=f"never seen {i}")).rewards


async def adapt(replica: Replica, i: int) -> object:
    version = await replica.adapted("known", chosen=f"choice {i}")
    return version, (await replica.scored("known", text="seen before", min_version=version)).rewards


async def erase(replica: Replica, i: int) -> object:
    await replica.users.erase("t", f"user{i}")
    return (await replica.scored(f"user{i}", text="seen before")).standing


QUESTIONS: dict[str, Callable[[Replica, int], Awaitable[object]]] = {
    "score cached": cached,
    "score fresh": fresh,
    "adapt": adapt,
    "erase": erase,
}
# What another replica must know afterwards, with nothing but the database and Redis to learn it from.
AFTERWARDS = {
    "score cached": ("known", 1),
    "score fresh": ("known", 1),
    "adapt": ("known", 1 + REQUESTS),
    "erase": ("user3", 0),
}


@pytest.fixture
def databases(migrated_sqlite_file: Path, tmp_path: Path) -> Iterator[tuple[Database, Database]]:
    opened = [
        open_database(f"sqlite:///{shutil.copy(migrated_sqlite_file, tmp_path / name)}")
        for name in ("one.db", "two.db")
    ]
    yield opened[0], opened[1]
    for database in opened:
        database.close()


@pytest.fixture
def server(redis_server: RedisServer) -> RedisServer:
    redis_server.flush()
    return redis_server


async def prepare(replica: Replica) -> None:
    await replica.adapted("known", chosen="the first choice")
    for i in range(REQUESTS):
        await replica.adapted(f"user{i}", chosen="a choice")
    await replica.scored("known", text="seen before")
    await replica.settled()


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("fault", FAULTS)
def test_nothing_fails_and_nobody_must_help(
    server: RedisServer, databases: tuple[Database, Database], fault: str, question: str
) -> None:
    async def path() -> None:
        ask = QUESTIONS[question]
        # The second does without Redis from the start: nobody knows this password.
        async with (
            Replica(databases[0], server, timeout_s=0.1 if fault == "paused" else 1.0) as replica,
            Replica(databases[0], server) as other,
            Replica(databases[1], server, password="wrong") as without,
        ):
            await prepare(replica)
            await prepare(without)
            await replica.trusts_redis()
            await other.scored("known", text="seen before")
            assert not without.client.up
            failures_before = failed_calls(replica)

            FAULTS[fault].begin(server)
            try:
                answers = [await ask(replica, i) for i in range(REQUESTS)]
                if FAULTS[fault].lasts:
                    await replica.settled()
                    # One that refuses only writes is noticed by the next write.
                    assert not replica.client.up or (question == "score cached" and fault in ("read-only", "full"))
            finally:
                FAULTS[fault].end(server)
            assert answers == [await ask(without, i) for i in range(REQUESTS)]
            # Few requests met the fault; the others were told at once. A write and a read may meet it together.
            assert failed_calls(replica) - failures_before <= 3

            await replica.trusts_redis()
            await replica.settled()
            assert replica.shared_users.owed == 0
            await other.trusts_redis()
            user, version = AFTERWARDS[question]
            assert (await other.scored(user)).version == version
            await other.settled()
            hits = replica.counted("user_cache", level="redis", result="hit")
            await replica.scored("known")
            await replica.settled()
            await replica.scored("known")
            assert replica.counted("user_cache", level="redis", result="hit") > hits, "Redis is in use again"

    asyncio.run(path())


def failed_calls(replica: Replica) -> float:
    """Calls of requests and writes that were tried and failed: each may have taken REDIS_TIMEOUT_S."""
    return sum(
        sample.value
        for metric in replica.metrics.registry.collect()
        for sample in metric.samples
        if sample.name == "metareward_redis_errors_total"
        and sample.labels["operation"] != "recover"
        and sample.labels["reason"] in ("timeout", "connection", "refused", "fault")
    )


def test_what_a_partitioned_replica_commits_outdates_redis_before_it_trusts_it(
    server: RedisServer, databases: tuple[Database, Database]
) -> None:
    async def path() -> None:
        async with Replica(databases[0], server, timeout_s=0.2) as a, Replica(databases[0], server) as b:
            for user in ("ada", "grace"):
                await a.adapted(user)
            await a.settled()
            for user in ("ada", "grace"):
                assert (await b.scored(user)).version == 1
            cut_off = a.client._pipeline

            async def partitioned(*_: object) -> list[object]:
                raise ConnectionError

            a.client._pipeline = partitioned  # type: ignore[method-assign,assignment]
            a.client._redis.execute_command = partitioned  # type: ignore[method-assign]
            assert await a.adapted("ada", chosen="better") == 2
            await a.users.erase("t", "grace")
            await a.settled()
            assert a.shared_users.owed == 2
            # Redis is up for b, and does not know yet; this is what REDIS_USER_TTL_S bounds.
            assert [(await b.scored(user)).version for user in ("ada", "grace")] == [1, 1]

            a.client._pipeline = cut_off  # type: ignore[method-assign]
            del a.client._redis.execute_command
            await a.trusts_redis()
            assert a.shared_users.owed == 0
            async with Replica(databases[0], server) as c:
                assert [(await c.scored(user)).version for user in ("ada", "grace")] == [2, 0]

    asyncio.run(path())


def test_an_owed_commit_does_not_bring_back_a_user_erased_meanwhile(
    server: RedisServer, databases: tuple[Database, Database]
) -> None:
    async def path() -> None:
        async with Replica(databases[0], server) as a, Replica(databases[0], server) as b:
            server.kill()
            try:
                await a.adapted("ada")
                await b.users.erase("t", "ada")
                await a.settled()
                assert a.shared_users.owed == 1
                # What b owes is lost with b.
                b.shared_users._owed_tombstones.clear()
            finally:
                server.start()
            await a.trusts_redis()
            async with Replica(databases[0], server) as c:
                assert (await c.scored("ada")).standing == "cold_start"

    asyncio.run(path())


def test_what_is_owed_is_bounded_and_erases_are_forgotten_last(
    server: RedisServer, databases: tuple[Database, Database]
) -> None:
    async def path() -> None:
        async with Replica(databases[0], server, max_owed=3) as a:
            await a.adapted("erased")
            await a.settled()
            server.kill()
            try:
                await a.users.erase("t", "erased")
                for i in range(5):
                    await a.adapted(f"user{i}")
                await a.settled()
                assert a.shared_users.owed == 3
                assert len(a.shared_users._owed_tombstones) == 1
                assert a.counted("redis_errors", operation="recover", reason="queue_full") == 3
            finally:
                server.start()
            await a.trusts_redis()

    asyncio.run(path())


def test_a_server_starts_and_is_ready_without_redis_and_says_so(
    server: RedisServer, databases: tuple[Database, Database]
) -> None:
    async def path() -> None:
        server.kill()
        try:
            async with Replica(databases[0], server) as replica:
                readiness = ReadinessCheck(
                    engine=ToyEngine,
                    database=databases[0],
                    lifecycle=Lifecycle(10, 10_000),
                    redis=replica.client,
                    metrics=replica.metrics,
                )
                assert await replica.adapted() == 1
                told = await readiness()
                assert told.ready
                assert told.degraded == ["redis: not reachable; the database answers instead"]
                assert up(replica) == {"database": 1, "engine": 1, "redis": 0}
                server.start()
                await replica.trusts_redis()
                assert (await readiness()).degraded == []
                assert up(replica) == {"database": 1, "engine": 1, "redis": 1}
                readiness.close()
        finally:
            server.restart()

    asyncio.run(path())


def up(replica: Replica) -> dict[str, float]:
    return {
        sample.labels["dependency"]: sample.value
        for metric in replica.metrics.registry.collect()
        for sample in metric.samples
        if sample.name == "metareward_dependency_up"
    }


def test_a_full_queue_drops_what_can_be_computed_again_and_is_counted(
    server: RedisServer, databases: tuple[Database, Database]
) -> None:
    async def path() -> None:
        async with Replica(databases[0], server) as a:
            a.writer._max_queued_keys = 1
            lost = []
            a.writer.put(("SET", "mr:one", 1, "PX", 1000))
            a.writer.put(("SET", "mr:two", 1, "PX", 1000))
            a.writer.put(("SET", "mr:three", 1, "PX", 1000), lost=lambda: lost.append("three"))
            await a.settled()
            assert lost == ["three"]
            assert a.counted("redis_errors", operation="write", reason="queue_full") == 2
            a.writer.put(("SET", "mr:four", 1, "PX", 1000))
            await a.settled()
        assert sorted(server.execute("KEYS", "mr:*")) == [b"mr:four", b"mr:one"]

    asyncio.run(path())


@pytest.mark.parametrize("url", ["http://x", "redis://host:port/0", "redis://host/?socket_timeout=soon"])
def test_an_impossible_url_ends_the_start_and_is_not_repeated(url: str) -> None:
    with pytest.raises(ConfigurationError, match="REDIS_URL") as caught:
        RedisClient(url, timeout_s=0.1, metrics=Metrics())
    assert "host" not in str(caught.value).replace("@host:6379", "")
