"""MAP weights under a Gaussian prior, by damped Newton; the posterior by Laplace's approximation."""

from __future__ import annotations

from typing import Final

import numpy as np
from scipy.linalg import lapack
from scipy.special import expit

from service.mrm.state import FloatArray, GaussianStart, Support, UserState, pack_factor

MAX_STEPS: Final = 50
# Newton converges quadratically: a decrement below this leaves an error of its square.
DECREMENT_TOLERANCE: Final = 1e-11
MAX_HALVINGS: Final = 40


def solve_map(support: Support, start: GaussianStart) -> UserState:
    """The mode and the Laplace posterior of one user's weights.

    Minimises over v, with d_p the differences and s_p the strengths,

        J(v) = 1/2 (v - m)' P (v - m) - sum_p s_p log sigmoid(d_p . v)

    J is strictly convex, so the mode is unique and finite whatever the pairs say. Newton's step is halved until J
    decreases enough (Armijo), hence no step can end above the start.

    Args:
        support: [P, K] differences and [P] strengths; P may be 0. Its order decides the last bits of the sums.
        start: Prior mean m, precision P, temperature.

    Returns:
        Effective weights v / temperature and the packed factor of their posterior covariance.
    """
    diffs_PK, strengths_P = support.diffs_PK, support.strengths_P
    precision_KK = start.precision_KK
    if len(support) == 0:
        return _state(start.mean_K, precision_KK, start.temperature)

    v_K = start.mean_K.copy()
    logits_P = diffs_PK @ v_K
    objective = _objective(v_K, logits_P, support, start)
    hessian_KK = precision_KK
    for _ in range(MAX_STEPS):
        p_wrong_P = expit(-logits_P)
        gradient_K = precision_KK @ (v_K - start.mean_K) - diffs_PK.T @ (strengths_P * p_wrong_P)
        curvature_P = strengths_P * p_wrong_P * (1.0 - p_wrong_P)
        hessian_KK = precision_KK + (diffs_PK.T * curvature_P) @ diffs_PK
        step_K = _solve_spd(hessian_KK, gradient_K)
        decrement = float(gradient_K @ step_K)
        if decrement <= DECREMENT_TOLERANCE:
            break
        scale = 1.0
        step_logits_P = diffs_PK @ step_K
        for _ in range(MAX_HALVINGS):
            trial_K = v_K - scale * step_K
            trial_logits_P = logits_P - scale * step_logits_P
            trial = _objective(trial_K, trial_logits_P, support, start)
            if trial <= objective - 1e-4 * scale * decrement:
                break
            scale *= 0.5
        else:
            break  # no representable decrease is left: v is the mode to the last bit
        v_K, logits_P, objective = trial_K, diffs_PK @ trial_K, trial
    return _state(v_K, hessian_KK, start.temperature)


def _objective(v_K: FloatArray, logits_P: FloatArray, support: Support, start: GaussianStart) -> float:
    delta_K = v_K - start.mean_K
    return float(0.5 * delta_K @ start.precision_KK @ delta_K + support.strengths_P @ np.logaddexp(0.0, -logits_P))


def _solve_spd(matrix_KK: FloatArray, vector_K: FloatArray) -> FloatArray:
    _, solution_K, info = lapack.dposv(matrix_KK, vector_K)
    if info != 0:
        raise ValueError("the posterior precision is not positive definite: the pairs' numbers are too large")
    return np.asarray(solution_K, dtype=np.float64)


def _state(v_K: FloatArray, hessian_KK: FloatArray, temperature: float) -> UserState:
    covariance_KK = np.linalg.inv(hessian_KK) / temperature**2
    lower_KK = np.linalg.cholesky(0.5 * (covariance_KK + covariance_KK.T))
    return UserState(v_K / temperature, pack_factor(lower_KK))
