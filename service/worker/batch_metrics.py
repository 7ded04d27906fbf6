"""What a batch adds to the metrics; cheap, because a batch on a GPU may take five milliseconds."""

from __future__ import annotations

from service.observability.metrics import WorkerMetrics
from service.worker.messages import WorkItem
from service.worker.queue import Batch


def record_batch(metrics: WorkerMetrics, batch: Batch[WorkItem], answered: int, started: float, seconds: float) -> None:
    """Count a batch of which `answered` texts were; `started` on the monotonic clock."""
    metrics.batch_tokens.observe(batch.computed_tokens)
    metrics.batch_texts.observe(len(batch.items))
    metrics.batch_jobs.observe(batch.jobs)
    metrics.batch_seconds.observe(seconds)
    if batch.tokens > batch.computed_tokens:
        metrics.shared_tokens.inc(batch.tokens - batch.computed_tokens)
    metrics.worker_texts.labels("answered").inc(answered)
    if answered < len(batch.items):
        metrics.worker_texts.labels("failed").inc(len(batch.items) - answered)
    for submitted_at in {item.submitted_at for item in batch.items}:
        metrics.queue_seconds.observe(max(0.0, started - submitted_at))
