"""Balancing among remote workers and reading their answers, without sockets."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from workers import MODEL, stock_answer, without_biases

from service.errors import ConfigurationError
from service.worker import balance, wire
from service.worker.balance import WorkerLoad
from service.worker.connection import worker_names
from service.worker.wire import TextsRefused, WorkerBusy, WorkerFailed


def read(content, status=200, headers=None, texts=1):
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    return wire.read_classify(status, headers or {}, body, model=MODEL, texts=texts, heads=2)


def error(kind="InternalServerError"):
    return {"error": {"message": "no", "type": kind, "param": None, "code": 0}}


def test_the_worker_with_the_fewest_tokens_ahead_is_next():
    loads = {"a": WorkerLoad(100, tokens=50), "b": WorkerLoad(100, tokens=10, others_tokens=45), "c": WorkerLoad(100)}
    assert balance.least_loaded(loads.items()) == "c"
    assert balance.least_loaded([("a", loads["a"]), ("b", loads["b"])]) == "a"


def test_what_others_queue_is_what_the_worker_tells_beyond_our_own():
    load = WorkerLoad(100)
    load.sent(30, now=0.0)
    load.told(100)
    assert load.others_tokens == 70
    load.told(10)
    assert load.others_tokens == 0
    load.told(None)
    assert load.others_tokens == 0


def test_speed_counts_busy_time_only():
    load = WorkerLoad(1000)
    for start in (0.0, 100.0, 200.0):  # idle between them
        load.sent(500, now=start)
        load.returned(500, now=start + 1.0, answered=True)
    assert load.speed.tokens_per_s == pytest.approx(500.0)
    load.sent(500, now=300.0)
    load.returned(500, now=301.0, answered=False)
    assert load.speed.tokens_per_s == pytest.approx(500.0)


def test_answers_that_come_together_are_not_taken_for_speed():
    load = WorkerLoad(3 * 8192)
    load.speed.note(1, 0.1)
    for round_ in range(100):
        began = 0.1 * round_
        for _ in range(4):
            load.sent(100, now=began)
        for i in range(4):
            load.returned(100, now=began + 0.04 + i * 1e-6, answered=True)
    assert load.speed.tokens_per_s == pytest.approx(10_000, rel=0.01)


def test_light_traffic_tells_nothing_of_a_worker():
    load = WorkerLoad(3 * 8192)
    for start in range(100):
        load.sent(20, now=float(start))
        load.returned(20, now=start + 0.01, answered=True)
    assert load.speed.tokens_per_s is None
    load.sent(8192, now=200.0)
    load.returned(8192, now=200.1, answered=True)
    assert load.speed.tokens_per_s == pytest.approx(81_920.0)


@given(st.integers(0, 10**6), st.integers(1, 8), st.integers(1024, 100_000))
def test_a_request_is_shared_among_the_free_but_not_into_crumbs(pending, free, max_batch_tokens):
    share = balance.share_tokens(pending, free, max_batch_tokens)
    assert 1024 <= share <= max_batch_tokens
    if 1024 * free <= pending <= max_batch_tokens * free:
        assert (share - 1) * free < pending <= share * free


@given(st.integers(1, 10**6))
def test_the_first_text_of_a_request_always_fits(tokens):
    assert balance.fits(0, 0, tokens, 1)
    assert not balance.fits(1, 1, tokens, 1)


def test_a_worker_is_left_alone_for_longer_and_longer_but_not_for_ever():
    pauses = [balance.backoff_s(failures) for failures in range(30)]
    assert pauses == sorted(pauses)
    assert 0 < pauses[0] < 0.5
    assert pauses[-1] <= 5.0


def test_a_stock_answer_is_read_to_the_last_bit():
    texts = [(1, 2, 3), (599,)]
    np.testing.assert_array_equal(read(stock_answer(texts), texts=2), [without_biases(text) for text in texts])


def changed(**fields):
    return {**stock_answer([(1, 2)]), **fields}


def row(**fields):
    return changed(data=[{**stock_answer([(1, 2)])["data"][0], **fields}])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"no json", "answer"),
        (b"[]", "answer"),
        (changed(model="other"), "model"),
        (changed(data=[]), "answer"),
        (changed(data=None), "answer"),
        (changed(data=[None]), "answer"),
        (row(probs=[1.0]), "answer"),
        (row(probs=[[1.0, 2.0]]), "answer"),
        (row(probs=["x", "y"]), "answer"),
        (row(probs=None), "answer"),
        (row(index=1), "answer"),
    ],
)
def test_a_wrong_answer_speaks_against_the_worker(content, reason):
    with pytest.raises(WorkerFailed) as failed:
        read(content)
    assert failed.value.reason == reason


@pytest.mark.parametrize("number", [b"NaN", b"null", b"Infinity"])
def test_numbers_that_are_not_finite_are_refused_whoever_is_at_fault(number):
    content = json.dumps(row(probs=[1.5, 0])).encode().replace(b"1.5", number)
    with pytest.raises(TextsRefused) as refused:
        read(content)
    assert refused.value.suspicious


@pytest.mark.parametrize(
    ("status", "content", "outcome"),
    [
        (400, error(), TextsRefused),
        (413, error(), TextsRefused),
        (500, error(), TextsRefused),
        (401, error(), WorkerFailed),
        (404, error(), WorkerFailed),
        (502, b"<html>", WorkerFailed),
        (503, b"<html>", WorkerFailed),
        (503, error("ServiceUnavailableError"), WorkerFailed),
        (503, error("OverloadedError"), WorkerBusy),
        (503, error("Service Unavailable"), WorkerBusy),
        (504, error(), WorkerFailed),
        (302, b"", WorkerFailed),
    ],
)
def test_a_status_says_whether_the_text_the_worker_or_the_hour_is_wrong(status, content, outcome):
    with pytest.raises(outcome):
        read(content, status)


@pytest.mark.parametrize(("header", "seconds"), [("7", 7.0), ("0", 1.0), ("9999", 60.0), ("Sun", 1.0), (None, 1.0)])
def test_when_an_overloaded_worker_has_time_again(header, seconds):
    with pytest.raises(WorkerBusy) as busy:
        read(error("OverloadedError"), 503, {} if header is None else {"retry-after": header})
    assert busy.value.retry_after_s == seconds


def test_models_are_read_of_ours_and_of_stock():
    def models(*entries):
        return wire.read_models(200, {}, json.dumps({"data": entries}).encode(), model=MODEL)

    assert models({"id": "x"}, {"id": MODEL, "dtype": "bfloat16"}).dtype == "bfloat16"
    assert models({"id": MODEL}).dtype is None
    for entries in ([], [{"id": "x"}], ["x"]):
        with pytest.raises(WorkerFailed) as failed:
            models(*entries)
        assert failed.value.reason == "model"


def test_urls_become_names_without_anything_secret():
    assert worker_names(["http://a:1", "https://b/x/"]) == {"a:1": "http://a:1", "b/x": "https://b/x/"}
    for wrong in (
        ["ftp://a"],
        ["a:1"],
        ["http://"],
        ["http://u:secret@a"],
        ["http://a:1", "http://a:1"],
    ):
        with pytest.raises(ConfigurationError, match="ENGINE_URL") as refused:
            worker_names(wrong)
        assert "secret" not in str(refused.value)
