"""The composition root: builds every part from settings, in the order in which they are needed."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from service import __version__
from service.backbone.golden import GOLDEN_TEXTS
from service.errors import MetarewardError
from service.observability.metrics import Metrics
from service.operations.access import Access
from service.operations.adapt import Adapt
from service.operations.changes import UserChanges
from service.operations.checkpoints import Checkpoints
from service.operations.feedback import Feedback
from service.operations.feedback_events import SOURCES, FeedbackNoise
from service.operations.lifecycle import Lifecycle
from service.operations.quotas import TenantLimits
from service.operations.readiness import ReadinessCheck
from service.operations.score import Score
from service.operations.self_check import SelfChecks
from service.operations.serving import Serving
from service.operations.shadow import Shadow
from service.operations.solving import Solver
from service.operations.suggest import Suggest
from service.operations.telling import Telling
from service.operations.text_rewards import TextRewards
from service.operations.texts import GroupKeys, Text
from service.operations.turns import Turns
from service.operations.users import Users
from service.runtime.access import open_access, require_a_key
from service.runtime.checkpoints import load_checkpoints
from service.runtime.database import open_users_database
from service.runtime.engine import open_engines
from service.runtime.engine_parts import EngineParts
from service.runtime.info import info_of, personalises
from service.runtime.secret import read_secret
from service.runtime.serving import open_serving
from service.settings import Settings
from service.store.database import Database
from service.store.serving import ServingRepository
from service.store.users import UserRepository
from service.worker.selfcheck import Verdict

if TYPE_CHECKING:
    from service.runtime.redis import RedisParts

logger = logging.getLogger(__name__)

HOUSEKEEPING_INTERVAL_S = 600.0
WATCH_INTERVAL_S = 5.0
WARM_UP_TIMEOUT_S = 10.0
WARM_UP = ""  # a tenant and a user that nobody can be


@dataclass(frozen=True)
class Runtime:
    """Everything that a front door calls, and what must be closed in the end."""

    access: Access
    adapt: Adapt
    changes: UserChanges
    feedback: Feedback
    score: Score
    suggest: Suggest
    text_rewards: TextRewards
    users: Users
    serving: Serving
    checkpoints: Checkpoints
    shadow: Shadow
    readiness: ReadinessCheck
    self_checks: SelfChecks
    lifecycle: Lifecycle
    info: Callable[[], dict[str, Any]]
    metrics: Metrics
    repository: UserRepository
    database: Database
    executor: ThreadPoolExecutor
    engines: Sequence[EngineParts]
    redis: RedisParts | None

    async def warm_up(self) -> None:
        """Take the way of a request once, so that the first caller does not pay for connections and lazy set-up."""
        messages, completion = GOLDEN_TEXTS[0]
        began = time.perf_counter()
        served = self.serving.active
        for what, step in (
            ("a user", served.users.resolve(WARM_UP, WARM_UP)),
            ("a text", served.base_rewards.read(WARM_UP, [Text(messages, completion, "warm-up")], truncate=True)),
        ):
            try:
                await asyncio.wait_for(step, WARM_UP_TIMEOUT_S)
            except (MetarewardError, TimeoutError) as error:  # a dependency is down; requests will say so
                logger.warning("warm-up: %s could not be read: %s", what, error)
        logger.info("warmed up in %.0f ms", (time.perf_counter() - began) * 1e3)

    async def watch_dependencies(self) -> None:
        """Ask now and then what /ready asks, so that metrics and log tell of it though nobody asks; to be cancelled."""
        while True:
            await self.readiness()
            await asyncio.sleep(WATCH_INTERVAL_S)

    async def keep_house(self) -> None:
        """Delete expired answers now and then, for ever; to be cancelled."""
        while True:
            await asyncio.sleep(HOUSEKEEPING_INTERVAL_S)
            try:
                await asyncio.get_running_loop().run_in_executor(self.executor, self.repository.purge_expired)
            except MetarewardError as error:  # a missing table too: `metareward db upgrade` may come while this runs
                logger.warning("expired answers stay for now: %s", error)

    async def leave(self) -> None:
        """Let go of what lives on this event loop; before `close`."""
        await self.shadow.close()
        await self.self_checks.close()
        if self.redis is not None:
            await self.redis.close()

    def close(self) -> None:
        """Finish accepted work, then release the device, the threads and the database."""
        for parts in self.engines:
            parts.close()
        self.executor.shutdown()
        self.readiness.close()
        self.checkpoints.close()
        self.access.close()
        self.database.close()


def build_runtime(settings: Settings, metrics: Metrics) -> Runtime:
    """Build a server that is ready for traffic: database, checkpoint, backbone, worker, self-check, use cases.

    Raises:
        ConfigurationError: Settings, checkpoint and backbone do not fit, or the engine fails its self-check.
    """
    secret = read_secret(settings)
    database = open_users_database(settings)
    try:
        require_a_key(settings, database)
        checkpoints = load_checkpoints(settings)
        redis = _open_redis(settings, secret, metrics)
        with_hidden = settings.retention == "hidden_states"
        engines = open_engines(settings, checkpoints, metrics, with_hidden=with_hidden)
    except BaseException:
        database.close()
        raise

    for checkpoint in checkpoints:
        if personalises(checkpoint) is False:
            logger.warning(
                "checkpoint %r does not personalise: in training, a prior over users did not beat one taste for all, "
                "so adapting hardly changes any ranking; train on more users or more pairs each",
                checkpoint.name,
            )

    executor = ThreadPoolExecutor(settings.database_pool_size, thread_name_prefix="store")
    repository = UserRepository(
        database,
        settings.support_limit,
        settings.idempotency_ttl_s,
        history_versions=settings.history_versions,
    )
    solver = Solver(settings.half_life)
    limits = TenantLimits(metrics=metrics, shared=None if redis is None else redis.counters)
    serving = open_serving(
        settings,
        secret,
        checkpoints,
        engines,
        redis=redis,
        limits=limits,
        database=database,
        repository=repository,
        executor=executor,
        metrics=metrics,
        solver=solver,
    )
    turns = Turns()
    changes = UserChanges(
        serving=serving, repository=repository, executor=executor, metrics=metrics, turns=turns, solver=solver
    )
    telling = Telling(serving=serving, changes=changes, retention=settings.retention)
    lifecycle = Lifecycle(settings.max_in_flight, settings.max_in_flight_bytes)

    async def check() -> list[Verdict]:
        return [verdict for parts in engines for verdict in await parts.check()]

    self_checks = SelfChecks(check, metrics.worker, interval_s=settings.self_check_interval_s)
    metrics.in_flight.set_function(lambda: lifecycle.requests)
    metrics.draining.set_function(lambda: lifecycle.draining)
    for parts in engines:
        parts.renderer.doubled_bos.noted = metrics.worker.doubled_bos.inc
    distinct = list({id(parts.engine): parts.engine for parts in engines}.values())
    metrics.worker.queue_tokens.set_function(lambda: sum(engine.queued_tokens for engine in distinct))
    metrics.worker.healthy.set_function(lambda: serving.active.engine.healthy)
    metrics.database_connections.set_function(lambda: database.connections_in_use)
    by_id = {checkpoint.checkpoint_id: parts for checkpoint, parts in zip(checkpoints, engines, strict=True)}
    shadow = Shadow(serving=serving, metrics=metrics)
    serving_checkpoints = Checkpoints(
        serving=serving,
        repository=ServingRepository(database),
        shadow=shadow,
        metrics=metrics,
        version=__version__,
    )
    serving_checkpoints.begin()
    return Runtime(
        access=open_access(settings, database, limits, metrics),
        adapt=Adapt(telling=telling, groups=GroupKeys(secret)),
        changes=changes,
        feedback=Feedback(telling=telling, noise=feedback_noise(settings), metrics=metrics),
        score=Score(serving=serving, metrics=metrics, shadow=shadow),
        suggest=Suggest(serving=serving, repository=repository, executor=executor, metrics=metrics),
        text_rewards=TextRewards(metrics=metrics),
        users=Users(repository=repository, executor=executor, serving=serving, turns=turns, solver=solver),
        serving=serving,
        checkpoints=serving_checkpoints,
        shadow=shadow,
        readiness=ReadinessCheck(
            engine=lambda: serving.active.engine,
            database=database,
            lifecycle=lifecycle,
            redis=None if redis is None else redis.client,
            metrics=metrics,
            self_checks=self_checks,
            shortcomings=serving.shortcomings,
        ),
        self_checks=self_checks,
        lifecycle=lifecycle,
        info=lambda: info_of(settings, serving, by_id),
        metrics=metrics,
        repository=repository,
        database=database,
        executor=executor,
        engines=engines,
        redis=redis,
    )


def _open_redis(settings: Settings, secret: bytes, metrics: Metrics) -> RedisParts | None:
    if not settings.redis_url.get_secret_value():
        return None
    from service.runtime.redis import open_redis

    return open_redis(settings, secret, metrics)


def feedback_noise(settings: Settings) -> FeedbackNoise:
    """How far each kind of event is to be trusted."""
    by_source = {source: float(getattr(settings, f"feedback_noise_{source}")) for source in SOURCES}
    return FeedbackNoise(by_source, settings.feedback_noise_alone)
