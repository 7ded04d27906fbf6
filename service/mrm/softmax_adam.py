"""The published adaptation: Adam on weight logits, effective weights by softmax."""

from __future__ import annotations

from typing import Final

import numpy as np
from scipy.special import expit, softmax

from service.mrm.evidence import Choices, choices_of, with_ordered_pairs
from service.mrm.state import FloatArray, SoftmaxStart, Support, UserState

BETA1: Final = 0.9
BETA2: Final = 0.999
EPSILON: Final = 1e-8


def solve_softmax_adam(support: Support, start: SoftmaxStart) -> UserState:
    """Adapt weight logits l by Adam on the support's mean Bradley-Terry loss (arXiv 2601.18731, inner loop).

        L(l) = mean_p softplus(-d_p . softmax(l))

    Adam starts fresh (zero moments) with the usual constants 0.9, 0.999, 1e-8. The paper knows choices between two
    only: strengths are ignored, ratings stand for the choices that they imply. Weights, tilts and choices among several
    enter as `Support` says, the mean being weighted; as in the paper, repeated pairs count each time.

    Args:
        support: The user's evidence; without any the start is returned.
        start: Logits, learning rate, number of steps.

    Returns:
        Effective weights softmax(l); no posterior.
    """
    logits_K = start.logits_K.copy()
    choices = choices_of(with_ordered_pairs(support), distinct=False)
    total = choices.weights_P.sum() + (0.0 if choices.stages is None else choices.stages.weights_S.sum())
    if total == 0:
        return UserState(_effective(logits_K))
    first_K = np.zeros_like(logits_K)
    second_K = np.zeros_like(logits_K)
    for step in range(1, start.inner_steps + 1):
        gradient_K = _gradient(logits_K, choices, total)
        first_K = BETA1 * first_K + (1 - BETA1) * gradient_K
        second_K = BETA2 * second_K + (1 - BETA2) * gradient_K**2
        corrected_K = first_K / (1 - BETA1**step)
        scale_K = np.sqrt(second_K / (1 - BETA2**step)) + EPSILON
        logits_K = logits_K - start.inner_lr * corrected_K / scale_K
    return UserState(_effective(logits_K))


def _effective(logits_K: FloatArray) -> FloatArray:
    return np.asarray(softmax(logits_K), dtype=np.float64)


def _gradient(logits_K: FloatArray, choices: Choices, total: float) -> FloatArray:
    weights_K = _effective(logits_K)
    p_wrong_P = expit(-(choices.diffs_PK @ weights_K))
    by_weight_K = -((choices.weights_P * p_wrong_P) @ choices.diffs_PK)
    if choices.pull_K is not None:
        by_weight_K -= choices.pull_K
    if choices.stages is not None:
        by_weight_K += choices.stages.gradient(weights_K)
    by_weight_K = by_weight_K / total
    # softmax's Jacobian: diag(w) - w w'
    return np.asarray(weights_K * (by_weight_K - weights_K @ by_weight_K), dtype=np.float64)
