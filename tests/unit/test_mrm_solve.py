"""The solvers against plain loops, finite differences, and the properties that serving relies on."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.optimize
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from service.mrm import GaussianStart, SoftmaxStart, Support, solve
from service.mrm.combine import ranking, reward_std, rewards
from service.mrm.state import pack_factor, unpack_factor


def gaussian_start(heads: int, seed: int = 0, temperature: float = 1.0) -> GaussianStart:
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(heads, heads))
    return GaussianStart(rng.normal(size=heads), root @ root.T + np.eye(heads), temperature)


def random_support(pairs: int, heads: int, seed: int = 1) -> Support:
    rng = np.random.default_rng(seed)
    return Support(rng.normal(size=(pairs, heads)), rng.uniform(0.2, 3.0, size=pairs))


def map_objective(v: np.ndarray, support: Support, start: GaussianStart) -> float:
    """The MAP objective as a plain loop over pairs and heads."""
    total = 0.0
    for i in range(start.heads):
        for j in range(start.heads):
            total += 0.5 * (v[i] - start.mean_K[i]) * start.precision_KK[i, j] * (v[j] - start.mean_K[j])
    for diff, strength in zip(support.diffs_PK, support.strengths_P, strict=True):
        logit = sum(d * w for d, w in zip(diff, v, strict=True))
        total += strength * np.log1p(np.exp(-logit))
    return float(total)


def finite_difference_hessian(f, x: np.ndarray, step: float = 1e-4) -> np.ndarray:
    size = len(x)
    hessian = np.zeros((size, size))
    for i in range(size):
        for j in range(size):
            e_i, e_j = step * np.eye(size)[i], step * np.eye(size)[j]
            hessian[i, j] = (f(x + e_i + e_j) - f(x + e_i - e_j) - f(x - e_i + e_j) + f(x - e_i - e_j)) / (4 * step**2)
    return hessian


@pytest.mark.parametrize("pairs", [1, 7, 50])
def test_map_weights_are_the_minimum_of_the_plain_objective(pairs: int) -> None:
    start, support = gaussian_start(4), random_support(pairs, 4)
    state = solve(support, start)
    other = scipy.optimize.minimize(
        map_objective, start.mean_K, args=(support, start), method="Nelder-Mead",
        options={"xatol": 1e-10, "fatol": 1e-14, "maxiter": 20_000, "maxfev": 20_000},
    )  # fmt: skip
    np.testing.assert_allclose(state.weights_K, other.x, atol=1e-5)


def test_posterior_is_the_inverse_finite_difference_hessian() -> None:
    start, support = gaussian_start(3, temperature=1.7), random_support(20, 3)
    state = solve(support, start)
    mode_v = state.weights_K * start.temperature
    hessian = finite_difference_hessian(lambda v: map_objective(v, support, start), mode_v)
    assert state.factor is not None
    lower = unpack_factor(state.factor)
    np.testing.assert_allclose(lower @ lower.T, np.linalg.inv(hessian) / start.temperature**2, rtol=1e-5)


def test_one_pair_one_head_has_its_closed_form() -> None:
    # (v - m) p = d sigmoid(-d v): with m = 0, p = 1, d = 1 the root of v = sigmoid(-v).
    state = solve(Support.of([[1.0]]), GaussianStart(np.zeros(1), np.ones((1, 1))))
    assert state.weights_K[0] == pytest.approx(scipy.optimize.brentq(lambda v: v - 1 / (1 + np.exp(v)), 0, 1))


def test_without_pairs_the_state_is_the_start() -> None:
    start = gaussian_start(5, temperature=2.0)
    state = solve(Support.empty(5), start)
    np.testing.assert_allclose(state.weights_K, start.mean_K / 2.0)
    assert state.factor is not None
    lower = unpack_factor(state.factor)
    np.testing.assert_allclose(lower @ lower.T, np.linalg.inv(start.precision_KK) / 4.0)
    softmax_start = SoftmaxStart(np.array([0.0, np.log(3.0)]), 0.1, 3)
    np.testing.assert_allclose(solve(Support.empty(2), softmax_start).weights_K, [0.25, 0.75])


@settings(max_examples=100, deadline=None)
@given(
    diffs=hnp.arrays(np.float64, (12, 3), elements=st.floats(-1e6, 1e6)),
    strengths=hnp.arrays(np.float64, 12, elements=st.floats(1e-6, 1e4)),
    recipe=st.sampled_from(["map", "softmax_adam"]),
)
def test_any_finite_pairs_end_in_finite_weights(diffs: np.ndarray, strengths: np.ndarray, recipe: str) -> None:
    start = gaussian_start(3) if recipe == "map" else SoftmaxStart(np.array([0.3, -1.0, 2.0]), 0.05, 5)
    state = solve(Support(diffs, strengths), start)
    assert np.isfinite(state.weights_K).all()
    if recipe == "map":
        assert state.factor is not None
        assert np.isfinite(state.factor).all()


@given(st.permutations(range(15)), st.sampled_from(["map", "softmax_adam"]))
def test_the_order_of_pairs_changes_no_bit(order: list[int], recipe: str) -> None:
    support = random_support(15, 4)
    start = gaussian_start(4) if recipe == "map" else SoftmaxStart(np.arange(4.0), 0.05, 4)
    shuffled = Support(support.diffs_PK[order], support.strengths_P[order])
    assert solve(support, start).weights_K.tobytes() == solve(shuffled, start).weights_K.tobytes()


def test_a_pair_of_strength_two_weighs_as_two_pairs() -> None:
    diff = np.array([[0.4, -0.2, 1.0]])
    start = gaussian_start(3)
    twice = solve(Support.of(np.vstack([diff, diff])), start)
    strong = solve(Support.of(diff, [2.0]), start)
    np.testing.assert_allclose(twice.weights_K, strong.weights_K, atol=1e-9)


def test_softmax_adam_equals_a_plain_autograd_loop() -> None:
    torch = pytest.importorskip("torch")
    support, start = random_support(9, 3), SoftmaxStart(np.array([0.5, -0.2, 0.1]), 0.03, 7)
    logits = torch.tensor(start.logits_K, requires_grad=True)
    optimiser = torch.optim.Adam([logits], lr=start.inner_lr)
    for _ in range(start.inner_steps):
        optimiser.zero_grad()
        margins = torch.tensor(support.diffs_PK) @ torch.softmax(logits, 0)
        losses = torch.nn.functional.softplus(-margins) * torch.tensor(support.strengths_P)
        (losses.sum() / support.strengths_P.sum()).backward()
        optimiser.step()
    expected = torch.softmax(logits.detach(), 0).numpy()
    np.testing.assert_allclose(solve(support, start).weights_K, expected, atol=1e-12)


@pytest.mark.parametrize(
    ("diffs", "strengths"),
    [([[np.nan]], [1.0]), ([[np.inf]], [1.0]), ([[1.0]], [0.0]), ([[1.0]], [-1.0]), ([[1.0]], [1.0, 2.0])],
)
def test_impossible_support_is_refused(diffs: list[list[float]], strengths: list[float]) -> None:
    with pytest.raises(ValueError, match=r"finite|positive|expected"):
        Support(np.array(diffs), np.array(strengths))


def test_support_of_another_k_is_refused() -> None:
    with pytest.raises(ValueError, match="K = 2"):
        solve(random_support(3, 2), gaussian_start(3))


@pytest.mark.parametrize("precision", [[[1.0, 0.5], [0.4, 1.0]], [[1.0, 2.0], [2.0, 1.0]], [[1.0, 0.0], [0.0, np.nan]]])
def test_an_impossible_prior_is_refused(precision: list[list[float]]) -> None:
    with pytest.raises(ValueError, match=r"symmetric|definite|finite"):
        GaussianStart(np.zeros(2), np.array(precision))


@given(st.integers(1, 20))
def test_packing_a_factor_loses_nothing(heads: int) -> None:
    lower = np.tril(np.random.default_rng(heads).normal(size=(heads, heads)))
    np.testing.assert_array_equal(unpack_factor(pack_factor(lower)), lower)


def test_unpacking_refuses_what_is_no_triangle() -> None:
    with pytest.raises(ValueError, match="packed factor"):
        unpack_factor(np.zeros(5))


def test_rewards_and_their_deviation_equal_plain_sums() -> None:
    state = solve(random_support(10, 3), gaussian_start(3))
    phi = np.random.default_rng(5).normal(size=(4, 3))
    assert state.factor is not None
    lower = unpack_factor(state.factor)
    covariance = lower @ lower.T
    deviations = reward_std(phi, state)
    assert deviations is not None
    for i in range(4):
        assert rewards(phi, state)[i] == pytest.approx(sum(phi[i][k] * state.weights_K[k] for k in range(3)))
        assert deviations[i] == pytest.approx(np.sqrt(phi[i] @ covariance @ phi[i]))


def test_ranking_is_stable_from_best_to_worst() -> None:
    assert ranking(np.array([0.1, 2.0, 0.1, 5.0])) == [3, 1, 0, 2]
