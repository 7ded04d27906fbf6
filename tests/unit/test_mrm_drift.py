"""Forgetting: what a history says about change, on people whose changes are known."""

from __future__ import annotations

import time
from itertools import pairwise

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.special import expit

from service.mrm import GaussianStart, SoftmaxStart, Support, drift, solve
from service.mrm.drift import LEAST_ITEMS, Drift, assess

HEADS = 6
START = GaussianStart(np.full(HEADS, 0.3), 0.5 * np.eye(HEADS), 1.1)


def told(taste: np.ndarray, pairs: int, rng: np.random.Generator) -> np.ndarray:
    """Choices of somebody."""
    diffs = rng.normal(size=(pairs, len(taste)))
    return np.asarray(diffs * np.sign(diffs @ taste + rng.logistic(size=pairs))[:, None])


def tastes(rng: np.random.Generator, count: int) -> np.ndarray:
    return np.asarray(START.mean_K + rng.normal(size=(count, HEADS)) * np.sqrt(2.0))


def ages_of(pairs: int) -> np.ndarray:
    return np.arange(pairs)[::-1].astype(float)


def histories(kind: str, seeds: range) -> list[Drift]:
    found = []
    for seed in seeds:
        rng = np.random.default_rng(seed)
        before, after = tastes(rng, 2)
        if kind == "switch":
            diffs = np.concatenate([told(before, 60, rng), told(after, 30, rng)])
        else:
            diffs = told(after, 90, rng)
        found.append(assess(Support.of(diffs), ages_of(90), START))
    return found


def test_a_switch_is_found_and_what_came_before_it_forgotten() -> None:
    found = histories("switch", range(30))
    assert sum(one.half_life is not None for one in found) >= 24
    weights_UN = np.stack([one.weights(ages_of(90)) for one in found if one.half_life is not None])
    assert weights_UN[:, :60].mean() < 0.1
    assert weights_UN[:, 65:].mean() > 0.7
    assert np.mean([one.score for one in found if one.score is not None]) > 0.1


def test_the_constant_taste_wins_where_it_should() -> None:
    found = histories("constant", range(40))
    # even odds and a threshold of one nat: chance exceeds it with probability exp(-1) at most, in fact far more seldom
    assert sum(one.half_life is not None for one in found) <= 6
    assert np.mean([one.score for one in found if one.score is not None]) < 0.03
    steady = next(one for one in found if one.half_life is None)
    np.testing.assert_array_equal(steady.weights(ages_of(90)), np.ones(90))


def test_slow_change_gets_a_half_life_within_the_span() -> None:
    shorter = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        before, after = 2.0 * tastes(rng, 2)
        shares = np.linspace(0.0, 1.0, 150)
        diffs = np.concatenate([told((1 - share) * before + share * after, 1, rng) for share in shares])
        half_life = assess(Support.of(diffs), 3600.0 * ages_of(150), START).half_life
        shorter += half_life is not None
        assert half_life is None or 0 < half_life <= 150 * 3600
    assert shorter >= 10


def test_forgetting_after_a_switch_helps_and_hardly_hurts_the_steady() -> None:
    gains = {"switch": [], "constant": []}
    for seed in range(40):
        for kind, mine in gains.items():
            rng = np.random.default_rng(1000 + seed)
            before, after = tastes(rng, 2)
            first = told(before if kind == "switch" else after, 60, rng)
            diffs, asked = np.concatenate([first, told(after, 20, rng)]), rng.normal(size=(300, HEADS))
            ages = ages_of(80)
            forgotten = assess(Support.of(diffs), ages, START).weights(ages)
            right = [
                np.mean(
                    (asked @ solve(Support.of(diffs, weights_P=weights), START).weights_K > 0) == (asked @ after > 0)
                )
                for weights in (np.ones(80), forgotten)
            ]
            mine.append(right[1] - right[0])
    assert np.mean(gains["switch"]) > 0.08
    assert np.mean(gains["constant"]) > -0.01


def test_the_evidence_of_a_change_is_the_integral() -> None:
    """With one head the evidence of each stretch is an integral over the line."""
    rng = np.random.default_rng(0)
    start = GaussianStart(np.array([0.4]), np.array([[0.7]]))
    diffs = rng.normal(size=(30, 1))
    items = drift._items(Support.of(diffs), ages_of(30), np.zeros(0))

    def log_evidence(rows: np.ndarray) -> float:
        def density(v: float) -> float:
            prior = np.sqrt(0.7 / (2 * np.pi)) * np.exp(-0.35 * (v - 0.4) ** 2)
            return float(prior * np.prod(expit(rows[:, 0] * v)))

        return float(np.log(quad(density, -15, 15, epsabs=0, epsrel=1e-9, limit=200)[0]))

    cuts = np.array([5, 15, 28])
    wanted = [log_evidence(diffs[:cut]) + log_evidence(diffs[cut:]) - log_evidence(diffs) for cut in cuts]
    np.testing.assert_allclose(drift._changed(items, cuts, start), wanted, atol=0.05)


def test_modes_are_those_of_the_solver() -> None:
    rng = np.random.default_rng(1)
    diffs = 4.0 * rng.normal(size=(40, HEADS))  # large enough for Newton's steps to need cutting
    items = drift._items(Support.of(diffs), ages_of(40), np.zeros(0))
    weights = rng.uniform(0.01, 2.0, size=(5, 40))
    found, _ = drift._modes(items, weights, START)
    for row, v_K in zip(weights, found, strict=True):
        wanted = solve(Support.of(items.diffs_NK, weights_P=row), START).weights_K * START.temperature
        np.testing.assert_allclose(v_K, wanted, atol=0.02)


def test_the_unit_and_the_origin_of_ages_and_the_order_do_not_matter() -> None:
    rng = np.random.default_rng(7)
    before, after = 2.0 * tastes(rng, 2)
    diffs, ages = np.concatenate([told(before, 50, rng), told(after, 30, rng)]), ages_of(80)
    wanted = assess(Support.of(diffs), ages, START)
    assert wanted.half_life is not None
    order = rng.permutation(80)
    found = assess(Support.of(diffs[order]), 1e4 + 3600.0 * ages[order], START)
    assert found.half_life == pytest.approx(3600 * wanted.half_life)
    assert found.score == pytest.approx(wanted.score)
    np.testing.assert_allclose(found.weights(1e4 + 3600.0 * ages), wanted.weights(ages), rtol=1e-6)


def test_bursts_are_cut_between_and_not_within() -> None:
    rng = np.random.default_rng(9)
    before, after = tastes(rng, 2)
    diffs = np.concatenate([told(before, 60, rng), told(after, 25, rng)])
    ages = np.repeat([365.0, 0.0], [60, 25])
    weights = assess(Support.of(diffs), ages, START).weights(ages)
    np.testing.assert_array_equal(weights[60:], np.ones(25))
    assert weights[:60].max() < 0.1


def test_ratings_speak_too() -> None:
    rng = np.random.default_rng(11)
    before, after = 2.0 * tastes(rng, 2)
    rows = rng.normal(size=(160, HEADS))
    ratings = np.concatenate([rows[:100] @ before, rows[100:] @ after]) + rng.normal(size=160)
    found = assess(
        Support.of(np.zeros((0, HEADS)), None, rows, ratings, np.arange(160) % 3), np.zeros(0), START, ages_of(160)
    )
    assert found.half_life is not None
    assert found.weights(ages_of(160))[:95].max() < 0.2


def test_too_little_and_at_once_say_nothing() -> None:
    rng = np.random.default_rng(13)
    diffs = told(tastes(rng, 1)[0], 40, rng)
    few = LEAST_ITEMS - 1
    assert assess(Support.of(diffs[:few]), ages_of(few), START).score is None
    assert assess(Support.empty(HEADS), np.zeros(0), START).score is None
    assert assess(Support.of(diffs), np.zeros(40), START) == Drift(score=0.0)
    softmax = SoftmaxStart(np.zeros(HEADS), 0.1, 1)
    assert assess(Support.of(diffs), ages_of(40), softmax) == Drift()


def test_ages_must_fit() -> None:
    with pytest.raises(ValueError, match="expected ages"):
        assess(Support.of(np.ones((3, HEADS))), np.zeros(2), START)
    with pytest.raises(ValueError, match="finite"):
        assess(Support.of(np.ones((3, HEADS))), np.full(3, np.nan), START)


def test_the_cost_stays_bounded() -> None:
    """The number of choices looked at does not grow with the history, nor the number of weightings beyond a bound."""
    sizes = []
    for count in (100, 1000, 10_000):
        rng = np.random.default_rng(count)
        items = drift._items(Support.of(rng.normal(size=(count, HEADS))), ages_of(count), np.zeros(0))
        edges, cuts = drift._edges(len(items)), drift._cuts(items.ages_N)
        assert all(first < second for first, second in pairwise(edges))
        sizes.append((len(items), len(edges), len(cuts)))
    assert sizes[0][0] == 100
    assert max(size[0] for size in sizes) <= 2 * drift.WHOLE_ITEMS
    assert max(size[1] for size in sizes) <= 20
    assert max(size[2] for size in sizes) <= 40


def test_a_hundred_choices_take_milliseconds() -> None:
    start = GaussianStart(np.zeros(16), np.eye(16))
    diffs = np.random.default_rng(15).normal(size=(100, 16))
    seconds = []
    for _ in range(15):
        started = time.process_time()
        assess(Support.of(diffs), ages_of(100), start)
        seconds.append(time.process_time() - started)
    assert min(seconds) < 0.05  # about 4 ms with one thread
