"""What statements become: against expected losses, true likelihoods and plain loops."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.mrm import GaussianStart, Support, solve
from service.mrm.statements import (
    PLAIN,
    TIE,
    Reading,
    flip_noise,
    half_life_weights,
    ranking_stages,
    rating_groups,
    soft_label,
    uniform_choice_noise,
)

LOGITS = st.floats(-30, 30)


def softplus(x: float) -> float:
    return float(np.logaddexp(0, x))


def loss(x: float, reading: Reading) -> float:
    """Of a choice between two with logit x."""
    return reading.weight * (softplus(-x) - reading.tilt * x)


def sigmoid(x: float) -> float:
    return float(1 / (1 + np.exp(-x)))


@given(LOGITS, st.floats(0, 1))
def test_a_soft_label_has_the_expected_loss_of_both_answers(x: float, probability: float) -> None:
    expected = probability * loss(x, PLAIN) + (1 - probability) * loss(-x, PLAIN)
    assert loss(x, soft_label(probability)) == pytest.approx(expected, abs=1e-9)


def test_a_certain_label_is_a_choice_and_an_even_one_a_tie() -> None:
    assert soft_label(1.0) == PLAIN
    assert soft_label(0.5) == TIE


def test_a_tie_is_the_same_either_way_and_leaves_an_indifferent_start() -> None:
    diff = np.array([[1.0, -2.0]])
    at = GaussianStart(np.array([0.7, -0.4]), np.array([[1.0, 0.2], [0.2, 1.0]]))
    one, other = (solve(Support.of(sign * diff, tilts_P=[TIE.tilt]), at) for sign in (1, -1))
    np.testing.assert_allclose(one.weights_K, other.weights_K, atol=1e-9)
    assert 0 < diff[0] @ one.weights_K < diff[0] @ at.mean_K
    indifferent = GaussianStart(np.array([2.0, 1.0]), at.precision_KK)
    state = solve(Support.of(diff, tilts_P=[TIE.tilt]), indifferent)
    np.testing.assert_array_equal(state.weights_K, indifferent.mean_K)


@given(LOGITS, st.floats(0, 0.45), st.floats(-1, 0))
def test_the_loss_of_an_answer_that_may_be_turned_round_is_unbiased(x: float, probability: float, tilt: float) -> None:
    straight = Reading(1.0, tilt)
    noisy = flip_noise(probability, straight)
    # what is seen is turned with that probability; a turned statement has logit -x
    mean = (1 - probability) * loss(x, noisy) + probability * loss(-x, noisy)
    assert mean == pytest.approx((1 - 2 * probability) ** 2 * loss(x, straight), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("probability", [0.0, 0.1, 0.3, 0.45])
def test_a_flip_has_the_true_likelihood_s_gradient_and_information_where_one_is_indifferent(probability: float) -> None:
    reading, step = flip_noise(probability), 1e-4

    def likelihood(x: float) -> float:
        return (1 - probability) * sigmoid(x) + probability * sigmoid(-x)

    slope = (loss(step, reading) - loss(-step, reading)) / (2 * step)
    true_slope = -(np.log(likelihood(step)) - np.log(likelihood(-step))) / (2 * step)
    assert slope == pytest.approx(true_slope, abs=1e-7)
    bend = (loss(step, reading) - 2 * loss(0, reading) + loss(-step, reading)) / step**2
    information = sum((likelihood(s * step) - likelihood(-s * step)) ** 2 / (4 * step**2 * 0.5) for s in (1, -1))
    assert bend == pytest.approx(information, rel=1e-5, abs=1e-6)


def test_a_turned_tie_is_a_tie() -> None:
    assert flip_noise(0.2, TIE).tilt == pytest.approx(TIE.tilt)


@given(st.floats(0, 0.9))
def test_a_blind_choice_of_two_is_a_flip_half_as_often(probability: float) -> None:
    np.testing.assert_allclose(uniform_choice_noise(probability, 2), flip_noise(probability / 2), atol=1e-12)


@given(
    st.integers(2, 6).flatmap(lambda n: st.tuples(st.lists(LOGITS, min_size=n, max_size=n), st.integers(0, n - 1))),
    st.floats(0, 0.9),
)
def test_the_loss_of_a_choice_that_may_be_blind_is_unbiased(drawn: tuple[list[float], int], probability: float) -> None:
    utilities, taken = drawn
    reading = uniform_choice_noise(probability, len(utilities))

    def of(choice: int, by: Reading) -> float:
        ahead = [utilities[choice] - u for i, u in enumerate(utilities) if i != choice]
        return by.weight * (np.log1p(np.exp(-np.array(ahead)).sum()) - by.tilt * sum(ahead))

    blind = np.mean([of(each, reading) for each in range(len(utilities))])
    mean = (1 - probability) * of(taken, reading) + probability * blind
    assert mean == pytest.approx((1 - probability) ** 2 * of(taken, PLAIN), abs=1e-9)


@pytest.mark.parametrize("texts", [2, 3, 7])
def test_a_blind_choice_has_the_true_likelihood_s_gradient_and_information_at_indifference(texts: int) -> None:
    """Of n texts at utilities t a, along a direction a: p_i = (1 - e) softmax_i + e / n."""
    probability, step = 0.3, 1e-4
    along = np.random.default_rng(texts).normal(size=texts)
    weight, tilt = uniform_choice_noise(probability, texts)

    def chances(t: float) -> np.ndarray:
        return (1 - probability) * np.exp(t * along) / np.exp(t * along).sum() + probability / texts

    def lost(t: float) -> float:
        ahead = t * (along[0] - along[1:])
        return weight * (np.log1p(np.exp(-ahead).sum()) - tilt * ahead.sum())

    slope = (lost(step) - lost(-step)) / (2 * step)
    true_slope = -(np.log(chances(step)[0]) - np.log(chances(-step)[0])) / (2 * step)
    assert slope == pytest.approx(true_slope, abs=1e-7)
    bend = (lost(step) - 2 * lost(0) + lost(-step)) / step**2
    changes = (chances(step) - chances(-step)) / (2 * step)
    assert bend == pytest.approx((changes**2 / chances(0)).sum(), rel=1e-5)


@pytest.mark.parametrize("ranks", [(0, 1), (3, 1, 2), (0, 0, 1), (0, 1, 1, 1), (5, 5, 2, 2, 9), (1, 1), (4,)])
def test_each_text_of_a_ranking_is_taken_before_all_that_are_ranked_lower(ranks: tuple[int, ...]) -> None:
    texts = np.random.default_rng(0).normal(size=(len(ranks), 3))
    wanted = {
        i: [texts[i] - texts[j] for j in range(len(ranks)) if ranks[j] > ranks[i]]
        for i in range(len(ranks))
        if any(rank > ranks[i] for rank in ranks)
    }
    diffs, stages = ranking_stages(texts, ranks)
    assert len(diffs) == len(stages)
    assert sorted(set(stages.tolist())) == list(range(len(wanted)))
    for stage, rows in enumerate(wanted.values()):
        np.testing.assert_array_equal(diffs[stages == stage], rows)


def test_ratings_alone_at_their_prompt_are_compared_with_each_other() -> None:
    assert rating_groups([b"b", b"a", b"c", b"a", b"d", b"b", b"a"]).tolist() == [2, 1, 0, 1, 0, 2, 1]
    assert rating_groups([]).tolist() == []
    assert rating_groups([None, b"a", None]).tolist() == [1, 0, 1]


def test_of_two_half_lives_a_quarter_is_left_and_of_any_age_something() -> None:
    np.testing.assert_array_equal(half_life_weights([0.0, 5.0, 10.0], 5.0), [1.0, 0.5, 0.25])
    np.testing.assert_array_equal(half_life_weights([0.0, 1e12], None), [1.0, 1.0])
    assert half_life_weights([1e12], 1e-3)[0] > 0


@pytest.mark.parametrize(
    "impossible",
    [
        lambda: soft_label(1.1),
        lambda: soft_label(float("nan")),
        lambda: flip_noise(0.5),
        lambda: flip_noise(-0.1),
        lambda: uniform_choice_noise(1.0, 3),
        lambda: uniform_choice_noise(0.1, 1),
        lambda: ranking_stages(np.zeros((2, 1)), [0]),
        lambda: half_life_weights([1.0], 0.0),
    ],
)
def test_impossible_statements_are_refused(impossible) -> None:
    with pytest.raises(ValueError, match=r"must lie|needs? |must be above 0"):
        impossible()
