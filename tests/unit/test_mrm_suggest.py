"""Questions worth asking, against plain integrals and plain matrices."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit

from service.mrm import GaussianStart, SoftmaxStart, Support, solve
from service.mrm.state import UserState, pack_factor, unpack_factor
from service.mrm.suggest import NoPosterior, information, suggest

HEADS = 5


def entropy(p: np.ndarray | float) -> np.ndarray:
    p = np.clip(p, 1e-300, 1 - 1e-16)
    return np.asarray(-p * np.log(p) - (1 - p) * np.log1p(-p))


def someone(pairs: int = 8, seed: int = 0) -> UserState:
    rng = np.random.default_rng(seed)
    return solve(
        Support.of(rng.normal(size=(pairs, HEADS))),
        GaussianStart(rng.normal(size=HEADS), np.diag([0.2, 0.5, 1.0, 2.0, 8.0]), 1.2),
    )


def candidates(count: int = 300, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, HEADS))


@pytest.mark.parametrize("std", [0.0, 0.01, 0.5, 1.9, 2.0, 2.1, 5.0, 40.0])
def test_information_is_the_integral(std: float) -> None:
    mean = np.array([0.0, 0.1, -1.0, 2.5, -7.0, 30.0, 200.0])
    z = np.linspace(-12, 12, 20_001)
    density = np.exp(-0.5 * z**2) / np.exp(-0.5 * z**2).sum()
    p = expit(mean[:, None] + std * z)
    gain, fisher = information(mean, np.full(len(mean), std))
    np.testing.assert_allclose(gain, np.maximum(entropy(p @ density) - entropy(p) @ density, 0.0), atol=2e-7)
    np.testing.assert_allclose(fisher, (p * (1 - p)) @ density, atol=2e-7)


def test_gains_are_those_of_sampled_tastes() -> None:
    state, diffs = someone(), candidates(12)
    assert state.factor is not None
    draws = np.random.default_rng(2).normal(size=(100_000, HEADS)) @ unpack_factor(state.factor).T + state.weights_K
    for found in suggest(diffs, state, 1):
        p = expit(draws @ diffs.T)
        gains = entropy(p.mean(axis=0)) - entropy(p).mean(axis=0)
        assert found.index == int(np.argmax(gains))
        assert found.gain_nats == pytest.approx(gains[found.index], abs=3e-3)
        assert found.probability == pytest.approx(expit(diffs[found.index] @ state.weights_K))


def test_each_question_counts_what_those_before_it_are_expected_to_tell() -> None:
    state, diffs = someone(), candidates()
    assert state.factor is not None
    precision = np.linalg.inv(unpack_factor(state.factor) @ unpack_factor(state.factor).T)
    mean, left = diffs @ state.weights_K, np.ones(len(diffs), bool)
    for found in suggest(diffs, state, 12):
        std = np.sqrt(np.einsum("ck,kl,cl->c", diffs, np.linalg.inv(precision), diffs))
        gain, fisher = information(mean, std)
        wanted = int(np.argmax(np.where(left, gain, -1.0)))
        assert found.index == wanted
        assert found.gain_nats == pytest.approx(gain[wanted], rel=1e-6)
        left[wanted] = False
        precision = precision + fisher[wanted] * np.outer(diffs[wanted], diffs[wanted])


def test_the_same_comparison_is_suggested_once_and_not_again_after_an_answer() -> None:
    state, diffs = someone(), candidates(6)
    copies = np.concatenate([diffs, -diffs, diffs * (1 + 1e-7), np.zeros((2, HEADS))])
    found = suggest(copies, state, 20)
    assert sorted(one.index % 6 for one in found) == list(range(6))
    asked = np.stack([-diffs[found[0].index % 6], diffs[found[3].index % 6]])
    rest = suggest(copies, state, 20, asked)
    assert {one.index % 6 for one in rest} == set(range(6)) - {found[0].index % 6, found[3].index % 6}


def test_no_text_is_asked_about_again_while_others_were_not() -> None:
    state, texts = someone(), np.random.default_rng(3).normal(size=(8, HEADS))
    pairs = np.array([(a, b) for a in range(8) for b in range(a)])
    diffs = texts[pairs[:, 0]] - texts[pairs[:, 1]]
    named = [pairs[one.index] for one in suggest(diffs, state, 8, texts_C2=pairs)]
    assert sorted(np.concatenate(named[:4])) == list(range(8))
    assert sorted(np.concatenate(named[4:])) == list(range(8))
    unnamed = [pairs[one.index] for one in suggest(diffs, state, 8)]
    assert np.bincount(np.concatenate(unnamed)).max() > 2
    assert (named[0] == unnamed[0]).all()
    # Nor where the questions come one by one.
    asked: list[int] = []
    while len(asked) < 8:
        asked.append(suggest(diffs, state, 1, -diffs[asked] if asked else None, pairs)[0].index)
    assert sorted(np.concatenate([pairs[row] for row in asked[:4]])) == list(range(8))
    assert sorted(np.concatenate([pairs[row] for row in asked[4:]])) == list(range(8))


def test_what_the_person_is_undecided_about_is_not_asked() -> None:
    # the first reward is known to be equal, the second unknown
    state = UserState(np.zeros(2), pack_factor(np.diag([1e-3, 1.0])))
    diffs = np.array([[1.0, 0.0], [0.0, 0.3]])
    found = suggest(diffs, state, 2)
    assert [one.index for one in found] == [1, 0]
    assert found[0].gain_nats > 100 * found[1].gain_nats


def test_nothing_to_ask() -> None:
    assert suggest(np.zeros((0, HEADS)), someone(), 3) == []
    assert suggest(np.zeros((4, HEADS)), someone(), 3) == []


def test_refusals() -> None:
    with pytest.raises(NoPosterior, match="map recipe"):
        suggest(candidates(), solve(Support.empty(HEADS), SoftmaxStart(np.zeros(HEADS), 0.1, 1)), 1)
    with pytest.raises(ValueError, match="expected candidates"):
        suggest(np.zeros((3, HEADS + 1)), someone(), 1)
    with pytest.raises(ValueError, match="numbers of texts"):
        suggest(candidates(), someone(), 1, texts_C2=np.zeros((3, 2), np.int64))
    with pytest.raises(ValueError, match="at least 1"):
        suggest(candidates(), someone(), 0)
    with pytest.raises(ValueError, match="not finite"):
        suggest(np.full((1, HEADS), np.inf), someone(), 1)
