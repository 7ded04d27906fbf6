"""Write what the code already says: docs/openapi.json, docs/settings.md and .env.example.

Run by `make docs`; a test fails when the files differ from the code.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from pydantic import SecretStr

from service.api.app import create_app
from service.observability.metrics import Metrics
from service.runtime import Runtime
from service.settings import DEMO_CHECKPOINT, Settings

ROOT = Path(__file__).resolve().parents[1]


def openapi() -> str:
    """The OpenAPI document. Only the routes are needed for it, so no model is loaded."""
    runtime = cast(Runtime, SimpleNamespace(metrics=Metrics(), lifecycle=None, access=None))
    return json.dumps(create_app(runtime, Settings()).openapi(), indent=1) + "\n"


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


def _default(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if value == DEMO_CHECKPOINT:
        return str(DEMO_CHECKPOINT.relative_to(ROOT))
    return str(value)


FILES = {"docs/openapi.json": openapi, "docs/settings.md": settings_page, ".env.example": env_example}

if __name__ == "__main__":
    for path, build in FILES.items():
        (ROOT / path).write_text(build())
        print(f"wrote {path}")
