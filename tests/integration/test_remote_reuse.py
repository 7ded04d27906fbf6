"""What the remote engine sends where: scopes apart, prompts together, faulty texts found, time limits told."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import wait
from typing import Any

import httpx
import pytest
from scripted_backbone import POISON
from workers import GOLDEN, TIMEOUT_S, LiveWorker, StockServer, expected, stock_answer, until

from service.backbone.protocol import DoubledBos
from service.errors import EngineError, Unavailable


def check(texts: list[list[int]], futures: list) -> None:
    for text, future in zip(texts, futures, strict=True):
        assert future.result(TIMEOUT_S).tolist() == pytest.approx(expected(text).tolist(), rel=1e-12)


def asked(stock: StockServer) -> list[list[list[int]]]:
    """The texts of each request, golden ones left out."""
    requests = [request["input"] for request in stock.asked]
    return [texts for texts in requests if not any(tuple(text) in GOLDEN for text in texts)]


def completions(prompt: int, count: int) -> list[list[int]]:
    return [[prompt] * 320 + [i, prompt] for i in range(count)]


def test_a_request_holds_texts_of_one_scope_whose_name_does_not_travel(connect):
    started, may_go_on = threading.Event(), threading.Event()

    def say(texts: list[list[int]]) -> tuple[int, Any]:
        started.set()
        may_go_on.wait(TIMEOUT_S)
        return 200, stock_answer(texts)

    with StockServer(say) as stock:
        engine = connect(stock.url, max_batch_tokens=20)
        first = engine.submit([[9] * 60], scope=b"x")  # as much as may be under way
        assert started.wait(TIMEOUT_S)
        texts = [[i, i] for i in range(1, 9)]
        futures = [engine.submit([text], scope=b"ab"[i % 2 : i % 2 + 1])[0] for i, text in enumerate(texts)]
        until(lambda: engine.queued_tokens == 76)
        may_go_on.set()
        check([[9] * 60, *texts], [*first, *futures])
        salts = {tuple(map(tuple, request["input"])): request.get("cache_salt") for request in stock.asked}
        assert salts[((1, 1), (3, 3), (5, 5), (7, 7))] == b"a".hex()
        assert salts[((2, 2), (4, 4), (6, 6), (8, 8))] == b"b".hex()
        engine.close(1.0)


def test_single_texts_of_a_prompt_go_to_the_worker_that_knows_it_and_prompts_to_all(connect):
    may_go_on = threading.Event()

    def say(texts: list[list[int]]) -> tuple[int, Any]:
        may_go_on.wait(TIMEOUT_S)
        return 200, stock_answer(texts)

    with StockServer(say) as one, StockServer(say) as two:
        engine = connect(one.url, two.url)
        first = [completions(prompt, 1)[0] for prompt in range(1, 7)]
        futures = [engine.submit([text])[0] for text in first]
        until(lambda: len(asked(one)) + len(asked(two)) == 6)
        may_go_on.set()
        check(first, futures)
        for turn in range(1, 4):
            for prompt in range(1, 7):
                text = completions(prompt, 4)[turn]
                check([text], engine.submit([text]))
        where = [{text[0] for texts in asked(stock) for text in texts} for stock in (one, two)]
        assert [len(prompts) for prompts in where] == [3, 3]
        assert where[0] | where[1] == set(range(1, 7))
        engine.close(1.0)


def test_the_completions_of_a_prompt_are_one_request_and_prompts_are_shared_among_workers(connect):
    with StockServer() as one, StockServer() as two:
        engine = connect(one.url, two.url)
        texts = [text for prompt in range(1, 5) for text in completions(prompt, 8)]
        check(texts, engine.submit(texts))
        prompts = [[{text[0] for text in texts} for texts in asked(stock)] for stock in (one, two)]
        seen = [prompt for requests in prompts for request in requests for prompt in request]
        assert sorted(seen) == [1, 2, 3, 4], "no prompt is in two requests"
        assert all(prompts), "both workers have work"
        engine.close(1.0)


@pytest.mark.parametrize("status", [422, 500])
def test_a_faulty_text_that_nobody_names_is_found_by_halves_and_harms_no_other(connect, status):
    refusal = {"error": {"message": "no", "type": "InternalServerError", "param": None, "code": status}}

    def say(texts: list[list[int]]) -> tuple[int, Any]:
        return (status, refusal) if any(POISON in text for text in texts) else (200, stock_answer(texts))

    with StockServer(say) as stock:
        engine = connect(stock.url)
        texts = [[i + 1, i] for i in range(64)]
        texts[41] = [POISON]
        futures = engine.submit(texts)
        wait(futures, TIMEOUT_S)
        assert isinstance(futures[41].exception(0), EngineError)
        check(texts[:41] + texts[42:], futures[:41] + futures[42:])
        requests = asked(stock)
        assert len(requests) <= 1 + 2 * 6 + 1
        assert sum(len(request) == 1 for request in requests) <= 3, "only what was left of the halves is alone"
        engine.close(1.0)


def test_faulty_texts_that_are_named_leave_at_once(connect):
    with LiveWorker() as one, LiveWorker() as two:
        engine = connect(one.url, two.url)
        texts = [[i + 1, i] for i in range(64)]
        texts[5] = texts[50] = [POISON, 1]
        retried = engine.metrics.registry.get_sample_value("metareward_engine_retries_total")
        assert retried == 0
        futures = engine.submit(texts)
        wait(futures, TIMEOUT_S)
        for i, future in enumerate(futures):
            if i in (5, 50):
                assert isinstance(future.exception(0), EngineError)
            else:
                check([texts[i]], [future])
        retries = engine.metrics.registry.get_sample_value("metareward_engine_retries_total")
        assert retries <= 64, "every text once more at most"
        engine.close(1.0)


def test_a_worker_is_told_how_long_its_answer_is_waited_for_and_is_not_blamed_for_a_callers_limit(connect):
    with LiveWorker() as live:
        engine = connect(live.url)
        check([[1, 2]], engine.submit([[1, 2]], deadline=time.monotonic() + 30))
        live.backbone.may_go_on.clear()
        (late,) = engine.submit([[3, 4]], deadline=time.monotonic() + 0.3)
        (patient,) = engine.submit([[5, 6]])
        assert isinstance(late.exception(TIMEOUT_S), Unavailable)
        (too_late,) = engine.submit([[7, 8]], deadline=time.monotonic() - 1)
        assert isinstance(too_late.exception(TIMEOUT_S), Unavailable)
        assert engine.healthy
        live.backbone.may_go_on.set()
        check([[5, 6]], [patient])
        assert not [text for batch in live.backbone.batches for text in batch if text == (7, 8)]
        engine.close(1.0)


def test_a_worker_drops_what_nobody_waits_for_and_says_that_time_is_up():
    with LiveWorker(max_batch_tokens=2) as live, httpx.Client(base_url=live.url, timeout=TIMEOUT_S) as client:
        live.backbone.may_go_on.clear()
        first = threading.Thread(target=client.post, args=("/classify",), kwargs={"json": {"input": [[1, 1]]}})
        first.start()
        assert live.backbone.entered.wait(TIMEOUT_S)
        late = client.post("/classify", json={"input": [[2, 2]]}, headers={"x-timeout-ms": "100"})
        assert (late.status_code, late.json()["error"]["type"]) == (504, "TimeoutError")
        live.backbone.may_go_on.set()
        first.join(TIMEOUT_S)
        until(lambda: live.worker.queued_tokens == 0)
        assert live.backbone.batches == [[(1, 1)]]
        for wrong in ("0", "-1", "1.5", "soon", "9999999999"):
            refused = client.post("/classify", json={"input": [[1]]}, headers={"x-timeout-ms": wrong})
            assert (refused.status_code, refused.json()["error"]["param"]) == (400, "x-timeout-ms")
        for salt in ("", 5, "x" * 1025, ["x"]):
            refused = client.post("/classify", json={"input": [[1]], "cache_salt": salt})
            assert (refused.status_code, refused.json()["error"]["param"]) == (400, "cache_salt")
        assert client.post("/classify", json={"input": [[1]], "cache_salt": "x" * 1024}).status_code == 200


def test_texts_that_replicas_ask_for_at_once_are_computed_once_in_a_scope():
    with LiveWorker(max_batch_tokens=2) as live:
        live.backbone.may_go_on.clear()
        answers: list[Any] = []

        def ask(body: dict[str, Any]) -> None:
            answers.append(httpx.post(f"{live.url}/classify", json=body, timeout=TIMEOUT_S).json()["data"])

        bodies = [{"input": [[1, 1]]}]
        bodies += [{"input": [[2, 2], [3, 3]]}] * 3 + [{"input": [[2, 2], [3, 3]], "cache_salt": "theirs"}]
        threads = [threading.Thread(target=ask, args=(body,)) for body in bodies]
        for thread in threads:
            thread.start()
        until(lambda: live.lifecycle.requests == 5 and live.worker.queued_tokens == 10)
        live.backbone.may_go_on.set()
        for thread in threads:
            thread.join(TIMEOUT_S)
        computed = [text for batch in live.backbone.batches for text in batch]
        assert sorted(computed) == [(1, 1), (2, 2), (2, 2), (3, 3), (3, 3)]
        assert len({json.dumps(answer) for answer in answers if len(answer) == 2}) == 1


def test_every_failed_text_is_named_and_a_doubled_bos_is_dropped_before_it_counts():
    with LiveWorker() as live, httpx.Client(base_url=live.url, timeout=TIMEOUT_S) as client:
        message = client.post("/classify", json={"input": [[1], [POISON], [2], [3, POISON]]}).json()["error"]["message"]
        assert message.startswith("input[1]: ")
        assert "; input[3]: " in message
        assert "input[0]" not in message
        noted: list[int] = []
        live.backbone.renderer.doubled_bos = DoubledBos(7, lambda: noted.append(1))
        answer = client.post("/classify", json={"input": [[7, 7, 7, 8], [8, 7, 7], [7, 8]]}).json()
        assert answer["usage"]["prompt_tokens"] == 7
        assert answer["data"][0]["probs"] == answer["data"][2]["probs"]
        assert noted == [1]
