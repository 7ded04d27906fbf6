"""`metareward serve`."""

from __future__ import annotations

import logging
import socket
from pathlib import Path
from typing import Annotated

import typer

from service.cli.banner import banner
from service.errors import ConfigurationError
from service.settings import read_settings


def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on; loopback only for now.")] = None,
    port: Annotated[int | None, typer.Option(help="Port of the REST API; 0 picks a free one.")] = None,
    metrics_port: Annotated[int | None, typer.Option(help="Port of /metrics; 0 picks a free one.")] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="Checkpoint directory; default: the demo checkpoint.")] = None,
    backbone: Annotated[
        str | None, typer.Option(help="`minilm`, a hub id or a path; default: the one of the checkpoint.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="`auto`, `cpu`, `cuda` or `cuda:N`.")] = None,
    dtype: Annotated[str | None, typer.Option(help="`auto`, `float32` or `bfloat16`.")] = None,
    database_url: Annotated[str | None, typer.Option(help="postgresql://... or sqlite:///file.")] = None,
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
    )
    level = settings.log_level.upper()
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)-7s %(name)s: %(message)s", force=True)
    for chatty in ("alembic", "asyncio", "httpx", "uvicorn"):
        logging.getLogger(chatty).setLevel(logging.WARNING)

    # Bound before the model is loaded: a port that is taken is known at once, not after a minute.
    listener = _listen(settings.host, settings.port)
    typer.echo(f"Loading {settings.checkpoint} ...", err=True)

    from service.api.app import create_app
    from service.api.server import run_server
    from service.observability.metrics_server import MetricsServer
    from service.runtime import build_runtime

    runtime = build_runtime(settings)
    metrics = None
    if settings.metrics_port is not None:
        try:
            metrics = MetricsServer(runtime.metrics, settings.host, settings.metrics_port)
        except OSError as error:
            runtime.close()
            raise _cannot_listen("METRICS_PORT", settings.metrics_port, error) from error
    address = f"[{settings.host}]" if ":" in settings.host else settings.host
    api_url = f"http://{address}:{listener.getsockname()[1]}"
    metrics_url = f"http://{address}:{metrics.port}/metrics" if metrics else None
    try:
        run_server(create_app(runtime, settings), listener, lambda: typer.echo(banner(api_url, metrics_url), err=True))
    finally:
        if metrics is not None:
            metrics.close()


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise _cannot_listen("PORT", port, error) from error
    return listener


def _cannot_listen(setting: str, port: int, error: OSError) -> ConfigurationError:
    return ConfigurationError(f"{setting}: cannot listen on {port} ({error.strerror}); set {setting} to a free port")
