"""Changes of what a user said against a model of them: sets of statements, snapshots of sets, nothing of SQL."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
from sqlalchemy import text
from storing import Clock, repository, seen_from

from service.errors import Conflict, InvalidInput, NotFound
from service.store import (
    Append,
    Change,
    ChangeOutcome,
    Database,
    Delete,
    NewEvidence,
    Replace,
    Reset,
    Rollback,
    Solution,
    StoredEvidence,
    StoredUser,
    UserRepository,
)
from service.store.serials import Serials

IDS = "abcdefg"


@pytest.fixture
def database_url(emptied_url: str) -> str:
    """One database for all tests of this module."""
    return emptied_url


def said(evidence_id: str, content: int) -> NewEvidence:
    # whole numbers, so that sums do not depend on their order
    number = float(IDS.index(evidence_id) * 10 + content)
    key = f"{evidence_id}{content}".encode()
    return NewEvidence(evidence_id, key, "pair", np.array([number, 1.0, 2.0**content]), retained=key)


def total(support: Sequence[StoredEvidence]) -> Solution:
    return Solution(np.sum([np.zeros(3), *(each.base_rewards for each in support)], axis=0), None, {})


def change(users: UserRepository, what: Change) -> tuple[ChangeOutcome, StoredUser]:
    return users.change("tenant", "ada", what, seen_from(), None, total)


@dataclass
class Model:
    """What a user said. A statement is (id, content, a number that tells one from an earlier one of that name)."""

    history: int
    live: dict[str, tuple[str, int, int]] = field(default_factory=dict)
    rows: dict[str, tuple[str, int, int]] = field(default_factory=dict)
    versions: dict[int, set[tuple[str, int, int]]] = field(default_factory=dict)
    weights: dict[int, bytes] = field(default_factory=dict)
    version: int = 0
    count: int = 0

    def store(self, items: Sequence[tuple[str, int]]) -> None:
        for evidence_id, content in items:
            row = self.rows.get(evidence_id)
            if row is None or row[1] != content:
                self.count += 1
                row = (evidence_id, content, self.count)
                self.rows[evidence_id] = row
            self.live[evidence_id] = row

    def contradicts(self, items: Sequence[tuple[str, int]], *, replaces: bool) -> bool:
        contents = {} if replaces else {each: row[1] for each, row in self.live.items()}
        return any(contents.setdefault(each, content) != content for each, content in items)

    def commit(self, weights: bytes) -> None:
        self.version += 1
        self.versions[self.version] = set(self.live.values())
        self.weights[self.version] = weights
        for version in [each for each in self.versions if each < self.version - self.history]:
            del self.versions[version]
        kept = set(self.live.values()).union(*self.versions.values())
        self.rows = {each: row for each, row in self.rows.items() if row in kept}


def step(rng: random.Random, users: UserRepository, model: Model) -> None:
    """One random change, made to both and compared."""
    items = [(each, rng.choice((0, 0, 0, 1))) for each in rng.choices(IDS, k=rng.randint(0, 5))]
    match rng.choice(("append", "append", "append", "replace", "replace", "delete", "rollback", "rollback", "reset")):
        case "append" | "replace" as kind:
            new = [said(*item) for item in items]
            what = Append(new) if kind == "append" else Replace(new)
            if model.contradicts(items, replaces=kind == "replace"):
                with pytest.raises(InvalidInput, match="already stands for another"):
                    change(users, what)
                return
            before = set(model.live.values())
            if kind == "replace":
                model.live = {}
            model.store(items)
            outcome, user = change(users, what)
            assert outcome.pairs_received == len(items)
            assert outcome.pairs_stored == len(set(model.live.values()) - before)
            assert outcome.pairs_deleted == len(before - set(model.live.values()))
            exact = None
        case "delete":
            ids = sorted({each for each, _ in items} or {"a"})
            if not model.version or not set(ids) <= model.rows.keys():
                with pytest.raises(NotFound):
                    change(users, Delete(ids))
                return
            for each in ids:
                row = model.rows.pop(each)
                model.live.pop(each, None)
                for snapshot in model.versions.values():
                    snapshot.discard(row)
            outcome, user = change(users, Delete(ids))
            assert outcome.pairs_deleted == len(ids)
            model.weights, exact = {}, None
        case "rollback":
            version = rng.randint(max(1, model.version - model.history - 1), max(1, model.version))
            if version not in model.versions:
                with pytest.raises((Conflict, NotFound), match=r"kept|No such user"):
                    change(users, Rollback(version))
                return
            wanted = {row for row in model.versions[version] if row in model.rows.values()}
            model.live = {row[0]: row for row in wanted}
            outcome, user = change(users, Rollback(version))
            exact = model.weights.get(version) == user.weights_K.tobytes()
        case _:
            if not model.version:
                return
            forget = rng.random() < 0.3
            outcome, user = change(users, Reset(forget))
            assert outcome.pairs_deleted == len(model.live)
            model.live, exact = {}, None
            if forget:
                model.rows, model.weights = {}, {}
                model.versions = {version: set() for version in model.versions}
    model.commit(user.weights_K.tobytes())
    assert (outcome.version, outcome.exact) == (model.version, exact)
    assert user.weights_K.tobytes() == total([]).weights_K.tobytes() or model.live
    np.testing.assert_array_equal(user.weights_K, total_of(model))
    assert (outcome.pairs_total, outcome.left_out, outcome.carried) == (len(model.live), 0, 0)


def total_of(model: Model) -> np.ndarray:
    return np.sum(
        [np.zeros(3), *(said(each, content).base_rewards for each, content, _ in model.live.values())], axis=0
    )


def compare(database: Database, users: UserRepository, model: Model) -> None:
    stored = users.evidence("tenant", "ada", None, 100)
    assert stored is not None
    assert {each.evidence_id: (each.content_key.decode(), retained) for each, retained in stored} == {
        each: (f"{each}{content}", f"{each}{content}".encode()) for each, content, _ in model.rows.values()
    }
    assert {each.evidence_id for each, _ in stored if each.live} == set(model.live)
    with database.engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM pair_sources")).scalar_one() == len(model.rows)
    versions = users.versions("tenant", "ada", None, 100)
    assert versions is not None
    assert [each.version for each in versions] == sorted(model.versions, reverse=True)
    for each in versions:
        assert (None if each.weights_K is None else each.weights_K.tobytes()) == model.weights.get(each.version)
    with database.engine.connect() as connection:
        packed, end = connection.execute(text("SELECT live, next_serial FROM users")).one()
        counts = Serials.below(end) if packed is None else Serials.unpack(packed)
        for serial, live in connection.execute(text("SELECT serial, live FROM pairs")):
            assert bool(live) is (serial in counts)
            assert 0 <= serial < end


def _before_serials(database: Database) -> None:
    """Leave rows as a migration from the version before finds and leaves them."""
    with database.engine.begin() as connection:
        connection.execute(text("UPDATE pairs SET serial = 0"))
        connection.execute(text("UPDATE users SET next_serial = 1, live = NULL"))


@pytest.mark.parametrize(("seed", "history"), [(1, 0), (2, 1), (3, 4)])
def test_any_changes_are_those_of_a_model_with_sets(database: Database, seed: int, history: int) -> None:
    rng, model = random.Random(f"{seed} {history}"), Model(history)
    clock = Clock()
    users = repository(database, history_versions=history, clock=clock)
    # The first statements are as the version before there were serials stored them: nobody can tell one from the other.
    first = [(each, 0) for each in "abcd"]
    model.store(first)
    _, user = change(users, Append([said(*item) for item in first]))
    model.commit(user.weights_K.tobytes())
    _before_serials(database)
    for _ in range(35):
        clock.move(1)
        step(rng, users, model)
        compare(database, users, model)
    assert model.version > 15


def test_statements_of_before_serials_part_in_every_version_that_they_counted_in(database: Database) -> None:
    users = repository(database)
    change(users, Append([said("a", 0), said("b", 0)]))
    _before_serials(database)
    change(users, Append([said("c", 0)]))
    change(users, Replace([said("a", 0)]))
    for version, ids in ((1, {"a", "b"}), (3, {"a"}), (2, {"a", "b", "c"})):
        outcome, _ = change(users, Rollback(version))
        assert outcome.exact
        assert {each.evidence_id for each in users.support("tenant", "ada", seen_from())} == ids


@pytest.mark.parametrize("upgraded", [True, False])
def test_what_an_earlier_version_of_the_program_stores_meanwhile_counts_and_can_be_gone_back_to(
    database: Database, upgraded: bool
) -> None:
    users = repository(database)
    change(users, Append([said("a", 0), said("b", 0)]))
    if upgraded:
        _before_serials(database)
    change(users, Replace([said("c", 0)]))
    with database.engine.begin() as connection:
        # as it appends: without serials, and without a version of the history
        connection.execute(
            text(
                "INSERT INTO pairs (incarnation, pair_id, heads_id, tenant_id, content_key, diff, strength, event_time)"
                " SELECT incarnation, 'x' || pair_id, heads_id, tenant_id, content_key, diff, 1.0, event_time"
                " FROM pairs WHERE pair_id IN ('a', 'b')"
            )
        )
        connection.execute(text("UPDATE users SET version = 3"))
    outcome, _ = change(users, Append([said("d", 0)]))
    assert (outcome.version, outcome.pairs_total) == (4, 4)
    change(users, Replace([]))
    outcome, _ = change(users, Rollback(3))
    assert (outcome.pairs_stored, outcome.pairs_total) == (3, 3)
    change(users, Rollback(1))
    stored = users.support("tenant", "ada", seen_from())
    # Where nothing was stored without a serial before, what is so stored later is not told from it.
    assert {each.evidence_id for each in stored} == {"a", "b"} | (set() if upgraded else {"xa", "xb"})
