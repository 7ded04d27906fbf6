"""Housekeeping goes on whatever the database says."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import cast

import pytest

from service import runtime
from service.errors import ConfigurationError, Unavailable


def test_housekeeping_outlives_a_database_that_is_away_or_lacks_its_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "HOUSEKEEPING_INTERVAL_S", 0.001)
    failures: list[Exception] = [Unavailable("away"), ConfigurationError("no tables")]
    purged = asyncio.Event()

    async def path() -> None:
        loop = asyncio.get_running_loop()

        def purge_expired() -> int:
            if failures:
                raise failures.pop(0)
            loop.call_soon_threadsafe(purged.set)
            return 0

        with ThreadPoolExecutor(1) as executor:
            parts = SimpleNamespace(executor=executor, repository=SimpleNamespace(purge_expired=purge_expired))
            keeping = asyncio.create_task(runtime.Runtime.keep_house(cast(runtime.Runtime, parts)))
            await asyncio.wait_for(purged.wait(), 10)
            keeping.cancel()

    asyncio.run(path())
    assert failures == []
