"""Rewards of single texts, each for a user of its own: what the servers of reward models answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np
import numpy.typing as npt

from service.errors import EngineError
from service.mrm.combine import reward_std, rewards
from service.observability.metrics import Metrics
from service.operations.base_reward_requests import BaseRewards
from service.operations.score import resolve_users
from service.operations.serving import ServedCheckpoint
from service.operations.texts import AnyText
from service.operations.user_states import ResolvedUser, Standing

Vector = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class RewardedTexts:
    """What came of B texts.

    Attributes:
        rewards_B: Rewards, raw log-odds [B].
        std_B: Their posterior standard deviations [B], or None where the recipe has no posterior.
        users: Whose rewards they are, by text.
        base: The base rewards that they are made of.
    """

    rewards_B: Vector
    std_B: Vector | None
    users: Sequence[ResolvedUser]
    base: BaseRewards


class TextRewards:
    """The use case behind `POST /classify` and the reward server of OpenRLHF.

    A shadow checkpoint is not asked: it compares the order of a prompt's completions, and here are none to order.
    """

    def __init__(self, *, metrics: Metrics) -> None:
        self._metrics = metrics
        self._users_scored = {standing: metrics.users_scored.labels(standing) for standing in get_args(Standing)}

    async def base_rewards(
        self, served: ServedCheckpoint, tenant_id: str, texts: Sequence[AnyText], *, truncate: bool
    ) -> BaseRewards:
        """Base rewards A h + b of texts, at least one: nobody's taste.

        Raises:
            InvalidInput, QuotaExceeded, Overloaded, Unavailable, EngineError: As `BaseRewardReader.read`.
        """
        base = await served.base_rewards.read(tenant_id, texts, truncate=truncate)
        self._metrics.completions.inc(len(texts))
        return base

    async def __call__(
        self,
        served: ServedCheckpoint,
        tenant_id: str,
        texts: Sequence[AnyText],
        user_ids: Sequence[str | None],
        *,
        truncate: bool,
    ) -> RewardedTexts:
        """The reward of each text, at least one, for the user beside it; None is the population.

        Raises:
            InvalidInput, QuotaExceeded, Overloaded, Unavailable, EngineError: As `BaseRewardReader.read`; Unavailable
                also where a user is not known and the database does not answer.
        """
        # First what can refuse at once: an overloaded server must not ask the database for users in vain.
        looked_up = await served.base_rewards.look_up(tenant_id, texts, truncate=truncate)
        with self._metrics.stage("user") as user_stage:
            found = await resolve_users(served, tenant_id, [(user_id, 0) for user_id in user_ids])
            user_stage.attributes = {"users": len(found)}
        resolved: dict[str | None, ResolvedUser] = {}
        for (user_id, _), answer in found.items():
            if isinstance(answer, BaseException):
                raise answer
            resolved[user_id] = answer
        base = await served.base_rewards.complete(looked_up)
        rewards_B = np.empty(len(texts))
        std_B: Vector | None = np.empty(len(texts))
        texts_of: dict[str | None, list[int]] = {}
        for i, user_id in enumerate(user_ids):
            texts_of.setdefault(user_id, []).append(i)
        for user_id, theirs in texts_of.items():
            user = resolved[user_id]
            base_rewards_BK = base.rewards_BK[theirs]
            rewards_B[theirs] = rewards(base_rewards_BK, user.state)
            deviations_B = reward_std(base_rewards_BK, user.state)
            if std_B is None or deviations_B is None:
                std_B = None
            else:
                std_B[theirs] = deviations_B
        if not (np.isfinite(rewards_B).all() and (std_B is None or np.isfinite(std_B).all())):
            raise EngineError("a reward is not finite; it is not served")
        users = [resolved[user_id] for user_id in user_ids]
        for user in users:
            self._users_scored[user.standing].inc()
        self._metrics.completions.inc(len(texts))
        return RewardedTexts(rewards_B, std_B, users, base)
