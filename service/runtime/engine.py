"""The engine behind the operations: a worker in this process, or remote ones."""

from __future__ import annotations

import asyncio
import functools
import logging
import math
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from service.backbone.executors.choose import ExecutorOptions
from service.backbone.golden import golden_texts_id, golden_token_ids, packing_token_ids
from service.backbone.load import MINILM, load_backbone, load_renderer
from service.backbone.protocol import Backbone, Dtype, Renderer
from service.checkpoints import Checkpoint
from service.errors import BackboneError, CheckpointError, EngineError
from service.observability.metrics import Metrics, WorkerMetrics
from service.operations.engine import Engine
from service.operations.self_check import check_engine
from service.runtime.engine_key import engine_key
from service.settings import Settings
from service.worker import selfcheck
from service.worker.connection import Connection, worker_names
from service.worker.messages import BaseRewardHeads
from service.worker.remote import RemoteEngine
from service.worker.selfcheck import GoldenRecord, Question, SelfCheck, Verdict
from service.worker.worker import Worker

logger = logging.getLogger(__name__)

DRAIN_TIMEOUT_S = 30.0
# Between any two operations the device's thread asks for the interpreter, which the event loop may keep for this long.
# Under ten times the capacity, goodput was 77 and 85 % of the capacity with Python's 5 ms, 91 and 88 % with this.
SWITCH_INTERVAL_S = 0.0005
FIRST_ANSWER_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class EngineParts:
    """An engine that runs, and what its texts are rendered with.

    Attributes:
        engine: Token ids to base rewards.
        renderer: Texts to token ids.
        description: The backbone, for `/info`.
        check: Lets the engine score the golden texts: one verdict for each worker.
        close: Finishes accepted work and lets the device go.
    """

    engine: Engine
    renderer: Renderer
    description: dict[str, Any]
    check: Callable[[], Awaitable[Sequence[Verdict]]]
    close: Callable[[], None]


def open_engine(settings: Settings, checkpoint: Checkpoint, metrics: Metrics | None = None) -> EngineParts:
    """A running engine that has passed its self-check; remote workers may be down and pass theirs when they come.

    Raises:
        ConfigurationError: Settings, checkpoint and backbone do not fit, or the self-check failed.
    """
    if settings.engine_urls:
        return _open_remote(settings, checkpoint, metrics or Metrics())
    opened = open_worker(settings, checkpoint, None if metrics is None else metrics.worker)
    backbone = opened.backbone

    def close() -> None:
        opened.worker.stop(drain=True, timeout_s=settings.drain_timeout_s)

    description = {**backbone.spec.as_json(), "executor": backbone.runs_by}
    return EngineParts(opened.worker, backbone.renderer, description, opened.check, close)


@dataclass(frozen=True)
class OpenWorker:
    """A running worker of this process.

    Attributes:
        backbone: What it owns.
        worker: It.
        self_check: What it came to at the start.
        check: Lets it score the golden texts again, in its queue.
    """

    backbone: Backbone
    worker: Worker
    self_check: SelfCheck
    check: Callable[[], Awaitable[Sequence[Verdict]]]


def open_worker(
    settings: Settings, checkpoint: Checkpoint, metrics: WorkerMetrics | None, *, with_biases: bool = True
) -> OpenWorker:
    """The backbone of the settings, or else of the checkpoint, and a running worker that owns it.

    Raises:
        ConfigurationError: Settings, checkpoint and backbone do not fit, or the self-check failed.
    """
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    backbone = load_backbone(
        settings.backbone or checkpoint.backbone.id,
        device=settings.device,
        dtype=settings.dtype,
        max_tokens=settings.max_tokens,
        options=ExecutorOptions(settings.executor, settings.attention, settings.prefix_cache_mb << 20),
    )
    worker, self_check = start_worker(
        checkpoint,
        backbone,
        max_batch_tokens=settings.max_batch_tokens,
        max_queue_tokens=settings.max_queue_tokens,
        max_queue_wait_s=settings.max_queue_wait_s,
        max_window_s=settings.coalesce_ms / 1000,
        metrics=metrics,
        with_biases=with_biases,
    )
    kept = backbone.prefixes
    if metrics is not None and kept is not None:
        metrics.prefix_cache_bytes.set_function(lambda: kept.nbytes)
        metrics.prefix_cache_reused_tokens.set_function(lambda: kept.tokens_reused)
    golden = golden_record(checkpoint, backbone.renderer, backbone.spec.dtype, with_biases=with_biases)

    async def check() -> list[Verdict]:
        heads, timeout_s = checkpoint.heads, settings.engine_timeout_s
        return [await check_engine(worker, golden, heads, timeout_s=timeout_s, metrics=metrics)]

    return OpenWorker(backbone, worker, self_check, check)


@dataclass(frozen=True)
class RemoteParts:
    """What a process knows of its workers before it asks any.

    Attributes:
        renderer: Texts to token ids, as the checkpoint was trained with.
        golden: What a worker must answer before it serves.
        connect: By the name of each worker, what makes a connection to it.
    """

    renderer: Renderer
    golden: GoldenRecord
    connect: dict[str, Callable[[], Connection]]


def remote_parts(settings: Settings, checkpoint: Checkpoint) -> RemoteParts:
    """Ways to the workers of ENGINE_URL, and what they must answer; none is asked yet.

    Raises:
        ConfigurationError: The renderer is not the checkpoint's, or ENGINE_URL or ENGINE_API_KEY cannot be.
    """
    wanted = checkpoint.backbone
    renderer = load_renderer(settings.backbone or wanted.id, max_tokens=settings.max_tokens)
    if renderer.template_id != wanted.template_id:
        raise CheckpointError(
            f"checkpoint {checkpoint.name!r} was trained with another tokenizer or chat template of {wanted.id} than "
            f"{settings.backbone or wanted.id} has here; set BACKBONE to the one it was trained on"
        )
    # Of a worker that does not tell what it computes in: a CUDA device's default, which is the wider tolerance.
    unsaid: Dtype = "float32" if wanted.id == MINILM else "bfloat16"
    dtype: Dtype = unsaid if settings.dtype == "auto" else settings.dtype
    golden = golden_record(checkpoint, renderer, dtype, with_biases=False)
    key = engine_key(settings)
    connect: dict[str, Callable[[], Connection]] = {
        name: functools.partial(
            Connection,
            url,
            key=key,
            model=checkpoint.heads_id,
            heads=checkpoint.heads,
            timeout_s=settings.engine_timeout_s,
        )
        for name, url in worker_names(settings.engine_urls).items()
    }
    return RemoteParts(renderer, golden, connect)


def _open_remote(settings: Settings, checkpoint: Checkpoint, metrics: Metrics) -> EngineParts:
    """Without torch: this process only makes token ids, and adds the biases to what comes back."""
    remote, wanted = remote_parts(settings, checkpoint), checkpoint.backbone
    engine = RemoteEngine(
        remote.connect,
        remote.golden,
        checkpoint.b_K,
        max_batch_tokens=settings.max_batch_tokens,
        max_queue_tokens=settings.max_queue_tokens,
        max_queue_wait_s=settings.max_queue_wait_s,
        timeout_s=settings.engine_timeout_s,
        metrics=metrics,
    )
    engine.start(FIRST_ANSWER_TIMEOUT_S)
    if not engine.healthy:
        logger.warning("no worker of ENGINE_URL serves yet; texts that are not cached get 503 until one does")
    description = {
        "id": settings.backbone or wanted.id,
        "fingerprint": wanted.fingerprint,
        "template_id": wanted.template_id,
        "hidden_size": wanted.hidden_size,
        "max_tokens": remote.renderer.max_tokens,
        "workers": len(remote.connect),
    }

    async def check() -> list[Verdict]:
        return await asyncio.wrap_future(engine.self_check(settings.engine_timeout_s))

    return EngineParts(engine, remote.renderer, description, check, lambda: engine.close(settings.drain_timeout_s))


def start_worker(
    checkpoint: Checkpoint,
    backbone: Backbone,
    *,
    max_batch_tokens: int,
    max_queue_tokens: int,
    max_queue_wait_s: float = math.inf,
    max_window_s: float = 0.0,
    metrics: WorkerMetrics | None = None,
    with_biases: bool = True,
) -> tuple[Worker, SelfCheck]:
    """A running worker whose engine has passed its self-check.

    Args:
        checkpoint: Its heads.
        backbone: What it was trained on.
        max_batch_tokens: As `Worker` takes it.
        max_queue_tokens: As `Worker` takes it.
        max_queue_wait_s: As `Worker` takes it.
        max_window_s: As `Worker` takes it.
        metrics: Where it counts.
        with_biases: Whether it answers A h + b, or A h as a worker behind a socket does.

    Raises:
        CheckpointError: The checkpoint was trained on another backbone.
        BackboneError: The engine does not give the numbers that the checkpoint recorded, or not the same ones in a
            batch as alone.
    """
    _require_fit(checkpoint, backbone)
    golden = golden_record(checkpoint, backbone.renderer, backbone.spec.dtype, with_biases=with_biases)
    heads = BaseRewardHeads.of(checkpoint.A_KD, checkpoint.b_K if with_biases else np.zeros(checkpoint.heads))
    worker = Worker(
        backbone,
        heads,
        max_batch_tokens=max_batch_tokens,
        max_queue_tokens=max_queue_tokens,
        max_queue_wait_s=max_queue_wait_s,
        max_window_s=max_window_s,
        metrics=metrics,
    )
    worker.start()
    try:
        result = selfcheck.self_check(functools.partial(_score, worker, checkpoint.heads), golden, idle=True)
        if metrics is not None:
            selfcheck.show(result, metrics.self_check_difference)
        if not result.passed:
            logger.error("self-check failed: %s", result)
            raise FailedSelfCheck(result)
        logger.info("self-check passed: %s", result)
    except BaseException:
        worker.stop(drain=False, timeout_s=DRAIN_TIMEOUT_S)
        raise
    return worker, result


class FailedSelfCheck(BackboneError):
    """The engine would serve wrong rewards; `check` has the figures."""

    def __init__(self, check: SelfCheck) -> None:
        super().__init__(check)
        self.check = check

    def __str__(self) -> str:
        return f"the engine failed its self-check, so it would serve wrong rewards: {self.check}"


def _score(worker: Worker, heads: int, question: Question) -> npt.NDArray[np.float64]:
    """Base rewards [N, K]; a text that the device fails on is a row of NaN, which no check passes."""
    rows = []
    for answer in worker.submit(question.texts, scope=question.scope):
        try:
            rows.append(answer.result())
        except EngineError:
            rows.append(np.full(heads, np.nan))
    return np.stack(rows)


def golden_record(checkpoint: Checkpoint, renderer: Renderer, dtype: Dtype, *, with_biases: bool) -> GoldenRecord:
    """What an engine of this checkpoint must answer.

    Args:
        checkpoint: It recorded the golden texts, or did not.
        renderer: Of its backbone.
        dtype: What the engine computes in.
        with_biases: Whether the engine answers A h + b or A h.

    Raises:
        CheckpointError: The record is of other golden texts.
    """
    recorded_GK, recorded_dtype = recorded_golden(checkpoint)
    if recorded_GK is not None and not with_biases:
        recorded_GK = recorded_GK - checkpoint.b_K
    return GoldenRecord(golden_token_ids(renderer), recorded_GK, recorded_dtype, dtype, packing_token_ids(renderer))


def recorded_golden(checkpoint: Checkpoint) -> tuple[npt.NDArray[np.float64] | None, Dtype]:
    """Base rewards [G, K] of the golden texts as the checkpoint recorded them (None without), and their dtype.

    Raises:
        CheckpointError: They are of other golden texts.
    """
    golden = checkpoint.golden
    if golden is None:
        return None, "float32"
    if golden.texts_id != golden_texts_id():
        raise CheckpointError(
            f"checkpoint {checkpoint.name!r} recorded other golden texts than this version has; train it again"
        )
    return np.array(golden.base_rewards, dtype=np.float64), golden.dtype


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
