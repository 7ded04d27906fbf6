"""Writes dashboards/metareward.json: `python deploy/grafana/dashboard.py`. The rows and panels are the lists below."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FILE = Path(__file__).parent / "dashboards" / "metareward.json"
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
WIDTH, HEIGHT = 24, 8
JOBS = 'job=~"metareward-.*"'


@dataclass(frozen=True)
class Panel:
    """One panel: `queries` are (PromQL, legend); `unit` is Grafana's name of one."""

    title: str
    queries: tuple[tuple[str, str], ...]
    unit: str = "short"
    description: str = ""
    kind: str = "timeseries"
    most: float | None = None


def rate(series: str, by: str = "", labels: str = "") -> str:
    """Its increase a second, summed."""
    return f"sum{f' by ({by})' if by else ''} (rate(metareward_{series}{{{labels}}}[$__rate_interval]))".replace(
        "{}", ""
    )


def quantile(q: float, series: str, by: str = "", labels: str = "") -> str:
    """A quantile of a histogram."""
    return f"histogram_quantile({q}, {rate(f'{series}_bucket', f'le, {by}'.rstrip(', '), labels)})"


def ratio(series: str, of: str, by: str) -> str:
    """The part of a counter that has the labels `of`."""
    return f"{rate(series, by, of)} / {rate(series, by)}"


def parts(series: str, by: str) -> str:
    """How a counter divides among the values of a label."""
    return f"{rate(series, by)} / ignoring ({by}) group_left {rate(series)}"


def quantiles(series: str, labels: str = "") -> tuple[tuple[str, str], ...]:
    """Median, p95 and p99."""
    return tuple((quantile(q, series, "", labels), f"p{q * 100:g}") for q in (0.5, 0.95, 0.99))


NO_GAIN = rate("adapt_loss_delta_bucket", labels='le="0.0"')

ROWS: dict[str, list[Panel]] = {
    "Overview": [
        Panel(
            "Requests", ((rate("requests_total", "status"), "{{status}}"),), "reqps", "By status; 499: the client left."
        ),
        Panel(
            "Error ratio",
            (("metareward:error_ratio:rate5m", "5 minutes"), ("metareward:error_ratio:rate1h", "1 hour")),
            "percentunit",
            "Answers 5xx among all. The objective is 0.1 %.",
        ),
        Panel(
            "Replicas",
            (
                ('sum(up{job="metareward-api"})', "API answers"),
                ('sum(metareward_worker_healthy{job="metareward-api"})', "API with a healthy engine"),
                ('sum(up{job="metareward-worker"})', "workers answer"),
                ("sum(metareward_draining)", "draining"),
            ),
        ),
        Panel(
            "What serves",
            (
                (
                    "count by (version, checkpoint, heads) (metareward_build_info)",
                    "{{checkpoint}} {{version}} {{heads}}",
                ),
            ),
            description="More than one line for long: replicas disagree.",
        ),
    ],
    "Latency": [
        Panel("POST /score", quantiles("request_seconds", 'route="/score"'), "s"),
        Panel("By route, p99", ((quantile(0.99, "request_seconds", "route"), "{{route}}"),), "s"),
        Panel("By stage, p95", ((quantile(0.95, "stage_seconds", "stage"), "{{stage}}"),), "s"),
        Panel(
            "Slow scores",
            (("metareward:slow_score_ratio:rate5m", "5 minutes"), ("metareward:slow_score_ratio:rate1h", "1 hour")),
            "percentunit",
            "POST /score beyond half a second. The objective is 1 %.",
        ),
    ],
    "Load": [
        Panel("In flight", (("sum by (instance) (metareward_in_flight_requests)", "{{instance}}"),)),
        Panel(
            "Refused for overload", ((rate("refusals_total", "reason"), "{{reason}}"),), "reqps", "503 before any work."
        ),
        Panel("Tokens waiting", (("sum by (job, instance) (metareward_queue_tokens)", "{{job}} {{instance}}"),)),
        Panel("Event loop lag, p99", ((quantile(0.99, "event_loop_lag_seconds", "instance"), "{{instance}}"),), "s"),
    ],
    "Engine": [
        Panel("Texts", ((rate("worker_texts_total", "result"), "{{result}}"),), "ops"),
        Panel(
            "Batch",
            (
                (f"{rate('batch_tokens_sum')} / {rate('batch_tokens_count')}", "tokens, mean"),
                (f"{rate('batch_texts_sum')} / {rate('batch_texts_count')}", "texts, mean"),
            ),
        ),
        Panel("Forward pass", quantiles("batch_seconds"), "s"),
        Panel("Wait for the device", quantiles("queue_seconds"), "s"),
        Panel("Tokens computed", ((rate("batch_tokens_sum", "instance"), "{{instance}}"),), "ops", "A second."),
        Panel("Workers that take texts", (("max by (worker) (metareward_engine_worker_up)", "{{worker}}"),)),
        Panel("Tokens at each worker", (("sum by (worker) (metareward_engine_worker_queue_tokens)", "{{worker}}"),)),
        Panel(
            "Ejections",
            (
                (rate("engine_ejections_total", "worker, reason"), "{{worker}} {{reason}}"),
                (rate("engine_retries_total"), "texts sent again"),
            ),
            "ops",
        ),
        Panel(
            "Self-check",
            (("max by (instance, against) (metareward_selfcheck_difference)", "{{instance}} {{against}}"),),
            description="Golden texts, in units of a base reward's spread; the limits are in docs/operations.md.",
        ),
    ],
    "Caches": [
        Panel(
            "Base rewards, hit ratio",
            ((ratio("base_reward_cache_total", 'result="hit"', "level"), "{{level}}"),),
            "percentunit",
            most=1,
        ),
        Panel(
            "Users, hit ratio",
            ((ratio("user_cache_total", 'result="hit"', "level"), "{{level}}"),),
            "percentunit",
            most=1,
        ),
        Panel("Redis, p95", ((quantile(0.95, "redis_seconds", "operation"), "{{operation}}"),), "s"),
        Panel(
            "Redis, failed calls",
            ((rate("redis_errors_total", "operation, reason"), "{{operation}} {{reason}}"),),
            "ops",
        ),
    ],
    "Users": [
        Panel("Completions scored", ((rate("completions_scored_total"), "completions"),), "ops"),
        Panel(
            "Standing of scored users",
            ((parts("users_scored_total", "standing"), "{{standing}}"),),
            "percentunit",
            most=1,
        ),
        Panel("Adaptations", ((rate("adaptations_total", "result"), "{{result}}"),), "ops"),
        Panel("Pairs stored", ((rate("pairs_stored_total"), "pairs"),), "ops"),
        Panel(
            "Loss that an adaptation takes away",
            ((quantile(0.25, "adapt_loss_delta"), "quarter"), (quantile(0.5, "adapt_loss_delta"), "median")),
            description="Nats a pair, on the user's own pairs. There is no mean: a sum that may fall is not exposed.",
        ),
        Panel(
            "Adaptations that do not help",
            ((f"{NO_GAIN} / {rate('adapt_loss_delta_count')}", "part"),),
            "percentunit",
            most=1,
        ),
    ],
    "Dependencies": [
        Panel("Answering", (("min by (dependency) (metareward_dependency_up)", "{{dependency}}"),), most=1),
        Panel("Database connections", (("max by (instance) (metareward_database_connections)", "{{instance}}"),)),
        Panel(
            "Alerts",
            (
                (
                    'count by (alertname, severity) (ALERTS{alertstate="firing"}) or vector(0)',
                    "{{alertname}} {{severity}}",
                ),
            ),
        ),
    ],
    "Tenants": [
        Panel("Requests", ((rate("tenant_requests_total", "tenant"), "{{tenant}}"),), "reqps"),
        Panel("Tokens computed", ((rate("tenant_tokens_total", "tenant"), "{{tenant}}"),), "ops"),
        Panel(
            "Refused for a quota", ((rate("quota_refusals_total", "tenant, quota"), "{{tenant}} {{quota}}"),), "reqps"
        ),
        Panel("Keys", ((rate("authentications_total", "result"), "{{result}}"),), "reqps"),
    ],
    "Processes": [
        Panel("Memory", ((f"process_resident_memory_bytes{{{JOBS}}}", "{{job}} {{instance}}"),), "bytes"),
        Panel(
            "Open files",
            ((f"process_open_fds{{{JOBS}}} / process_max_fds{{{JOBS}}}", "{{job}} {{instance}}"),),
            "percentunit",
            "Part of the limit.",
            most=1,
        ),
        Panel(
            "Processor",
            ((f"rate(process_cpu_seconds_total{{{JOBS}}}[$__rate_interval])", "{{job}} {{instance}}"),),
            "short",
            "Cores.",
        ),
        Panel("Up for", ((f"time() - process_start_time_seconds{{{JOBS}}}", "{{job}} {{instance}}"),), "s"),
    ],
}


def dashboard() -> dict[str, Any]:
    """The dashboard as Grafana reads it."""
    panels: list[dict[str, Any]] = []
    y = 0
    for title, row in ROWS.items():
        panels.append(
            {"id": len(panels) + 1, "type": "row", "title": title, "collapsed": False, "panels": []}
            | {"gridPos": {"x": 0, "y": y, "w": WIDTH, "h": 1}}
        )
        y += 1
        # Four in a line; the last line is filled.
        for start in range(0, len(row), 4):
            line = row[start : start + 4]
            width = WIDTH // len(line)
            for n, panel in enumerate(line):
                place = {"x": n * width, "y": y, "w": width, "h": HEIGHT}
                panels.append(_panel(len(panels) + 1, panel, place))
            y += HEIGHT
    return {
        "uid": "metareward",
        "title": "metareward",
        "tags": ["metareward"],
        "schemaVersion": 39,
        "editable": False,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "timezone": "browser",
        "templating": {
            "list": [
                {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"}
                | {"current": {"text": "Prometheus", "value": "metareward-prometheus"}, "hide": 0, "refresh": 1}
            ]
        },
        "annotations": {"list": []},
        "links": [],
        "panels": panels,
    }


def _panel(number: int, panel: Panel, place: dict[str, int]) -> dict[str, Any]:
    defaults: dict[str, Any] = {"unit": panel.unit, "min": 0, "custom": {"fillOpacity": 8, "lineWidth": 1}}
    if "loss" in panel.title.lower():  # it may rise
        del defaults["min"]
    if panel.most is not None:
        defaults["max"] = panel.most
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": DATASOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": {
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
        "targets": [
            {"refId": chr(ord("A") + n), "datasource": DATASOURCE, "expr": expr, "legendFormat": legend, "range": True}
            for n, (expr, legend) in enumerate(panel.queries)
        ],
    }


if __name__ == "__main__":
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_text(json.dumps(dashboard(), indent=1, ensure_ascii=False) + "\n")
