"""`metareward serve`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from service.cli.banner import banner
from service.cli.listen import address, listen, metrics_url, serve_metrics
from service.cli.options import BackboneOption, CheckpointOption, Device, DtypeOption, Host
from service.observability.logging import configure_logging
from service.settings import DEMO_CHECKPOINT, read_settings


def serve(
    host: Host = None,
    port: Annotated[int | None, typer.Option(help="Port of the REST API; 0 picks a free one.")] = None,
    metrics_port: Annotated[int | None, typer.Option(help="Port of /metrics; 0 picks a free one.")] = None,
    checkpoint: CheckpointOption = None,
    backbone: BackboneOption = None,
    device: Device = None,
    dtype: DtypeOption = None,
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

    # Bound before the model is loaded: a port that is taken is known at once, not after a minute.
    listener = listen(settings.host, settings.port, "PORT")
    metrics = Metrics()
    metrics_server = serve_metrics(metrics, settings.host, settings.metrics_port, "METRICS_PORT")
    typer.echo(f"Loading {', '.join(map(str, [settings.checkpoint, *settings.further_checkpoints]))} ...", err=True)

    from service.api.app import create_app
    from service.api.server import run_server
    from service.runtime import build_runtime

    runtime = build_runtime(settings, metrics)
    announcement = banner(
        f"http://{address(settings.host)}:{listener.getsockname()[1]}",
        metrics_url(settings.host, metrics_server, "METRICS_PORT"),
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
