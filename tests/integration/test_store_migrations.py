"""The schema: up, down, up again, and by several processes at once."""

from __future__ import annotations

import logging
import tomllib
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import orjson
import pytest
from servers import PostgresServer
from sqlalchemy import inspect, text
from storing import adapt, new_pair, repository, seen_from, sum_of_differences

from service.errors import ConfigurationError, Unavailable
from service.store import Database, Idempotency, NewEvidence, Rollback, open_database
from service.store.migrate import check, downgrade, require_current, upgrade
from service.store.tables import Base

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A database without tables."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/empty.db"
        return
    postgres: PostgresServer = request.getfixturevalue("postgres")
    name = f"empty_{uuid.uuid4().hex}"
    postgres.execute(f"CREATE DATABASE {name}")
    yield postgres.url(name)
    postgres.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def empty(empty_url: str) -> Iterator[Database]:
    database = open_database(empty_url)
    yield database
    database.close()


def tables(database: Database) -> set[str]:
    return set(inspect(database.engine).get_table_names()) - {"alembic_version"}


def test_up_down_and_up_again_agree_with_the_models(empty: Database) -> None:
    expected = {table.name for table in Base.metadata.sorted_tables}
    upgrade(empty)
    assert tables(empty) == expected
    assert check(empty) == []
    downgrade(empty, "base")
    assert tables(empty) == set()
    upgrade(empty)
    assert tables(empty) == expected
    assert check(empty) == []
    require_current(empty)


def test_upgrading_again_keeps_the_data(database: Database) -> None:
    adapt(repository(database), [new_pair("a")])
    upgrade(database)
    assert [user.user_id for user in repository(database).list("tenant", None, 10)] == ["ada"]


def strengths_and_grades(database: Database) -> list[tuple[float, float | None]]:
    with database.engine.connect() as connection:
        return [tuple(row) for row in connection.execute(text("SELECT strength, grade FROM pairs ORDER BY pair_id"))]


def test_strengths_become_grades_and_plain_choices_stay_plain(empty: Database) -> None:
    upgrade(empty)
    adapt(repository(empty), [new_pair("a"), new_pair("b"), new_pair("c")])
    adapt(repository(empty), [new_pair("d")], user="bob")
    downgrade(empty, "0002")
    with empty.engine.begin() as connection:
        connection.execute(text("UPDATE pairs SET strength = 2.5 WHERE pair_id IN ('b', 'd')"))
    upgrade(empty)
    assert check(empty) == []
    assert [grade for _, grade in strengths_and_grades(empty)] == [None, 2.5, None, 2.5]
    seen: list[float | None] = []
    adapt(
        repository(empty),
        [new_pair("e", strength=1e300)],
        solve=lambda support: seen.extend(pair.grade for pair in support) or sum_of_differences(support),
    )
    assert sorted(seen, key=str) == sorted([1e300, 2.5, None, None], key=str)


def test_the_version_before_reads_new_pairs_as_plain_ones_and_its_own_are_read(empty: Database) -> None:
    upgrade(empty)
    adapt(repository(empty), [new_pair("a", strength=7.0), new_pair("b")])
    assert strengths_and_grades(empty) == [(1.0, 7.0), (1.0, None)]
    with empty.engine.begin() as connection:
        # as that version writes: it knows no grade
        connection.execute(
            text(
                "INSERT INTO pairs (incarnation, pair_id, heads_id, tenant_id, content_key, diff, strength, event_time)"
                " SELECT incarnation, 'c', heads_id, tenant_id, content_key, diff, 1.0, event_time FROM pairs"
                " WHERE pair_id = 'b'"
            )
        )
    _, user = adapt(repository(empty), [new_pair("d")])
    assert user.pairs == 4
    downgrade(empty, "0002")
    with empty.engine.connect() as connection:
        assert connection.execute(text("SELECT strength FROM pairs")).scalars().all() == [1.0] * 4


def test_going_down_keeps_what_the_version_before_reads_rightly_and_nothing_else(empty: Database) -> None:
    upgrade(empty)
    users = repository(empty)
    adapt(users, [new_pair("replaced", retained=b"text"), new_pair("plain"), new_pair("strong", strength=2.0)])
    tie, implied = new_pair("tie", tilt=-0.5), new_pair("implied", weight=0.25, source="regenerated")
    rating = NewEvidence("rating", b"r", "rating", np.ones(3), grade=4.0)
    adapt(users, [new_pair("plain"), new_pair("strong", strength=2.0), tie, implied, rating], mode="replace")
    downgrade(empty, "0003")
    with empty.engine.connect() as connection:
        left = connection.execute(text("SELECT pair_id FROM pairs ORDER BY pair_id")).scalars().all()
    assert left == ["plain", "strong"]
    upgrade(empty)
    assert check(empty) == []
    outcome, _ = adapt(users, [new_pair("later")])
    assert (outcome.version, outcome.pairs_total) == (3, 3)
    outcome, _ = adapt(users, [new_pair("plain")], mode="replace")
    assert (outcome.pairs_deleted, outcome.pairs_total) == (2, 1)
    outcome, _ = users.change("tenant", "ada", Rollback(3), seen_from(), None, sum_of_differences)
    assert (outcome.exact, outcome.pairs_total) == (True, 3)


def test_going_down_leaves_answers_that_the_version_before_reads(empty: Database) -> None:
    upgrade(empty)
    users = repository(empty)
    key = Idempotency("plain", b"p" * 32)
    plain, _ = adapt(users, [new_pair("a")], key=key)
    replaced, _ = adapt(users, [new_pair("b")], mode="replace", key=Idempotency("replaced", b"r" * 32))
    downgrade(empty, "0003")
    with empty.engine.connect() as connection:
        rows = connection.execute(text("SELECT key, answer FROM idempotency"))
        kept = {row.key: orjson.loads(row.answer) for row in rows}
    first = orjson.loads(plain.to_json())
    assert kept["plain"] == first
    assert kept["replaced"] == {name: getattr(replaced, name) for name in first}
    upgrade(empty)
    again, _ = adapt(users, [new_pair("a")], key=key)
    assert (again.replayed, again.weights) == (True, plain.weights)


def test_a_table_that_is_in_use_for_long_is_not_waited_for(postgres: PostgresServer) -> None:
    name = f"busy_{uuid.uuid4().hex}"
    postgres.execute(f"CREATE DATABASE {name}")
    database = open_database(postgres.url(name))
    try:
        upgrade(database, "0002")
        engine = database.maintenance_engine()  # may idle in a transaction, as a backup does
        with engine.connect() as backup, backup.begin():
            backup.execute(text("SELECT count(*) FROM pairs"))
            with pytest.raises(Unavailable, match="time limit"):
                upgrade(database)
        engine.dispose()
        upgrade(database)
        assert check(database) == []
    finally:
        database.close()
        postgres.execute(f"DROP DATABASE {name} WITH (FORCE)")


def test_every_table_carries_the_tenant_and_what_is_of_a_user_the_incarnation() -> None:
    for table in Base.metadata.sorted_tables:
        if table.name == "serving":  # of the deployment
            continue
        assert "tenant_id" in table.columns, table.name
        assert "incarnation" in table.columns or table.name in {"tenants", "api_keys"}, table.name


def test_an_empty_database_is_refused_with_the_command_that_mends_it(empty: Database) -> None:
    with pytest.raises(ConfigurationError, match="metareward db upgrade"):
        require_current(empty)
    assert len(check(empty)) == 1


def test_a_database_of_a_newer_version_is_refused(database: Database) -> None:
    with database.engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(ConfigurationError, match="newer version"):
        require_current(database)
    with pytest.raises(ConfigurationError):
        upgrade(database)


def test_a_column_that_the_models_lack_is_found(database: Database) -> None:
    with database.engine.begin() as connection:
        connection.execute(text("ALTER TABLE pairs ADD COLUMN extra INTEGER"))
        connection.execute(text("DROP INDEX ix_idempotency_expires_at"))
    problems = check(database)
    assert len(problems) == 2
    assert any("extra" in problem for problem in problems)
    assert any("ix_idempotency_expires_at" in problem for problem in problems)


def test_replicas_that_upgrade_at_once_do_it_once(empty_url: str) -> None:
    databases = [open_database(empty_url) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(upgrade, databases))
    assert check(databases[0]) == []
    for database in databases:
        database.close()


def test_migrating_leaves_logging_alone(empty: Database) -> None:
    root = logging.getLogger()
    before = (root.level, list(root.handlers), logging.getLogger("uvicorn").disabled)
    upgrade(empty)
    assert (root.level, list(root.handlers), logging.getLogger("uvicorn").disabled) == before


def test_the_wheel_lists_every_package() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {path.parent.relative_to(ROOT) for path in (ROOT / "service").rglob("*.py")}
    expected = {".".join(folder.parts) for folder in folders}
    assert {name for name in settings["packages"] if name.startswith("service")} == expected
    for name in ("metareward_migrations", "metareward_migrations.versions"):
        assert name in settings["packages"]
        folder = ROOT / name.replace("metareward_migrations", "migrations").replace(".", "/")
        assert (folder / "__init__.py").is_file()
