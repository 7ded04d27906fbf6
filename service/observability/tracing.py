"""Traces over OTLP/HTTP: a span for each request, and one for each of its stages.

OpenTelemetry is imported where a `Tracing` is made and nowhere else: without one, a request pays nothing. Stages are
told when they have ended, so the way of a request holds no open spans but its own. Spans leave from a thread behind a
bounded queue: a collector that is down costs spans, never time. They hold counts; never a text, a path or a user id.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Final

from service import __version__
from service.errors import ConfigurationError
from service.observability import context, stages
from service.observability.stages import Stage

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
    from opentelemetry.trace import Span

logger = logging.getLogger(__name__)

MAX_QUEUED_SPANS: Final = 4096
EXPORT_INTERVAL_MS: Final = 2000
EXPORT_TIMEOUT_S: Final = 3.0
_W3C_HEADERS: Final = (b"traceparent", b"tracestate")


class _Sender:
    """Sends spans, and says once that they do not arrive, and once that they do again."""

    def __init__(self, exporter: SpanExporter, results: type[SpanExportResult]) -> None:
        self._exporter = exporter
        self._results = results
        self._arrives = True
        self._closing = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        if self._closing and not self._arrives:
            return self._results.FAILURE
        try:
            result = self._exporter.export(spans)
        except Exception:  # whatever it is, the thread that sends must live
            result = self._results.FAILURE
        arrives = result is self._results.SUCCESS
        if self._arrives and not arrives:
            logger.warning("the collector at OTLP_ENDPOINT does not take traces; they are dropped until it does")
        elif arrives and not self._arrives:
            logger.info("the collector at OTLP_ENDPOINT takes traces again")
        self._arrives = arrives
        return result

    def give_up_soon(self) -> None:
        """From now on the first failure is the last attempt."""
        self._closing = True

    def shutdown(self) -> None:
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        return self._exporter.force_flush(timeout_millis)


class Tracing:
    """Makes the traces of one process and sends them away."""

    def __init__(self, endpoint: str, sample_ratio: float, service_name: str) -> None:
        """Start the sender.

        Args:
            endpoint: ``http://host:4318/v1/traces``. What else the collector wants (headers, certificates) is read
                from OpenTelemetry's own environment variables (``OTEL_EXPORTER_OTLP_HEADERS``, ...).
            sample_ratio: Part of the requests traced, where the caller's traceparent has not decided.
            service_name: What the traces call this process.

        Raises:
            ConfigurationError: The endpoint is no HTTP address, or OpenTelemetry is not installed.
        """
        if not endpoint.startswith(("http://", "https://")):
            raise ConfigurationError("OTLP_ENDPOINT: must begin with http:// or https://; leave it empty for no traces")
        try:
            from opentelemetry import trace
            from opentelemetry.context import Context
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExportResult
            from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
        except ImportError as error:
            raise ConfigurationError(
                "OTLP_ENDPOINT: traces need OpenTelemetry; install metareward[tracing] or leave OTLP_ENDPOINT empty"
            ) from error
        # What they say of a failed export they say for every batch; `_Sender` says it once.
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
        self._sender = _Sender(OTLPSpanExporter(endpoint=endpoint, timeout=EXPORT_TIMEOUT_S), SpanExportResult)
        self._provider = TracerProvider(
            sampler=ParentBased(TraceIdRatioBased(sample_ratio)),
            resource=Resource.create({"service.name": service_name, "service.version": __version__}),
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(
            BatchSpanProcessor(
                self._sender,  # type: ignore[arg-type]  # their base class is imported nowhere else
                max_queue_size=MAX_QUEUED_SPANS,
                schedule_delay_millis=EXPORT_INTERVAL_MS,
                export_timeout_millis=EXPORT_TIMEOUT_S * 1e3,
            )
        )
        self._tracer = self._provider.get_tracer("metareward")
        self._propagator = TraceContextTextMapPropagator()
        self._nothing = Context()
        self._server = trace.SpanKind.SERVER
        self._error = trace.StatusCode.ERROR
        self._under: Callable[[Span, Context], Context] = trace.set_span_in_context

    def begin(self, method: str, request_id: str, headers: Iterable[tuple[bytes, bytes]]) -> RequestTrace:
        """The trace of a request that has arrived, below its caller's where its traceparent names one."""
        carrier = {name.decode(): value.decode("latin-1") for name, value in headers if name in _W3C_HEADERS}
        parent = self._propagator.extract(carrier, self._nothing)
        span = self._tracer.start_span(
            method,
            parent,
            self._server,
            {"http.request.method": method, "metareward.request_id": request_id},
        )
        return RequestTrace(self, method, span, self._under(span, self._nothing))

    def stage_span(self, stage: Stage, parent: Context, epoch_ns: int) -> tuple[Span, Context]:
        """A span of a stage that has ended; `epoch_ns` is when `time.perf_counter` was zero."""
        span = self._tracer.start_span(
            stage.name, parent, start_time=epoch_ns + int(stage.started * 1e9), attributes=dict(stage.attributes)
        )
        return span, self._under(span, parent)

    def headers(self, parent: Context) -> dict[str, str]:
        """What tells a server behind this one that its work belongs to the trace."""
        carrier: dict[str, str] = {}
        self._propagator.inject(carrier, parent)
        return carrier

    def fail(self, span: Span, kind: str) -> None:
        """Mark a span as failed. Only the type of the error is told: its message may quote anything."""
        span.set_attribute("error.type", kind)
        span.set_status(self._error)

    def close(self) -> None:
        """Send what waits, or drop it where the collector does not take it in time. Blocks that long."""
        self._sender.give_up_soon()
        self._provider.shutdown()


def open_tracing(endpoint: str, sample_ratio: float, service_name: str) -> Tracing | None:
    """A `Tracing`, or None without an endpoint; see there."""
    return Tracing(endpoint, sample_ratio, service_name) if endpoint else None


class RequestTrace:
    """The trace of one request: its server span, and a span below it for each stage."""

    __slots__ = ("_context", "_epoch_ns", "_method", "_span", "_tracing")

    def __init__(self, tracing: Tracing, method: str, span: Span, context_of_span: Context) -> None:
        self._tracing = tracing
        self._method = method
        self._span = span
        self._context = context_of_span
        self._epoch_ns = time.time_ns() - int(time.perf_counter() * 1e9)

    def stage(self, stage: Stage) -> None:
        """Tell a stage that has ended, and those inside it."""
        if not self._span.is_recording():
            return
        span, inside = self._tracing.stage_span(stage, self._context, self._epoch_ns)
        for inner in stage.inner:
            self._finish(self._tracing.stage_span(inner, inside, self._epoch_ns)[0], inner)
        self._finish(span, stage)

    def headers(self) -> dict[str, str]:
        """What tells a server behind this one that its work belongs to this trace."""
        return self._tracing.headers(self._context)

    def end(self, route: str, status: int) -> None:
        """The request was answered."""
        if not self._span.is_recording():
            return
        self._span.update_name(f"{self._method} {route}")
        self._span.set_attributes({"http.route": route, "http.response.status_code": status})
        if tenant := context.tenant.get():
            self._span.set_attribute("metareward.tenant", tenant)
        if status >= 500:
            self._tracing.fail(self._span, str(status))
        self._span.end()

    def _finish(self, span: Span, stage: Stage) -> None:
        if stage.error is not None:
            self._tracing.fail(span, stage.error.__qualname__)
        span.end(self._epoch_ns + int(stage.ended * 1e9))


def propagation_headers() -> dict[str, str]:
    """Headers for a request to another server on behalf of the current one: its id, and traceparent where traced."""
    headers: dict[str, str] = {}
    record = stages.current.get()
    if record is not None and record.trace is not None:
        headers = record.trace.headers()
    if request_id := context.request_id.get():
        headers["x-request-id"] = request_id
    return headers
