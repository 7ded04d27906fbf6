"""Every metric of docs/metrics.md on the /metrics of real processes, moved by what it says it counts."""

from __future__ import annotations

import re
import runpy
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from otlp_collector import OtlpCollector
from prometheus_client.parser import text_string_to_metric_families
from redis_server import RedisServer

from benchmarks.server import ServerProcess
from benchmarks.worker import WorkerProcess
from service.observability import metrics_server
from service.observability.metrics import Description, Metrics, WorkerMetrics
from service.observability.metrics_server import MetricsServer

ROOT = Path(__file__).resolve().parents[2]

# What only failures and overload move; the tests of these failures look at them.
QUIET = {
    "metareward_refusals_total",
    "metareward_redis_errors_total",
    "metareward_engine_ejections_total",
    "metareward_engine_retries_total",
    "metareward_quota_refusals_total",
    "metareward_draining",
    "metareward_batch_bisections_total",
    "metareward_out_of_memory_total",
    "metareward_worker_restarts_total",
}
# What a small load on MiniLM does not come to: it shares no prefixes and has no BOS, one caller waits for nobody, and
# nobody asks for another self-check than the one at the start.
UNEARNED = {
    "metareward_shared_tokens_total",
    "metareward_prefix_cache_bytes",
    "metareward_prefix_cache_reused_tokens",
    "metareward_window_seconds",
    "metareward_doubled_bos_total",
    "metareward_joined_texts_total",
    "metareward_selfchecks_total",
    # Needs twelve choices of different times.
    "metareward_user_drift",
    # Need a second checkpoint.
    "metareward_checkpoint_shadow",
    "metareward_checkpoint_missing",
    "metareward_shadow_requests_total",
    "metareward_shadow_best_total",
    "metareward_shadow_pairs_total",
    "metareward_shadow_probability_difference",
    "metareward_users_carried_total",
    "metareward_evidence_left_out_total",
}
# Gauges that a small load leaves at 0 between two scrapes.
AT_REST = {
    "metareward_in_flight_requests",
    "metareward_queue_tokens",
    "metareward_engine_worker_queue_tokens",
    "metareward_database_connections",
}
REMOTE = {metric for metric in (d.name for d in Metrics().descriptions) if metric.startswith("metareward_engine_")}

Samples = dict[str, dict[tuple[tuple[str, str], ...], float]]


def scrape(process: ServerProcess) -> Samples:
    """Values by sample name and labels."""
    found: Samples = {}
    for family in text_string_to_metric_families(httpx.get(process.metrics_url).text):
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
    return found


def series_of(metric: Description) -> str:
    return f"{metric.name}_count" if metric.kind == "histogram" else metric.name


def load(client: httpx.Client) -> None:
    score: dict[str, Any] = {"user_id": "somebody", "prompt": "Why?", "completions": ["Because.", "Nobody knows."]}
    pairs = {"pairs": [{"prompt": "Why?", "chosen": "Because.", "rejected": "Nobody knows."}]}
    for number in (1, 2):
        assert client.post("/score", json=score, headers={"X-Request-ID": f"score-{number}"}).status_code == 200
        answer = client.post("/users/somebody/adapt", json=pairs, headers={"Idempotency-Key": "k"})
        assert answer.status_code == 200
    assert client.post("/score", json=score | {"min_version": 1}).json()["user_state"] == "adapted"
    candidates = [{"prompt": "Why?", "completions": ["Because.", "It depends."]}]
    asked = client.post("/users/somebody/suggest", json={"candidates": candidates}).json()
    assert [(each["a"], each["b"]) for each in asked["suggestions"]] == [(0, 1)]
    copied = {"type": "copied", "prompt": "Why?", "completion": "Because."}
    assert client.post("/users/somebody/feedback", json={"events": [copied]}).status_code == 200
    assert client.post("/score", json=score, headers={"Authorization": "Bearer wrong"}).status_code == 401
    assert client.get("/ready").status_code == 200


@pytest.fixture(scope="module")
def collector() -> Iterator[OtlpCollector]:
    with OtlpCollector() as collector:
        yield collector


@pytest.fixture(scope="module")
def processes(
    tmp_path_factory: pytest.TempPathFactory, redis_server: RedisServer, collector: OtlpCollector
) -> Iterator[dict[str, tuple[Samples, Samples, ServerProcess]]]:
    """Each kind of process before and after a small load: an API with all in one, an API over a worker, the worker."""
    folder = tmp_path_factory.mktemp("metrics")
    redis_server.flush()
    with (
        ServerProcess(folder / "alone", REDIS_URL=redis_server.url, SECRET_KEY="s" * 64) as alone,
        WorkerProcess(folder / "worker", OTLP_ENDPOINT=collector.url, ACCESS_LOG="all") as worker,
        ServerProcess(folder / "over", OTLP_ENDPOINT=collector.url, ENGINE_URL=worker.url) as over,
    ):
        before = {"alone": scrape(alone), "over": scrape(over), "worker": scrape(worker)}
        for server in (alone, over):
            with server.client() as client:
                load(client)
        parts = {"alone": alone, "over": over, "worker": worker}
        yield {name: (before[name], scrape(process), process) for name, process in parts.items()}


@pytest.mark.parametrize("name", ["alone", "over", "worker"])
def test_every_metric_of_the_page_is_there_and_moves(
    name: str, processes: dict[str, tuple[Samples, Samples, ServerProcess]]
) -> None:
    before, after, _ = processes[name]
    metrics = Metrics()
    described = (
        [*metrics.descriptions, *metrics.worker.descriptions] if name != "worker" else WorkerMetrics().descriptions
    )
    elsewhere = {
        "alone": REMOTE,
        "over": {d.name for d in metrics.worker.descriptions if d.name != "metareward_worker_healthy"}
        | {"metareward_redis_seconds"},
        "worker": set(),
    }[name]
    still = []
    for metric in described:
        if metric.name in QUIET | UNEARNED | AT_REST | elsewhere:
            continue
        values = after.get(series_of(metric), {})
        if metric.kind == "gauge":
            moved = any(value != 0 for value in values.values())
        else:
            moved = sum(values.values()) > sum(before.get(series_of(metric), {}).values())
        if not moved:
            still.append(metric.name)
    assert still == []


@pytest.mark.parametrize("name", ["alone", "worker"])
def test_series_that_can_be_known_are_there_from_the_first_scrape(
    name: str, processes: dict[str, tuple[Samples, Samples, ServerProcess]]
) -> None:
    before, _, _ = processes[name]
    described = Metrics().descriptions if name == "alone" else WorkerMetrics().descriptions
    for metric in described:
        if all(values is not None for values in metric.labels.values()):
            expected = 1
            for values in metric.labels.values():
                expected *= len(values or ())
            assert len(before[series_of(metric)]) == expected, metric.name


def test_the_numbers_are_those_of_the_load(processes: dict[str, tuple[Samples, Samples, ServerProcess]]) -> None:
    before, after, _ = processes["alone"]

    def grew(name: str, **labels: str) -> float:
        key = tuple(sorted(labels.items()))
        return after[name][key] - before.get(name, {}).get(key, 0.0)

    assert grew("metareward_requests_total", route="/score", status="200") == 3
    assert grew("metareward_requests_total", route="/users/{user_id}/adapt", status="200") == 2
    assert grew("metareward_adaptations_total", result="stored") == 2  # one of them by feedback
    assert grew("metareward_adaptations_total", result="replayed") == 1
    assert grew("metareward_pairs_stored_total") == 2
    assert grew("metareward_adapt_loss_delta_count") == 2
    assert grew("metareward_adapt_loss_delta_bucket", le="0.0") == 0
    assert grew("metareward_adapt_loss_delta_bucket", le="+Inf") == 2
    assert grew("metareward_feedback_events_total", source="copied") == 1
    assert grew("metareward_suggestions_total") == 1
    assert grew("metareward_completions_scored_total") == 6
    assert grew("metareward_users_scored_total", standing="cold_start") == 1
    assert grew("metareward_users_scored_total", standing="adapted") == 2
    assert grew("metareward_worker_texts_total", result="answered") == 3
    for stage, times in {"user": 4, "cache": 7, "tokenise": 2, "engine": 2, "solve": 2, "store": 3}.items():
        assert grew("metareward_stage_seconds_count", stage=stage) == times, stage
    assert "somebody" not in str(after)


def test_a_workers_log_and_traces_name_the_request_that_set_it_to_work(
    processes: dict[str, tuple[Samples, Samples, ServerProcess]], collector: OtlpCollector
) -> None:
    spans = collector.trees("score-1", count=2)
    ((root, below),) = [(root, below) for root, below in spans if not root.parent_span_id]
    assert root.name == "POST /score"
    assert sorted(span.name for span, _ in below) == ["POST /classify", "cache", "engine", "tokenise", "user"]
    worker = processes["worker"][2]
    assert any("POST /classify 200" in line and "score-1" in line for line in worker.output.splitlines())


def test_the_page_asks_only_for_metrics_that_there_are() -> None:
    page = runpy.run_path(str(ROOT / "docs/generate.py"))["QUESTIONS"]
    metrics = Metrics()
    series = {
        name
        for metric in (*metrics.descriptions, *metrics.worker.descriptions)
        for name in (metric.name, *(f"{metric.name}_{part}" for part in ("bucket", "sum", "count")))
    }
    asked = set(re.findall(r"metareward_\w+", page))
    assert asked - series == set()
    assert len(asked) > 15


def test_the_port_of_the_metrics_answers_nothing_else(
    processes: dict[str, tuple[Samples, Samples, ServerProcess]],
) -> None:
    url = processes["alone"][2].metrics_url
    assert httpx.get(url.replace("/metrics", "/")).status_code == 404
    assert httpx.post(url).status_code == 501
    assert httpx.get(f"{url}?name=x").status_code == 200


def test_scrapers_that_hang_hold_up_nobody_and_are_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_server._Handler, "timeout", 0.5)
    server = MetricsServer(Metrics(), "127.0.0.1", 0)
    hanging = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(20)]
    try:
        assert httpx.get(f"http://127.0.0.1:{server.port}/metrics").status_code == 200
        for connection in hanging:
            connection.settimeout(30)
            assert connection.recv(1) == b""  # closed by the server
    finally:
        for connection in hanging:
            connection.close()
        began = time.monotonic()
        server.close()
    assert time.monotonic() - began < 20
