"""Write what the code already says: two OpenAPI documents, docs/settings.md, docs/metrics.md and .env.example.

Run by `make docs`; a test fails when the files differ from the code.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from pydantic import SecretStr

from service.api.app import create_app
from service.api.worker_openapi import worker_document
from service.observability.metrics import Description, Metrics
from service.runtime import Runtime
from service.settings import DEMO_CHECKPOINT, Settings

ROOT = Path(__file__).resolve().parents[1]


def openapi() -> str:
    """The OpenAPI document. Only the routes are needed for it, so no model is loaded."""
    runtime = cast(Runtime, SimpleNamespace(metrics=Metrics(), lifecycle=None, access=None))
    return json.dumps(create_app(runtime, Settings()).openapi(), indent=1) + "\n"


def worker_openapi() -> str:
    """The worker's."""
    return json.dumps(worker_document(), indent=1) + "\n"


def settings_page() -> str:
    """A table of every setting."""
    rows = ["# Settings", "", "Environment variables, or lines of `.env`; flags of `metareward serve` win.", ""]
    rows += ["| setting | default | meaning |", "| --- | --- | --- |"]
    for name, field in Settings.model_fields.items():
        rows.append(f"| `{name.upper()}` | `{_default(field.default)}` | {field.description} |".replace("``", "empty"))
    return "\n".join(rows) + "\n"


def env_example() -> str:
    """Every setting, commented out, with its default."""
    lines = ["# Copy to .env and change what you need. Every line shows the default."]
    for name, field in Settings.model_fields.items():
        lines += ["", f"# {field.description}", f"# {name.upper()}={_default(field.default)}"]
    return "\n".join(lines) + "\n"


def metrics_page() -> str:
    """Tables of every metric, and questions to ask of them."""
    metrics = Metrics()
    return "\n".join(
        [
            "# Metrics",
            "",
            "`GET /metrics` on METRICS_PORT of a server, and on WORKER_METRICS_PORT of a worker. Series whose label",
            "values are known in advance (in parentheses) are there, at 0, from the first scrape on; others appear",
            "with their first event. No label holds a user id, a path or a text. A histogram has `_bucket`, `_sum`",
            "and `_count`.",
            "",
            "## Server (`metareward serve`)",
            "",
            *_metrics_table(metrics.descriptions),
            "",
            "## Engine (`metareward worker`, and a server)",
            "",
            "A server without ENGINE_URL runs the worker itself, and has all of these. With ENGINE_URL only",
            "`metareward_queue_tokens` and `metareward_worker_healthy` are about what it sees of its workers.",
            "",
            *_metrics_table(metrics.worker.descriptions),
            "",
            "## Every process",
            "",
            "On Linux: `process_cpu_seconds_total`, `process_resident_memory_bytes`, `process_virtual_memory_bytes`,",
            "`process_start_time_seconds`, `process_open_fds`, `process_max_fds`.",
            "",
            QUESTIONS.strip(),
            "",
        ]
    )


def _metrics_table(descriptions: Sequence[Description]) -> list[str]:
    rows = ["| metric | type | labels | meaning |", "| --- | --- | --- | --- |"]
    for metric in descriptions:
        labels = "; ".join(
            f"`{label}`" + (f" ({', '.join(values)})" if values is not None else "")
            for label, values in metric.labels.items()
        )
        rows.append(f"| `{metric.name}` | {metric.kind} | {labels} | {metric.documentation} |")
    return rows


# What docs/metrics.md ends with; a test looks for every metric that is named here.
QUESTIONS = """
## Questions

The alerts and dashboards under `deploy/` are made of these.

### Traffic

Requests a second by route, completions scored, and texts that went to the device:

```promql
sum by (route) (rate(metareward_requests_total[5m]))
rate(metareward_completions_scored_total[5m])
rate(metareward_worker_texts_total{result="answered"}[5m])
```

### Errors

The part of the requests that failed, those refused for want of room, and what a tenant's quota turned away:

```promql
sum(rate(metareward_requests_total{status=~"5.."}[5m])) / sum(rate(metareward_requests_total[5m]))
sum by (reason) (rate(metareward_refusals_total[5m]))
sum by (tenant, quota) (rate(metareward_quota_refusals_total[5m]))
```

### Latency

The 99th percentile by route, the mean time of each stage, and the wait for the device:

```promql
histogram_quantile(0.99, sum by (le, route) (rate(metareward_request_seconds_bucket[5m])))
sum by (stage) (rate(metareward_stage_seconds_sum[5m])) / sum by (stage) (rate(metareward_stage_seconds_count[5m]))
histogram_quantile(0.99, sum by (le) (rate(metareward_queue_seconds_bucket[5m])))
```

### Saturation

Seconds of queued work at the present speed, how busy the device is, the pool of connections, and the event loop:

```promql
metareward_queue_tokens / rate(metareward_batch_tokens_sum[5m])
rate(metareward_batch_seconds_sum[5m])
metareward_database_connections
histogram_quantile(0.99, sum by (le) (rate(metareward_event_loop_lag_seconds_bucket[5m])))
```

### Caches

The part of the texts, and of the users, that memory answers:

```promql
sum(rate(metareward_base_reward_cache_total{level="memory",result="hit"}[5m]))
  / sum(rate(metareward_base_reward_cache_total{level="memory"}[5m]))
sum(rate(metareward_user_cache_total{level="memory",result="hit"}[5m]))
  / sum(rate(metareward_user_cache_total{level="memory"}[5m]))
```

### Does it personalise?

How many items that name a user are scored from the start, and how far an adaptation lowers the loss of a user's own
pairs (the median, in nats a pair; near 0, adapting changes little):

```promql
sum(rate(metareward_users_scored_total{standing="cold_start"}[1h]))
  / sum(rate(metareward_users_scored_total{standing!="population"}[1h]))
histogram_quantile(0.5, sum by (le) (rate(metareward_adapt_loss_delta_bucket[1h])))
```
"""


def _default(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if value == DEMO_CHECKPOINT:
        return str(DEMO_CHECKPOINT.relative_to(ROOT))
    return str(value)


FILES = {
    "docs/openapi.json": openapi,
    "docs/worker-openapi.json": worker_openapi,
    "docs/settings.md": settings_page,
    "docs/metrics.md": metrics_page,
    ".env.example": env_example,
}

if __name__ == "__main__":
    for path, build in FILES.items():
        (ROOT / path).write_text(build())
        print(f"wrote {path}")
