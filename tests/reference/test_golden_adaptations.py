"""Adaptations recorded from the authors' own code (arXiv 2601.18731)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.special import softmax

from service.mrm import SoftmaxStart, Support, solve
from service.mrm.combine import rewards

CASES = ("k2_steps1", "k4_steps3", "k2_bs4_steps2")


@pytest.mark.parametrize("case", CASES)
def test_adapted_weights_and_rewards_equal_the_recorded_ones(shared: Path, case: str) -> None:
    settings = json.loads((shared / "golden/mrm_reference.json").read_text())[case]
    arrays = np.load(shared / "golden/mrm_reference.npz")
    heads_KD = settings["scale"] * arrays[f"{case}/epoch{settings['epochs']}_heads_KD"].astype(np.float64)
    logits_K = arrays[f"{case}/epoch{settings['epochs']}_weights_K"].astype(np.float64)
    start = SoftmaxStart(logits_K, settings["inner_lr"], settings["inner_steps"])
    users = len(arrays[f"{case}/unseen_user_accuracy_U"])
    assert users == 8
    for user in range(users):
        prefix = f"{case}/user{user:02d}"
        chosen, rejected = (arrays[f"{prefix}/support_{side}_PD"] @ heads_KD.T for side in ("chosen", "rejected"))
        state = solve(Support.of(chosen - rejected), start)
        recorded_K = softmax(arrays[f"{prefix}/adapted_weights_K"].astype(np.float64))
        np.testing.assert_allclose(state.weights_K, recorded_K, atol=1e-6)
        for side in ("chosen", "rejected"):
            base_rewards_PK = arrays[f"{prefix}/query_{side}_PD"] @ heads_KD.T
            np.testing.assert_allclose(
                rewards(base_rewards_PK, state), arrays[f"{prefix}/query_{side}_reward_P"], atol=1e-6
            )
