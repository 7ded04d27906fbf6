"""Carrying many users to another checkpoint, and which checkpoint serves."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from storing import HEADS, Clock, adapt, new_pair, repository, seen_from, sum_of_differences

from service.errors import Conflict, EngineError
from service.store import Append, Database, Delete, HeadsView, NewEvidence, Reset, ServingRepository
from service.store.carry_over import CarryOver


@pytest.fixture
def database_url(emptied_url: str) -> str:
    """One database for all tests of this module."""
    return emptied_url


def test_pages_hold_those_of_other_checkpoints_and_end(database: Database) -> None:
    users, carry = repository(database), CarryOver(database, 100)
    lives = {}
    for i in range(7):
        _, user = adapt(users, [new_pair("a")], user=f"{i}", checkpoint="new" if i in (1, 4, 5) else "old")
        lives[user.incarnation] = user.user_id
    found, after, pages = [], 0, 0
    while after is not None:
        page, after = carry.page("new", after, 2)
        found += [user.user_id for user in page]
        pages += 1
    assert (found, pages) == (["0", "2", "3", "6"], 5)
    assert [user.user_id for user in carry.page("old", min(lives), 100)[0]] == ["1", "4", "5"]


def test_supports_of_many_are_those_of_each(database: Database) -> None:
    clock = Clock()
    users, carry = repository(database, support_limit=3, clock=clock), CarryOver(database, 3)
    maps = {"old": np.eye(3) * 10, "older": np.eye(3) * 100}
    view = seen_from(maps=maps)
    rating = NewEvidence("r", b"r", "rating", np.ones(3), grade=2.0)
    said = {
        "plain": [(HEADS, ["a", "b"])],
        "mapped": [("old", ["a", "b"])],
        "some measured again": [("old", ["a", "b"]), (HEADS, ["b"])],
        "too many": [(HEADS, "abcde")],
        "best map": [("older", ["a", "b"]), ("old", ["b"])],
        "left out": [("unknown", ["a"])],
    }
    lives, names = [], [*said, "rated", "reset"]
    for name, parts in said.items():
        for heads, ids in parts:
            clock.move(1)
            items = [new_pair(each) for each in ids]
            _, user = users.change(
                "tenant", name, Append(items), seen_from(heads), None, lambda _: sum_of_differences([])
            )
        lives.append(user.incarnation)
    _, user = adapt(users, [new_pair("a"), rating], user="rated")
    lives.append(user.incarnation)
    adapt(users, [new_pair("a")], user="reset")
    _, user = users.change("tenant", "reset", Reset(False), view, None, sum_of_differences)
    lives.append(user.incarnation)

    supports = carry.supports(lives, view)
    assert (np.diff(supports.user_P) >= 0).all()
    for place, name in enumerate(names):
        wanted = users.support("tenant", name, view)
        assert supports.carried_U[place] == any(each.carried for each in wanted)
        assert supports.total_U[place] == users.support_set("tenant", name, view).total
        if name == "rated":
            assert {each.evidence_id for each in supports.others.pop(place)} == {"a", "r"}
            continue
        mine = supports.user_P == place
        found = sorted(zip(supports.diffs_PK[mine].tolist(), supports.seconds_P[mine], strict=True))
        assert found == sorted((each.base_rewards.tolist(), each.event_time.timestamp()) for each in wanted)
    assert supports.others == {}
    assert len(carry.supports([], view).user_P) == 0


def test_who_changed_meanwhile_keeps_what_the_change_gave(database: Database) -> None:
    users, carry = repository(database), CarryOver(database, 100)
    for name in "abcd":
        adapt(users, [new_pair("x")], user=name)
    page, _ = carry.page("new", 0, 100)
    _, changed = adapt(users, [new_pair("y")], user="b")
    users.erase("tenant", "c")
    lives = np.array([user.incarnation for user in page])
    versions = np.array([user.version for user in page])
    pairs = np.arange(7, 11)
    weights_UK, factors_UF = np.arange(12.0).reshape(4, 3), np.arange(24.0).reshape(4, 6)
    with pytest.raises(EngineError):
        carry.write("new", "heads-new", "map", lives, versions, pairs, weights_UK * np.nan, None)
    assert carry.write("new", "heads-new", "map", lives, versions, pairs, weights_UK, factors_UF) == 2
    for place, name in ((0, "a"), (3, "d")):
        user = users.get("tenant", name)
        assert user is not None
        assert (user.version, user.checkpoint_id, user.heads_id, user.carried) == (1, "new", "heads-new", "map")
        assert user.pairs == 7 + place
        assert user.weights_K.tobytes() == weights_UK[place].tobytes()
        assert user.factor is not None
        assert user.factor.tobytes() == factors_UF[place].tobytes()
        assert user.updated_at == page[place].updated_at
    user = users.get("tenant", "b")
    assert user is not None
    assert (user.version, user.checkpoint_id) == (2, changed.checkpoint_id)
    assert user.weights_K.tobytes() == changed.weights_K.tobytes()
    assert [each.user_id for each in carry.page("new", 0, 100)[0]] == ["b"]
    assert carry.write("newer", "heads-new", None, lives[:1], versions[:1], pairs[:1], weights_UK[:1], None) == 1
    user = users.get("tenant", "a")
    assert user is not None
    assert (user.carried, user.factor) == (None, None)
    # What is kept of the version is what served; the change solves anew.
    adapt(users, [], user="a")
    kept = users.versions("tenant", "a", None, 10)
    assert kept is not None
    assert [(each.version, each.checkpoint_id) for each in kept] == [(2, "checkpoint-a"), (1, "newer")]
    assert carry.write("new", "heads-new", None, lives[:0], versions[:0], pairs[:0], weights_UK[:0], None) == 0


def test_what_is_retained_can_be_measured_again(database: Database) -> None:
    clock = Clock()
    users, carry = repository(database, clock=clock), CarryOver(database, 100)
    pairs = [new_pair("a", retained=b"text of a"), new_pair("b", strength=2.0), new_pair("c", retained=b"text of c")]
    _, user = adapt(users, pairs)
    said_at = clock.now
    clock.move(1)
    users.change("tenant", "ada", Delete(["c"]), seen_from(), None, sum_of_differences)
    life = user.incarnation
    keys = {each.evidence_id: each.content_key for each in pairs} | {"never said": b"never"}
    numbers = {"a": np.ones(5), "b": np.zeros(5), "c": np.ones(5), "never said": np.ones(5)}
    measured = {(name, keys[name]): value for name, value in numbers.items()}
    assert carry.add_measured(life, "heads-b", measured) == 2
    assert carry.add_measured(life, "heads-b", measured) == 0
    assert carry.add_measured(life + 1, "heads-b", measured) == 0
    with pytest.raises(EngineError):
        carry.add_measured(life, "heads-c", {("a", keys["a"]): np.array([np.inf])})
    support = users.support("tenant", "ada", HeadsView("new", "heads-b", 5, {}))
    assert {each.evidence_id: (each.grade, each.base_rewards.tolist()) for each in support} == {
        "a": (None, [1.0] * 5),
        "b": (2.0, [0.0] * 5),
    }
    assert {each.event_time for each in support} == {said_at}
    # What is replaced ceases to count under all heads, and comes back under all.
    adapt(users, [], mode="replace")
    assert users.support("tenant", "ada", HeadsView("new", "heads-b", 5, {})) == []
    adapt(users, [new_pair("a")])
    assert len(users.support("tenant", "ada", HeadsView("new", "heads-b", 5, {}))) == 1


def test_what_serves_is_one_row_with_a_way_back(database: Database) -> None:
    clock = Clock()
    serving = ServingRepository(database, clock=clock)
    assert serving.get() is None
    for impossible in (serving.rollback, lambda: serving.shadow("b")):
        with pytest.raises(Conflict, match="activate one first"):
            impossible()
    first = serving.begin("a")
    assert (first.active, first.previous, first.shadow, first.generation) == ("a", None, None, 1)
    assert first == serving.begin("other") == serving.get() == serving.activate("a")
    with pytest.raises(Conflict, match="No checkpoint served before"):
        serving.rollback()
    clock.move(1)
    assert serving.shadow("b").shadow == "b"
    with pytest.raises(Conflict, match="is active"):
        serving.shadow("a")
    row = serving.activate("b")  # a shadow that is activated has no shadow any more
    assert (row.active, row.previous, row.shadow, row.generation, row.changed_at) == ("b", "a", None, 3, clock.now)
    row = serving.rollback()
    assert (row.active, row.previous, row.generation) == ("a", "b", 4)
    assert serving.shadow(None) == row == serving.get()


def test_activations_at_once_follow_one_another(database: Database) -> None:
    serving = ServingRepository(database)
    with ThreadPoolExecutor(8) as pool:
        rows = list(pool.map(lambda i: serving.activate(f"checkpoint-{i}"), range(24)))
    rows.sort(key=lambda row: row.generation)
    assert [row.generation for row in rows] == list(range(1, 25))
    assert [row.previous for row in rows] == [None, *(row.active for row in rows[:-1])]
    assert serving.get() == rows[-1]


def test_what_an_id_stood_for_is_not_measured_for_what_it_stands_for_now(database: Database) -> None:
    users, carry = repository(database), CarryOver(database, 100)
    before = new_pair("a", retained=b"text of a")
    _, user = adapt(users, [before, new_pair("b")])
    users.change("tenant", "ada", Delete(["a"]), seen_from(), None, sum_of_differences)
    adapt(users, [new_pair("a", content="something else")])
    assert carry.add_measured(user.incarnation, "heads-b", {("a", before.content_key): np.ones(3)}) == 0
    assert users.support("tenant", "ada", HeadsView("new", "heads-b", 3, {})) == []
