"""`metareward serve`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from service.cli.banner import banner
from service.cli.listen import address, cannot_listen, listen
from service.observability.logging import configure_logging
from service.settings import DEMO_CHECKPOINT, read_settings


def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on; any but loopback needs API keys.")] = None,
    port: Annotated[int | None, typer.Option(help="Port of the REST API; 0 picks a free one.")] = None,
    metrics_port: Annotated[int | None, typer.Option(help="Port of /metrics; 0 picks a free one.")] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="Checkpoint directory; default: the demo checkpoint.")] = None,
    backbone: Annotated[
        str | None, typer.Option(help="`minilm`, a hub id or a path; default: the one of the checkpoint.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="`auto`, `cpu`, `cuda` or `cuda:N`.")] = None,
    dtype: Annotated[str | None, typer.Option(help="`auto`, `float32` or `bfloat16`.")] = None,
    database_url: Annotated[str | None, typer.Option(help="postgresql://... or sqlite:///file.")] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Folder of the embedded database; default: .metareward here.")
    ] = None,
) -> None:
    """Serve the REST API.

    Every setting is also an environment variable or a line of `.env`; .env.example lists them all. Flags win.

    Example: metareward serve --checkpoint runs/mine --port 8001
    """
    settings = read_settings(
        host=host,
        port=port,
        metrics_port=metrics_port,
        checkpoint=checkpoint,
        backbone=backbone,
        device=device,
        dtype=dtype,
        database_url=database_url,
        data_dir=data_dir,
    )
    configure_logging(settings.log_level, settings.log_format)

    from service.observability.metrics import Metrics
    from service.observability.metrics_server import MetricsServer

    # Bound before the model is loaded: a port that is taken is known at once, not after a minute.
    listener = listen(settings.host, settings.port, "PORT")
    metrics, metrics_server = Metrics(), None
    if settings.metrics_port is not None:
        try:
            metrics_server = MetricsServer(metrics, settings.host, settings.metrics_port)
        except OSError as error:
            raise cannot_listen("METRICS_PORT", "--metrics-port", settings.metrics_port, error) from error
    typer.echo(f"Loading {settings.checkpoint} ...", err=True)

    from service.api.app import create_app
    from service.api.server import run_server
    from service.runtime import build_runtime

    runtime = build_runtime(settings, metrics)
    announcement = banner(
        f"http://{address(settings.host)}:{listener.getsockname()[1]}",
        f"http://{address(settings.host)}:{metrics_server.port}/metrics" if metrics_server else None,
        str(settings.data_dir / "metareward.db") if settings.embedded_database else "the database of DATABASE_URL",
        demo=settings.checkpoint == DEMO_CHECKPOINT,
        keys=settings.keys_required,
    )
    try:
        run_server(
            create_app(runtime, settings),
            listener,
            lambda: typer.echo(announcement, err=True),
            runtime.lifecycle,
            drain_delay_s=settings.drain_delay_s,
            drain_timeout_s=settings.drain_timeout_s,
        )
    finally:
        if metrics_server is not None:
            metrics_server.close()
