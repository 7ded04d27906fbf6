"""What a user said, changed and taken back below HTTP, over real databases."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import numpy as np
import orjson
import psycopg
import pytest
from operating import Operations, told, toy_base_rewards, toy_hidden_state, user_says
from sharing import until
from sqlalchemy import func, select

from service.api.told import export_parts
from service.errors import Conflict, InvalidInput, NotFound, Overloaded
from service.mrm import Support, solve
from service.mrm.statements import half_life_weights
from service.operations.changes import Changed, idempotency_of
from service.operations.retention import RetainedTexts, read_retained
from service.operations.said import PreferencePair, Ranking, Rating, Statement
from service.operations.solving import DAY_S, Solver
from service.operations.texts import Text
from service.operations.turns import MAX_WAITING
from service.store import Database, open_database
from service.store.tables import Base

PROMPT = user_says("p")


def base(completion: str, prompt: str = "p") -> np.ndarray:
    return toy_base_rewards(f"{prompt}|{completion}".encode())


def pair(chosen: str, rejected: str, **more: object) -> PreferencePair:
    return PreferencePair(PROMPT, chosen, rejected, more.pop("strength", None), more.pop("id", None), **more)  # type: ignore[arg-type]


async def say(operations: Operations, *said: Statement, user: str = "ada", **options: object) -> Changed:
    options = {"mode": "append", "truncate": False} | options
    return await operations.adapt("t", user, told(said), **options)  # type: ignore[arg-type]


def run(path: Callable[[], object]) -> None:
    asyncio.run(path())  # type: ignore[arg-type]


def test_choices_ties_ratings_and_rankings_are_one_solve(database: Database) -> None:
    operations = Operations(database)
    said = (
        pair("a", "b", strength=2.0),
        pair("a", "c", strength=1.0),
        pair("c", "d", tie=True),
        *(Rating(PROMPT, completion, rating) for completion, rating in (("a", 5.0), ("b", 2.0), ("c", 2.5))),
        # Alone at their prompts, these two are compared with each other.
        *(Rating(user_says(prompt), "z", rating) for prompt, rating in (("q", 4.0), ("r", 1.0))),
        Rating(user_says("s"), "y", 3.0, group="evening"),
        Rating(user_says("p"), "y", 1.0, group="evening"),
        Ranking(PROMPT, ["e", "f", "g"], [3, 7, 3]),
    )

    async def path() -> None:
        changed = await say(operations, *said)
        outcome = changed.outcome
        listed, _ = await operations.users.evidence("t", "ada", None, 100)
        kind_of = {evidence.evidence_id: evidence.kind for evidence, _ in listed}
        kinds = [{PreferencePair: "pair", Rating: "rating", Ranking: "ranking"}[type(each)] for each in said]
        assert [kind_of[evidence_id] for evidence_id in changed.evidence_ids] == kinds
        tie = sorted(("c", "d"), key=lambda text: tie_order(text))
        diffs = [base("a") - base("b"), base("a") - base("c"), base(tie[0]) - base(tie[1])]
        diffs += [base("e") - base("f"), base("g") - base("f")]
        support = Support.of(
            diffs,
            [2.0, 1.0, np.nan, np.nan, np.nan],
            [base("a"), base("b"), base("c"), base("z", "q"), base("z", "r"), base("y", "s"), base("y")],
            [5.0, 2.0, 2.5, 4.0, 1.0, 3.0, 1.0],
            [1, 1, 1, 0, 0, 2, 2],
            tilts_P=[0, 0, -0.5, 0, 0],
        )
        expected = solve(support, operations.checkpoint.start)
        np.testing.assert_allclose(outcome.weights, expected.weights_K, atol=1e-9)
        assert (outcome.pairs_received, outcome.pairs_stored, outcome.pairs_total) == (len(said),) * 3
        margins = [*(d @ expected.weights_K for i, d in enumerate(diffs) if i != 2)]
        for better, worse in (("ap", "bp"), ("ap", "cp"), ("cp", "bp"), ("zq", "zr"), ("ys", "yp")):
            margins.append((base(*better) - base(*worse)) @ expected.weights_K)
        assert outcome.report["support_accuracy_after"] == pytest.approx(np.mean(np.array(margins) > 0))
        assert outcome.report["support_loss_after"] == pytest.approx(np.log1p(np.exp(-np.array(margins))).mean())

        # The same again, told otherwise: the tie the other way round, ranks of other numbers in another order.
        again = await say(operations, pair("d", "c", tie=True), Ranking(PROMPT, ["f", "g", "e"], [9, 0, 0]), *said[3:5])
        assert (again.outcome.pairs_stored, again.outcome.weights) == (0, outcome.weights)
        # And what is not the same.
        other = await say(
            operations,
            pair("c", "d"),
            Rating(PROMPT, "a", 4.0),
            Rating(PROMPT, "a", 5.0, group="evening"),
            Ranking(PROMPT, ["e", "f", "g"]),
        )
        assert other.outcome.pairs_stored == 4

    def tie_order(text: str) -> bytes:
        prompt_key = operations.keys.prompt("t", PROMPT)
        return operations.keys.text(prompt_key, text)

    run(path)


def test_what_was_replaced_or_reset_comes_back_bit_by_bit(database: Database) -> None:
    operations = Operations(database)

    async def path() -> None:
        first = (await say(operations, pair("a", "b"), Rating(PROMPT, "a", 5), Rating(PROMPT, "b", 1))).outcome
        replaced = (await say(operations, pair("b", "a"), mode="replace")).outcome
        assert (replaced.cause, replaced.pairs_stored, replaced.pairs_deleted) == ("replace", 1, 3)
        reset = (await operations.changes.reset("t", "ada", False, None)).outcome
        assert (reset.cause, reset.pairs_total, reset.version) == ("reset", 0, 3)
        assert reset.weights == operations.states.start.weights_K.tolist()
        state = await operations.states.resolve("t", "ada", 3)
        assert (state.standing, state.version) == ("cold_start", 3)

        back = (await operations.changes.rollback("t", "ada", 1, None)).outcome
        assert (back.version, back.cause, back.exact, back.weights) == (4, "rollback", True, first.weights)
        kept, following = await operations.users.versions("t", "ada", None, 3)
        assert [(each.version, each.cause) for each in kept] == [(4, "rollback"), (3, "reset"), (2, "replace")]
        assert following == 2
        assert [each.version for each in (await operations.users.versions("t", "ada", following, 3))[0]] == [1]
        with pytest.raises(Conflict, match="1 to 4"):
            await operations.changes.rollback("t", "ada", 5, None)

        forgotten = (await operations.changes.reset("t", "ada", True, None)).outcome
        assert (forgotten.cause, forgotten.pairs_deleted) == ("forget", 3)
        assert (await operations.users.evidence("t", "ada", None, 10)) == ([], None)
        gone = (await operations.changes.rollback("t", "ada", 1, None)).outcome
        assert (gone.exact, gone.pairs_total) == (False, 0)

    run(path)


def test_deleted_evidence_is_gone_for_good_and_all_or_none_of_it(database: Database) -> None:
    operations = Operations(database)

    async def path() -> None:
        only = (await say(operations, pair("a", "b", id="one"), user="bob")).outcome
        await say(operations, pair("a", "b", id="one"), pair("c", "d", id="two"))
        with pytest.raises(NotFound, match="three"):
            await operations.changes.delete("t", "ada", ["two", "three"], None)
        assert (await operations.users.get("t", "ada"))[0].version == 1
        deleted = (await operations.changes.delete("t", "ada", ["two", "two"], None)).outcome
        assert (deleted.pairs_deleted, deleted.pairs_total, deleted.weights) == (1, 1, only.weights)
        page, _ = await operations.users.evidence("t", "ada", None, 10)
        assert [each.evidence_id for each, _ in page] == ["one"]
        back = (await operations.changes.rollback("t", "ada", 1, None)).outcome
        assert (back.exact, back.weights) == (False, only.weights)
        for nobody in (
            operations.changes.delete("t", "eve", ["one"], None),
            operations.changes.rollback("t", "eve", 1, None),
            operations.changes.reset("t", "eve", False, None),
            operations.users.versions("t", "eve", None, 1),
            operations.users.evidence("t", "eve", None, 1),
            operations.users.export("t", "eve"),
        ):
            with pytest.raises(NotFound, match="No such user"):
                await nobody

    run(path)


def test_a_key_stands_for_one_operation_with_one_body(database: Database) -> None:
    operations = Operations(database)
    changes = operations.changes

    async def path() -> None:
        await say(operations, pair("a", "b", id="one"), idempotency_key="k", body=b"{}")
        for operation in ("reset", "rollback"):
            with pytest.raises(InvalidInput, match="Idempotency-Key"):
                await changes.reset("t", "ada", False, idempotency_of("k", operation, b"{}"))
        first = await changes.reset("t", "ada", False, idempotency_of("r", "reset", b"{}"))
        again = await changes.reset("t", "ada", False, idempotency_of("r", "reset", b"{}"))
        assert (first.outcome.replayed, again.outcome.replayed) == (False, True)
        assert (again.outcome.version, again.outcome.weights) == (2, first.outcome.weights)
        with pytest.raises(InvalidInput, match="Idempotency-Key"):
            await changes.delete("t", "ada", ["one"], idempotency_of("r", "delete", b"{}"))
        # An adapt that was answered before there were other operations is known again.
        key = idempotency_of("k", "adapt", b"{}")
        assert key is not None
        assert key.body_hash == hashlib.sha256(b"{}").digest()

    run(path)


def test_texts_are_kept_where_told_and_go_with_what_they_are_of(database: Database) -> None:
    keeping, plain = Operations(database, retention="texts"), Operations(database)

    async def path() -> None:
        await say(plain, pair("a", "b", id="plain"))
        await say(
            keeping,
            pair("a", "b", id="pair"),
            pair("d", "c", tie=True, id="tie"),
            Ranking(PROMPT, ["x", "y", "z"], [1, 0, 1], id="ranking"),
            Rating(PROMPT, "y", 3, id="rating"),
        )
        page, _ = await plain.users.evidence("t", "ada", None, 10)
        kept = {each.evidence_id: payload and read_retained(payload) for each, payload in page}
        assert kept.pop("plain") is None
        by_id = {each.evidence_id: each for each, _ in page}
        for name, retained in kept.items():
            assert isinstance(retained, RetainedTexts)
            assert retained.messages == PROMPT
            measured = [base(completion) for completion in retained.completions]
            expected = measured[0] - measured[1] if name in ("pair", "tie") else np.squeeze(measured)
            np.testing.assert_array_equal(by_id[name].base_rewards, expected)
        assert kept["ranking"].completions[0] == "y"
        assert set((await plain.users.export("t", "ada")).retained) == set(kept)
        await plain.changes.delete("t", "ada", ["pair"], None)
        assert set((await plain.users.export("t", "ada")).retained) == set(kept) - {"pair"}
        await plain.changes.reset("t", "ada", True, None)
        exported = await plain.users.export("t", "ada")
        assert (exported.retained, exported.evidence) == ({}, [])

    run(path)


def test_the_export_has_every_row_of_every_table_that_hangs_on_a_user(sqlite_url: str) -> None:
    database = open_database(sqlite_url)
    operations = Operations(database, retention="texts")
    of_users = [
        table
        for table in Base.metadata.sorted_tables
        if any(key.column.table.name == "users" for key in table.foreign_keys)
    ]

    async def path() -> None:
        for user in ("ada", "bob"):
            await say(operations, pair("a", "b"), Ranking(PROMPT, ["x", "y"]), user=user, idempotency_key="k")
            await say(operations, Rating(PROMPT, "a", 1), user=user, mode="replace")
        export = await operations.users.export("t", "ada")
        document = orjson.loads(b"".join(export_parts(export)))
        exported = {
            "pairs": len(document["evidence"]),
            "pair_sources": sum(each["texts"] is not None for each in document["evidence"]),
            "versions": sum(not each["current"] for each in document["versions"]),
            "idempotency": len(document["answers"]),
        }
        assert exported.keys() == {table.name for table in of_users}, "a table whose rows of a user are not exported"
        with database.reading() as connection:
            for table in of_users:
                ours = select(func.count()).where(table.c.incarnation == export.user.incarnation)
                assert exported[table.name] == connection.execute(ours).scalar_one() > 0, table.name
        assert [each["live"] for each in document["evidence"]].count(True) == 1

    try:
        run(path)
    finally:
        database.close()


def test_hidden_states_are_kept_where_told_in_the_order_of_the_evidence(sqlite_url: str) -> None:
    database = open_database(sqlite_url)
    operations = Operations(database, retention="hidden_states")

    def hidden(*completions: str) -> list[list[float]]:
        return [toy_hidden_state(f"p|{completion}".encode()).tolist() for completion in completions]

    async def path() -> None:
        await operations.base_rewards.read("t", [Text(PROMPT, "a", "")], truncate=False)  # known, but not what it hides
        await say(operations, pair("a", "b", id="pair"), Ranking(PROMPT, ["x", "y", "z"], [2, 0, 1], id="ranking"))
        await say(operations, Rating(PROMPT, "x", 3, id="rating"))
        exported = await operations.users.export("t", "ada")
        kept = {name: read_retained(payload) for name, payload in exported.retained.items()}
        expected = {"pair": hidden("a", "b"), "ranking": hidden("y", "z", "x"), "rating": hidden("x")}
        assert {name: each.states_ND.tolist() for name, each in kept.items()} == expected  # type: ignore[union-attr]
        by_id = {each.evidence_id: each.base_rewards for each in exported.evidence}
        np.testing.assert_array_equal(by_id["ranking"], [base("y"), base("z"), base("x")])
        assert len(operations.engine.texts) == 1 + 2 + 3 + 1, "base rewards came with them"

    try:
        run(path)
    finally:
        database.close()


def test_older_evidence_counts_less_where_told(database: Database) -> None:
    operations = Operations(database, solver=Solver(10.0))
    now = datetime.now(UTC)
    ages_days = (0.0, 5.0, 40.0)

    async def path() -> None:
        said = [pair(f"a{i}", f"b{i}", event_time=now - timedelta(days=age)) for i, age in enumerate(ages_days)]
        outcome = (await say(operations, *said)).outcome
        diffs = [base(f"a{i}") - base(f"b{i}") for i in range(3)]
        weights = half_life_weights(np.array(ages_days) * DAY_S, 10.0 * DAY_S)
        expected = solve(Support.of(diffs, weights_P=weights), operations.checkpoint.start)
        np.testing.assert_allclose(outcome.weights, expected.weights_K, atol=1e-12)

    run(path)


def choices_by_the_first_head(now: datetime, turns_round: bool) -> list[PreferencePair]:
    """One choice a day for 80 days, by the first base reward; for the last 30 perhaps against it."""
    said = []
    for day in range(80):
        likes_more = (base(f"a{day}")[0] > base(f"b{day}")[0]) != (turns_round and day < 30)
        sides = (f"a{day}", f"b{day}") if likes_more else (f"b{day}", f"a{day}")
        said.append(pair(*sides, event_time=now - timedelta(days=day)))
    return said


@pytest.mark.parametrize("turns_round", [False, True])
def test_a_taste_that_changes_is_told_and_followed(sqlite_url: str, turns_round: bool) -> None:
    database = open_database(sqlite_url)
    fixed, auto = Operations(database), Operations(database, solver=Solver("auto"))
    said = choices_by_the_first_head(datetime.now(UTC), turns_round)

    async def path() -> None:
        outcome = (await say(fixed, *said)).outcome
        _, taste = await fixed.users.get("t", "ada")
        assert taste.half_life_s is None
        assert taste.drift is not None
        assert (taste.drift > 0.05) == turns_round
        followed = (await say(auto, *said)).outcome
        assert (followed.pairs_stored, followed.weights == outcome.weights) == (0, not turns_round)
        _, taste = await auto.users.get("t", "ada")
        assert (taste.half_life_s is not None) == turns_round
        if taste.half_life_s is not None:
            assert 1 < taste.half_life_s / DAY_S < 60
            assert followed.weights[0] < outcome.weights[0]
        # Seen by the metric: behind the answer, or with the solve that asked for it.
        for operations in (fixed, auto):
            value = operations.metrics.registry.get_sample_value
            await until(lambda value=value: value("metareward_user_drift_count") == 1)  # type: ignore[misc]
            assert value("metareward_user_drift_sum") == pytest.approx(taste.drift, abs=1e-6)

    try:
        run(path)
    finally:
        database.close()


def test_many_writers_of_one_user_take_one_thread(postgres_url: str) -> None:
    database = open_database(postgres_url, pool_size=8)
    operations = Operations(database)  # four threads

    async def path() -> None:
        await say(operations, pair("a", "b"))
        # Known texts wait for nothing, so that all fifty are at the store's door before anybody else.
        texts = [Text(PROMPT, f"{side}{i}", "") for i in range(50) for side in "cd"]
        await operations.base_rewards.read("t", texts, truncate=False)
        with psycopg.connect(postgres_url) as holder:
            holder.execute("SELECT 1 FROM users WHERE user_id = 'ada' FOR UPDATE")
            many = [asyncio.create_task(say(operations, pair(f"c{i}", f"d{i}"))) for i in range(50)]
            others = [say(operations, pair("a", "b"), user=f"bob{i}") for i in range(8)]
            answered = await asyncio.wait_for(asyncio.gather(*others), 4)
            assert [changed.outcome.version for changed in answered] == [1] * 8
            assert not any(task.done() for task in many)
            erased = asyncio.create_task(operations.users.erase("t", "ada"))
            many[10].cancel()
            await asyncio.wait([many[10]])
            holder.rollback()
        ends = await asyncio.gather(*many, return_exceptions=True)
        versions = [end.outcome.version for end in ends if isinstance(end, Changed)]
        assert versions == list(range(2, 51)), "in the order of their coming, but for the one that left"
        await erased
        assert len(operations.turns) == 0

    try:
        run(path)
    finally:
        database.close()


def test_too_many_writers_of_one_user_are_refused_and_counted(sqlite_url: str) -> None:
    database = open_database(sqlite_url)
    operations = Operations(database)

    async def path() -> None:
        await operations.turns.take(("t", "ada"))
        waiting = [asyncio.create_task(say(operations, pair("a", "b"))) for _ in range(MAX_WAITING + 1)]
        done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        (refused,) = done
        assert isinstance(refused.exception(), Overloaded)
        refusals = operations.metrics.registry.get_sample_value("metareward_refusals_total", {"reason": "user"})
        assert refusals == 1
        assert (await say(operations, pair("a", "b"), user="bob")).outcome.version == 1
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)
        operations.turns.end(("t", "ada"))
        assert len(operations.turns) == 0

    try:
        run(path)
    finally:
        database.close()


def test_who_leaves_while_the_database_works_keeps_the_turn_until_it_is_done(postgres_url: str) -> None:
    database = open_database(postgres_url, pool_size=8)
    operations = Operations(database)

    async def path() -> None:
        await say(operations, pair("a", "b"))
        with psycopg.connect(postgres_url, autocommit=True) as watcher, psycopg.connect(postgres_url) as holder:
            holder.execute("SELECT 1 FROM users WHERE user_id = 'ada' FOR UPDATE")
            leaves = asyncio.create_task(say(operations, pair("c", "d")))
            waiting = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
            await until(lambda: watcher.execute(waiting).fetchone() is not None)
            leaves.cancel()
            await asyncio.wait([leaves])
            follows = asyncio.create_task(say(operations, pair("e", "f")))
            await say(operations, pair("a", "b"), user="bob")
            assert len(watcher.execute(waiting).fetchall()) == 1, "the next one waits in the process"
            holder.rollback()
        assert (await follows).outcome.version == 3, "what ran when its caller left was committed"
        assert len(operations.turns) == 0

    try:
        run(path)
    finally:
        database.close()
