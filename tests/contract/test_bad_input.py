"""Whatever is sent gets a 4xx problem that names every bad field, and nothing is stored."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

PAIR = {"prompt": "Why?", "chosen": "Because.", "rejected": "No idea."}
SCORE = {"user_id": "ada", "prompt": "Why?", "completions": ["Because.", "No idea."]}


def adapt_with(**fields: Any) -> dict[str, Any]:
    return {"pairs": [{**PAIR, **fields}]}


def rating(**fields: Any) -> dict[str, Any]:
    return {"ratings": [{"prompt": "Why?", "completion": "Because.", "rating": 4, **fields}]}


def ranking(**fields: Any) -> dict[str, Any]:
    return {"rankings": [{"prompt": "Why?", "completions": ["Because.", "No idea.", "Ask her."], **fields}]}


def messages(*roles: str) -> list[dict[str, str]]:
    return [{"role": role, "content": "x"} for role in roles]


BAD_ADAPTS: dict[str, tuple[Any, list[str]]] = {
    "no pairs": ({"pairs": []}, ["pairs"]),
    "pairs missing": ({}, ["pairs"]),
    "not an object": ([PAIR], ["body"]),
    "empty chosen": (adapt_with(chosen=""), ["pairs[0].chosen"]),
    "blank chosen": (adapt_with(chosen=" \n\t"), ["pairs[0].chosen"]),
    "chosen equals rejected": (adapt_with(rejected="Because."), ["pairs[0].rejected"]),
    "chosen is a number": (adapt_with(chosen=3), ["pairs[0].chosen"]),
    "null rejected": (adapt_with(rejected=None), ["pairs[0].rejected"]),
    "empty prompt": (adapt_with(prompt=""), ["pairs[0].prompt"]),
    "no messages": (adapt_with(prompt=[]), ["pairs[0].prompt"]),
    "prompt is an object": (adapt_with(prompt={"role": "user", "content": "x"}), ["pairs[0].prompt"]),
    "unknown role": (adapt_with(prompt=messages("human")), ["pairs[0].prompt[0].role"]),
    "late system message": (adapt_with(prompt=messages("user", "system", "user")), ["pairs[0].prompt"]),
    "ends with the assistant": (adapt_with(prompt=messages("user", "assistant")), ["pairs[0].prompt"]),
    "empty message": (adapt_with(prompt=[{"role": "user", "content": ""}]), ["pairs[0].prompt[0].content"]),
    "zero strength": (adapt_with(strength=0), ["pairs[0].strength"]),
    "negative strength": (adapt_with(strength=-1), ["pairs[0].strength"]),
    "strength is a word": (adapt_with(strength="much"), ["pairs[0].strength"]),
    "id with a space": (adapt_with(id="a b"), ["pairs[0].id"]),
    "id with a NUL": (adapt_with(id="a\0"), ["pairs[0].id"]),
    "empty id": (adapt_with(id=""), ["pairs[0].id"]),
    "unknown field": (adapt_with(weight=1), ["pairs[0].weight"]),
    "unknown top field": ({"pairs": [PAIR], "user": "x"}, ["user"]),
    "unknown mode": ({"pairs": [PAIR], "mode": "merge"}, ["mode"]),
    "a 1 MB prompt": (adapt_with(prompt="x" * 1_000_000), ["pairs[0].prompt"]),
    "too long for the backbone": (adapt_with(chosen="word " * 2000), ["pairs[0].chosen"]),
    "too many pairs": ({"pairs": [PAIR] * 1001}, ["pairs"]),
    "one id for two pairs": (
        {"pairs": [{**PAIR, "id": "a"}, {**PAIR, "id": "a", "chosen": "Other."}]},
        ["pairs[1].id"],
    ),
    "a tie with a strength": (adapt_with(tie=True, strength=2), ["pairs[0].strength"]),
    "a tie of a text with itself": (adapt_with(tie=True, rejected="Because."), ["pairs[0].rejected"]),
    "tie is a word": (adapt_with(tie="perhaps"), ["pairs[0].tie"]),
    **{
        f"event time {time!r}": (adapt_with(event_time=time), ["pairs[0].event_time"])
        for time in (
            "",
            "now",
            1767323045,
            "2026-01-02",
            "2026-01-02T03:04:05",
            "2026-02-30T03:04:05Z",
            "9999-01-02T03:04:05Z",
            "0001-01-01T00:00:00+23:59",
            "1969-12-31T23:59:59Z",
            "2026-01-02T03:04:05+99:00",
        )
    },
    "event time tomorrow": (
        adapt_with(event_time=(datetime.now(UTC) + timedelta(days=1)).isoformat()),
        ["pairs[0].event_time"],
    ),
    "empty lists": ({"pairs": [], "ratings": [], "rankings": []}, ["pairs"]),
    "no rating": (rating(rating=None), ["ratings[0].rating"]),
    "rating is a word": (rating(rating="good"), ["ratings[0].rating"]),
    "blank completion": (rating(completion=" "), ["ratings[0].completion"]),
    "empty group": (rating(group=""), ["ratings[0].group"]),
    "strength of a rating": (rating(strength=1), ["ratings[0].strength"]),
    "a rating too long for the backbone": (rating(completion="word " * 2000), ["ratings[0].completion"]),
    "a ranking of one": (ranking(completions=["Because."]), ["rankings[0].completions"]),
    "a ranking of 65": (ranking(completions=[f"{i}." for i in range(65)]), ["rankings[0].completions"]),
    "a ranking of one text twice": (ranking(completions=["a", "b", "a"]), ["rankings[0].completions"]),
    "too few ranks": (ranking(ranks=[0, 1]), ["rankings[0].ranks"]),
    "equal ranks": (ranking(ranks=[2, 2, 2]), ["rankings[0].ranks"]),
    "fractional ranks": (ranking(ranks=[0, 1, 1.5]), ["rankings[0].ranks[2]"]),
    "negative ranks": (ranking(ranks=[0, -1, 1]), ["rankings[0].ranks[1]"]),
    "too many ratings": ({"ratings": rating()["ratings"] * 2001}, ["ratings"]),
    "too many texts of all kinds": (
        {"pairs": [PAIR] * 900, **rating(), "rankings": ranking()["rankings"] * 67},
        ["rankings"],
    ),
    "one id for a pair and a rating": (
        {"pairs": [{**PAIR, "id": "a"}], **rating(id="a")},
        ["ratings[0].id"],
    ),
    "something of every kind": (
        {"pairs": [{**PAIR, "chosen": ""}], **rating(rating="x"), **ranking(ranks=[])},
        ["pairs[0].chosen", "ratings[0].rating", "rankings[0].ranks"],
    ),
    "several at once": (
        {"pairs": [{**PAIR, "chosen": ""}, PAIR, {**PAIR, "strength": -1, "rejected": " "}], "mode": "x"},
        ["pairs[0].chosen", "pairs[2].rejected", "pairs[2].strength", "mode"],
    ),
}

BAD_SCORES: dict[str, tuple[Any, list[str]]] = {
    "no completions": ({**SCORE, "completions": []}, ["completions"]),
    "null completion": ({**SCORE, "completions": ["a", None]}, ["completions[1]"]),
    "empty user": ({**SCORE, "user_id": ""}, ["user_id"]),
    "numeric user": ({**SCORE, "user_id": 7}, ["user_id"]),
    "a version of nobody": ({**SCORE, "user_id": None, "min_version": 1}, ["min_version"]),
    "emoji user": ({**SCORE, "user_id": "ada🎉"}, ["user_id"]),
    "slash user": ({**SCORE, "user_id": "a/b"}, ["user_id"]),
    "newline user": ({**SCORE, "user_id": "ada\n"}, ["user_id"]),
    "long user": ({**SCORE, "user_id": "a" * 129}, ["user_id"]),
    "negative version": ({**SCORE, "min_version": -1}, ["min_version"]),
    "fractional version": ({**SCORE, "min_version": 1.5}, ["min_version"]),
    "too many completions": ({**SCORE, "completions": ["a"] * 4097}, ["completions"]),
    "too long for the backbone": ({**SCORE, "completions": ["a", "word " * 2000]}, ["completions[1]"]),
    "no items": ({"items": []}, ["items"]),
    "items beside a user": ({"items": [SCORE], "user_id": "ada"}, ["user_id"]),
    "bad items": (
        {"items": [SCORE, {**SCORE, "prompt": ""}, {**SCORE, "completions": [7]}]},
        ["items[1].prompt", "items[2].completions[0]"],
    ),
    "pairwise is a word": ({**SCORE, "return_pairwise": "please"}, ["return_pairwise"]),
    "too many pairs of completions": (
        {**SCORE, "completions": [f"{i}." for i in range(257)], "return_pairwise": True},
        ["return_pairwise"],
    ),
    "too many pairs of completions in all": (
        {"items": [{**SCORE, "completions": ["a"] * 200}] * 2, "return_pairwise": True},
        ["return_pairwise"],
    ),
    "bad ids in items": ({"items": [SCORE, {**SCORE, "user_id": "a b"}]}, ["items[1].user_id"]),
    "a version of nobody in items": (
        {"items": [SCORE, {"prompt": "Why?", "completions": ["a"], "min_version": 2}]},
        ["items[1].min_version"],
    ),
}


def check_problem(response: httpx.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = response.json()
    assert problem["status"] == status
    assert problem["type"].startswith("urn:metareward:problem:")
    assert problem["title"]
    assert problem["detail"]
    assert problem["request_id"] == response.headers["x-request-id"]
    return problem


@pytest.mark.parametrize("name", BAD_ADAPTS)
def test_a_bad_adapt_is_refused_whole(api: httpx.Client, fresh_user: str, name: str) -> None:
    body, fields = BAD_ADAPTS[name]
    problem = check_problem(api.post(f"/users/{fresh_user}/adapt", json=body), 422)
    assert [error["field"] for error in problem["errors"]] == fields
    assert all(error["message"] for error in problem["errors"])
    assert api.get(f"/users/{fresh_user}").status_code == 404, "something was stored"


@pytest.mark.parametrize("name", BAD_SCORES)
def test_a_bad_score_is_refused_whole(api: httpx.Client, name: str) -> None:
    body, fields = BAD_SCORES[name]
    problem = check_problem(api.post("/score", json=body), 422)
    assert [error["field"] for error in problem["errors"]] == fields


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b'{"pairs": [{"prompt": "p", "chosen": "a", "rejected": "b", "strength": NaN}]}',
        b'{"pairs": [{"prompt": "p", "chosen": "a", "rejected": "b", "strength": Infinity}]}',
        b'{"pairs": [{"prompt": "p", "chosen": "\xff\xfe", "rejected": "b"}]}',
        b'{"pairs": [{"prompt": "p", "chosen": "\\ud800", "rejected": "b"}]}',
        b"[" * 2000,
        b"\x00",
    ],
)
def test_what_is_no_json_is_refused(api: httpx.Client, fresh_user: str, raw: bytes) -> None:
    response = api.post(f"/users/{fresh_user}/adapt", content=raw, headers={"content-type": "application/json"})
    problem = check_problem(response, 422)
    assert [error["field"] for error in problem["errors"]] == ["body"]
    assert api.get(f"/users/{fresh_user}").status_code == 404


@pytest.mark.parametrize("user_id", ["a/b", "a%2Fb", "ada🎉", ".ada", "a b", "%00", "a" * 129, "%FF"])
def test_an_impossible_user_id_is_refused_on_every_route(api: httpx.Client, user_id: str) -> None:
    for response in (
        api.post(f"/users/{user_id}/adapt", json={"pairs": [PAIR]}),
        api.get(f"/users/{user_id}"),
        api.delete(f"/users/{user_id}"),
        *(api.get(f"/users/{user_id}/{name}") for name in ("versions", "evidence", "export")),
        api.delete(f"/users/{user_id}/evidence?id=a"),
        api.post(f"/users/{user_id}/rollback", json={"version": 1}),
        api.post(f"/users/{user_id}/reset", json={}),
    ):
        problem = check_problem(response, 422)
        assert [error["field"] for error in problem["errors"]] == ["user_id"]
        assert "letters, digits" in problem["errors"][0]["message"]


def test_a_newline_in_a_user_id_is_no_path(api: httpx.Client) -> None:
    check_problem(api.get("/users/a%0A"), 404)


@pytest.mark.parametrize(
    ("given", "told"), [([], "is empty; give at least 2"), (["a"], "is too short; give at least 2")]
)
def test_lists_that_are_too_short_say_what_they_need(
    api: httpx.Client, fresh_user: str, given: list[str], told: str
) -> None:
    answer = api.post(f"/users/{fresh_user}/adapt", json=ranking(completions=given))
    assert [(issue["field"], issue["message"]) for issue in answer.json()["errors"]] == [
        ("rankings[0].completions", told)
    ]


def test_a_name_of_the_wrong_form_is_told_its_form_in_words(api: httpx.Client, fresh_user: str) -> None:
    problems = [
        api.post(f"/users/{fresh_user}/adapt", json=adapt_with(id="a b")),
        api.post("/admin/checkpoints/activate", json={"checkpoint_id": "summer"}),
        api.post("/admin/checkpoints/shadow", json={"checkpoint_id": "summer"}),
    ]
    assert [answer.json()["errors"][0]["message"].partition(",")[0] for answer in problems] == [
        "must be 1 to 128 printable ASCII characters without spaces",
        "must be the 16 hexadecimal digits of a checkpoint_id",
        "must be the 16 hexadecimal digits of a checkpoint_id",
    ]


def test_errors_do_not_echo_texts(api: httpx.Client, fresh_user: str) -> None:
    secret = "my-secret-text"
    bodies = [
        adapt_with(chosen=secret, rejected=secret),
        adapt_with(strength=secret),
        adapt_with(mode=secret),
        adapt_with(chosen=f"{secret} " * 3000),
        {"pairs": secret},
    ]
    for body in bodies:
        response = api.post(f"/users/{fresh_user}/adapt", json=body)
        assert response.status_code == 422
        assert secret not in response.text


def test_no_more_than_a_hundred_problems_are_listed(api: httpx.Client, fresh_user: str) -> None:
    body = {"pairs": [{**PAIR, "chosen": ""}] * 500}
    problem = check_problem(api.post(f"/users/{fresh_user}/adapt", json=body), 422)
    assert len(problem["errors"]) == 100
    assert "500 problems" in problem["detail"]


def test_the_gate_refuses_other_hosts_types_and_sizes(api: httpx.Client) -> None:
    assert api.get("/info", headers={"host": "LocalHost:80"}).status_code == 200
    check_problem(api.get("/info", headers={"host": "evil.example"}), 421)
    check_problem(api.get("/info", headers={"host": "127.0.0.1.evil.example"}), 421)
    check_problem(api.post("/score", content=json.dumps(SCORE), headers={"content-type": "text/plain"}), 415)
    check_problem(api.post("/score", content=b"x" * 33_554_433, headers={"content-type": "application/json"}), 413)

    def endless():
        for _ in range(40):
            yield b" " * 1_048_576

    # No Content-Length: the body is counted as it comes.
    check_problem(api.post("/score", content=endless(), headers={"content-type": "application/json"}), 413)


@pytest.mark.parametrize("element", ["{}", "[]", "0", '""', '{"a":1,"b":2}'])
def test_a_small_body_of_countless_values_is_refused_cheaply(api: httpx.Client, fresh_user: str, element: str) -> None:
    raw = f'{{"pairs": [{",".join([element] * 70_000)}]}}'
    response = api.post(f"/users/{fresh_user}/adapt", content=raw, headers={"content-type": "application/json"})
    problem = check_problem(response, 413)
    assert "65536" in problem["detail"]


def test_unknown_paths_and_methods_are_problems(api: httpx.Client) -> None:
    check_problem(api.get("/nothing"), 404)
    check_problem(api.get("/score"), 405)
    check_problem(api.get("/metrics"), 404)


def test_a_bad_idempotency_key_is_refused(api: httpx.Client, fresh_user: str) -> None:
    for key in ("", "a b", "x" * 256):
        headers = {"idempotency-key": key}
        for response in (
            api.post(f"/users/{fresh_user}/adapt", json={"pairs": [PAIR]}, headers=headers),
            api.post(f"/users/{fresh_user}/rollback", json={"version": 1}, headers=headers),
            api.post(f"/users/{fresh_user}/reset", json={}, headers=headers),
            api.delete(f"/users/{fresh_user}/evidence?id=a", headers=headers),
        ):
            problem = check_problem(response, 422)
            assert [error["field"] for error in problem["errors"]] == ["Idempotency-Key"]


@pytest.mark.parametrize(
    ("method", "path", "body", "fields"),
    [
        ("POST", "rollback", {}, ["version"]),
        ("POST", "rollback", {"version": 0}, ["version"]),
        ("POST", "rollback", {"version": 1, "exact": True}, ["exact"]),
        ("POST", "reset", {"forget": "all"}, ["forget"]),
        ("POST", "reset", [], ["body"]),
        ("DELETE", "evidence", None, ["id"]),
        ("DELETE", "evidence?id=", None, ["id[0]"]),
        ("DELETE", "evidence?id=a&id=b%20c", None, ["id[1]"]),
        ("DELETE", "evidence?" + "&".join(f"id={i}" for i in range(101)), None, ["id"]),
        ("GET", "evidence?limit=0", None, ["limit"]),
        ("GET", "evidence?after=%00", None, ["after"]),
        ("GET", "versions?before=0", None, ["before"]),
        ("GET", "versions?before=x&limit=1001", None, ["before", "limit"]),
    ],
)
def test_what_is_wrong_with_a_question_about_a_user_is_named(
    api: httpx.Client, fresh_user: str, method: str, path: str, body: Any, fields: list[str]
) -> None:
    problem = check_problem(api.request(method, f"/users/{fresh_user}/{path}", json=body), 422)
    assert [error["field"] for error in problem["errors"]] == fields


def test_bad_paging_is_refused(api: httpx.Client) -> None:
    check_problem(api.get("/users?limit=0"), 422)
    check_problem(api.get("/users?limit=x"), 422)
    check_problem(api.get("/users?after=%F0%9F%8E%89"), 422)
