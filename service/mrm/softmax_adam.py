"""The published adaptation: Adam on weight logits, effective weights by softmax."""

from __future__ import annotations

from typing import Final

import numpy as np
from scipy.special import expit, softmax

from service.mrm.state import FloatArray, SoftmaxStart, Support, UserState

BETA1: Final = 0.9
BETA2: Final = 0.999
EPSILON: Final = 1e-8


def solve_softmax_adam(support: Support, start: SoftmaxStart) -> UserState:
    """Adapt weight logits l by Adam on the support's mean Bradley-Terry loss (arXiv 2601.18731, inner loop).

        L(l) = sum_p s_p softplus(-d_p . softmax(l)) / sum_p s_p

    Adam starts fresh (zero moments) with the usual constants 0.9, 0.999, 1e-8.

    Args:
        support: [P, K] differences and [P] strengths; without pairs the start is returned.
        start: Logits, learning rate, number of steps.

    Returns:
        Effective weights softmax(l); no posterior.
    """
    logits_K = start.logits_K.copy()
    if len(support) == 0:
        return UserState(_effective(logits_K))
    first_K = np.zeros_like(logits_K)
    second_K = np.zeros_like(logits_K)
    for step in range(1, start.inner_steps + 1):
        gradient_K = _gradient(logits_K, support)
        first_K = BETA1 * first_K + (1 - BETA1) * gradient_K
        second_K = BETA2 * second_K + (1 - BETA2) * gradient_K**2
        corrected_K = first_K / (1 - BETA1**step)
        scale_K = np.sqrt(second_K / (1 - BETA2**step)) + EPSILON
        logits_K = logits_K - start.inner_lr * corrected_K / scale_K
    return UserState(_effective(logits_K))


def _effective(logits_K: FloatArray) -> FloatArray:
    return np.asarray(softmax(logits_K), dtype=np.float64)


def _gradient(logits_K: FloatArray, support: Support) -> FloatArray:
    weights_K = _effective(logits_K)
    p_wrong_P = expit(-(support.diffs_PK @ weights_K))
    share_P = support.strengths_P / support.strengths_P.sum()
    by_weight_K = -(share_P * p_wrong_P) @ support.diffs_PK
    # softmax's Jacobian: diag(w) - w w'
    return np.asarray(weights_K * (by_weight_K - weights_K @ by_weight_K), dtype=np.float64)
