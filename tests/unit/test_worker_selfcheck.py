"""The self-check passes a right engine and fails the wrong ones."""

from __future__ import annotations

import numpy as np
import pytest
from scripted_backbone import LetterRenderer

from service.backbone.golden import GOLDEN_TEXTS, golden_token_ids
from service.worker.selfcheck import self_check

TEXTS = golden_token_ids(LetterRenderer())
TABLE = {ids: np.random.default_rng(sum(ids)).normal(size=4) for ids in TEXTS}
RECORD = np.array([TABLE[ids] for ids in TEXTS])


def right(texts):
    return np.array([TABLE[tuple(ids)] for ids in texts])


def leaking(texts):
    """Each text sees a little of its neighbours in the batch."""
    rewards = right(texts)
    return rewards + 0.05 * (rewards.mean(axis=0) - rewards)


def other_model(texts):
    return right(texts) + 0.01


def test_golden_texts_are_told_apart():
    assert len(set(TEXTS)) == len(GOLDEN_TEXTS)


def test_a_right_engine_passes_with_and_without_a_record():
    assert self_check(right, TEXTS, dtype="float32").passed
    check = self_check(right, TEXTS, dtype="float32", recorded_GK=RECORD)
    assert (check.passed, check.batched_difference, check.recorded_difference) == (True, 0.0, 0.0)


def test_texts_that_see_each_other_fail():
    check = self_check(leaking, TEXTS, dtype="float32")
    assert not check.passed
    assert check.batched_difference > check.tolerance
    assert check.recorded_difference is None


def test_another_model_fails_against_the_record_only():
    assert self_check(other_model, TEXTS, dtype="float32").passed
    check = self_check(other_model, TEXTS, dtype="float32", recorded_GK=RECORD)
    assert not check.passed
    assert check.batched_difference == 0.0
    assert check.recorded_difference is not None
    assert check.recorded_difference > check.tolerance


def test_the_unit_is_the_spread_so_the_scale_of_base_rewards_does_not_matter():
    scale = np.array([1e6, 1.0, 1e-6, 1.0])
    plain = self_check(leaking, TEXTS, dtype="float32", recorded_GK=RECORD)
    scaled = self_check(lambda texts: leaking(texts) * 1e9, TEXTS, dtype="float32", recorded_GK=RECORD * 1e9)
    assert scaled.batched_difference == pytest.approx(plain.batched_difference)
    assert not self_check(lambda texts: leaking(texts) * scale, TEXTS, dtype="float32").passed


def test_the_looser_of_engine_and_record_decides():
    def tolerance(dtype, recorded_dtype):
        return self_check(right, TEXTS, dtype=dtype, recorded_GK=RECORD, recorded_dtype=recorded_dtype).tolerance

    assert tolerance("float32", "float32") < tolerance("bfloat16", "float32")
    assert tolerance("float32", "bfloat16") == tolerance("bfloat16", "float32")


@pytest.mark.parametrize("wrong", [RECORD[:-1], RECORD[:, :2], np.full_like(RECORD, np.nan)])
def test_a_record_of_another_shape_or_not_finite_never_passes(wrong):
    assert not self_check(right, TEXTS, dtype="float32", recorded_GK=wrong).passed
