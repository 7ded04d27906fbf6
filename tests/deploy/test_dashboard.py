"""Every query of the dashboard and every series of an alert, in a real Prometheus that scrapes real processes."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
import yaml
from manifests import FOLDER as KUBERNETES
from programs import ROOT
from prometheus_files import rules, selectors
from prometheus_server import PrometheusServer
from redis_server import RedisServer
from test_grafana import QUERIES

from benchmarks.server import ServerProcess
from benchmarks.worker import WorkerProcess

PATIENCE_S = 60.0
SCORE = json.loads((ROOT / "examples" / "score.json").read_text())
ADAPT = json.loads((ROOT / "examples" / "adapt.json").read_text())


def metareward(*arguments: str, database_url: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "service", *arguments],
        env={**os.environ, "DATABASE_URL": database_url},
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.stdout.strip()


def wait_for(what: Callable[[], bool]) -> None:
    give_up_at = time.monotonic() + PATIENCE_S
    while not what():
        assert time.monotonic() < give_up_at
        time.sleep(0.2)


class Traffic:
    """A little of everything that a server is asked."""

    def __init__(self, api: httpx.Client, key: str, poor_key: str) -> None:
        self._api = api
        self._key, self._poor_key = key, poor_key
        self._asked = 0

    def score(self, key: str, *, fresh: bool) -> int:
        self._asked += fresh
        body = {**SCORE, "prompt": f"{SCORE['prompt']} ({self._asked})"} if fresh else SCORE
        return self._api.post("/score", json=body, headers={"Authorization": f"Bearer {key}"}).status_code

    def round(self) -> None:
        authorised = {"Authorization": f"Bearer {self._key}"}
        assert self.score(self._key, fresh=True) == 200
        assert self.score(self._key, fresh=False) == 200
        for headers in (authorised, {**authorised, "Idempotency-Key": "again"}):
            assert self._api.post("/users/ada/adapt", json=ADAPT, headers=headers).status_code == 200
        unknown = {**SCORE, "user_id": "nobody"}
        assert self._api.post("/score", json=unknown, headers=authorised).status_code == 200
        assert self._api.post("/score", json=SCORE).status_code == 401
        assert self.score(self._poor_key, fresh=False) in {200, 429}

    def rounds(self, count: int) -> None:
        for _ in range(count):
            self.round()
            time.sleep(0.5)


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrometheusServer]:
    """Prometheus after a little traffic, with a Redis and a worker that were away meanwhile."""
    folder: Path = tmp_path_factory.mktemp("dashboard")
    database_url = f"sqlite:///{folder / 'metareward.db'}"
    engine_key, redis = "k" * 32, RedisServer()
    redis.start()
    try:
        metareward("db", "upgrade", database_url=database_url)
        key = metareward("keys", "create", "--tenant", "acme", "--role", "adapt", database_url=database_url)
        metareward("tenants", "set", "poor", "--requests-per-minute", "2", database_url=database_url)
        poor_key = metareward("keys", "create", "--tenant", "poor", "--role", "score", database_url=database_url)
        with (
            WorkerProcess(folder, ENGINE_API_KEY=engine_key) as worker,
            ServerProcess(
                folder,
                AUTH="required",
                DATABASE_URL=database_url,
                REDIS_URL=redis.url,
                SECRET_KEY="s" * 32,
                ENGINE_URL=worker.url,
                ENGINE_API_KEY=engine_key,
                ENGINE_TIMEOUT_S="4",
            ) as server,
            server.client() as api,
            PrometheusServer(
                folder,
                {
                    "metareward-api": httpx.URL(server.metrics_url).netloc.decode(),
                    "metareward-worker": httpx.URL(worker.metrics_url).netloc.decode(),
                },
            ) as prometheus,
        ):
            traffic = Traffic(api, key, poor_key)
            wait_for(lambda: len(prometheus.query("up == 1")) == 2)
            traffic.rounds(4)
            redis.kill()
            traffic.rounds(2)
            redis.start()
            # Its metrics' port would be another one after a restart, so it is not stopped.
            worker.freeze()
            worker_away(traffic, key, prometheus)
            worker.thaw()
            wait_for(lambda: traffic.score(key, fresh=True) == 200)
            traffic.rounds(4)
            yield prometheus
    finally:
        redis.stop()


def worker_away(traffic: Traffic, key: str, prometheus: PrometheusServer) -> None:
    """Ask until the worker is ejected and Prometheus knows."""
    wait_for(
        lambda: (
            traffic.score(key, fresh=True) == 503 and bool(prometheus.query("sum(metareward_engine_ejections_total)"))
        )
    )


@pytest.mark.parametrize(("title", "target"), QUERIES, ids=[f"{t}-{q['refId']}" for t, q in QUERIES])
def test_a_query_of_the_dashboard_gives_numbers(
    prometheus: PrometheusServer, title: str, target: dict[str, str]
) -> None:
    found = prometheus.query(target["expr"].replace("$__rate_interval", "60s"))
    assert found, target["expr"]
    assert any(math.isfinite(float(series["value"][1])) for series in found), found
    labels = set().union(*(series["metric"] for series in found))
    for label in ("{{" + name + "}}" for name in labels | {"__name__"}):
        assert label not in target["legendFormat"] or label.strip("{}") in labels
    wanted = {part.partition("}}")[0] for part in target["legendFormat"].split("{{")[1:]}
    assert wanted <= labels or title == "Alerts"


def test_the_rules_are_evaluated_without_complaint(prometheus: PrometheusServer) -> None:
    found = {rule["name"]: rule for rule in prometheus.rules()}
    assert set(found) == {*rules("alerts.yml", "alert"), *rules("rules.yml", "record")}
    assert {name: rule.get("lastError") for name, rule in found.items() if rule["health"] != "ok"} == {}


@pytest.mark.parametrize("name", rules("alerts.yml", "alert"))
def test_an_alert_reads_series_that_are_there(prometheus: PrometheusServer, name: str) -> None:
    for series, labels in selectors(rules("alerts.yml", "alert")[name]["expr"]):
        chosen = ", ".join(f'{label}!=""' for label in sorted(labels))
        assert prometheus.query(f"count({series}{{{chosen}}})"), (series, labels)


@pytest.mark.parametrize("name", rules("rules.yml", "record"))
def test_a_recorded_series_has_numbers(prometheus: PrometheusServer, name: str) -> None:
    (found,) = prometheus.query(name)
    assert math.isfinite(float(found["value"][1]))


def test_the_query_of_the_workers_scaler_gives_numbers(prometheus: PrometheusServer) -> None:
    (rule,) = yaml.safe_load((KUBERNETES / "prometheus-adapter-rules.yaml").read_text())["rules"]
    query = rule["metricsQuery"].replace("<<.Series>>", rule["name"]["matches"]).replace("<<.GroupBy>>", "instance")
    (found,) = prometheus.query(query.replace("<<.LabelMatchers>>", 'job="metareward-worker"'))
    assert float(found["value"][1]) >= 0
