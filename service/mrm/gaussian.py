"""MAP weights under a Gaussian prior, by damped Newton; the posterior by Laplace's approximation."""

from __future__ import annotations

from typing import Final

import numpy as np
from scipy.linalg import lapack
from scipy.special import expit

from service.mrm.evidence import Choices, Observations, terms
from service.mrm.state import FloatArray, GaussianStart, Support, UserState, pack_factor

MAX_STEPS: Final = 50
# The square of what may be left to the mode, in posterior standard deviations; usually it is far less: Newton's steps
# converge quadratically.
DECREMENT_TOLERANCE: Final = 1e-11
MAX_HALVINGS: Final = 40


def solve_map(support: Support, start: GaussianStart) -> UserState:
    """The mode and the Laplace posterior of one user's weights.

    Minimises over v, with m and P the prior's mean and precision, choices p of weight s_p, tilts c_j and rows d_j (one
    row between two texts, more among several) and observations (x_q, t_q, variance e_q) as `evidence.terms` makes them,

        J(v) = 1/2 (v - m)' P (v - m) + sum_q (t_q - x_q . v)^2 / (2 e_q)
               + sum_p s_p [log(1 + sum_j exp(-d_j . v)) - sum_j c_j d_j . v]

    The observations are absorbed into the prior in closed form. What is left is strictly convex, and the prior outgrows
    what tilts subtract, so the mode is unique and finite whatever was said. Newton's step is halved until J decreases
    enough (Armijo), hence no step can end above the start. Because J is P-strongly convex,

        |v - m|_P^2 <= 2 (J(m) - J(v))    and    |v - m|_P <= |J'(m)|_{P^-1} <= sum_p s_p sum_j (1 + |c_j|) |d_j|_{P^-1}

    (the last for choices alone). Without tilts, and with those of ties and of soft labels, no choice's loss is below
    zero, so the first is at most twice what was said against the start: a user cannot be moved further than that.
    Tilts above 0, of careless answers, bound by the second only.

    Args:
        support: The user's evidence; it may be empty. Its order decides the last bits of the sums.
        start: Prior mean m, precision P, temperature, rating gain.

    Returns:
        Effective weights v / temperature and the packed factor of their posterior covariance.
    """
    choices, observations = terms(support, start.rating_gain)
    mean_K, precision_KK = _informed(start, observations)
    v_K, hessian_KK = _mode(choices, mean_K, precision_KK)
    return _state(v_K, hessian_KK, start.temperature)


def _informed(start: GaussianStart, observations: Observations) -> tuple[FloatArray, FloatArray]:
    """Mean and precision after the Gaussian observations."""
    if not len(observations):
        return start.mean_K, start.precision_KK
    rows_QK = observations.rows_QK / np.sqrt(observations.variances_Q)[:, None]
    residual_Q = (observations.targets_Q - observations.rows_QK @ start.mean_K) / np.sqrt(observations.variances_Q)
    precision_KK = start.precision_KK + rows_QK.T @ rows_QK
    return start.mean_K + _solve_spd(precision_KK, rows_QK.T @ residual_Q), precision_KK


def _mode(choices: Choices, mean_K: FloatArray, precision_KK: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Minimum of the prior's and the choices' part of J, and its Hessian there."""
    diffs_PK, weights_P, pull_K, stages = choices.diffs_PK, choices.weights_P, choices.pull_K, choices.stages
    if len(diffs_PK) == 0 and stages is None:
        return mean_K, precision_KK
    delta_K = np.zeros_like(mean_K)
    back_K = np.zeros_like(mean_K)
    logits_P = diffs_PK @ mean_K
    objective = float(weights_P @ np.logaddexp(0.0, -logits_P))
    if stages is not None:
        objective += stages.loss(mean_K)
    hessian_KK = precision_KK
    for _ in range(MAX_STEPS):
        p_wrong_P = expit(-logits_P)
        gradient_K = back_K - diffs_PK.T @ (weights_P * p_wrong_P)
        curvature_P = weights_P * p_wrong_P * (1.0 - p_wrong_P)
        hessian_KK = precision_KK + (diffs_PK.T * curvature_P) @ diffs_PK
        if pull_K is not None:
            gradient_K -= pull_K
        if stages is not None:
            slope_K, curvature_KK = stages.derivatives(mean_K + delta_K)
            gradient_K += slope_K
            hessian_KK += curvature_KK
        step_K = _solve_spd(hessian_KK, gradient_K)
        decrement = float(gradient_K @ step_K)
        if decrement <= DECREMENT_TOLERANCE:
            break
        scale = 1.0
        step_logits_P = diffs_PK @ step_K
        for _ in range(MAX_HALVINGS):
            trial_K = delta_K - scale * step_K
            trial_back_K = precision_KK @ trial_K
            trial_logits_P = logits_P - scale * step_logits_P
            trial = 0.5 * float(trial_K @ trial_back_K) + float(weights_P @ np.logaddexp(0.0, -trial_logits_P))
            if pull_K is not None:
                trial -= float(pull_K @ trial_K)
            if stages is not None:
                trial += stages.loss(mean_K + trial_K)
            if trial <= objective - 1e-4 * scale * decrement:
                break
            scale *= 0.5
        else:
            break  # no representable decrease is left: v is the mode to the last bit
        delta_K, back_K, objective = trial_K, trial_back_K, trial
        logits_P = diffs_PK @ (mean_K + delta_K)
    return mean_K + delta_K, hessian_KK


def _solve_spd(matrix_KK: FloatArray, vector_K: FloatArray) -> FloatArray:
    _, solution_K, info = lapack.dposv(matrix_KK, vector_K)
    if info != 0:
        _, solution_K, _ = lapack.dposv(_lifted(matrix_KK), vector_K)
    return np.asarray(solution_K, dtype=np.float64)


def _lifted(matrix_KK: FloatArray) -> FloatArray:
    """A matrix that has a Cholesky factor, beside one that rounding has robbed of it.

    Differences of 1e8 leave nothing of a prior of 1. The ridge is what rounding may have taken; a step with it is
    shorter, and still leads downhill.
    """
    heads = len(matrix_KK)
    ridge = 8 * heads * np.finfo(np.float64).eps * float(np.trace(matrix_KK))
    return matrix_KK + ridge * np.eye(heads)


def _state(v_K: FloatArray, hessian_KK: FloatArray, temperature: float) -> UserState:
    """Weights and posterior factor: with H = U U', U upper triangular, it is the inverse of U'."""
    flipped_KK = hessian_KK[::-1, ::-1]
    lower_KK, info = lapack.dpotrf(flipped_KK, lower=1)
    if info != 0:
        lower_KK, _ = lapack.dpotrf(_lifted(flipped_KK), lower=1)
    inverse_KK, _ = lapack.dtrtri(lower_KK, lower=1)
    return UserState(v_K / temperature, pack_factor(inverse_KK.T[::-1, ::-1] / temperature))
