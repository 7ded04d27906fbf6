"""The best of n candidates for a user, over plain HTTP: nothing but httpx. Run it beside `make serve`.

Usage: python examples/best_of_n_httpx.py [USER [FILE]]

FILE is JSON with `prompt` and `completions`, examples/score.json if none is named. The ranking goes to the standard
error, the best candidate to the standard output. METAREWARD_URL (http://127.0.0.1:8000) names the server; one with keys
takes one of the role `score` from METAREWARD_API_KEY.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import httpx

DEADLINE_S = float(os.environ.get("METAREWARD_TIMEOUT_S", "120"))


def ask(server: httpx.Client, path: str, body: dict[str, Any], deadline_s: float = DEADLINE_S) -> dict[str, Any]:
    """POST until there is an answer: a busy server says how long to wait, one that restarts is back in a moment."""
    give_up_at = time.monotonic() + deadline_s
    while True:
        try:
            answer = server.post(path, json=body, timeout=max(1.0, give_up_at - time.monotonic()))
        except httpx.TransportError as error:  # scoring changes nothing, so it may be repeated whatever became of it
            problem: str | Exception = error
            pause_s = 1.0
        else:
            if answer.status_code not in (429, 503):
                break
            problem = f"{answer.status_code} {answer.text}"
            pause_s = float(answer.headers.get("Retry-After", 1))  # a proxy before the server may leave it out
        if time.monotonic() + pause_s > give_up_at:
            sys.exit(f"no answer within {deadline_s:g} s: {problem}")
        time.sleep(pause_s)
    if answer.is_error:
        # The problem names the field and what to do about it; the same request would get the same answer.
        sys.exit(f"{answer.status_code}: {answer.text}")
    found: dict[str, Any] = answer.json()
    return found


def main() -> None:
    """Score, and print."""
    user = sys.argv[1] if len(sys.argv) > 1 else None  # nobody in particular: the population
    path = Path(sys.argv[2]) if len(sys.argv) > 2 else Path(__file__).parent / "score.json"
    asked = json.loads(path.read_text())
    key = os.environ.get("METAREWARD_API_KEY")
    with httpx.Client(
        base_url=os.environ.get("METAREWARD_URL", "http://127.0.0.1:8000"),
        headers={"Authorization": f"Bearer {key}"} if key else {},
    ) as server:
        completions = asked["completions"]
        answer = ask(
            server,
            "/score",
            {"user_id": user, "prompt": asked["prompt"], "completions": completions, "truncate": True},
        )
    print(f"{user or 'everybody'} ({answer['user_state']}):", file=sys.stderr)
    for index in answer["order"]:
        print(f"  {answer['rewards'][index]:+.2f}  {completions[index][:70]!r}", file=sys.stderr)
    print(completions[answer["order"][0]])


if __name__ == "__main__":
    main()
