"""The adapt transaction, on SQLite and PostgreSQL."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import NoReturn

import numpy as np
import pytest
from sqlalchemy import event, text
from storing import CHECKPOINT, HEADS, Clock, adapt, new_pair, repository, seen_from

from service.errors import EngineError, InvalidInput
from service.store import ChangeOutcome, Database, Idempotency, Solution, StoredEvidence


@pytest.fixture
def database_url(emptied_url: str) -> str:
    """One database for all tests of this module."""
    return emptied_url


def ids(pairs: Sequence[StoredEvidence]) -> list[str]:
    return [pair.evidence_id for pair in pairs]


def rows(database: Database, table: str) -> int:
    with database.engine.connect() as connection:
        return int(connection.execute(text(f"SELECT count(*) FROM {table}")).scalar_one())


def test_first_adapt_makes_version_one_and_reads_back_bit_by_bit(database: Database) -> None:
    users = repository(database)
    pairs = [new_pair("a"), new_pair("b")]
    outcome, user = adapt(users, pairs)

    assert outcome == ChangeOutcome(
        user_id="ada",
        incarnation=user.incarnation,
        version=1,
        checkpoint_id=CHECKPOINT,
        weights=user.weights_K.tolist(),
        pairs_received=2,
        pairs_stored=2,
        pairs_total=2,
        report={"loss_after": 2.0, "accuracy_before": None},
        replayed=False,
    )
    assert ChangeOutcome.from_json(outcome.to_json()) == outcome
    np.testing.assert_allclose(user.weights_K, pairs[0].base_rewards + pairs[1].base_rewards, rtol=1e-15)

    read = users.get("tenant", "ada")
    assert read is not None
    for name in ("tenant_id", "user_id", "incarnation", "version", "checkpoint_id", "heads_id", "pairs"):
        assert getattr(read, name) == getattr(user, name)
    assert (read.created_at, read.updated_at) == (user.created_at, user.updated_at)
    assert read.updated_at.utcoffset() == timedelta(0)
    assert read.weights_K.tobytes() == user.weights_K.tobytes()
    assert read.factor is not None
    np.testing.assert_array_equal(read.factor, np.arange(6.0))
    assert not read.weights_K.flags.writeable

    stored = {pair.evidence_id: pair for pair in users.support("tenant", "ada", seen_from())}
    assert stored["a"].base_rewards.tobytes() == pairs[0].base_rewards.tobytes()
    assert stored["a"].content_key == pairs[0].content_key


def test_versions_count_up_and_appended_pairs_accumulate(database: Database) -> None:
    users = repository(database)
    first, _ = adapt(users, [new_pair("a")])
    second, user = adapt(users, [new_pair("b")], checkpoint="checkpoint-b")
    assert (first.version, second.version) == (1, 2)
    assert (second.incarnation, second.pairs_total, user.checkpoint_id) == (first.incarnation, 2, "checkpoint-b")
    assert user.created_at <= user.updated_at


def test_pairs_are_a_set(database: Database) -> None:
    users = repository(database)
    adapt(users, [new_pair("a"), new_pair("b")])
    outcome, user = adapt(users, [new_pair("b"), new_pair("c"), new_pair("c")])
    assert (outcome.pairs_received, outcome.pairs_stored, outcome.pairs_total) == (3, 1, 3)
    together, other = adapt(users, [new_pair("a"), new_pair("b"), new_pair("c")], user="grace")
    assert together.pairs_total == 3
    np.testing.assert_allclose(user.weights_K, other.weights_K, rtol=1e-12)


def test_an_id_that_stands_for_another_pair_is_refused_with_every_such_id(database: Database) -> None:
    users = repository(database)
    adapt(users, [new_pair("a"), new_pair("b")])
    contradictory = [new_pair("a", content="x"), new_pair("new"), new_pair("b", content="y"), new_pair("c")]
    contradictory.append(new_pair("c", content="z"))
    with pytest.raises(InvalidInput) as refused:
        adapt(users, contradictory)
    assert [issue.field for issue in refused.value.issues] == ["pairs[0].id", "pairs[2].id", "pairs[4].id"]
    assert rows(database, "pairs") == 2
    user = users.get("tenant", "ada")
    assert user is not None
    assert user.version == 1


def test_an_id_is_contradicted_under_other_heads_too(database: Database) -> None:
    users = repository(database)
    adapt(users, [new_pair("a")])
    with pytest.raises(InvalidInput):
        adapt(users, [new_pair("a", content="x")], heads="heads-b")


def test_many_ids_are_compared_in_several_statements(database: Database) -> None:
    users = repository(database, support_limit=5000)
    adapt(users, [new_pair(f"{i:05}") for i in range(1950)])
    outcome, _ = adapt(users, [new_pair(f"{i:05}") for i in range(2000)])
    assert (outcome.pairs_stored, outcome.pairs_total) == (50, 2000)


def test_replace_forgets_earlier_pairs_and_their_ids(database: Database) -> None:
    users = repository(database)
    adapt(users, [new_pair("a"), new_pair("b")])
    outcome, _ = adapt(users, [new_pair("a", content="x")], mode="replace")
    assert (outcome.version, outcome.pairs_stored, outcome.pairs_total) == (2, 1, 1)
    empty, user = adapt(users, [], mode="replace")
    assert (empty.version, empty.pairs_total) == (3, 0)
    np.testing.assert_array_equal(user.weights_K, np.zeros(3))


def test_the_support_set_is_the_newest_pairs_by_time_then_id(database: Database) -> None:
    clock = Clock()
    users = repository(database, support_limit=4, clock=clock)
    adapt(users, [new_pair(name) for name in ("z", "y", "x")])
    clock.move(1)
    # Byte order, whatever the locale: capital letters come before small ones, accents after both.
    outcome, user = adapt(users, [new_pair(name) for name in ("é", "B", "a")])
    assert ids(users.support("tenant", "ada", seen_from())) == ["é", "a", "B", "z"]
    assert (outcome.pairs_total, user.pairs) == (6, 6)
    expected_K = sum(new_pair(name).base_rewards for name in ("é", "a", "B", "z"))
    np.testing.assert_allclose(user.weights_K, expected_K, rtol=1e-12)


def test_a_clock_that_goes_back_does_not_make_later_pairs_older(database: Database) -> None:
    clock = Clock()
    users = repository(database, support_limit=1, clock=clock)
    adapt(users, [new_pair("z")])
    clock.move(-60)
    adapt(users, [new_pair("zz")])
    assert ids(users.support("tenant", "ada", seen_from())) == ["zz"]


def test_only_pairs_of_the_given_heads_are_solved_and_earlier_heads_find_theirs_again(database: Database) -> None:
    users = repository(database)
    adapt(users, [new_pair("a"), new_pair("b")])
    outcome, user = adapt(users, [new_pair("a", k=5), new_pair("c", k=5)], heads="heads-b")
    assert (outcome.pairs_stored, outcome.pairs_total, user.heads_id) == (2, 2, "heads-b")
    assert user.weights_K.shape == (5,)
    back, user = adapt(users, [], heads=HEADS)
    assert (back.version, back.pairs_total, user.weights_K.shape) == (3, 2, (3,))


def test_the_same_key_and_body_is_answered_again_without_a_new_version(database: Database) -> None:
    users = repository(database)
    key = Idempotency("key", b"1" * 32)
    first, _ = adapt(users, [new_pair("a")], key=key)
    adapt(users, [new_pair("b")])
    again, user = adapt(users, [new_pair("a")], key=key, solve=never)
    assert again == first.as_replay()
    assert again.replayed
    assert user.version == 2
    assert rows(database, "pairs") == 2


def test_the_same_key_with_another_body_is_refused(database: Database) -> None:
    users = repository(database)
    adapt(users, [new_pair("a")], key=Idempotency("key", b"1" * 32))
    with pytest.raises(InvalidInput) as refused:
        adapt(users, [new_pair("b")], key=Idempotency("key", b"2" * 32))
    assert [issue.field for issue in refused.value.issues] == ["Idempotency-Key"]
    assert rows(database, "pairs") == 1


def test_keys_belong_to_one_user_of_one_tenant(database: Database) -> None:
    users = repository(database)
    for tenant, user in (("t1", "ada"), ("t1", "grace"), ("t2", "ada")):
        outcome, _ = adapt(users, [new_pair("a")], tenant=tenant, user=user, key=Idempotency("key", user.encode()))
        assert (outcome.version, outcome.replayed) == (1, False)


def test_an_expired_key_is_free_again(database: Database) -> None:
    clock = Clock()
    users = repository(database, idempotency_ttl_s=10.0, clock=clock)
    adapt(users, [new_pair("a")], key=Idempotency("key", b"1"))
    clock.move(10)
    outcome, _ = adapt(users, [new_pair("b")], key=Idempotency("key", b"2"))
    assert (outcome.version, outcome.replayed) == (2, False)
    assert rows(database, "idempotency") == 1


def test_purging_deletes_expired_answers_only(database: Database) -> None:
    clock = Clock()
    users = repository(database, idempotency_ttl_s=10.0, clock=clock)
    adapt(users, [new_pair("a")], key=Idempotency("old", b"1"))
    clock.move(9)
    adapt(users, [new_pair("b")], user="grace", key=Idempotency("new", b"1"))
    clock.move(1)
    assert users.purge_expired() == 1
    assert rows(database, "idempotency") == 1


def never(support: Sequence[StoredEvidence]) -> NoReturn:
    raise AssertionError("must not be solved")


def broken(support: Sequence[StoredEvidence]) -> NoReturn:
    raise ZeroDivisionError("a bug in the solve")


@pytest.mark.parametrize("exists", [False, True])
def test_an_exception_in_the_solve_leaves_no_trace(database: Database, exists: bool) -> None:
    users = repository(database)
    if exists:
        adapt(users, [new_pair("a")])
    with pytest.raises(ZeroDivisionError):
        adapt(users, [new_pair("b")], mode="replace", key=Idempotency("key", b"1"), solve=broken)
    user = users.get("tenant", "ada")
    assert (user is not None) is exists
    assert (rows(database, "pairs"), rows(database, "idempotency")) == (int(exists), 0)
    if exists:
        assert ids(users.support("tenant", "ada", seen_from())) == ["a"]


@pytest.mark.parametrize(
    "solution",
    [
        Solution(np.array([1.0, np.nan, 0.0]), None, {}),
        Solution(np.array([1.0, np.inf, 0.0]), None, {}),
        Solution(np.zeros(3), np.array([np.nan] * 6), {}),
        Solution(np.zeros(3), None, {"loss_after": float("nan")}),
    ],
    ids=["nan", "infinite", "factor", "report"],
)
def test_numbers_that_are_not_finite_are_never_stored(database: Database, solution: Solution) -> None:
    users = repository(database)
    with pytest.raises(EngineError):
        adapt(users, [new_pair("a")], solve=lambda support: solution)
    assert users.get("tenant", "ada") is None
    assert rows(database, "pairs") == 0


def test_a_pair_that_is_not_finite_is_never_stored(database: Database) -> None:
    pair = new_pair("a")
    pair.base_rewards[1] = np.nan
    with pytest.raises(EngineError):
        adapt(repository(database), [pair])
    assert rows(database, "users") == 0


def test_a_user_without_a_factor_loses_the_earlier_one(database: Database) -> None:
    users = repository(database)
    adapt(users, [new_pair("a")])
    adapt(users, [], solve=lambda support: Solution(np.ones(3), None, {}))
    user = users.get("tenant", "ada")
    assert user is not None
    assert user.factor is None


def test_the_number_of_statements_does_not_grow_with_the_pairs(database: Database) -> None:
    users = repository(database)
    adapt(users, [])  # making a user takes another statement
    statements: list[str] = []
    event.listen(
        database.engine, "before_cursor_execute", lambda c, cursor, statement, *rest: statements.append(statement)
    )
    adapt(users, [new_pair("a")], key=Idempotency("k1", b"1"))
    few = len(statements)
    statements.clear()
    adapt(users, [new_pair(f"{i}") for i in range(90)], key=Idempotency("k2", b"1"))
    assert len(statements) == few
    assert few <= 10
