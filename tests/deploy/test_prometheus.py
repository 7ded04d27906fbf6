"""Prometheus' configuration, rules and alerts, as Prometheus' own tools judge them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from programs import ROOT, program, run
from prometheus_files import FOLDER, defined_series, rules, scrape_jobs, selectors

from service.observability.metrics import Metrics, WorkerMetrics
from service.settings import Settings

ALERTS = rules("alerts.yml", "alert")
TARGET_LABELS = {"job", "instance"}


def default(setting: str) -> object:
    return Settings.model_fields[setting].default


def test_promtool_accepts_the_configurations(tmp_path: Path) -> None:
    promtool = program("promtool")
    for file in ("prometheus.yml", "local.yml"):
        assert "SUCCESS" in run(promtool, "check", "config", FOLDER / file)
    # Debian's build knows no Kubernetes: everything but the discovery itself.
    for file in FOLDER.glob("*.yml"):
        text = file.read_text()
        discovery = re.search(r"    kubernetes_sd_configs:\n(?:      .*\n)+", text)
        (tmp_path / file.name).write_text(text.replace(discovery[0], "") if discovery else text)
    assert "SUCCESS" in run(promtool, "check", "config", tmp_path / "kubernetes.yml")


def test_the_alerts_fire_when_they_should_and_only_then() -> None:
    output = run(program("promtool"), "test", "rules", *sorted((FOLDER / "tests").glob("*.yml")))
    assert output.count("SUCCESS") == len(list((FOLDER / "tests").glob("*.yml")))


def test_every_alert_is_tested_firing_and_quiet() -> None:
    outcomes: dict[str, set[bool]] = {}
    for file in (FOLDER / "tests").glob("*.yml"):
        for case in yaml.safe_load(file.read_text())["tests"]:
            for check in case["promql_expr_test"]:
                if named := re.search(r'ALERTS\{alertname="(\w+)", alertstate="firing"\}', check["expr"]):
                    outcomes.setdefault(named[1], set()).add(bool(check["exp_samples"]))
    assert outcomes == {name: {True, False} for name in ALERTS}


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_says_what_to_do(name: str) -> None:
    alert = ALERTS[name]
    assert alert["labels"]["severity"] in {"page", "ticket"}
    assert set(alert["annotations"]) == {"summary", "description", "runbook"}
    assert "Look at" in alert["annotations"]["description"]
    assert re.fullmatch(r"docs/operations\.md#[a-z-]+", alert["annotations"]["runbook"])


def test_every_runbook_is_a_heading_of_the_operations_page() -> None:
    headings = re.findall(r"^#+ +(.+)$", (ROOT / "docs" / "operations.md").read_text(), re.MULTILINE)
    anchors = {re.sub(r"[^a-z0-9 _-]", "", heading.lower()).replace(" ", "-") for heading in headings}
    assert {alert["annotations"]["runbook"].partition("#")[2] for alert in ALERTS.values()} <= anchors


def test_rules_and_alerts_read_series_that_exist() -> None:
    series = defined_series(Metrics().registry, WorkerMetrics().registry)
    read = 0
    for rule in [*ALERTS.values(), *rules("rules.yml", "record").values()]:
        for name, labels in selectors(rule["expr"]):
            assert name in series, (rule, name)
            assert labels <= series[name] | TARGET_LABELS, (rule, labels)
            read += 1
    assert read > 40


def test_recorded_series_that_are_read_are_recorded() -> None:
    recorded = rules("rules.yml", "record")
    for alert in ALERTS.values():
        assert set(re.findall(r"\bmetareward:[a-z0-9_:]+", alert["expr"])) <= set(recorded)


def test_thresholds_follow_the_defaults_of_settings() -> None:
    assert f"* {default('max_queue_tokens')}" in ALERTS["MetarewardQueueNearlyFull"]["expr"]
    assert f">= {default('database_pool_size')}" in ALERTS["MetarewardDatabasePoolFull"]["expr"]
    assert f"* {default('max_in_flight')}" in ALERTS["MetarewardInFlightNearlyFull"]["expr"]


def test_the_jobs_scrape_the_ports_of_the_settings() -> None:
    jobs = scrape_jobs()
    ports = {name: job["dns_sd_configs"][0]["port"] for name, job in jobs.items() if "dns_sd_configs" in job}
    wanted = {"metareward-api": default("metrics_port"), "metareward-worker": default("worker_metrics_port")}
    assert ports == wanted
    local = {name: job["static_configs"][0]["targets"] for name, job in scrape_jobs("local.yml").items()}
    assert {name: local[name] for name in wanted} == {n: [f"localhost:{port}"] for n, port in wanted.items()}
