"""From a mean and a prior over tastes to K heads, a start and a prior over K weights.

B [K, d], orthonormal: the top K-1 eigenvectors of S and the unit vector of mu's part orthogonal to them, so that
B' B mu = mu: with no pairs a user's rewards are the population's. What S holds outside is `rest`, the mean of its other
eigenvalues; 0.8 of it is taken off inside too, and accounted for as noise on the logits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from service.errors import InvalidInput
from service.mrm.state import FloatArray
from service.training.features import largest_entry_positive

REMOVED_SHARE: Final = 0.8
EIGENVALUE_FLOOR: Final = 1e-3


@dataclass(frozen=True, slots=True)
class Heads:
    """K directions of taste.

    Attributes:
        directions_Kd: B, orthonormal rows; the last is the population's remaining direction.
        start_K: w0 = B mu.
        covariance_KK: Prior covariance at tau = 1, positive definite.
        noise_factor: 1 / sqrt(1 + pi 1.6 rest / 8): multiplies logits (MacKay's approximation of a probit average).
    """

    directions_Kd: FloatArray
    start_K: FloatArray
    covariance_KK: FloatArray
    noise_factor: float

    def precision(self, tau: float) -> FloatArray:
        """Inverse of tau times the prior covariance, symmetric to the last bit."""
        precision_KK = np.linalg.inv(tau * self.covariance_KK)
        return 0.5 * (precision_KK + precision_KK.T)


def make_heads(mean_d: FloatArray, covariance_dd: FloatArray, values_Nd: FloatArray, heads: int) -> Heads:
    """Choose K directions and the prior over their weights.

    Args:
        mean_d: mu.
        covariance_dd: S.
        values_Nd: Features of the training texts: a head's sign is that of its correlation with mu over them.
        heads: K.

    Raises:
        InvalidInput: There are fewer features than heads.
    """
    d = len(mean_d)
    if heads > d:
        raise InvalidInput.single(
            "heads", f"{heads} heads need as many features; the training texts span {d}: use at most {d}"
        )
    eigenvalues_d, vectors_dd = np.linalg.eigh(covariance_dd)
    eigenvalues_d, vectors_dd = eigenvalues_d[::-1], vectors_dd[:, ::-1]
    top_Kd = largest_entry_positive(vectors_dd[:, : heads - 1].T)
    own_d = mean_d - top_Kd.T @ (top_Kd @ mean_d)
    length = float(np.linalg.norm(own_d))
    # a population without a direction of its own (mu inside the others, or zero) gives its place to the next taste
    unit_d = own_d / length if length > 1e-9 * (1.0 + np.linalg.norm(mean_d)) else vectors_dd[:, heads - 1]
    directions_Kd = np.concatenate([top_Kd, unit_d[None]])
    directions_Kd *= _signs(directions_Kd, mean_d, values_Nd)[:, None]

    rest = float(eigenvalues_d[heads - 1 :].mean())
    inside_KK = directions_Kd @ covariance_dd @ directions_Kd.T - REMOVED_SHARE * rest * np.eye(heads)
    return Heads(
        directions_Kd,
        directions_Kd @ mean_d,
        _floored(inside_KK, rest),
        float(1.0 / np.sqrt(1.0 + np.pi * 2.0 * REMOVED_SHARE * rest / 8.0)),
    )


def _signs(directions_Kd: FloatArray, mean_d: FloatArray, values_Nd: FloatArray) -> FloatArray:
    centred_Nd = values_Nd - values_Nd.mean(axis=0)
    correlation_K = (centred_Nd @ directions_Kd.T).T @ (centred_Nd @ mean_d)
    return np.where(correlation_K < 0, -1.0, 1.0)


def _floored(matrix_KK: FloatArray, rest: float) -> FloatArray:
    """The matrix with its eigenvalues at no less than 1e-3 of the largest."""
    eigenvalues_K, vectors_KK = np.linalg.eigh(0.5 * (matrix_KK + matrix_KK.T))
    # with one head, the mean's direction, people may vary less along it than elsewhere: then nothing is left of it
    largest = max(float(eigenvalues_K[-1]), EIGENVALUE_FLOOR * rest)
    floored_K = np.maximum(eigenvalues_K, EIGENVALUE_FLOOR * largest)
    return np.asarray((vectors_KK * floored_K) @ vectors_KK.T)
