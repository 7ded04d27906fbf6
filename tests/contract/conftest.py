"""For all contract tests: a server without keys, one with, and a worker: the demo checkpoint on MiniLM over SQLite."""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Iterator
from datetime import timedelta

import httpx
import pytest
from guarded import AUTH_CACHE_S, WORKER_KEY, Guarded

from benchmarks.server import ServerProcess
from benchmarks.worker import WorkerProcess
from service.checkpoints import load_checkpoint
from service.mrm import GaussianStart
from service.operations.keys import Keys
from service.settings import DEMO_CHECKPOINT
from service.store import open_database
from service.store.keys import KeyRepository
from service.store.migrate import upgrade
from service.store.tenants import TenantRepository


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with ServerProcess(tmp_path_factory.mktemp("contract")) as server:
        yield server


@pytest.fixture
def api(server: ServerProcess) -> Iterator[httpx.Client]:
    with server.client() as client:
        yield client


@pytest.fixture
def fresh_user() -> str:
    """An id that nobody has adapted under."""
    return f"user-{uuid.uuid4().hex[:12]}"


@pytest.fixture(scope="session")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    folder = tmp_path_factory.mktemp("guarded")
    database = open_database(f"sqlite:///{folder / 'metareward.db'}")
    upgrade(database)
    keys = Keys(KeyRepository(database))
    keys.create("acme", "score")  # one, or the server does not start
    settings = {"AUTH": "required", "AUTH_CACHE_S": str(AUTH_CACHE_S), "ACCESS_LOG": "all"}
    # On a busy machine nothing is refused for being slow.
    settings |= {"MAX_QUEUE_WAIT_S": "300", "REQUEST_TIMEOUT_S": "300"}
    demo = load_checkpoint(DEMO_CHECKPOINT)
    assert isinstance(demo.start, GaussianStart)
    # The same heads, hence the same rewards of texts, under another id.
    other = dataclasses.replace(demo, start=dataclasses.replace(demo.start, temperature=2 * demo.start.temperature))
    other.save(folder / "other")
    settings |= {"CHECKPOINTS": str(folder / "other")}
    with ServerProcess(folder, **settings) as server:
        yield Guarded(server, keys, TenantRepository(database), (demo.checkpoint_id, other.checkpoint_id))
    database.close()


@pytest.fixture(scope="session")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerProcess]:
    settings = {"ENGINE_API_KEY": WORKER_KEY, "MAX_QUEUE_WAIT_S": "300", "ENGINE_TIMEOUT_S": "300"}
    with WorkerProcess(tmp_path_factory.mktemp("worker"), **settings) as worker:
        yield worker


@pytest.fixture(scope="session")
def expired_key(guarded: Guarded) -> str:
    """Good for a moment, and that has passed."""
    return guarded.key(lasts=timedelta(microseconds=1))
