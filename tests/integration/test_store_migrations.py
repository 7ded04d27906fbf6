"""The schema: up, down, up again, and by several processes at once."""

from __future__ import annotations

import logging
import tomllib
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from servers import PostgresServer
from sqlalchemy import inspect, text
from storing import adapt, new_pair, repository

from service.errors import ConfigurationError
from service.store import Database, open_database
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


def test_every_table_carries_the_tenant_and_what_is_of_a_user_the_incarnation() -> None:
    for table in Base.metadata.sorted_tables:
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
