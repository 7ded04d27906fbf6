"""What `metareward serve` prints when it is ready: where things are, and a session to copy."""

from __future__ import annotations

from pathlib import Path

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"

_BANNER = """
metareward is ready.

  API       {api}
  API docs  {api}/docs
  metrics   {metrics}

Try it, in another terminal: Ada likes it short and plain. Which of two new answers is hers?

  curl -s {api}/score -H 'Content-Type: application/json' -d @{examples}/score.json
  curl -s {api}/users/ada/adapt -H 'Content-Type: application/json' -d @{examples}/adapt.json
  curl -s {api}/score -H 'Content-Type: application/json' -d @{examples}/score.json

`order` lists the completions from best to worst: it changes once Ada's choices are in. Ctrl-C stops the server.
"""


def banner(api_url: str, metrics_url: str | None) -> str:
    """The text, with paths that work from the current folder."""
    try:
        examples = EXAMPLES.relative_to(Path.cwd())
    except ValueError:
        examples = EXAMPLES
    return _BANNER.format(api=api_url, metrics=metrics_url or "off (METRICS_PORT is empty)", examples=examples)
