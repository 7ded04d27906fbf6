"""Every Prometheus metric of the server, defined once."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics

# A `_created` series beside each counter doubles the page and tells nothing that is asked for.
disable_created_metrics()  # type: ignore[no-untyped-call]

# From a cached score (under a millisecond) to a large request on a slow backbone.
LATENCY_BUCKETS_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Metrics:
    """The metrics of one server, in a registry of their own (several servers may live in one test process)."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "metareward_requests", "Requests answered.", ["route", "status"], registry=self.registry
        )
        self.request_seconds = Histogram(
            "metareward_request_seconds",
            "Seconds from a request's first byte to its answer.",
            ["route"],
            buckets=LATENCY_BUCKETS_S,
            registry=self.registry,
        )
        self.stage_seconds = Histogram(
            "metareward_stage_seconds",
            "Seconds in one stage of a request: user, tokenise, engine, solve, store.",
            ["stage"],
            buckets=LATENCY_BUCKETS_S,
            registry=self.registry,
        )
        self.base_reward_cache = Counter(
            "metareward_base_reward_cache",
            "Texts looked up in the base reward cache, by result: hit, miss.",
            ["result"],
            registry=self.registry,
        )
        self.user_cache = Counter(
            "metareward_user_cache",
            "Users looked up in the in-process cache, by result: hit, miss.",
            ["result"],
            registry=self.registry,
        )
        self.completions = Counter(
            "metareward_completions_scored", "Completions that /score rewarded.", registry=self.registry
        )
        self.users_scored = Counter(
            "metareward_users_scored",
            "Users resolved by /score, by standing: adapted, cold_start, stale.",
            ["standing"],
            registry=self.registry,
        )
        self.pairs_adapted = Counter("metareward_pairs_stored", "Preference pairs stored.", registry=self.registry)
        self.adaptations = Counter(
            "metareward_adaptations",
            "Adaptations answered, by result: stored, replayed.",
            ["result"],
            registry=self.registry,
        )

    def watch(self, name: str, documentation: str, read: Callable[[], float]) -> None:
        """A gauge whose value is read when Prometheus asks."""
        Gauge(name, documentation, registry=self.registry).set_function(read)
