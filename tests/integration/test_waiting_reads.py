"""What reads of the database may wait in the queue, and for whom."""

from __future__ import annotations

import asyncio
import threading

import pytest
from operating import Operations, user_says

from service.operations.score import ScoreItem
from service.store import Database


def test_reads_that_nobody_waits_for_leave_the_queue(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    operations = Operations(database)
    read = operations.repository.get
    asked: list[str] = []

    def noting(tenant_id: str, user_id: str):
        asked.append(user_id)
        return read(tenant_id, user_id)

    monkeypatch.setattr(operations.repository, "get", noting)

    async def path() -> None:
        go_on = threading.Event()
        busy = [operations.executor.submit(go_on.wait, 30.0) for _ in range(4)]  # every thread
        leaving = [asyncio.create_task(operations.states.resolve("t", f"user{i % 50}")) for i in range(100)]
        staying = asyncio.create_task(operations.states.resolve("t", "user7"))
        await asyncio.sleep(0.05)
        for task in leaving:
            task.cancel()
        await asyncio.wait(leaving)
        again = asyncio.create_task(operations.states.resolve("t", "user8"))
        await asyncio.sleep(0.05)
        go_on.set()
        assert all(thread.result() for thread in busy)
        assert (await staying).standing == (await again).standing == "cold_start"

    asyncio.run(path())
    operations.executor.shutdown()
    assert sorted(asked) == ["user7", "user8"]


def test_a_request_for_many_users_leaves_room_for_others(database: Database) -> None:
    operations = Operations(database)
    items = [ScoreItem(f"user{i}", user_says("q"), ["x"]) for i in range(500)]

    async def path() -> None:
        go_on = threading.Event()
        busy = [operations.executor.submit(go_on.wait, 30.0) for _ in range(4)]  # every thread
        many = asyncio.create_task(operations.score("t", items, truncate=False, return_base_rewards=False))
        await asyncio.sleep(0.05)
        waiting = operations.executor._work_queue.qsize()
        go_on.set()
        assert all(thread.result() for thread in busy)
        assert 1 < waiting <= 100
        assert [scored.user_id for scored in (await many).results] == [item.user_id for item in items]

    asyncio.run(path())
    operations.executor.shutdown()
