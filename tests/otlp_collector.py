"""A collector of traces on a real socket: takes OTLP over HTTP, keeps the spans."""

from __future__ import annotations

import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span


class OtlpCollector:
    """Collects on a free port of loopback. `url` is what OTLP_ENDPOINT wants."""

    def __init__(self) -> None:
        collector = self
        self._spans: list[Span] = []
        self.bodies = b""

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                collector.bodies += body
                if self.path != "/v1/traces":
                    self.send_error(404)
                    return
                request = ExportTraceServiceRequest.FromString(body)
                collector._spans += [
                    span
                    for resource in request.resource_spans
                    for scope in resource.scope_spans
                    for span in scope.spans
                ]
                self.send_response(200)
                self.end_headers()

            def log_message(self, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1/traces"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))

    def trees(self, request_id: str, count: int = 1, timeout_s: float = 30.0) -> list[tuple[Span, list[Any]]]:
        """The traces of requests with this id, once `count` have come: each a server span and its children, nested."""
        deadline = time.monotonic() + timeout_s
        while True:
            spans = list(self._spans)
            roots = [span for span in spans if attributes(span).get("metareward.request_id") == request_id]
            if len(roots) >= count or time.monotonic() > deadline:
                return [(root, _below(root, spans)) for root in roots]
            time.sleep(0.05)

    def __enter__(self) -> OtlpCollector:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def attributes(span: Span) -> dict[str, Any]:
    """The attributes of a span as plain values."""
    return {
        attribute.key: getattr(attribute.value, attribute.value.WhichOneof("value")) for attribute in span.attributes
    }


def _below(parent: Span, spans: list[Span]) -> list[Any]:
    children = sorted(
        (span for span in spans if span.parent_span_id == parent.span_id and span.trace_id == parent.trace_id),
        key=lambda span: span.start_time_unix_nano,
    )
    return [(span, _below(span, spans)) for span in children]
