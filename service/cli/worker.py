"""`metareward worker`."""

from __future__ import annotations

from typing import Annotated

import typer

from service.cli.listen import address, listen, metrics_url, serve_metrics
from service.cli.options import BackboneOption, CheckpointOption, Device, DtypeOption, Host
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
    host: Host = None,
    port: Annotated[int | None, typer.Option(help="Port of /classify; 0 picks a free one.")] = None,
    metrics_port: Annotated[int | None, typer.Option(help="Port of /metrics; 0 picks a free one.")] = None,
    checkpoint: CheckpointOption = None,
    backbone: BackboneOption = None,
    device: Device = None,
    dtype: DtypeOption = None,
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
    from service.observability.requests import RequestObserver
    from service.observability.tracing import open_tracing
    from service.runtime.engine_key import engine_key
    from service.runtime.worker import build_worker

    configure_logging(settings.log_level, settings.log_format)
    key = engine_key(settings, listens=True)
    tracing = open_tracing(settings.otlp_endpoint, settings.trace_sample_ratio, "metareward-worker")
    # Bound before the model is loaded: a port that is taken is known at once, not after a minute.
    listener = listen(settings.host, settings.worker_port, "WORKER_PORT")
    metrics = WorkerMetrics()
    metrics_server = serve_metrics(metrics, settings.host, settings.worker_metrics_port, "WORKER_METRICS_PORT")
    typer.echo(f"Loading {', '.join(map(str, [settings.checkpoint, *settings.further_checkpoints]))} ...", err=True)

    from service.api.server import run_server
    from service.api.worker_app import WorkerApp

    runtime = build_worker(settings, metrics)
    url = f"http://{address(settings.host)}:{listener.getsockname()[1]}"
    announcement = _BANNER.format(
        url=url,
        metrics=metrics_url(settings.host, metrics_server, "WORKER_METRICS_PORT"),
        model=", ".join(runtime.classify),
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
