"""Binding a port before anything slow happens, and saying how to get another."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from service.errors import ConfigurationError

if TYPE_CHECKING:
    from service.observability.metrics import Metrics, WorkerMetrics
    from service.observability.metrics_server import MetricsServer


def listen(host: str, port: int, setting: str) -> socket.socket:
    """A bound socket, not yet listening.

    Raises:
        ConfigurationError: The port is taken; names `setting`.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise _cannot_listen(setting, "--port", port, error) from error
    return listener


def serve_metrics(metrics: Metrics | WorkerMetrics, host: str, port: int | None, setting: str) -> MetricsServer | None:
    """Answer Prometheus, or None where that is turned off.

    Raises:
        ConfigurationError: The port is taken; names `setting`.
    """
    from service.observability.metrics_server import MetricsServer

    if port is None:
        return None
    try:
        return MetricsServer(metrics, host, port)
    except OSError as error:
        raise _cannot_listen(setting, "--metrics-port", port, error) from error


def metrics_url(host: str, server: MetricsServer | None, setting: str) -> str:
    """Where metrics are, or why they are not."""
    return f"off ({setting} is empty)" if server is None else f"http://{address(host)}:{server.port}/metrics"


def _cannot_listen(setting: str, flag: str, port: int, error: OSError) -> ConfigurationError:
    """What to say where a port cannot be had."""
    return ConfigurationError(
        f"{setting}: cannot listen on {port} ({error.strerror}); give a free port by {flag} or {setting} (0 picks one)"
    )


def address(host: str) -> str:
    """A host as it stands in a URL."""
    return f"[{host}]" if ":" in host else host
