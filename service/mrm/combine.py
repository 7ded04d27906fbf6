"""Personalised rewards from base rewards and a user's state."""

from __future__ import annotations

import numpy as np

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


def ranking(rewards_B: FloatArray) -> list[int]:
    """Indices from the best reward to the worst; equal rewards keep the order in which they came."""
    return [int(index) for index in np.argsort(-rewards_B, kind="stable")]
