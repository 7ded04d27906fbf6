from __future__ import annotations

import numpy as np
import pytest

from service.errors import InvalidInput
from service.training.heads import make_heads

D = 7


def prior(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.normal(size=(D, D)))[0]
    covariance_dd = (basis * np.array([4.0, 2.0, 1.0, 0.1, 0.1, 0.1, 0.1])) @ basis.T
    return rng.normal(size=D), covariance_dd, rng.normal(size=(50, D))


@pytest.mark.parametrize("heads", [1, 2, 4, D])
def test_heads_are_orthonormal_and_hold_the_mean(heads: int) -> None:
    mean_d, covariance_dd, values_Nd = prior()
    made = make_heads(mean_d, covariance_dd, values_Nd, heads)
    np.testing.assert_allclose(made.directions_Kd @ made.directions_Kd.T, np.eye(heads), atol=1e-12)
    np.testing.assert_allclose(made.directions_Kd.T @ made.start_K, mean_d, atol=1e-12)


def test_the_tastes_that_vary_most_come_first_less_most_of_the_rest() -> None:
    mean_d, covariance_dd, values_Nd = prior()
    made = make_heads(mean_d, covariance_dd, values_Nd, 4)
    np.testing.assert_allclose(np.diag(made.covariance_KK)[:3], np.array([4.0, 2.0, 1.0]) - 0.8 * 0.1, atol=1e-9)
    np.testing.assert_allclose(made.noise_factor, 1 / np.sqrt(1 + np.pi * 1.6 * 0.1 / 8))


def test_every_head_agrees_with_the_mean_over_the_texts() -> None:
    for seed in range(5):
        mean_d, covariance_dd, values_Nd = prior(seed)
        base_NK = values_Nd @ make_heads(mean_d, covariance_dd, values_Nd, 4).directions_Kd.T
        reward_N = values_Nd @ mean_d
        assert all(np.corrcoef(base_N, reward_N)[0, 1] > 0 for base_N in base_NK.T)


def test_eigenvalues_are_floored_and_tau_scales_the_prior() -> None:
    mean_d, _, values_Nd = prior()
    made = make_heads(mean_d, np.diag([100.0, 1e-6, 0, 0, 0, 0, 0]), values_Nd, 3)
    eigenvalues_K = np.linalg.eigvalsh(made.covariance_KK)
    assert eigenvalues_K[0] == pytest.approx(1e-3 * eigenvalues_K[-1])
    np.testing.assert_allclose(made.precision(0.5) @ (0.5 * made.covariance_KK), np.eye(3), atol=1e-9)
    np.testing.assert_array_equal(made.precision(0.2), made.precision(0.2).T)


def test_one_head_along_which_people_hardly_vary_has_a_prior_still() -> None:
    _, _, values_Nd = prior()
    covariance_dd = np.diag([4.0, 2.0, 1.0, 0.1, 0.1, 0.1, 0.1])
    made = make_heads(np.eye(D)[6], covariance_dd, values_Nd, 1)
    assert 0 < made.covariance_KK[0, 0] < 0.1


def test_a_population_without_a_direction_of_its_own_gives_its_head_to_the_next_taste() -> None:
    _, covariance_dd, values_Nd = prior()
    made = make_heads(np.zeros(D), covariance_dd, values_Nd, 3)
    np.testing.assert_allclose(np.diag(made.directions_Kd @ covariance_dd @ made.directions_Kd.T), [4.0, 2.0, 1.0])
    np.testing.assert_array_equal(made.start_K, 0.0)


def test_more_heads_than_features_are_refused() -> None:
    with pytest.raises(InvalidInput, match="at most 7"):
        make_heads(*prior(), D + 1)
