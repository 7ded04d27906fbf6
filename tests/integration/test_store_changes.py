"""Deleting, going back, resetting, other heads, other kinds of evidence: what each leaves behind, and what not."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import numpy as np
import orjson
import pytest
from sqlalchemy import event, text
from storing import HEADS, Clock, adapt, new_pair, repository, seen_from, sum_of_differences
from traces import traces

from service.errors import Conflict, EngineError, InvalidInput, NotFound
from service.store import (
    Append,
    Change,
    ChangeOutcome,
    Database,
    Delete,
    Idempotency,
    NewEvidence,
    Replace,
    Reset,
    Rollback,
    StoredUser,
    UserRepository,
    open_database,
)

WRITERS, CHANGES = 8, 200
AGES = (5, 1, 9, 1, 3)


@pytest.fixture
def database_url(emptied_url: str) -> str:
    """One database for all tests of this module."""
    return emptied_url


def change(
    users: UserRepository, what: Change, key: Idempotency | None = None, user: str = "ada"
) -> tuple[ChangeOutcome, StoredUser]:
    return users.change("tenant", user, what, seen_from(), key, sum_of_differences)


def live_ids(users: UserRepository) -> set[str]:
    return {each.evidence_id for each in users.support("tenant", "ada", seen_from())}


def test_going_back_is_exact_and_a_version_of_its_own(database: Database) -> None:
    users = repository(database)
    adapt(users, [new_pair("a"), new_pair("b")])
    _, before = adapt(users, [new_pair("c", strength=2.0)])
    change(users, Replace([new_pair("a"), new_pair("z")]))
    change(users, Reset(False))
    outcome, user = change(users, Rollback(2))
    assert (outcome.version, outcome.cause, outcome.exact, outcome.pairs_total) == (5, "rollback", True, 3)
    assert (outcome.pairs_received, outcome.pairs_stored, outcome.pairs_deleted) == (0, 3, 0)
    assert user.weights_K.tobytes() == before.weights_K.tobytes()
    versions = users.versions("tenant", "ada", None, 10)
    assert versions is not None
    assert [(each.version, each.cause, each.pairs) for each in versions] == [
        (5, "rollback", 3),
        (4, "reset", 0),
        (3, "replace", 2),
        (2, "adapt", 3),
        (1, "adapt", 2),
    ]
    assert [each.current for each in versions] == [True] + [False] * 4
    assert [each.version for each in users.versions("tenant", "ada", 4, 2) or []] == [3, 2]
    assert users.versions("tenant", "grace", None, 2) is None


@pytest.mark.parametrize("what", [Delete(["a"]), Rollback(1), Reset(False), Reset(True)])
def test_who_is_not_known_is_not_made(database: Database, what: Change) -> None:
    with pytest.raises(NotFound, match="No such user"):
        change(repository(database), what)
    assert repository(database).list("tenant", None, 10) == []


def test_a_version_that_is_not_kept_is_refused_with_those_that_are(database: Database) -> None:
    users = repository(database, history_versions=2)
    adapt(users, [new_pair("0")])
    for version in (0, 2):
        with pytest.raises(Conflict, match="only version 1 is kept"):
            change(users, Rollback(version))
    for i in range(1, 5):
        adapt(users, [new_pair(f"{i}")])
    for version in (2, 6):
        with pytest.raises(Conflict, match="versions 3 to 5 are kept"):
            change(users, Rollback(version))
    outcome, _ = change(users, Rollback(3))
    assert (outcome.version, outcome.exact) == (6, True)


def test_ids_that_are_not_stored_are_named_and_nothing_is_deleted(database: Database) -> None:
    users = repository(database)
    adapt(users, [new_pair("a"), new_pair("b")])
    with pytest.raises(NotFound, match=r"ids: x, y\. Nothing was deleted"):
        change(users, Delete(["x", "a", "y"]))
    with pytest.raises(NotFound, match=r"19 and 5 more\."):
        change(users, Delete([f"{i}" for i in range(25)]))
    assert live_ids(users) == {"a", "b"}
    outcome, _ = change(users, Delete(["a", "a"]))
    assert (outcome.pairs_deleted, outcome.pairs_total) == (1, 1)


def everything_of(users: UserRepository, clock: Clock) -> StoredUser:
    """A user of whom every table holds something; version 3 was made from nothing secret."""
    secret = [new_pair(name, retained=f"text of {name}".encode()) for name in ("secret-1", "secret-2")]
    adapt(users, secret, key=Idempotency("k1", b"1"))
    adapt(users, [new_pair("secret-1", k=5)], heads="heads-b")
    clock.move(1)
    adapt(users, [new_pair("public")], mode="replace", key=Idempotency("k2", b"2"))
    _, user = adapt(users, [new_pair("secret-2")])
    return user


@pytest.mark.parametrize(
    ("what", "left"),
    [(Delete(["secret-1", "secret-2"]), ["pairs.pair_id"]), (Reset(True), [])],
    ids=["delete", "forget"],
)
def test_what_is_deleted_leaves_no_trace_and_nothing_computed_from_it(
    database: Database, what: Change, left: list[str]
) -> None:
    clock = Clock()
    users = repository(database, clock=clock)
    everything_of(users, clock)
    contents = [bytes(new_pair(name).content_key) for name in ("secret-1", "secret-2")]
    assert set(traces(database, "secret-", *contents)) == {
        "pair_sources.pair_id",
        "pair_sources.payload",
        "pairs.content_key",
        "pairs.pair_id",
    }
    versions = users.versions("tenant", "ada", None, 10)
    assert versions is not None
    computed = {each.weights_K.tobytes() for each in versions if each.weights_K is not None and each.version != 3}
    assert len(computed) == 3
    digits = [repr(float(np.frombuffer(each)[0])) for each in computed]
    assert traces(database, *digits) == ["idempotency.answer"]

    outcome, user = change(users, what, Idempotency("k3", b"3"))
    assert traces(database, "secret-", "text of", *contents, *computed, *digits) == []
    assert traces(database, "public") == left
    assert user.weights_K.tobytes() not in computed
    versions = users.versions("tenant", "ada", None, 10)
    assert versions is not None
    assert [each.weights_K is None for each in versions] == [False, True, True, True, True]
    # A request from before, sent again, is still not done again.
    replay, _ = adapt(users, [new_pair("secret-1")], key=Idempotency("k1", b"1"))
    assert (replay.replayed, replay.version, replay.weights) == (True, 1, [])
    assert replay.report == {"loss_after": None, "accuracy_before": None}
    again, _ = change(users, what, Idempotency("k3", b"3"))
    assert again == outcome.as_replay()
    back, _ = change(users, Rollback(1))
    assert (back.exact, back.pairs_total) == (False, 0)


def test_erasing_leaves_no_trace(database: Database) -> None:
    clock = Clock()
    users = repository(database, clock=clock)
    users.change("tenant", "grace", Append([new_pair("a")]), seen_from(), None, sum_of_differences)
    user = everything_of(users, clock)
    needles = ("ada", "secret-", "public", user.incarnation)
    found = traces(database, *needles)
    for table in ("users", "pairs", "pair_sources", "versions", "idempotency"):
        assert f"{table}.incarnation" in found
    assert users.erase("tenant", "ada") == user.incarnation
    assert traces(database, *needles) == []
    assert users.export("tenant", "ada") is None
    assert users.get("tenant", "grace") is not None


def test_what_was_replaced_is_kept_until_no_kept_version_needs_it(database: Database) -> None:
    users = repository(database, history_versions=2)
    adapt(users, [new_pair("old", retained=b"its text")])
    change(users, Replace([new_pair("new")]))
    adapt(users, [new_pair("newer")])
    assert traces(database, "old", b"its text") == ["pair_sources.pair_id", "pair_sources.payload", "pairs.pair_id"]
    adapt(users, [new_pair("newest")])
    assert traces(database, "old", b"its text") == []
    # a deployment that turns its history off
    users = repository(database, history_versions=0)
    change(users, Replace([new_pair("last")]))
    assert traces(database, "new") == []
    assert [each.version for each in users.versions("tenant", "ada", None, 10) or []] == [5]


def test_what_does_not_count_any_more_counts_when_it_is_said_again(database: Database) -> None:
    clock = Clock()
    users = repository(database, clock=clock)
    adapt(users, [new_pair("a"), new_pair("b"), new_pair("c")])
    change(users, Reset(False))
    clock.move(60)
    outcome, _ = adapt(users, [new_pair("a"), new_pair("b", content="another")])
    assert (outcome.pairs_stored, outcome.pairs_total) == (2, 2)
    by_id = {each.evidence_id: each for each in users.support("tenant", "ada", seen_from())}
    assert by_id["a"].event_time == clock.now
    # b stands for something else now, for good
    assert by_id["b"].content_key == new_pair("b", content="another").content_key
    back, _ = change(users, Rollback(1))
    assert (live_ids(users), back.exact) == ({"a", "c"}, False)


def test_contradictions_are_named_where_they_stand(database: Database) -> None:
    users = repository(database)
    adapt(users, [new_pair("a")])
    items = [new_pair("a", content="x", field="ratings[3]"), new_pair("b", field="rankings[0]")]
    items.append(new_pair("b", content="y", field="rankings[1]"))
    with pytest.raises(InvalidInput) as refused:
        change(users, Append(items))
    assert [issue.field for issue in refused.value.issues] == ["ratings[3].id", "rankings[1].id"]
    with pytest.raises(InvalidInput) as refused:
        change(users, Replace(items))
    assert [issue.field for issue in refused.value.issues] == ["rankings[1].id"]
    assert live_ids(users) == {"a"}


def test_the_support_set_depends_on_what_was_said_and_on_nothing_else(database: Database) -> None:
    clock = Clock()
    users = repository(database, support_limit=3, clock=clock)
    said = [
        new_pair(name, event_time=clock.now - timedelta(days=days)) for name, days in zip("abcde", AGES, strict=True)
    ]
    seen = set()
    for number, order in enumerate(itertools.islice(itertools.permutations(said), 0, 120, 17)):
        for item in order:
            clock.move(1)
            change(users, Append([item]), user=f"user-{number}")
        support = users.support("tenant", f"user-{number}", seen_from())
        seen.add(tuple((each.evidence_id, each.event_time) for each in support))
    assert len(seen) == 1
    assert [evidence_id for evidence_id, _ in seen.pop()] == ["d", "b", "e"]
    # A time in the future says when something was said, not when the user was last changed.
    _, user = change(users, Append([new_pair("future", event_time=clock.now + timedelta(days=365))]))
    assert user.updated_at == clock.now


def test_replacing_keeps_the_times_of_what_stays_unless_they_are_said(database: Database) -> None:
    clock = Clock()
    users = repository(database, clock=clock)
    start = clock.now
    adapt(users, [new_pair("a"), new_pair("b")])
    clock.move(60)
    said = start - timedelta(days=1)
    change(users, Replace([new_pair("a"), new_pair("b", event_time=said), new_pair("c")]))
    times = {each.evidence_id: each.event_time for each in users.support("tenant", "ada", seen_from())}
    assert times == {"a": start, "b": said, "c": clock.now}


def test_evidence_of_every_kind_comes_back_as_it_was_said(database: Database) -> None:
    clock = Clock()
    users = repository(database, clock=clock)
    rating = NewEvidence("r", b"r", "rating", np.arange(3.0), grade=4.5, group=b"g" * 32, retained=b"\0text")
    ranking = NewEvidence("o", b"o", "ranking", np.arange(12.0).reshape(4, 3), ranks=(0, 2, 2, 60_000))
    tie = NewEvidence("t", b"t", "pair", np.ones(3), weight=0.25, tilt=-0.5, source="regenerated")
    seen = []

    def solve(support: object) -> object:
        seen.extend(support)  # type: ignore[call-overload]
        return sum_of_differences([])

    users.change("tenant", "ada", Append([rating, ranking, tie], "feedback"), seen_from(), None, solve)  # type: ignore[arg-type]
    by_id = {each.evidence_id: each for each in seen}
    for said in (rating, ranking, tie):
        stored = by_id[said.evidence_id]
        np.testing.assert_array_equal(stored.base_rewards, said.base_rewards)
        for name in ("content_key", "kind", "grade", "ranks", "group", "weight", "tilt", "source"):
            assert getattr(stored, name) == getattr(said, name)
        assert (stored.event_time, stored.heads_id, stored.carried, stored.live) == (clock.now, HEADS, False, True)
    versions = users.versions("tenant", "ada", None, 1)
    assert versions is not None
    assert versions[0].cause == "feedback"
    page = users.evidence("tenant", "ada", "o", 1)
    assert page is not None
    assert [(each.evidence_id, retained) for each, retained in page] == [("r", b"\0text")]
    for broken in (np.array([1.0, np.nan, 0.0]), np.array([[1.0, np.inf, 0.0]])):
        with pytest.raises(EngineError):
            change(users, Append([NewEvidence("n", b"n", "ranking", broken, ranks=(0,))]))


def test_a_view_sees_its_own_heads_first_then_the_best_map_and_counts_what_it_cannot_see(database: Database) -> None:
    clock = Clock()
    users = repository(database, support_limit=4, clock=clock)
    for heads, names in (("old", "ab"), ("older", "abc"), ("unknown", "abx"), (HEADS, "ad")):
        clock.move(1)
        change_under = seen_from(heads)
        users.change(
            "tenant", "ada", Append([new_pair(n) for n in names]), change_under, None, lambda _: sum_of_differences([])
        )
    maps = {"old": np.eye(3) * 10, "older": np.eye(3) * 100}
    support = users.support_set("tenant", "ada", seen_from(maps=maps))
    seen = {each.evidence_id: (each.heads_id, each.carried) for each in support.evidence}
    assert seen == {"a": (HEADS, False), "d": (HEADS, False), "b": ("old", True), "c": ("older", True)}
    by_id = {each.evidence_id: each for each in support.evidence}
    np.testing.assert_array_equal(by_id["b"].base_rewards, new_pair("b").base_rewards * 10)
    np.testing.assert_array_equal(by_id["c"].base_rewards, new_pair("c").base_rewards * 100)
    # said once, however often it was measured
    assert by_id["a"].event_time == by_id["b"].event_time == clock.now - timedelta(seconds=3)
    assert (support.total, support.left_out) == (4, 1)
    outcome, _ = users.change("tenant", "ada", Append([new_pair("e")]), seen_from(maps=maps), None, sum_of_differences)
    assert (outcome.pairs_total, outcome.carried, outcome.left_out) == (5, 2, 1)
    alone = users.support_set("tenant", "ada", seen_from())
    assert ({each.evidence_id for each in alone.evidence}, alone.total, alone.left_out) == ({"a", "d", "e"}, 3, 3)


def test_kept_answers_of_the_version_before_are_read_and_it_reads_ours(database: Database) -> None:
    users = repository(database)
    key = Idempotency("key", b"1")
    outcome, _ = adapt(users, [new_pair("a")], key=key)
    names = {"user_id", "incarnation", "version", "checkpoint_id", "weights", "report", "replayed"}
    names |= {"pairs_received", "pairs_stored", "pairs_total"}
    assert orjson.loads(outcome.to_json()).keys() == names
    with database.engine.connect() as connection:
        assert connection.execute(text("SELECT answer FROM idempotency")).scalar_one() == outcome.to_json()
    assert ChangeOutcome.from_json(outcome.to_json()) == outcome
    back, _ = change(users, Rollback(1))
    assert ChangeOutcome.from_json(back.to_json()) == back


def test_an_export_is_of_one_moment(database: Database, database_url: str) -> None:
    elsewhere = open_database(database_url)
    users, other = repository(database), repository(elsewhere)
    adapt(users, [new_pair("a", retained=b"text")], key=Idempotency("key", b"1"))
    changed: list[str] = []

    def between(_c: object, _cursor: object, statement: str, *_rest: object) -> None:
        if "FROM pairs" in statement and not changed:  # the user has been read, the rest has not
            changed.append(statement)
            other.change("tenant", "ada", Replace([new_pair("b")]), seen_from(), None, sum_of_differences)
            other.erase("tenant", "ada")

    event.listen(database.engine, "before_cursor_execute", between)
    export = users.export("tenant", "ada")
    event.remove(database.engine, "before_cursor_execute", between)
    assert changed
    assert export is not None
    assert (export.user.version, [each.version for each in export.versions]) == (1, [1])
    assert [(each.evidence_id, each.live) for each in export.evidence] == [("a", True)]
    assert export.retained == {"a": b"text"}
    assert [each.key for each in export.answers] == ["key"]
    assert users.export("tenant", "ada") is None
    elsewhere.close()


def test_two_hundred_changes_from_two_databases_at_once_keep_versions_1_to_200(
    database: Database, database_url: str
) -> None:
    other = open_database(database_url, pool_size=WRITERS, statement_timeout_s=30.0)
    both = [repository(database, support_limit=1000), repository(other, support_limit=1000)]
    adapt(both[0], [new_pair("0")])

    def write(i: int) -> int:
        return adapt(both[i % 2], [new_pair(f"{i}")])[0].version

    with ThreadPoolExecutor(WRITERS) as pool:
        versions = list(pool.map(write, range(1, CHANGES)))
    assert sorted(versions) == list(range(2, CHANGES + 1))
    assert live_ids(both[0]) == {f"{i}" for i in range(CHANGES)}
    kept = both[1].versions("tenant", "ada", None, 100)
    assert kept is not None
    assert [(each.version, each.pairs) for each in kept] == [(n, n) for n in range(CHANGES, CHANGES - 21, -1)]
    other.close()


def test_changes_of_every_kind_at_once_end_in_one_order(database: Database, database_url: str) -> None:
    other = open_database(database_url, pool_size=WRITERS, statement_timeout_s=30.0)
    both = [repository(database, history_versions=5), repository(other, history_versions=5)]
    adapt(both[0], [new_pair("0")])
    kinds: list[Callable[[int], Change]] = [
        lambda i: Append([new_pair(f"{i}")]),
        lambda i: Replace([new_pair("0"), new_pair(f"{i}")]),
        lambda i: Reset(False),
        lambda i: Rollback(1 + i // 2),
        lambda i: Delete(["0"]),
    ]

    def write(i: int) -> ChangeOutcome | None:
        try:
            return change(both[i % 2], kinds[i % len(kinds)](i))[0]
        except (Conflict, NotFound):  # of a version or an id that is not kept any more
            return None

    with ThreadPoolExecutor(WRITERS) as pool:
        outcomes = [each for each in pool.map(write, range(60)) if each is not None]
    assert sorted(each.version for each in outcomes) == list(range(2, len(outcomes) + 2))
    last = max(outcomes, key=lambda each: each.version)
    support = both[0].support("tenant", "ada", seen_from())
    assert len(support) == last.pairs_total
    np.testing.assert_allclose(sum_of_differences(support).weights_K, last.weights, rtol=1e-12)
    other.close()
