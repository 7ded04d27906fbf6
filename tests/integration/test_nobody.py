"""Texts scored for nobody in particular: the population's reward, without a look at any store of users."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from operating import Operations, told, toy_base_rewards, user_says
from switching import NEW, OLD, Switching
from switching import score as score_by

from service.errors import InvalidInput
from service.mrm.combine import rewards
from service.operations.said import PreferencePair
from service.operations.score import ScoreItem
from service.store import Database, open_database

PAIRS = [PreferencePair(user_says("p"), "good", "bad", 1.0, None)]


@pytest.fixture
def database(sqlite_url: str) -> Iterator[Database]:
    opened = open_database(sqlite_url, pool_size=4)
    yield opened
    opened.close()


class Untouchable:
    """Replicas' shared users that must not be asked."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"asked for {name}")


def test_nobody_is_scored_from_the_start_without_any_store(database: Database) -> None:
    operations = Operations(database, shared_users=Untouchable())  # type: ignore[arg-type]
    operations.executor.shutdown()  # a read of the database would need a thread
    item = ScoreItem(None, user_says("q"), ["x", "y"])
    answer = asyncio.run(operations.score("t", [item], truncate=False, return_base_rewards=False))
    scored = answer.results[0]
    assert (scored.user_id, scored.standing, scored.version, scored.carried) == (None, "population", 0, None)
    base_BK = np.array([toy_base_rewards(f"q|{completion}".encode()) for completion in "xy"])
    np.testing.assert_allclose(scored.rewards, rewards(base_BK, operations.states.start))
    assert scored.reward_std is not None
    counted = operations.metrics.users_scored.labels("population")._value.get()
    assert counted == 1


def test_nobody_stands_beside_users_and_stays_as_they_adapt(database: Database) -> None:
    operations = Operations(database)
    items = [ScoreItem(user, user_says("q"), ["x", "y"]) for user in (None, "ada", None, "stranger")]

    async def path() -> None:
        await operations.adapt("t", "ada", told(PAIRS), mode="append", truncate=False)
        results = (await operations.score("t", items, truncate=False, return_base_rewards=False)).results
        assert [each.standing for each in results] == ["population", "adapted", "population", "cold_start"]
        assert results[0].rewards == results[2].rewards == results[3].rewards != results[1].rewards

    asyncio.run(path())
    operations.executor.shutdown()


def test_nobody_has_no_versions(database: Database) -> None:
    operations = Operations(database)
    with pytest.raises(InvalidInput) as refused:
        asyncio.run(operations.states.resolve("t", None, 1))
    assert [issue.field for issue in refused.value.issues] == ["min_version"]


def test_a_shadow_compares_what_nobody_was_answered(database: Database) -> None:
    server = Switching(database, OLD, NEW)

    async def path() -> None:
        await server.checkpoints.shadow(NEW.checkpoint_id)
        await score_by(server, None)
        await asyncio.gather(*server.shadow._running)
        told = next(each for each in server.checkpoints.list().loaded if each.shadow).agreement
        assert told is not None
        assert (told.items, told.failed) == (1, 0)

    asyncio.run(path())
