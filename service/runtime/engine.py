"""The engine behind the operations: a worker in this process."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from service.backbone.golden import golden_texts_id, golden_token_ids
from service.backbone.load import load_backbone
from service.backbone.protocol import Backbone, Dtype, Renderer
from service.checkpoints import Checkpoint
from service.errors import BackboneError, CheckpointError
from service.observability.metrics import Metrics, WorkerMetrics
from service.operations.engine import Engine
from service.settings import Settings
from service.worker.messages import BaseRewardHeads
from service.worker.selfcheck import SelfCheck, self_check
from service.worker.worker import Worker

logger = logging.getLogger(__name__)

DRAIN_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class EngineParts:
    """An engine that runs, and what its texts are rendered with.

    Attributes:
        engine: Token ids to base rewards.
        renderer: Texts to token ids.
        description: The backbone, for `/info`.
        close: Finishes accepted work and lets the device go.
    """

    engine: Engine
    renderer: Renderer
    description: dict[str, Any]
    close: Callable[[], None]


def open_engine(settings: Settings, checkpoint: Checkpoint, metrics: Metrics | None = None) -> EngineParts:
    """A running engine that has passed its self-check.

    Raises:
        ConfigurationError: Settings, checkpoint and backbone do not fit, or the self-check failed.
    """
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
        max_queue_wait_s=settings.max_queue_wait_s,
        metrics=None if metrics is None else metrics.worker,
    )

    def close() -> None:
        worker.stop(drain=True, timeout_s=settings.drain_timeout_s)

    return EngineParts(worker, backbone.renderer, backbone.spec.as_json(), close)


def start_worker(
    checkpoint: Checkpoint,
    backbone: Backbone,
    *,
    max_batch_tokens: int,
    max_queue_tokens: int,
    max_queue_wait_s: float = math.inf,
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
        metrics: Where it counts.
        with_biases: Whether it answers A h + b, or A h as a worker behind a socket does.

    Raises:
        CheckpointError: The checkpoint was trained on another backbone.
        BackboneError: The engine does not give the numbers that the checkpoint recorded, or not the same ones in a
            batch as alone.
    """
    _require_fit(checkpoint, backbone)
    recorded_GK, recorded_dtype = recorded_golden(checkpoint)
    heads = BaseRewardHeads.of(checkpoint.A_KD, checkpoint.b_K if with_biases else np.zeros(checkpoint.heads))
    if recorded_GK is not None and not with_biases:
        recorded_GK = recorded_GK - checkpoint.b_K
    worker = Worker(
        backbone,
        heads,
        max_batch_tokens=max_batch_tokens,
        max_queue_tokens=max_queue_tokens,
        max_queue_wait_s=max_queue_wait_s,
        metrics=metrics,
    )
    worker.start()
    try:
        result = self_check(
            worker.base_rewards,
            golden_token_ids(backbone.renderer),
            dtype=backbone.spec.dtype,
            recorded_GK=recorded_GK,
            recorded_dtype=recorded_dtype,
        )
        if metrics is not None:
            metrics.self_check_difference.labels("batched").set(result.batched_difference)
            if result.recorded_difference is not None:
                metrics.self_check_difference.labels("recorded").set(result.recorded_difference)
        if not result.passed:
            raise BackboneError(f"the engine failed its self-check, so it would serve wrong rewards: {result}")
        logger.info("self-check passed: %s", result)
    except BaseException:
        worker.stop(drain=False, timeout_s=DRAIN_TIMEOUT_S)
        raise
    return worker, result


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
