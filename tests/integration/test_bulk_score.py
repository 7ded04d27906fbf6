"""Scoring rows without end, over real stores and a toy engine."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from operating import Operations, told, user_says

from service.datasets.candidates import Candidates, Rejected
from service.datasets.line_source import Mark
from service.errors import EngineError, Overloaded, TemporaryError
from service.operations.bulk_score import BulkScore, Patience, ScoredLine, StoredPeople
from service.operations.few_shot import adapt_in_memory
from service.operations.said import PreferencePair
from service.operations.score import ScoreItem
from service.store import open_database

TENANT = "t"
CHOICES = [
    PreferencePair(user_says("p"), f"good {i}", f"bad {i}", strength, None) for i, strength in enumerate([None, 2.0])
]
TOO_LONG = "x" * 100


@pytest.fixture
def operations(sqlite_url: str) -> Iterator[Operations]:
    database = open_database(sqlite_url)
    made = Operations(database)
    asyncio.run(made.adapt(TENANT, "ada", told(CHOICES), mode="append", truncate=False))
    made.engine.texts.clear()
    yield made
    database.close()


def row(line: int, *completions: str, user_id: str | None = None) -> Candidates:
    return Candidates(line, (("user", "q"),), completions, user_id, b"{}", b"row", Mark(line, line, ""))


def bulk(operations: Operations, users: Sequence[str | None] = (None,), **options: Any) -> BulkScore:
    patience = options.pop("patience", Patience(0.0, lambda *_: None))
    served = operations.serving.active
    people = options.pop("people", None) or StoredPeople(served.users, TENANT, patience, 100)
    options = {"truncate": False, "texts_in_flight": 4, **options}
    return BulkScore(served=served, tenant_id=TENANT, people=people, users=users, patience=patience, **options)


async def collect(scoring: BulkScore, rows: Iterable[Candidates | Rejected]) -> list[ScoredLine | Rejected]:
    return [each async for each in scoring(rows)]


def test_rows_are_scored_as_a_request_would_and_each_text_once(operations: Operations) -> None:
    users = ["ada", None, "nobody-yet"]
    rows = [row(i, f"a{i}", f"b{i}", user_id="ada" if i % 3 == 0 else None) for i in range(1, 200)]
    lines = asyncio.run(collect(bulk(operations, users), rows))
    assert len(operations.engine.texts) == 2 * len(rows)
    wanted = [(each.line, user) for each in rows for user in ([each.user_id] if each.user_id else users)]
    got = [each for each in lines if isinstance(each, ScoredLine)]
    assert [(each.row.line, each.scored.user_id) for each in got] == wanted
    assert [each.last for each in got] == [
        i + 1 == len(wanted) or wanted[i + 1][0] != line for i, (line, _) in enumerate(wanted)
    ]
    items = [ScoreItem(user, user_says("q"), [f"a{line}", f"b{line}"]) for line, user in wanted]
    answer = asyncio.run(operations.score(TENANT, items, truncate=False, return_base_rewards=False))
    assert [each.scored for each in got] == answer.results
    assert {each.scored.standing for each in got} == {"adapted", "population", "cold_start"}


def test_memory_holds_what_is_in_flight_and_no_more(operations: Operations) -> None:
    taken = itertools.count(1)
    most = 0

    async def path() -> None:
        nonlocal most
        last = 0

        def rows() -> Iterator[Candidates]:
            nonlocal most
            for i in range(1, 2001):
                most = max(most, next(taken) - last)
                yield row(i, f"a{i % 7}")

        async for each in bulk(operations, texts_in_flight=256)(rows()):
            assert isinstance(each, ScoredLine)
            last = each.row.line

    asyncio.run(path())
    assert next(taken) == 2001
    assert most <= 256 + 3 * 64


def test_what_cannot_be_scored_is_told_in_its_place_and_its_neighbours_are_scored(operations: Operations) -> None:
    torn = Rejected(2, "not a JSON object on one line", b"{", Mark(2, 2, ""))
    lines = asyncio.run(collect(bulk(operations), [row(1, "a"), torn, row(3, "b", TOO_LONG), row(4, "c")]))
    assert [each.line if isinstance(each, Rejected) else each.row.line for each in lines] == [1, 2, 3, 4]
    assert lines[1] is torn
    assert isinstance(lines[2], Rejected)
    assert lines[2].reason.startswith("completions[1]: ")
    assert (lines[2].content, lines[2].mark.lines) == (b"row", 3)
    (short,) = asyncio.run(collect(bulk(operations, truncate=True), [row(3, "b", TOO_LONG)]))
    assert isinstance(short, ScoredLine)
    assert short.scored.truncated == [1]
    operations.engine.failure = EngineError("the device failed on this text")
    (failed,) = asyncio.run(collect(bulk(operations), [row(1, "never seen")]))
    assert isinstance(failed, Rejected)
    assert failed.reason == "the device failed on this text"


def test_a_busy_engine_is_waited_for_and_not_for_ever(operations: Operations) -> None:
    operations.engine.failure = Overloaded("busy", 0.05)
    waits: list[tuple[TemporaryError, float]] = []

    def on_wait(error: TemporaryError, pause_s: float) -> None:
        waits.append((error, pause_s))
        if len(waits) == 3:
            operations.engine.failure = None

    lines = asyncio.run(collect(bulk(operations, patience=Patience(60.0, on_wait)), [row(1, "a")]))
    assert [isinstance(each, ScoredLine) for each in lines] == [True]
    assert [(str(error), pause_s) for error, pause_s in waits] == [("busy", 0.05)] * 3
    operations.engine.failure = Overloaded("busy", 0.05)
    with pytest.raises(Overloaded):
        asyncio.run(collect(bulk(operations, patience=Patience(0.04, on_wait)), [row(1, "new")]))


def test_leaving_early_leaves_nothing_behind(operations: Operations) -> None:
    async def path() -> set[asyncio.Task[Any]]:
        lines = bulk(operations)(row(i, f"a{i}") for i in itertools.count(1))
        async for _ in lines:
            break
        await lines.aclose()
        return asyncio.all_tasks() - {asyncio.current_task()}  # type: ignore[arg-type]

    assert asyncio.run(path()) == set()


def test_choices_in_memory_make_the_weights_that_adapting_stores(operations: Operations) -> None:
    served = operations.serving.active
    patience = Patience(0.0, lambda *_: None)

    async def path() -> None:
        people = await adapt_in_memory(
            {"eve": [*CHOICES, CHOICES[0]], "bob": CHOICES[:1]},
            served=served,
            tenant_id=TENANT,
            solver=operations.solver,
            patience=patience,
            truncate=False,
        )
        assert (await served.users.resolve(TENANT, "eve")).standing == "cold_start"
        await operations.adapt(TENANT, "eve", told(CHOICES), mode="append", truncate=False)
        stored = await served.users.resolve(TENANT, "eve")
        found = [await people.find(user) for user in ("eve", "bob", "ada", None)]
        np.testing.assert_array_equal(found[0].state.weights_K, stored.state.weights_K)
        np.testing.assert_array_equal(found[0].state.factor, stored.state.factor)
        assert not np.array_equal(found[1].state.weights_K, stored.state.weights_K)
        assert [each.standing for each in found] == ["adapted", "adapted", "cold_start", "population"]

    asyncio.run(path())
