"""Users under other heads: what a map keeps, and what it must not invent."""

from __future__ import annotations

import numpy as np
import pytest

from service.mrm import GaussianStart, SoftmaxStart, Support, solve
from service.mrm.carry import (
    LinearMaps,
    carry,
    carry_many,
    diffs_fidelity,
    fidelity,
    linear_maps,
    maps_from_products,
    prior_draws,
)
from service.mrm.state import UserState, unpack_factor

D = 12
RNG = np.random.default_rng(0)
ROOT = RNG.normal(size=(D, D))
MOMENT = ROOT @ ROOT.T / D
DIFFS = RNG.normal(size=(400, D)) @ ROOT.T / np.sqrt(D)


def heads(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, D)) / np.sqrt(D)


def start_of(count: int, seed: int, temperature: float = 1.0, gain: float | None = None) -> GaussianStart:
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(count, count))
    return GaussianStart(rng.normal(size=count), root @ root.T / count + np.eye(count), temperature, gain)


def covariance(state: UserState) -> np.ndarray:
    assert state.factor is not None
    lower = unpack_factor(state.factor)
    return np.asarray(lower @ lower.T)


@pytest.mark.parametrize(("new", "old"), [(4, 4), (7, 3), (3, 7)])
def test_maps_are_least_squares_under_the_covariance(new: int, old: int) -> None:
    a_new, a_old = heads(new, 1), heads(old, 2)
    maps = linear_maps(a_new, a_old, MOMENT)
    # rows whose second moment is C exactly make ordinary regressions of both
    rows_DD = np.linalg.cholesky(MOMENT).T
    weights = np.linalg.lstsq(rows_DD @ a_new.T, rows_DD @ a_old.T, rcond=None)[0]
    diffs = np.linalg.lstsq(rows_DD @ a_old.T, rows_DD @ a_new.T, rcond=None)[0].T
    np.testing.assert_allclose(maps.weights_KK, weights, rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(maps.diffs_KK, diffs, rtol=1e-9, atol=1e-11)
    from_sample = maps_from_products(
        a_new @ rows_DD.T @ rows_DD @ a_new.T,
        a_new @ rows_DD.T @ rows_DD @ a_old.T,
        a_old @ rows_DD.T @ rows_DD @ a_old.T,
    )
    np.testing.assert_allclose(from_sample.weights_KK, maps.weights_KK, rtol=1e-9, atol=1e-11)


def test_heads_that_span_the_same_lose_nothing() -> None:
    a_old, mix = heads(5, 3), np.random.default_rng(4).normal(size=(8, 5)) * np.logspace(-3, 3, 8)[:, None]
    a_new = mix @ a_old  # eight heads in five dimensions, of sizes a million apart
    maps = linear_maps(a_new, a_old, MOMENT)
    weights_UK = np.random.default_rng(5).normal(size=(50, 5))
    kept = fidelity(maps, a_new, a_old, DIFFS, weights_UK)
    assert kept.low > 1 - 1e-9
    np.testing.assert_allclose(DIFFS @ a_new.T @ maps.weights_KK, DIFFS @ a_old.T, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(DIFFS @ a_old.T @ maps.diffs_KK.T, DIFFS @ a_new.T, rtol=1e-6, atol=1e-6)
    back = linear_maps(a_old, a_new, MOMENT)
    np.testing.assert_allclose(back.diffs_KK @ maps.diffs_KK, np.eye(5), atol=1e-7)
    assert diffs_fidelity(maps, a_new, a_old, DIFFS, np.random.default_rng(6).normal(size=(9, 8))).low > 1 - 1e-9


def test_fidelity_is_the_share_of_rewards_that_the_new_heads_can_see() -> None:
    # hidden states of independent numbers; the new heads see two of the old three
    a_old, a_new = np.eye(D)[:3], np.eye(D)[1:4]
    maps = linear_maps(a_new, a_old, np.eye(D))
    diffs = np.random.default_rng(7).normal(size=(200_000, D))
    weights_UK = np.array([[3.0, 4.0, 0.0], [0.0, 1.0, 2.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    kept = [fidelity(maps, a_new, a_old, diffs, user_K[None]) for user_K in weights_UK]
    np.testing.assert_allclose([each.mean for each in kept], [4 / 5, 1.0, 0.0, 1.0], atol=5e-3)
    together = fidelity(maps, a_new, a_old, diffs, weights_UK)
    assert together.mean == pytest.approx(np.mean([each.mean for each in kept]))
    assert together.low < 0.2


def test_gaussian_evidence_is_carried_exactly() -> None:
    a_old, a_new = heads(4, 8), heads(6, 9)
    old, new = start_of(4, 10, 1.3, 0.8), start_of(6, 11, 0.7, 0.8)
    maps = linear_maps(a_new, a_old, MOMENT)
    rng = np.random.default_rng(12)
    diffs, strengths = DIFFS[:9] @ a_old.T, rng.uniform(1.0, 3.0, 9)
    found = carry(solve(Support.of(diffs, strengths), old), maps, old, new)
    wanted = solve(Support.of(diffs @ maps.diffs_KK.T, strengths), new)
    np.testing.assert_allclose(found.weights_K, wanted.weights_K, rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(found.factor, wanted.factor, rtol=1e-9, atol=1e-10)


def test_choices_are_carried_to_a_newton_step_of_the_solve_over_mapped_pairs() -> None:
    a_old, a_new = heads(5, 13), heads(4, 14)
    old, new = start_of(5, 15), start_of(4, 16)
    maps = linear_maps(a_new, a_old, MOMENT)
    # both starts were learned from the same people, so their means say much the same
    new = GaussianStart(maps.weights_KK @ old.mean_K, new.precision_KK)
    errors, scales = [], []
    for user in range(20):
        diffs = DIFFS[user * 15 : user * 15 + 15] @ a_old.T
        found = carry(solve(Support.of(diffs), old), maps, old, new)
        wanted = solve(Support.of(diffs @ maps.diffs_KK.T), new)
        unasked = solve(Support.empty(4), new)
        posterior = np.linalg.inv(covariance(wanted))
        errors.append((found.weights_K - wanted.weights_K) @ posterior @ (found.weights_K - wanted.weights_K))
        scales.append((unasked.weights_K - wanted.weights_K) @ posterior @ (unasked.weights_K - wanted.weights_K))
    # squared, in posterior standard deviations; the evidence itself moved the weights by 18
    assert np.max(errors) < 0.05
    assert np.mean(scales) > 10


def test_who_told_nothing_gets_the_new_start_and_what_is_unseen_keeps_the_new_prior() -> None:
    old, new = start_of(3, 17, 1.2), start_of(4, 18, 0.9)
    maps = linear_maps(heads(4, 19), heads(3, 20), MOMENT)
    nothing = carry(solve(Support.empty(3), old), maps, old, new)
    start = solve(Support.empty(4), new)
    np.testing.assert_allclose(nothing.weights_K, start.weights_K, rtol=1e-9)
    np.testing.assert_allclose(nothing.factor, start.factor, rtol=1e-9, atol=1e-12)

    # old heads see two coordinates, the new ones these and two more of which they know nothing
    maps = linear_maps(np.eye(D)[:4], np.eye(D)[:2], np.eye(D))
    old, new = GaussianStart(np.zeros(2), np.eye(2)), GaussianStart(np.zeros(4), np.diag([1.0, 1.0, 4.0, 9.0]))
    told = solve(Support.of(np.random.default_rng(21).normal(size=(30, 2)) + 1.0), old)
    found = carry(told, maps, old, new)
    np.testing.assert_allclose(found.weights_K, [*told.weights_K, 0.0, 0.0], atol=1e-12)
    np.testing.assert_allclose(covariance(found)[:2, :2], covariance(told), rtol=1e-9)
    np.testing.assert_allclose(covariance(found)[2:, 2:], np.diag([1 / 4, 1 / 9]), rtol=1e-9)


@pytest.mark.parametrize("size", [10.0**-200, 1.0, 1e6])
def test_many_are_each_of_them_and_stay_finite(size: float) -> None:
    old, new = start_of(6, 22, 1.1), start_of(9, 23, 1.4)
    maps = linear_maps(heads(9, 24), heads(6, 25), MOMENT)
    rng = np.random.default_rng(26)
    states = [solve(Support.of(size * rng.normal(size=(rng.integers(0, 30), 6))), old) for _ in range(40)] * 50
    weights_UK, factors_UF = np.stack([s.weights_K for s in states]), np.stack([s.factor for s in states])  # type: ignore[misc]
    found = carry_many(weights_UK, factors_UF, maps, old, new)
    assert found.factors_UF is not None
    assert np.isfinite(found.weights_UK).all()
    assert np.isfinite(found.factors_UF).all()
    prior = np.trace(covariance(solve(Support.empty(9), new)))
    for user in (0, 1, 1450, 1999):
        alone = carry(states[user], maps, old, new)
        np.testing.assert_allclose(found[user].weights_K, alone.weights_K, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(found[user].factor, alone.factor, rtol=1e-9, atol=1e-12)
        assert np.trace(covariance(found[user])) <= prior * (1 + 1e-9)  # evidence never adds doubt


def test_recipes_without_a_posterior_are_carried_by_their_rewards() -> None:
    old, new = SoftmaxStart(np.zeros(3), 0.1, 1), start_of(4, 27)
    a_new, a_old = heads(4, 28), heads(3, 29)
    maps = linear_maps(a_new, a_old, MOMENT)
    state = UserState(np.array([0.2, 0.5, 0.3]))
    found = carry(state, maps, old, new)
    np.testing.assert_allclose(found.weights_K, maps.weights_KK @ state.weights_K)
    np.testing.assert_allclose(found.factor, solve(Support.empty(4), new).factor, rtol=1e-9, atol=1e-12)
    back = carry(found, linear_maps(a_old, a_new, MOMENT), new, old)
    assert back.factor is None
    assert back.weights_K.shape == (3,)


def test_draws_of_the_prior_have_its_moments() -> None:
    start = start_of(3, 30, 1.5)
    draws_UK = prior_draws(start, 200_000)
    np.testing.assert_allclose(draws_UK.mean(axis=0), start.mean_K / 1.5, atol=0.01)
    np.testing.assert_allclose(np.cov(draws_UK.T), np.linalg.inv(start.precision_KK) / 1.5**2, atol=0.01)
    np.testing.assert_array_equal(prior_draws(SoftmaxStart(np.zeros(2), 0.1, 1), 2), np.full((2, 2), 0.5))


def test_refusals_name_what_does_not_fit() -> None:
    maps = linear_maps(heads(4, 1), heads(3, 2), MOMENT)
    with pytest.raises(ValueError, match=r"C \[D, D\]"):
        linear_maps(heads(4, 1), heads(3, 2), np.eye(D + 1))
    with pytest.raises(ValueError, match="do not lead"):
        carry_many(np.zeros((1, 3)), None, maps, start_of(4, 1), start_of(3, 1))
    with pytest.raises(ValueError, match="expected factors"):
        carry_many(np.zeros((1, 3)), np.zeros((1, 3)), maps, start_of(3, 1), start_of(4, 1))
    with pytest.raises(ValueError, match="not finite"):
        LinearMaps(np.full((1, 1), np.nan), np.ones((1, 1)))
    with pytest.raises(ValueError, match="no differences"):
        fidelity(maps, heads(4, 1), heads(3, 2), np.zeros((0, D)), np.ones((1, 3)))
