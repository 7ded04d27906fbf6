"""The composition root: builds every part from settings, in the order in which they are needed."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from service import __version__
from service.backbone.golden import golden_texts_id, golden_token_ids
from service.backbone.load import load_backbone
from service.backbone.protocol import Backbone
from service.checkpoints import Checkpoint, load_checkpoint
from service.errors import BackboneError, CheckpointError, ConfigurationError, MetarewardError, Unavailable
from service.observability.metrics import Metrics
from service.operations.adapt import Adapt
from service.operations.base_rewards import BaseRewardReader
from service.operations.readiness import ReadinessCheck
from service.operations.score import Score
from service.operations.texts import TextKeys
from service.operations.user_states import UserStates
from service.operations.users import Users
from service.settings import Settings
from service.store import migrate
from service.store.caches import BaseRewardCache, UserCache
from service.store.database import Database, open_database
from service.store.users import UserRepository
from service.worker.messages import BaseRewardHeads
from service.worker.selfcheck import SelfCheck, self_check
from service.worker.worker import Worker

logger = logging.getLogger(__name__)

HOUSEKEEPING_INTERVAL_S = 600.0
DRAIN_TIMEOUT_S = 30.0
MIGRATION_RETRY_S = 2.0


@dataclass(frozen=True)
class Runtime:
    """Everything that a front door calls, and what must be closed in the end."""

    adapt: Adapt
    score: Score
    users: Users
    readiness: ReadinessCheck
    info: dict[str, Any]
    checkpoint_id: str
    metrics: Metrics
    repository: UserRepository
    database: Database
    executor: ThreadPoolExecutor
    worker: Worker

    async def keep_house(self) -> None:
        """Delete expired answers now and then, for ever; to be cancelled."""
        while True:
            await asyncio.sleep(HOUSEKEEPING_INTERVAL_S)
            try:
                await asyncio.get_running_loop().run_in_executor(self.executor, self.repository.purge_expired)
            except MetarewardError as error:  # a missing table too: `metareward db upgrade` may come while this runs
                logger.warning("expired answers stay for now: %s", error)

    def close(self) -> None:
        """Finish accepted work, then release the device, the threads and the database."""
        self.worker.stop(drain=True, timeout_s=DRAIN_TIMEOUT_S)
        self.executor.shutdown()
        self.readiness.close()
        self.database.close()


def build_runtime(settings: Settings, metrics: Metrics) -> Runtime:
    """Build a server that is ready for traffic: database, checkpoint, backbone, worker, self-check, use cases.

    Raises:
        ConfigurationError: Settings, checkpoint and backbone do not fit, or the engine fails its self-check.
    """
    secret = _secret(settings)
    database = _open_database(settings)
    try:
        checkpoint = load_checkpoint(settings.checkpoint)
        backbone = load_backbone(
            settings.backbone or checkpoint.backbone.id,
            device=settings.device,
            dtype=settings.dtype,
            max_tokens=settings.max_tokens,
        )
        worker, _ = start_worker(
            checkpoint,
            backbone,
            max_batch_tokens=settings.max_batch_tokens,
            max_queue_tokens=settings.max_queue_tokens,
        )
    except BaseException:
        database.close()
        raise

    if personalises(checkpoint) is False:
        logger.warning(
            "checkpoint %r does not personalise: in training, a prior over users did not beat one taste for all, so "
            "adapting hardly changes any ranking; train on more users or more pairs each",
            checkpoint.name,
        )

    executor = ThreadPoolExecutor(settings.database_pool_size, thread_name_prefix="store")
    repository = UserRepository(database, settings.support_limit, settings.idempotency_ttl_s)
    base_rewards = BaseRewardReader(
        engine=worker,
        renderer=backbone.renderer,
        keys=TextKeys(secret, backbone.renderer.template_id),
        cache=BaseRewardCache(settings.base_reward_cache_entries, settings.base_reward_cache_ttl_s),
        cache_scope=settings.cache_scope,
        metrics=metrics,
    )
    states = UserStates(
        repository=repository,
        executor=executor,
        cache=UserCache(settings.user_cache_entries),
        checkpoint=checkpoint,
        stale_limit_s=settings.stale_limit_s,
        metrics=metrics,
    )
    metrics.watch("metareward_queue_tokens", "Tokens accepted and not yet computed.", lambda: worker.queued_tokens)
    metrics.watch("metareward_worker_healthy", "1 while the worker answers.", lambda: float(worker.healthy))
    return Runtime(
        adapt=Adapt(
            base_rewards=base_rewards,
            users=states,
            repository=repository,
            executor=executor,
            checkpoint=checkpoint,
            metrics=metrics,
        ),
        score=Score(base_rewards=base_rewards, users=states, metrics=metrics),
        users=Users(repository=repository, executor=executor, states=states),
        readiness=ReadinessCheck(engine=worker, database=database),
        info=_info(settings, checkpoint, backbone),
        checkpoint_id=checkpoint.checkpoint_id,
        metrics=metrics,
        repository=repository,
        database=database,
        executor=executor,
        worker=worker,
    )


def start_worker(
    checkpoint: Checkpoint, backbone: Backbone, *, max_batch_tokens: int, max_queue_tokens: int
) -> tuple[Worker, SelfCheck]:
    """A running worker whose engine has passed its self-check.

    Raises:
        CheckpointError: The checkpoint was trained on another backbone.
        BackboneError: The engine does not give the numbers that the checkpoint recorded, or not the same ones in a
            batch as alone.
    """
    _require_fit(checkpoint, backbone)
    heads = BaseRewardHeads.of(checkpoint.A_KD, checkpoint.b_K)
    worker = Worker(backbone, heads, max_batch_tokens=max_batch_tokens, max_queue_tokens=max_queue_tokens)
    worker.start()
    try:
        golden = checkpoint.golden
        if golden is not None and golden.texts_id != golden_texts_id():
            raise CheckpointError(
                f"checkpoint {checkpoint.name!r} recorded other golden texts than this version has; train it again"
            )
        result = self_check(
            worker.base_rewards,
            golden_token_ids(backbone.renderer),
            dtype=backbone.spec.dtype,
            recorded_GK=None if golden is None else np.array(golden.base_rewards),
            recorded_dtype="float32" if golden is None else golden.dtype,
        )
        if not result.passed:
            raise BackboneError(f"the engine failed its self-check, so it would serve wrong rewards: {result}")
        logger.info("self-check passed: %s", result)
    except BaseException:
        worker.stop(drain=False, timeout_s=DRAIN_TIMEOUT_S)
        raise
    return worker, result


def _secret(settings: Settings) -> bytes:
    """SECRET_KEY, or the key kept in DATA_DIR, made on first use."""
    configured = settings.secret_key.get_secret_value()
    if configured:
        if len(configured) < 32:
            raise ConfigurationError(
                "SECRET_KEY must have at least 32 characters; make one with `openssl rand -hex 32`"
            )
        return configured.encode()
    path = settings.data_dir / "secret.key"
    try:
        settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            # Made whole under another name: a second server that starts meanwhile must not read half a key.
            temporary = path.with_name(f".secret.{os.getpid()}")
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "w") as file:
                file.write(secrets.token_hex(32))
            os.link(temporary, path)
        except FileExistsError:
            pass
        finally:
            temporary.unlink(missing_ok=True)
        return path.read_bytes()
    except OSError as error:
        raise ConfigurationError(
            f"DATA_DIR: {settings.data_dir} cannot hold the secret ({error.strerror}); make it writable, or set "
            "SECRET_KEY and DATABASE_URL"
        ) from error


def _open_database(settings: Settings) -> Database:
    database = open_database(
        settings.resolved_database_url,
        pool_size=settings.database_pool_size,
        connect_timeout_s=settings.database_timeout_s,
        statement_timeout_s=settings.database_timeout_s,
    )
    migrates = settings.embedded_database if settings.auto_migrate is None else settings.auto_migrate
    try:
        database.probe()
        if migrates:
            migrate.upgrade(database)
        else:
            migrate.require_current(database)
    except Unavailable as error:
        # A shared database that is down must not keep replicas from starting: they serve as soon as it is back.
        logger.warning("starting without the database: %s", error)
        if migrates:
            threading.Thread(target=_migrate_later, args=(database,), name="migrate", daemon=True).start()
    except BaseException:
        database.close()
        raise
    return database


def _migrate_later(database: Database) -> None:
    """Bring the schema up once the database is back."""
    while not database.closed.wait(MIGRATION_RETRY_S):
        try:
            migrate.upgrade(database)
        except Unavailable:
            continue
        except Exception:  # requests say what is missing; this thread is the only place to say why
            logger.exception("the database is back, but its schema cannot be brought up")
        else:
            logger.info("the database is back, and its schema is current")
        return


def _require_fit(checkpoint: Checkpoint, backbone: Backbone) -> None:
    spec, wanted = backbone.spec, checkpoint.backbone
    if spec.hidden_size != wanted.hidden_size:
        raise CheckpointError(
            f"checkpoint {checkpoint.name!r} was trained on {wanted.id} (D = {wanted.hidden_size}), but the backbone "
            f"{spec.id} has D = {spec.hidden_size}; set BACKBONE to the one it was trained on"
        )
    if (spec.fingerprint, spec.template_id) != (wanted.fingerprint, wanted.template_id):
        raise CheckpointError(
            f"checkpoint {checkpoint.name!r} was trained on other weights or another chat template of {wanted.id} than "
            f"{spec.id} has here; set BACKBONE to the one it was trained on, or train again"
        )


def personalises(checkpoint: Checkpoint) -> bool | None:
    """Whether users' weights move at all under this checkpoint, as its training found; None where it did not say."""
    found = checkpoint.training.get("personalises")
    return found if isinstance(found, bool) else None


def _info(settings: Settings, checkpoint: Checkpoint, backbone: Backbone) -> dict[str, Any]:
    return {
        "version": __version__,
        "checkpoint": {
            "name": checkpoint.name,
            "checkpoint_id": checkpoint.checkpoint_id,
            "heads_id": checkpoint.heads_id,
            "recipe": checkpoint.recipe,
            "heads": checkpoint.heads,
            "personalises": personalises(checkpoint),
        },
        "backbone": backbone.spec.as_json(),
        "limits": {
            "max_pairs": settings.max_pairs,
            "max_completions": settings.max_completions,
            "max_text_bytes": settings.max_text_bytes,
            "max_body_bytes": settings.max_body_bytes,
            "max_tokens": backbone.spec.max_tokens,
            "support_limit": settings.support_limit,
        },
    }
