"""The worker's OpenAPI document says what the worker does, to those who have its key and to those who have not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from documented import WORKER_DOCUMENT, Operation, check_answer, operations, read_document, schema_check
from guarded import WORKER_KEY
from workers import LiveWorker

from benchmarks.worker import WorkerProcess

DOCUMENT = read_document(WORKER_DOCUMENT)
OPERATIONS = operations(DOCUMENT)
SCHEMAS: dict[str, Any] = DOCUMENT["components"]["schemas"]


def is_public(operation: Operation) -> bool:
    return not DOCUMENT["paths"][operation.path][operation.method]["security"]


PROTECTED = [operation for operation in OPERATIONS if not is_public(operation)]


@pytest.fixture
def known(worker: WorkerProcess) -> Iterator[httpx.Client]:
    headers = {"authorization": f"Bearer {WORKER_KEY}"}
    with httpx.Client(base_url=worker.url, headers=headers, timeout=60) as client:
        yield client


@pytest.fixture
def nobody(worker: WorkerProcess) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=worker.url, timeout=60) as client:
        yield client


def test_the_routes_are_these_and_the_worker_tells_them_to_everybody(nobody: httpx.Client) -> None:
    assert {str(operation) for operation in OPERATIONS} == {
        "post /classify",
        "post /self-check",
        "get /v1/models",
        "get /live",
        "get /ready",
    }
    assert {str(operation) for operation in OPERATIONS if is_public(operation)} == {"get /live", "get /ready"}
    assert nobody.get("/openapi.json").json() == DOCUMENT


def test_every_example_fits_its_schema() -> None:
    for name in (
        "ClassifyTexts",
        "ClassifyConversation",
        "ClassifyAnswer",
        "ServedModels",
        "SelfCheckOut",
        "WorkerReady",
        "WorkerError",
    ):
        assert SCHEMAS[name]["examples"]
        for example in SCHEMAS[name]["examples"]:
            schema_check(DOCUMENT, {"$ref": f"#/components/schemas/{name}"}, example)


@pytest.mark.parametrize(
    "body", [body for name in ("ClassifyTexts", "ClassifyConversation") for body in SCHEMAS[name]["examples"]]
)
def test_documented_requests_run_and_are_answered_as_documented(known: httpx.Client, body: dict[str, Any]) -> None:
    response = known.post("/classify", json=body)
    assert response.status_code == 200, response.text
    check_answer(DOCUMENT, "/classify", "post", response)


@pytest.mark.parametrize("operation", OPERATIONS, ids=str)
def test_every_route_answers_as_documented(known: httpx.Client, operation: Operation) -> None:
    response = operation.request(known)
    assert response.status_code == 200
    check_answer(DOCUMENT, operation.path, operation.method, response)


@pytest.mark.parametrize("operation", PROTECTED, ids=str)
def test_nobody_is_let_in_without_the_key(nobody: httpx.Client, operation: Operation) -> None:
    for sent in (
        None,
        "",
        "Bearer",
        WORKER_KEY,
        f"Basic {WORKER_KEY}",
        f"Bearer: {WORKER_KEY}",
        f"Bearer {WORKER_KEY} {WORKER_KEY}",
        f"Bearer {WORKER_KEY}x",
        f"Bearer {WORKER_KEY[:-1]}",
        f"Bearer {WORKER_KEY.upper()}",
        f"Bearer {'x' * 10_000}",
        "Bearer \xe9\xff",
    ):
        headers = [] if sent is None else [(b"authorization", sent.encode("latin-1"))]
        for response in (
            operation.request(nobody, headers=headers),
            operation.request(nobody, headers=headers, params={"key": WORKER_KEY}),
            operation.request(nobody, headers=[*headers, (b"x-api-key", WORKER_KEY.encode())]),
        ):
            assert response.status_code == 401, sent
            check_answer(DOCUMENT, operation.path, operation.method, response)
            assert response.headers["www-authenticate"] == "Bearer"
            assert WORKER_KEY not in response.text
    both = [(b"authorization", f"Bearer {key}".encode()) for key in (WORKER_KEY, "x" * 32)]
    for headers in (both, both[::-1]):
        assert operation.request(nobody, headers=headers).status_code == 401
    assert operation.request(nobody, headers={"authorization": f"bearer  {WORKER_KEY}"}).status_code == 200


@pytest.mark.parametrize("path", ["/nothing", "/", "/live/", "/%2Flive", "/Live", "/docs", "/metrics", "/classify/x"])
def test_who_has_no_key_learns_nothing_of_other_paths(nobody: httpx.Client, path: str) -> None:
    for method in ("GET", "HEAD", "OPTIONS", "DELETE"):
        assert nobody.request(method, path).status_code == 401


def test_a_known_caller_is_told_which_method_a_path_takes(known: httpx.Client) -> None:
    refused = known.get("/classify")
    assert (refused.status_code, refused.headers["allow"]) == (405, "POST")
    assert known.post("/live").headers["allow"] == "GET"


def test_refusals_that_need_a_worker_in_trouble_are_documented_too() -> None:
    limits: dict[str, Any] = {"max_body_bytes": 100, "timeout_s": 0.1}
    with LiveWorker(**limits) as live, httpx.Client(base_url=live.url, timeout=60) as client:
        body = {"input": [[1]]}
        live.backbone.may_go_on.clear()
        answers = {504: client.post("/classify", json=body)}
        live.backbone.may_go_on.set()
        answers[413] = client.post("/classify", json={"input": [[1] * 60]})
        answers[415] = client.post("/classify", content=b"{}")
        answers[421] = client.post("/classify", json=body, headers={"host": "elsewhere"})
        answers[404] = client.post("/classify", json={**body, "model": "other"})
        live.backbone.broken = True
        answers[500] = client.post("/classify", json=body)
        for status, response in answers.items():
            assert response.status_code == status, response.text
            check_answer(DOCUMENT, "/classify", "post", response)
        assert int(answers[504].headers["retry-after"]) >= 1
        unready = client.get("/ready")
        assert unready.status_code == 503
        check_answer(DOCUMENT, "/ready", "get", unready)
