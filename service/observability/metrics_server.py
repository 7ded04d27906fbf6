"""/metrics on a port of its own, outside the API and its document."""

from __future__ import annotations

from prometheus_client import start_http_server

from service.observability.metrics import Metrics, WorkerMetrics


class MetricsServer:
    """Answers Prometheus from a thread. Raises `OSError` where the port is taken."""

    def __init__(self, metrics: Metrics | WorkerMetrics, host: str, port: int) -> None:
        self._server, self._thread = start_http_server(port, host, metrics.registry)
        self.port: int = self._server.server_port

    def close(self) -> None:
        """Stop answering."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
