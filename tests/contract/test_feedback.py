"""Over HTTP: questions worth asking, and what users did, as evidence that is listed and deleted like any other."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import httpx
import pytest
from documented import check_answer

ROOT = Path(__file__).resolve().parents[2]
PROMPT = "How do I descale a kettle?"
TEXTS = ["Vinegar, an hour, rinse.", "There are, perhaps, many ways to do it...", "Buy a new one.", "Ask a friend."]
EVENTS: dict[str, dict[str, Any]] = {
    "chosen": {"shown": TEXTS[:3], "chosen": 0},
    "regenerated": {"completion": TEXTS[1], "replacement": TEXTS[0]},
    "copied": {"completion": TEXTS[0], "shown": TEXTS[:2]},
    "edited": {"completion": TEXTS[1], "edited": "Vinegar. Rinse."},
    "dwell": {
        "completion": TEXTS[0],
        "seconds": 20,
        "shown": [{"completion": TEXTS[1], "seconds": 4.5}, {"completion": TEXTS[2], "seconds": 40}],
    },
    "thumbs": {"completion": TEXTS[2], "up": False},
}


def event(kind: str, **fields: Any) -> dict[str, Any]:
    return {"type": kind, "prompt": PROMPT, **EVENTS[kind], **fields}


def problems(response: httpx.Response) -> list[str]:
    assert response.status_code == 422, response.text
    return [error["field"] for error in response.json()["errors"]]


@pytest.fixture(scope="module")
def document(server: Any) -> dict[str, Any]:
    with server.client() as client:
        answer: dict[str, Any] = client.get("/openapi.json").json()
        return answer


def test_every_kind_of_event_is_evidence_that_is_listed_and_deleted(
    api: httpx.Client, document: dict[str, Any], fresh_user: str
) -> None:
    url = f"/users/{fresh_user}/feedback"
    events = [event(kind, id=f"e-{kind}") for kind in EVENTS]
    response = api.post(url, json={"events": events}, headers={"Idempotency-Key": "k"})
    check_answer(document, "/users/{user_id}/feedback", "post", response)
    answer = response.json()
    stored = dict.fromkeys(EVENTS, 1) | {"dwell": 2}
    assert (answer["version"], answer["cause"], answer["events_received"]) == (1, "feedback", 6)
    assert answer["stored_by_source"] == stored
    assert answer["pairs_received"] == answer["pairs_stored"] == answer["pairs_total"] == 7
    assert answer["support_after"]["loss"] < answer["support_before"]["loss"]

    again = api.post(url, json={"events": events}, headers={"Idempotency-Key": "k"}).json()
    assert (again["replayed"], again["stored_by_source"], again["version"]) == (True, stored, 1)
    twice = api.post(url, json={"events": events}).json()
    assert (twice["stored_by_source"], twice["weights"]) == ({}, answer["weights"])

    listed = api.get(f"/users/{fresh_user}/evidence").json()["evidence"]
    assert {each["id"]: each["source"] for each in listed} == {
        **{f"e-{kind}": kind for kind in EVENTS if kind != "dwell"}, "e-dwell~1": "dwell", "e-dwell~2": "dwell",
    }  # fmt: skip
    weights = {each["source"]: each["weight"] for each in listed if each["source"] != "dwell"}
    assert weights == pytest.approx(
        {"chosen": 0.8, "regenerated": 0.5, "copied": 0.6, "edited": 0.7, "thumbs": 0.8 * 0.6}
    )
    ids = [each["id"] for each in listed if each["id"] != "e-chosen"]
    deleted = api.delete(f"/users/{fresh_user}/evidence", params={"id": ids}).json()
    assert (deleted["pairs_deleted"], deleted["pairs_total"]) == (6, 1)


def test_a_click_moves_a_user_less_than_an_answer_and_not_beside_it(api: httpx.Client, fresh_user: str) -> None:
    def margin(user: str) -> float:
        asked = {"user_id": user, "prompt": PROMPT, "completions": TEXTS[:2]}
        best, other = api.post("/score", json=asked).json()["rewards"]
        return float(best - other)

    start = margin(fresh_user)
    copied = event("copied", shown=[TEXTS[1]])
    assert api.post(f"/users/{fresh_user}-seen/feedback", json={"events": [copied]}).status_code == 200
    outright = {"prompt": PROMPT, "chosen": TEXTS[0], "rejected": TEXTS[1]}
    assert api.post(f"/users/{fresh_user}-told/adapt", json={"pairs": [outright]}).status_code == 200
    assert start < margin(f"{fresh_user}-seen") < margin(f"{fresh_user}-told")
    # contrary clicks on what was answered change nothing
    told = margin(f"{fresh_user}-told")
    contrary = [
        event("copied", completion=TEXTS[1], shown=[TEXTS[0]], id=f"c{i}", event_time="2026-01-02T03:04:05Z")
        for i in range(50)
    ]
    assert api.post(f"/users/{fresh_user}-told/feedback", json={"events": contrary}).json()["pairs_stored"] == 50
    assert margin(f"{fresh_user}-told") == told


BAD_EVENTS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "no type": ({"prompt": PROMPT, "completion": "x"}, ["events[0]"]),
    "unknown type": ({"type": "liked", "prompt": PROMPT, "completion": "x"}, ["events[0]"]),
    "type is a number": ({"type": 1}, ["events[0]"]),
    "unknown field": (event("copied", seconds=3), ["events[0].seconds"]),
    "chosen out of range": (event("chosen", chosen=3), ["events[0].chosen"]),
    "one shown": (event("chosen", shown=["a"]), ["events[0].shown"]),
    "shown twice": (event("chosen", shown=["a", "b", "a"]), ["events[0].shown"]),
    "replaced by itself": (event("regenerated", replacement=TEXTS[1]), ["events[0].replacement"]),
    "edited to itself": (event("edited", edited=TEXTS[1]), ["events[0].edited"]),
    "read beside itself": (
        event("dwell", shown=[{"completion": TEXTS[0], "seconds": 1}]),
        ["events[0].shown"],
    ),
    "read alone": (event("dwell", shown=[]), ["events[0].shown"]),
    "read as long": (
        event("dwell", shown=[{"completion": "b", "seconds": 20.1}]),
        ["events[0].seconds"],
    ),
    "negative time": (event("dwell", seconds=-1), ["events[0].seconds"]),
    "blank completion": (event("copied", completion=" "), ["events[0].completion"]),
    "an id too long": (event("copied", id="x" * 121), ["events[0].id"]),
    "from the future": (event("copied", event_time="2999-01-01T00:00:00Z"), ["events[0].event_time"]),
    "a 1 MB text": (event("chosen", shown=["a", "x" * 1_000_000]), ["events[0].shown[1]"]),
    "too long for the backbone": (event("edited", edited="word " * 2000), ["events[0].edited"]),
}


@pytest.mark.parametrize("name", BAD_EVENTS)
def test_a_bad_event_is_refused_whole(api: httpx.Client, fresh_user: str, name: str) -> None:
    bad, fields = BAD_EVENTS[name]
    response = api.post(f"/users/{fresh_user}/feedback", json={"events": [bad, event("copied")]})
    assert problems(response) == fields
    assert "1 MB" not in response.text
    assert api.get(f"/users/{fresh_user}").status_code == 404, "something was stored"


def test_limits_of_feedback_and_suggestions(api: httpx.Client, fresh_user: str) -> None:
    feedback, suggest = f"/users/{fresh_user}/feedback", f"/users/{fresh_user}/suggest"
    assert problems(api.post(feedback, json={"events": []})) == ["events"]
    assert problems(api.post(feedback, json={"events": [event("edited")] * 1001})) == ["events"]
    one_id = [event("copied", id="a"), event("edited", id="a")]
    assert problems(api.post(feedback, json={"events": one_id})) == ["events[1].id"]

    def asked(*sizes: int, **options: Any) -> httpx.Response:
        candidates = [{"prompt": "p", "completions": [f"{i}." for i in range(size)]} for size in sizes]
        return api.post(suggest, json={"candidates": candidates, **options})

    assert problems(asked(1)) == ["candidates[0].completions"]
    assert problems(asked()) == ["candidates"]
    assert problems(asked(142)) == ["candidates"]  # 10,011 pairs
    assert problems(asked(*[2] * 2049)) == ["candidates"]  # 4,098 completions
    assert problems(asked(2, count=51)) == ["count"]
    assert problems(asked(2, count=0)) == ["count"]
    assert asked(2, min_version=1).status_code == 409
    bad_id = api.post("/users/a b/suggest", json={"candidates": [{"prompt": "p", "completions": ["a", "b"]}]})
    assert problems(bad_id) == ["user_id"]


def test_questions_are_asked_once_and_tell_less_as_more_is_known(
    api: httpx.Client, document: dict[str, Any], fresh_user: str
) -> None:
    candidates = [
        {"prompt": PROMPT, "completions": [*TEXTS, TEXTS[0]]},
        {"prompt": "Why is the sky blue?", "completions": ["Scattering.", "Magic, one might say."]},
    ]

    def ask(count: int) -> dict[str, Any]:
        response = api.post(f"/users/{fresh_user}/suggest", json={"candidates": candidates, "count": count})
        check_answer(document, "/users/{user_id}/suggest", "post", response)
        answer: dict[str, Any] = response.json()
        return answer

    cold = ask(50)
    assert (cold["user_state"], cold["version"]) == ("cold_start", 0)
    asked = [(each["candidate"], each["a"], each["b"]) for each in cold["suggestions"]]
    texts = {(candidate, *sorted([a % 4, b % 4])) for candidate, a, b in asked}
    assert len(texts) == len(asked) == 6 + 1, "every two different texts once"
    gains = [each["information_gain_nats"] for each in cold["suggestions"]]
    assert math.log(2) > gains[0] == max(gains) > min(gains) > 0
    best = cold["suggestions"][0]
    scored = api.post("/score", json={"user_id": fresh_user, **candidates[best["candidate"]]}).json()["rewards"]
    difference = scored[best["a"]] - scored[best["b"]]
    assert best["preference_probability"] == pytest.approx(1 / (1 + math.exp(-difference)))

    (one,) = ask(1)["suggestions"]
    assert one == best
    chosen, rejected = (candidates[best["candidate"]]["completions"][best[side]] for side in "ab")
    pair = {"prompt": candidates[best["candidate"]]["prompt"], "chosen": chosen, "rejected": rejected}
    assert api.post(f"/users/{fresh_user}/adapt", json={"pairs": [pair]}).status_code == 200
    known = ask(50)
    assert (known["user_state"], known["version"]) == ("adapted", 1)
    assert len(known["suggestions"]) == 6
    assert sum(each["information_gain_nats"] for each in known["suggestions"]) < sum(gains)


def test_errors_of_feedback_do_not_echo_texts(api: httpx.Client, fresh_user: str) -> None:
    secret = "my-secret-text"
    for bad in (
        {"type": secret, "prompt": PROMPT},
        event("edited", completion=secret, edited=secret),
        event("chosen", shown=[secret, secret]),
        event("thumbs", up=secret),
    ):
        response = api.post(f"/users/{fresh_user}/feedback", content=json.dumps({"events": [bad]}),
                            headers={"content-type": "application/json"})  # fmt: skip
        assert response.status_code == 422
        assert secret not in response.text


def test_the_examples_of_the_page_run(api: httpx.Client, fresh_user: str) -> None:
    page = (ROOT / "docs/feedback.md").read_text()
    calls = re.findall(r"curl -s http://127\.0\.0\.1:8000(\S+) .*? -d '(.*?)'\n```", page, re.DOTALL)
    assert [path for path, _ in calls] == ["/users/ada/suggest", "/users/ada/feedback", "/score"]
    for path, body in calls:
        assert isinstance(json.loads(body), dict)
        response = api.post(path.replace("ada", fresh_user), content=body, headers={"content-type": "application/json"})
        assert response.status_code == 200, response.text
        if path.endswith("/feedback"):
            assert response.json()["events_received"] == 6
            assert set(response.json()["stored_by_source"]) == set(EVENTS)
