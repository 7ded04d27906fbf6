"""What `metareward serve` prints when it is ready: where things are, and a session to copy."""

from __future__ import annotations

from pathlib import Path

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"

_PLACES = """
metareward is ready.

  API       {api}
  API docs  {api}/docs
  metrics   {metrics}
  users in  {users}
"""

_KEY = """
This server wants API keys:  KEY=$(metareward keys create --tenant default --role adapt)
"""

_SESSION = """
Try it, in another terminal: Ada likes it short and plain. Which of two new answers is hers?

  curl -s{key} {api}/score -H 'Content-Type: application/json' -d @{examples}/score.json
  curl -s{key} {api}/users/ada/adapt -H 'Content-Type: application/json' -d @{examples}/adapt.json
  curl -s{key} {api}/score -H 'Content-Type: application/json' -d @{examples}/score.json

`order` lists the completions from best to worst: it changes once Ada's choices are in. To begin again, forget her:

  curl -s{key} -X DELETE {api}/users/ada
"""


def banner(api_url: str, metrics_url: str, users: str, *, demo: bool, keys: bool) -> str:
    """The text, with paths that work from the current folder; the session only where the demo checkpoint serves.

    With `keys` the session sends the key that the shell's variable KEY holds.
    """
    text = _PLACES.format(api=api_url, metrics=metrics_url, users=users)
    if demo and EXAMPLES.is_dir():
        try:
            examples = EXAMPLES.relative_to(Path.cwd())
        except ValueError:
            examples = EXAMPLES
        if keys:
            text += _KEY
        key = ' -H "Authorization: Bearer $KEY"' if keys else ""
        text += _SESSION.format(api=api_url, examples=examples, key=key)
    return f"{text}\nCtrl-C stops the server."
