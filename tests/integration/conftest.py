"""What several integration tests start."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from workers import remote_engine

from service.worker.remote import RemoteEngine


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
