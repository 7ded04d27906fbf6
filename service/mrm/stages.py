"""Choices among several texts (Luce 1959): the loss of a stage, its slope and its curvature.

A stage is a choice of one text out of n. With z_j = d_j . v, d_j the taken text minus the j-th of the n - 1 others,

    loss = log(1 + sum_j exp(-z_j)),    p_j = exp(-z_j) / (1 + sum_i exp(-z_i)),    p_0 = 1 - sum_j p_j

p_j is the probability that the j-th had been taken, p_0 that of what happened. With one other it is a pair. The
ranking of Plackett (1975) is a stage for each text, against all texts below it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from service.mrm.state import FloatArray, IntArray

SAME: Final = 1e-5
"""Comparisons that differ by less than this share of their largest number are the same one: so much an engine's batches
may differ."""


@dataclass(frozen=True, slots=True)
class Stages:
    """Stages of several rows each.

    Attributes:
        rows_JK: Taken minus other, the rows of a stage next to each other.
        weights_S: Weights of the log-likelihoods.
        first_S: The first row of each stage, ascending from 0.
        stage_J: Each row's stage.
    """

    rows_JK: FloatArray
    weights_S: FloatArray
    first_S: IntArray
    stage_J: IntArray

    @classmethod
    def of(cls, rows_JK: FloatArray, weights_J: FloatArray, stages_J: IntArray) -> Stages:
        """Stages of rows that lie next to each other, named by any numbers; the rows of one have its weight."""
        first_S = np.flatnonzero(np.diff(stages_J, prepend=stages_J[0] - 1))
        stage_J = np.repeat(np.arange(len(first_S)), np.diff(first_S, append=len(stages_J)))
        return cls(rows_JK, weights_J[first_S], first_S, stage_J)

    @property
    def lengths(self) -> IntArray:
        """Rows of each stage, [S]."""
        return np.diff(self.first_S, append=len(self.rows_JK))

    def loss(self, v_K: FloatArray) -> float:
        """The weighted sum of the stages' losses."""
        largest_S, _, sum_S = self._exponentials(v_K)
        # the largest term, which is 1 now, is left to log1p: what is beside it may be small
        rest_S = np.where(largest_S > 0.0, np.exp(-largest_S) + sum_S - 1.0, sum_S)
        losses_S = largest_S + np.log1p(rest_S)
        return float(self.weights_S @ losses_S)

    def gradient(self, v_K: FloatArray) -> FloatArray:
        """The gradient of `loss`, [K]."""
        _, p_other_J = self._probabilities(v_K)
        return np.asarray(-((self.weights_S[self.stage_J] * p_other_J) @ self.rows_JK))

    def derivatives(self, v_K: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Gradient [K] and Hessian [K, K] of `loss`.

        The Hessian of a stage, D' (diag(p) - p p') D, is the covariance of what might have been taken: so it is summed,
        by squares, and rounding cannot make it indefinite.
        """
        p_taken_S, p_other_J = self._probabilities(v_K)
        stage_J = self.stage_J
        weighted_JK = p_other_J[:, None] * self.rows_JK
        mean_SK = np.add.reduceat(weighted_JK, self.first_S, axis=0)
        off_JK = np.sqrt(self.weights_S[stage_J] * p_other_J)[:, None] * (self.rows_JK - mean_SK[stage_J])
        off_SK = np.sqrt(self.weights_S * p_taken_S)[:, None] * mean_SK
        return -(self.weights_S @ mean_SK), off_JK.T @ off_JK + off_SK.T @ off_SK

    def _exponentials(self, v_K: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        """m, the largest of 0 and -z [S]; exp(-z - m) [J]; its sums [S]."""
        behind_J = -(self.rows_JK @ v_K)
        largest_S = np.maximum(np.maximum.reduceat(behind_J, self.first_S), 0.0)
        scaled_J = np.exp(behind_J - largest_S[self.stage_J])
        return largest_S, scaled_J, np.add.reduceat(scaled_J, self.first_S)

    def _probabilities(self, v_K: FloatArray) -> tuple[FloatArray, FloatArray]:
        """p_0 [S] and p_j [J]."""
        largest_S, scaled_J, sum_S = self._exponentials(v_K)
        taken_S = np.exp(-largest_S)
        total_S = taken_S + sum_S
        return taken_S / total_S, scaled_J / total_S[self.stage_J]
