"""A request as its observers see it: counted, timed, logged and traced, from one beginning and one end."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from prometheus_client import Counter, Histogram

from service.observability import context, stages
from service.observability.access_log import AccessLog, AccessLogMode
from service.observability.metrics import Metrics
from service.observability.stages import RequestRecord

if TYPE_CHECKING:
    from service.observability.tracing import RequestTrace, Tracing


# A tenant's used-up quota is no failure of this server's, also where its clients must be told 503.
_QUOTA: Final = "quota-exceeded"
_QUOTA_STATUS: Final = 429


class ObservedRequest:
    """One request between `RequestObserver.begin` and `RequestObserver.end`."""

    __slots__ = ("bytes_out", "record", "started", "trace")

    def __init__(self, record: RequestRecord, trace: RequestTrace | None) -> None:
        self.started = time.perf_counter()
        self.bytes_out = 0
        self.record = record
        self.trace = trace


class RequestObserver:
    """Counts, times, logs and traces every request of one server."""

    def __init__(
        self, metrics: Metrics | None, access_log: AccessLogMode = "off", tracing: Tracing | None = None
    ) -> None:
        """`metrics` is None where requests are not counted, as in a worker, which counts texts."""
        self._metrics = metrics
        # Looking labels up costs more than counting. As many as there are routes and statuses.
        self._series: dict[tuple[str, int], tuple[Counter, Histogram]] = {}
        self._access_log = AccessLog(access_log)
        self._tracing = tracing

    def begin(self, method: str, request_id: str, headers: Iterable[tuple[bytes, bytes]]) -> ObservedRequest:
        """A request has arrived. Everything that its task logs from now on names it."""
        context.request_id.set(request_id)
        # The next request of a connection may begin in the context of the one before.
        context.tenant.set("")
        context.key_id.set("")
        trace = None if self._tracing is None else self._tracing.begin(method, request_id, headers)
        record = RequestRecord(trace)
        stages.current.set(record)
        return ObservedRequest(record, trace)

    def end(
        self, request: ObservedRequest, method: str, route: str, status: int, bytes_in: int, problem: str = ""
    ) -> None:
        """It was answered.

        Args:
            request: What `begin` gave.
            method: GET, POST, ...
            route: The template that matched, never the path: paths hold user ids.
            status: What was answered; 499 where the client had left.
            bytes_in: Of its body.
            problem: The kind of problem that it was answered with; empty for none.
        """
        seconds = time.perf_counter() - request.started
        if self._metrics is not None:
            counted = _QUOTA_STATUS if problem == _QUOTA else status
            series = self._series.get((route, counted))
            if series is None:
                series = self._metrics.requests.labels(route, str(counted)), self._metrics.request_seconds.labels(route)
                self._series[route, counted] = series
            series[0].inc()
            series[1].observe(seconds)
        self._access_log.note(
            method,
            route,
            status,
            seconds,
            bytes_in=bytes_in,
            bytes_out=request.bytes_out,
            stages=request.record.stages,
            problem=problem,
        )
        if request.trace is not None:
            request.trace.end(route, status)
