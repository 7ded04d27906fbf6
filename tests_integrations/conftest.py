"""A server for all: the demo checkpoint on MiniLM over SQLite."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from deployment import Server


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Nobody kills or restarts this one."""
    # On a busy machine nothing is refused for being slow.
    with Server(tmp_path_factory.mktemp("server"), MAX_QUEUE_WAIT_S="300", REQUEST_TIMEOUT_S="300") as server:
        yield server
