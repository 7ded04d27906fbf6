from __future__ import annotations

import numpy as np
import pytest

from service.errors import InvalidInput
from service.training.features import Projection, principal_components

POWERS = (0.0, 0.5, 1.0)


def hidden(texts: int, size: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(texts, size)) * np.linspace(3.0, 0.3, size) + 5.0).astype(np.float32)


@pytest.mark.parametrize("power", POWERS)
@pytest.mark.parametrize(("texts", "size"), [(30, 12), (9, 20)])
def test_mean_squared_norm_is_d_and_the_mean_is_zero(texts: int, size: int, power: float) -> None:
    hidden_ND = hidden(texts, size)
    values_Nd = principal_components(hidden_ND, np.zeros(texts, int), 100).scaled(power)(hidden_ND)
    d = min(texts - 1, size)
    assert values_Nd.shape == (texts, d)
    assert np.mean(np.sum(values_Nd**2, axis=1)) == pytest.approx(d)
    np.testing.assert_allclose(values_Nd.mean(axis=0), 0.0, atol=1e-9)


def test_power_zero_keeps_distances_and_power_one_whitens() -> None:
    hidden_ND = hidden(30, 12)
    components = principal_components(hidden_ND, np.zeros(30, int), 100)
    plain_Nd, white_Nd = components.scaled(0.0)(hidden_ND), components.scaled(1.0)(hidden_ND)
    ratio = np.linalg.norm(plain_Nd[1:] - plain_Nd[0], axis=1) / np.linalg.norm(hidden_ND[1:] - hidden_ND[0], axis=1)
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-6)
    np.testing.assert_allclose(white_Nd.T @ white_Nd / 30, np.eye(12), atol=1e-9)


@pytest.mark.parametrize("power", POWERS)
def test_folded_heads_equal_the_pipeline(power: float) -> None:
    hidden_ND, new_ND = hidden(30, 12), hidden(7, 12, seed=1)
    first = principal_components(hidden_ND, np.zeros(30, int), 8).scaled(0.0)
    reduced_Nd = first(hidden_ND)
    second = principal_components(reduced_Nd, np.zeros(30, int), 8).scaled(power)
    directions_Kd = np.random.default_rng(2).normal(size=(3, 8))
    heads_KD, bias_K = first.then(second).fold(directions_Kd)
    for texts in (hidden_ND, new_ND):
        unfolded = second(first(texts)) @ directions_Kd.T
        np.testing.assert_allclose(texts.astype(float) @ heads_KD.T + bias_K, unfolded, atol=1e-9)
    np.testing.assert_allclose((hidden_ND.astype(float) @ heads_KD.T + bias_K).mean(axis=0), 0.0, atol=1e-9)


def test_then_carries_a_mean_that_is_not_zero() -> None:
    rng = np.random.default_rng(0)
    first = Projection(rng.normal(size=6), rng.normal(size=(6, 4)))
    second = Projection(rng.normal(size=4), rng.normal(size=(4, 3)))
    texts = rng.normal(size=(5, 6))
    np.testing.assert_allclose(first.then(second)(texts), second(first(texts)), atol=1e-10)


def test_offsets_of_prompts_are_no_components() -> None:
    rng = np.random.default_rng(0)
    prompt_N = np.repeat(np.arange(5), 8)
    inside_ND = rng.normal(size=(40, 6)) * np.array([1.0, 2.0, 1.0, 1.0, 1.0, 0.0])
    offset_ND = np.zeros((5, 6))
    offset_ND[:, 5] = [0.0, 100.0, -50.0, 20.0, 70.0]
    components = principal_components(inside_ND + offset_ND[prompt_N], prompt_N, 6)
    assert components.basis_Dd.shape == (6, 5)
    np.testing.assert_allclose(components.basis_Dd[5], 0.0, atol=1e-9)


def test_many_texts_and_few_give_the_same_components() -> None:
    hidden_ND = hidden(15, 12)
    few = principal_components(np.pad(hidden_ND, ((0, 0), (0, 8))), np.zeros(15, int), 12)
    many = principal_components(hidden_ND, np.zeros(15, int), 12)
    np.testing.assert_allclose(few.basis_Dd[:12], many.basis_Dd, atol=1e-6)
    np.testing.assert_allclose(few.deviation_d, many.deviation_d, rtol=1e-6)


def test_texts_that_are_all_alike_are_refused() -> None:
    with pytest.raises(InvalidInput, match="alike"):
        principal_components(np.ones((5, 3), np.float32), np.zeros(5, int), 3)
