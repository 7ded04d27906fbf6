"""The best text beside every other, against the full matrices; and each against the average one."""

from __future__ import annotations

import numpy as np
import pytest

from service.mrm import GaussianStart, SoftmaxStart, Support, solve
from service.mrm.combine import (
    average_probability,
    best_against,
    difference_std,
    preference_probability,
    ranking,
    rewards,
)


def test_the_best_against_each_is_a_row_of_the_matrices() -> None:
    rng = np.random.default_rng(0)
    state = solve(Support.of(rng.normal(size=(12, 5))), GaussianStart(rng.normal(size=5), 2.0 * np.eye(5)))
    base_BK = rng.normal(size=(7, 5))
    base_BK[6] = base_BK[ranking(rewards(base_BK, state))[0]]  # two that are equally good
    values_B = rewards(base_BK, state)
    best = ranking(values_B)[0]
    probability_B, std_B = best_against(base_BK, values_B, state)
    matrix_BB = difference_std(base_BK, state)
    assert std_B is not None
    assert matrix_BB is not None
    np.testing.assert_allclose(probability_B, preference_probability(values_B)[best], rtol=1e-14)
    np.testing.assert_allclose(std_B, matrix_BB[best], rtol=1e-9, atol=1e-7)
    assert (probability_B[best], std_B[best], probability_B[6]) == (0.5, 0.0, 0.5)
    assert (probability_B >= 0.5).all()


def test_the_best_without_a_posterior_has_probabilities_alone() -> None:
    state = solve(Support.empty(3), SoftmaxStart(np.zeros(3), 0.1, 1))
    base_BK = np.array([[0.0, 0.0, 0.0], [3.0, 0.0, 0.0]])
    probability_B, std_B = best_against(base_BK, rewards(base_BK, state), state)
    assert std_B is None
    np.testing.assert_allclose(probability_B, [1 / (1 + np.exp(-1.0)), 0.5])


def test_the_best_of_no_texts_is_refused() -> None:
    state = solve(Support.empty(3), SoftmaxStart(np.zeros(3), 0.1, 1))
    with pytest.raises(ValueError, match="no texts"):
        best_against(np.zeros((0, 3)), np.zeros(0), state)


def test_the_average_text_is_the_one_of_reward_zero() -> None:
    values_B = np.array([-800.0, -2.0, 0.0, np.log(3.0), 800.0])
    np.testing.assert_allclose(average_probability(values_B), [0.0, 1 / (1 + np.e**2), 0.5, 0.75, 1.0], rtol=1e-14)
    with_the_average = np.append(values_B, 0.0)
    np.testing.assert_array_equal(average_probability(values_B), preference_probability(with_the_average)[:-1, -1])
