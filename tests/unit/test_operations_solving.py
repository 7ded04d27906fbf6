"""What age makes of evidence before a solve."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from service.checkpoints import BackboneIdentity, Checkpoint
from service.mrm import GaussianStart, solve
from service.operations.evidence import support_of
from service.operations.solving import DAY_S, Solver
from service.store.records import StoredEvidence

NOW = datetime(2026, 3, 1, tzinfo=UTC)
CHECKPOINT = Checkpoint(
    name="toy",
    backbone=BackboneIdentity(id="bytes", fingerprint="0" * 64, template_id="bytes", hidden_size=2),
    A_KD=np.eye(2, dtype=np.float32),
    b_K=np.zeros(2, dtype=np.float32),
    start=GaussianStart(np.zeros(2), np.eye(2)),
    golden=None,
    training={},
)


def choices(turns_round: bool) -> list[StoredEvidence]:
    """One choice a day for 80 days by the first base reward; in the last 30 perhaps against it."""
    said = []
    for day, diff_K in enumerate(np.random.default_rng(0).normal(size=(80, 2))):
        likes = np.sign(diff_K[0]) * (-1 if turns_round and day < 30 else 1)
        said.append(
            StoredEvidence(
                evidence_id=str(day), content_key=bytes(32), kind="pair", base_rewards=3.0 * likes * diff_K, grade=None,
                ranks=None, group=None, weight=1.0, tilt=0.0, source=None, event_time=NOW - timedelta(days=day),
                heads_id="h",
            )
        )  # fmt: skip
    return said


def test_after_a_sudden_change_all_that_came_later_counts_whole() -> None:
    said = choices(turns_round=True)
    solved = Solver("auto")(said, CHECKPOINT)
    assert solved.drift is not None
    assert solved.half_life_s is not None
    assert solved.support.weights_P[:25].min() > 0.9
    assert solved.support.weights_P[40:].max() < 0.1
    new_alone = solve(support_of(said[:30], 2), CHECKPOINT.start)
    assert solved.state.weights_K[0] < 0.6 * new_alone.weights_K[0] < 0
    assert Solver(None)(said, CHECKPOINT).state.weights_K[0] > 0


def test_a_steady_taste_is_solved_as_without_ages() -> None:
    said = choices(turns_round=False)
    steady, plain = Solver("auto")(said, CHECKPOINT), Solver(None)(said, CHECKPOINT)
    assert steady.half_life_s is None
    np.testing.assert_array_equal(steady.state.weights_K, plain.state.weights_K)


def test_a_half_life_of_days_halves_what_is_that_old() -> None:
    solved = Solver(10)(choices(turns_round=False), CHECKPOINT)
    assert solved.half_life_s == 10 * DAY_S
    assert solved.support.weights_P[[0, 10, 20]].tolist() == pytest.approx([1, 1 / 2, 1 / 4])
