"""`metareward worker`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from service.cli.listen import address, cannot_listen, listen
from service.settings import read_settings

_BANNER = """
metareward worker is ready.

  classify  {url}/classify
  metrics   {metrics}
  model     {model}
  heads     {name} on {backbone}, {dtype}

Give it to the REST layer: ENGINE_URL={url} metareward serve{checkpoint}

Ctrl-C stops the worker."""


def worker(
    host: Annotated[str | None, typer.Option(help="Address to listen on; any but loopback needs a key.")] = None,
    port: Annotated[int | None, typer.Option(help="Port of /classify; 0 picks a free one.")] = None,
    metrics_port: Annotated[int | None, typer.Option(help="Port of /metrics; 0 picks a free one.")] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="Checkpoint directory; default: the demo checkpoint.")] = None,
    backbone: Annotated[
        str | None, typer.Option(help="`minilm`, a hub id or a path; default: the one of the checkpoint.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="`auto`, `cpu`, `cuda` or `cuda:N`.")] = None,
    dtype: Annotated[str | None, typer.Option(help="`auto`, `float32` or `bfloat16`.")] = None,
) -> None:
    """Serve a checkpoint's base rewards to REST layers, without users and without a database.

    Every setting is also an environment variable or a line of `.env`; .env.example lists them all. Flags win.

    Example: metareward worker --checkpoint runs/mine --device cuda
    """
    settings = read_settings(
        host=host,
        worker_port=port,
        worker_metrics_port=metrics_port,
        checkpoint=checkpoint,
        backbone=backbone,
        device=device,
        dtype=dtype,
    )

    from service.observability.logging import configure_logging
    from service.observability.metrics import WorkerMetrics
    from service.observability.metrics_server import MetricsServer
    from service.observability.requests import RequestObserver
    from service.observability.tracing import open_tracing
    from service.runtime.engine_key import engine_key
    from service.runtime.worker import build_worker

    configure_logging(settings.log_level, settings.log_format)
    key = engine_key(settings, listens=True)
    tracing = open_tracing(settings.otlp_endpoint, settings.trace_sample_ratio, "metareward-worker")
    # Bound before the model is loaded: a port that is taken is known at once, not after a minute.
    listener = listen(settings.host, settings.worker_port, "WORKER_PORT")
    metrics, metrics_server = WorkerMetrics(), None
    if settings.worker_metrics_port is not None:
        try:
            metrics_server = MetricsServer(metrics, settings.host, settings.worker_metrics_port)
        except OSError as error:
            raise cannot_listen("WORKER_METRICS_PORT", "--metrics-port", settings.worker_metrics_port, error) from error
    typer.echo(f"Loading {settings.checkpoint} ...", err=True)

    from service.api.server import run_server
    from service.api.worker_app import WorkerApp

    runtime = build_worker(settings, metrics)
    url = f"http://{address(settings.host)}:{listener.getsockname()[1]}"
    announcement = _BANNER.format(
        url=url,
        metrics=f"http://{address(settings.host)}:{metrics_server.port}/metrics"
        if metrics_server
        else "off (WORKER_METRICS_PORT is empty)",
        model=runtime.model,
        name=runtime.name,
        backbone=runtime.backbone,
        dtype=runtime.dtype,
        checkpoint="" if checkpoint is None else f" --checkpoint {checkpoint}",
    )
    app = WorkerApp(
        runtime,
        key=key,
        max_body_bytes=settings.max_body_bytes,
        timeout_s=settings.engine_timeout_s,
        observer=RequestObserver(None, settings.access_log, tracing),
    )
    try:
        run_server(
            app,
            listener,
            lambda: typer.echo(announcement, err=True),
            runtime.lifecycle,
            drain_delay_s=settings.drain_delay_s,
            drain_timeout_s=settings.drain_timeout_s,
        )
    finally:
        if tracing is not None:
            tracing.close()
        if metrics_server is not None:
            metrics_server.close()
