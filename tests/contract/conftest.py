"""One server for all contract tests: the demo checkpoint on MiniLM over SQLite, asked through a real socket."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import httpx
import pytest

from benchmarks.server import ServerProcess


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
