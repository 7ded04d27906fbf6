"""Tastes of simulated people: a vector over the surface axes, and how noisily they choose.

A person's utility of a completion is taste . surface_features. Given two completions they choose by Bradley-Terry:
P(a over b) = sigmoid(utility(a) - utility(b)).
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

from service.datasets.surface_features import AXES

MEAN_TASTE: Final = (0.18, 0.40, 0.36, -0.48, 0.44, 0.40)
"""What people like on average: a list, a formal tone, commitment, warmth, an example."""

TASTE_SPREAD: Final = (0.9, 0.8, 0.9, 0.8, 0.9, 0.7)
"""Standard deviation of the individual deviation, by axis."""

TASTE_CORRELATION: Final = (
    # length lists formality hedging warmth examples
    (1.0, 0.2, 0.0, 0.1, 0.1, 0.4),
    (0.2, 1.0, 0.2, 0.0, -0.1, 0.1),
    (0.0, 0.2, 1.0, 0.2, -0.4, 0.0),
    (0.1, 0.0, 0.2, 1.0, 0.0, 0.0),
    (0.1, -0.1, -0.4, 0.0, 1.0, 0.2),
    (0.4, 0.1, 0.0, 0.0, 0.2, 1.0),
)
"""Who likes long answers tends to like examples; who likes a formal tone tends to dislike warmth."""

TASTE_SCALE: Final = 1.2
"""How decided people are: with it the true taste predicts about 85 % of the choices between two random styles, and
the mean taste 60 to 65 %."""

_DECIMALS: Final = 6


def draw_tastes(people: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Draw tastes: the mean plus correlated deviations.

    Rounded to six decimals, so that a person is the same wherever the last bits of a product differ.

    Returns:
        float64 [people, 6], in the order of `AXES`.
    """
    spread = np.array(TASTE_SPREAD)
    factor = np.linalg.cholesky(np.array(TASTE_CORRELATION)) * spread[:, None]
    deviations = rng.standard_normal((people, len(AXES))) @ factor.T
    tastes: NDArray[np.float64] = np.round(TASTE_SCALE * (np.array(MEAN_TASTE) + deviations), _DECIMALS)
    return tastes


def population_taste() -> NDArray[np.float64]:
    """The mean of `draw_tastes`."""
    return TASTE_SCALE * np.array(MEAN_TASTE)


def preference_probability(utility_a: float, utility_b: float) -> float:
    """P(a is chosen over b) under Bradley-Terry."""
    difference = utility_a - utility_b
    if difference < 0:
        return 1.0 - preference_probability(utility_b, utility_a)
    return 1.0 / (1.0 + math.exp(-difference))
