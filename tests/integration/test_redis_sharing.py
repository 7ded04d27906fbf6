"""Two replicas over one database and one Redis: what one commits or erases the other one sees."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator

import pytest
from operating import toy_base_rewards, user_says
from redis_server import RedisServer
from servers import PostgresServer
from sharing import Replica
from traces import redis_traces, traces

from service.errors import Conflict, InvalidInput, NotFound, Unavailable
from service.operations.texts import Text
from service.store import Database, StoredUser, open_database


@pytest.fixture(autouse=True)
def empty(redis_server: RedisServer) -> None:
    redis_server.flush()


@pytest.fixture
def database(sqlite_url: str) -> Iterator[Database]:
    database = open_database(sqlite_url, pool_size=8)
    yield database
    database.close()


def run(path: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(path())  # type: ignore[arg-type]


def users_read_from_the_database(replica: Replica) -> list[str]:
    """From now on, the users that a replica asks the database for."""
    asked: list[str] = []
    get = replica.repository.get

    def counting(tenant_id: str, user_id: str) -> StoredUser | None:
        asked.append(user_id)
        return get(tenant_id, user_id)

    replica.repository.get = counting  # type: ignore[method-assign]
    return asked


def test_an_adapt_on_one_replica_is_seen_on_the_other_without_the_database(
    redis_server: RedisServer, database: Database
) -> None:
    async def path() -> None:
        async with Replica(database, redis_server) as a, Replica(database, redis_server) as b:
            asked = users_read_from_the_database(b)
            for version in (1, 2):
                assert await a.adapted(chosen=f"good {version}") == version
                await a.settled()
                seen = await b.scored()
                assert (seen.version, seen.standing) == (version, "adapted")
                assert seen.rewards == (await a.scored()).rewards
                assert seen.reward_std == (await a.scored()).reward_std
            assert asked == []

    run(path)


def test_it_is_seen_within_the_time_for_which_memory_is_trusted(redis_server: RedisServer, database: Database) -> None:
    async def path() -> None:
        async with Replica(database, redis_server) as a, Replica(database, redis_server, revalidate_s=0.3) as b:
            await a.adapted()
            await a.settled()
            assert (await b.scored()).version == 1
            await a.adapted(chosen="better")
            await a.settled()
            await asyncio.sleep(0.31)
            assert (await b.scored()).version == 2

    run(path)


def test_base_rewards_of_one_replica_serve_the_other(redis_server: RedisServer, database: Database) -> None:
    async def path() -> None:
        async with Replica(database, redis_server) as a, Replica(database, redis_server) as b:
            texts = [f"text {i}" for i in range(20)]
            from_a = await asyncio.gather(*(a.scored(text=text) for text in texts))
            await a.settled()
            from_b = await asyncio.gather(*(b.scored(text=text) for text in texts))
            assert [one.rewards for one in from_b] == [one.rewards for one in from_a]
            assert b.engine.texts == []
            assert b.counted("base_reward_cache", level="redis", result="hit") == 20
            # Memory answers now.
            await asyncio.gather(*(b.scored(text=text) for text in texts))
            assert b.counted("base_reward_cache", level="redis") == 20

    run(path)


def test_nothing_in_redis_names_anybody_or_says_anything(redis_server: RedisServer, database: Database) -> None:
    async def path() -> None:
        async with Replica(database, redis_server) as a:
            await a.adapted(user="zaphod", chosen="a chosen text")
            await a.settled()
            await a.users.erase("t", "zaphod")
            await a.adapted(user="trillian", chosen="another text")
            await a.settled()

    run(path)
    keys = redis_server.execute("KEYS", "*")
    assert {key[:5] for key in keys} == {b"mr:b:", b"mr:u:", b"mr:t:"}
    assert len(redis_traces(redis_server.url, "mr:")) == len(keys)
    assert redis_traces(redis_server.url, "zaphod", "trillian", "text", "bad") == []
    assert traces(database, "trillian") == ["users.user_id"]
    assert traces(database, "zaphod", "text", "bad") == []
    assert all(redis_server.execute("PTTL", key) > 0 for key in keys)


def test_min_version_asks_the_database_where_redis_lags(redis_server: RedisServer, database: Database) -> None:
    async def path() -> None:
        async with Replica(database, redis_server) as a, Replica(database, redis_server) as b:
            await a.adapted()
            await a.settled()
            a.shared_users.publish_committed = lambda user: None  # type: ignore[method-assign]  # it died right after
            assert await a.adapted(chosen="better") == 2
            assert (await b.scored()).version == 1  # what REDIS_USER_TTL_S bounds
            assert (await b.scored(min_version=2)).version == 2
            # Memory knows better than Redis now, and the read has mended Redis.
            assert (await b.scored()).version == 2
            await b.settled()
            async with Replica(database, redis_server) as c:
                assert (await c.scored()).version == 2
            with pytest.raises(Conflict, match="min_version"):
                await b.scored(min_version=3)

    run(path)


def test_an_old_entry_is_read_again_and_serves_where_the_database_does_not(
    redis_server: RedisServer, own_postgres: PostgresServer
) -> None:
    database = open_database(own_postgres.url(), pool_size=4, statement_timeout_s=1.0)

    async def path() -> None:
        async with Replica(database, redis_server, ttl_s=0.4) as a:
            await a.adapted()
            await a.settled()
            async with Replica(database, redis_server, ttl_s=0.4) as b:
                asked = users_read_from_the_database(b)
                await asyncio.sleep(0.45)
                assert (await b.scored()).standing == "adapted"
                assert asked == ["ada"]
                await b.settled()
                assert (await b.scored()).standing == "adapted"
                assert asked == ["ada"]  # the read was shared, and is young again
            own_postgres.kill()
            async with Replica(database, redis_server, ttl_s=0.4) as newcomer:
                await asyncio.sleep(0.45)
                # Never asked for ada before: only Redis knows her.
                assert (await newcomer.scored()).standing == "stale"
                with pytest.raises(Unavailable):
                    await newcomer.scored(user="stranger")
            async with Replica(database, redis_server, ttl_s=0.4, stale_limit_s=0.1) as strict:
                with pytest.raises(Unavailable):
                    await strict.scored()

    run(path)
    database.close()


def test_an_erased_user_is_gone_everywhere_and_may_come_back_new(redis_server: RedisServer, database: Database) -> None:
    async def path() -> None:
        async with Replica(database, redis_server) as a, Replica(database, redis_server) as b:
            for _ in range(3):
                await a.adapted()
            await a.settled()
            assert (await b.scored()).version == 3
            await a.users.erase("t", "ada")
            assert (await b.scored()).standing == "cold_start"
            with pytest.raises(NotFound):
                await b.users.erase("t", "ada")
            assert await b.adapted() == 1
            await b.settled()
            asked = users_read_from_the_database(a)
            assert (await a.scored()).version == 1
            assert asked == []  # the next life passes the tombstone

    run(path)


def test_a_slow_reader_does_not_bring_back_whom_it_read_before_the_erase(
    redis_server: RedisServer, database: Database
) -> None:
    async def path() -> None:
        async with (
            Replica(database, redis_server) as a,
            Replica(database, redis_server) as slow,
            Replica(database, redis_server) as c,
        ):
            await a.adapted()
            await a.settled()
            redis_server.flush()
            has_read, may_go_on = threading.Event(), threading.Event()
            get = slow.repository.get

            def reads_slowly(tenant_id: str, user_id: str) -> StoredUser | None:
                user = get(tenant_id, user_id)
                has_read.set()
                assert may_go_on.wait(20)
                return user

            slow.repository.get = reads_slowly  # type: ignore[method-assign]
            reading = asyncio.create_task(slow.scored())
            await asyncio.to_thread(has_read.wait, 20)
            await a.users.erase("t", "ada")
            may_go_on.set()
            await reading  # its answer was begun before the erase
            await slow.settled()
            slow.repository.get = get  # type: ignore[method-assign]
            for replica in (slow, c, a):
                assert (await replica.scored()).standing == "cold_start"

    run(path)


def test_a_tombstone_takes_a_remembered_user_out_though_the_database_is_silent(
    redis_server: RedisServer, own_postgres: PostgresServer
) -> None:
    database = open_database(own_postgres.url(), pool_size=4, statement_timeout_s=1.0)

    async def path() -> None:
        async with Replica(database, redis_server) as a, Replica(database, redis_server) as b:
            await a.adapted()
            await a.settled()
            assert (await b.scored()).standing == "adapted"
            await a.users.erase("t", "ada")
            own_postgres.kill()
            with pytest.raises(Unavailable):
                await b.scored()

    run(path)
    database.close()


def test_replicas_of_different_checkpoints_share_no_states(redis_server: RedisServer, database: Database) -> None:
    async def path() -> None:
        async with Replica(database, redis_server) as old, Replica(database, redis_server, seed=1) as new:
            await old.adapted()
            await old.settled()
            seen = await new.scored()
            await new.settled()
            assert (seen.version, seen.standing) == (1, "adapted")
            assert seen.rewards != (await old.scored()).rewards
            asked = users_read_from_the_database(old)
            assert (await old.scored()).version == 1
            assert asked == []  # the newer checkpoint's solve did not take the row's place

    run(path)


@pytest.mark.parametrize("what", ["adapt", "erase"])
def test_what_is_committed_is_published_though_its_caller_leaves(
    redis_server: RedisServer, database: Database, what: str
) -> None:
    async def path() -> None:
        async with Replica(database, redis_server) as a, Replica(database, redis_server) as b:
            await a.adapted()
            await a.settled()
            assert (await b.scored()).version == 1
            begun, may_go_on = threading.Event(), threading.Event()
            method = "change" if what == "adapt" else what
            work = getattr(a.repository, method)

            def slowly(*arguments: object, **options: object) -> object:
                begun.set()
                assert may_go_on.wait(20)
                return work(*arguments, **options)

            setattr(a.repository, method, slowly)
            caller = asyncio.create_task(a.adapted(chosen="better") if what == "adapt" else a.users.erase("t", "ada"))
            await asyncio.to_thread(begun.wait, 20)
            caller.cancel()
            await asyncio.gather(caller, return_exceptions=True)
            may_go_on.set()
            expected = 2 if what == "adapt" else 0

            asked = users_read_from_the_database(b)
            for _ in range(1000):
                if (await b.scored()).version == expected:
                    break
                await asyncio.sleep(0.01)
            assert (await b.scored()).version == expected
            assert asked == [] or what == "erase"

    run(path)


def test_entries_of_another_format_or_of_no_sense_are_misses(redis_server: RedisServer, database: Database) -> None:
    async def path() -> None:
        async with Replica(database, redis_server) as a, Replica(database, redis_server) as b:
            await a.adapted()
            expected = await a.scored()
            await a.settled()
            for key in redis_server.execute("KEYS", "*"):
                redis_server.execute("SET", key, b"\xff" + redis_server.execute("GET", key)[1:], "KEEPTTL")
            asked = users_read_from_the_database(b)
            assert (await b.scored()).rewards == expected.rewards
            assert asked == ["ada"]
            assert len(b.engine.texts) == 1
            await b.settled()
            async with Replica(database, redis_server) as c:
                assert (await c.scored()).rewards == expected.rewards
                assert c.engine.texts == []  # what made no sense was replaced

    run(path)


def test_a_text_that_was_cut_stays_one(redis_server: RedisServer, database: Database) -> None:
    async def path() -> None:
        async with Replica(database, redis_server) as a, Replica(database, redis_server) as b:
            texts = [Text(user_says("q"), "long " * 20, "completions[0]")]
            await a.base_rewards.read("t", texts, truncate=True)
            await a.settled()
            cut = await b.base_rewards.read("t", texts, truncate=True)
            assert list(cut.truncated) == [0]
            assert b.engine.texts == []
            assert cut.rewards_BK.tolist() == [toy_base_rewards(a.engine.texts[0]).tolist()]
            with pytest.raises(InvalidInput):
                await b.base_rewards.read("t", texts, truncate=False)

    run(path)


def test_concurrent_questions_share_round_trips(redis_server: RedisServer, database: Database) -> None:
    async def path() -> None:
        async with Replica(database, redis_server) as a, Replica(database, redis_server) as b:
            for user in ("ada", "grace"):
                await a.adapted(user=user)
            await asyncio.gather(*(a.scored(text=f"text {i}") for i in range(100)))
            await a.settled()
            before = {operation: _calls(b, operation) for operation in ("users", "base_rewards")}
            await asyncio.gather(*(b.scored("grace", text=f"text {i}") for i in range(100)))
            assert b.engine.texts == []
            for operation, calls in before.items():
                assert 1 <= _calls(b, operation) - calls <= 10

    run(path)


def _calls(replica: Replica, operation: str) -> float:
    value = replica.metrics.registry.get_sample_value("metareward_redis_seconds_count", {"operation": operation})
    return value or 0.0
