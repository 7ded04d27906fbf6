"""The parts of `metareward worker`: a backbone, a checkpoint's heads, and nothing of users."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from service.checkpoints import load_checkpoint
from service.observability.metrics import WorkerMetrics
from service.operations.classify import Classify
from service.operations.engine import Engine
from service.operations.lifecycle import Lifecycle
from service.operations.self_check import SelfChecks
from service.runtime.engine import open_worker
from service.settings import Settings


@dataclass(frozen=True)
class WorkerRuntime:
    """Everything that the worker's front door calls.

    Attributes:
        engine: The worker; its heads have no biases.
        classify: The use case.
        lifecycle: What is in flight, and whether the process is about to end.
        self_checks: Whether the engine still gives the recorded numbers.
        model: The heads_id, by which REST layer and worker know that they mean the same base rewards.
        dtype: What the backbone computes in.
        max_tokens: The longest text.
        name: The checkpoint's short name.
        backbone: The backbone's name.
        close: Finishes accepted work and lets the device go.
    """

    engine: Engine
    classify: Classify
    lifecycle: Lifecycle
    self_checks: SelfChecks
    model: str
    dtype: str
    max_tokens: int
    name: str
    backbone: str
    close: Callable[[], None]


def build_worker(settings: Settings, metrics: WorkerMetrics) -> WorkerRuntime:
    """A worker that has passed its self-check.

    Raises:
        ConfigurationError: Settings, checkpoint and backbone do not fit, or the self-check failed.
    """
    checkpoint = load_checkpoint(settings.checkpoint)
    # A stock vLLM serves heads without biases, and this stands in its place.
    opened = open_worker(settings, checkpoint, metrics, with_biases=False)
    backbone, worker = opened.backbone, opened.worker
    backbone.renderer.doubled_bos.noted = metrics.doubled_bos.inc
    metrics.queue_tokens.set_function(lambda: worker.queued_tokens)
    metrics.healthy.set_function(lambda: worker.healthy)

    def close() -> None:
        worker.stop(drain=True, timeout_s=settings.drain_timeout_s)

    return WorkerRuntime(
        engine=worker,
        classify=Classify(
            engine=worker,
            renderer=backbone.renderer,
            vocab_size=backbone.vocab_size,
            max_tokens=backbone.spec.max_tokens,
            max_text_bytes=2 * settings.max_text_bytes,  # a text holds a prompt and a completion
        ),
        lifecycle=Lifecycle(settings.max_in_flight, settings.max_in_flight_bytes),
        self_checks=SelfChecks(opened.check, metrics, interval_s=settings.self_check_interval_s),
        model=checkpoint.heads_id,
        dtype=backbone.spec.dtype,
        max_tokens=backbone.spec.max_tokens,
        name=checkpoint.name,
        backbone=backbone.spec.id,
        close=close,
    )
