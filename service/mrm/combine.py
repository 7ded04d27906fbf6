"""Personalised rewards from base rewards and a user's state."""

from __future__ import annotations

import numpy as np
from scipy.special import expit

from service.mrm.state import FloatArray, UserState, unpack_factor


def rewards(base_rewards_BK: FloatArray, state: UserState) -> FloatArray:
    """Rewards [B] = base rewards [B, K] . effective weights [K], in Bradley-Terry log-odds."""
    return base_rewards_BK @ state.weights_K


def reward_std(base_rewards_BK: FloatArray, state: UserState) -> FloatArray | None:
    """Posterior standard deviation of each reward, [B], or None where the recipe has no posterior.

    With L the posterior factor, std_i = |L' phi_i|. Base rewards average zero over the training texts, so this is
    the uncertainty of a reward relative to the average training text's.
    """
    if state.factor is None:
        return None
    return np.asarray(np.linalg.norm(base_rewards_BK @ unpack_factor(state.factor), axis=1), dtype=np.float64)


def preference_probability(rewards_B: FloatArray) -> FloatArray:
    """Calibrated probability that the user prefers text i to text j, [B, B]: sigmoid(r_i - r_j); 1/2 on the diagonal.

    The start's temperature was fitted to the choices of held-out people, so rewards are log-odds already.
    """
    return np.asarray(expit(rewards_B[:, None] - rewards_B[None, :]), dtype=np.float64)


def average_probability(rewards_B: FloatArray) -> FloatArray:
    """Calibrated probability that the user prefers each text to the average training text, [B]: sigmoid(r_i).

    The heads are centred: base rewards average zero over the training texts, so for every user the reward 0 is where
    the average training text stands, and this is `preference_probability` against it. It keeps the order of the
    rewards and lies in 0 to 1; where a reward is beyond about 37, float64 rounds it to 1.

    It is not the probability that a text is good, or relevant, or better than the others beside it: two texts are
    compared by the difference of their raw rewards. Nor can probabilities of different users be averaged back into
    log-odds.

    Args:
        rewards_B: Rewards, of `rewards`, in log-odds.
    """
    return np.asarray(expit(rewards_B), dtype=np.float64)


def difference_std(base_rewards_BK: FloatArray, state: UserState) -> FloatArray | None:
    """Posterior standard deviation of each reward difference, [B, B], or None where the recipe has no posterior.

    With L the posterior factor, std_ij = |L' (phi_i - phi_j)|: what the user's evidence leaves open about the pair.
    Shared uncertainty cancels, so it is not the sum of two `reward_std`.
    """
    if state.factor is None:
        return None
    # what all texts share must not drown what differs
    spread_BK = (base_rewards_BK - base_rewards_BK.mean(axis=0)) @ unpack_factor(state.factor)
    square_B = np.einsum("bk,bk->b", spread_BK, spread_BK)
    square_BB = square_B[:, None] + square_B[None, :] - 2.0 * spread_BK @ spread_BK.T
    np.fill_diagonal(square_BB, 0.0)
    return np.asarray(np.sqrt(np.maximum(square_BB, 0.0)), dtype=np.float64)


def ranking(rewards_B: FloatArray) -> list[int]:
    """Indices from the best reward to the worst; equal rewards keep the order in which they came."""
    return [int(index) for index in np.argsort(-rewards_B, kind="stable")]


def best_against(
    base_rewards_BK: FloatArray, rewards_B: FloatArray, state: UserState
) -> tuple[FloatArray, FloatArray | None]:
    """How surely the best text is preferred to each: the row of `ranking`'s first in the two matrices above, in O(B K).

    Args:
        base_rewards_BK: Base rewards of the texts, at least one.
        rewards_B: Their rewards, of `rewards`.
        state: The user's.

    Returns:
        Probability that the best is preferred to each text, [B]: 1/2 against itself and against equals. And the
        posterior standard deviation of the difference of each two rewards, [B]: 0 against itself; None where the recipe
        has no posterior.

    Raises:
        ValueError: There are no texts.
    """
    if not len(rewards_B):
        raise ValueError("the best of no texts")
    best = int(np.argmax(rewards_B))
    probability_B = np.asarray(expit(rewards_B[best] - rewards_B), dtype=np.float64)
    if state.factor is None:
        return probability_B, None
    spread_BK = (base_rewards_BK[best] - base_rewards_BK) @ unpack_factor(state.factor)
    return probability_B, np.asarray(np.linalg.norm(spread_BK, axis=1), dtype=np.float64)
