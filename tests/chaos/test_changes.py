"""Any sequence of changes of users, from any checkpoint, against a model that keeps everything in plain Python."""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from chaos.conftest import FULL
from chaos.user_model import HEADS, Answer, Item, Missing, NotKept, Refused, UserModel, View, support_of, weights_of
from service.errors import Conflict, InvalidInput, NotFound
from service.mrm.state import GaussianStart
from service.store import (
    Append,
    Change,
    ChangeOutcome,
    Database,
    Delete,
    HeadsView,
    Idempotency,
    NewEvidence,
    Replace,
    Reset,
    Rollback,
    Solution,
    StoredEvidence,
    UserRepository,
)

# Hypothesis ends most runs before the longest.
STEPS, RUNS, LONGEST = (10_000, 130, 100) if FULL else (300, 6, 60)
LIMIT, HISTORY = 6, 4
BEGIN = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
EXACT = 1e-12


def view(checkpoint_id: str, heads_id: str, *mapped: str) -> View:
    draws = np.random.default_rng([*checkpoint_id.encode()])
    heads = HEADS[heads_id]
    start = GaussianStart(draws.normal(size=heads), np.diag(draws.uniform(0.5, 2.0, heads)), rating_gain=0.5)
    return View(checkpoint_id, heads_id, {each: draws.normal(size=(heads, HEADS[each])) for each in mapped}, start)


# Two of the same heads; maps there and back; one that knows a way from some heads only.
VIEWS = {
    each.checkpoint_id: each
    for each in (
        view("one", "heads-a", "heads-b", "heads-d"),
        view("two", "heads-b", "heads-a"),
        view("same-heads", "heads-a"),
        view("far", "heads-d", "heads-b"),
    )
}
# The first is in use more often than the others, so that there is something to go back to.
CHECKPOINTS = st.sampled_from(["one", "one", "one", *VIEWS])
IDS = [f"{kind}{i}" for kind in "pro" for i in range(4)]
TIMES = st.one_of(st.none(), st.none(), st.integers(-5, 60).map(lambda s: BEGIN + timedelta(seconds=s)))
ITEMS = st.lists(st.builds(Item, st.sampled_from(IDS), st.sampled_from([0, 0, 0, 1]), TIMES), max_size=4)
# A key of its own for most requests that have one.
KEYS = st.one_of(st.none(), st.integers(1, 10**6).map(str), st.integers(1, 10**6).map(str), st.just("used"))
NAMES = st.sampled_from(["ada", "ada", "ada", "grace"])

taken: Counter[str] = Counter()
machines = itertools.count()


class Changes(RuleBasedStateMachine):
    """Two users, everything that can happen to them, and what must be stored then."""

    def __init__(self, database: Database) -> None:
        super().__init__()
        self._database = database
        self._tenant = f"tenant-{next(machines)}"
        self._now = BEGIN
        self._models: dict[str, UserModel] = {}
        self._keyed: list[tuple[str, str, Change, str]] = []
        self._history = HISTORY
        self._users = UserRepository(database, LIMIT, 1e6, history_versions=HISTORY)

    @initialize(history=st.sampled_from([HISTORY, HISTORY, HISTORY, 0]), items=ITEMS, more=ITEMS)
    def begin(self, history: int, items: list[Item], more: list[Item]) -> None:
        self._history = history
        self._users = UserRepository(self._database, LIMIT, 1e6, history_versions=history, clock=lambda: self._now)
        self.append("ada", items, "one", None, "adapt")
        self.append("ada", more, "two", None, "adapt")

    # Most of what happens: a run leaves rules out by chance, and seldom both.
    @rule(name=NAMES, items=ITEMS)
    def adapt(self, name: str, items: list[Item]) -> None:
        self.append(name, items, "one", None, "adapt")

    @rule(name=NAMES, items=ITEMS, checkpoint=CHECKPOINTS, key=KEYS, cause=st.sampled_from(["adapt", "feedback"]))
    def append(self, name: str, items: list[Item], checkpoint: str, key: str | None, cause: str) -> None:
        from_here = VIEWS[checkpoint]
        change = Append(_new(items, from_here), cause)
        self._change(name, change, from_here, key, lambda model: model.append(items, self._now, from_here, cause))

    @rule(name=NAMES, items=ITEMS, checkpoint=CHECKPOINTS, key=KEYS)
    def replace(self, name: str, items: list[Item], checkpoint: str, key: str | None) -> None:
        from_here = VIEWS[checkpoint]
        change = Replace(_new(items, from_here))
        self._change(name, change, from_here, key, lambda model: model.replace(items, self._now, from_here))

    @rule(name=NAMES, checkpoint=CHECKPOINTS, key=KEYS, data=st.data())
    def delete(self, name: str, checkpoint: str, key: str | None, data: st.DataObject) -> None:
        stored = sorted(self._models[name].statements) if name in self._models else []
        some = st.lists(st.sampled_from(stored or IDS), min_size=1, max_size=2)
        ids = data.draw(st.one_of(some, some, some, st.lists(st.sampled_from(IDS), min_size=1, max_size=2)))
        from_here = VIEWS[checkpoint]
        self._change(name, Delete(ids), from_here, key, lambda model: model.delete(ids, self._now, from_here))

    @rule(name=NAMES, key=KEYS, data=st.data())
    def rollback(self, name: str, key: str | None, data: st.DataObject) -> None:
        kept = self._models[name].versions if name in self._models else {}
        some = st.sampled_from(sorted(kept) or [1])
        version = data.draw(st.one_of(some, some, some, st.integers(-1, 30)))
        there = st.just(kept[version].checkpoint_id) if version in kept else CHECKPOINTS
        from_here = VIEWS[data.draw(st.one_of(there, there, CHECKPOINTS))]
        change = Rollback(version)
        self._change(name, change, from_here, key, lambda model: model.rollback(version, self._now, from_here))

    @rule(name=NAMES, how=st.sampled_from(["reset", "reset", "forget"]), checkpoint=CHECKPOINTS, key=KEYS)
    def reset(self, name: str, how: str, checkpoint: str, key: str | None) -> None:
        from_here, forget = VIEWS[checkpoint], how == "forget"
        self._change(name, Reset(forget), from_here, key, lambda model: model.reset(forget, self._now, from_here))

    @precondition(lambda self: max((model.version for model in self._models.values()), default=0) > 2 * HISTORY)
    @rule(name=NAMES)
    def erase(self, name: str) -> None:
        taken["erase"] += 1
        ended = self._users.erase(self._tenant, name)
        assert (ended is None) == (name not in self._models)
        self._models.pop(name, None)

    @precondition(lambda self: self._keyed)
    @rule(which=st.integers(0, 9))
    def again(self, which: int) -> None:
        """A request that was answered is sent again: the same answer, and nothing happens."""
        name, key, change, checkpoint = self._keyed[-1 - which % len(self._keyed)]
        model = self._models.get(name)
        taken["again"] += 1
        # What was erased since took its answers along: the request is a new one.
        if model is None or key not in model.answers or model.answers[key][0] is not change:
            return
        outcome = self._ask(name, change, VIEWS[checkpoint], key)
        assert outcome.replayed
        _compare(outcome, model.answers[key][1])

    def _change(
        self, name: str, change: Change, from_here: View, key: str | None, expect: Callable[[UserModel], Answer]
    ) -> None:
        taken[type(change).__name__] += 1
        self._now += timedelta(seconds=1)
        model = self._models.get(name)
        makes = isinstance(change, Append | Replace)
        try:
            if model is None and not makes:
                raise Missing
            if model is not None and key is not None and key in model.answers:
                raise Refused  # with another body
            model = model or UserModel(self._history, LIMIT)
            answer = expect(model)
        except (Missing, NotKept, Refused) as error:
            taken["refused"] += 1
            with pytest.raises({Missing: NotFound, NotKept: Conflict, Refused: InvalidInput}[type(error)]):
                self._ask(name, change, from_here, key)
            return
        self._models[name] = model
        if key is not None:
            model.answers[key] = change, answer
            self._keyed.append((name, key, change, from_here.checkpoint_id))
        outcome = self._ask(name, change, from_here, key)
        assert not outcome.replayed
        _compare(outcome, answer)
        taken["carried"] += outcome.carried > 0
        taken["left out"] += outcome.left_out > 0
        taken["exact rollbacks"] += bool(outcome.exact)

    def _ask(self, name: str, change: Change, from_here: View, key: str | None) -> ChangeOutcome:
        store_view = HeadsView(from_here.checkpoint_id, from_here.heads_id, from_here.start.heads, from_here.maps)
        # A body is a request: two of the same content are two, as their times differ.
        idempotency = None if key is None else Idempotency(key, hashlib.sha256(str(id(change)).encode()).digest())

        def solved(evidence: Sequence[StoredEvidence]) -> Solution:
            return Solution(weights_of(_support(evidence), from_here.start), None, {"seen": float(len(evidence))})

        outcome, user = self._users.change(self._tenant, name, change, store_view, idempotency, solved)
        assert outcome.replayed or user.weights_K.tolist() == outcome.weights
        return outcome

    @invariant()
    def everything_is_stored_as_the_model_has_it(self) -> None:
        for name in ("ada", "grace"):
            model = self._models.get(name)
            export = self._users.export(self._tenant, name)
            if model is None:
                assert export is None
                continue
            assert export is not None
            assert (export.user.version, export.user.pairs) == (model.version, model.versions[model.version].total)
            rows = {(each.evidence_id, each.heads_id): each for each in export.evidence}
            assert set(rows) == {(each, heads) for each, said in model.statements.items() for heads in said.under}
            for (evidence_id, heads_id), row in rows.items():
                said = model.statements[evidence_id]
                assert (row.live, row.event_time) == (said.live, said.time)
                assert row.content_key == _content(said.item)
                np.testing.assert_array_equal(row.base_rewards, said.item.measured(heads_id))
            assert export.retained == {
                each: _retained(said.item) for each, said in model.statements.items() if said.item.kind != "rating"
            }
            assert [(each.version, each.cause, each.current) for each in export.versions] == [
                (number, version.cause, number == model.version)
                for number, version in sorted(model.versions.items(), reverse=True)
            ]
            for each in export.versions:
                expected = model.versions[each.version]
                assert (each.checkpoint_id, each.pairs) == (expected.checkpoint_id, expected.total)
                assert (each.weights_K is None) == (expected.weights is None)
                if each.weights_K is not None and expected.weights is not None:
                    np.testing.assert_allclose(each.weights_K, expected.weights, rtol=0, atol=EXACT)
            assert {answer.key for answer in export.answers} == set(model.answers)


def _new(items: Sequence[Item], from_here: View) -> list[NewEvidence]:
    return [
        NewEvidence(
            item.evidence_id,
            _content(item),
            item.kind,  # type: ignore[arg-type]
            item.measured(from_here.heads_id),
            grade=item.grade,
            ranks=item.ranks,
            weight=item.weight,
            tilt=item.tilt,
            event_time=item.time,
            retained=_retained(item) if item.kind != "rating" else None,
        )
        for item in items
    ]


def _content(item: Item) -> bytes:
    return hashlib.sha256(f"{item.evidence_id} {item.meaning}".encode()).digest()


def _retained(item: Item) -> bytes:
    return f"the text of {item.evidence_id}, {item.meaning}".encode()


def _support(evidence: Sequence[StoredEvidence]) -> object:
    return support_of(
        (each.kind, each.base_rewards, each.grade, each.ranks, each.weight, each.tilt) for each in evidence
    )


def _compare(outcome: ChangeOutcome, answer: Answer) -> None:
    assert outcome.version == answer.version
    assert (outcome.cause, outcome.checkpoint_id) == (answer.cause, answer.checkpoint_id)
    assert (outcome.pairs_received, outcome.pairs_stored, outcome.pairs_deleted) == (
        answer.received,
        answer.stored,
        answer.deleted,
    )
    assert (outcome.pairs_total, outcome.carried, outcome.left_out) == (answer.total, answer.carried, answer.left_out)
    assert outcome.exact == answer.exact
    np.testing.assert_allclose(outcome.weights, answer.weights, rtol=0, atol=EXACT)


def steps() -> int:
    """Changes asked for, refused ones included."""
    return sum(taken[each] for each in ("Append", "Replace", "Delete", "Rollback", "Reset", "erase", "again"))


@pytest.mark.timeout(3600)
def test_changes_do_what_the_model_says(database: Database) -> None:
    taken.clear()
    while steps() < STEPS:
        run_state_machine_as_test(
            lambda: Changes(database),
            settings=settings(
                max_examples=RUNS,
                stateful_step_count=LONGEST,
                derandomize=not FULL,
                # Finding the shortest failing run takes minutes.
                phases=[Phase.generate, Phase.shrink] if FULL else [Phase.generate],
                database=None,
                deadline=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
    print(f"\n{database.engine.dialect.name}: {steps()} steps, {dict(taken)}")
    for each in ("refused", "carried", "left out", "exact rollbacks", "again", "erase"):
        assert taken[each], each
