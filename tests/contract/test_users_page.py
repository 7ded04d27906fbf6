"""The calls of docs/users.md, as they stand there."""

from __future__ import annotations

import json
import re
import uuid
from pathlib import Path

import httpx
import numpy as np

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


def test_the_page_scores_for_a_user_and_for_nobody(api: httpx.Client) -> None:
    (body,) = re.findall(r"8000/score -H \S+ \S+ -d '(.*?)'\n", PAGE.read_text(), re.DOTALL)
    answer = api.post("/score", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 200, answer.text
    bob, nobody = answer.json()["results"]
    assert (nobody["user_id"], nobody["user_state"], nobody["version"]) == (None, "population", 0)
    named = json.loads(body)["items"][1] | {"user_id": f"u{uuid.uuid4().hex}"}
    stranger = api.post("/score", json=named).json()
    assert (stranger["user_state"], stranger["rewards"]) == ("cold_start", nobody["rewards"])
    unnamed = {key: value for key, value in named.items() if key != "user_id"}
    assert api.post("/score", json=unnamed).json()["rewards"] == nobody["rewards"]
    assert (bob["user_id"], len(bob["rewards"])) == ("bob", 2)


def test_an_empty_completion_in_a_batch_is_scored_as_alone(api: httpx.Client) -> None:
    completions = ["Oak.", "", "There are so many trees! " * 20, " \n", "Elm."]
    asked = {"prompt": f"Name a tree ({uuid.uuid4().hex}).", "return_base_rewards": True}
    alone = [api.post("/score", json={**asked, "completions": [text]}).json() for text in completions]
    # The blank makes it another text to the caches, and none to the tokenizer.
    asked["prompt"] += " "
    batch = api.post("/score", json={**asked, "completions": completions}).json()
    expected = [each["base_rewards"][0] for each in alone]
    np.testing.assert_allclose(batch["base_rewards"], expected, atol=1e-5)
    assert abs(batch["rewards"][0] - batch["rewards"][1]) > 0.01


def test_a_single_rating_alone_moves_nothing(api: httpx.Client, fresh_user: str) -> None:
    rating = {"prompt": "Tell me a joke.", "completion": "Knock, knock.", "rating": 4.5}
    told = api.post(f"/users/{fresh_user}/adapt", json={"ratings": [rating]}).raise_for_status().json()
    start = api.post(f"/users/{fresh_user}/reset", json={}).raise_for_status().json()
    assert told["weights"] == start["weights"]
