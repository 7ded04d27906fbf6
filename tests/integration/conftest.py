"""What several integration tests start."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from servers import PostgresServer
from storing import empty
from workers import remote_engine

from service.worker.remote import RemoteEngine


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def lasting_url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A migrated database of a module's own, once for each kind; making one for each test takes longer than most."""
    if request.param == "sqlite":
        migrated: Path = request.getfixturevalue("migrated_sqlite_file")
        yield f"sqlite:///{shutil.copy(migrated, tmp_path_factory.mktemp('lasting') / 'metareward.db')}"
        return
    postgres: PostgresServer = request.getfixturevalue("postgres")
    name = f"lasting_{uuid.uuid4().hex}"
    postgres.execute(f"CREATE DATABASE {name} TEMPLATE template_migrated")
    yield postgres.url(name)
    postgres.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def emptied_url(lasting_url: str) -> Iterator[str]:
    """`lasting_url` without users, whose next user has an incarnation that no earlier one had."""
    yield lasting_url
    empty(lasting_url)


@pytest.fixture
def connect() -> Iterator[Callable[..., RemoteEngine]]:
    """Makes remote engines over workers, and closes them."""
    engines: list[RemoteEngine] = []

    def connect(*urls: str, **options: Any) -> RemoteEngine:
        engines.append(remote_engine(*urls, **options))
        return engines[-1]

    yield connect
    for engine in engines:
        engine.close(0.5)
