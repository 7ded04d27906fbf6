"""The self-check passes a right engine and fails the wrong ones, whatever it computes in."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from typing import get_args

import numpy as np
import pytest

from service.backbone.golden import GOLDEN_TEXTS, golden_token_ids, packing_token_ids
from service.backbone.load import load_renderer
from service.backbone.protocol import Dtype
from service.worker.selfcheck import (
    TOLERANCES,
    GoldenRecord,
    Question,
    SelfCheck,
    Verdict,
    judge,
    questions,
    self_check,
    with_other_neighbours,
)

HEADS = 4
RENDERER = load_renderer("minilm")
TEXTS = golden_token_ids(RENDERER)
PACKING = packing_token_ids(RENDERER)
TABLE = np.random.default_rng(0).normal(size=(30_522, HEADS))


def reward(token_ids: Sequence[int], first_position: int = 0) -> np.ndarray:
    """What order, position and every token have a part in."""
    positions = np.arange(first_position, first_position + len(token_ids))
    return (TABLE[list(token_ids)] * np.cos(0.1 * positions)[:, None]).sum(axis=0) / math.sqrt(len(token_ids))


def right(question: Question) -> np.ndarray:
    return np.array([reward(token_ids) for token_ids in question.texts])


def rounding(question: Question) -> np.ndarray:
    """As bfloat16 does: other shapes, other noise."""
    rewards = right(question)
    return rewards + 0.1 * RECORD.std(axis=0) * np.random.default_rng(len(rewards)).normal(size=rewards.shape)


def seeing_the_neighbour(question: Question) -> np.ndarray:
    """Each text sees a little of the one before it in the batch."""
    rewards = right(question)
    return rewards + 0.05 * np.roll(rewards, 1, axis=0) * (len(rewards) > 1)


def beginning_anew_after_a_prefix(question: Question) -> np.ndarray:
    """What follows a prefix that another text has computed gets the positions of a text of its own."""
    rewards = []
    for index, token_ids in enumerate(question.texts):
        shared = max((common(token_ids, other) for other in question.texts[:index]), default=0)
        parts = (token_ids[:shared], token_ids[shared:])
        total = sum(reward(part) * math.sqrt(len(part)) for part in parts if len(part))
        rewards.append(total / math.sqrt(len(token_ids)))
    return np.array(rewards)


class ForgettingWhose:
    """Prefixes that are kept for later are read as if one token less had been kept."""

    def __init__(self) -> None:
        self.kept: dict[bytes, list[Sequence[int]]] = {}

    def __call__(self, question: Question) -> np.ndarray:
        known = self.kept.get(question.scope, [])
        rewards = []
        for token_ids in question.texts:
            wrong = any(common(token_ids, other) >= min(4, len(token_ids)) for other in known)
            rewards.append(reward(token_ids, first_position=-1 if wrong else 0))
        self.kept.setdefault(question.scope, []).extend(question.texts)
        return np.array(rewards)


def with_a_doubled_bos(question: Question) -> np.ndarray:
    return np.array([reward([token_ids[0], *token_ids]) for token_ids in question.texts])


def with_another_template(question: Question) -> np.ndarray:
    return np.array([reward([*token_ids[:1], 2000, *token_ids[1:]]) for token_ids in question.texts])


def not_finite(question: Question) -> np.ndarray:
    rewards = right(question)
    rewards[-1, 0] = np.nan
    return rewards


def common(left: Sequence[int], right: Sequence[int]) -> int:
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(left, right, strict=False)))


RECORD = right(Question(TEXTS, b""))
GOLDEN = GoldenRecord(TEXTS, RECORD, "float32", "float32", PACKING)
UNRECORDED = dataclasses.replace(GOLDEN, recorded_GK=None)


def failed(check: SelfCheck) -> set[str]:
    return {comparison.against for comparison in check.comparisons if not comparison.passed}


def test_texts_overlap_in_every_way_that_packing_has_to_get_right() -> None:
    assert len(set(TEXTS)) == len(GOLDEN_TEXTS)
    every = [*TEXTS, *PACKING]
    depths = {common(a, b) for a, b in itertools.combinations(every, 2)}
    assert len([depth for depth in depths if depth > 2]) >= 3
    assert set(PACKING) & set(TEXTS), "the same text twice"
    beginnings = [a for a, b in itertools.permutations(every, 2) if len(a) < len(b) and a == b[: len(a)]]
    assert {len(text) for text in beginnings} > {1}
    assert min(map(len, every)) == 1
    assert max(map(len, every)) > 100


def test_other_neighbours_leave_every_shape_as_it_was() -> None:
    every = [*TEXTS, *PACKING]
    changed = with_other_neighbours(every)
    assert list(map(len, changed)) == list(map(len, every))
    for (a, b), (c, d) in zip(itertools.combinations(every, 2), itertools.combinations(changed, 2), strict=True):
        assert common(a, b) == common(c, d)
    same = [tuple(new) == old for new, old in zip(changed, every, strict=True)]
    assert sum(not unchanged for unchanged in same) >= 4
    assert all(same[1::3])


def test_nothing_that_was_kept_of_a_question_answers_another_but_where_that_is_the_question() -> None:
    asked = questions(GOLDEN)
    scopes = [question.scope for question in asked]
    assert scopes.count(scopes[len(TEXTS) + len(PACKING)]) == 2
    assert len(set(scopes)) == len(asked) - 1
    assert b"" not in scopes
    assert not set(scopes) & {question.scope for question in questions(GOLDEN)}
    assert len(questions(GOLDEN, thorough=False)) == len(TEXTS) + 1


@pytest.mark.parametrize("golden", [GOLDEN, UNRECORDED])
def test_a_right_engine_passes(golden: GoldenRecord) -> None:
    check = self_check(right, golden, idle=True)
    assert check.passed
    assert {comparison.difference for comparison in check.comparisons} == {0.0}
    assert check.difference("recorded") == (None if golden is UNRECORDED else 0.0)


@pytest.mark.parametrize(
    ("wrong", "found"),
    [
        (seeing_the_neighbour, {"batched", "neighbours"}),
        (beginning_anew_after_a_prefix, {"batched"}),
        (ForgettingWhose(), {"batched"}),
        (with_a_doubled_bos, {"recorded"}),
        (with_another_template, {"recorded"}),
        (not_finite, {"batched", "neighbours", "recorded"}),
    ],
)
def test_each_mistake_is_found_where_it_is(wrong: Callable[[Question], np.ndarray], found: set[str]) -> None:
    check = self_check(wrong, GOLDEN, idle=True)
    assert not check.passed
    assert failed(check) == found
    for comparison in check.comparisons:
        assert f"{'' if comparison.passed else 'NOT '}{comparison.against} {comparison.difference:.1e}" in str(check)


def test_in_bfloat16_rounding_passes_and_a_text_that_sees_another_still_fails() -> None:
    assert self_check(rounding, GOLDEN, dtype="bfloat16", idle=True).passed
    assert not self_check(rounding, GOLDEN, dtype="float32").passed

    def both(question: Question) -> np.ndarray:
        return rounding(question) + seeing_the_neighbour(question) - right(question)

    assert failed(self_check(both, GOLDEN, dtype="bfloat16", idle=True)) == {"neighbours"}
    # In traffic, other shapes round otherwise, and only what is larger than that can be held against the engine.
    assert self_check(both, GOLDEN, dtype="bfloat16", idle=False).passed


def test_every_dtype_has_tolerances_and_fewer_bits_are_not_held_to_more() -> None:
    assert set(TOLERANCES) == set(get_args(Dtype))
    exact, half, byte = (TOLERANCES[dtype] for dtype in get_args(Dtype))
    for finer, coarser in ((exact, half), (half, byte)):
        assert finer.recorded < coarser.recorded
        assert finer.batched < coarser.batched
        assert finer.neighbours <= coarser.neighbours


def test_the_looser_of_engine_and_record_decides() -> None:
    def tolerance(dtype: Dtype, recorded_dtype: Dtype) -> float:
        golden = dataclasses.replace(GOLDEN, recorded_dtype=recorded_dtype)
        check = self_check(right, golden, dtype=dtype)
        return next(comparison.tolerance for comparison in check.comparisons if comparison.against == "recorded")

    assert tolerance("float32", "float32") < tolerance("bfloat16", "float32")
    assert tolerance("float32", "bfloat16") == tolerance("bfloat16", "float32")


def test_the_unit_is_the_spread_so_the_scale_of_base_rewards_does_not_matter() -> None:
    scale = np.array([1e6, 1.0, 1e-6, 1.0])
    plain = self_check(seeing_the_neighbour, GOLDEN)
    larger = dataclasses.replace(GOLDEN, recorded_GK=RECORD * 1e9)
    scaled = self_check(lambda question: seeing_the_neighbour(question) * 1e9, larger)
    assert scaled.difference("batched") == pytest.approx(plain.difference("batched"))
    assert not self_check(lambda question: seeing_the_neighbour(question) * scale, UNRECORDED).passed


@pytest.mark.parametrize("wrong", [RECORD[:-1], RECORD[:, :2], np.full_like(RECORD, np.nan)])
def test_a_record_of_another_shape_or_not_finite_never_passes(wrong: np.ndarray) -> None:
    assert not self_check(right, dataclasses.replace(GOLDEN, recorded_GK=wrong)).passed


def test_who_serves_is_asked_little_and_judged_by_the_same_figures() -> None:
    asked = questions(GOLDEN, thorough=False)
    check = judge(GOLDEN, [seeing_the_neighbour(question) for question in asked], thorough=False)
    assert failed(check) == {"batched"}
    assert check.difference("neighbours") is None


def test_what_is_told_of_a_check_is_json_even_where_it_is_not_finite() -> None:
    told = Verdict.of("here", self_check(not_finite, GOLDEN)).as_json()
    assert (told["worker"], told["status"], told["dtype"]) == ("here", "failed", "float32")
    assert None in [comparison["difference"] for comparison in told["comparisons"]]
    assert "nan" in told["detail"]
