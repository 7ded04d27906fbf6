"""The request paths below HTTP, over real databases."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import pickle
import threading

import numpy as np
import pytest
from operating import Operations, told, toy_base_rewards, toy_checkpoint, user_says
from servers import PostgresServer

from service.errors import Conflict, InvalidInput, NotFound, Overloaded, Unavailable
from service.mrm import SoftmaxStart, Support, solve
from service.mrm.state import unpack_factor
from service.operations.said import PreferencePair
from service.operations.score import ScoreItem
from service.operations.texts import Text, TextKeys, pair_content_key
from service.store import Database, open_database

# graded but for one plain choice
STRENGTHS = [None, 1.0, 2.0, 2.5, 4.0]
PAIRS = [
    PreferencePair(user_says("p"), f"good {i}", f"bad {i}", strength, None) for i, strength in enumerate(STRENGTHS)
]
SUPPORT_STRENGTHS = [np.nan, *STRENGTHS[1:]]


def score(operations: Operations, user_id: str = "ada", tenant: str = "t", min_version: int = 0):
    item = ScoreItem(user_id, user_says("q"), ["x", "y", "z"], min_version)
    return operations.score(tenant, [item], truncate=False, return_base_rewards=True)


def adapt(operations: Operations, user_id: str = "ada", pairs=PAIRS, tenant: str = "t", **options):
    return operations.adapt(tenant, user_id, told(pairs), mode="append", truncate=False, **options)


def test_adapting_solves_on_base_reward_differences_and_changes_the_score(database: Database) -> None:
    operations = Operations(database)

    async def path():
        before = (await score(operations)).results[0]
        adapted = (await adapt(operations)).outcome
        after = (await score(operations)).results[0]
        return before, adapted, after

    before, adapted, after = asyncio.run(path())
    diffs = [
        toy_base_rewards(f"p|{pair.chosen}".encode()) - toy_base_rewards(f"p|{pair.rejected}".encode())
        for pair in PAIRS
    ]
    expected = solve(Support.of(diffs, SUPPORT_STRENGTHS), operations.checkpoint.start)
    np.testing.assert_allclose(adapted.weights, expected.weights_K, atol=1e-12)
    assert (before.standing, before.version) == ("cold_start", 0)
    assert (after.standing, after.version) == ("adapted", 1)
    phi = np.array([toy_base_rewards(f"q|{c}".encode()) for c in "xyz"])
    np.testing.assert_allclose(after.rewards, phi @ expected.weights_K, atol=1e-12)
    np.testing.assert_allclose(after.base_rewards, phi)
    assert after.order == sorted(range(3), key=lambda i: -after.rewards[i])
    assert after.reward_std is not None
    assert before.reward_std is not None
    assert sum(after.reward_std) < sum(before.reward_std)
    for when, weights_K in (("before", operations.checkpoint.start.mean_K), ("after", expected.weights_K)):
        margins = np.array(diffs) @ weights_K
        assert adapted.report[f"support_loss_{when}"] == pytest.approx(np.log1p(np.exp(-margins)).mean())
        assert adapted.report[f"support_accuracy_{when}"] == pytest.approx((margins > 0).mean())


def test_a_plain_choice_and_a_strength_of_one_are_two_answers(database: Database) -> None:
    operations = Operations(database)

    def pair(strength: float | None) -> PreferencePair:
        return PreferencePair(user_says("p"), "good", "bad", strength, None)

    async def path() -> None:
        first = (await adapt(operations, pairs=[pair(None), pair(1.0), pair(2.0), pair(2.0)])).outcome
        assert first.pairs_stored == 3
        again = (await adapt(operations, pairs=[pair(2.0), pair(1.0), pair(None)])).outcome
        assert (again.pairs_stored, again.weights) == (0, first.weights)

    asyncio.run(path())


def test_a_plain_choice_has_the_key_that_it_had_when_one_was_its_weight() -> None:
    digest = hashlib.sha256(b"chosen" + b"rejected" + b"0x1.0000000000000p+0").digest()
    assert pair_content_key(b"chosen", b"rejected", None) == digest
    assert len({pair_content_key(b"chosen", b"rejected", strength) for strength in (None, 1.0, 1.5, 2.0)}) == 4


@pytest.mark.parametrize("with_posterior", [True, False])
def test_every_two_completions_are_compared_on_demand(database: Database, with_posterior: bool) -> None:
    start = None if with_posterior else SoftmaxStart(np.zeros(3), 0.1, 2)
    made = toy_checkpoint()
    operations = Operations(database, checkpoint=made if start is None else dataclasses.replace(made, start=start))

    async def path():
        await adapt(operations)
        items = [ScoreItem(user, user_says("q"), texts) for user, texts in (("ada", ["x", "y", "z"]), ("bob", ["x"]))]
        asked = await operations.score("t", items, truncate=False, return_base_rewards=False, return_pairwise=True)
        return asked.results, (await score(operations)).results[0]

    (three, one), plain = asyncio.run(path())
    assert plain.preference_probability is plain.difference_std is None
    assert (one.preference_probability, one.difference_std) == ([[0.5]], [[0.0]] if with_posterior else None)
    expected = [[1 / (1 + np.exp(b - a)) for b in three.rewards] for a in three.rewards]
    np.testing.assert_allclose(three.preference_probability, expected)
    best = three.order[0]
    np.testing.assert_allclose(three.best_probability, expected[best])
    assert (one.best_probability, one.best_std) == ([0.5], [0.0] if with_posterior else None)
    assert (plain.best_probability, plain.best_std) == (three.best_probability, three.best_std)
    if with_posterior:
        state = asyncio.run(operations.states.resolve("t", "ada", 0)).state
        lower = unpack_factor(state.factor)
        phi = np.array([toy_base_rewards(f"q|{c}".encode()) for c in "xyz"])
        deviations = [[np.linalg.norm(lower.T @ (a - b)) for b in phi] for a in phi]
        np.testing.assert_allclose(three.difference_std, deviations, atol=1e-7)
        np.testing.assert_allclose(three.best_std, deviations[best], atol=1e-12)
    else:
        assert three.difference_std is three.best_std is None


def test_a_text_is_computed_once_for_all_users_and_calls(database: Database) -> None:
    operations = Operations(database)

    async def path() -> None:
        await asyncio.gather(*(score(operations, f"user{i}") for i in range(8)))
        await score(operations, "somebody")

    asyncio.run(path())
    assert len(operations.engine.texts) == 3


@pytest.mark.parametrize(("scope", "computed"), [("tenant", 6), ("shared", 3)])
def test_tenants_share_cached_rewards_only_where_told(database: Database, scope, computed: int) -> None:
    operations = Operations(database, cache_scope=scope)

    async def path() -> None:
        await score(operations, tenant="one")
        await score(operations, tenant="two")

    asyncio.run(path())
    assert len(operations.engine.texts) == computed


def test_tenants_do_not_see_each_others_users(database: Database) -> None:
    operations = Operations(database)

    async def path() -> None:
        await adapt(operations, tenant="one")
        assert (await score(operations, tenant="two")).results[0].standing == "cold_start"
        with pytest.raises(NotFound):
            await operations.users.get("two", "ada")
        with pytest.raises(NotFound):
            await operations.users.erase("two", "ada")
        assert (await operations.users.get("one", "ada"))[0].version == 1

    asyncio.run(path())


def test_every_text_that_is_too_long_is_listed_and_nothing_is_stored(database: Database) -> None:
    operations = Operations(database)
    long = "x" * 100
    pairs = [
        PreferencePair(user_says("p"), long, "b", 1.0, None),
        PreferencePair(user_says("p"), "a", long, 1.0, None),
        PreferencePair(user_says("p"), "a", "b", 1.0, None),
    ]

    async def path() -> None:
        with pytest.raises(InvalidInput) as refused:
            await adapt(operations, pairs=pairs)
        assert [issue.field for issue in refused.value.issues] == ["pairs[0].chosen", "pairs[1].rejected"]
        with pytest.raises(NotFound):
            await operations.users.get("t", "ada")

    asyncio.run(path())
    assert operations.engine.texts == []


def test_a_text_shortened_for_one_caller_is_refused_to_another(database: Database) -> None:
    operations = Operations(database)
    texts = [Text(user_says("p"), "x" * 100, "completions[0]")]

    async def path() -> None:
        shortened = await operations.base_rewards.read("t", texts, truncate=True)
        assert list(shortened.truncated) == [0]
        with pytest.raises(InvalidInput):
            await operations.base_rewards.read("t", texts, truncate=False)

    asyncio.run(path())


def test_each_item_names_its_own_shortened_completions(database: Database) -> None:
    operations = Operations(database)
    long = "x" * 100
    items = [ScoreItem("ada", user_says("q"), texts) for texts in (["a", long], ["b"], [f"{long}1", "c", f"{long}2"])]
    answer = asyncio.run(operations.score("t", items, truncate=True, return_base_rewards=False))
    assert [scored.truncated for scored in answer.results] == [[1], [], [0, 2]]


def test_min_version_reads_past_memory_and_refuses_what_is_not_there(database: Database) -> None:
    writer, reader = Operations(database), Operations(database, revalidate_s=60.0)

    async def path() -> None:
        assert (await score(reader)).results[0].version == 0
        version = (await adapt(writer)).outcome.version
        assert (await score(reader)).results[0].version == 0, "memory may be old"
        assert (await score(reader, min_version=version)).results[0].version == version
        with pytest.raises(Conflict, match="version 1"):
            await score(reader, min_version=version + 1)

    asyncio.run(path())


def test_every_item_ahead_of_its_user_is_named(database: Database) -> None:
    operations = Operations(database)

    async def path() -> None:
        await adapt(operations, "ada")
        asked = [("ada", 1), ("ada", 2), ("bob", 0), ("bob", 1), ("ada", 2)]
        items = [
            ScoreItem(user, user_says("q"), ["x"], version, f"items[{i}].") for i, (user, version) in enumerate(asked)
        ]
        with pytest.raises(Conflict) as refused:
            await operations.score("t", items, truncate=False, return_base_rewards=False)
        assert [issue.field for issue in refused.value.issues] == [f"items[{i}].min_version" for i in (1, 3, 4)]
        assert "adapt first or lower min_version" in refused.value.issues[0].message
        assert operations.engine.texts[2 * len(PAIRS) :] == []
        again = pickle.loads(pickle.dumps(refused.value))
        assert (str(again), again.issues) == (str(refused.value), refused.value.issues)
        with pytest.raises(Conflict, match=r"min_version is 2, but this user is at version 1; adapt first"):
            await score(operations, min_version=2)

    asyncio.run(path())


def test_users_of_a_batch_are_looked_up_side_by_side(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    operations = Operations(database)
    get = operations.repository.get
    together = threading.Barrier(4)  # breaks unless four reads are under way at once

    def meeting_get(tenant: str, user: str):
        together.wait(10)
        return get(tenant, user)

    monkeypatch.setattr(operations.repository, "get", meeting_get)
    users = ["a", "b", "a", "c", "d", "b"]
    items = [ScoreItem(user, user_says("q"), ["x", user], 0, f"items[{i}].") for i, user in enumerate(users)]
    answer = asyncio.run(operations.score("t", items, truncate=False, return_base_rewards=False))
    assert [result.user_id for result in answer.results] == users


def test_min_version_is_not_judged_by_a_read_that_began_before_it_was_committed(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer, reader = Operations(database), Operations(database)
    read, answer = threading.Event(), threading.Event()
    get = reader.repository.get

    def slow_get(tenant: str, user: str):
        found = get(tenant, user)
        read.set()
        answer.wait(10)
        return found

    monkeypatch.setattr(reader.repository, "get", slow_get)

    async def path() -> None:
        early = asyncio.create_task(score(reader))
        await asyncio.to_thread(read.wait, 10)
        version = (await adapt(writer)).outcome.version
        joining = asyncio.create_task(score(reader, min_version=version))
        await asyncio.sleep(0.01)
        answer.set()
        assert (await early).results[0].version == 0
        assert (await joining).results[0].version == version

    asyncio.run(path())


def test_an_erased_user_starts_anew(database: Database) -> None:
    operations = Operations(database)

    async def path() -> None:
        await adapt(operations)
        await operations.users.erase("t", "ada")
        assert (await score(operations)).results[0].standing == "cold_start"
        assert (await adapt(operations)).outcome.version == 1
        assert (await score(operations)).results[0].standing == "adapted"

    asyncio.run(path())


def test_an_overloaded_engine_refuses_before_anything_is_stored(database: Database) -> None:
    operations = Operations(database)
    operations.engine.failure = Overloaded("full", 2.0)

    async def path() -> None:
        with pytest.raises(Overloaded):
            await adapt(operations)
        operations.engine.failure = None
        assert (await adapt(operations)).outcome.version == 1

    asyncio.run(path())


def test_an_idempotency_key_replays_the_answer_and_refuses_another_body(database: Database) -> None:
    operations = Operations(database)

    async def path() -> None:
        first = (await adapt(operations, idempotency_key="k", body=b"1")).outcome
        again = (await adapt(operations, idempotency_key="k", body=b"1")).outcome
        assert (again.version, again.weights, again.replayed) == (first.version, first.weights, True)
        with pytest.raises(InvalidInput):
            await adapt(operations, idempotency_key="k", body=b"2")

    asyncio.run(path())


def test_another_start_on_the_same_heads_counts_the_stored_pairs(database: Database) -> None:
    old, new = Operations(database), Operations(database, checkpoint=toy_checkpoint(seed=1))
    assert old.checkpoint.heads_id == new.checkpoint.heads_id
    assert old.checkpoint.checkpoint_id != new.checkpoint.checkpoint_id

    async def path():
        await adapt(old)
        return (await score(new)).results[0]

    result = asyncio.run(path())
    diffs = [
        toy_base_rewards(f"p|{pair.chosen}".encode()) - toy_base_rewards(f"p|{pair.rejected}".encode())
        for pair in PAIRS
    ]
    expected = solve(Support.of(diffs, SUPPORT_STRENGTHS), new.checkpoint.start)
    phi = np.array([toy_base_rewards(f"q|{c}".encode()) for c in "xyz"])
    np.testing.assert_allclose(result.rewards, phi @ expected.weights_K, atol=1e-12)
    assert result.standing == "adapted"


def test_an_answer_replayed_under_another_checkpoint_leaves_no_old_weights_in_memory(database: Database) -> None:
    old, new = Operations(database), Operations(database, checkpoint=toy_checkpoint(seed=1))

    async def path():
        first = (await adapt(old, idempotency_key="k", body=b"1")).outcome
        expected = (await score(new)).results[0]
        again = Operations(database, checkpoint=new.checkpoint)
        replay = (await adapt(again, idempotency_key="k", body=b"1")).outcome
        assert (replay.replayed, replay.weights) == (True, first.weights)
        return expected, (await score(again)).results[0]

    expected, after_replay = asyncio.run(path())
    assert after_replay.rewards == expected.rewards


def test_without_a_database_known_users_are_stale_and_unknown_ones_refused(postgres: PostgresServer) -> None:
    """A server of its own, because it is killed."""
    server = PostgresServer()
    try:
        server.start()
        server.execute("CREATE DATABASE outage")
        database = open_database(server.url("outage"), connect_timeout_s=2.0, statement_timeout_s=2.0)
        from service.store.migrate import upgrade

        upgrade(database)
        operations = Operations(database, revalidate_s=0.0)

        async def path() -> None:
            await adapt(operations)
            adapted = (await score(operations)).results[0]
            server.kill()
            stale = (await score(operations)).results[0]
            assert (stale.standing, stale.version, stale.rewards) == ("stale", 1, adapted.rewards)
            with pytest.raises(Unavailable):
                await score(operations, "stranger")
            with pytest.raises(Unavailable):
                await adapt(operations, "stranger")
            server.restart()
            await asyncio.sleep(1.0)  # a known outage is not looked into more often
            assert (await score(operations)).results[0].standing == "adapted"
            assert (await score(operations, "stranger")).results[0].standing == "cold_start"

        asyncio.run(path())
        database.close()
    finally:
        server.close()


def test_text_keys_tell_apart_what_concatenation_would_not() -> None:
    keys = TextKeys(b"secret", "template")
    spellings = [
        ("t", user_says("ab"), "c"),
        ("t", user_says("a"), "bc"),
        ("ta", user_says("b"), "c"),
        ("t", [*user_says("a"), *user_says("b")], "c"),
        ("t", [{"role": "system", "content": "ab"}], "c"),
    ]
    made = {keys.text(keys.prompt(scope, messages), completion) for scope, messages, completion in spellings}
    made.add(TextKeys(b"other", "template").text(TextKeys(b"other", "template").prompt(*spellings[0][:2]), "c"))
    made.add(TextKeys(b"secret", "other").text(TextKeys(b"secret", "other").prompt(*spellings[0][:2]), "c"))
    assert len(made) == len(spellings) + 2
