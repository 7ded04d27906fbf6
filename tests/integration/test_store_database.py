"""Opening, losing and finding a database again."""

from __future__ import annotations

import sqlite3
import threading
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from servers import PostgresServer, free_port
from sqlalchemy import Connection, text
from storing import adapt, new_pair, repository, seen_from

from service.errors import ConfigurationError, MetarewardError, Unavailable
from service.store import Database, open_database
from service.store.migrate import upgrade


@pytest.fixture(scope="module")
def mortal_server(postgres: PostgresServer) -> Iterator[PostgresServer]:
    """A second server beside the one that other tests rely on, which has settled whether there can be one."""
    server = PostgresServer()
    server.start()
    yield server
    server.close()


@pytest.fixture
def mortal_postgres(mortal_server: PostgresServer) -> PostgresServer:
    """A PostgreSQL that may be killed, with an empty database called `mortal`."""
    mortal_server.execute("DROP DATABASE IF EXISTS mortal WITH (FORCE)")
    mortal_server.execute("CREATE DATABASE mortal")
    database = open_database(mortal_server.url("mortal"))
    upgrade(database)
    database.close()
    return mortal_server


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database without tables."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/empty.db"
    server: PostgresServer = request.getfixturevalue("mortal_server")
    server.execute("DROP DATABASE IF EXISTS mortal WITH (FORCE)")
    server.execute("CREATE DATABASE mortal")
    return server.url("mortal")


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg"])
def test_every_usual_way_to_write_a_postgresql_url_works(postgres_url: str, scheme: str) -> None:
    database = open_database(postgres_url.replace("postgresql", scheme, 1))
    database.ping()
    database.close()


def test_options_in_the_url_are_kept_beside_ours(postgres_url: str) -> None:
    url = postgres_url + "?options=-c%20work_mem%3D5MB&application_name=mine"
    database = open_database(url, statement_timeout_s=3.0)
    with database.reading() as connection:
        shown = [
            connection.execute(text(f"SHOW {name}")).scalar_one()
            for name in ("work_mem", "application_name", "statement_timeout", "TimeZone")
        ]
    assert shown == ["5MB", "mine", "3s", "UTC"]
    database.close()


@pytest.mark.parametrize(
    "url",
    ["mysql://root:s3cret@host/x", "sqlite://", "sqlite:///:memory:", "sqlite:///file:x?uri=true", "s3cret", ""],
)
def test_other_urls_are_refused_with_the_fix_and_without_the_password(url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"sqlite:///path/to/file\.db") as refused:
        open_database(url)
    assert "s3cret" not in "".join(traceback.format_exception(refused.value))


def test_the_folder_of_a_sqlite_file_is_made(tmp_path: Path) -> None:
    database = open_database(f"sqlite:///{tmp_path}/new/folder/x.db")
    database.ping()
    assert (tmp_path / "new/folder/x.db").is_file()
    database.close()


def test_a_folder_that_cannot_be_made_is_a_matter_of_configuration(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="may write"):
        open_database(f"sqlite:///{tmp_path}/file/x.db")


def test_sqlite_is_durable_and_keeps_foreign_keys(sqlite_url: str) -> None:
    database = open_database(sqlite_url)
    with database.reading() as connection:
        pragmas = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout", "secure_delete")
        }
    assert pragmas == {
        "journal_mode": "wal",
        "synchronous": 2,
        "foreign_keys": 1,
        "busy_timeout": 5000,
        "secure_delete": 1,
    }
    database.close()


def test_nobody_listening_is_unavailable_at_once_and_tells_no_password() -> None:
    database = open_database(f"postgresql://someone:s3cret@127.0.0.1:{free_port()}/x")
    started = time.monotonic()
    with pytest.raises(Unavailable, match=r"^database") as lost:
        repository(database).get("tenant", "ada")
    assert time.monotonic() - started < 1.0
    assert lost.value.retry_after_s > 0
    assert "s3cret" not in "".join(traceback.format_exception(lost.value)) + repr(database)


def test_without_tables_requests_wait_for_the_command_that_makes_them(empty_url: str) -> None:
    database = open_database(empty_url)
    with pytest.raises(Unavailable, match="metareward db upgrade") as lost:
        repository(database).get("tenant", "ada")
    assert lost.value.retry_after_s > 0
    upgrade(database)
    assert repository(database).get("tenant", "ada") is None
    database.close()


@pytest.fixture(scope="module")
def guarded_server(mortal_server: PostgresServer) -> PostgresServer:
    """A server with roles whose password it asks for, or that it does not let in."""
    mortal_server.execute("CREATE ROLE careful LOGIN PASSWORD 'right'")
    mortal_server.execute("CREATE ROLE nowhere NOLOGIN")
    mortal_server.execute("CREATE ROLE banned LOGIN")
    rules = Path(mortal_server.execute("SHOW hba_file")[0][0])
    first = "host all careful 127.0.0.1/32 scram-sha-256\nhost all banned 127.0.0.1/32 reject\n"
    rules.write_text(first + rules.read_text())
    mortal_server.execute("SELECT pg_reload_conf()")
    return mortal_server


@pytest.mark.parametrize(
    ("user", "name", "cause"),
    [
        ("postgres:s3cret", "absent", 'database "absent" does not exist'),
        ("stranger:s3cret", "postgres", 'role "stranger" does not exist'),
        ("careful:s3cret", "postgres", 'password authentication failed for user "careful"'),
        ("careful", "postgres", "no password supplied"),
        ("nowhere:s3cret", "postgres", "is not permitted to log in"),
        ("banned:s3cret", "postgres", "pg_hba.conf rejects connection"),
    ],
)
def test_a_server_that_refuses_us_is_a_matter_of_configuration(
    guarded_server: PostgresServer, user: str, name: str, cause: str
) -> None:
    database = open_database(guarded_server.url(name).replace("postgres@", f"{user}@"))
    with pytest.raises(ConfigurationError, match="DATABASE_URL") as refused:
        database.probe()
    assert cause in str(refused.value)
    assert "\n" not in str(refused.value)
    assert "s3cret" not in "".join(traceback.format_exception(refused.value, chain=False))
    with pytest.raises(Unavailable):  # a request says no more than that there is no database now
        database.ping()
    database.close()


def test_probing_where_nobody_listens_is_an_outage_with_its_cause() -> None:
    port = free_port()
    # A password that the driver's own words hold.
    database = open_database(f"postgresql://someone:refused@127.0.0.1:{port}/x")
    with pytest.raises(Unavailable, match=f"not reachable: .*{port}") as lost:
        database.probe()
    assert "\n" not in str(lost.value)
    assert "refused" not in str(lost.value)
    assert "***" in str(lost.value)
    database.close()


def test_too_many_clients_are_an_outage(mortal_postgres: PostgresServer) -> None:
    mortal_postgres.execute("ALTER DATABASE mortal CONNECTION LIMIT 0")
    mortal_postgres.execute("CREATE ROLE plain LOGIN")
    database = open_database(mortal_postgres.url("mortal").replace("postgres@", "plain@"))
    try:
        with pytest.raises(Unavailable, match="too many connections"):
            database.probe()
    finally:
        database.close()
        mortal_postgres.execute("DROP ROLE plain")


def test_an_unusable_value_is_neither_an_outage_nor_a_sqlalchemy_error(postgres_url: str) -> None:
    database = open_database(postgres_url)
    with pytest.raises(MetarewardError) as refused:
        repository(database).get("tenant", "nul\x00")
    assert not isinstance(refused.value, Unavailable)
    database.close()


def test_a_killed_postgresql_is_unavailable_quickly_and_found_again(mortal_postgres: PostgresServer) -> None:
    database = open_database(mortal_postgres.url("mortal"), pool_size=4)
    users = repository(database)
    with ThreadPoolExecutor(4) as pool:  # fill the pool with connections that will be dead
        list(pool.map(lambda i: adapt(users, [new_pair(f"{i}")]), range(4)))

    mortal_postgres.kill()
    for _ in range(6):
        started = time.monotonic()
        with pytest.raises(Unavailable):
            adapt(users, [new_pair("lost")])
        with pytest.raises(Unavailable):
            users.get("tenant", "ada")
        assert time.monotonic() - started < 1.0

    mortal_postgres.start()
    outcome, _ = adapt(users, [new_pair("after")])
    assert (outcome.version, outcome.pairs_total) == (5, 5)
    database.close()


def test_an_answered_adapt_survives_the_kill_that_follows_it(mortal_postgres: PostgresServer) -> None:
    database = open_database(mortal_postgres.url("mortal"))
    users = repository(database)
    for i in range(3):
        answered, _ = adapt(users, [new_pair(f"{i}")])
        mortal_postgres.kill()
        mortal_postgres.start()
        user = users.get("tenant", "ada")
        assert user is not None
        assert user.version == answered.version == i + 1
        assert len(users.support("tenant", "ada", seen_from())) == i + 1
    database.close()


def test_a_postgresql_that_stopped_talking_is_given_up(mortal_postgres: PostgresServer) -> None:
    database = open_database(mortal_postgres.url("mortal"), connect_timeout_s=2.0, statement_timeout_s=0.5)
    users = repository(database)
    adapt(users, [new_pair("a")])
    mortal_postgres.pause()
    try:
        started = time.monotonic()
        with pytest.raises(Unavailable):
            users.get("tenant", "ada")
        assert time.monotonic() - started < 8.0
    finally:
        mortal_postgres.resume()
    assert users.get("tenant", "ada") is not None
    database.close()


def test_a_lock_held_too_long_is_unavailable(postgres_url: str) -> None:
    database = open_database(postgres_url, statement_timeout_s=0.3)
    users = repository(database)
    adapt(users, [new_pair("a")])
    holder = open_database(postgres_url)
    with holder.engine.begin() as connection:
        connection.execute(text("SELECT * FROM users FOR UPDATE"))
        started = time.monotonic()
        with pytest.raises(Unavailable, match="time limit"):
            adapt(users, [new_pair("b")])
        assert time.monotonic() - started < 2.0
        assert users.get("tenant", "ada") is not None  # readers wait for nobody
    assert adapt(users, [new_pair("b")])[0].version == 2
    database.close()
    holder.close()


def test_a_sqlite_file_locked_too_long_is_unavailable(sqlite_url: str) -> None:
    database = open_database(sqlite_url, statement_timeout_s=0.2)
    users = repository(database)
    adapt(users, [new_pair("a")])
    holder = sqlite3.connect(sqlite_url.removeprefix("sqlite:///"), isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    with pytest.raises(Unavailable, match="writers"):
        adapt(users, [new_pair("b")])
    assert users.get("tenant", "ada") is not None
    holder.execute("ROLLBACK")
    holder.close()
    assert adapt(users, [new_pair("b")])[0].version == 2
    database.close()


def test_every_connection_in_use_is_unavailable(postgres_url: str) -> None:
    database = open_database(postgres_url, pool_size=1, statement_timeout_s=0.2)
    with database.reading(), pytest.raises(Unavailable, match="in use"):
        database.ping()
    database.ping()
    database.close()


def test_a_transaction_that_lost_a_deadlock_is_run_again(postgres_url: str) -> None:
    database = open_database(postgres_url)
    users = repository(database)
    for name in ("ada", "grace"):
        adapt(users, [], user=name)
    both_hold_one = threading.Barrier(2)
    runs = {"ada": 0, "grace": 0}

    def take(first: str, second: str) -> None:
        def work(connection: Connection) -> None:
            runs[first] += 1
            touch = text("UPDATE users SET pairs = pairs + 1 WHERE user_id = :name")
            connection.execute(touch, {"name": first})
            if runs[first] == 1:
                both_hold_one.wait(10)
            connection.execute(touch, {"name": second})

        database.transaction(work)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(take, ("ada", "grace"), ("grace", "ada")))
    assert sorted(runs.values()) == [1, 2]
    assert [user.pairs for user in users.list("tenant", None, 10)] == [2, 2]
    database.close()


def test_a_transaction_that_keeps_losing_is_unavailable(postgres_url: str) -> None:
    database = open_database(postgres_url)
    runs: list[int] = []

    def work(connection: Connection) -> None:
        runs.append(1)
        connection.execute(text("DO $$ BEGIN RAISE EXCEPTION 'lost' USING ERRCODE = '40001'; END $$"))

    with pytest.raises(Unavailable, match="writers"):
        database.transaction(work)
    assert len(runs) == 5
    database.close()


def test_an_open_database_serves_many_threads(database: Database) -> None:
    users = repository(database)
    adapt(users, [new_pair("a")])
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda _: users.get("tenant", "ada"), range(64)))
    assert {user.version for user in found if user is not None} == {1}
    assert None not in found
