"""Feedback and suggestions below HTTP, over real databases."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

import numpy as np
import pytest
from operating import NOISE, Operations, told, toy_base_rewards, toy_checkpoint, user_says

from service.errors import Conflict, InvalidInput, Unavailable
from service.mrm import SoftmaxStart, Support, solve
from service.operations.changes import Changed
from service.operations.feedback_events import FeedbackEvent, Source
from service.operations.retention import RetainedTexts, read_retained
from service.operations.said import PreferencePair
from service.operations.suggest import Candidate, Suggested
from service.store import Database

PROMPT = user_says("p")


def base(completion: str) -> np.ndarray:
    return toy_base_rewards(f"p|{completion}".encode())


def event(source: Source, *completions: str, favours: bool = True, **more: Any) -> FeedbackEvent:
    return FeedbackEvent(source, PROMPT, completions, favours, completions, "events[0]", **more)


async def see(operations: Operations, *events: FeedbackEvent, **options: Any) -> Changed:
    return await operations.feedback("t", "ada", events, truncate=False, **options)


async def ask(operations: Operations, *completions: str, count: int = 9, **options: Any) -> Suggested:
    asked = {"min_version": 0, "truncate": False} | options
    return await operations.suggest("t", "ada", [Candidate(PROMPT, completions, "c.")], count=count, **asked)


def test_events_are_one_solve_with_what_was_said(database: Database) -> None:
    operations = Operations(database, retention="texts")
    pair = PreferencePair(PROMPT, "a", "b", None, None)
    times = event("dwell", "f", "g", seconds=(3.0, 9.0))

    async def path() -> None:
        await operations.adapt("t", "ada", told([pair]), mode="append", truncate=False)
        events = [event("chosen", "c", "d", "e"), times, event("thumbs", "h", favours=False)]
        seen = (await see(operations, *events)).outcome
        assert (seen.version, seen.cause, seen.pairs_stored, seen.pairs_total) == (2, "feedback", 3, 4)
        assert seen.stored_by_source == {"chosen": 1, "dwell": 1, "thumbs": 1}
        rows = [base("a") - base("b"), base("c") - base("d"), base("c") - base("e"), base("g") - base("f"), -base("h")]
        weights = [1.0, 0.6, 0.6, 0.6 * 0.5, 0.6 * 0.8]
        expected = solve(Support.of(rows, weights_P=weights, stages_P=[0, 1, 1, 2, 3]), operations.checkpoint.start)
        np.testing.assert_allclose(seen.weights, expected.weights_K, atol=1e-12)
        # again, beside a new one; and contrary clicks on what was answered
        more = (await see(operations, times, event("copied", "x", "y"), event("copied", "b", "a"))).outcome
        assert more.stored_by_source == {"copied": 2}
        only_x = solve(
            Support.of([*rows, base("x") - base("y")], weights_P=[*weights, 0.6], stages_P=[0, 1, 1, 2, 3, 4]),
            operations.checkpoint.start,
        )
        np.testing.assert_allclose(more.weights, only_x.weights_K, atol=1e-12)

    asyncio.run(path())
    kept = {
        each.source: read_retained(payload) for each, payload in operations.repository.evidence("t", "ada", None, 9)
    }
    texts = {source: each.completions for source, each in kept.items() if isinstance(each, RetainedTexts)}
    assert texts["dwell"] == ["g", "f"]
    assert texts["thumbs"] == ["h"]
    assert sorted(texts["chosen"]) == ["c", "d", "e"]


def test_a_repeated_key_gets_the_counts_again_and_is_no_other_operations(database: Database) -> None:
    operations = Operations(database)

    async def path() -> None:
        first = await see(operations, event("copied", "a", "b"), idempotency_key="k", body=b"{}")
        again = await see(operations, event("copied", "a", "b"), idempotency_key="k", body=b"{}")
        assert again.outcome == first.outcome.as_replay()
        assert again.outcome.stored_by_source == {"copied": 1}
        pair = told([PreferencePair(PROMPT, "a", "b", None, None)])
        with pytest.raises(InvalidInput, match="Idempotency-Key"):
            await operations.adapt("t", "ada", pair, mode="append", truncate=False, idempotency_key="k", body=b"{}")

    asyncio.run(path())
    counted = operations.metrics.feedback_events.labels("copied")._value.get()
    assert counted == 1


def test_what_is_not_taken_costs_nothing_and_stores_nothing(database: Database) -> None:
    operations = Operations(database)
    operations.feedback._noise = dataclasses.replace(NOISE, by_source={"copied": 0.2}, alone=0.5)
    events = [event("copied", "a", "b"), event("thumbs", "a", "b"), event("copied", "a")]

    async def path() -> None:
        with pytest.raises(InvalidInput) as refused:
            await see(operations, *events)
        assert [issue.field for issue in refused.value.issues] == ["events[0].type", "events[0].shown"]

    asyncio.run(path())
    assert operations.engine.texts == []
    assert operations.repository.get("t", "ada") is None


def test_questions_are_of_different_texts_and_not_asked_again(database: Database) -> None:
    operations = Operations(database)

    async def path() -> None:
        cold = await ask(operations, "a", "b", "a", "c")
        assert (cold.standing, cold.version) == ("cold_start", 0)
        assert len(cold.questions) == 3
        best = cold.questions[0]
        (alone,) = (await ask(operations, "a", "b", "c", count=1)).questions
        assert alone.gain_nats == pytest.approx(best.gain_nats)
        assert (await ask(operations, "a", "a")).questions == []
        sides = [["a", "b", "a", "c"][side] for side in (best.a, best.b)]
        await operations.adapt(
            "t", "ada", told([PreferencePair(PROMPT, *sides, None, None)]), mode="append", truncate=False
        )
        known = await ask(operations, "a", "b", "c")
        assert (known.standing, known.version) == ("adapted", 1)
        assert len(known.questions) == 2
        # what was only seen may still be asked
        await see(operations, event("copied", "a", "d"))
        assert len((await ask(operations, "a", "d")).questions) == 1
        long = "l" * 80
        assert (await ask(operations, "a", long, truncate=True)).truncated == [[1]]
        with pytest.raises(InvalidInput) as refused:
            await ask(operations, "a", long)
        assert [issue.field for issue in refused.value.issues] == ["c.completions[1]"]
        with pytest.raises(Conflict, match="min_version"):
            await ask(operations, "a", "b", min_version=9)

    asyncio.run(path())


def test_without_a_posterior_there_are_no_questions(database: Database) -> None:
    checkpoint = dataclasses.replace(toy_checkpoint(), start=SoftmaxStart(np.zeros(3), 0.1, 2))
    operations = Operations(database, checkpoint=checkpoint)

    async def path() -> None:
        with pytest.raises(Conflict, match="has no posterior"):
            await ask(operations, "a", "b")
        assert operations.engine.texts == []
        # feedback needs none
        assert (await see(operations, event("copied", "a", "b"))).outcome.pairs_total == 1

    asyncio.run(path())


def test_questions_go_on_while_the_database_is_away(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    operations = Operations(database)

    def away(*_: object) -> None:
        raise Unavailable("The database does not answer.")

    async def path() -> None:
        pair = told([PreferencePair(PROMPT, "a", "b", None, None)])
        await operations.adapt("t", "ada", pair, mode="append", truncate=False)
        monkeypatch.setattr(operations.repository, "support", away)
        answer = await ask(operations, "a", "b")
        assert (answer.standing, len(answer.questions)) == ("adapted", 1)

    asyncio.run(path())
