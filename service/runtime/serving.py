"""The checkpoints that this process can serve, each with what answers for it."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from typing import TYPE_CHECKING

from service.checkpoints import Checkpoint
from service.observability.metrics import Metrics
from service.operations.base_rewards import BaseRewardReader, Flights
from service.operations.carry import Retained, view_of
from service.operations.quotas import TenantLimits
from service.operations.serving import ServedCheckpoint, Serving
from service.operations.single_flight import SingleFlight
from service.operations.solving import Solver
from service.operations.texts import TextKeys
from service.operations.user_states import UserStates
from service.runtime.engine_parts import EngineParts
from service.settings import Settings
from service.store.caches import BaseRewardCache, UserCache
from service.store.carry_over import CarryOver
from service.store.database import Database
from service.store.users import UserRepository

if TYPE_CHECKING:
    from service.runtime.redis import RedisParts


def open_serving(
    settings: Settings,
    secret: bytes,
    checkpoints: Sequence[Checkpoint],
    engines: Sequence[EngineParts],
    *,
    redis: RedisParts | None,
    limits: TenantLimits,
    database: Database,
    repository: UserRepository,
    executor: Executor,
    metrics: Metrics,
    solver: Solver,
) -> Serving:
    """What serves `checkpoints`, each by the engine at its place; the first is active.

    Checkpoints of one engine have a cache each, but compute a text once: what is computed for one is remembered for
    all of them.
    """
    readers: dict[int, list[BaseRewardReader]] = {}
    flights: dict[int, Flights] = {}
    served = []
    carry_over = CarryOver(database, settings.support_limit)
    for checkpoint, parts in zip(checkpoints, engines, strict=True):
        reader = BaseRewardReader(
            engine=parts.engine,
            renderer=parts.renderer,
            keys=TextKeys(secret, parts.renderer.template_id),
            cache=BaseRewardCache(settings.base_reward_cache_entries, settings.base_reward_cache_ttl_s),
            cache_scope=settings.cache_scope,
            metrics=metrics,
            shared=None if redis is None else redis.base_rewards(checkpoint),
            meter=limits,
            timeout_s=settings.request_timeout_s,
            columns=parts.columns,
            flights=flights.setdefault(id(parts.engine), SingleFlight()),
        )
        readers.setdefault(id(parts.engine), []).append(reader)
        view = view_of(checkpoint, settings.min_fidelity)
        states = UserStates(
            repository=repository,
            executor=executor,
            cache=UserCache(settings.user_cache_entries),
            checkpoint=checkpoint,
            view=view,
            solver=solver,
            stale_limit_s=settings.stale_limit_s,
            metrics=metrics,
            shared=None if redis is None else redis.users,
            retained=Retained(
                checkpoint=checkpoint,
                view=view,
                same_backbone=_same_backbone(checkpoint, checkpoints),
                base_rewards=reader,
                repository=repository,
                carry_over=carry_over,
                executor=executor,
                limit=settings.support_limit,
            ),
        )
        served.append(ServedCheckpoint(checkpoint, reader, states, parts.engine, parts.hidden_columns))
    for together in readers.values():
        for reader in together:
            reader.share_answers(together)
    return Serving(served, None if redis is None else redis.users)


def _same_backbone(checkpoint: Checkpoint, loaded: Sequence[Checkpoint]) -> frozenset[str]:
    """Heads that are known to read the same hidden states, loaded or linked to."""
    alike = [other for other in loaded if other.backbone.fingerprint == checkpoint.backbone.fingerprint]
    linked = {each.heads_id for other in alike for each in other.maps}
    return frozenset(linked | {other.heads_id for other in alike})
