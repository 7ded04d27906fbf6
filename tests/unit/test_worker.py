"""The worker's promises: one answer each, failures alone, a thread that lives."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, wait

import numpy as np
import pytest
from scripted_backbone import NOT_FINITE, POISON, ScriptedBackbone

from service.errors import ConfigurationError, EngineError, Overloaded, Unavailable
from service.worker import worker as worker_module
from service.worker.admission import Speed
from service.worker.messages import BaseRewardHeads
from service.worker.supervision import RestartPolicy
from service.worker.worker import Worker

HEADS = BaseRewardHeads.of(np.array([[1.0, 0.5, 0.25], [0.1, 0.2, 0.3]], np.float32), np.array([7.0, -7.0]))
TIMEOUT_S = 30


def expected(token_ids: Sequence[int]) -> np.ndarray:
    return HEADS.A_KD @ ScriptedBackbone.hidden(token_ids).double().numpy() + HEADS.b_K


@pytest.fixture
def backbone() -> ScriptedBackbone:
    return ScriptedBackbone()


@pytest.fixture
def make(backbone: ScriptedBackbone) -> Iterator[Callable[..., Worker]]:
    made: list[Worker] = []

    def make(max_batch_tokens: int = 32, max_queue_tokens: int = 10_000, **limits: float) -> Worker:
        bounds = {"max_batch_tokens": max_batch_tokens, "max_queue_tokens": max_queue_tokens, **limits}
        made.append(Worker(backbone, HEADS, **bounds))
        return made[-1]

    yield make
    backbone.may_go_on.set()
    for worker in made:
        worker.stop(drain=False, timeout_s=TIMEOUT_S)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.002)


def test_answers_are_float64_base_rewards_in_order_and_batches_keep_to_the_budget(make, backbone):
    worker = make(max_batch_tokens=20)
    texts = [[*range(1, length + 1)] for length in (3, 9, 1, 15, 40, 2, 20, 5)]
    futures = worker.submit(texts)
    assert worker.queued_tokens == sum(map(len, texts))
    worker.start()
    for token_ids, future in zip(texts, futures, strict=True):
        answer = future.result(TIMEOUT_S)
        assert answer.dtype == np.float64
        np.testing.assert_allclose(answer, expected(token_ids), rtol=1e-12)
    assert [[len(text) for text in batch] for batch in backbone.batches] == [[3, 9, 1], [15], [40], [2], [20], [5]]
    assert worker.queued_tokens == 0
    assert (worker.stats.batches, worker.stats.items, worker.stats.tokens) == (6, 8, 95)
    assert worker.stats.busy_s > 0


def test_texts_of_several_requests_share_a_batch(make, backbone):
    worker = make()
    futures = [*worker.submit([[1, 2], [3]]), *worker.submit([[4]]), *worker.submit([[5, 6]])]
    worker.start()
    wait(futures, TIMEOUT_S)
    assert len(backbone.batches) == 1


def test_a_poisonous_text_fails_alone(make, backbone):
    worker = make()
    texts = [[1], [2, POISON], [3], [4, NOT_FINITE], [5]]
    futures = worker.submit(texts)
    worker.start()
    wait(futures, TIMEOUT_S)
    for position in (0, 2, 4):
        np.testing.assert_allclose(futures[position].result(), expected(texts[position]))
    for position in (1, 3):
        error = futures[position].exception()
        assert isinstance(error, EngineError)
        assert error.__cause__ is None
        assert error.__context__ is None, "a traceback would keep tensors on the device"
    assert worker.healthy
    assert worker.stats.failed_items == 2


def test_a_device_that_fails_once_loses_nobody(make, backbone):
    worker = make()
    worker.start()
    worker.base_rewards([[1]], TIMEOUT_S)
    real, failures = backbone.forward, iter([True])

    def flaky(batch, scopes=None):
        if next(failures, False):
            raise RuntimeError("once")
        return real(batch, scopes)

    backbone.forward = flaky
    np.testing.assert_allclose(worker.base_rewards([[2], [3]], TIMEOUT_S), [expected([2]), expected([3])])
    assert worker.healthy


def test_poison_alone_leaves_the_worker_healthy_and_a_broken_device_does_not(make, backbone, monkeypatch):
    monkeypatch.setattr(worker_module, "_PROBE_INTERVAL_S", 0.02)
    worker = make()
    worker.start()
    worker.base_rewards([[1, 2]], TIMEOUT_S)
    with pytest.raises(EngineError):
        worker.base_rewards([[POISON]], TIMEOUT_S)
    assert worker.healthy
    backbone.broken = True
    with pytest.raises(EngineError):
        worker.base_rewards([[3]], TIMEOUT_S)
    assert not worker.healthy
    backbone.broken = False
    until(lambda: worker.healthy)
    np.testing.assert_allclose(worker.base_rewards([[3]], TIMEOUT_S), [expected([3])])


def test_a_caller_that_left_never_reaches_the_device(make, backbone):
    worker = make(max_batch_tokens=2)
    futures = worker.submit([[1], [2], [3]])
    assert futures[1].cancel()
    worker.start()
    np.testing.assert_allclose(futures[2].result(TIMEOUT_S), expected([3]))
    assert backbone.batches == [[(1,), (3,)]]
    with pytest.raises(CancelledError):
        futures[1].result(0)
    assert worker.stats.dropped_items == 1


@pytest.mark.parametrize("ending", ["stop", "overload", "batch"])
def test_who_waits_for_what_he_cancelled_is_told(make, ending):
    worker = make(max_queue_tokens=4)
    futures = worker.submit([[1, 1, 1], [2]])
    assert futures[0].cancel()
    if ending == "overload":
        worker.submit([[3, 3]])
    elif ending == "batch":
        worker.start()
    else:
        worker.stop(drain=False, timeout_s=0)
    assert futures[0] in wait(futures[:1], 5).done


def test_a_full_queue_refuses_a_whole_request_and_the_cancelled_make_room(make, backbone):
    worker = make(max_queue_tokens=10)
    waiting = worker.submit([[1] * 6, [2] * 4])
    with pytest.raises(Overloaded) as refused:
        worker.submit([[3], [4]])
    assert refused.value.retry_after_s >= 1
    assert worker.queued_tokens == 10
    waiting[0].cancel()
    late = worker.submit([[3], [4]])
    worker.start()
    wait(late, TIMEOUT_S)
    assert [text for batch in backbone.batches for text in batch] == [(2,) * 4, (3,), (4,)]


def test_stop_with_drain_answers_what_waits_and_takes_no_more(make, backbone):
    worker = make(max_batch_tokens=1)
    backbone.may_go_on.clear()
    futures = worker.submit([[1], [2], [3]])
    worker.start()
    assert backbone.entered.wait(TIMEOUT_S)
    stopped: list[bool] = []
    stopping = threading.Thread(target=lambda: stopped.append(worker.stop(drain=True, timeout_s=TIMEOUT_S)))
    stopping.start()
    until(lambda: not worker.healthy)
    with pytest.raises(Unavailable):
        worker.submit([[4]])
    backbone.may_go_on.set()
    stopping.join(TIMEOUT_S)
    assert stopped == [True]
    for token_ids, future in zip([[1], [2], [3]], futures, strict=True):
        np.testing.assert_allclose(future.result(0), expected(token_ids))


def test_stop_without_drain_answers_the_batch_on_the_device_and_refuses_the_rest(make, backbone):
    worker = make(max_batch_tokens=1)
    backbone.may_go_on.clear()
    futures = worker.submit([[1], [2], [3]])
    worker.start()
    assert backbone.entered.wait(TIMEOUT_S)
    threading.Timer(0.05, backbone.may_go_on.set).start()
    assert worker.stop(drain=False, timeout_s=TIMEOUT_S)
    np.testing.assert_allclose(futures[0].result(0), expected([1]))
    for future in futures[1:]:
        assert isinstance(future.exception(0), Unavailable)


def test_stop_that_runs_out_of_time_still_answers_everybody_once(make, backbone):
    worker = make(max_batch_tokens=1)
    backbone.may_go_on.clear()
    futures = worker.submit([[1], [2]])
    worker.start()
    assert backbone.entered.wait(TIMEOUT_S)
    assert not worker.stop(drain=True, timeout_s=0.05)
    assert all(isinstance(future.exception(0), Unavailable) for future in futures)
    backbone.may_go_on.set()
    assert worker.stop(drain=True, timeout_s=TIMEOUT_S)
    assert len(backbone.batches) == 1


def test_what_was_submitted_to_a_worker_that_never_started_is_refused_at_stop(make):
    worker = make()
    (future,) = worker.submit([[1]])
    assert not worker.healthy
    assert worker.stop(drain=True, timeout_s=0)
    assert isinstance(future.exception(0), Unavailable)


def test_a_thread_that_dies_fails_its_batch_and_a_fresh_one_answers_what_waits(make, backbone):
    worker = make(max_batch_tokens=1, restarts=RestartPolicy(first_backoff_s=0.001))
    backbone.crash = SystemExit("pulled the plug")
    backbone.may_go_on.clear()
    futures = worker.submit([[1], [2], [3]])
    worker.start()
    assert backbone.entered.wait(TIMEOUT_S)
    futures[0].add_done_callback(lambda _: setattr(backbone, "crash", None))
    backbone.may_go_on.set()
    assert isinstance(futures[0].exception(TIMEOUT_S), EngineError)
    np.testing.assert_allclose(futures[1].result(TIMEOUT_S), expected([2]))
    np.testing.assert_allclose(futures[2].result(TIMEOUT_S), expected([3]))
    assert worker.healthy
    assert (worker.stats.restarts, worker.stats.failed_items) == (1, 1)


def test_while_the_thread_is_down_the_worker_is_not_healthy_and_keeps_what_comes(make, backbone):
    worker = make(restarts=RestartPolicy(first_backoff_s=3600.0))
    backbone.crash = SystemExit("pulled the plug")
    worker.start()
    (lost,) = worker.submit([[1]])
    assert isinstance(lost.exception(TIMEOUT_S), EngineError)
    until(lambda: not worker.healthy)
    (waiting,) = worker.submit([[2]])
    assert worker.queued_tokens == 1
    assert worker.stop(drain=False, timeout_s=TIMEOUT_S)
    assert isinstance(waiting.exception(0), Unavailable)


def test_a_thread_that_dies_too_often_stays_down_and_tells_everything_that_waits(make, backbone):
    worker = make(max_batch_tokens=1, restarts=RestartPolicy(max_restarts=2, first_backoff_s=0.001))
    backbone.crash = SystemExit("pulled the plug")
    futures = worker.submit([[1], [2], [3], [4], [5]])
    worker.start()
    wait(futures, TIMEOUT_S)
    kinds = [type(future.exception(0)) for future in futures]
    assert kinds == [EngineError] * 3 + [Unavailable] * 2
    assert len(backbone.batches) == 3
    assert not worker.healthy
    with pytest.raises(Unavailable):
        worker.submit([[4]])


def test_a_callback_that_raises_harms_nobody(make):
    worker = make()
    futures = worker.submit([[1], [2]])
    futures[0].add_done_callback(lambda _: 1 / 0)
    worker.start()
    np.testing.assert_allclose(futures[1].result(TIMEOUT_S), expected([2]))
    assert worker.healthy


def test_a_storm_of_threads_gets_exactly_one_answer_each(make, backbone):
    worker = make(max_batch_tokens=40, max_queue_tokens=400)
    worker.start()
    answers: dict[int, int] = {}
    accepted: list[tuple[list[int], Future]] = []
    lock = threading.Lock()
    refused = [0]

    def count(future: Future) -> None:
        with lock:
            answers[id(future)] = answers.get(id(future), 0) + 1

    def caller(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(40):
            texts = [[rng.randint(1, 500) for _ in range(rng.randint(1, 12))] for _ in range(rng.randint(1, 6))]
            if rng.random() < 0.1:
                texts[0].append(POISON)
            try:
                futures = worker.submit(texts)
            except Overloaded:
                with lock:
                    refused[0] += 1
                time.sleep(0.001)
                continue
            for future in futures:
                future.add_done_callback(count)
            with lock:
                accepted.extend(zip(texts, futures, strict=True))
            if rng.random() < 0.2:
                rng.choice(futures).cancel()
            if rng.random() < 0.5:
                wait(futures, TIMEOUT_S)

    threads = [threading.Thread(target=caller, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT_S)
        assert not thread.is_alive()
    assert worker.stop(drain=True, timeout_s=TIMEOUT_S)
    assert len(accepted) > 100
    assert answers == {id(future): 1 for _, future in accepted}
    outcomes = {"right": 0, "poisoned": 0, "left": 0}
    for token_ids, future in accepted:
        if future.cancelled():
            outcomes["left"] += 1
        elif POISON in token_ids:
            assert isinstance(future.exception(0), EngineError)
            outcomes["poisoned"] += 1
        else:
            np.testing.assert_allclose(future.result(0), expected(token_ids))
            outcomes["right"] += 1
    assert worker.stats.items == outcomes["right"] + outcomes["poisoned"]
    assert worker.stats.failed_items == outcomes["poisoned"]
    assert worker.stats.dropped_items == outcomes["left"]


@pytest.mark.parametrize("token_ids", [[], [1] * 65])
def test_texts_that_no_renderer_makes_are_refused_at_the_door(make, token_ids):
    with pytest.raises(ValueError, match="text 1"):
        make().submit([[1], token_ids])


def test_heads_of_another_backbone_are_refused(backbone):
    heads = BaseRewardHeads.of(np.ones((2, 5)), np.zeros(2))
    with pytest.raises(ConfigurationError, match="read 5 numbers"):
        Worker(backbone, heads, max_batch_tokens=1, max_queue_tokens=1)


def test_a_wait_that_would_be_too_long_is_refused_before_the_queue_is_full(make, backbone):
    worker = make(max_batch_tokens=4, max_queue_wait_s=5.0)
    worker.start()
    worker.base_rewards([[1] * 4], TIMEOUT_S)
    worker._speed = Speed()
    worker._speed.note(1, 1.0)  # a token a second
    backbone.entered.clear()
    backbone.may_go_on.clear()
    running = worker.submit([[1] * 4])
    assert backbone.entered.wait(TIMEOUT_S)
    waiting = worker.submit([[2] * 4])  # nothing waits yet: admitted whatever it takes
    for refused in (lambda: worker.submit([[3]]), lambda: worker.check_room(1)):
        with pytest.raises(Overloaded) as error:
            refused()
        assert error.value.retry_after_s == pytest.approx(3.0)
    assert waiting[0].cancel()
    worker.check_room(1)  # who left makes room
    late = worker.submit([[3]])
    backbone.may_go_on.set()
    wait([*running, *late], TIMEOUT_S)
    assert (4 * (2,)) not in [text for batch in backbone.batches for text in batch]


def test_refusing_looks_through_the_queue_only_where_somebody_left(make, monkeypatch):
    worker = make(max_queue_tokens=10)
    futures = worker.submit([[1] * 5, [2] * 5])
    looked: list[bool] = []
    discard = worker._queue.discard
    monkeypatch.setattr(worker._queue, "discard", lambda unwanted: looked.append(True) or discard(unwanted))
    for _ in range(3):
        with pytest.raises(Overloaded):
            worker.submit([[3]])
    assert looked == []
    futures[0].cancel()
    worker.submit([[3]])
    assert looked == [True]


def test_a_job_that_fills_the_queue_has_nobody_else_refused(make, backbone):
    worker = make(max_batch_tokens=8, max_queue_tokens=100)
    worker.start()
    backbone.may_go_on.clear()
    large = worker.submit([[1] * 4] * 2000, scope=b"a")
    assert backbone.entered.wait(TIMEOUT_S)
    small = [*worker.submit([[2] * 4], scope=b"b"), *worker.submit([[3] * 4], scope=b"a")]
    with pytest.raises(Overloaded):
        worker.submit([[1] * 4] * 100, scope=b"b")
    backbone.may_go_on.set()
    wait([*small, *large], TIMEOUT_S)
    computed = [text for batch in backbone.batches for text in batch]
    assert max(computed.index((2,) * 4), computed.index((3,) * 4)) < 12
