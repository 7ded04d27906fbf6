"""Moving what is known of users to other heads on the same backbone.

Rewards are linear in the hidden state h, and so is what heads have in common. With C the second moment of differences
of h between answers to one prompt, A [K, D] the old heads and A' [K', D] the new ones:

- W = (A' C A'^T)^+ A' C A^T [K', K] takes effective weights to those whose rewards differ least, in mean square, from
  the old ones;
- M = A' C A^T (A C A^T)^+ [K', K] takes a base-reward difference to what it most probably is under the new heads: their
  linear regression on the old ones.

A posterior moves through M. A choice measured under the old heads is a factor of the likelihood in d . v; with the new
weights v' it is the same one in (M d) . v', so all evidence enters v' through u = M^T v'. Around the old mode it is the
Gaussian whose natural parameters are the posterior's less the prior's,

    J = H - P,    eta = H v - P m    (H and v: the posterior's precision and mode; P and m: the prior's)

and the new posterior is that of the new prior and the mapped parameters: H' = P' + M J M^T, H' v' = P' m' + M eta.
Where the old heads do not see what the new ones do, M is zero and the new prior stands; a user who told nothing gets
the new start. It needs no stored pair, and for Gaussian evidence it is exact (the information form of
Kalman's filter; Anderson and Moore, *Optimal Filtering*, section 6.3). For choices it is one Newton step of the solve
over mapped pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from service.mrm.batch import BATCH_DOUBLES, UserStates
from service.mrm.state import FloatArray, GaussianStart, SoftmaxStart, Start, UserState

RANK_TOLERANCE: Final = 1e-10
"""Directions of heads that hold less than this share of the largest one's variance are rounding of single precision."""

LOW_QUANTILE: Final = 0.05
"""`Fidelity.low`: of so many users the rewards are carried worse."""

Matrix = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True, slots=True)
class LinearMaps:
    """From K heads to K' other ones on the same backbone.

    Attributes:
        weights_KK: W [K', K]: new effective weights = W w.
        diffs_KK: M [K', K]: new base-reward differences = M d. Base rewards of texts may be mapped with it too where
            only their differences count, such as ratings of one group.
    """

    weights_KK: FloatArray
    diffs_KK: FloatArray

    def __post_init__(self) -> None:
        if self.weights_KK.ndim != 2 or self.weights_KK.shape != self.diffs_KK.shape:
            raise ValueError(
                f"both maps must be [K', K], got {self.weights_KK.shape} of weights and {self.diffs_KK.shape} of diffs"
            )
        if not (np.isfinite(self.weights_KK).all() and np.isfinite(self.diffs_KK).all()):
            raise ValueError("the maps hold numbers that are not finite")


@dataclass(frozen=True, slots=True)
class Fidelity:
    """How well rewards survive a map: correlations, over held-out differences, of the rewards before and after.

    Attributes:
        mean: Mean over users.
        low: The 5 % quantile over users.
    """

    mean: float
    low: float


def linear_maps(A_new: Matrix, A_old: Matrix, C: Matrix) -> LinearMaps:
    """Maps from old heads to new ones.

    Args:
        A_new: New heads, [K', D]. Heads may depend on one another.
        A_old: Old heads, [K, D].
        C: Second moment of differences of hidden states between answers to one prompt, [D, D], symmetric; any scale.

    Raises:
        ValueError: Shapes do not fit, or numbers are not finite.
    """
    size = C.shape[0]
    if A_new.ndim != 2 or A_old.ndim != 2 or C.shape != (size, size) or not A_new.shape[1] == A_old.shape[1] == size:
        raise ValueError(f"expected heads [K', D] and [K, D] and C [D, D], got {A_new.shape}, {A_old.shape}, {C.shape}")
    new_KD, old_KD = A_new.astype(np.float64), A_old.astype(np.float64)
    seen_KD = new_KD @ C
    return maps_from_products(seen_KD @ new_KD.T, seen_KD @ old_KD.T, old_KD @ C @ old_KD.T)


def maps_from_products(new_KK: FloatArray, cross_KK: FloatArray, old_KK: FloatArray) -> LinearMaps:
    """The same from A' C A'^T [K', K'], A' C A^T [K', K] and A C A^T [K, K].

    They are also the second moments of the two sets of base-reward differences of any sample of pairs: one that is at
    hand needs no [D, D] matrix.

    Raises:
        ValueError: Shapes do not fit, or numbers are not finite.
    """
    new, old = len(new_KK), len(old_KK)
    if new_KK.shape != (new, new) or old_KK.shape != (old, old) or cross_KK.shape != (new, old):
        raise ValueError(
            f"expected products [K', K'], [K', K] and [K, K], got {new_KK.shape}, {cross_KK.shape}, {old_KK.shape}"
        )
    if not all(np.isfinite(each).all() for each in (new_KK, cross_KK, old_KK)):
        raise ValueError("heads and covariance must be finite numbers")
    return LinearMaps(_pseudo_inverse(new_KK) @ cross_KK, cross_KK @ _pseudo_inverse(old_KK))


def fidelity(maps: LinearMaps, A_new: Matrix, A_old: Matrix, diffs_h_ND: Matrix, weights_UK: FloatArray) -> Fidelity:
    """How well the weights' map reproduces users' rewards on differences that it was not fitted to.

    A difference has no sign of its own, so correlations are about zero, not about the mean.

    Args:
        maps: Of `linear_maps`.
        A_new: New heads, [K', D].
        A_old: Old heads, [K, D].
        diffs_h_ND: Held-out differences of hidden states, [N, D].
        weights_UK: Old effective weights of a sample of users, or `prior_draws`.

    Raises:
        ValueError: There are no differences or no users.
    """
    if not len(diffs_h_ND) or not len(weights_UK):
        raise ValueError("the fidelity of no differences, or of no users")
    before_NU = (diffs_h_ND @ A_old.T) @ weights_UK.T
    after_NU = (diffs_h_ND @ A_new.T) @ (weights_UK @ maps.weights_KK.T).T
    return _fidelity(before_NU, after_NU)


def diffs_fidelity(
    maps: LinearMaps, A_new: Matrix, A_old: Matrix, diffs_h_ND: Matrix, weights_UK: FloatArray
) -> Fidelity:
    """How well mapped differences stand for those measured anew, as users' *new* effective weights [U, K'] see them.

    This is what evidence loses that is re-solved through the map. Arguments as of `fidelity`.

    Raises:
        ValueError: There are no differences or no users.
    """
    if not len(diffs_h_ND) or not len(weights_UK):
        raise ValueError("the fidelity of no differences, or of no users")
    before_NU = (diffs_h_ND @ A_old.T @ maps.diffs_KK.T) @ weights_UK.T
    after_NU = (diffs_h_ND @ A_new.T) @ weights_UK.T
    return _fidelity(before_NU, after_NU)


def prior_draws(start: Start, count: int, seed: int = 0) -> FloatArray:
    """Effective weights [count, K] of people whom nobody has asked yet; the softmax recipe has one start for all."""
    if isinstance(start, SoftmaxStart):
        shifted_K = np.exp(start.logits_K - start.logits_K.max())
        return np.tile(shifted_K / shifted_K.sum(), (count, 1))
    lower_KK = np.linalg.cholesky(start.precision_KK)
    draws_UK = np.random.default_rng(seed).normal(size=(count, start.heads))
    return np.asarray((start.mean_K + np.linalg.solve(lower_KK.T, draws_UK.T).T) / start.temperature)


def carry(state: UserState, maps: LinearMaps, old: Start, new: Start) -> UserState:
    """One user under the new heads: `carry_many` of one."""
    factors_UF = None if state.factor is None else state.factor[None]
    return carry_many(state.weights_K[None], factors_UF, maps, old, new)[0]


def carry_many(
    weights_UK: FloatArray, factors_UF: FloatArray | None, maps: LinearMaps, old: Start, new: Start
) -> UserStates:
    """U users under the new heads, from their states alone.

    Between two Gaussian starts the evidence in the posterior moves as the module says. Otherwise rewards are
    reproduced through W; a new Gaussian start then gives its prior's spread, the most that can be left open.

    Args:
        weights_UK: Effective weights under the old heads.
        factors_UF: Packed posterior factors under them, F = K (K + 1) / 2; None where the old recipe has none.
        maps: From the old heads to the new ones.
        old: The start that the states were solved with.
        new: The start under the new heads.

    Returns:
        States under the new heads, with factors where the new recipe has a posterior.

    Raises:
        ValueError: Shapes do not fit, or numbers are not finite.
    """
    users, heads = weights_UK.shape
    if maps.diffs_KK.shape != (new.heads, old.heads) or heads != old.heads:
        raise ValueError(
            f"maps {maps.diffs_KK.shape} do not lead from K = {old.heads} (weights have {heads}) to K = {new.heads}"
        )
    if factors_UF is not None and factors_UF.shape != (users, heads * (heads + 1) // 2):
        raise ValueError(f"expected factors [{users}, {heads * (heads + 1) // 2}], got {factors_UF.shape}")
    if not np.isfinite(weights_UK).all() or (factors_UF is not None and not np.isfinite(factors_UF).all()):
        raise ValueError("the users' states hold numbers that are not finite")
    if isinstance(new, SoftmaxStart):
        return UserStates(weights_UK @ maps.weights_KK.T)
    if factors_UF is None or isinstance(old, SoftmaxStart):
        lower_KK = np.linalg.cholesky(new.precision_KK[::-1, ::-1])
        factor_F = _packed_reversed(_lower_inverse(lower_KK[None]))[0] / new.temperature
        return UserStates(weights_UK @ maps.weights_KK.T, np.tile(factor_F, (users, 1)))
    carried_UK, carried_UF = np.empty((users, new.heads)), np.empty((users, new.heads * (new.heads + 1) // 2))
    size = max(1, BATCH_DOUBLES // max(heads, new.heads) ** 2)
    for first in range(0, users, size):
        batch = slice(first, first + size)
        _carry_batch(
            weights_UK[batch], factors_UF[batch], maps.diffs_KK, old, new, carried_UK[batch], carried_UF[batch]
        )
    return UserStates(carried_UK, carried_UF)


def _carry_batch(
    weights_BK: FloatArray,
    factors_BF: FloatArray,
    map_KK: FloatArray,
    old: GaussianStart,
    new: GaussianStart,
    into_weights_BK: FloatArray,
    into_factors_BF: FloatArray,
) -> None:
    """One batch of `carry_many` between Gaussian starts.

    With L the old factor and X = M L^-T, M J M^T is X X^T - M P M^T: one batched product, and a constant.
    """
    rows, columns = np.tril_indices(old.heads)
    lower_BKK = np.zeros((len(weights_BK), old.heads, old.heads))
    lower_BKK[:, rows, columns] = factors_BF
    # of v, as the mean and the precision are, not of effective weights
    root_BKK = _lower_inverse(lower_BKK) / old.temperature
    scaled_BK = _applied(root_BKK, weights_BK * old.temperature)
    # from here on the new heads come in reverse order: what is lower triangular then is upper triangular in theirs
    map_KK, mean_K, precision_KK = map_KK[::-1], new.mean_K[::-1], new.precision_KK[::-1, ::-1]
    seen_BKK = (root_BKK.reshape(-1, old.heads) @ map_KK.T).reshape(len(weights_BK), old.heads, new.heads)
    precision_BKK = seen_BKK.transpose(0, 2, 1) @ seen_BKK
    precision_BKK += precision_KK - map_KK @ old.precision_KK @ map_KK.T
    natural_BK = (scaled_BK[:, None, :] @ seen_BKK)[:, 0, :]
    natural_BK += precision_KK @ mean_K - map_KK @ (old.precision_KK @ old.mean_K)
    try:
        inverse_BKK = _lower_inverse(np.linalg.cholesky(precision_BKK))
    except np.linalg.LinAlgError:
        careful_BKK = _careful_precisions(root_BKK, map_KK, old.precision_KK, precision_KK)
        inverse_BKK = _lower_inverse(np.linalg.cholesky(careful_BKK))
    v_BK = (_applied(inverse_BKK, natural_BK)[:, None, :] @ inverse_BKK)[:, 0, ::-1]
    into_weights_BK[:] = v_BK / new.temperature
    into_factors_BF[:] = _packed_reversed(inverse_BKK) / new.temperature


def _careful_precisions(
    root_BKK: FloatArray, map_KK: FloatArray, old_precision_KK: FloatArray, new_precision_KK: FloatArray
) -> FloatArray:
    """P' + M J M^T where rounding robs it of its Cholesky factor: of J only the sign is sure then."""
    evidence_BKK = root_BKK.transpose(0, 2, 1) @ root_BKK - old_precision_KK
    eigenvalues_BK, vectors_BKK = np.linalg.eigh(0.5 * (evidence_BKK + evidence_BKK.transpose(0, 2, 1)))
    sent_BKK = (map_KK @ vectors_BKK) * np.sqrt(np.maximum(eigenvalues_BK, 0.0))[:, None, :]
    precision_BKK = new_precision_KK + sent_BKK @ sent_BKK.transpose(0, 2, 1)
    heads = len(new_precision_KK)
    ridge_B = 8 * heads * np.finfo(np.float64).eps * np.trace(precision_BKK, axis1=1, axis2=2)
    return np.asarray(precision_BKK + ridge_B[:, None, None] * np.eye(heads))


def _packed_reversed(inverse_BKK: FloatArray) -> FloatArray:
    """Packed lower factors [B, F] of inverses, from the inverted Cholesky factors of the reversed matrices.

    With J the reversal and J H J = L L^T, H^-1 = (J L^-T J) (J L^-T J)^T, and J L^-T J is lower triangular.
    """
    heads = inverse_BKK.shape[1]
    rows, columns = np.tril_indices(heads)
    place_F = (heads - 1 - columns) * heads + (heads - 1 - rows)
    return np.asarray(np.take(inverse_BKK.reshape(len(inverse_BKK), -1), place_F, axis=1))


def _lower_inverse(lower_BKK: Matrix) -> FloatArray:
    """Inverses of lower-triangular matrices, row by row of all of them at once: LAPACK takes one at a time."""
    inverse_BKK = np.zeros(lower_BKK.shape)
    reciprocal_BK = 1.0 / np.diagonal(lower_BKK, axis1=1, axis2=2)
    for row in range(lower_BKK.shape[1]):
        inverse_BKK[:, row, row] = reciprocal_BK[:, row]
        if row:
            sums_BK = (lower_BKK[:, row : row + 1, :row] @ inverse_BKK[:, :row, :row])[:, 0]
            np.multiply(sums_BK, -reciprocal_BK[:, row, None], out=inverse_BKK[:, row, :row])
    return inverse_BKK


def _applied(matrix_BKJ: FloatArray, vector_BJ: FloatArray) -> FloatArray:
    return np.asarray((matrix_BKJ @ vector_BJ[:, :, None])[:, :, 0])


def _pseudo_inverse(products_KK: FloatArray) -> FloatArray:
    """Of a matrix of second moments; heads of very different sizes count alike."""
    scale_K = np.sqrt(np.maximum(np.diag(products_KK), 0.0))
    inverse_K = np.divide(1.0, scale_K, out=np.zeros_like(scale_K), where=scale_K > 0)
    alike_KK = inverse_K[:, None] * (0.5 * (products_KK + products_KK.T)) * inverse_K
    inverse_KK = np.linalg.pinv(alike_KK, rcond=RANK_TOLERANCE, hermitian=True)
    return np.asarray(inverse_K[:, None] * inverse_KK * inverse_K)


def _fidelity(before_NU: FloatArray, after_NU: FloatArray) -> Fidelity:
    """Correlations about zero, user by user; who has no rewards on either side is carried whole."""
    before_U, after_U = (np.linalg.norm(each_NU, axis=0) for each_NU in (before_NU, after_NU))
    together_U = np.einsum("nu,nu->u", before_NU, after_NU)
    length_U = before_U * after_U
    correlation_U = np.divide(together_U, length_U, out=np.zeros_like(length_U), where=length_U > 0)
    correlation_U[(before_U == 0) & (after_U == 0)] = 1.0
    return Fidelity(float(correlation_U.mean()), float(np.quantile(correlation_U, LOW_QUANTILE)))
