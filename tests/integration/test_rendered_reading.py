"""Texts that clients rendered, below HTTP: cached, computed once, and rewarded for many users at a time."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from operating import Operations, told, toy_base_rewards, user_says

from service.errors import InvalidInput, Overloaded
from service.operations.said import PreferencePair
from service.operations.text_rewards import TextRewards
from service.operations.texts import AnyText, RenderedText, Text
from service.store import Database

AS_MESSAGES = Text(user_says("p"), "x", "messages")
AS_TEXT = RenderedText("p|x", "input[0]")
AS_IDS = RenderedText(tuple(b"p|x"), "input[1]")
SPECIAL = RenderedText("p|x", "input[2]", add_special_tokens=True)


def test_a_text_is_computed_once_however_it_comes_and_remembered_in_each_form(database: Database) -> None:
    operations = Operations(database)
    read = operations.base_rewards.read

    async def path() -> None:
        together = await asyncio.gather(*(read("t", [text], truncate=False) for text in (AS_MESSAGES, AS_TEXT, AS_IDS)))
        for base in together:
            np.testing.assert_array_equal(base.rewards_BK, [toy_base_rewards(b"p|x")])
            assert base.lengths == {0: 3}
        assert operations.engine.texts == [tuple(b"p|x")]
        again = await read("t", [AS_IDS, AS_TEXT, AS_MESSAGES, SPECIAL], truncate=False)
        assert again.lengths == {3: 4}, "three were remembered"
        assert len(set(again.keys)) == 4
        assert (
            await operations.base_rewards.count_tokens([AS_IDS, AS_TEXT, AS_MESSAGES, SPECIAL], again, truncate=False)
            == 13
        )
        await read("another tenant", [AS_TEXT], truncate=False)

    asyncio.run(path())
    assert operations.engine.texts == [tuple(b"p|x"), (0, *b"p|x"), tuple(b"p|x")]


def test_what_is_too_long_is_refused_or_shortened_and_not_taken_for_the_other(database: Database) -> None:
    operations = Operations(database)
    texts: list[AnyText] = [AS_TEXT, RenderedText("y" * 100, "input[1]", True), RenderedText((7,) * 65, "input[2]")]

    async def path() -> None:
        for _ in range(2):
            with pytest.raises(InvalidInput) as refused:
                await operations.base_rewards.read("t", texts, truncate=False)
            assert [issue.field for issue in refused.value.issues] == ["input[1]", "input[2]"]
            shortened = await operations.base_rewards.read("t", texts, truncate=True)
            assert list(shortened.truncated) == [1, 2]

    asyncio.run(path())
    assert operations.engine.texts[1:] == [(0, *b"y" * 63), (7,) * 64]


def test_each_text_is_rewarded_for_its_own_user(database: Database) -> None:
    operations = Operations(database)
    rewarded_for = TextRewards(metrics=operations.metrics)
    served = operations.serving.active
    texts = [RenderedText(f"p|{letter}", f"query[{i}]") for i, letter in enumerate("abcde")]
    users = ["ada", None, "bob", "ada", "nobody yet"]

    async def path() -> None:
        for user, (good, bad) in (("ada", "ab"), ("bob", "ba")):
            pair = PreferencePair(user_says("p"), good, bad, None, None)
            await operations.adapt("t", user, told([pair]), mode="append", truncate=False)
        rewarded = await rewarded_for(served, "t", texts, users, truncate=False)
        assert [user.standing for user in rewarded.users] == [
            "adapted",
            "population",
            "adapted",
            "adapted",
            "cold_start",
        ]
        states = [(await served.users.resolve("t", user)).state for user in users]
        expected = [
            toy_base_rewards(text.content.encode()) @ state.weights_K for text, state in zip(texts, states, strict=True)
        ]
        np.testing.assert_allclose(rewarded.rewards_B, expected, rtol=0, atol=1e-12)
        assert rewarded.std_B is not None
        for i, (text, user) in enumerate(zip(texts, users, strict=True)):
            alone = await rewarded_for(served, "t", [text], [user], truncate=False)
            assert alone.std_B is not None
            assert (alone.rewards_B[0], alone.std_B[0]) == (
                pytest.approx(rewarded.rewards_B[i], abs=1e-12),
                pytest.approx(rewarded.std_B[i], abs=1e-12),
            )

    asyncio.run(path())
    sample = operations.metrics.registry.get_sample_value
    counted = {
        s: sample("metareward_users_scored_total", {"standing": s}) for s in ("adapted", "population", "cold_start")
    }
    assert counted == {"adapted": 6, "population": 2, "cold_start": 2}
    assert sample("metareward_completions_scored_total") == 10


def test_a_full_queue_refuses_before_the_database_is_asked(database: Database) -> None:
    operations = Operations(database)
    operations.engine.failure = Overloaded("full")
    rewarded_for = TextRewards(metrics=operations.metrics)

    async def path() -> None:
        with pytest.raises(Overloaded):
            await rewarded_for(operations.serving.active, "t", [AS_TEXT], ["ada"], truncate=False)

    asyncio.run(path())
    asked = {"level": "memory", "result": "miss"}
    assert operations.metrics.registry.get_sample_value("metareward_user_cache_total", asked) == 0
