"""The calls of docs/users.md, as they stand there."""

from __future__ import annotations

import json
import re
from pathlib import Path

import httpx

PAGE = Path(__file__).resolve().parents[2] / "docs/users.md"
CALL = re.compile(
    r"curl -s (?:-X (\w+) )?'?http://127\.0\.0\.1:8000/users/bob([^\s']*)'?(?: -H \S+ \S+ -d '(.*?)')?\n", re.DOTALL
)


def test_the_examples_of_the_page_run_one_after_the_other(api: httpx.Client, fresh_user: str) -> None:
    said: dict[str, dict[str, object]] = {}
    for method, path, body in CALL.findall(PAGE.read_text()):
        answer = api.request(
            method or ("POST" if body else "GET"),
            f"/users/{fresh_user}{path}",
            content=body or None,
            headers={"content-type": "application/json"},
        )
        assert answer.status_code == 200, answer.text
        said[path.partition("?")[0]] = json.loads(answer.content)
    assert list(said) == ["/adapt", "/versions", "/evidence", "/reset", "/rollback"]
    assert (said["/adapt"]["pairs_stored"], said["/evidence"]["pairs_deleted"], said["/reset"]["pairs_total"]) == (
        5,
        2,
        0,
    )
    assert (said["/rollback"]["pairs_total"], said["/rollback"]["exact"]) == (3, True)


def test_a_single_rating_alone_moves_nothing(api: httpx.Client, fresh_user: str) -> None:
    rating = {"prompt": "Tell me a joke.", "completion": "Knock, knock.", "rating": 4.5}
    told = api.post(f"/users/{fresh_user}/adapt", json={"ratings": [rating]}).raise_for_status().json()
    start = api.post(f"/users/{fresh_user}/reset", json={}).raise_for_status().json()
    assert told["weights"] == start["weights"]
