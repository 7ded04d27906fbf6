"""GET /metrics on a port of its own, outside the API and its document."""

from __future__ import annotations

import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from service.observability.metrics import Metrics, WorkerMetrics

# Who has not asked, or not read, by then is let go; a scraper that hangs holds one thread so long and nothing else.
TIMEOUT_S: Final = 10.0


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, registry: CollectorRegistry, host: str, port: int) -> None:
        self.registry = registry
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A scraper that went away is no news."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = TIMEOUT_S

    def do_GET(self) -> None:
        """The page of all metrics, and nothing at any other path."""
        if self.path.partition("?")[0] != "/metrics":
            self.send_error(404, "There is only /metrics.")
            return
        page = generate_latest(self.server.registry)
        self.send_response(200)
        self.send_header("Content-Type", CONTENT_TYPE_LATEST)
        self.send_header("Content-Length", str(len(page)))
        self.end_headers()
        self.wfile.write(page)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the standard library's name
        """A scrape is no news either."""


class MetricsServer:
    """Answers Prometheus from threads. Raises `OSError` where the port is taken."""

    def __init__(self, metrics: Metrics | WorkerMetrics, host: str, port: int) -> None:
        self._server = _Server(metrics.registry, host, port)
        self.port: int = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop answering."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
