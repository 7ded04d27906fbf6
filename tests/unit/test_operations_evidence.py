"""Stored statements of every kind as a support."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.mrm import GaussianStart, solve
from service.operations.evidence import support_and_ages, support_of
from service.store.records import StoredEvidence

HEADS = 3
NOW = datetime(2026, 3, 1, tzinfo=UTC)
START = GaussianStart(np.array([0.3, -0.5, 0.1]), np.diag([1.0, 2.0, 0.5]), 1.2, 0.8)
RNG = np.random.default_rng(0)
TEXTS = RNG.normal(size=(20, HEADS))


def said(number: int, kind: Any, base_rewards: np.ndarray, age_s: float = 0.0, **more: Any) -> StoredEvidence:
    fields: dict[str, Any] = {
        "grade": None, "ranks": None, "group": None, "weight": 1.0, "tilt": 0.0, "source": None,
    }  # fmt: skip
    return StoredEvidence(
        evidence_id=f"e{number}",
        content_key=bytes(32),
        kind=kind,
        base_rewards=base_rewards,
        event_time=NOW - timedelta(seconds=age_s),
        heads_id="h",
        **(fields | more),
    )


STORED = [
    said(0, "pair", TEXTS[0] - TEXTS[1], 10),
    said(1, "rating", TEXTS[2], 20, grade=4.0, group=b"b"),
    said(2, "ranking", TEXTS[3:7], 0, ranks=(1, 0, 2, 2), weight=0.5, tilt=0.1),
    said(3, "rating", TEXTS[7], 30, grade=1.0, group=b"a"),
    said(4, "pair", TEXTS[8] - TEXTS[9], 40, tilt=-0.5),
    said(5, "rating", TEXTS[10], 40, grade=2.0, group=b"a", weight=0.25),
    said(6, "rating", TEXTS[11], 5, grade=5.0, group=b"c"),
    said(7, "pair", TEXTS[12] - TEXTS[13], 20, grade=2.0, weight=3.0),
    said(8, "pair", TEXTS[14] - TEXTS[15], 0, grade=1.0),
]


def test_every_kind_of_statement_becomes_its_rows() -> None:
    support = support_of(STORED, HEADS, half_life_s=10.0)
    order = [(4, 3), (4, 5), (4, 6), (3, 5), (3, 6)]  # the ranking's rows, its best text first or not
    ranked = {tuple(TEXTS[i] - TEXTS[j]) for i, j in order}
    assert {tuple(row) for row in support.diffs_PK[1:6]} == ranked
    np.testing.assert_array_equal(support.diffs_PK[[0, 6, 7, 8]], TEXTS[[0, 8, 12, 14]] - TEXTS[[1, 9, 13, 15]])
    np.testing.assert_array_equal(support.strengths_P, [*[np.nan] * 7, 2.0, 1.0])
    np.testing.assert_array_equal(support.tilts_P, [0, *[0.1] * 5, -0.5, 0, 0])
    np.testing.assert_allclose(support.weights_P, [0.5, *[0.5] * 5, 1 / 16, 3 / 4, 1.0])
    assert sorted(np.unique(support.stages_P, return_counts=True)[1].tolist()) == [1, 1, 1, 1, 2, 3]
    np.testing.assert_array_equal(support.rated_RK, TEXTS[[2, 7, 10, 11]])
    np.testing.assert_array_equal(support.ratings_R, [4.0, 1.0, 2.0, 5.0])
    assert support.groups_R.tolist() == [0, 1, 1, 0]
    np.testing.assert_allclose(support.weights_R, [0.25, 1 / 8, 1 / 64, np.sqrt(0.5)])


def test_ages_are_those_of_the_rows_and_relative_to_the_newest() -> None:
    _, ages_P, ages_R = support_and_ages(STORED, HEADS)
    assert ages_P.tolist() == [10, 0, 0, 0, 0, 0, 40, 20, 0]
    assert ages_R.tolist() == [20, 30, 40, 5]
    older = STORED[3:5]  # 30 and 40 s before the newest of all
    assert [ages.tolist() for ages in support_and_ages(older, HEADS)[1:]] == [[10], [0]]
    assert [ages.tolist() for ages in support_and_ages([], HEADS)[1:]] == [[], []]


@settings(max_examples=30, deadline=None)
@given(st.permutations(STORED), st.sampled_from([None, 15.0]))
def test_a_solve_does_not_depend_on_the_order_of_storing(
    stored: list[StoredEvidence], half_life_s: float | None
) -> None:
    one, other = (solve(support_of(each, HEADS, half_life_s), START) for each in (STORED, stored))
    assert one.weights_K.tobytes() == other.weights_K.tobytes()
    assert one.factor is not None
    assert other.factor is not None
    assert one.factor.tobytes() == other.factor.tobytes()


def test_the_age_of_statements_of_one_time_does_not_matter() -> None:
    stored = [said(number, "pair", TEXTS[number] - TEXTS[number + 1], 1e9) for number in range(3)]
    for half_life_s in (None, 1.0):
        support = support_of(stored, HEADS, half_life_s)
        np.testing.assert_array_equal(support.weights_P, 1.0)


@pytest.mark.parametrize("kind", ["pair", "rating", "ranking"])
def test_one_kind_alone_is_a_support_of_k_heads(kind: str) -> None:
    support = support_of([each for each in STORED if each.kind == kind], HEADS, 10.0)
    assert support.heads == HEADS
    assert len(support) > 0
    assert np.isfinite(solve(support, START).weights_K).all()


def test_nothing_stored_is_no_evidence() -> None:
    assert len(support_of([], HEADS, 10.0)) == 0
    assert support_of([], HEADS).heads == HEADS


def test_no_number_of_events_outvotes_what_was_said_outright() -> None:
    outright = [
        said(0, "pair", TEXTS[0] - TEXTS[1]),
        said(1, "pair", TEXTS[2] - TEXTS[3], tilt=-0.5),
        said(2, "ranking", TEXTS[4:7], ranks=(0, 1, 2)),
    ]
    doubles = [
        *(said(10 + i, "pair", TEXTS[1] - TEXTS[0], weight=0.8, source="copied") for i in range(300)),
        said(400, "pair", TEXTS[0] - TEXTS[1], weight=0.8, source="chosen"),
        said(401, "pair", TEXTS[3] - TEXTS[2], weight=0.8, source="edited"),
        said(402, "ranking", TEXTS[[6, 4, 5]], ranks=(0, 1, 1), weight=0.8, source="chosen"),
    ]
    wanted = solve(support_of(outright, HEADS), START)
    assert solve(support_of([*doubles, *outright], HEADS), START).weights_K.tobytes() == wanted.weights_K.tobytes()
    assert [len(ages) for ages in support_and_ages([*doubles, *outright], HEADS)[1:]] == [5, 0]
    news = [
        said(500, "pair", TEXTS[0] - TEXTS[2], weight=0.8, source="copied"),
        said(501, "ranking", TEXTS[[6, 4, 7]], ranks=(0, 1, 1), weight=0.8, source="chosen"),
    ]
    assert len(support_of([*news, *outright], HEADS)) == 5 + 1 + 2


def test_the_same_event_a_hundred_times_counts_once() -> None:
    outright = said(0, "pair", TEXTS[0] - TEXTS[1])
    pairs = [said(1 + i, "pair", TEXTS[2] - TEXTS[3], weight=0.6, source="copied") for i in range(100)]
    choices = [said(200 + i, "ranking", TEXTS[4:8], ranks=(1, 0, 1, 1), weight=0.8, source="chosen") for i in range(99)]
    once = solve(support_of([outright, pairs[0], choices[0]], HEADS), START)
    often = solve(support_of([outright, *pairs, *choices], HEADS), START)
    np.testing.assert_allclose(often.weights_K, once.weights_K, rtol=1e-9)
    # a surer event on the same texts sets what they count together
    surer = said(1000, "pair", TEXTS[2] - TEXTS[3], weight=0.9, source="thumbs")
    alone = solve(support_of([outright, surer], HEADS), START)
    np.testing.assert_allclose(solve(support_of([outright, surer, *pairs], HEADS), START).weights_K, alone.weights_K)
