"""What a server does while its database hangs, refuses, or comes back without tables."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from pathlib import Path

import pytest
from operating import Operations, ToyEngine, told, user_says
from servers import PostgresServer, free_port

from service.errors import ConfigurationError, Unavailable
from service.operations.authenticator import Authenticator
from service.operations.keys import Keys
from service.operations.lifecycle import Lifecycle
from service.operations.readiness import ReadinessCheck
from service.operations.said import PreferencePair
from service.operations.score import ScoreItem
from service.runtime.database import open_users_database
from service.settings import Settings
from service.store import Database, open_database
from service.store.keys import KeyRepository
from service.store.migrate import check

USERS = [f"user{i}" for i in range(50)]
PAIRS = [PreferencePair(user_says("p"), "good", "bad", 1.0, None)]


def score(operations: Operations, user_id: str):
    return operations.score("t", [ScoreItem(user_id, user_says("q"), ["x"])], truncate=False, return_base_rewards=False)


def test_a_hung_database_costs_known_users_one_failed_read(own_postgres: PostgresServer) -> None:
    database = open_database(own_postgres.url(), pool_size=4, statement_timeout_s=1.0)
    operations = Operations(database, revalidate_s=0.0)
    readiness = ReadinessCheck(engine=ToyEngine, database=database, lifecycle=Lifecycle(10, 10_000), timeout_s=0.5)

    async def path() -> None:
        for user in USERS:
            await operations.adapt("t", user, told(PAIRS), mode="append", truncate=False)
        assert (await readiness()).degraded == []
        own_postgres.pause()

        started = time.monotonic()
        asking = asyncio.create_task(readiness())
        answers = asyncio.gather(*(score(operations, user) for user in USERS))
        assert (await asking).degraded == ["database: no answer within 0.5 s"]
        assert time.monotonic() - started < 1.5
        assert {answer.results[0].standing for answer in await answers} == {"stale"}
        one_read = time.monotonic() - started
        # A statement of 1 s, 1 s of patience, and at most 2 s to connect anew; 50 users by 4 threads would be 13 times.
        assert one_read < 6.0

        started = time.monotonic()
        await asyncio.gather(*(score(operations, user) for user in USERS))
        with pytest.raises(Unavailable):
            await score(operations, "stranger")
        assert time.monotonic() - started < 0.5

        await asyncio.sleep(1.1)  # one tries again and hangs; the others do not wait for it
        trying = asyncio.create_task(score(operations, USERS[0]))
        await asyncio.sleep(0.05)
        started = time.monotonic()
        assert {(await score(operations, user)).results[0].standing for user in USERS} == {"stale"}
        assert time.monotonic() - started < 0.5
        assert (await trying).results[0].standing == "stale"

        own_postgres.resume()
        await asyncio.sleep(1.1)
        assert {(await score(operations, user)).results[0].standing for user in USERS} == {"adapted"}
        assert (await score(operations, "stranger")).results[0].standing == "cold_start"
        assert (await readiness()).degraded == []

    asyncio.run(path())
    readiness.close()
    operations.executor.shutdown()
    database.close()


def test_questions_that_hang_share_one_thread_and_end(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    database = open_database(sqlite_url)
    answer = threading.Event()
    pings = []

    def ping() -> None:
        pings.append(1)
        answer.wait(10)

    monkeypatch.setattr(database, "ping", ping)
    readiness = ReadinessCheck(engine=ToyEngine, database=database, lifecycle=Lifecycle(10, 10_000), timeout_s=0.1)

    async def path() -> None:
        started = time.monotonic()
        for found in await asyncio.gather(*(readiness() for _ in range(20))):
            assert found.ready
            assert found.degraded == ["database: no answer within 0.1 s"]
        assert (await readiness()).degraded
        assert time.monotonic() - started < 1.0
        assert len(pings) == 1
        answer.set()
        await asyncio.sleep(0.05)
        assert (await readiness()).degraded == []

    asyncio.run(path())
    readiness.close()
    database.close()


def settings(tmp_path: Path, url: str, **changes: object) -> Settings:
    return Settings(database_url=url, data_dir=tmp_path, database_timeout_s=2.0, **changes)  # type: ignore[arg-type]


def test_a_wrong_database_name_ends_the_start(postgres: PostgresServer, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r'DATABASE_URL: .*database "absent" does not exist'):
        open_users_database(settings(tmp_path, postgres.url("absent")))


def test_a_start_without_the_database_says_why(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    port = free_port()
    with caplog.at_level(logging.WARNING):
        open_users_database(settings(tmp_path, f"postgresql://someone:s3cret@127.0.0.1:{port}/x")).close()
    assert "starting without the database" in caplog.text
    assert f"port {port} failed" in caplog.text
    assert "s3cret" not in caplog.text


def test_requests_that_hold_their_connections_leave_some_for_keys_and_probes(postgres_url: str, tmp_path: Path) -> None:
    given = settings(tmp_path, postgres_url, database_pool_size=2)
    database = open_users_database(given)
    operations = Operations(database)
    keys = KeyRepository(database)
    key = Keys(keys).create("t", "score").secret
    authenticator = Authenticator(repository=keys, metrics=operations.metrics, trust_s=60.0, stale_s=60.0)
    readiness = ReadinessCheck(engine=ToyEngine, database=database, lifecycle=Lifecycle(10, 10_000))

    async def path() -> None:
        assert (await authenticator.verify(key)).tenant_id == "t"
        assert (await readiness()).degraded == []

    with contextlib.ExitStack() as held:
        for _ in range(given.database_pool_size):
            held.enter_context(database.reading())
        asyncio.run(path())
    authenticator.close()
    readiness.close()
    database.close()


@pytest.mark.parametrize("migrates", [True, False])
def test_a_database_that_comes_back_empty_is_migrated_where_told(
    postgres: PostgresServer, tmp_path: Path, migrates: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.runtime.database.MIGRATION_RETRY_S", 0.1)
    server = PostgresServer()
    database: Database | None = None
    try:
        database = open_users_database(settings(tmp_path, server.url(), auto_migrate=migrates))
        operations = Operations(database)
        server.start()
        give_up_at = time.monotonic() + (20.0 if migrates else 1.0)
        while check(database) and time.monotonic() < give_up_at:
            time.sleep(0.1)
        if migrates:
            assert asyncio.run(score(operations, "ada")).results[0].standing == "cold_start"
        else:
            with pytest.raises(Unavailable, match="metareward db upgrade"):
                asyncio.run(score(operations, "ada"))
    finally:
        if database is not None:
            database.close()
        server.close()
