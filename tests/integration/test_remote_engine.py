"""The remote engine over real sockets: one answer each, whatever becomes of the workers."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, wait
from typing import Any

import numpy as np
import pytest
from scripted_backbone import NOT_FINITE, POISON
from workers import (
    A_KD,
    GOLDEN,
    MODEL,
    TIMEOUT_S,
    LiveWorker,
    StockServer,
    expected,
    stock_answer,
    until,
)

from service.errors import EngineError, Overloaded, Unavailable
from service.worker import fleet
from service.worker.remote import RemoteEngine

KEY = "k" * 32


@pytest.fixture
def start() -> Iterator[Callable[..., LiveWorker]]:
    started: list[LiveWorker] = []

    def start(**options: Any) -> LiveWorker:
        started.append(LiveWorker(**options).start())
        return started[-1]

    yield start
    for worker in started:
        worker.__exit__()


def value(engine: RemoteEngine, name: str, **labels: str) -> float:
    return engine.metrics.registry.get_sample_value(f"metareward_{name}", labels) or 0.0


def ejections(engine: RemoteEngine, reason: str) -> float:
    samples = next(m for m in engine.metrics.registry.collect() if m.name == "metareward_engine_ejections").samples
    return sum(sample.value for sample in samples if sample.labels["reason"] == reason)


def check(texts: list[list[int]], futures: list[Future]) -> None:
    for text, future in zip(texts, futures, strict=True):
        np.testing.assert_allclose(future.result(TIMEOUT_S), expected(text), rtol=1e-12)


def some_texts(count: int, length: int = 20) -> list[list[int]]:
    return [[(7 * i + j) % 600 for j in range(1, length + 1)] for i in range(count)]


def test_answers_are_those_of_a_worker_here_and_a_large_request_is_shared(start, connect):
    one, two = start(key=KEY), start(key=KEY)
    engine = connect(one.url, two.url, key=KEY)
    assert engine.healthy
    texts = some_texts(300)
    before = [worker.worker.stats.items for worker in (one, two)]
    check(texts, engine.submit(texts))
    shares = [worker.worker.stats.items - b for worker, b in zip((one, two), before, strict=True)]
    assert sum(shares) == 300
    assert min(shares) >= 100
    assert engine.queued_tokens == 0
    assert value(engine, "dependency_up", dependency="engine") == 1
    assert value(engine, "engine_retries_total") == 0


def test_stock_vllm_is_a_worker_like_any_other(connect):
    with StockServer() as stock:
        engine = connect(stock.url)
        texts = some_texts(20)
        asked_before = len(stock.asked)
        check(texts, engine.submit(texts))
        assert all(set(request) == {"model", "input", "use_activation"} for request in stock.asked[asked_before:])
        check(texts, engine.submit(texts, scope=b"\x0a\xff", deadline=time.monotonic() + 60))
        assert stock.asked[-1]["cache_salt"] == "0aff"
        assert {(request["model"], request["use_activation"]) for request in stock.asked} == {(MODEL, False)}
        engine.close(1.0)


def test_a_poisonous_text_fails_alone_after_two_workers_refused_it_and_both_serve_on(start, connect):
    one, two = start(), start()
    engine = connect(one.url, two.url)
    texts = [[1], [2, POISON], [3], [4, NOT_FINITE], [5]]
    futures = engine.submit(texts)
    wait(futures, TIMEOUT_S)
    check([texts[i] for i in (0, 2, 4)], [futures[i] for i in (0, 2, 4)])
    for i in (1, 3):
        assert isinstance(futures[i].exception(0), EngineError)
    assert all(any(POISON in text for batch in worker.backbone.batches for text in batch) for worker in (one, two))
    time.sleep(0.7)  # the golden texts are asked again meanwhile
    assert engine.healthy
    assert sum(ejections(engine, reason) for reason in ("golden", "status", "answer")) == 0


def test_with_one_worker_a_poisonous_text_ends_too(start, connect):
    engine = connect(start().url)
    futures = engine.submit([[POISON], [1]])
    assert isinstance(futures[0].exception(TIMEOUT_S), EngineError)
    check([[1]], futures[1:])


def test_a_wrong_checkpoint_never_serves_and_the_others_do(start, connect):
    good, other_name = start(), start(model="b" * 64)
    impostor = start(heads_KD=A_KD * 1.5)
    engine = connect(good.url, other_name.url, impostor.url)
    texts = some_texts(200)
    check(texts, engine.submit(texts))
    assert ejections(engine, "model") == 1
    assert ejections(engine, "golden") == 1
    assert not [text for batch in impostor.backbone.batches for text in batch if text not in GOLDEN]
    assert other_name.worker.stats.items == 0


def test_workers_killed_under_load_cost_nobody_an_answer_and_return_by_golden_texts(start, connect):
    one, two = start(max_batch_tokens=256), start(max_batch_tokens=256)
    engine = connect(one.url, two.url)
    answers: dict[int, int] = {}
    accepted: list[tuple[list[int], Future]] = []
    lock, stop = threading.Lock(), threading.Event()

    def count(future: Future) -> None:
        with lock:
            answers[id(future)] = answers.get(id(future), 0) + 1

    def caller(seed: int) -> None:
        n = 0
        while not stop.is_set():
            texts = [[(seed * 31 + n * 7 + i + j) % 600 for j in range(1, 12)] for i in range(16)]
            n += 1
            futures = engine.submit(texts)
            for future in futures:
                future.add_done_callback(count)
            with lock:
                accepted.extend(zip(texts, futures, strict=True))
            wait(futures, TIMEOUT_S)

    threads = [threading.Thread(target=caller, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for worker in (one, two):
        until(lambda worker=worker: worker.worker.stats.items > 100)
        worker.stop()
        until(lambda: ejections(engine, "connection") >= 1)
        worker.start()
        name = f"127.0.0.1:{worker.port}"
        until(lambda name=name: value(engine, "engine_worker_up", worker=name) == 1)
    stop.set()
    for thread in threads:
        thread.join(TIMEOUT_S)
        assert not thread.is_alive()
    assert answers == {id(future): 1 for _, future in accepted}
    check(*map(list, zip(*accepted, strict=True)))
    assert ejections(engine, "connection") >= 2
    assert value(engine, "engine_retries_total") > 0
    # Who came back scored the golden texts before anything else.
    assert all(worker.backbone.batches[0][0] == GOLDEN[0] for worker in (one, two))


def test_a_frozen_worker_is_taken_out_and_its_texts_go_to_another(start, connect):
    frozen, other = start(), start()
    engine = connect(frozen.url, other.url, timeout_s=2.0)
    frozen.backbone.may_go_on.clear()
    futures = [(text, engine.submit([text])[0]) for text in some_texts(40)]
    late = 0
    for text, future in futures:
        if isinstance(future.exception(TIMEOUT_S), Unavailable):
            late += 1
        else:
            check([text], [future])
    assert 0 < late < 40
    until(lambda: ejections(engine, "timeout") == 1)
    assert engine.healthy
    check([[1, 2]], engine.submit([[1, 2]]))
    frozen.backbone.may_go_on.set()
    until(lambda: value(engine, "engine_worker_up", worker=f"127.0.0.1:{frozen.port}") == 1)


def test_overloaded_workers_are_passed_over_and_all_of_them_say_when(start, connect):
    busy = [False, False]

    def say(i: int) -> Callable[[list[list[int]]], tuple[int, Any]]:
        overloaded = {"error": {"message": "m", "type": "OverloadedError", "param": None, "code": 503}}
        return lambda texts: (503, overloaded) if busy[i] else (200, stock_answer(texts))

    with StockServer(say(0)) as one, StockServer(say(1)) as two:
        engine = connect(one.url, two.url)
        busy[0] = True
        texts = some_texts(200)
        check(texts, engine.submit(texts))
        busy[1] = True
        time.sleep(1.1)  # the pause of the first
        error = engine.submit([[1, 2]])[0].exception(TIMEOUT_S)
        assert isinstance(error, Overloaded)
        assert error.retry_after_s >= 1
        with pytest.raises(Overloaded):
            engine.check_room(1)
        assert engine.healthy, "busy is not down"
        busy[:] = False, False
        until(lambda: _admits(engine))
        check([[1, 2]], engine.submit([[1, 2]]))
        engine.close(1.0)


def test_a_job_that_is_more_than_may_wait_has_nobody_else_refused(start, connect):
    worker = start()
    engine = connect(worker.url, max_batch_tokens=40, max_queue_tokens=400)
    worker.backbone.may_go_on.clear()
    large = engine.submit(some_texts(200))
    small = [*engine.submit([[1, 2, 3]]), *engine.submit([[4, 5]], scope=b"other")]
    with pytest.raises(Overloaded):
        engine.submit(some_texts(200))
    worker.backbone.may_go_on.set()
    check([[1, 2, 3], [4, 5]], small)
    check(some_texts(200), large)
    assert not engine._large
    engine.check_room(400)


def test_a_worker_that_is_full_of_a_job_does_not_have_the_rest_of_it_refused(start, connect):
    worker = start(max_queue_tokens=100)
    engine = connect(worker.url, max_batch_tokens=64)
    worker.backbone.may_go_on.clear()
    futures = engine.submit(some_texts(20))
    pauses = engine._fleet.workers[worker.url.removeprefix("http://")].load
    until(lambda: pauses.paused_until > 0)
    worker.backbone.may_go_on.set()
    check(some_texts(20), futures)


def _admits(engine: RemoteEngine) -> bool:
    try:
        engine.check_room(1)
    except Overloaded:
        return False
    return True


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ((502, b"<html>bad gateway</html>"), "status"),
        ((401, {"error": {"message": "m", "type": "AuthenticationError", "param": None, "code": 401}}), "status"),
        ((404, {"error": {"message": "m", "type": "NotFoundError", "param": None, "code": 404}}), "model"),
        ((200, b"garbage"), "answer"),
        ((200, {**stock_answer([[1]]), "model": "other"}), "model"),
        ((200, {**stock_answer([[1]]), "data": []}), "answer"),
    ],
)
def test_a_worker_that_goes_wrong_is_taken_out_and_the_texts_are_answered_elsewhere(start, connect, answer, reason):
    with StockServer(lambda _: answer) as wrong:
        engine = connect(wrong.url, start().url)
        texts = some_texts(200)
        check(texts, engine.submit(texts))
        assert ejections(engine, reason) >= 1
        engine.close(1.0)


def test_a_worker_whose_numbers_turn_is_found_by_golden_texts(connect, start):
    null = {**stock_answer([[1]])["data"][0], "probs": [None, 0.0]}
    with StockServer(
        lambda texts: (200, {**stock_answer(texts), "data": [{**null, "index": i} for i in range(len(texts))]})
    ) as bad:
        engine = connect(bad.url, start().url)
        texts = some_texts(100)
        check(texts, engine.submit(texts))
        engine.close(1.0)


def test_without_a_worker_it_starts_refuses_at_once_and_serves_when_one_comes(start, connect):
    worker = start()
    worker.stop()
    engine = connect(worker.url)
    assert not engine.healthy
    assert engine.shared
    for refused in (lambda: engine.submit([[1]]), lambda: engine.check_room(1)):
        with pytest.raises(Unavailable) as error:
            refused()
        assert error.value.retry_after_s >= 1
    assert value(engine, "dependency_up", dependency="engine") == 0
    worker.start()
    until(lambda: engine.healthy)
    check([[1]], engine.submit([[1]]))


def test_cancelling_all_texts_of_a_request_ends_it_and_cancelling_some_does_not(start, connect):
    worker = start(max_batch_tokens=2)
    engine = connect(worker.url)
    worker.backbone.may_go_on.clear()
    blocking = engine.submit([[1, 1]])
    until(lambda: worker.worker.queued_tokens == 2)
    gone, kept = engine.submit([[2, 2], [3, 3]]), engine.submit([[4, 4], [5, 5]])
    until(lambda: worker.worker.queued_tokens == 10)
    assert all(future.cancel() for future in gone)
    assert kept[0].cancel()
    until(lambda: worker.lifecycle.requests == 2)
    worker.backbone.may_go_on.set()
    check([[1, 1], [5, 5]], [*blocking, kept[1]])
    assert not [text for batch in worker.backbone.batches for text in batch if text in ((2, 2), (3, 3))]
    with pytest.raises(CancelledError):
        gone[0].result(0)
    assert wait([*gone, kept[0]], 5).not_done == set()
    until(lambda: engine.queued_tokens == 0)


def test_too_much_is_refused_and_told_without_numbers(start, connect):
    worker = start()
    engine = connect(worker.url, max_queue_tokens=100)
    worker.backbone.may_go_on.clear()
    large = engine.submit(some_texts(10))  # an idle engine takes a request of any size
    with pytest.raises(Overloaded) as refused:
        engine.submit([[1]])
    assert not any(digit in str(refused.value) for digit in "0123456789")
    worker.backbone.may_go_on.set()
    check(some_texts(10), large)
    check([[1]], engine.submit([[1]]))


def test_closing_answers_what_was_accepted_and_refuses_the_rest(start, connect):
    worker = start()
    engine = connect(worker.url)
    texts = some_texts(50)
    futures = engine.submit(texts)
    engine.close(TIMEOUT_S)
    check(texts, futures)
    with pytest.raises(Unavailable):
        engine.submit([[1]])
    assert not engine.healthy

    engine = connect(worker.url)
    worker.backbone.may_go_on.clear()
    futures = engine.submit(texts)
    engine.close(0.1)
    assert all(isinstance(future.exception(TIMEOUT_S), Unavailable) for future in futures)


def test_a_worker_that_refuses_everything_fails_no_text_that_another_could_take(start, connect):
    good = start(max_batch_tokens=20)
    with StockServer(say=lambda _: (500, {"error": {"message": "no", "type": "InternalServerError"}})) as faulty:
        engine = connect(good.url, faulty.url, max_batch_tokens=20)
        good.backbone.may_go_on.clear()
        texts = some_texts(8)
        futures = engine.submit(texts)
        until(lambda: engine._fleet.workers[good.url.removeprefix("http://")].load.tokens >= 60)  # it has no room
        time.sleep(0.3)  # and the other one is quick to refuse
        good.backbone.may_go_on.set()
        check(texts, futures)
        engine.close(1.0)


def test_many_workers_lost_at_once_are_no_fault_of_the_texts(start, connect, monkeypatch):
    workers = [start() for _ in range(5)]
    monkeypatch.setattr(fleet, "_PROBE_INTERVAL_S", 3600.0)  # the texts are the first to notice
    engine = connect(*(worker.url for worker in workers))
    for worker in workers:
        worker.stop()
    (future,) = engine.submit([[1]])
    assert isinstance(future.exception(TIMEOUT_S), Unavailable)


def test_a_pause_ends_when_the_worker_says_that_nothing_waits_there(start, connect):
    engine = connect(start().url)
    (worker,) = engine._fleet.workers.values()
    worker.load.paused_until = time.monotonic() + 3600
    with pytest.raises(Overloaded):
        engine.submit([[1]])
    until(lambda: worker.load.paused_until <= time.monotonic())
    check([[1]], engine.submit([[1]]))


def test_a_worker_under_suspicion_that_has_no_time_is_asked_again(start, connect):
    live = start()
    engine = connect(live.url)
    (worker,) = engine._fleet.workers.values()
    live.lifecycle._max_requests = 0
    engine._loop.call_soon_threadsafe(engine._fleet.suspect, worker)
    until(lambda: worker.load.paused_until > time.monotonic())
    live.backbone.batches.clear()
    live.lifecycle._max_requests = 1000
    until(lambda: len(live.backbone.batches) > len(GOLDEN))
    until(lambda: not worker.suspicious)
    assert worker.is_up()


def test_a_worker_that_fails_whenever_it_is_let_in_is_let_in_ever_later(start, connect, monkeypatch):
    with StockServer(lambda _: (502, b"bad gateway")) as flapping:
        engine = connect(flapping.url, start().url)
        worker = engine._fleet.workers[flapping.url.removeprefix("http://")]

        def ejected_again() -> bool:
            check([[1, 2], [3]], engine.submit([[1, 2], [3]]))
            return ejections(engine, "status") >= 3

        until(ejected_again)
        assert worker.failures >= 3
        monkeypatch.setattr(fleet, "_STEADY_S", 0.0)
        until(lambda: worker.failures == 0)
        engine.close(1.0)


def test_an_engine_whose_thread_died_is_the_fault_of_this_process(start, connect):
    engine = connect(start().url)
    assert engine.shared

    def die() -> None:
        raise SystemExit

    engine._loop.call_soon_threadsafe(die)
    until(lambda: not engine.shared)
    assert not engine.healthy
    with pytest.raises(Unavailable):
        engine.submit([[1]])


def test_a_worker_answers_for_every_model_that_it_has(start, connect):
    other, B_KD = "b" * 64, np.array([[3.0, -1.0, 2.0], [0.5, 0.5, 0.0], [1.0, 0.0, 0.0]])
    both, alone = start(further={other: B_KD}), start()
    texts = some_texts(40)
    first, second = connect(both.url, alone.url), connect(both.url, alone.url, model=other, heads_KD=B_KD)
    check(texts, first.submit(texts))
    for text, future in zip(texts, second.submit(texts), strict=True):
        hidden_D = both.backbone.hidden(text).double().numpy()
        np.testing.assert_allclose(future.result(TIMEOUT_S), B_KD @ hidden_D, rtol=1e-12)
    # The worker that has one model only serves that one.
    assert [
        sum(engine._fleet.workers[name].load.up for name in engine._fleet.workers) for engine in (first, second)
    ] == [
        2,
        1,
    ]
    assert ejections(second, "model") == 1
    assert alone.worker.stats.failed_items == 0
    both.stop()
    until(lambda: not second.healthy)
    check(texts, first.submit(texts))
