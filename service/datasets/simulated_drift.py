"""Simulated people whose taste changes while they answer: slowly, or at a moment."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

EARLIEST: Final = 0.3
LATEST: Final = 0.8
"""A switch comes after this share of a person's support pairs at the earliest and at the latest."""


class Drift(StrEnum):
    """How tastes change: not, evenly from the first support pair to the last, or all at once somewhere between."""

    NONE = "none"
    SLOW = "slow"
    SWITCH = "switch"


@dataclass(frozen=True)
class Change:
    """What somebody liked before.

    Attributes:
        first_taste: float64 [14], the taste at the first support pair, in log-odds.
        moment: Share of the support pairs after which it gave way to the last one; None: it changed evenly.
    """

    first_taste: NDArray[np.float64]
    moment: float | None

    def taste_at(self, time: float, last_taste: NDArray[np.float64]) -> NDArray[np.float64]:
        """The taste float64 [14] at a time between 0, the first support pair, and 1, the last one and all queries."""
        if self.moment is None:
            return np.asarray((1.0 - time) * self.first_taste + time * last_taste)
        return self.first_taste if time < self.moment else last_taste

    def scaled(self, factor: float) -> Change:
        """The same change of `factor` times the tastes, rounded to six decimals as those are."""
        return Change(np.round(factor * self.first_taste, 6), self.moment)

    def as_json(self) -> dict[str, Any]:
        """All fields as plain JSON values."""
        return {"first_taste": self.first_taste.tolist(), "moment": self.moment}


def draw_changes(drift: Drift, first_UD: NDArray[np.float64], rng: np.random.Generator) -> list[Change | None]:
    """A change for each of U people, from the tastes [U, 14] that they had at first; the moments are drawn."""
    if drift is Drift.NONE:
        return [None] * len(first_UD)
    moments_U = np.round(rng.uniform(EARLIEST, LATEST, len(first_UD)), 6)
    return [
        Change(first_D, float(moment) if drift is Drift.SWITCH else None)
        for first_D, moment in zip(first_UD, moments_U, strict=True)
    ]
