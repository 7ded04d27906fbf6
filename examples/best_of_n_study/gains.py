"""What people get: the arithmetic of best-of-n, with standard errors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

SURE = 2.0
"""A person's gain is told from none where it is more than so many of its standard errors away from 0."""


@dataclass(frozen=True)
class Gain:
    """How much more people get by one way of choosing than by another, on the same prompts.

    Attributes:
        gain_U: float64 [U], each person's mean over prompts, in log-odds.
        error_U: float64 [U], its standard error over prompts.
        prompts_error: Standard error of the mean over people and prompts that other prompts would make.
    """

    gain_U: Array
    error_U: Array
    prompts_error: float

    @property
    def mean(self) -> float:
        """Mean over people."""
        return float(self.gain_U.mean())

    @property
    def error(self) -> float:
        """Standard error of the mean that other people would make."""
        return float(self.gain_U.std(ddof=1) / np.sqrt(len(self.gain_U)))

    @property
    def share(self) -> float:
        """Share of people who get more."""
        return float((self.gain_U > 0).mean())

    @property
    def share_error(self) -> float:
        """Standard error of `share`."""
        return float(np.sqrt(self.share * (1 - self.share) / len(self.gain_U)))

    @property
    def surely_more(self) -> float:
        """Share of people whose gain is more than `SURE` standard errors above 0."""
        return float((self.gain_U > SURE * self.error_U).mean())

    @property
    def surely_less(self) -> float:
        """Share of people whose loss is more than `SURE` standard errors."""
        return float((self.gain_U < -SURE * self.error_U).mean())


def got(utilities_UPN: Array, rewards: ArrayLike) -> Array:
    """What people think of the answer that a reward likes best; the first one of equals.

    Args:
        utilities_UPN: float64 [U, P, N], what they think of all.
        rewards: float64 [U, P, N] of each person's own reward, or [P, N] of one for all.

    Returns:
        float64 [U, P].
    """
    best_UP1 = np.broadcast_to(np.asarray(rewards), utilities_UPN.shape).argmax(axis=2)[..., None]
    return np.asarray(np.take_along_axis(utilities_UPN, best_UP1, axis=2)[..., 0])


def gain(more_UP: Array, less_UP: Array) -> Gain:
    """The gain of one way over another, from what people got by each: float64 [U, P] both, P at least 2."""
    difference_UP = more_UP - less_UP
    prompts = difference_UP.shape[1]
    return Gain(
        gain_U=difference_UP.mean(axis=1),
        error_U=difference_UP.std(axis=1, ddof=1) / np.sqrt(prompts),
        prompts_error=float(difference_UP.mean(axis=0).std(ddof=1) / np.sqrt(prompts)),
    )


def captured(way_UP: Array, random_UP: Array, oracle_UP: Array) -> float:
    """Share of what the best answers are worth over random ones that a way of choosing gets, over all people."""
    return float((way_UP - random_UP).sum() / (oracle_UP - random_UP).sum())
