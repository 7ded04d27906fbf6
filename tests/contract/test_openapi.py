"""The OpenAPI document says what the server does."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import httpx
import pytest
from documented import check_answer, schema_check

ROOT = Path(__file__).resolve().parents[2]

ROUTES = {
    ("/score", "post"),
    ("/classify", "post"),
    ("/v1/models", "get"),
    ("/v1/openrlhf/get_reward", "post"),
    ("/v1/rerank", "post"),
    ("/v2/rerank", "post"),
    ("/users", "get"),
    ("/users/{user_id}", "get"),
    ("/users/{user_id}", "delete"),
    ("/users/{user_id}/adapt", "post"),
    ("/users/{user_id}/feedback", "post"),
    ("/users/{user_id}/suggest", "post"),
    ("/users/{user_id}/versions", "get"),
    ("/users/{user_id}/rollback", "post"),
    ("/users/{user_id}/reset", "post"),
    ("/users/{user_id}/evidence", "get"),
    ("/users/{user_id}/evidence", "delete"),
    ("/users/{user_id}/export", "get"),
    ("/admin/self-check", "post"),
    ("/admin/checkpoints", "get"),
    ("/admin/checkpoints/activate", "post"),
    ("/admin/checkpoints/rollback", "post"),
    ("/admin/checkpoints/shadow", "post"),
    ("/info", "get"),
    ("/live", "get"),
    ("/ready", "get"),
}


@pytest.fixture
def document(api: httpx.Client) -> dict[str, Any]:
    document: dict[str, Any] = api.get("/openapi.json").json()
    return document


def test_the_routes_are_these(document: dict[str, Any]) -> None:
    assert {(path, method) for path, methods in document["paths"].items() for method in methods} == ROUTES


def test_every_body_and_parameter_has_an_example_that_fits_its_schema(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    bodies = ("AdaptRequest", "FeedbackRequest", "ScoreOneRequest", "ScoreManyRequest", "SuggestRequest")
    for name in (*bodies, "ClassifyTextsIn", "ClassifyConversationIn", "GetRewardRequest"):
        assert schemas[name]["examples"]
        for example in schemas[name]["examples"]:
            schema_check(document, {"$ref": f"#/components/schemas/{name}"}, example)
    for methods in document["paths"].values():
        for route in methods.values():
            for parameter in route.get("parameters", []):
                if parameter["in"] != "header":
                    assert parameter["schema"].get("examples"), parameter["name"]


def test_every_answer_has_an_example_that_fits_its_schema(document: dict[str, Any]) -> None:
    answered = set()
    for methods in document["paths"].values():
        for route in methods.values():
            for response in route["responses"].values():
                for content in response.get("content", {}).values():
                    options = content["schema"].get("anyOf", [content["schema"]])
                    answered |= {option["$ref"].rpartition("/")[2] for option in options}
    assert {"AdaptResponse", "LiveOut", "Problem"} <= answered
    for name in answered:
        (example,) = document["components"]["schemas"][name]["examples"]
        schema_check(document, {"$ref": f"#/components/schemas/{name}"}, example)


def test_documented_examples_run_and_answer_as_documented(
    api: httpx.Client, document: dict[str, Any], fresh_user: str
) -> None:
    schemas = document["components"]["schemas"]
    for example in schemas["AdaptRequest"]["examples"]:
        response = api.post(f"/users/{fresh_user}/adapt", json=example)
        assert response.status_code == 200, response.text
        check_answer(document, "/users/{user_id}/adapt", "post", response)
    for name, act in (("FeedbackRequest", "feedback"), ("SuggestRequest", "suggest")):
        for example in schemas[name]["examples"]:
            response = api.post(f"/users/{fresh_user}/{act}", json=example)
            assert response.status_code == 200, response.text
            check_answer(document, f"/users/{{user_id}}/{act}", "post", response)
    for name, path in (
        ("ScoreOneRequest", "/score"),
        ("ScoreManyRequest", "/score"),
        ("CohereRerankRequest", "/v2/rerank"),
        ("JinaRerankRequest", "/v1/rerank"),
    ):
        for example in schemas[name]["examples"]:
            response = api.post(path, json=example)
            assert response.status_code == 200, response.text
            check_answer(document, path, "post", response)


def test_every_route_answers_as_documented(api: httpx.Client, document: dict[str, Any], fresh_user: str) -> None:
    pair = {"prompt": "p", "chosen": "a", "rejected": "b"}
    score = {"user_id": fresh_user, "prompt": "p", "completions": ["a", "b"]}
    calls = [
        ("/users/{user_id}/adapt", "post", f"/users/{fresh_user}/adapt", {"pairs": [pair]}),
        (
            "/users/{user_id}/adapt",
            "post",
            f"/users/{fresh_user}/adapt",
            {"pairs": [{**pair, "chosen": f"c{i}", "strength": s} for i, s in enumerate((None, 5e-324, 1, 1e308))]},
        ),
        ("/users/{user_id}/adapt", "post", f"/users/{fresh_user}/adapt", {"pairs": []}),
        ("/score", "post", "/score", {**score, "return_base_rewards": True}),
        ("/score", "post", "/score", {**score, "return_pairwise": True}),
        ("/score", "post", "/score", {"items": [score]}),
        ("/score", "post", "/score", {"items": [score, score], "return_pairwise": True}),
        ("/score", "post", "/score", {**score, "min_version": 99}),
        ("/score", "post", "/score", {**score, "user_id": None, "completions": [""]}),
        ("/score", "post", "/score", {**score, "user_id": None, "min_version": 1}),
        ("/score", "post", "/score", {}),
        ("/users", "get", "/users", None),
        ("/users", "get", "/users?limit=1", None),
        ("/users/{user_id}", "get", f"/users/{fresh_user}", None),
        *(
            (f"/users/{{user_id}}/{name}", "get", f"/users/{user}/{name}", None)
            for name in ("versions", "evidence", "export", "versions?limit=1", "evidence?limit=1&after=x")
            for user in (fresh_user, "nobody-of-this-name")
        ),
        *(
            (f"/users/{{user_id}}/{name}", "post", f"/users/{user}/{name}", body)
            for name, body in (
                ("rollback", {"version": 1}),
                ("rollback", {"version": 99}),
                ("rollback", {"version": 0}),
                ("reset", {}),
                ("reset", {"forget": 2}),
            )
            for user in (fresh_user, "nobody-of-this-name")
        ),
        ("/users/{user_id}/evidence", "delete", f"/users/{fresh_user}/evidence?id=nothing", None),
        ("/users/{user_id}/evidence", "delete", f"/users/{fresh_user}/evidence", None),
        ("/users/{user_id}/reset", "post", f"/users/{fresh_user}/reset", {"forget": True}),
        ("/users/{user_id}", "get", "/users/nobody-of-this-name", None),
        ("/users/{user_id}", "delete", f"/users/{fresh_user}", None),
        ("/users/{user_id}", "delete", f"/users/{fresh_user}", None),
        ("/admin/self-check", "post", "/admin/self-check", {}),
        ("/admin/self-check", "post", "/admin/self-check", {"x": 1}),
        ("/admin/checkpoints", "get", "/admin/checkpoints", None),
        ("/admin/checkpoints/rollback", "post", "/admin/checkpoints/rollback", {}),
        *(
            (f"/admin/checkpoints/{name}", "post", f"/admin/checkpoints/{name}", {"checkpoint_id": checkpoint_id})
            for name in ("activate", "shadow")
            for checkpoint_id in ("0" * 16, "no id", None)
        ),
        ("/info", "get", "/info", None),
        ("/live", "get", "/live", None),
        ("/ready", "get", "/ready", None),
    ]
    for path, method, url, body in calls:
        check_answer(document, path.partition("?")[0], method, api.request(method.upper(), url, json=body))


def test_the_generated_files_are_current() -> None:
    generate = runpy.run_path(str(ROOT / "docs/generate.py"))
    for path, build in generate["FILES"].items():
        assert (ROOT / path).read_text() == build(), f"{path} is old: run `make docs`"
    assert json.loads((ROOT / "docs/openapi.json").read_text())["paths"]


def test_the_root_leads_to_the_docs(api: httpx.Client) -> None:
    response = api.get("/")
    assert (response.status_code, response.headers["location"]) == (307, "/docs")


def test_info_says_whether_the_checkpoint_personalises(api: httpx.Client) -> None:
    assert api.get("/info").json()["checkpoint"]["personalises"] is True


def test_metrics_are_on_their_own_port(server, api: httpx.Client) -> None:
    api.post("/score", json={"user_id": "metrics", "prompt": "p", "completions": ["a"]})
    metrics = httpx.get(server.metrics_url).text
    assert 'metareward_requests_total{route="/score",status="200"}' in metrics
    assert "metareward_worker_healthy 1.0" in metrics
    assert 'metareward_stage_seconds_count{stage="engine"}' in metrics
