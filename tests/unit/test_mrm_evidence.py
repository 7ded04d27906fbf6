"""Choices, strengths and ratings in one solve: against a plain loop, closed forms and what must not matter."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import scipy.optimize
from hypothesis import given, settings
from hypothesis import strategies as st

from service.mrm import GaussianStart, SoftmaxStart, Support, solve
from service.mrm.evidence import distinct_weights, terms
from service.mrm.state import unpack_factor

GAIN = 0.7


def start(heads: int = 3, gain: float | None = GAIN, temperature: float = 1.4) -> GaussianStart:
    rng = np.random.default_rng(0)
    root = rng.normal(size=(heads, heads))
    return GaussianStart(rng.normal(size=heads), root @ root.T + np.eye(heads), temperature, gain)


def mixed_support(heads: int = 3) -> Support:
    """Eight plain choices, seven graded ones, nine ratings in three groups of which one is alone."""
    rng = np.random.default_rng(1)
    strengths = np.concatenate([np.full(8, np.nan), rng.uniform(0.5, 3.0, 6), [40.0]])
    return Support.of(
        rng.normal(size=(15, heads)),
        strengths,
        rng.normal(size=(9, heads)),
        rng.normal(3.0, 2.0, size=9),
        [0, 0, 0, 0, 5, 5, 5, 5, 9],
    )


def objective(v: np.ndarray, support: Support, at: GaussianStart) -> float:
    """The MAP objective, pair by pair and rating by rating."""
    assert at.rating_gain is not None
    noise = np.pi**2 / 6
    total = 0.5 * (v - at.mean_K) @ at.precision_KK @ (v - at.mean_K)
    given = [s for s in support.strengths_P if not np.isnan(s)]
    clipped = [min(s, 4 * np.median(given)) for s in given]
    scale = np.sqrt(np.mean(np.square(clipped)))
    for diff, strength in zip(support.diffs_PK, support.strengths_P, strict=True):
        if np.isnan(strength):
            total += np.log1p(np.exp(-(diff @ v)))
        else:
            target = at.rating_gain * np.sqrt(2) * min(strength, 4 * np.median(given)) / scale
            total += (target - diff @ v) ** 2 / (2 * 2 * noise)
    squares, freedom, centred = 0.0, 0, []
    for group in sorted(set(support.groups_R)):
        inside = support.groups_R == group
        ratings, rows = support.ratings_R[inside], support.rated_RK[inside]
        freedom += len(ratings) - 1
        for rating, row in zip(ratings, rows, strict=True):
            squares += (rating - np.mean(ratings)) ** 2
            centred.append((rating - np.mean(ratings), row - rows.mean(axis=0)))
    for above, row in centred:
        total += (at.rating_gain * above / np.sqrt(squares / freedom) - row @ v) ** 2 / (2 * noise)
    return float(total)


def implied_choices(support: Support) -> list[np.ndarray]:
    """Higher rated minus lower, within each group."""
    ratings, groups = support.ratings_R, support.groups_R
    return [
        support.rated_RK[i] - support.rated_RK[j]
        for i in range(len(ratings))
        for j in range(len(ratings))
        if groups[i] == groups[j] and ratings[i] > ratings[j]
    ]


def covariance(state) -> np.ndarray:
    lower = unpack_factor(state.factor)
    return lower @ lower.T


def close(one, other, tolerance: float = 1e-9) -> None:
    np.testing.assert_allclose(one.weights_K, other.weights_K, atol=tolerance)
    np.testing.assert_allclose(covariance(one), covariance(other), atol=tolerance)


def test_the_mode_of_all_kinds_of_evidence_is_the_minimum_of_the_plain_objective() -> None:
    support, at = mixed_support(), start()
    other = scipy.optimize.minimize(objective, at.mean_K, args=(support, at), method="BFGS", options={"gtol": 1e-9})
    np.testing.assert_allclose(solve(support, at).weights_K * at.temperature, other.x, atol=1e-6)


def test_the_posterior_of_all_kinds_of_evidence_is_the_inverse_finite_difference_hessian() -> None:
    support, at = mixed_support(), start()
    state = solve(support, at)
    mode, step = state.weights_K * at.temperature, 1e-4 * np.eye(3)

    def second(i: int, j: int) -> float:
        corners = ((1, 1, 1), (1, -1, -1), (-1, 1, -1), (-1, -1, 1))
        return sum(s * objective(mode + a * step[i] + b * step[j], support, at) for a, b, s in corners) / 4e-8

    hessian = np.array([[second(i, j) for j in range(3)] for i in range(3)])
    np.testing.assert_allclose(covariance(state), np.linalg.inv(hessian) / at.temperature**2, rtol=1e-5)


def test_graded_choices_alone_have_the_conjugate_closed_form() -> None:
    rng, at = np.random.default_rng(2), start()
    diffs, strengths = rng.normal(size=(6, 3)), np.array([1.0, 2.0, 3.0, 1.0, 2.0, 2.5])
    targets = GAIN * np.sqrt(2) * strengths / np.sqrt(np.mean(strengths**2))
    noise = np.pi**2 / 3
    precision = at.precision_KK + diffs.T @ diffs / noise
    mean = np.linalg.solve(precision, at.precision_KK @ at.mean_K + diffs.T @ targets / noise)
    state = solve(Support.of(diffs, strengths), at)
    np.testing.assert_allclose(state.weights_K, mean / at.temperature, atol=1e-12)
    np.testing.assert_allclose(covariance(state), np.linalg.inv(precision) / at.temperature**2, atol=1e-12)


def test_ratings_equal_marginalising_a_level_of_each_group_under_a_wide_prior() -> None:
    rng, at = np.random.default_rng(3), start()
    rows, ratings, groups = rng.normal(size=(9, 3)), rng.normal(size=9), np.array([0, 0, 0, 0, 1, 1, 1, 1, 1])
    member = np.eye(2)[groups]
    centred = ratings - member @ (member.T @ ratings / member.sum(0))
    targets = GAIN * ratings / np.sqrt(centred @ centred / 7)
    # v and the two levels together; the levels have a prior of variance 1e8
    joint = np.zeros((5, 5))
    joint[:3, :3] = at.precision_KK
    joint[3:, 3:] = 1e-8 * np.eye(2)
    design = np.hstack([rows, member])
    precision = joint + design.T @ design / (np.pi**2 / 6)
    pull = np.concatenate([at.precision_KK @ at.mean_K, np.zeros(2)]) + design.T @ targets / (np.pi**2 / 6)
    state = solve(Support.of(np.zeros((0, 3)), None, rows, ratings, groups), at)
    np.testing.assert_allclose(state.weights_K * at.temperature, np.linalg.solve(precision, pull)[:3], atol=1e-6)
    np.testing.assert_allclose(covariance(state) * at.temperature**2, np.linalg.inv(precision)[:3, :3], atol=1e-6)


@settings(max_examples=50, deadline=None)
@given(st.floats(1e-6, 1e6), st.floats(-1e6, 1e6), st.floats(1e-300, 1e290))
def test_the_scales_of_ratings_and_strengths_do_not_matter(slope: float, level: float, factor: float) -> None:
    support = mixed_support()
    rescaled = dataclasses.replace(
        support,
        strengths_P=factor * support.strengths_P,
        ratings_R=slope * support.ratings_R + level,
    )
    # what a float keeps of a rating beside its level
    tolerance = 1e-7 + 1e-14 * abs(level) / slope
    close(solve(support, start()), solve(rescaled, start()), tolerance)


@pytest.mark.parametrize("scale", [1e-300, 1e-12, 1e12, 1e300])
def test_ratings_of_extreme_sizes_are_ratings(scale: float) -> None:
    support = mixed_support()
    close(solve(support, start()), solve(dataclasses.replace(support, ratings_R=scale * support.ratings_R), start()))


def test_every_group_may_have_its_own_level() -> None:
    support = mixed_support()
    levels = np.array([1e3, -5.0, 1e5])[np.unique(support.groups_R, return_inverse=True)[1]]
    shifted = dataclasses.replace(support, ratings_R=support.ratings_R + levels)
    close(solve(support, start()), solve(shifted, start()), 1e-7)


@pytest.mark.parametrize("strength", [1.0, 1e-300, 1e300])
def test_equal_strengths_are_plain_choices(strength: float) -> None:
    diffs = np.random.default_rng(4).normal(size=(6, 3))
    plain, equal = solve(Support.of(diffs), start()), solve(Support.of(diffs, np.full(6, strength)), start())
    assert plain.weights_K.tobytes() == equal.weights_K.tobytes()


def test_one_strength_beside_plain_choices_is_a_plain_choice() -> None:
    diffs = np.random.default_rng(4).normal(size=(3, 3))
    close(solve(Support.of(diffs), start()), solve(Support.of(diffs, [np.nan, np.nan, 7.0]), start()))


@pytest.mark.parametrize(
    ("ratings", "groups"),
    [([4.0, 4.0, 4.0], [0, 0, 0]), ([1.0, 2.0, 3.0], [0, 1, 2]), ([7.0], [0]), ([0.0, 0.0], [0, 0])],
)
def test_ratings_that_do_not_differ_are_no_evidence(ratings: list[float], groups: list[int]) -> None:
    rated = np.random.default_rng(5).normal(size=(len(ratings), 3))
    support = Support.of(np.zeros((0, 3)), None, rated, ratings, groups)
    close(solve(Support.empty(3), start()), solve(support, start()))


def test_a_rating_that_is_alone_in_its_group_changes_nothing() -> None:
    support = mixed_support()
    without = Support.of(
        support.diffs_PK, support.strengths_P, support.rated_RK[:-1], support.ratings_R[:-1], support.groups_R[:-1]
    )
    close(solve(support, start()), solve(without, start()))


def test_a_recipe_without_ratings_takes_the_choices_that_they_imply() -> None:
    support, at = mixed_support(), start(gain=None)
    implied = implied_choices(support)
    close(solve(support, at), solve(Support.of(np.concatenate([support.diffs_PK, implied])), at))


@given(st.permutations(range(15)), st.permutations(range(9)), st.sampled_from(["map", "map without", "softmax_adam"]))
def test_the_order_of_evidence_changes_no_bit(pairs: list[int], rated: list[int], recipe: str) -> None:
    at = {"map": start(), "map without": start(gain=None), "softmax_adam": SoftmaxStart(np.arange(3.0), 0.05, 4)}[
        recipe
    ]
    support = mixed_support()
    shuffled = Support.of(
        support.diffs_PK[pairs],
        support.strengths_P[pairs],
        support.rated_RK[rated],
        support.ratings_R[rated],
        support.groups_R[rated],
    )
    one, other = solve(support, at), solve(shuffled, at)
    assert one.weights_K.tobytes() == other.weights_K.tobytes()
    if one.factor is not None:
        assert other.factor is not None
        assert one.factor.tobytes() == other.factor.tobytes()


def test_ratings_of_another_k_are_refused() -> None:
    with pytest.raises(ValueError, match="K = 2"):
        solve(Support.of(np.zeros((0, 2)), None, np.ones((2, 2)), [1.0, 2.0]), start(3))


def test_softmax_adam_takes_ratings_as_choices_and_no_strengths() -> None:
    torch = pytest.importorskip("torch")
    support, at = mixed_support(), SoftmaxStart(np.array([0.5, -0.2, 0.1]), 0.03, 7)
    logits = torch.tensor(at.logits_K, requires_grad=True)
    optimiser = torch.optim.Adam([logits], lr=at.inner_lr)
    for _ in range(at.inner_steps):
        optimiser.zero_grad()
        margins = torch.tensor(np.concatenate([support.diffs_PK, implied_choices(support)])) @ torch.softmax(logits, 0)
        torch.nn.functional.softplus(-margins).mean().backward()
        optimiser.step()
    np.testing.assert_allclose(solve(support, at).weights_K, torch.softmax(logits.detach(), 0).numpy(), atol=1e-12)


def test_a_repeated_answer_counts_once_and_contrary_ones_share() -> None:
    rng = np.random.default_rng(6)
    one, other = rng.normal(size=(2, 3))
    np.testing.assert_allclose(
        distinct_weights(np.array([one, other, -one, one, np.zeros(3)]), np.ones(5)), [1 / 3, 1, 1 / 3, 1 / 3, 1]
    )
    close(solve(Support.of([one, other]), start()), solve(Support.of([one, one, one, other]), start()))


def test_what_batches_of_an_engine_change_does_not_make_a_new_answer() -> None:
    rng = np.random.default_rng(7)
    diffs = rng.normal(size=(200, 16))
    again = diffs * (1 + 1e-7 * rng.normal(size=diffs.shape)) * rng.choice([-1.0, 1.0], size=(200, 1))
    np.testing.assert_array_equal(distinct_weights(np.concatenate([diffs, again]), np.ones(400)), 0.5)


@pytest.mark.parametrize("heads", [1, 2, 32])
def test_answers_that_differ_count_one_each(heads: int) -> None:
    diffs = np.random.default_rng(8).normal(size=(1000, heads))
    weights = distinct_weights(diffs, np.ones(1000))
    # of one number each, a few of a thousand agree to five digits
    assert (weights == 1).all() if heads > 1 else (weights == 1).mean() > 0.95


@pytest.mark.parametrize("scale", [0.0, 1e-320, 1e-300, 1e100])
def test_answers_of_extreme_sizes_are_told_apart_without_a_warning(scale: float) -> None:
    rows = scale * np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    np.testing.assert_allclose(distinct_weights(rows, np.ones(3)), 1 / 3 if scale == 0 else [0.5, 1.0, 0.5])


def test_a_repeated_grade_counts_once() -> None:
    diffs, strengths = np.random.default_rng(9).normal(size=(3, 3)), np.array([1.0, 2.0, 3.0])
    _, observations = terms(Support.of(diffs[[0, 1, 2, 2]], strengths[[0, 1, 2, 2]]), GAIN)
    np.testing.assert_allclose(observations.variances_Q, np.pi**2 / 3 * np.array([1.0, 1.0, 2.0, 2.0]))


def test_base_rewards_whose_squares_overflow_are_refused() -> None:
    for at in (start(), start(gain=None)):
        with pytest.raises(ValueError, match="too large"):
            solve(Support.of([[1e200, 0.0, 0.0]]), at)
        with pytest.raises(ValueError, match="too large"):
            solve(Support.of(np.zeros((0, 3)), None, [[1e200, 0.0, 0.0], [0.0, 0.0, 0.0]], [1.0, 2.0]), at)
