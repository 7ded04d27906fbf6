"""The engine behind sockets: what this process knows of its workers, and one engine for each checkpoint."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from service.backbone.load import MINILM, load_renderer
from service.backbone.protocol import Dtype, Renderer
from service.checkpoints import Checkpoint
from service.errors import CheckpointError
from service.observability.metrics import Metrics
from service.runtime.engine_key import engine_key
from service.runtime.engine_parts import EngineParts
from service.runtime.golden import golden_record
from service.settings import Settings
from service.worker.connection import Connection, worker_names
from service.worker.remote import RemoteEngine
from service.worker.selfcheck import GoldenRecord, Verdict

logger = logging.getLogger(__name__)

FIRST_ANSWER_TIMEOUT_S = 10.0


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


def open_remote(settings: Settings, checkpoints: Sequence[Checkpoint], metrics: Metrics) -> list[EngineParts]:
    """Engines over the workers of ENGINE_URL, one for each checkpoint: a worker serves those whose heads_id it has.

    Without torch: this process only makes token ids, and adds the biases to what comes back.

    Raises:
        ConfigurationError: See `remote_parts`.
    """
    engines = [_remote_engine(settings, checkpoint, metrics, i > 0) for i, checkpoint in enumerate(checkpoints)]
    with ThreadPoolExecutor(len(engines)) as threads:
        list(threads.map(lambda opened: opened[0].start(FIRST_ANSWER_TIMEOUT_S), engines))
    for (engine, _), checkpoint in zip(engines, checkpoints, strict=True):
        if not engine.healthy:
            logger.warning(
                "no worker of ENGINE_URL serves checkpoint %r yet; its texts that are not cached get 503 until one "
                "does",
                checkpoint.name,
            )
    return [parts for _, parts in engines]


def _remote_engine(
    settings: Settings, checkpoint: Checkpoint, metrics: Metrics, further: bool
) -> tuple[RemoteEngine, EngineParts]:
    remote, wanted = remote_parts(settings, checkpoint), checkpoint.backbone
    # Logs and metrics tell what a worker is for one checkpoint from what it is for another.
    connect = {f"{name} {checkpoint.name}": c for name, c in remote.connect.items()} if further else remote.connect
    engine = RemoteEngine(
        connect,
        remote.golden,
        checkpoint.b_K,
        max_batch_tokens=settings.max_batch_tokens,
        max_queue_tokens=settings.max_queue_tokens,
        max_queue_wait_s=settings.max_queue_wait_s,
        timeout_s=settings.engine_timeout_s,
        metrics=metrics,
        further=further,
    )
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

    def close() -> None:
        engine.close(settings.drain_timeout_s)

    return engine, EngineParts(engine, remote.renderer, description, check, close, slice(0, checkpoint.heads))
