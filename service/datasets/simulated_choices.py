"""How simulated people choose: the noise in their answers, and how sure they say they are.

Asked for a or b, person u finds the difference z = taste_u . (features(a) - features(b)) + logistic noise and chooses a
if z > 0. That is Bradley-Terry: P(a over b) = sigmoid(utility(a) - utility(b)). A person who lapses answers from the
noise alone. The same z graded on the person's own scale is the strength of the choice.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from service.datasets.simulated_drift import Drift
from service.errors import ConfigurationError

_TYPICAL_Z: Final = 8.0
"""The difference that fills the scale of somebody who uses it in the usual way."""

_SIGNIFICANT: Final = 6


@dataclass(frozen=True)
class Behaviour:
    """Who the people are and how they answer.

    Attributes:
        kinds: Whether there are kinds of people (`service.datasets.taste.KINDS`), or one Gaussian.
        contrarians: Probability that a person likes what he would have disliked, and the other way round.
        consistency: Share of the choices that the true tastes predict, lapses included.
        decided_spread: How much people differ in how decided they are; 0 makes all alike.
        lapse: Share of answers given at random.
        graded: Whether choices have strengths: differences of ratings, on a scale of each person's own.
        drift: Whether unseen people's tastes change while they give their support pairs.
    """

    kinds: bool = True
    contrarians: float = 0.05
    consistency: float = 0.85
    decided_spread: float = 0.3
    lapse: float = 0.0
    graded: bool = False
    drift: Drift = Drift.NONE

    def __post_init__(self) -> None:
        for name in ("contrarians", "lapse"):
            if not 0 <= getattr(self, name) < 0.5:
                raise ConfigurationError(f"{name} must be at least 0 and below 0.5, got {getattr(self, name)}")
        if not 0 <= self.decided_spread <= 2:
            raise ConfigurationError(f"decided_spread must lie between 0 and 2, got {self.decided_spread}")
        if not 0.55 <= self.consistency <= 0.99 - self.lapse / 2:
            raise ConfigurationError(
                f"consistency must lie between 0.55 and {0.99 - self.lapse / 2:g} "
                f"(0.99 less half of the lapses), got {self.consistency}"
            )


@dataclass(frozen=True)
class RatingScale:
    """How a person grades: whole points up to `points`, `gain` of them for each unit of log-odds."""

    points: int
    gain: float

    def strength(self, difference: float) -> float:
        """The difference of the two ratings; a choice is worth one point at least."""
        return float(min(self.points - 1, max(1, round(self.gain * abs(difference)))))


def draw_scales(people: int, rng: np.random.Generator) -> list[RatingScale]:
    """A scale of 10 or of 100 points each, used timidly or boldly."""
    scales = []
    for _ in range(people):
        points = (10, 100)[rng.integers(2)]
        use = math.exp(0.4 * rng.standard_normal())
        scales.append(RatingScale(points, round(points * use / _TYPICAL_Z, _SIGNIFICANT)))
    return scales


def sigmoid(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """1 / (1 + exp(-x)) without overflow."""
    return np.asarray(np.exp(-np.logaddexp(0.0, -x)))


def scale_for_consistency(margins_P: NDArray[np.float64], behaviour: Behaviour) -> float:
    """The factor on all tastes with which the sign of a margin predicts `behaviour.consistency` of the choices.

    Solves mean[(1 - lapse) * sigmoid(factor * |margin|) + lapse / 2] = consistency by bisection, rounded to six
    significant digits so that it is the same on every machine.

    Args:
        margins_P: float64 [P], taste . (difference of features) of each pair, in any unit.
        behaviour: Whose consistency.

    Raises:
        ConfigurationError: No factor will do: too many pairs are of texts between which nobody can tell.
    """
    size_P = np.abs(margins_P)

    def consistency(log_factor: float) -> float:
        predicted = float(sigmoid(math.exp(log_factor) * size_P).mean())
        return (1 - behaviour.lapse) * predicted + behaviour.lapse / 2

    low, high = math.log(1e-6), math.log(1e6)
    if not consistency(low) < behaviour.consistency < consistency(high):
        raise ConfigurationError(
            f"consistency {behaviour.consistency} is out of reach with these people and pairs: the truth can predict "
            f"{consistency(high):.3f} at most"
        )
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if consistency(middle) < behaviour.consistency else (low, middle)
    return float(f"{math.exp(low):.{_SIGNIFICANT}g}")


def perceived_difference(margin: float, lapse: float, rng: np.random.Generator) -> float:
    """What a person finds between a and b: z in log-odds; a is chosen if it is above 0.

    Always draws two numbers, so that lapses leave the noise of the other choices as it is.
    """
    lapsed, quantile = rng.random() < lapse, 1.0 - rng.random()  # above 0
    noise = math.log(quantile) - math.log1p(-quantile) if quantile < 1 else math.inf
    return noise if lapsed else margin + noise
