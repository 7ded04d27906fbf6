"""The Gaussian solve of many users at once: what `gaussian.py` does for one, in batches of equally long rows."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from service.mrm.evidence import directions, distinct_weights
from service.mrm.gaussian import DECREMENT_TOLERANCE, MAX_HALVINGS, MAX_STEPS, solve_map
from service.mrm.stages import SAME
from service.mrm.state import LARGEST_WEIGHT, FloatArray, GaussianStart, IntArray, Support, UserState

# Doubles in a batch's largest array: 2 MiB keeps a batch in the caches, and memory flat in U.
BATCH_DOUBLES: Final = 2**18
# A batch is made smaller when so many of its users are done: what is left costs less than copying it.
LEFT_SHARE: Final = 0.7


@dataclass(frozen=True, slots=True)
class UserStates:
    """The states of U users.

    Attributes:
        weights_UK: Effective weights.
        factors_UF: Packed posterior factors, F = K (K + 1) / 2; None where they were not asked for.
    """

    weights_UK: FloatArray
    factors_UF: FloatArray | None = None

    def __len__(self) -> int:
        return len(self.weights_UK)

    def __getitem__(self, user: int) -> UserState:
        return UserState(self.weights_UK[user], None if self.factors_UF is None else self.factors_UF[user])


def solve_many(
    diffs_PK: npt.NDArray[np.floating[Any]],
    user_P: npt.NDArray[np.integer[Any]],
    users: int,
    start: GaussianStart,
    factors: bool = True,
    threads: int = 1,
    *,
    weights_P: npt.NDArray[np.floating[Any]] | None = None,
    tilts_P: npt.NDArray[np.floating[Any]] | None = None,
) -> UserStates:
    """Adapt U users to their choices between two: `solve` of each, to 1e-8.

    Strengths, ratings and choices among several are not for batches: solve those users one by one.

    Newton takes the same steps as `gaussian.solve_map`, stopped by the same tests user by user; only the order of sums
    differs, since pairs stay in the order in which they come. Memory beyond arguments and result is a few batches, so
    `diffs_PK` may be memory-mapped.

    Args:
        diffs_PK: Base-reward differences, chosen minus rejected, of all users' pairs.
        user_P: Whose pair it is, 0 to U-1; in any order, quickest ascending. A user may have no pairs.
        users: U.
        start: Prior and temperature.
        factors: Make posterior factors too.
        threads: Batches solved side by side.
        weights_P: How much each pair counts, as in `Support`; None: 1.
        tilts_P: Tilts of the pairs, as in `Support`; None: 0.

    Raises:
        ValueError: Shapes do not fit, the numbers are not finite or too large to solve with, or weights not positive.
    """
    if diffs_PK.shape != (len(user_P), start.heads):
        raise ValueError(f"expected diffs [{len(user_P)}, {start.heads}], got {diffs_PK.shape}")
    if len(user_P) and not 0 <= user_P.min() <= user_P.max() < users:
        raise ValueError(f"users of pairs must lie in [0, {users}), got {user_P.min()} to {user_P.max()}")
    for name, each in (("weights", weights_P), ("tilts", tilts_P)):
        if each is not None and each.shape != (len(user_P),):
            raise ValueError(f"expected {name} [{len(user_P)}], got {each.shape}")
    heads = start.heads
    weights_UK = np.empty((users, heads))
    factors_UF = np.empty((users, heads * (heads + 1) // 2)) if factors else None

    def solve_batch(batch: tuple[IntArray, IntArray]) -> None:
        users_B, rows_BP = batch
        diffs_BPK, weights_BP = _gathered(diffs_PK, rows_BP, weights_P)
        pull_BK = None if tilts_P is None else _pulls(diffs_BPK, weights_BP, rows_BP, tilts_P)
        try:
            with np.errstate(over="ignore", invalid="ignore"):
                v_BK, hessian_BKK = _modes(diffs_BPK, weights_BP, pull_BK, start)
                factors_BF = _packed_factors(hessian_BKK) if factors else None
        except np.linalg.LinAlgError:  # somebody's numbers need the care that only `solve_map` takes
            states = [_solved_alone(diffs_PK, row_P[row_P >= 0], weights_P, tilts_P, start) for row_P in rows_BP]
            v_BK = start.temperature * np.stack([state.weights_K for state in states])
            factors_BF = (
                start.temperature * np.stack([state.factor for state in states if state.factor is not None])
                if factors
                else None
            )
        weights_UK[users_B] = v_BK / start.temperature
        if factors_UF is not None and factors_BF is not None:
            factors_UF[users_B] = factors_BF / start.temperature

    batches = _batches(np.asarray(user_P, dtype=np.int64), users, heads)
    if threads == 1:
        for batch in batches:
            solve_batch(batch)
    else:
        with ThreadPoolExecutor(max_workers=threads) as pool:
            for _ in pool.map(solve_batch, list(batches)):
                pass
    return UserStates(weights_UK, factors_UF)


def _batches(user_P: IntArray, users: int, heads: int) -> Iterator[tuple[IntArray, IntArray]]:
    """Users [B] with similar numbers of pairs, and their pairs' rows [B, P], -1 where there are fewer."""
    ascending = bool((user_P[1:] >= user_P[:-1]).all())
    order_P = np.arange(len(user_P)) if ascending else np.argsort(user_P, kind="stable")
    count_U = np.bincount(user_P, minlength=users)
    first_U = np.cumsum(count_U) - count_U
    by_count_U = np.argsort(count_U, kind="stable")
    start = 0
    while start < users:
        # rows are as long as the last user's: as many as the longest of a first guess allows
        stop = min(users, start + max(1, BATCH_DOUBLES // (heads * max(heads, int(count_U[by_count_U[start]])))))
        longest = max(heads, int(count_U[by_count_U[stop - 1]]))
        stop = min(stop, start + max(1, BATCH_DOUBLES // (heads * longest)))
        users_B = by_count_U[start:stop]
        column_P = np.arange(int(count_U[users_B].max()))
        rows_BP = np.where(column_P < count_U[users_B][:, None], first_U[users_B][:, None] + column_P, -1)
        if rows_BP.size and not ascending:
            rows_BP = np.where(rows_BP < 0, -1, order_P[rows_BP])
        yield users_B, rows_BP
        start = stop


def _solved_alone(
    diffs_PK: npt.NDArray[np.floating[Any]],
    rows: IntArray,
    weights_P: npt.NDArray[np.floating[Any]] | None,
    tilts_P: npt.NDArray[np.floating[Any]] | None,
    start: GaussianStart,
) -> UserState:
    weights, tilts = (None if each is None else each[rows] for each in (weights_P, tilts_P))
    return solve_map(Support.of(diffs_PK[rows], weights_P=weights, tilts_P=tilts), start)


def _gathered(
    diffs_PK: npt.NDArray[np.floating[Any]], rows_BP: IntArray, weights_P: npt.NDArray[np.floating[Any]] | None
) -> tuple[FloatArray, FloatArray]:
    """Differences [B, P, K] and weights [B, P] of a batch, both 0 where padded."""
    filled_BP = rows_BP >= 0
    if not rows_BP.size:
        return np.zeros((*rows_BP.shape, diffs_PK.shape[1])), np.zeros(rows_BP.shape)
    diffs_BPK = diffs_PK[np.maximum(rows_BP, 0)].astype(np.float64, copy=False)
    if not np.isfinite(diffs_BPK).all():
        raise ValueError("the pairs hold numbers that are not finite")
    weights_BP = filled_BP.astype(np.float64)
    if weights_P is not None:
        weights_BP[filled_BP] = weights_P[rows_BP[filled_BP]]
        if not ((weights_BP[filled_BP] > 0) & (weights_BP[filled_BP] <= LARGEST_WEIGHT)).all():
            raise ValueError(f"weights must be above 0 and at most {LARGEST_WEIGHT:g}")
    diffs_BPK[~filled_BP] = 0.0
    for row in _repeated(diffs_BPK, filled_BP):
        given_P = filled_BP[row]
        weights_BP[row, given_P] = distinct_weights(diffs_BPK[row, given_P], weights_BP[row, given_P])
    return diffs_BPK, weights_BP


def _pulls(
    diffs_BPK: FloatArray, weights_BP: FloatArray, rows_BP: IntArray, tilts_P: npt.NDArray[np.floating[Any]]
) -> FloatArray:
    """What each user's tilts pull along [B, K], whatever the weights are."""
    if not rows_BP.size:
        return np.zeros((len(rows_BP), diffs_BPK.shape[2]))
    tilts_BP = np.where(rows_BP >= 0, tilts_P[np.maximum(rows_BP, 0)], 0.0)
    if not (np.abs(tilts_BP) <= LARGEST_WEIGHT).all():
        raise ValueError(f"tilts must be at most {LARGEST_WEIGHT:g} in size")
    return _transposed(diffs_BPK, weights_BP * tilts_BP)


def _repeated(diffs_BPK: FloatArray, filled_BP: npt.NDArray[np.bool_]) -> list[int]:
    """Rows of users with a comparison made twice: with two at one place along the first of `evidence`'s directions.

    Few others share a place, and `distinct_weights` tells them apart.
    """
    largest_B = np.maximum(diffs_BPK.max(axis=(1, 2)), -diffs_BPK.min(axis=(1, 2)))
    place_BP = np.abs(diffs_BPK @ directions(diffs_BPK.shape[2])[0])
    # padding is far from everything, itself included
    far_BP = (-1.0 - np.arange(place_BP.shape[1])) * (1.0 + largest_B[:, None])
    place_BP = np.where(filled_BP, place_BP, far_BP)
    place_BP.sort(axis=1)
    return np.flatnonzero((np.diff(place_BP, axis=1) <= SAME * largest_B[:, None]).any(axis=1)).tolist()


def _modes(
    diffs_BPK: FloatArray, weights_BP: FloatArray, pull_BK: FloatArray | None, start: GaussianStart
) -> tuple[FloatArray, FloatArray]:
    """Modes [B, K] and Hessians [B, K, K] there: `gaussian._mode` of every user."""
    users, heads = len(diffs_BPK), start.heads
    mode_BK, hessian_at_BKK = np.empty((users, heads)), np.empty((users, heads, heads))
    # those still in the arrays below, and which of them are not done
    present_B, open_B = np.arange(users), np.ones(users, bool)
    delta_BK, back_BK = np.zeros((users, heads)), np.zeros((users, heads))
    logits_BP = diffs_BPK @ start.mean_K
    loss_BP, p_wrong_BP = _losses(logits_BP)
    objective_B = _rows(weights_BP, loss_BP)
    for number in range(MAX_STEPS):
        slope_BP = weights_BP * p_wrong_BP
        gradient_BK = back_BK - _transposed(diffs_BPK, slope_BP)
        if pull_BK is not None:
            gradient_BK -= pull_BK
        weighted_BPK = diffs_BPK * (slope_BP * (1.0 - p_wrong_BP))[..., None]
        hessian_BKK = start.precision_KK + diffs_BPK.transpose(0, 2, 1) @ weighted_BPK
        step_BK: FloatArray = np.linalg.solve(hessian_BKK, gradient_BK[..., None])[..., 0].astype(
            np.float64, copy=False
        )
        decrement_B = _rows(gradient_BK, step_BK)
        if not (decrement_B > -DECREMENT_TOLERANCE).all():
            raise np.linalg.LinAlgError("rounding has robbed a Hessian of its Cholesky factor")
        moves_B = open_B & (decrement_B > DECREMENT_TOLERANCE)

        stuck_B, scale_B = moves_B, np.ones(len(present_B))
        step_logits_BP = _applied(diffs_BPK, step_BK)
        for _ in range(MAX_HALVINGS if moves_B.any() else 0):
            trial_BK = delta_BK - scale_B[:, None] * step_BK
            trial_back_BK = trial_BK @ start.precision_KK
            trial_logits_BP = logits_BP - scale_B[:, None] * step_logits_BP
            loss_BP, p_wrong_BP = _losses(trial_logits_BP)
            trial_B = 0.5 * _rows(trial_BK, trial_back_BK) + _rows(weights_BP, loss_BP)
            if pull_BK is not None:
                trial_B -= _rows(pull_BK, trial_BK)
            stuck_B = moves_B & ~(trial_B <= objective_B - 1e-4 * scale_B * decrement_B)
            if not stuck_B.any():
                break
            scale_B = np.where(stuck_B, 0.5 * scale_B, scale_B)

        done_B = open_B & (~moves_B | stuck_B)
        mode_BK[present_B[done_B]] = start.mean_K + delta_BK[done_B]
        hessian_at_BKK[present_B[done_B]] = hessian_BKK[done_B]
        open_B = open_B & ~done_B
        if not open_B.any():
            return mode_BK, hessian_at_BKK
        delta_BK, back_BK, logits_BP, objective_B = trial_BK, trial_back_BK, trial_logits_BP, trial_B
        if number + 1 == MAX_STEPS:
            mode_BK[present_B[open_B]] = start.mean_K + delta_BK[open_B]
            hessian_at_BKK[present_B[open_B]] = hessian_BKK[open_B]
        elif np.count_nonzero(open_B) < LEFT_SHARE * len(open_B):
            present_B, diffs_BPK, weights_BP = present_B[open_B], diffs_BPK[open_B], weights_BP[open_B]
            delta_BK, back_BK, objective_B = delta_BK[open_B], back_BK[open_B], objective_B[open_B]
            pull_BK = None if pull_BK is None else pull_BK[open_B]
            logits_BP, p_wrong_BP = logits_BP[open_B], p_wrong_BP[open_B]
            open_B = np.ones(len(present_B), bool)
    return mode_BK, hessian_at_BKK


def _losses(logits_BP: FloatArray) -> tuple[FloatArray, FloatArray]:
    """-log sigmoid(logits) and sigmoid(-logits), by one exponential."""
    small_BP = np.exp(-np.abs(logits_BP))
    p_wrong_BP = np.where(logits_BP >= 0.0, small_BP, 1.0) / (1.0 + small_BP)
    return np.maximum(-logits_BP, 0.0) + np.log1p(small_BP), p_wrong_BP


def _packed_factors(hessian_BKK: FloatArray) -> FloatArray:
    """Packed lower factors [B, F] of the inverses.

    H = R R' with R upper triangular (Cholesky of H with its rows and columns reversed), so H^-1 = R^-T R^-1 and R^-T is
    the lower factor: unique, since its diagonal is positive.
    """
    lower_BKK = np.linalg.cholesky(hessian_BKK[:, ::-1, ::-1])
    factor_BKK = np.linalg.inv(lower_BKK[:, ::-1, ::-1]).transpose(0, 2, 1)
    rows, columns = np.tril_indices(hessian_BKK.shape[1])
    return np.asarray(factor_BKK[:, rows, columns])


def _applied(matrix_BPK: FloatArray, vector_BK: FloatArray) -> FloatArray:
    return np.asarray((matrix_BPK @ vector_BK[..., None])[..., 0])


def _transposed(matrix_BPK: FloatArray, vector_BP: FloatArray) -> FloatArray:
    return np.asarray((vector_BP[:, None, :] @ matrix_BPK)[:, 0, :])


def _rows(left_BK: FloatArray, right_BK: FloatArray) -> FloatArray:
    return np.asarray(np.einsum("bk,bk->b", left_BK, right_BK))
