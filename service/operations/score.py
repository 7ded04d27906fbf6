"""Personalised rewards for completions."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, get_args

import numpy as np
import numpy.typing as npt

from service.backbone.protocol import Message
from service.errors import Conflict, EngineError, FieldIssue
from service.mrm.combine import (
    best_against,
    difference_std,
    preference_probability,
    ranking,
    reward_std,
    rewards,
)
from service.observability.metrics import Metrics
from service.operations.serving import ServedCheckpoint, Serving
from service.operations.shadow import Shadow
from service.operations.texts import Text
from service.operations.user_states import ResolvedUser, Standing

# Users that one request looks up side by side. Thousands would hold up the event loop for a second, and everybody
# else's reads would wait behind theirs.
_LOOKUPS_AT_ONCE: Final = 64


@dataclass(frozen=True, slots=True)
class ScoreItem:
    """Completions of one prompt, to be ranked for one user.

    Attributes:
        user_id: Whose taste; an unknown user gets the meta-learned start, and so does nobody in particular, None.
        messages: The prompt.
        completions: At least one.
        min_version: The least version of the user to score with.
        field: Path of this item in the request, with a trailing dot, or empty.
        list_name: What the request calls the completions.
    """

    user_id: str | None
    messages: Sequence[Message]
    completions: Sequence[str]
    min_version: int = 0
    field: str = ""
    list_name: str = "completions"


@dataclass(frozen=True, slots=True)
class Scored:
    """The answer to one item: rewards, their deviations, and indices from best to worst.

    `best_probability` [n] is the probability that the user prefers the best completion to each, `best_std` [n] the
    posterior deviation of the two rewards' difference. `preference_probability` and `difference_std` [n, n] are None
    where not asked for. Deviations are None where the recipe has no posterior. `carried` is that of `ResolvedUser`.
    """

    user_id: str | None
    standing: Standing
    version: int
    rewards: list[float]
    reward_std: list[float] | None
    order: list[int]
    best_probability: list[float]
    best_std: list[float] | None
    base_rewards: list[list[float]] | None
    preference_probability: list[list[float]] | None
    difference_std: list[list[float]] | None
    truncated: list[int]
    carried: str | None = None


@dataclass(frozen=True, slots=True)
class ScoreAnswer:
    """Answers in the order of the items, the checkpoint that made them, and milliseconds by stage.

    `computed_tokens` are those of the texts that no cache knew; 0 where the caller may not learn that.
    """

    results: list[Scored]
    checkpoint_id: str
    timings_ms: Mapping[str, float]
    computed_tokens: int


class Score:
    """The use case behind `POST /score`."""

    def __init__(self, *, serving: Serving, metrics: Metrics, shadow: Shadow | None = None) -> None:
        self._serving = serving
        self._shadow = shadow
        self._metrics = metrics
        # Looking a label up costs more than counting.
        self._users_scored = {standing: metrics.users_scored.labels(standing) for standing in get_args(Standing)}

    async def __call__(
        self,
        tenant_id: str,
        items: Sequence[ScoreItem],
        *,
        truncate: bool,
        return_base_rewards: bool,
        return_pairwise: bool = False,
        served: ServedCheckpoint | None = None,
    ) -> ScoreAnswer:
        """Score every item; all are answered or the request fails whole.

        With `served` that checkpoint answers, else the active one.

        Raises:
            InvalidInput: Texts that cannot be scored, each by its field.
            Conflict: Users that have not reached `min_version`, every such item by its field.
            Overloaded, Unavailable, EngineError: See `service/errors.py`.
        """
        started = time.perf_counter()
        served = served or self._serving.active
        texts = [
            Text(item.messages, completion, f"{item.field}{item.list_name}[{i}]")
            for item in items
            for i, completion in enumerate(item.completions)
        ]
        # First what can refuse at once: an overloaded server must not ask the database for users in vain.
        looked_up = await served.base_rewards.look_up(tenant_id, texts, truncate=truncate)
        with self._metrics.stage("user") as user_stage:
            resolved = await _resolve(served, tenant_id, items)
            user_stage.attributes = {"users": len(items)}
        base = await served.base_rewards.complete(looked_up)
        results = []
        shortened = set(base.truncated)
        offset = 0
        for item, user in zip(items, resolved, strict=True):
            end = offset + len(item.completions)
            truncated = [index - offset for index in range(offset, end) if index in shortened]
            base_rewards_BK = base.rewards_BK[offset:end]
            results.append(score_item(item, user, base_rewards_BK, truncated, return_base_rewards, return_pairwise))
            offset = end
            self._users_scored[user.standing].inc()
        self._metrics.completions.inc(len(texts))
        if self._shadow is not None and served is self._serving.active:
            self._shadow.offer(served, tenant_id, items, [scored.rewards for scored in results], truncate=truncate)
        timings_ms = served.base_rewards.timings_ms(base, user_stage.seconds, started)
        computed_tokens = base.tokens if served.base_rewards.tells_times else 0
        return ScoreAnswer(results, served.checkpoint_id, timings_ms, computed_tokens)


async def _resolve(served: ServedCheckpoint, tenant_id: str, items: Sequence[ScoreItem]) -> list[ResolvedUser]:
    """The user of each item; different users are looked up side by side."""
    found = await resolve_users(served, tenant_id, [(item.user_id, item.min_version) for item in items])
    resolved: list[ResolvedUser] = []
    behind: list[FieldIssue] = []
    for item in items:
        answer = found[item.user_id, item.min_version]
        if isinstance(answer, Conflict):
            behind.append(FieldIssue(f"{item.field}min_version", f"{answer}; adapt first or lower min_version"))
        elif isinstance(answer, BaseException):
            raise answer
        else:
            resolved.append(answer)
    if behind:
        one = f"{behind[0].field}: {behind[0].message}"
        many = f"{len(behind)} items ask for later versions of their users than there are"
        raise Conflict(one if len(behind) == 1 else many, behind)
    return resolved


async def resolve_users(
    served: ServedCheckpoint, tenant_id: str, asked: Sequence[tuple[str | None, int]]
) -> dict[tuple[str | None, int], ResolvedUser | BaseException]:
    """What becomes of looking up users, each at a version at least; different ones are looked up side by side."""
    wanted = list(dict.fromkeys(asked))
    answers: list[ResolvedUser | BaseException] = []
    for begin in range(0, len(wanted), _LOOKUPS_AT_ONCE):
        lookups = [served.users.resolve(tenant_id, *key) for key in wanted[begin : begin + _LOOKUPS_AT_ONCE]]
        # Tasks cost more than a user who is in memory, and one user is the usual case.
        answers += (
            await asyncio.gather(*lookups, return_exceptions=True) if len(lookups) > 1 else [await _outcome(lookups[0])]
        )
    return dict(zip(wanted, answers, strict=True))


async def _outcome(lookup: Awaitable[ResolvedUser]) -> ResolvedUser | Conflict:
    try:
        return await lookup
    except Conflict as error:
        return error


def score_item(
    item: ScoreItem,
    user: ResolvedUser,
    base_rewards_BK: npt.NDArray[np.float64],
    truncated: list[int],
    return_base_rewards: bool,
    return_pairwise: bool,
) -> Scored:
    """One item for one user, from the base rewards [B, K] of its completions and which of them were shortened.

    Raises:
        EngineError: A reward is not finite.
    """
    rewards_B = rewards(base_rewards_BK, user.state)
    if not np.isfinite(rewards_B).all():
        raise EngineError("a reward is not finite; it is not served")
    std_B = reward_std(base_rewards_BK, user.state)
    best_B, best_std_B = best_against(base_rewards_BK, rewards_B, user.state)
    std_BB = difference_std(base_rewards_BK, user.state) if return_pairwise else None
    return Scored(
        user_id=item.user_id,
        standing=user.standing,
        version=user.version,
        rewards=rewards_B.tolist(),
        reward_std=None if std_B is None else std_B.tolist(),
        order=ranking(rewards_B),
        best_probability=best_B.tolist(),
        best_std=None if best_std_B is None else best_std_B.tolist(),
        base_rewards=base_rewards_BK.tolist() if return_base_rewards else None,
        preference_probability=preference_probability(rewards_B).tolist() if return_pairwise else None,
        difference_std=None if std_BB is None else std_BB.tolist(),
        truncated=truncated,
        carried=user.carried,
    )
