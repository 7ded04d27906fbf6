"""Ridge Bradley-Terry regression: one taste for everybody.

Minimises  sum_p a_p log(1 + exp(-theta . x_p)) + lambda/2 |theta|^2,  x_p = z_chosen - z_rejected, sum_p a_p = 1.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from scipy.sparse import coo_array, csr_array
from scipy.special import expit

from service.mrm.state import FloatArray
from service.training.pairs import Pairs

MAX_STEPS: Final = 60
DECREMENT_TOLERANCE: Final = 1e-14


def fit_bradley_terry(
    values_Nd: FloatArray, pairs: Pairs, weights_P: FloatArray, ridge: float, start_d: FloatArray | None = None
) -> FloatArray:
    """The minimiser theta [d], by damped Newton.

    The Hessian is Z' L Z with L the Laplacian of the graph whose edges are the pairs: its cost is of the distinct
    text pairs and of N d^2, not of P d^2.

    Args:
        values_Nd: Features of texts.
        pairs: P pairs over those texts.
        weights_P: a_p, summing to one.
        ridge: lambda, positive.
        start_d: Where to start; zero by default.
    """
    theta_d = np.zeros(values_Nd.shape[1]) if start_d is None else start_d.copy()
    identity_dd = np.eye(len(theta_d))
    margin_P = _margins(values_Nd, pairs, theta_d)
    objective = _objective(margin_P, weights_P, theta_d, ridge)
    for _ in range(MAX_STEPS):
        p_wrong_P = expit(-margin_P)
        gradient_d = ridge * theta_d - values_Nd.T @ _text_sums(pairs, weights_P * p_wrong_P, len(values_Nd))
        laplacian_NN = _laplacian(pairs, weights_P * p_wrong_P * (1.0 - p_wrong_P), len(values_Nd))
        step_d = np.linalg.solve(values_Nd.T @ (laplacian_NN @ values_Nd) + ridge * identity_dd, gradient_d)
        decrement = float(gradient_d @ step_d)
        if decrement <= DECREMENT_TOLERANCE:
            break
        scale = 1.0
        while scale > 1e-12:
            trial_d = theta_d - scale * step_d
            trial_margin_P = _margins(values_Nd, pairs, trial_d)
            trial = _objective(trial_margin_P, weights_P, trial_d, ridge)
            if trial <= objective - 1e-4 * scale * decrement:
                break
            scale *= 0.5
        else:
            break  # no representable decrease is left
        theta_d, margin_P, objective = trial_d, trial_margin_P, trial
    return theta_d


def fit_logit_scale(margin_P: FloatArray, weights_P: FloatArray) -> float:
    """The factor c >= 0 that minimises sum_p a_p log(1 + exp(-c margin_p)); at most 100.

    Margins that predict no better than chance get 0.
    """
    low, high = 0.0, 100.0
    if _slope(0.0, margin_P, weights_P) >= 0:
        return 0.0
    if _slope(high, margin_P, weights_P) <= 0:
        return high
    scale = 1.0
    # the slope rises with c: Newton inside a bracket that only shrinks
    for _ in range(100):
        slope = _slope(scale, margin_P, weights_P)
        low, high = (scale, high) if slope < 0 else (low, scale)
        p_P = expit(scale * margin_P)
        curvature = float(weights_P @ (margin_P**2 * p_P * (1.0 - p_P)))
        proposal = scale - slope / curvature if curvature > 0 else low
        if not low < proposal < high:
            proposal = 0.5 * (low + high)
        if abs(proposal - scale) <= 1e-13 * scale:
            break
        scale = proposal
    return scale


def _slope(scale: float, margin_P: FloatArray, weights_P: FloatArray) -> float:
    return -float(weights_P @ (margin_P * expit(-scale * margin_P)))


def _margins(values_Nd: FloatArray, pairs: Pairs, theta_d: FloatArray) -> FloatArray:
    reward_N = values_Nd @ theta_d
    return np.asarray(reward_N[pairs.chosen_P] - reward_N[pairs.rejected_P])


def _objective(margin_P: FloatArray, weights_P: FloatArray, theta_d: FloatArray, ridge: float) -> float:
    return float(weights_P @ np.logaddexp(0.0, -margin_P) + 0.5 * ridge * theta_d @ theta_d)


def _text_sums(pairs: Pairs, values_P: FloatArray, texts: int) -> FloatArray:
    gained_N = np.bincount(pairs.chosen_P, weights=values_P, minlength=texts)
    lost_N = np.bincount(pairs.rejected_P, weights=values_P, minlength=texts)
    return np.asarray(gained_N - lost_N, dtype=np.float64)


def _laplacian(pairs: Pairs, edge_P: FloatArray, texts: int) -> csr_array:
    rows = np.concatenate([pairs.chosen_P, pairs.rejected_P, pairs.chosen_P, pairs.rejected_P])
    columns = np.concatenate([pairs.chosen_P, pairs.rejected_P, pairs.rejected_P, pairs.chosen_P])
    data = np.concatenate([edge_P, edge_P, -edge_P, -edge_P])
    return coo_array((data, (rows, columns)), shape=(texts, texts)).tocsr()
