"""The worker's contract over a real socket: vLLM's /classify, its errors, its door."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator

import httpx
import numpy as np
import pytest
from scripted_backbone import NOT_FINITE, POISON
from workers import MODEL, TIMEOUT_S, LiveWorker, until, without_biases

from service.errors import ConfigurationError
from service.runtime.engine_key import engine_key
from service.settings import Settings

KEY = "k" * 32


@pytest.fixture(scope="module")
def live() -> Iterator[LiveWorker]:
    with LiveWorker() as worker:
        yield worker


@pytest.fixture
def client(live: LiveWorker) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=live.url, timeout=TIMEOUT_S) as client:
        yield client


def classify(client: httpx.Client, **body: object) -> httpx.Response:
    return client.post("/classify", json=body)


def rewards(response: httpx.Response) -> np.ndarray:
    assert response.status_code == 200, response.text
    return np.array([row["probs"] for row in response.json()["data"]])


def test_the_answer_is_vllms_with_base_rewards_without_biases_unrounded(client):
    texts = [[1, 2, 3], [599], [7, 8]]
    response = classify(client, model=MODEL, input=texts, use_activation=False, unknown_field=1)
    np.testing.assert_allclose(rewards(response), [without_biases(text) for text in texts], rtol=1e-14)
    answer = response.json()
    assert (answer["object"], answer["model"]) == ("list", MODEL)
    assert isinstance(answer["id"], str)
    assert isinstance(answer["created"], int)
    assert [(row["index"], row["num_classes"]) for row in answer["data"]] == [(0, 2), (1, 2), (2, 2)]
    assert all(isinstance(row["label"], str) for row in answer["data"])
    assert answer["usage"] == {"prompt_tokens": 6, "total_tokens": 6, "completion_tokens": 0}
    assert int(response.headers["x-queued-tokens"]) >= 0


def test_every_form_of_input_is_read_as_vllm_reads_it(client):
    ids = [ord(letter) % 600 for letter in "abc"]
    alone = without_biases(ids)
    np.testing.assert_allclose(rewards(classify(client, input=ids)), [alone], rtol=1e-14)
    for text in ("abc", ["abc"]):
        np.testing.assert_allclose(rewards(classify(client, input=text, add_special_tokens=False)), [alone], rtol=1e-14)
    np.testing.assert_allclose(rewards(classify(client, input="abc")), [without_biases([1, *ids])], rtol=1e-14)
    conversation = [{"role": "user", "content": "why"}, {"role": "assistant", "content": "abc"}]
    np.testing.assert_allclose(rewards(classify(client, messages=conversation)), [alone], rtol=1e-14)


@pytest.mark.parametrize(
    ("body", "param", "says"),
    [
        ({}, "input", "either input or messages"),
        ({"input": [[1]], "messages": []}, "input", "either"),
        ({"input": []}, "input", "not empty"),
        ({"input": 5}, "input", "must be"),
        ({"input": None}, "input", "must be"),
        ({"input": [[]]}, "input[0]", "at least one"),
        ({"input": [[1], []]}, "input[1]", "at least one"),
        ({"input": [[1], [-1]]}, "input[1]", "0 to 999"),
        ({"input": [[1000]]}, "input[0]", "0 to 999"),
        ({"input": [[2**63]]}, "input[0]", "0 to 999"),
        ({"input": [[1, True]]}, "input[0]", "integer"),
        ({"input": [[1.0]]}, "input[0]", "integer"),
        ({"input": [["1"]]}, "input[0]", "integer"),
        ({"input": [[1], "text"]}, "input[1]", "no list of token ids"),
        ({"input": [[[1]]]}, "input[0]", "integer"),
        ({"input": [[1] * 65]}, "input[0]", "at most 64"),
        ({"input": "x" * 64}, "input[0]", "at most 64"),
        ({"input": ["x", "ä" * 501]}, "input[1]", "more than 1000 bytes"),
        ({"input": [[1]] * 4097, "model": MODEL}, "input", "at most 4096"),
        ({"input": ["x"] * 4097}, "input", "at most 4096"),
        ({"messages": [{"role": "user", "content": "x" * 999}, {"role": "assistant", "content": "xx"}]},
         "messages", "more than 1000 bytes"),
        ({"input": ""  , "add_special_tokens": False}, "input[0]", "at least one"),
        ({"input": [[1]], "add_special_tokens": 1}, "add_special_tokens", "true nor false"),
        ({"input": [[1]], "use_activation": True}, "use_activation", "softmax"),
        ({"input": [[1]], "truncate_prompt_tokens": 5}, "truncate_prompt_tokens", "not supported"),
        ({"input": [[1]], "model": 5}, "model", "no string"),
        ({"messages": []}, "messages", "the completion"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "messages", "the completion"),
        ({"messages": [{"role": "user", "content": "x"}] * 2}, "messages[1]", "assistant"),
        ({"messages": [{"role": "user", "content": 5}] * 2}, "messages[0]", "content"),
        ({"messages": ["x", "y"]}, "messages[0]", "role"),
    ],
)  # fmt: skip
def test_every_bad_input_is_named_in_vllms_error_shape(client, body, param, says):
    if "add_special_tokens" not in body and body.get("input") == [[1]]:
        body = {**body, "model": body.get("model", MODEL)}
    response = classify(client, **body)
    assert response.status_code == 400
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["param"], error["code"], error["type"]) == (param, 400, "BadRequestError")
    assert says in error["message"]


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b'"x"', b'{"input": [[NaN]]}', b"\xff", b'{"input":[[1' + b"0" * 400]
)
def test_what_is_no_json_object_is_refused(client, body):
    response = client.post("/classify", content=body, headers={"content-type": "application/json"})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "body")


def test_many_bad_texts_are_named_but_not_all(client):
    message = classify(client, input=[[]] * 4000).json()["error"]["message"]
    assert "input[0]" in message
    assert "input[1]" in message
    assert len(message) < 2000


def test_another_model_another_path_another_method(client):
    assert classify(client, model="other", input=[[1]]).json()["error"]["type"] == "NotFoundError"
    assert classify(client, model="other", input=[[1]]).status_code == 404
    assert client.get("/nothing").status_code == 404
    assert client.get("/classify").status_code == 405
    assert client.post("/ready", json={}).status_code == 405
    plain = client.post("/classify", content=b"{}", headers={"content-type": "text/plain"})
    assert plain.status_code == 415
    served = client.get("/v1/models").json()["data"]
    assert [(model["id"], model["object"], model["max_model_len"]) for model in served] == [(MODEL, "model", 64)]


def test_a_poisonous_text_fails_its_request_and_no_other(client):
    for id_ in (POISON, NOT_FINITE):
        response = classify(client, input=[[1], [2, id_]])
        assert response.status_code == 500
        assert "input[1]" in response.json()["error"]["message"]
    rewards(classify(client, input=[[1]]))
    assert client.get("/ready").json() == {"status": "ready", "queued_tokens": 0}


def test_a_key_guards_everything_but_the_probes():
    with LiveWorker(key=KEY) as live, httpx.Client(base_url=live.url) as client:
        assert client.get("/live").status_code == 200
        assert client.get("/ready").status_code == 200
        for wrong in ({}, {"authorization": KEY}, {"authorization": f"Bearer {KEY}x"}, {"authorization": "Bearer é"}):
            headers = {name: value.encode("latin-1") for name, value in wrong.items()}
            for method, path in (("POST", "/classify"), ("GET", "/v1/models"), ("GET", "/nothing")):
                response = client.request(method, path, headers=headers)
                assert response.status_code == 401
                assert response.headers["www-authenticate"] == "Bearer"
        headers = {"authorization": f"Bearer {KEY}", "host": "worker.internal"}
        assert client.post("/classify", json={"input": [1]}, headers=headers).status_code == 200


def test_without_a_key_only_names_of_loopback_are_answered(client):
    assert client.get("/v1/models", headers={"host": "evil.example"}).status_code == 421
    assert client.get("/v1/models", headers={"host": "[::1]:80"}).status_code == 200


@pytest.mark.parametrize(
    ("host", "key", "fine"),
    [("127.0.0.1", "", True), ("0.0.0.0", "", False), ("0.0.0.0", "k" * 31, False), ("0.0.0.0", KEY, True),
     ("127.0.0.1", "short", False), ("127.0.0.1", "k " * 32, False)],
)  # fmt: skip
def test_where_a_key_is_needed_and_what_one_is(host, key, fine):
    settings = Settings(_env_file=None, host=host, engine_api_key=key)
    if fine:
        assert engine_key(settings, listens=True) == key
    else:
        with pytest.raises(ConfigurationError, match="ENGINE_API_KEY") as refused:
            engine_key(settings, listens=True)
        assert not key or key not in str(refused.value)


def test_overload_is_503_with_retry_after_before_any_work():
    with LiveWorker(max_batch_tokens=4, max_queue_tokens=8) as live, httpx.Client(base_url=live.url) as client:
        live.backbone.may_go_on.clear()
        waiting = [threading.Thread(target=httpx.post, args=(f"{live.url}/classify",), kwargs={
            "json": {"input": [[first, 2, 3, 4]]}, "timeout": TIMEOUT_S}) for first in range(3)]  # fmt: skip
        live.backbone.entered.clear()
        waiting[0].start()
        assert live.backbone.entered.wait(TIMEOUT_S)  # on the device, so that the other two fill the queue
        for thread in waiting[1:]:
            thread.start()
        until(lambda: live.worker.queued_tokens == 12)
        response = classify(client, input=[[1]])
        assert response.status_code == 503
        assert int(response.headers["retry-after"]) >= 1
        assert response.json()["error"]["type"] == "OverloadedError"
        assert response.headers["x-queued-tokens"] == "12"
        assert not any(digit in response.json()["error"]["message"] for digit in "0123456789")
        live.backbone.may_go_on.set()
        for thread in waiting:
            thread.join(TIMEOUT_S)
        rewards(classify(client, input=[[1]]))


def test_too_many_requests_and_too_large_ones_are_refused():
    with LiveWorker(max_body_bytes=1000, max_in_flight=1) as live, httpx.Client(base_url=live.url) as client:
        large = json.dumps({"input": [[1] * 1000]}).encode()
        assert client.post("/classify", content=large, headers={"content-type": "application/json"}).status_code == 413
        parts = (large[i : i + 100] for i in range(0, len(large), 100))  # without a content-length
        headers = {"content-type": "application/json"}
        assert client.post("/classify", content=parts, headers=headers).status_code == 413
        live.backbone.may_go_on.clear()
        first = threading.Thread(target=classify, args=(client,), kwargs={"input": [[1]]})
        first.start()
        assert live.backbone.entered.wait(TIMEOUT_S)
        refused = httpx.post(f"{live.url}/classify", json={"input": [[1]]})
        assert (refused.status_code, refused.json()["error"]["type"]) == (503, "OverloadedError")
        assert httpx.get(f"{live.url}/ready").status_code == 200
        live.backbone.may_go_on.set()
        first.join(TIMEOUT_S)


def test_a_client_that_leaves_takes_its_texts_back():
    with LiveWorker(max_batch_tokens=2) as live:
        live.backbone.may_go_on.clear()
        body = json.dumps({"input": [[1, 1], [2, 2], [3, 3]]}).encode()
        head = b"POST /classify HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        with socket.create_connection(("127.0.0.1", live.port)) as connection:
            connection.sendall(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
            assert live.backbone.entered.wait(TIMEOUT_S)
            until(lambda: live.worker.queued_tokens == 6)
        until(lambda: live.lifecycle.requests == 0)
        live.backbone.may_go_on.set()
        until(lambda: live.worker.queued_tokens == 0)
        assert live.backbone.batches == [[(1, 1)]]
        assert live.worker.stats.dropped_items == 2


def test_what_is_not_done_in_time_is_told_so():
    with LiveWorker(timeout_s=0.1) as live:
        live.backbone.may_go_on.clear()
        response = httpx.post(f"{live.url}/classify", json={"input": [[1]]}, timeout=TIMEOUT_S)
        assert (response.status_code, response.json()["error"]["type"]) == (504, "TimeoutError")
        live.backbone.may_go_on.set()


def test_a_worker_that_drains_or_fails_is_not_ready_and_still_lives():
    with LiveWorker() as live, httpx.Client(base_url=live.url) as client:
        live.lifecycle.draining = True
        assert client.get("/ready").json()["status"] == "draining"
        answered = classify(client, input=[[1]])
        assert answered.status_code == 200
        assert answered.headers["connection"] == "close"
        live.lifecycle.draining = False
        live.backbone.broken = True
        assert classify(client, input=[[1]]).status_code == 500
        assert client.get("/ready").status_code == 503
        assert client.get("/live").status_code == 200


def test_the_worker_counts_what_it_does(live, client):
    def value(name: str, **labels: str) -> float:
        return live.metrics.registry.get_sample_value(f"metareward_{name}", labels) or 0.0

    before = value("worker_texts_total", result="answered")
    classify(client, input=[[1, 2], [3]])
    assert value("worker_texts_total", result="answered") == before + 2
    assert value("batch_seconds_count") == value("batch_tokens_count") == value("batch_texts_count") > 0
    assert value("queue_seconds_count") > 0
