"""Metrics of preference prediction. Margins are reward differences, chosen minus rejected, in log-odds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from service.mrm.state import FloatArray


def pair_accuracy(margins_P: FloatArray, strengths_P: FloatArray | None = None) -> float:
    """Share of pairs whose chosen side has the higher reward; an exact tie counts one half.

    Raises:
        ValueError: There are no pairs.
    """
    if len(margins_P) == 0:
        raise ValueError("accuracy of no pairs")
    correct_P = (margins_P > 0) + 0.5 * (margins_P == 0)
    return float(np.average(correct_P, weights=strengths_P))


def bradley_terry_loss(margins_P: FloatArray, strengths_P: FloatArray | None = None) -> float:
    """Mean of -log sigmoid(margin), in nats, weighted by strength where given.

    Raises:
        ValueError: There are no pairs.
    """
    if len(margins_P) == 0:
        raise ValueError("loss of no pairs")
    return float(np.average(np.logaddexp(0.0, -margins_P), weights=strengths_P))


def worst_share_mean(values_U: FloatArray, share: float) -> float:
    """Mean over the worst (smallest) `share` of users, at least one: ceil(share * U) of them.

    With per-user accuracies this is worst-k % accuracy, k = 100 share.

    Raises:
        ValueError: There are no users, or share is outside (0, 1].
    """
    if len(values_U) == 0 or not 0 < share <= 1:
        raise ValueError("worst share of no users, or a share outside (0, 1]")
    return float(np.sort(values_U)[: _worst_count(len(values_U), share)].mean())


def worst_share_users(values_U: FloatArray, share: float) -> np.ndarray[tuple[int], np.dtype[np.intp]]:
    """Indices of the users that `worst_share_mean` averages; ties go to the lower index."""
    return np.argsort(values_U, kind="stable")[: _worst_count(len(values_U), share)]


def _worst_count(users: int, share: float) -> int:
    # A share such as 0.1 has no exact binary value: 0.1 * 30 must count 3 users, not 4.
    return max(1, int(np.ceil(share * users - 1e-9)))


@dataclass(frozen=True, slots=True)
class Calibration:
    """Reliability of predicted sides, in equal-width bins of confidence over [0.5, 1].

    Attributes:
        error: Expected calibration error: mean over pairs of |accuracy - confidence| of their bin.
        confidence_C: Mean confidence of each bin, NaN where empty.
        accuracy_C: Share of right predictions in each bin, NaN where empty.
        count_C: Pairs in each bin.
    """

    error: float
    confidence_C: FloatArray
    accuracy_C: FloatArray
    count_C: FloatArray


def calibration(margins_P: FloatArray, bins: int = 15) -> Calibration:
    """Calibration of the predicted side's confidence sigmoid(|margin|); a tie is right with one half.

    Raises:
        ValueError: There are no pairs.
    """
    if len(margins_P) == 0:
        raise ValueError("calibration of no pairs")
    correct_P = (margins_P > 0) + 0.5 * (margins_P == 0)
    return _calibration(expit(np.abs(margins_P)), correct_P, bins)


def perfect_calibration_error(margins_P: FloatArray, bins: int = 15, draws: int = 200, seed: int = 0) -> float:
    """The calibration error that a perfect model with these confidences shows, by chance, at this sample size.

    Mean over `draws` of the error when every pair's predicted side is right with exactly its confidence.
    """
    rng = np.random.default_rng(seed)
    confidence_P = expit(np.abs(margins_P))
    errors = [
        _calibration(confidence_P, (rng.random(len(margins_P)) < confidence_P).astype(np.float64), bins).error
        for _ in range(draws)
    ]
    return float(np.mean(errors))


def _calibration(confidence_P: FloatArray, correct_P: FloatArray, bins: int) -> Calibration:
    bin_P = np.minimum(((confidence_P - 0.5) * 2 * bins).astype(np.int64), bins - 1)
    count_C = np.bincount(bin_P, minlength=bins).astype(np.float64)
    with np.errstate(invalid="ignore"):
        confidence_C = np.bincount(bin_P, weights=confidence_P, minlength=bins) / count_C
        accuracy_C = np.bincount(bin_P, weights=correct_P, minlength=bins) / count_C
    filled = count_C > 0
    gaps = np.abs(accuracy_C - confidence_C)[filled]
    return Calibration(float(gaps @ count_C[filled] / len(confidence_P)), confidence_C, accuracy_C, count_C)
