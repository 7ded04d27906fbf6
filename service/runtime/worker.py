"""The parts of `metareward worker`: a backbone, a checkpoint's heads, and nothing of users."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from service.errors import ConfigurationError
from service.observability.metrics import WorkerMetrics
from service.operations.classify import Classify, Flights
from service.operations.engine import Engine
from service.operations.lifecycle import Lifecycle
from service.operations.self_check import SelfChecks
from service.operations.single_flight import SingleFlight
from service.runtime.checkpoints import load_checkpoints
from service.runtime.engine import open_worker
from service.settings import Settings


@dataclass(frozen=True)
class WorkerRuntime:
    """Everything that the worker's front door calls.

    Attributes:
        engine: The worker; its heads have no biases.
        classify: By model the use case. A model is a heads_id, by which REST layer and worker know that they mean the
            same base rewards; the first is that of requests that name none.
        lifecycle: What is in flight, and whether the process is about to end.
        self_checks: Whether the engine still gives the recorded numbers.
        dtype: What the backbone computes in.
        max_tokens: The longest text.
        name: The checkpoints' short names.
        backbone: The backbone's name.
        close: Finishes accepted work and lets the device go.
    """

    engine: Engine
    classify: Mapping[str, Classify]
    lifecycle: Lifecycle
    self_checks: SelfChecks
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
    checkpoints = load_checkpoints(settings)
    first = checkpoints[0].backbone
    for checkpoint in checkpoints[1:]:
        other = checkpoint.backbone
        if (other.fingerprint, other.template_id) != (first.fingerprint, first.template_id):
            raise ConfigurationError(
                f"CHECKPOINTS: {checkpoint.name} is on another backbone ({other.id}) than CHECKPOINT ({first.id}): a "
                "worker has one; start another worker for it, and name both in ENGINE_URL"
            )
    # A stock vLLM serves heads without biases, and this stands in its place.
    opened = open_worker(settings, checkpoints[0], metrics, further=checkpoints[1:], with_biases=False)
    backbone, worker = opened.backbone, opened.worker
    backbone.renderer.doubled_bos.noted = metrics.doubled_bos.inc
    metrics.queue_tokens.set_function(lambda: worker.queued_tokens)
    metrics.healthy.set_function(lambda: worker.healthy)
    flights: Flights = SingleFlight()

    def close() -> None:
        worker.stop(drain=True, timeout_s=settings.drain_timeout_s)

    return WorkerRuntime(
        engine=worker,
        classify={
            checkpoint.heads_id: Classify(
                engine=worker,
                renderer=backbone.renderer,
                vocab_size=backbone.vocab_size,
                max_tokens=backbone.spec.max_tokens,
                max_text_bytes=2 * settings.max_text_bytes,  # a text holds a prompt and a completion
                columns=columns,
                flights=flights,
            )
            for checkpoint, columns in zip(checkpoints, opened.heads.columns, strict=True)
        },
        lifecycle=Lifecycle(settings.max_in_flight, settings.max_in_flight_bytes),
        self_checks=SelfChecks(opened.check, metrics, interval_s=settings.self_check_interval_s),
        dtype=backbone.spec.dtype,
        max_tokens=backbone.spec.max_tokens,
        name=", ".join(checkpoint.name for checkpoint in checkpoints),
        backbone=backbone.spec.id,
        close=close,
    )
