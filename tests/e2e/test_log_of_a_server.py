"""What a server writes into its log: each request with its id, and nothing that callers wrote."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from benchmarks.server import ServerProcess

# In every text, user id, key, path and header that the tests send.
SECRET = "zyxsecretzyx"
USER = f"user-{SECRET}"


class IndiscreetServer(ServerProcess):
    command = (str(Path(__file__).resolve().parents[1] / "indiscreet_server.py"), "serve")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    settings = {
        "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
        "LOG_LEVEL": "debug",
        "ACCESS_LOG": "all",
        "REQUEST_TIMEOUT_S": "1",
        "MAX_BODY_BYTES": "100000",
        "RETENTION": "texts",
    }
    with IndiscreetServer(tmp_path_factory.mktemp("indiscreet"), **settings) as server:
        yield server


def score(text: str, **fields: Any) -> dict[str, Any]:
    return {"user_id": USER, "prompt": f"Why, {SECRET}?", "completions": [f"{text} {SECRET}"], **fields}


def pair(text: str) -> dict[str, Any]:
    return {"prompt": f"Why, {SECRET}?", "chosen": f"{text} {SECRET}", "rejected": f"No, {SECRET}."}


def rating(text: str, **fields: Any) -> dict[str, Any]:
    return {"prompt": f"Why, {SECRET}?", "completion": f"{text} {SECRET}", "rating": 3, "group": SECRET, **fields}


def ranking(text: str) -> dict[str, Any]:
    return {"prompt": f"Why, {SECRET}?", "completions": [f"{text} {SECRET}", f"Or, {SECRET}."], "id": SECRET}


def test_a_line_of_a_request_says_whose_it_is(server: ServerProcess) -> None:
    with server.client() as client:
        client.get("/live", headers={"X-Request-ID": "mine-1"})
        assert (
            client.post("/score", json=score("tokenizer-fails"), headers={"X-Request-ID": "mine-2"}).status_code == 500
        )
    deadline = time.monotonic() + 30
    while server.output.count("mine-2") < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    lines = [line for line in server.output.splitlines() if "mine-" in line]
    live, failed, answered = (json.loads(line) for line in lines)
    assert live["logger"] == "service.access"
    assert {"method": "GET", "route": "/live", "status": 200, "level": "info"}.items() <= live.items()
    assert failed["level"] == "error"
    assert failed["exception"].startswith("Traceback (most recent call last):")
    assert answered["status"] == 500
    assert answered["level"] == "warning"
    assert answered["request_id"] == failed["request_id"] == "mine-2"
    assert set(answered["stages_ms"]) == {"user", "cache", "tokenise"}
    assert answered["bytes_in"] > 0 < answered["bytes_out"]


# The last one: it leaves a server without a worker.
def test_no_request_and_no_failure_puts_a_text_a_user_or_a_key_into_the_log(server: ServerProcess) -> None:
    with server.client() as client:
        client.headers.update({"Cookie": SECRET, "User-Agent": SECRET})
        adapt = f"/users/{USER}/adapt"
        asked = [
            (client.post("/score", json=score("fine")), 200),
            (client.post("/score", json=score("fine"), headers={"Authorization": f"Bearer mr_{SECRET}"}), 401),
            (client.post(adapt, json={"pairs": [pair("fine")]}, headers={"Idempotency-Key": SECRET}), 200),
            (client.post(adapt, json={"pairs": [pair("other")]}, headers={"Idempotency-Key": SECRET}), 422),
            (client.post(adapt, json={"ratings": [rating("fine")], "rankings": [ranking("fine")]}), 200),
            (client.post(adapt, json={"ratings": [rating("fine", rating=SECRET)]}), 422),
            (client.get(f"/users/{USER}/evidence?after={SECRET}"), 200),
            (client.get(f"/users/{USER}/export"), 200),
            (client.delete(f"/users/{USER}/evidence?id={SECRET}"), 200),
            (client.post(f"/users/{USER}/rollback", json={"version": 1}), 200),
            (client.post(f"/users/{USER}/reset", json={"forget": SECRET}), 422),
            (client.get(f"/users/{USER}"), 200),
            (client.get(f"/users?after={USER}"), 200),
            (client.get("/info"), 200),
            (client.delete(f"/users/{USER}"), 204),
            (client.get(f"/users/{USER}"), 404),
            (client.get(f"/{SECRET}?q={SECRET}"), 404),
            (client.put(f"/users/{USER}", json={}), 405),
            (client.post("/score", json=score("fine", min_version=7)), 409),
            (client.post("/score", json=score("long " * 600)), 422),
            (client.post("/score", json=score("fine", unknown=SECRET)), 422),
            (client.post("/score", json=score("fine", min_version=SECRET)), 422),
            (
                client.post("/score", content=f'{{"{SECRET}": {SECRET}', headers={"Content-Type": "application/json"}),
                422,
            ),
            (client.post("/score", content=SECRET.encode()), 415),
            (client.post("/score", json=score("big " * 50_000)), 413),
            (client.get("/info", headers={"Host": f"{SECRET}.example"}), 421),
            (client.post("/score", json=score("tokenizer-fails")), 500),
            (client.post("/score", json=score("device-fails")), 500),
            (client.post(adapt, json={"pairs": [pair("device-fails")]}), 500),
            (client.post("/score", json=score("loop-fails")), 200),
            (client.post("/score", json=score("device-slow")), 503),
        ]
        assert [(answer.request.url.path, answer.status_code) for answer, _ in asked] == [
            (answer.request.url.path, status) for answer, status in asked
        ]
        with pytest.raises(httpx.ReadTimeout):
            client.post("/score", json=score("device-slow", prompt="Leaves early"), timeout=0.3)
        assert client.post("/score", json=score("worker-dies")).status_code == 500
        deadline = time.monotonic() + 30
        while "metareward-worker dies" not in server.output and time.monotonic() < deadline:
            time.sleep(0.05)

    log = server.output
    assert SECRET not in log.lower()
    # Each failure is there all the same, by type and place.
    for told in (
        "__main__.IndiscreetError: (message of",
        "KeyError: (message of",
        "__main__.DeadlyError: (message of",
        "in indiscreet_tokenise",
        "thread metareward-worker dies",
        "Task exception was never retrieved",
        "Exception in callback",
        "a log record could not be written",
        "an error as an argument: __main__.IndiscreetError: (message of",
    ):
        assert told in log, told
