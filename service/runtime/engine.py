"""The engines behind the operations: workers in this process, or remote ones."""

from __future__ import annotations

import functools
import logging
import math
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from service.backbone.executors.choose import ExecutorOptions
from service.backbone.load import load_backbone
from service.backbone.protocol import Backbone
from service.checkpoints import Checkpoint
from service.errors import BackboneError, CheckpointError, ConfigurationError, EngineError
from service.observability.metrics import Metrics, WorkerMetrics
from service.operations.self_check import HERE, check_engine
from service.runtime.engine_parts import EngineParts
from service.runtime.golden import golden_record
from service.runtime.remote_engine import open_remote
from service.settings import Settings
from service.worker import selfcheck
from service.worker.messages import BaseRewardHeads, StackedHeads
from service.worker.selfcheck import Question, SelfCheck, Verdict
from service.worker.worker import Worker

logger = logging.getLogger(__name__)

DRAIN_TIMEOUT_S = 30.0
# Between any two operations the device's thread asks for the interpreter, which the event loop may keep for this long.
# Under ten times the capacity, goodput was 77 and 85 % of the capacity with Python's 5 ms, 91 and 88 % with this.
SWITCH_INTERVAL_S = 0.0005


def open_engine(settings: Settings, checkpoint: Checkpoint, metrics: Metrics | None = None) -> EngineParts:
    """The engine of one checkpoint; see `open_engines`."""
    return open_engines(settings, [checkpoint], metrics)[0]


def open_engines(
    settings: Settings, checkpoints: Sequence[Checkpoint], metrics: Metrics | None = None, *, with_hidden: bool = False
) -> list[EngineParts]:
    """Running engines that have passed their self-check, one for each checkpoint.

    In this process, checkpoints on one backbone share a worker. Remote workers may be down; they pass their self-check
    when they come.

    Args:
        settings: All of them. BACKBONE stands for the backbone of the first checkpoint.
        checkpoints: At least one, no two the same; of two with the same heads each has its columns.
        metrics: Where to count; None for nowhere.
        with_hidden: Whether answers hold hidden states too; only in this process.

    Raises:
        ConfigurationError: Settings, checkpoints and backbones do not fit, or a self-check failed.
    """
    if settings.engine_urls:
        if with_hidden:
            raise ConfigurationError(
                "RETENTION hidden_states needs the backbone in this process, because workers behind ENGINE_URL answer "
                "base rewards only; set RETENTION to texts or base_rewards, or leave ENGINE_URL empty"
            )
        return open_remote(settings, checkpoints, metrics or Metrics())
    worker_metrics = None if metrics is None else metrics.worker
    groups: dict[tuple[str, str], list[Checkpoint]] = {}
    for checkpoint in checkpoints:
        groups.setdefault((checkpoint.backbone.fingerprint, checkpoint.backbone.template_id), []).append(checkpoint)
    opened: list[OpenWorker] = []
    try:
        for i, group in enumerate(groups.values()):
            here = settings if i == 0 else settings.model_copy(update={"backbone": ""})
            opened.append(open_worker(here, group[0], worker_metrics, further=group[1:], with_hidden=with_hidden))
    except BaseException:
        for worker in opened:
            worker.worker.stop(drain=False, timeout_s=DRAIN_TIMEOUT_S)
        raise
    if worker_metrics is not None:
        show_prefixes([worker.backbone for worker in opened], worker_metrics)
    parts = {
        checkpoint.checkpoint_id: _parts_of(worker, i, settings.drain_timeout_s)
        for worker, group in zip(opened, groups.values(), strict=True)
        for i, checkpoint in enumerate(group)
    }
    return [parts[checkpoint.checkpoint_id] for checkpoint in checkpoints]


@dataclass(frozen=True)
class OpenWorker:
    """A running worker of this process.

    Attributes:
        backbone: What it owns.
        worker: It.
        self_checks: What came of each checkpoint's at the start.
        checks: For each checkpoint, what lets the worker score the golden texts again, in its queue.
        heads: Of all its checkpoints.
    """

    backbone: Backbone
    worker: Worker
    self_checks: Sequence[SelfCheck]
    checks: Sequence[Callable[[], Awaitable[Verdict]]]
    heads: StackedHeads

    async def check(self) -> list[Verdict]:
        """Every checkpoint's verdict."""
        return [await check() for check in self.checks]


def open_worker(
    settings: Settings,
    checkpoint: Checkpoint,
    metrics: WorkerMetrics | None,
    *,
    further: Sequence[Checkpoint] = (),
    with_biases: bool = True,
    with_hidden: bool = False,
) -> OpenWorker:
    """The backbone of the settings, or else of the checkpoint, and a running worker that owns it.

    Args:
        settings: All of them.
        checkpoint: The first, whose base rewards are the first columns of an answer.
        metrics: Where to count.
        further: Other checkpoints on the same backbone.
        with_biases: Whether answers are A h + b or A h.
        with_hidden: Whether hidden states follow them.

    Raises:
        ConfigurationError: Settings, checkpoints and backbone do not fit, or a self-check failed.
    """
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    checkpoints = [checkpoint, *further]
    backbone = load_backbone(
        settings.backbone or checkpoint.backbone.id,
        device=settings.device,
        dtype=settings.dtype,
        max_tokens=settings.max_tokens,
        options=ExecutorOptions(settings.executor, settings.attention, settings.prefix_cache_mb << 20),
    )
    heads = stack(checkpoints, with_biases=with_biases, with_hidden=with_hidden)
    worker, self_checks = _start(
        checkpoints,
        backbone,
        heads,
        max_batch_tokens=settings.max_batch_tokens,
        max_queue_tokens=settings.max_queue_tokens,
        max_queue_wait_s=settings.max_queue_wait_s,
        max_window_s=settings.coalesce_ms / 1000,
        metrics=metrics,
        with_biases=with_biases,
    )
    if metrics is not None:
        show_prefixes([backbone], metrics)
    checks = [
        functools.partial(
            check_engine,
            worker,
            golden_record(each, backbone.renderer, backbone.spec.dtype, with_biases=with_biases),
            each.heads,
            timeout_s=settings.engine_timeout_s,
            metrics=metrics if i == 0 else None,
            columns=heads.columns[i],
            name=HERE if i == 0 else f"{HERE}, {each.name}",
        )
        for i, each in enumerate(checkpoints)
    ]
    return OpenWorker(backbone, worker, self_checks, checks, heads)


def stack(checkpoints: Sequence[Checkpoint], *, with_biases: bool, with_hidden: bool = False) -> StackedHeads:
    """The heads of checkpoints on one backbone, as a worker applies them."""
    parts = [BaseRewardHeads.of(c.A_KD, c.b_K if with_biases else np.zeros(c.heads)) for c in checkpoints]
    return StackedHeads(tuple(parts), with_hidden)


def show_prefixes(backbones: Sequence[Backbone], metrics: WorkerMetrics) -> None:
    """Let the metrics tell what backbones keep of prefixes, where any does."""
    kept = [backbone.prefixes for backbone in backbones if backbone.prefixes is not None]
    if kept:
        metrics.prefix_cache_bytes.set_function(lambda: sum(each.nbytes for each in kept))
        metrics.prefix_cache_reused_tokens.set_function(lambda: sum(each.tokens_reused for each in kept))


def _parts_of(opened: OpenWorker, index: int, drain_timeout_s: float) -> EngineParts:
    backbone, worker = opened.backbone, opened.worker

    async def check() -> list[Verdict]:
        return [await opened.checks[index]()]

    def close() -> None:
        worker.stop(drain=True, timeout_s=drain_timeout_s)

    description = {**backbone.spec.as_json(), "executor": backbone.runs_by}
    columns, hidden_columns = opened.heads.columns[index], opened.heads.hidden_columns
    return EngineParts(worker, backbone.renderer, description, check, close, columns, hidden_columns)


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
    heads = stack([checkpoint], with_biases=with_biases)
    worker, checks = _start(
        [checkpoint],
        backbone,
        heads,
        max_batch_tokens=max_batch_tokens,
        max_queue_tokens=max_queue_tokens,
        max_queue_wait_s=max_queue_wait_s,
        max_window_s=max_window_s,
        metrics=metrics,
        with_biases=with_biases,
    )
    return worker, checks[0]


def _start(
    checkpoints: Sequence[Checkpoint],
    backbone: Backbone,
    heads: StackedHeads,
    *,
    max_batch_tokens: int,
    max_queue_tokens: int,
    max_queue_wait_s: float,
    max_window_s: float,
    metrics: WorkerMetrics | None,
    with_biases: bool,
) -> tuple[Worker, list[SelfCheck]]:
    """`start_worker` for several checkpoints on one backbone."""
    for checkpoint in checkpoints:
        _require_fit(checkpoint, backbone)
    records = [golden_record(c, backbone.renderer, backbone.spec.dtype, with_biases=with_biases) for c in checkpoints]
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
    checks: list[SelfCheck] = []
    try:
        for checkpoint, golden, columns in zip(checkpoints, records, heads.columns, strict=True):
            result = selfcheck.self_check(functools.partial(_score, worker, columns), golden, idle=True)
            if metrics is not None and not checks:
                selfcheck.show(result, metrics.self_check_difference)
            if not result.passed:
                logger.error("self-check failed: %s (checkpoint %s)", result, checkpoint.name)
                raise FailedSelfCheck(result)
            logger.info("self-check passed: %s (checkpoint %s)", result, checkpoint.name)
            checks.append(result)
    except BaseException:
        worker.stop(drain=False, timeout_s=DRAIN_TIMEOUT_S)
        raise
    return worker, checks


class FailedSelfCheck(BackboneError):
    """The engine would serve wrong rewards; `check` has the figures."""

    def __init__(self, check: SelfCheck) -> None:
        super().__init__(check)
        self.check = check

    def __str__(self) -> str:
        return f"the engine failed its self-check, so it would serve wrong rewards: {self.check}"


def _score(worker: Worker, columns: slice, question: Question) -> npt.NDArray[np.float64]:
    """Base rewards [N, K]; a text that the device fails on is a row of NaN, which no check passes."""
    rows = []
    for answer in worker.submit(question.texts, scope=question.scope):
        try:
            rows.append(answer.result()[columns])
        except EngineError:
            rows.append(np.full(columns.stop - columns.start, np.nan))
    return np.stack(rows)


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
