"""Carrying users in bulk, over a real database: what the next request would have given, and nobody overwritten."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest
from operating import user_says
from switching import NEW, OLD, SAID, Switching, adapt, checkpoint, linked, score

from service.operations.said import PreferencePair
from service.store import Database, open_database


@pytest.fixture
def database(sqlite_url: str) -> Any:
    opened = open_database(sqlite_url, pool_size=8)
    yield opened
    opened.close()


@pytest.mark.parametrize("half_life", [None, 1e-6, "auto"])
def test_bulk_carrying_gives_what_the_next_request_would_have(database: Database, half_life: Any) -> None:
    server = Switching(database, OLD, NEW, half_life=half_life)

    async def path() -> None:
        for i in range(7):
            await adapt(server, f"user {i}", SAID[i:])
        await server.checkpoints.activate(NEW.checkpoint_id)
        lazily = [await score(server, f"user {i}") for i in range(7)]
        first = server.readapt(NEW, batch=2)
        pages = []

        def stop(count: int) -> None:
            pages.append(count)
            if len(pages) == 2:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            first(stop)
        assert server.carry_over.count(NEW.checkpoint_id) == 3
        done = server.readapt(NEW)()
        assert (done.seen, done.solved, done.left, done.changed) == (3, 3, 0, 0)
        assert server.carry_over.count(NEW.checkpoint_id) == 0
        for i, (_, scored) in enumerate(lazily):
            row = server.repository.get("t", f"user {i}")
            assert row is not None
            assert (row.checkpoint_id, row.heads_id, row.version, row.carried) == (
                NEW.checkpoint_id,
                NEW.heads_id,
                1,
                "linear",
            )
            np.testing.assert_allclose(scored.base_rewards @ row.weights_K, scored.rewards, atol=1e-7)
        # Back again, from the rows that were measured with the old heads.
        assert server.readapt(OLD)().solved == 7
        row = server.repository.get("t", "user 0")
        assert row is not None
        assert (row.checkpoint_id, row.carried) == (OLD.checkpoint_id, "exact")

    asyncio.run(path())


def test_bulk_carrying_counts_what_the_new_checkpoint_sees(database: Database) -> None:
    unlinked = checkpoint(2, 4, name="unlinked")
    server = Switching(database, OLD, unlinked)

    async def path() -> None:
        await adapt(server, said=SAID)
        await server.checkpoints.activate(unlinked.checkpoint_id)
        await adapt(server, said=[PreferencePair(user_says("p"), "more", "less", None, "more")])
        row = server.repository.get("t", "ada")
        assert row is not None
        assert row.pairs == 1
        assert server.readapt(OLD)().solved == 1
        row = server.repository.get("t", "ada")
        assert row is not None
        assert row.pairs == len(SAID)

    asyncio.run(path())


def test_bulk_carrying_overwrites_nobody_who_says_something_meanwhile(database: Database) -> None:
    server = Switching(database, OLD, NEW)

    async def prepare() -> None:
        for i in range(4):
            await adapt(server, f"user {i}")

    asyncio.run(prepare())
    work = server.readapt(NEW)
    written = work._carry_over.write

    def write(*arguments: Any) -> int:
        # The page is read and solved; now somebody in it speaks.
        if work.done.changed == 0 and server.repository.get("t", "user 2").version == 1:
            more = [PreferencePair(user_says("p"), "more", "less", None, "6")]
            asyncio.run(adapt(server, "user 2", more))
        return written(*arguments)

    server.carry_over.write = write  # type: ignore[method-assign]
    done = work()
    assert (done.seen, done.changed) == (4, 1)
    rows = [server.repository.get("t", f"user {i}") for i in range(4)]
    assert [row.version for row in rows] == [1, 1, 2, 1]
    assert [row.checkpoint_id == NEW.checkpoint_id for row in rows] == [True, True, False, True]


@pytest.mark.parametrize("method", ["linear", "auto"])
def test_weights_are_carried_where_what_was_said_is_out_of_reach(database: Database, method: str) -> None:
    """Measured with the first heads, carried to the second as a state; the third is linked to the second only."""
    last = linked(checkpoint(4, 3, name="last"), NEW)
    server = Switching(database, OLD, NEW, last)

    async def path() -> None:
        await adapt(server)
        server.readapt(NEW, method="linear")()
        row = server.repository.get("t", "ada")
        assert row is not None
        assert (row.checkpoint_id, row.carried) == (NEW.checkpoint_id, "linear")
        await server.checkpoints.activate(last.checkpoint_id)
        _, lazily = await score(server)
        assert lazily.carried == "linear"
        done = server.readapt(last, method=method)()
        assert (done.mapped, done.left) == (1, 0)
        row = server.repository.get("t", "ada")
        assert row is not None
        np.testing.assert_allclose(lazily.base_rewards @ row.weights_K, lazily.rewards, atol=1e-9)

    asyncio.run(path())
