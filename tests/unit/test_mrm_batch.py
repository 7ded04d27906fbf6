"""`solve_many` against `solve`, one user at a time."""

from __future__ import annotations

import numpy as np
import pytest

from service.mrm import GaussianStart, Support, batch, solve
from service.mrm.batch import UserStates, solve_many


def start_of(heads: int, temperature: float = 1.3) -> GaussianStart:
    rng = np.random.default_rng(0)
    root = rng.normal(size=(heads, heads))
    return GaussianStart(rng.normal(size=heads), root @ root.T + np.eye(heads), temperature)


def assert_solved(found: UserStates, diffs_PK: np.ndarray, user_P: np.ndarray, start: GaussianStart) -> None:
    for user in range(len(found)):
        wanted, state = solve(Support.of(diffs_PK[user_P == user]), start), found[user]
        np.testing.assert_allclose(state.weights_K, wanted.weights_K, rtol=1e-8, atol=1e-8)
        np.testing.assert_allclose(state.factor, wanted.factor, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("heads", [1, 8, 32])
@pytest.mark.parametrize("threads", [1, 2])
def test_equals_solve_of_each_user(heads: int, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "BATCH_DOUBLES", 4000)  # several batches
    rng = np.random.default_rng(1)
    count_U = rng.integers(0, 40, 70)
    count_U[:3] = (0, 200, 1)
    user_P = rng.permutation(np.repeat(np.arange(70), count_U))
    # people of very different certainty need very different numbers of Newton steps
    diffs_PK = rng.normal(size=(len(user_P), heads)) * 10.0 ** rng.uniform(-3, 2, 70)[user_P, None]
    assert_solved(solve_many(diffs_PK, user_P, 70, start_of(heads), threads=threads), diffs_PK, user_P, start_of(heads))


def test_repeated_and_contrary_answers_count_once() -> None:
    rng = np.random.default_rng(2)
    diffs_PK = rng.normal(size=(60, 4))
    user_P = np.repeat(np.arange(6), 10)
    diffs_PK[1:5] = diffs_PK[0]
    diffs_PK[12] = -diffs_PK[11]
    diffs_PK[25] = diffs_PK[21] * (1.0 + 1e-9)
    diffs_PK[30:40] = 0.0
    assert_solved(solve_many(diffs_PK, user_P, 6, start_of(4)), diffs_PK, user_P, start_of(4))


def test_weights_and_tilts_are_those_of_solve(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "BATCH_DOUBLES", 2000)
    rng = np.random.default_rng(5)
    user_P = rng.permutation(np.repeat(np.arange(20), rng.integers(0, 15, 20)))
    pairs = len(user_P)
    diffs_PK = rng.normal(size=(pairs, 4)) * 10.0 ** rng.uniform(-2, 2, 20)[user_P, None]
    repeated = rng.integers(0, pairs, 40)
    diffs_PK = np.concatenate([diffs_PK, diffs_PK[repeated] * rng.choice([-1.0, 1.0], size=(40, 1))])
    user_P = np.concatenate([user_P, user_P[repeated]])
    weights_P = rng.uniform(0.1, 3.0, len(user_P))
    tilts_P = rng.choice([0.0, -0.5, 0.4, -0.1], size=len(user_P))
    start = start_of(4)
    found = solve_many(diffs_PK, user_P, 20, start, weights_P=weights_P, tilts_P=tilts_P)
    for user in range(20):
        mine = user_P == user
        support = Support.of(diffs_PK[mine], weights_P=weights_P[mine], tilts_P=tilts_P[mine])
        wanted, state = solve(support, start), found[user]
        np.testing.assert_allclose(state.weights_K, wanted.weights_K, rtol=1e-7, atol=1e-7)
        np.testing.assert_allclose(state.factor, wanted.factor, rtol=1e-7, atol=1e-7)


def test_hard_steps_are_halved_as_in_solve() -> None:
    rng = np.random.default_rng(3)
    diffs_PK = 300.0 * rng.normal(size=(80, 3))
    user_P = np.repeat(np.arange(8), 10)
    start = GaussianStart(5.0 * rng.normal(size=3), 1e-3 * np.eye(3))
    assert_solved(solve_many(diffs_PK, user_P, 8, start), diffs_PK, user_P, start)


def test_numbers_that_leave_nothing_of_the_prior_are_solved_as_by_solve() -> None:
    rng = np.random.default_rng(4)
    diffs_PK = rng.normal(size=(12, 4))
    diffs_PK[:4] = 1e9 * diffs_PK[0]
    user_P = np.repeat(np.arange(3), 4)
    start = GaussianStart(np.zeros(4), np.eye(4))
    assert_solved(solve_many(diffs_PK, user_P, 3, start), diffs_PK, user_P, start)
    weights_P, tilts_P = np.full(12, 0.5), np.full(12, -0.5)
    found = solve_many(diffs_PK, user_P, 3, start, weights_P=weights_P, tilts_P=tilts_P)
    wanted = solve(Support.of(diffs_PK[:4], weights_P=weights_P[:4], tilts_P=tilts_P[:4]), start)
    np.testing.assert_allclose(found[0].weights_K, wanted.weights_K, rtol=1e-8, atol=1e-8)


def test_no_pairs_give_the_start() -> None:
    start = start_of(3)
    found = solve_many(np.zeros((0, 3)), np.zeros(0, int), 4, start, factors=False)
    np.testing.assert_array_equal(found.weights_UK, np.tile(start.mean_K / start.temperature, (4, 1)))
    assert found.factors_UF is None
    assert found[2].factor is None


def test_misfits_are_refused() -> None:
    start = start_of(2)
    with pytest.raises(ValueError, match="expected diffs"):
        solve_many(np.zeros((3, 5)), np.zeros(3, int), 1, start)
    with pytest.raises(ValueError, match="users of pairs"):
        solve_many(np.zeros((3, 2)), np.array([0, 1, 2]), 2, start)
    with pytest.raises(ValueError, match="not finite"):
        solve_many(np.full((1, 2), np.nan), np.zeros(1, int), 1, start)
    with pytest.raises(ValueError, match=r"expected weights \[2\]"):
        solve_many(np.ones((2, 2)), np.zeros(2, int), 1, start, weights_P=np.ones(1))
    with pytest.raises(ValueError, match="weights must be"):
        solve_many(np.ones((2, 2)), np.zeros(2, int), 1, start, weights_P=np.array([1.0, 0.0]))
    with pytest.raises(ValueError, match="tilts must be"):
        solve_many(np.ones((2, 2)), np.zeros(2, int), 1, start, tilts_P=np.array([1.0, np.inf]))
