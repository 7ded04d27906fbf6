"""Every Prometheus metric of the server and of its worker, defined once. docs/metrics.md is made from this file."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, disable_created_metrics

# A `_created` series beside each counter doubles the page and tells nothing that is asked for.
disable_created_metrics()  # type: ignore[no-untyped-call]

# From a cached score (under a millisecond) to a large request on a slow backbone.
LATENCY_BUCKETS_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
TOKEN_BUCKETS = (16, 64, 256, 512, 1024, 2048, 4096, 8192, 16_384, 32_768, 65_536)
TEXT_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
# A loss in nats that falls by ln 2 went from a coin's toss to certainty.
LOSS_BUCKETS = (-0.1, 0.0, 0.01, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 2.0)


class _Family:
    """Makes metrics in one registry."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()

    def _counter(self, name: str, documentation: str, labels: Sequence[str] = ()) -> Counter:
        return Counter(f"metareward_{name}", documentation, labels, registry=self.registry)

    def _gauge(self, name: str, documentation: str, labels: Sequence[str] = ()) -> Gauge:
        return Gauge(f"metareward_{name}", documentation, labels, registry=self.registry)

    def _histogram(
        self, name: str, documentation: str, labels: Sequence[str] = (), buckets: Sequence[float] = LATENCY_BUCKETS_S
    ) -> Histogram:
        return Histogram(f"metareward_{name}", documentation, labels, buckets=buckets, registry=self.registry)

    def watch(self, name: str, documentation: str, read: Callable[[], float]) -> None:
        """A gauge whose value is read when Prometheus asks."""
        Gauge(f"metareward_{name}", documentation, registry=self.registry).set_function(read)


class WorkerMetrics(_Family):
    """What the one thread that owns the device does; of `metareward worker`, and of a server that runs its own."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        super().__init__()
        if registry is not None:
            self.registry = registry
        else:
            ProcessCollector(registry=self.registry)
        self.batch_tokens = self._histogram("batch_tokens", "Tokens in one forward pass.", buckets=TOKEN_BUCKETS)
        self.batch_texts = self._histogram("batch_texts", "Texts in one forward pass.", buckets=TEXT_BUCKETS)
        self.batch_seconds = self._histogram("batch_seconds", "Seconds of one forward pass, heads included.")
        self.queue_seconds = self._histogram("queue_seconds", "Seconds that a text waited for the device.")
        self.worker_texts = self._counter(
            "worker_texts", "Texts that left the worker, by result: answered, failed, dropped.", ["result"]
        )
        self.self_check_difference = self._gauge(
            "selfcheck_difference",
            "Golden texts at the last self-check, in units of a base reward's spread; against: batched, recorded.",
            ["against"],
        )


class Metrics(_Family):
    """The metrics of one REST process, in a registry of their own (several servers may live in one test process)."""

    def __init__(self) -> None:
        super().__init__()
        ProcessCollector(registry=self.registry)
        self.worker = WorkerMetrics(self.registry)
        # Requests
        self.requests = self._counter("requests", "Requests answered.", ["route", "status"])
        self.request_seconds = self._histogram(
            "request_seconds", "Seconds from a request's first byte to its answer.", ["route"]
        )
        self.in_flight = self._gauge("in_flight_requests", "Requests being worked on.")
        self.refusals = self._counter(
            "refusals", "Requests refused before any work, by reason: queue, in_flight, draining.", ["reason"]
        )
        self.stage_seconds = self._histogram(
            "stage_seconds",
            "Seconds in one stage of a request: user, cache, tokenise, engine, solve, store.",
            ["stage"],
        )
        # Scoring and adapting
        self.completions = self._counter("completions_scored", "Completions that /score rewarded.")
        self.users_scored = self._counter(
            "users_scored", "Users resolved by /score, by standing: adapted, cold_start, stale.", ["standing"]
        )
        self.pairs_adapted = self._counter("pairs_stored", "Preference pairs stored.")
        self.adaptations = self._counter(
            "adaptations", "Adaptations answered, by result: stored, replayed.", ["result"]
        )
        self.adapt_loss_delta = self._histogram(
            "adapt_loss_delta",
            "How far an adaptation lowered the loss of the user's own pairs (nats a pair).",
            buckets=LOSS_BUCKETS,
        )
        # Caches
        self.base_reward_cache = self._counter(
            "base_reward_cache",
            "Texts looked up, by level (memory, redis) and result (hit, miss).",
            ["level", "result"],
        )
        self.user_cache = self._counter(
            "user_cache", "Users looked up, by level (memory, redis) and result (hit, miss).", ["level", "result"]
        )
        # Dependencies
        self.dependency_up = self._gauge(
            "dependency_up", "1 while a dependency answers: database, redis, engine.", ["dependency"]
        )
        self.redis_seconds = self._histogram("redis_seconds", "Seconds of one call to Redis.", ["operation"])
        self.redis_errors = self._counter(
            "redis_errors",
            "Calls to Redis that failed, by operation and reason: timeout, connection, circuit_open, refused.",
            ["operation", "reason"],
        )
        self.engine_workers_up = self._gauge("engine_worker_up", "1 while a remote worker takes texts.", ["worker"])
        self.engine_worker_tokens = self._gauge(
            "engine_worker_queue_tokens", "Tokens sent to a remote worker and not yet answered.", ["worker"]
        )
        self.engine_ejections = self._counter(
            "engine_ejections",
            "Times a remote worker was taken out, by reason: connection, timeout, status, model, golden, answer.",
            ["worker", "reason"],
        )
        self.engine_retries = self._counter("engine_retries", "Texts sent again to another remote worker.")
        # Callers
        self.authentications = self._counter(
            "authentications",
            "Requests by what became of their key: ok, stale, missing, unknown, revoked, role, unavailable.",
            ["result"],
        )
        self.tenant_requests = self._counter("tenant_requests", "Requests let in, by tenant.", ["tenant"])
        self.tenant_tokens = self._counter("tenant_tokens", "Tokens that the engine computed, by tenant.", ["tenant"])
        self.quota_refusals = self._counter(
            "quota_refusals",
            "Requests refused with 429, by tenant and quota: requests, tokens, users.",
            ["tenant", "quota"],
        )
        # Life
        self.build = self._gauge("build_info", "Always 1; labels say what serves.", ["version", "checkpoint", "heads"])
