"""Every Prometheus metric of the server and of its worker, defined once. docs/metrics.md is made from this file."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, disable_created_metrics

from service.observability.stages import STAGES, Stage

# A `_created` series beside each counter doubles the page and tells nothing that is asked for.
disable_created_metrics()  # type: ignore[no-untyped-call]

# From a cached score (under a millisecond) to a large request on a slow backbone.
LATENCY_BUCKETS_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
TOKEN_BUCKETS = (16, 64, 256, 512, 1024, 2048, 4096, 8192, 16_384, 32_768, 65_536)
TEXT_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
# A few hundredths of a nat per choice are the most that changes of taste can cost a predictor of plain choices.
DRIFT_BUCKETS = (0.0, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
# A loss in nats that falls by ln 2 went from a coin's toss to certainty.
LOSS_BUCKETS = (-0.1, 0.0, 0.01, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 2.0)

PROBABILITY_BUCKETS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5)

# Loops that lag by more than a few milliseconds make every request of the process wait as long.
LAG_BUCKETS_S = (0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)

# The values of a label that are known before the first event, or None where they are not: series of known labels are
# there, at 0, from the first scrape on, so that a first event is a rate.
Labels: TypeAlias = Mapping[str, Sequence[str] | None]


@dataclass(frozen=True, slots=True)
class Description:
    """What docs/metrics.md says of one metric. `name` is that of the page, `_total` of a counter included."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    labels: Labels
    documentation: str


class _Family:
    """Makes metrics in one registry."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry or CollectorRegistry()
        self.descriptions: list[Description] = []
        if registry is None:
            ProcessCollector(registry=self.registry)

    def _counter(self, name: str, documentation: str, labels: Labels | None = None) -> Counter:
        metric = Counter(f"metareward_{name}", documentation, tuple(labels or ()), registry=self.registry)
        self._describe(f"{name}_total", "counter", documentation, labels, metric)
        return metric

    def _gauge(self, name: str, documentation: str, labels: Labels | None = None) -> Gauge:
        metric = Gauge(f"metareward_{name}", documentation, tuple(labels or ()), registry=self.registry)
        self._describe(name, "gauge", documentation, labels, metric)
        return metric

    def _histogram(
        self,
        name: str,
        documentation: str,
        labels: Labels | None = None,
        buckets: Sequence[float] = LATENCY_BUCKETS_S,
    ) -> Histogram:
        metric = Histogram(
            f"metareward_{name}", documentation, tuple(labels or ()), buckets=buckets, registry=self.registry
        )
        self._describe(name, "histogram", documentation, labels, metric)
        return metric

    def _describe(
        self,
        name: str,
        kind: Literal["counter", "gauge", "histogram"],
        documentation: str,
        labels: Labels | None,
        metric: Counter | Gauge | Histogram,
    ) -> None:
        self.descriptions.append(Description(f"metareward_{name}", kind, labels or {}, documentation))
        values = [values for values in (labels or {}).values() if values is not None]
        if values and len(values) == len(labels or {}):
            for combination in itertools.product(*values):
                metric.labels(*combination)


class WorkerMetrics(_Family):
    """What the one thread that owns the device does; of `metareward worker`, and of a server that runs its own."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        super().__init__(registry)
        self.batch_tokens = self._histogram(
            "batch_tokens", "Tokens computed in one forward pass, a common prefix once.", buckets=TOKEN_BUCKETS
        )
        self.shared_tokens = self._counter(
            "shared_tokens", "Tokens that needed no computation because texts of one batch began with the same ones."
        )
        self.batch_token_limit = self._gauge(
            "batch_token_limit", "Most tokens in one forward pass: MAX_BATCH_TOKENS, or what the memory has room for."
        )
        self.batch_texts = self._histogram("batch_texts", "Texts in one forward pass.", buckets=TEXT_BUCKETS)
        self.batch_jobs = self._histogram(
            "batch_jobs", "Requests whose texts are in one forward pass.", buckets=TEXT_BUCKETS
        )
        self.batch_seconds = self._histogram("batch_seconds", "Seconds of one forward pass, heads included.")
        self.queue_seconds = self._histogram("queue_seconds", "Seconds that a request's texts waited for the device.")
        self.window_seconds = self._histogram(
            "window_seconds", "Seconds that an idle device waited for texts of other callers, where it did."
        )
        self.worker_texts = self._counter(
            "worker_texts",
            "Texts that left the worker: answered; failed on the device; dropped because their caller had left; "
            "expired because their deadline passed in the queue.",
            {"result": ("answered", "failed", "dropped", "expired")},
        )
        self.batch_bisections = self._counter(
            "batch_bisections", "Forward passes that failed and were taken apart to find the texts to blame."
        )
        self.out_of_memory = self._counter("out_of_memory", "Forward passes for which the device had no memory.")
        self.worker_restarts = self._counter(
            "worker_restarts", "Times that the thread which owns the device died and was started again."
        )
        self.doubled_bos = self._counter(
            "doubled_bos",
            "Texts that began with more than one BOS; all but one were dropped, because they shift rewards.",
        )
        self.queue_tokens = self._gauge("queue_tokens", "Tokens accepted by the engine and not yet answered.")
        self.prefix_cache_bytes = self._gauge(
            "prefix_cache_bytes",
            "Device memory in keys and values of prompts that came before; PREFIX_CACHE_MB at most.",
        )
        self.prefix_cache_reused_tokens = self._gauge(
            "prefix_cache_reused_tokens", "Tokens since the start that needed no computation because they were kept."
        )
        self.healthy = self._gauge("worker_healthy", "1 while the engine answers.")
        self.self_check_difference = self._gauge(
            "selfcheck_difference",
            "How far golden texts were off at the last self-check, in units of a base reward's spread: a batch "
            "against one by one, a batch against one of other neighbours, and one by one against what the checkpoint "
            "recorded.",
            {"against": ("batched", "neighbours", "recorded")},
        )
        self.self_check_passed = self._gauge(
            "selfcheck_passed",
            "1 unless the last self-check found the engine's numbers wrong; 0 also before the first, while it loads.",
        )
        self.self_checks = self._counter(
            "selfchecks",
            "Self-checks of a running engine, on demand or periodic, for each worker; unavailable: no verdict, it was "
            "down, too busy or too slow.",
            {"result": ("passed", "failed", "unavailable")},
        )


class Metrics(_Family):
    """The metrics of one REST process, in a registry of their own (several servers may live in one test process)."""

    def __init__(self) -> None:
        super().__init__()
        self.worker = WorkerMetrics(self.registry)
        # Requests
        self.requests = self._counter(
            "requests",
            "Requests answered, by route template and status; 499: the client had left; 429: a quota, also where "
            "clients that give up at a 4xx are told 503.",
            {"route": None, "status": None},
        )
        self.request_seconds = self._histogram(
            "request_seconds", "Seconds from a request's headers to the end of its answer.", {"route": None}
        )
        self.in_flight = self._gauge("in_flight_requests", "Requests being worked on.")
        self.refusals = self._counter(
            "refusals",
            "Requests answered by 503: too many tokens wait for the engine, too much is in flight, too many changes of "
            "one user wait, the process ends.",
            {"reason": ("queue", "in_flight", "user", "draining")},
        )
        self.stage_seconds = self._histogram(
            "stage_seconds",
            "Seconds in one stage of a request: the user's state, the look-up of texts, tokenising, waiting for the "
            "engine, solving for weights, storing.",
            {"stage": STAGES},
        )
        self._stages = {name: self.stage_seconds.labels(name) for name in STAGES}
        # Scoring and adapting
        self.completions = self._counter("completions_scored", "Completions that were rewarded, by whatever path.")
        self.users_scored = self._counter(
            "users_scored",
            "Items scored (a text by itself is one), by standing of their user; stale: from memory while the database "
            "does not answer; population: nobody was named.",
            {"standing": ("adapted", "cold_start", "stale", "population")},
        )
        self.pairs_adapted = self._counter("pairs_stored", "Pairs, ratings and rankings stored.")
        self.adaptations = self._counter(
            "adaptations",
            "Adaptations answered, those to feedback among them; replayed: a repeated Idempotency-Key.",
            {"result": ("stored", "replayed")},
        )
        self.user_changes = self._counter(
            "user_changes",
            "Changes of what users said, by cause: adapt, replace, feedback, delete, rollback, reset, forget.",
            {"cause": None},
        )
        self.adapt_loss_delta = self._histogram(
            "adapt_loss_delta",
            "How far an adaptation lowered the loss of a user's own pairs, in nats a pair (it may rise: no `_sum`).",
            buckets=LOSS_BUCKETS,
        )
        self.user_drift = self._histogram(
            "user_drift",
            "Nats per recent choice by which forgetting predicts a user better; 0: taste as before. Of one user a "
            "second who adapts, and said enough to tell; of all of them with HALF_LIFE=auto.",
            buckets=DRIFT_BUCKETS,
        )
        self.feedback_events = self._counter(
            "feedback_events",
            "Events of users that were stored, by what they did.",
            {"source": ("chosen", "regenerated", "copied", "edited", "dwell", "thumbs")},
        )
        self.suggestions = self._counter("suggestions", "Questions that /suggest would ask users.")
        # Checkpoints
        self.checkpoint_active = self._gauge(
            "checkpoint_active",
            "1 for the loaded checkpoint that answers, 0 for the others.",
            {"checkpoint": None, "name": None},
        )
        self.checkpoint_shadow = self._gauge(
            "checkpoint_shadow",
            "1 for the loaded checkpoint that scores beside the one that answers, 0 for the others.",
            {"checkpoint": None, "name": None},
        )
        self.checkpoint_missing = self._gauge(
            "checkpoint_missing", "1 while the checkpoint that all replicas are to answer with is not loaded here."
        )
        self.shadow_requests = self._counter(
            "shadow_requests",
            "Requests to /score that the shadow was to score too; dropped: too many were under way.",
            {"result": ("compared", "dropped", "failed")},
        )
        self.shadow_best = self._counter(
            "shadow_best",
            "Items that both checkpoints scored, by whether they found the same completion best.",
            {"agreement": ("same", "other")},
        )
        self.shadow_pairs = self._counter(
            "shadow_pairs",
            "Pairs of completions that both checkpoints ordered, by whether they ordered them alike.",
            {"agreement": ("same", "other")},
        )
        self.shadow_difference = self._histogram(
            "shadow_probability_difference",
            "How far apart the probabilities of preference of an item's pairs are, mean over pairs.",
            buckets=PROBABILITY_BUCKETS,
        )
        self.carried_users = self._counter(
            "users_carried",
            "Users of another checkpoint that were solved for under one that scores, by what they said: exact, it was "
            "measured with its heads; linear, some went through a map; retained, measured anew; start, none reaches.",
            {"how": ("exact", "linear", "retained", "start")},
        )
        self.left_out = self._counter(
            "evidence_left_out", "Statements of carried users that no heads and no map reached."
        )
        # Caches
        self.base_reward_cache = self._counter(
            "base_reward_cache",
            "Texts looked up; what memory misses, Redis is asked, where there is one.",
            {"level": ("memory", "redis"), "result": ("hit", "miss")},
        )
        self.joined_texts = self._counter(
            "joined_texts",
            "Texts that another replica was computing: answered by it; late, so that this one computed them too.",
            {"result": ("answered", "late")},
        )
        self.user_cache = self._counter(
            "user_cache",
            "Users looked up; what memory misses, Redis is asked, where there is one.",
            {"level": ("memory", "redis"), "result": ("hit", "miss")},
        )
        # Dependencies
        self.dependency_up = self._gauge(
            "dependency_up",
            "1 while a dependency answers: database, redis, engine; none that is not configured.",
            {"dependency": None},
        )
        self.redis_seconds = self._histogram("redis_seconds", "Seconds of one call to Redis.", {"operation": None})
        self.redis_errors = self._counter(
            "redis_errors",
            "Calls to Redis that failed, by reason: timeout, connection, refused; circuit_open: not tried, because "
            "others failed; queue_full: a write given up.",
            {"operation": None, "reason": None},
        )
        self.engine_workers_up = self._gauge(
            "engine_worker_up", "1 while a remote worker takes texts.", {"worker": None}
        )
        self.engine_worker_tokens = self._gauge(
            "engine_worker_queue_tokens", "Tokens sent to a remote worker and not yet answered.", {"worker": None}
        )
        self.engine_ejections = self._counter(
            "engine_ejections",
            "Times a remote worker was taken out, by reason: connection, timeout, status, model, golden, answer.",
            {"worker": None, "reason": None},
        )
        self.engine_self_check_difference = self._gauge(
            "engine_selfcheck_difference",
            "The same as selfcheck_difference, of a remote worker as this process last checked it.",
            {"worker": None, "against": None},
        )
        self.engine_retries = self._counter("engine_retries", "Texts sent again to another remote worker.")
        # Callers
        self.authentications = self._counter(
            "authentications",
            "Requests by what became of their key; stale: known from before, while the database does not answer.",
            {"result": ("ok", "stale", "missing", "unknown", "revoked", "expired", "role", "unavailable")},
        )
        self.tenant_requests = self._counter("tenant_requests", "Requests let in, by tenant.", {"tenant": None})
        self.tenant_tokens = self._counter(
            "tenant_tokens", "Tokens that the engine computed, by tenant.", {"tenant": None}
        )
        self.quota_refusals = self._counter(
            "quota_refusals",
            "Requests refused for a quota, by tenant and quota: requests, tokens, users.",
            {"tenant": None, "quota": None},
        )
        # Life
        self.build = self._gauge(
            "build_info", "Always 1; its labels say what serves.", {"version": None, "checkpoint": None, "heads": None}
        )
        self.draining = self._gauge("draining", "1 while the process ends: it answers, but wants no more.")
        self.event_loop_lag = self._histogram(
            "event_loop_lag_seconds",
            "How late the event loop was for an appointment, four times a second.",
            buckets=LAG_BUCKETS_S,
        )
        self.database_connections = self._gauge(
            "database_connections",
            "Connections of the pool in use; at most DATABASE_POOL_SIZE, and 3 for keys and /ready.",
        )

    def stage(self, name: str) -> Stage:
        """The clock of one stage of the current request; see `service/observability/stages.py`."""
        return Stage(name, self._stages[name])
