"""Features z of hidden states: principal components, centred per prompt, scaled, and folded back into heads.

z = c V' (h - mean) with column i of V divided by s_i^p: s_i the standard deviation of component i, p in {0, 0.5, 1}
(0 keeps the backbone's geometry, 1 whitens), c such that the training texts' mean squared norm is d.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from service.errors import InvalidInput
from service.mrm.state import FloatArray
from service.training.pairs import IntArray, codes

RANK_TOLERANCE: Final = 1e-4
CHUNK_TEXTS: Final = 8192


@dataclass(frozen=True, slots=True)
class Components:
    """Principal components of texts around their prompts' means.

    Attributes:
        mean_D: Mean over all texts; rewards are centred with it.
        basis_Dd: Orthonormal directions by falling variance; each one's largest entry is positive.
        deviation_d: Standard deviation along each direction around the prompts' means, the s_i.
    """

    mean_D: FloatArray
    basis_Dd: FloatArray
    deviation_d: FloatArray

    def scaled(self, power: float) -> Projection:
        """The projection whose component i is divided by s_i^power."""
        scale_d = self.deviation_d**-power
        # sum_i (scale_i s_i)^2 is the mean squared norm around the prompts' means
        scale_d *= np.sqrt(len(scale_d) / np.sum((scale_d * self.deviation_d) ** 2))
        return Projection(self.mean_D, self.basis_Dd * scale_d)


@dataclass(frozen=True, slots=True)
class Projection:
    """z = (h - mean) @ matrix.

    Attributes:
        mean_D: Mean of the training texts.
        matrix_Dd: Scaled components.
    """

    mean_D: FloatArray
    matrix_Dd: FloatArray

    def __call__(self, hidden_ND: npt.NDArray[np.floating]) -> FloatArray:
        """Features [N, d] of hidden states [N, D], in chunks: the float64 copy of D columns never exists whole."""
        values_Nd = np.empty((len(hidden_ND), self.matrix_Dd.shape[1]))
        for start in range(0, len(hidden_ND), CHUNK_TEXTS):
            rows = slice(start, start + CHUNK_TEXTS)
            values_Nd[rows] = (hidden_ND[rows].astype(np.float64) - self.mean_D) @ self.matrix_Dd
        return values_Nd

    def then(self, later: Projection) -> Projection:
        """This projection followed by another one of its features, as one."""
        matrix_Dd = self.matrix_Dd @ later.matrix_Dd
        # mean' solves mean' @ M1 = mean1 @ M1 + mean2: only its image under the matrix matters
        shift_D = np.linalg.lstsq(self.matrix_Dd.T, later.mean_D, rcond=None)[0]
        return Projection(self.mean_D + shift_D, matrix_Dd)

    def fold(self, directions_Kd: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Heads A [K, D] and biases b [K] with A h + b = directions . z(h): training texts average zero."""
        heads_KD = directions_Kd @ self.matrix_Dd.T
        return heads_KD, -heads_KD @ self.mean_D


def principal_components(hidden_ND: npt.NDArray[np.floating], prompt_N: IntArray, max_components: int) -> Components:
    """Components of texts, at most `max_components`, without those whose deviation is under 1e-4 of the largest.

    Args:
        hidden_ND: Hidden states of training texts.
        prompt_N: Prompt of each; components describe how texts differ from their prompt's mean, since only
            differences under one prompt are ever judged.
        max_components: Upper bound on d.

    Raises:
        InvalidInput: The texts do not differ.
    """
    texts, size = hidden_ND.shape
    mean_D, spread = _mean(hidden_ND), _PromptCentred(hidden_ND, prompt_N)
    if texts <= size:
        _, singular_d, basis_dD = np.linalg.svd(spread.rows(slice(0, texts)), full_matrices=False)
        deviation_d, basis_Dd = singular_d / np.sqrt(texts), basis_dD.T
    else:
        covariance_DD = np.zeros((size, size))
        for start in range(0, texts, CHUNK_TEXTS):
            chunk = spread.rows(slice(start, start + CHUNK_TEXTS))
            covariance_DD += chunk.T @ chunk
        variance_d, basis_Dd = np.linalg.eigh(covariance_DD / texts)
        deviation_d, basis_Dd = np.sqrt(np.maximum(variance_d[::-1], 0.0)), basis_Dd[:, ::-1]
    if not deviation_d[0] > 1e-12 * (1.0 + np.abs(mean_D).max()):
        raise InvalidInput.single("hidden states", "the training texts of every prompt are all alike")
    kept = int(np.count_nonzero(deviation_d[:max_components] > RANK_TOLERANCE * deviation_d[0]))
    return Components(mean_D, largest_entry_positive(basis_Dd[:, :kept].T).T, deviation_d[:kept])


def largest_entry_positive(rows_Kd: FloatArray) -> FloatArray:
    """The rows with their signs chosen so that each one's largest entry is positive: eigenvectors made unique."""
    largest_K = np.take_along_axis(rows_Kd, np.abs(rows_Kd).argmax(axis=1)[:, None], axis=1)
    return rows_Kd * np.where(largest_K < 0, -1.0, 1.0)


def _mean(hidden_ND: npt.NDArray[np.floating]) -> FloatArray:
    return np.asarray(hidden_ND.mean(axis=0, dtype=np.float64))


class _PromptCentred:
    """Rows of hidden states less the mean of their prompt."""

    def __init__(self, hidden_ND: npt.NDArray[np.floating], prompt_N: IntArray) -> None:
        self._hidden_ND = hidden_ND
        self._prompt_N = codes(prompt_N)
        count_M = np.bincount(self._prompt_N)
        self._mean_MD = np.zeros((len(count_M), hidden_ND.shape[1]))
        for start in range(0, len(hidden_ND), CHUNK_TEXTS):
            rows = slice(start, start + CHUNK_TEXTS)
            np.add.at(self._mean_MD, self._prompt_N[rows], hidden_ND[rows].astype(np.float64))
        self._mean_MD /= count_M[:, None]

    def rows(self, rows: slice) -> FloatArray:
        return self._hidden_ND[rows].astype(np.float64) - self._mean_MD[self._prompt_N[rows]]
