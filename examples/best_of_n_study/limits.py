"""What bounds the gain: what ten noisy pairs can tell, and what a checkpoint's heads see of a taste."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from best_of_n_study.people import Answers, People, features, questions
from service.mrm import GaussianStart, Support, solve

Array = NDArray[np.float64]

_LEAST_SPREAD = 1e-3
_RIDGE = 1e-3


def eyes_open(people: People, others: People, told_about: Answers, judged: Answers, pairs: int) -> tuple[Array, Array]:
    """Rewards of a server that measures the features themselves and knows how tastes are spread.

    The same solve, pairs and choices as those of questions by chance; only the view of the texts is perfect.

    Args:
        people: Who adapt.
        others: Whose tastes are the prior.
        told_about: Answers that pairs are of.
        judged: Answers that are rewarded.
        pairs: How many pairs each.

    Returns:
        Own rewards float64 [U, P, N] and the population's [P, N].
    """
    covariance_FF = np.cov(others.taste_UF.T) + _LEAST_SPREAD * np.eye(others.taste_UF.shape[1])
    start = GaussianStart(others.taste_UF.mean(axis=0), np.asarray(np.linalg.inv(covariance_FF), np.float64))
    features_PNF = np.array([[features(text) for text in texts] for texts in judged.values()])
    own = []
    for person in range(len(people)):
        asked = questions(told_about, pairs, (people.seed, person))
        choices = [people.choice(person, question, number) for number, question in enumerate(asked)]
        told_PF = np.array([features(chosen) - features(rejected) for chosen, rejected in choices])
        own.append(features_PNF @ solve(Support.of(told_PF), start).weights_K)
    return np.stack(own), np.asarray(features_PNF @ start.mean_K)


def heads_known(told_PNK: Array, utilities_UPN: Array, judged_PNK: Array) -> Array:
    """Rewards of the weights that come nearest to each person's true utilities of the answers that pairs are of.

    What pairs without number and noise would lead to: the loss that is left is the heads'.

    Args:
        told_PNK: Base rewards of the answers that pairs are of.
        utilities_UPN: What people truly think of those.
        judged_PNK: Base rewards of the answers that are rewarded.

    Returns:
        float64 [U, P, N] of the answers that are rewarded.
    """
    heads = told_PNK.shape[2]
    # only differences between answers to one prompt are preferences
    base_MK = (told_PNK - told_PNK.mean(axis=1, keepdims=True)).reshape(-1, heads)
    liked_UM = (utilities_UPN - utilities_UPN.mean(axis=2, keepdims=True)).reshape(len(utilities_UPN), -1)
    gram_KK = base_MK.T @ base_MK
    penalty_KK = _RIDGE * np.trace(gram_KK) / heads * np.eye(heads)
    weights_KU = np.linalg.solve(gram_KK + penalty_KK, base_MK.T @ liked_UM.T)
    return np.asarray(np.einsum("pnk,ku->upn", judged_PNK, weights_KU))
