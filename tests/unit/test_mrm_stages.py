"""Weights, tilts and choices among several: against a plain loop, finite differences and closed forms."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import scipy.optimize
from hypothesis import given, settings
from hypothesis import strategies as st

from service.mrm import GaussianStart, SoftmaxStart, Support, solve
from service.mrm.evidence import choices_of, terms
from service.mrm.state import unpack_factor
from service.mrm.statements import ranking_stages

HEADS = 3


def start(gain: float | None = 0.7, temperature: float = 1.4) -> GaussianStart:
    rng = np.random.default_rng(0)
    root = rng.normal(size=(HEADS, HEADS))
    return GaussianStart(rng.normal(size=HEADS), root @ root.T + np.eye(HEADS), temperature, gain)


def mixed(seed: int = 1) -> Support:
    """Four pairs, a ranking of four with a tie, a choice out of five: weighted and tilted."""
    rng = np.random.default_rng(seed)
    ranking, ranking_stage = ranking_stages(rng.normal(size=(4, HEADS)), [2, 0, 1, 1])
    choice, choice_stage = ranking_stages(rng.normal(size=(5, HEADS)), [1, 1, 0, 1, 1])
    stages = np.concatenate([np.arange(4), 4 + ranking_stage, 10 + choice_stage])
    weights = rng.uniform(0.2, 2.0, size=20)[stages]
    tilts = np.concatenate([[0.0, -0.5, 0.3, -0.2], np.zeros(len(ranking)), np.full(len(choice), 0.05)])
    return Support.of(
        np.concatenate([rng.normal(size=(4, HEADS)), ranking, choice]),
        weights_P=weights,
        tilts_P=tilts,
        stages_P=stages,
    )


def loss(v: np.ndarray, support: Support) -> float:
    """The choices' loss, stage by stage and row by row."""
    total = 0.0
    for stage in sorted(set(support.stages_P.tolist())):
        rows = [p for p in range(len(support.stages_P)) if support.stages_P[p] == stage]
        others = sum(np.exp(-sum(d * x for d, x in zip(support.diffs_PK[p], v, strict=True))) for p in rows)
        tilted = sum(support.tilts_P[p] * (support.diffs_PK[p] @ v) for p in rows)
        total += support.weights_P[rows[0]] * (np.log(1.0 + others) - tilted)
    return float(total)


def objective(v: np.ndarray, support: Support, at: GaussianStart) -> float:
    return 0.5 * float((v - at.mean_K) @ at.precision_KK @ (v - at.mean_K)) + loss(v, support)


def covariance(state) -> np.ndarray:
    lower = unpack_factor(state.factor)
    return lower @ lower.T


def close(one, other, tolerance: float = 1e-9) -> None:
    np.testing.assert_allclose(one.weights_K, other.weights_K, atol=tolerance)
    np.testing.assert_allclose(covariance(one), covariance(other), atol=tolerance)


def slope(f, x: np.ndarray, step: float) -> np.ndarray:
    return np.array([(f(x + e) - f(x - e)) / (2 * step) for e in step * np.eye(len(x))])


@pytest.mark.parametrize("seed", range(3))
def test_the_loss_of_stages_and_its_derivatives_are_those_of_the_plain_loop(seed: int) -> None:
    support = dataclasses.replace(mixed(seed), tilts_P=np.zeros(len(mixed(seed))))
    several = support.shared
    only = Support.of(
        support.diffs_PK[several], weights_P=support.weights_P[several], stages_P=support.stages_P[several]
    )
    stages = choices_of(only).stages
    assert stages is not None
    for v in 2.0 * np.random.default_rng(seed).normal(size=(3, HEADS)):
        gradient, hessian = stages.derivatives(v)
        assert stages.loss(v) == pytest.approx(loss(v, only), rel=1e-12)
        np.testing.assert_allclose(gradient, slope(lambda x: loss(x, only), v, 1e-6), atol=1e-8)
        np.testing.assert_allclose(hessian, slope(stages.gradient, v, 1e-5), atol=1e-9)
        np.testing.assert_allclose(stages.gradient(v), gradient, atol=1e-14)


def test_the_mode_is_the_minimum_of_the_plain_objective() -> None:
    support, at = mixed(), start()
    other = scipy.optimize.minimize(objective, at.mean_K, args=(support, at), method="BFGS", options={"gtol": 1e-9})
    np.testing.assert_allclose(solve(support, at).weights_K * at.temperature, other.x, atol=1e-6)


def test_the_posterior_is_the_inverse_finite_difference_hessian() -> None:
    support, at = mixed(), start()
    state = solve(support, at)
    mode = state.weights_K * at.temperature
    hessian = slope(lambda v: slope(lambda x: objective(x, support, at), v, 1e-4), mode, 1e-4)
    np.testing.assert_allclose(covariance(state), np.linalg.inv(hessian) / at.temperature**2, rtol=1e-5)


def test_the_probabilities_of_all_orders_add_up_to_one() -> None:
    rng = np.random.default_rng(2)
    texts, v = rng.normal(size=(4, HEADS)), rng.normal(size=HEADS)
    total, best_first = 0.0, np.zeros(4)
    for ranks in itertools.permutations(range(4)):
        diffs, stages = ranking_stages(texts, ranks)
        probability = np.exp(-loss(v, Support.of(diffs, stages_P=stages)))
        total += probability
        best_first[ranks.index(0)] += probability
    assert total == pytest.approx(1.0)
    np.testing.assert_allclose(best_first, np.exp(texts @ v) / np.exp(texts @ v).sum())


def test_a_ranking_of_two_is_a_pair_to_the_last_bit() -> None:
    texts = np.random.default_rng(3).normal(size=(2, HEADS))
    diffs, stages = ranking_stages(texts, [7, 3])
    ranked, chosen = (
        solve(Support.of(diffs, stages_P=stages), start()),
        solve(Support.of([texts[1] - texts[0]]), start()),
    )
    assert ranked.weights_K.tobytes() == chosen.weights_K.tobytes()
    assert ranked.factor.tobytes() == chosen.factor.tobytes()


def test_one_choice_of_three_with_one_head_has_its_closed_form() -> None:
    # both others are 1 behind: v = 2 exp(-v) / (1 + 2 exp(-v)) with m = 0, P = 1
    state = solve(Support.of([[1.0], [1.0]], stages_P=[0, 0]), GaussianStart(np.zeros(1), np.ones((1, 1))))
    root = scipy.optimize.brentq(lambda v: v - 2 * np.exp(-v) / (1 + 2 * np.exp(-v)), 0, 1)
    assert state.weights_K[0] == pytest.approx(root)


@settings(max_examples=30, deadline=None)
@given(st.permutations(range(len(mixed()))), st.permutations(range(20)), st.sampled_from(["map", "softmax_adam"]))
def test_neither_the_order_of_rows_nor_the_names_of_stages_change_a_bit(
    order: list[int], names: list[int], recipe: str
) -> None:
    at = start() if recipe == "map" else SoftmaxStart(np.arange(3.0), 0.05, 4)
    support = mixed()
    shuffled = Support.of(
        support.diffs_PK[order],
        weights_P=support.weights_P[order],
        tilts_P=support.tilts_P[order],
        stages_P=np.array(names)[support.stages_P[order]],
    )
    one, other = solve(support, at), solve(shuffled, at)
    assert one.weights_K.tobytes() == other.weights_K.tobytes()
    if one.factor is not None:
        assert one.factor.tobytes() == other.factor.tobytes()


@settings(max_examples=30, deadline=None)
@given(st.floats(0.1, 100.0))
def test_weights_are_a_precision_of_what_was_said(factor: float) -> None:
    """All weights and the prior's precision times a: the mode stays, its covariance is divided by a."""
    support, at = mixed(), start()
    heavier = dataclasses.replace(support, weights_P=factor * support.weights_P)
    sharper = dataclasses.replace(at, precision_KK=factor * at.precision_KK)
    one, other = solve(support, at), solve(heavier, sharper)
    # both stop within 3e-6 posterior standard deviations of the mode
    np.testing.assert_allclose(one.weights_K, other.weights_K, atol=2e-5)
    np.testing.assert_allclose(covariance(one), factor * covariance(other), rtol=1e-4)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0.01, 100.0), min_size=1, max_size=5))
def test_a_repeated_choice_counts_as_much_as_its_heaviest(weights: list[float]) -> None:
    support = mixed()
    once = dataclasses.replace(support, weights_P=np.where(support.stages_P == 0, max(weights), support.weights_P))
    again = Support.of(
        np.concatenate([support.diffs_PK[1:], np.repeat(support.diffs_PK[:1], len(weights), axis=0)]),
        weights_P=np.concatenate([support.weights_P[1:], weights]),
        tilts_P=np.concatenate([support.tilts_P[1:], np.zeros(len(weights))]),
        stages_P=np.concatenate([support.stages_P[1:], 50 + np.arange(len(weights))]),
    )
    close(solve(once, start()), solve(again, start()), 1e-7)


def test_a_weight_of_two_counts_as_two_choices() -> None:
    """Of other texts, of course, that just look the same to the heads: repeating one does not count."""
    support = Support.of(np.random.default_rng(4).normal(size=(1, HEADS)), weights_P=[2.0])
    at = start()
    other = scipy.optimize.minimize(
        lambda v: objective(v, Support.of(np.repeat(support.diffs_PK, 2, axis=0)), at),
        at.mean_K,
        options={"gtol": 1e-9},
    )
    np.testing.assert_allclose(solve(support, at).weights_K * at.temperature, other.x, atol=1e-6)


def test_choices_from_the_same_texts_share_a_weight_whichever_was_taken() -> None:
    texts = np.random.default_rng(5).normal(size=(4, HEADS))
    rows, stages = [], []
    for stage, (taken, shift) in enumerate([(0, 0.0), (0, 3.0), (2, -1.0)]):
        # all texts of another prompt's level: only differences are seen
        diffs, _ = ranking_stages(texts[:: 1 if stage else -1] + shift, [int(n != taken) for n in range(4)])
        rows.append(diffs)
        stages += [stage] * 3
    other = np.random.default_rng(6).normal(size=(3, HEADS))
    support = Support.of(np.concatenate([*rows, other]), stages_P=[*stages, 9, 9, 9])
    found = choices_of(support).stages
    assert found is not None
    np.testing.assert_allclose(found.weights_S, [1 / 3, 1 / 3, 1 / 3, 1.0])


def test_the_last_choice_of_a_ranking_and_the_same_pair_are_one() -> None:
    texts = np.random.default_rng(7).normal(size=(3, HEADS))
    diffs, stages = ranking_stages(texts, [0, 1, 2])
    alone, again = (
        solve(Support.of(np.concatenate([diffs, more]), stages_P=[*stages, *range(5, 5 + len(more))]), start())
        for more in (np.zeros((0, HEADS)), [texts[1] - texts[2]])
    )
    close(alone, again)


def test_rows_of_strengths_are_observed_with_their_weights_and_tilts() -> None:
    rng, at = np.random.default_rng(8), start()
    diffs, strengths = rng.normal(size=(5, HEADS)), np.array([1.0, 2.0, 3.0, 1.0, 2.0])
    weights, tilts = rng.uniform(0.3, 2.0, 5), np.array([0.0, -0.5, -0.2, 0.25, 0.0])
    targets = 0.7 * np.sqrt(2) * strengths / np.sqrt(weights @ strengths**2 / weights.sum()) * (1 + 2 * tilts)
    precision = at.precision_KK + (diffs.T * weights) @ diffs / (np.pi**2 / 3)
    pull = at.precision_KK @ at.mean_K + diffs.T @ (weights * targets) / (np.pi**2 / 3)
    state = solve(Support.of(diffs, strengths, weights_P=weights, tilts_P=tilts), at)
    np.testing.assert_allclose(state.weights_K * at.temperature, np.linalg.solve(precision, pull), atol=1e-12)
    np.testing.assert_allclose(covariance(state) * at.temperature**2, np.linalg.inv(precision), atol=1e-12)


def test_weighted_ratings_equal_marginalising_a_level_of_each_group_under_a_wide_prior() -> None:
    rng, at = np.random.default_rng(9), start()
    rows, ratings, groups = rng.normal(size=(7, HEADS)), rng.normal(size=7), np.array([0, 0, 0, 1, 1, 1, 1])
    weights, noise = rng.uniform(0.2, 3.0, size=7), np.pi**2 / 6
    squares = freedom = 0.0
    for group in (0, 1):
        w, y = weights[groups == group], ratings[groups == group]
        squares += w @ (y - w @ y / w.sum()) ** 2
        freedom += w.sum() - w @ w / w.sum()
    targets = 0.7 * ratings / np.sqrt(squares / freedom)
    joint = np.zeros((5, 5))
    joint[:3, :3] = at.precision_KK
    joint[3:, 3:] = 1e-8 * np.eye(2)
    design = np.hstack([rows, np.eye(2)[groups]])
    precision = joint + (design.T * weights) @ design / noise
    pull = np.concatenate([at.precision_KK @ at.mean_K, np.zeros(2)]) + design.T @ (weights * targets) / noise
    state = solve(Support.of(np.zeros((0, 3)), None, rows, ratings, groups, weights_R=weights), at)
    np.testing.assert_allclose(state.weights_K * at.temperature, np.linalg.solve(precision, pull)[:3], atol=1e-6)
    np.testing.assert_allclose(covariance(state) * at.temperature**2, np.linalg.inv(precision)[:3, :3], atol=1e-6)


def test_beside_one_rating_the_others_of_its_group_may_weigh_nothing() -> None:
    rows = np.random.default_rng(10).normal(size=(3, HEADS))
    support = Support.of(np.zeros((0, HEADS)), None, rows, [1.0, 2.0, 5.0], weights_R=[1.0, 1e-60, 1e-60])
    close(solve(support, start()), solve(Support.empty(HEADS), start()))


def test_a_recipe_without_ratings_weighs_the_choices_that_they_imply() -> None:
    rng = np.random.default_rng(11)
    rows, ratings, weights = rng.normal(size=(3, HEADS)), np.array([3.0, 1.0, 2.0]), np.array([1.0, 0.5, 4.0])
    support = dataclasses.replace(
        mixed(), rated_RK=rows, ratings_R=ratings, groups_R=np.zeros(3, np.int64), weights_R=weights
    )
    pairs = [(0, 1), (0, 2), (2, 1)]
    implied = Support.of(
        np.concatenate([support.diffs_PK, [rows[i] - rows[j] for i, j in pairs]]),
        weights_P=[*support.weights_P, *(2 / (1 / weights[i] + 1 / weights[j]) for i, j in pairs)],
        tilts_P=[*support.tilts_P, 0, 0, 0],
        stages_P=[*support.stages_P, 50, 51, 52],
    )
    close(solve(support, start(None)), solve(implied, start(None)))
    published = SoftmaxStart(np.arange(3.0), 0.05, 4)
    np.testing.assert_allclose(solve(support, published).weights_K, solve(implied, published).weights_K, atol=1e-12)


def test_a_recipe_without_ratings_takes_strengths_as_choices_of_their_weights() -> None:
    diffs, weights = np.random.default_rng(12).normal(size=(3, HEADS)), [0.5, 1.0, 2.0]
    graded, plain = Support.of(diffs, [1.0, 2.0, 3.0], weights_P=weights), Support.of(diffs, weights_P=weights)
    close(solve(graded, start(None)), solve(plain, start(None)))


def test_the_published_recipe_takes_the_weighted_mean_of_the_losses() -> None:
    torch = pytest.importorskip("torch")
    support, at = mixed(), SoftmaxStart(np.array([0.5, -0.2, 0.1]), 0.03, 7)
    logits = torch.tensor(at.logits_K, requires_grad=True)
    optimiser = torch.optim.Adam([logits], lr=at.inner_lr)
    for _ in range(at.inner_steps):
        optimiser.zero_grad()
        margins = torch.tensor(support.diffs_PK) @ torch.softmax(logits, 0)
        total, weight = torch.zeros(()), 0.0
        for stage in set(support.stages_P.tolist()):
            mine = torch.tensor(support.stages_P == stage)
            each = torch.log1p(torch.exp(-margins[mine]).sum()) - (torch.tensor(support.tilts_P) * margins)[mine].sum()
            total = total + support.weights_P[support.stages_P == stage][0] * each
            weight += support.weights_P[support.stages_P == stage][0]
        (total / weight).backward()
        optimiser.step()
    np.testing.assert_allclose(solve(support, at).weights_K, torch.softmax(logits.detach(), 0).numpy(), atol=1e-12)


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"weights_P": [1.0, 1.0]}, "weights, tilts and stages"),
        ({"weights_P": [1.0, 1.0, 0.0]}, "weights must be"),
        ({"weights_P": [1.0, 1.0, np.nan]}, "weights must be"),
        ({"weights_P": [1.0, 1.0, 1e7]}, "weights must be"),
        ({"tilts_P": [0.0, 0.0, np.nan]}, "tilts must be"),
        ({"tilts_P": [0.0, 0.0, -1e7]}, "tilts must be"),
        ({"stages_P": [0, 0]}, "weights, tilts and stages"),
        ({"stages_P": [0, 1, 0], "weights_P": [1.0, 1.0, 2.0]}, "same weight"),
        ({"stages_P": [0, 1, 0], "strengths_P": [np.nan, 1.0, 2.0]}, "no strength"),
        ({"weights_R": [1.0]}, "weights of ratings"),
    ],
)
def test_impossible_weights_tilts_and_stages_are_refused(given: dict[str, list], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        Support.of(np.ones((3, 2)), **given)


def test_plain_pairs_have_neither_pull_nor_stages() -> None:
    choices, _ = terms(Support.of(np.random.default_rng(13).normal(size=(4, HEADS))), 0.7)
    assert choices.pull_K is None
    assert choices.stages is None
