"""What clients of rerankers send and read.

The bodies are those of Cohere's Python SDK 7.3.1 (its v2 and v1 clients), field by field, and those of Jina's Reranker
API 1.0 (models up to jina-reranker-v3). Answers are read as these clients read them.
"""

from __future__ import annotations

import math
import re
import uuid
from pathlib import Path
from typing import Any

import httpx
import pytest
from documented import check_answer, read_document
from guarded import Guarded

PAGE = Path(__file__).resolve().parents[2] / "docs/rlhf/rerank.md"
DOCUMENT = read_document()
QUERY = "How do I keep basil alive indoors?"
TEXTS = [
    "Light, water, and pinch off the tips.",
    "",
    "Oh, basil! What a lovely plant to talk about at length.",
    "Buy it.",
]


@pytest.fixture(scope="module")
def ada(server: Any) -> str:
    """Somebody who likes it short."""
    user_id = f"ada@{uuid.uuid4().hex}"
    pairs = [
        {"prompt": prompt, "chosen": "Yes: water, light, warmth.", "rejected": "Oh, what a lovely thing to talk about!"}
        for prompt in ("Does basil grow indoors?", "Can I grow mint?")
    ]
    with server.client() as api:
        api.post(f"/users/{user_id}/adapt", json={"pairs": pairs}).raise_for_status()
    return user_id


def rewards(api: httpx.Client, user_id: str | None) -> list[float]:
    body = {"user_id": user_id, "prompt": QUERY, "completions": TEXTS}
    values: list[float] = api.post("/score", json=body).raise_for_status().json()["rewards"]
    return values


def reranked(api: httpx.Client, version: int, **body: Any) -> dict[str, Any]:
    path = f"/v{version}/rerank"
    response = api.post(path, json={"query": QUERY, "documents": TEXTS, **body})
    assert response.status_code == 200, response.text
    check_answer(DOCUMENT, path, "post", response)
    answer: dict[str, Any] = response.json()
    return answer


def check_order(results: list[dict[str, Any]], expected: list[float]) -> None:
    order = sorted(range(len(expected)), key=lambda i: -expected[i])[: len(results)]
    assert [each["index"] for each in results] == order
    for each in results:
        assert each["reward"] == pytest.approx(expected[each["index"]], abs=1e-5)
        assert each["relevance_score"] == pytest.approx(1 / (1 + math.exp(-each["reward"])))


@pytest.mark.parametrize("version", [1, 2])
def test_documents_come_in_the_users_order_with_reward_and_probability(
    api: httpx.Client, ada: str, version: int
) -> None:
    checkpoint = api.get("/info").json()["checkpoint"]
    expected = rewards(api, ada)
    by_field = reranked(api, version, model=checkpoint["name"], user=ada)
    check_order(by_field["results"], expected)
    assert len(by_field["results"]) == len(TEXTS)
    told = ("user_id", "user_state", "version", "checkpoint_id", "truncated")
    assert [by_field[name] for name in told] == [ada, "adapted", 1, checkpoint["checkpoint_id"], []]
    for name in (f"{checkpoint['name']}@{ada}", f"{checkpoint['checkpoint_id']}@{ada}", f"@{ada}"):
        assert reranked(api, version, model=name)["results"] == by_field["results"]
    nobody = reranked(api, version, model="")
    check_order(nobody["results"], rewards(api, None))
    assert [nobody[name] for name in told[:3]] == [None, "population", 0]
    assert nobody["results"] != by_field["results"]


def test_what_coheres_v2_client_sends_and_reads(api: httpx.Client, ada: str) -> None:
    answer = reranked(api, 2, model=f"@{ada}", top_n=2)
    assert [set(each) >= {"index", "relevance_score"} for each in answer["results"]] == [True, True]
    assert answer["meta"] == {
        "api_version": {"version": "2"},
        "billed_units": {"search_units": 1},
        "warnings": [],
    }
    assert answer["id"]
    everything = reranked(api, 2, model=f"@{ada}", top_n=99, max_tokens_per_doc=512, priority=0, relevant_spans=None)
    assert everything["results"][:2] == answer["results"]
    assert everything["meta"]["warnings"] == [
        f"{name}: has no effect here" for name in ("max_tokens_per_doc", "priority", "relevant_spans")
    ]


def test_what_jinas_and_coheres_v1_clients_send_and_read(api: httpx.Client, ada: str) -> None:
    documents = [{"text": TEXTS[0], "title": "never read"}, *TEXTS[1:]]
    jina = reranked(api, 1, model="", user=ada, documents=documents, top_n=3)
    check_order(jina["results"], rewards(api, ada))
    assert [each["document"]["text"] for each in jina["results"]] == [TEXTS[each["index"]] for each in jina["results"]]
    assert (jina["object"], jina["model"]) == ("list", api.get("/info").json()["checkpoint"]["name"])
    assert jina["usage"] == {"total_tokens": 0}, "what caches know is free"
    fresh = reranked(api, 1, query=uuid.uuid4().hex, return_documents=False)
    assert fresh["usage"]["total_tokens"] > 20
    assert all("document" not in each for each in fresh["results"])
    cohere = reranked(api, 1, user=ada, rank_fields=["text"], max_chunks_per_doc=10, return_documents=None)
    assert [each["index"] for each in cohere["results"]][:3] == [each["index"] for each in jina["results"]]


def test_documents_that_are_too_long_are_shortened_and_told(api: httpx.Client) -> None:
    answer = reranked(api, 2, documents=["Short.", "word " * 2000])
    assert answer["truncated"] == [1]


def test_the_call_of_the_page_runs(api: httpx.Client) -> None:
    (body,) = re.findall(r"8000/v1/rerank -H \S+ \S+ -d '(.*?)'\n", PAGE.read_text(), re.DOTALL)
    response = api.post("/v1/rerank", content=body, headers={"content-type": "application/json"})
    assert response.status_code == 200, response.text
    assert response.json()["user_id"] == "ada"


@pytest.mark.parametrize("version", [1, 2])
def test_another_tenants_user_has_the_populations_order(guarded: Guarded, version: int) -> None:
    user = f"u{uuid.uuid4().hex}"
    pair = {"prompt": "Name a tree.", "chosen": "Oak.", "rejected": "What a lovely question, dear!"}
    with guarded.client(guarded.key("one")) as one, guarded.client(guarded.key("two", "score")) as two:
        one.post(f"/users/{user}/adapt", json={"pairs": [pair]}).raise_for_status()
        for named in ({"user": user}, {"model": f"@{user}"}):
            mine, theirs = (reranked(client, version, **named) for client in (one, two))
            assert (mine["user_state"], theirs["user_state"]) == ("adapted", "cold_start")
            check_order(mine["results"], rewards(one, user))
            check_order(theirs["results"], rewards(two, None))
            assert mine["results"] != theirs["results"]


MANY = ["x"] * 4097
BAD: dict[str, tuple[dict[str, Any], list[str]]] = {
    "no documents": ({"documents": []}, ["documents"]),
    "no query": ({"query": " "}, ["query"]),
    "a document without text": ({"documents": ["a", {"title": "b"}]}, ["documents[1].text"]),
    "a document that is none": ({"documents": ["a", 7]}, ["documents[1]"]),
    "top_n of nothing": ({"top_n": 0}, ["top_n"]),
    "too many documents": ({"documents": MANY}, ["documents"]),
    "a document of 1 MB": ({"documents": ["a", "x" * 1_000_000]}, ["documents[1]"]),
    "a user of another name": ({"user_id": "ada"}, ["user_id"]),
    "other fields": ({"rank_fields": ["title"]}, ["rank_fields"]),
    "two users": ({"model": "@ada", "user": "bob"}, ["user"]),
    "nobody behind the @": ({"model": "@"}, ["model"]),
    "an impossible user": ({"user": "a/b"}, ["user"]),
}


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_is_named_to_clients_of_ours_and_of_theirs(api: httpx.Client, version: int, name: str) -> None:
    changes, fields = BAD[name]
    path = f"/v{version}/rerank"
    response = api.post(path, json={"query": QUERY, "documents": TEXTS, **changes})
    assert response.status_code == 422, response.text
    check_answer(DOCUMENT, path, "post", response)
    problem = response.json()
    assert [error["field"] for error in problem["errors"]] == fields
    assert problem["message"].startswith(f"{fields[0]}: ")
    assert "4096" in problem["message"] or len(changes.get("documents", [])) < 4097


def test_a_model_that_is_not_loaded_is_not_found(api: httpx.Client) -> None:
    response = api.post("/v2/rerank", json={"model": "rerank-v3.5", "query": QUERY, "documents": TEXTS})
    assert response.status_code == 404
    assert "GET /info" in response.json()["message"]
    assert "rerank-v3.5" not in response.text
