"""Who is to blame, what fits, and how often to try again: policy first, then the worker that goes by it."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import wait

import httpx
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted_backbone import POISON, ScriptedBackbone
from workers import MODEL, LiveWorker, until

from service.errors import EngineError, Unavailable
from service.observability.metrics import WorkerMetrics
from service.worker.batch_budget import BatchBudget
from service.worker.faults import Failure, is_out_of_memory, isolate
from service.worker.messages import BaseRewardHeads
from service.worker.supervision import RestartPolicy
from service.worker.worker import Worker

HEADS = BaseRewardHeads.of(np.eye(2, 3), np.zeros(2))
TIMEOUT_S = 30
BROKEN = Failure("RuntimeError", out_of_memory=False)
FULL = Failure("OutOfMemoryError", out_of_memory=True)


class Attempts:
    """A device that fails on some items, on more than `room` of them, and in its first `flaky` attempts."""

    def __init__(self, poisonous: set[int] = frozenset(), room: int = 10**9, flaky: int = 0) -> None:  # type: ignore[assignment]
        self.poisonous, self.room, self.flaky = poisonous, room, flaky
        self.made: list[list[int]] = []

    def __call__(self, items: Sequence[int]) -> Sequence[str] | Failure:
        self.made.append(list(items))
        if len(items) > self.room:
            return FULL
        if len(self.made) <= self.flaky or self.poisonous & set(items):
            return BROKEN
        return [f"answer {item}" for item in items]

    def all_of(self, items: Sequence[int], *, hopeless: Callable[[], bool] = lambda: False) -> list[str | Failure]:
        outcome = self(items)
        return isolate(items, outcome, self, hopeless) if isinstance(outcome, Failure) else list(outcome)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.sets(st.integers(0, 39), max_size=4), st.integers(1, 50), st.integers(0, 3))
def test_exactly_the_texts_to_blame_fail(number, poisonous, room, flaky):
    attempts = Attempts(poisonous, room, min(flaky, 1))
    answers = attempts.all_of(range(number))
    for item, answer in enumerate(answers):
        blamed = item in poisonous or (number == 1 and flaky > 0)
        assert answer == (BROKEN if blamed else f"answer {item}")


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 2000), st.integers(0, 10**6))
def test_one_poisonous_text_costs_two_attempts_a_halving_at_most(number, place):
    attempts = Attempts({place % number})
    attempts.all_of(range(number))
    assert len(attempts.made) <= 1 + 2 * math.ceil(math.log2(number))


def test_a_device_that_fails_on_everything_is_asked_once_and_spared_the_rest():
    asked = []
    attempts = Attempts(set(range(1000)))
    answers = attempts.all_of(range(1000), hopeless=lambda: bool(asked.append(1)) or True)
    assert answers == [BROKEN] * 1000
    assert len(asked) == 1
    assert len(attempts.made) < 6


def test_texts_that_do_not_fit_alone_are_tried_once_more_and_fail_alone():
    attempts = Attempts(room=0)
    assert attempts.all_of([7]) == [FULL]
    assert attempts.made == [[7], [7]]


class OutOfMemoryError(RuntimeError):
    """As torch names it."""


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (OutOfMemoryError("whatever it says"), True),
        (MemoryError(), True),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"),
            True,
        ),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 1 bytes"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_memory_errors_are_told_from_others(error, expected):
    assert is_out_of_memory(error) is expected


def test_a_budget_is_halved_at_once_and_grows_back_slowly_and_ever_slower():
    budget = BatchBudget(8000)
    budget.out_of_memory(6000)
    assert budget.tokens == 3000

    def good_batches_until_it_grows(tokens: int) -> int:
        before = budget.tokens
        for count in range(1, 100_000):
            budget.fitted(tokens)
            if budget.tokens > before:
                return count
        return 0

    assert good_batches_until_it_grows(10) == 0, "small batches tell nothing"
    first = good_batches_until_it_grows(3000)
    assert first > 50
    assert budget.tokens == 3750
    budget.out_of_memory(3750)
    assert good_batches_until_it_grows(1875) == 2 * first
    for _ in range(20):
        good_batches_until_it_grows(budget.tokens)
    assert budget.tokens == 8000, "and never beyond what was set"


def test_a_budget_that_fell_through_many_halves_of_one_batch_soon_is_what_it_was():
    budget = BatchBudget(8192)
    for tokens in (8192, 4096, 2048, 1024, 512):
        budget.out_of_memory(tokens)
    assert budget.tokens == 256
    batches = 0
    while budget.tokens < 8192:
        budget.fitted(budget.tokens)
        batches += 1
    assert batches < 20 * 64 + 128


def test_restarts_wait_ever_longer_and_end_where_they_come_too_often():
    policy = RestartPolicy(max_restarts=3, window_s=60.0, first_backoff_s=0.5)
    assert [policy.delay_s(now) for now in (0.0, 1.0, 2.0)] == [0.5, 1.0, 2.0]
    assert policy.delay_s(3.0) is None
    assert policy.delay_s(1000.0) == 0.5


def test_a_text_that_does_not_fit_alone_leaves_others_their_batches(started):
    backbone = CrampedBackbone(40)
    worker = started(backbone)
    futures = worker.submit([[1] * 50, *([place + 2] * 2 for place in range(7))])
    worker.start()
    assert "not enough memory" in str(futures[0].exception(TIMEOUT_S))
    assert all(future.exception(TIMEOUT_S) is None for future in futures[1:])
    wait(worker.submit([[9]]), TIMEOUT_S)
    assert counted(worker, "batch_token_limit") == 64


class CrampedBackbone(ScriptedBackbone):
    """Has room for so many tokens at a time."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room
        self.released = 0

    def forward(self, batch: Sequence[Sequence[int]], scopes: Sequence[bytes] | None = None) -> torch.Tensor:
        if sum(map(len, batch)) > self.room:
            self.batches.append([tuple(token_ids) for token_ids in batch])
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().forward(batch)

    def release_memory(self) -> None:
        self.released += 1


@pytest.fixture
def started() -> Iterator[Callable[..., Worker]]:
    workers: list[Worker] = []

    def start(backbone: ScriptedBackbone, max_batch_tokens: int = 64, **options: object) -> Worker:
        limits = {"max_batch_tokens": max_batch_tokens, "max_queue_tokens": 100_000, "metrics": WorkerMetrics()}
        workers.append(Worker(backbone, HEADS, **{**limits, **options}))
        return workers[-1]

    yield start
    for worker in workers:
        assert worker.stop(drain=False, timeout_s=TIMEOUT_S)


def expected(token_ids: Sequence[int]) -> np.ndarray:
    return HEADS.A_KD @ ScriptedBackbone.hidden(token_ids).double().numpy()


def counted(worker: Worker, name: str, **labels: str) -> float:
    assert worker._metrics is not None
    return worker._metrics.registry.get_sample_value(f"metareward_{name}", labels) or 0.0


def test_a_poisonous_text_among_a_thousand_costs_a_few_forward_passes(started):
    backbone = ScriptedBackbone()
    worker = started(backbone, 100_000)
    futures = worker.submit([[place % 600 + 1] for place in range(999)] + [[POISON]])
    worker.start()
    wait(futures, TIMEOUT_S)
    assert isinstance(futures[-1].exception(), EngineError)
    np.testing.assert_allclose(futures[500].result(), expected([501]))
    assert worker.stats.failed_items == 1
    assert len(backbone.batches) <= 1 + 2 * math.ceil(math.log2(1000))
    assert counted(worker, "batch_bisections_total") == 1


def test_out_of_memory_halves_the_batch_remembers_and_answers_everybody(started):
    backbone = CrampedBackbone(20)
    worker = started(backbone)
    texts = [[place + 1] * 4 for place in range(32)]
    futures = worker.submit(texts)
    worker.start()
    for token_ids, future in zip(texts, futures, strict=True):
        np.testing.assert_allclose(future.result(TIMEOUT_S), expected(token_ids))
    refused = [batch for batch in backbone.batches if sum(map(len, batch)) > 20]
    assert [sum(map(len, batch)) for batch in refused] == [64, 32, 32]
    assert backbone.released == 3
    assert (counted(worker, "out_of_memory_total"), counted(worker, "batch_token_limit")) == (3, 16)
    assert worker.healthy


def test_a_text_that_does_not_fit_alone_fails_alone_and_says_so(started):
    backbone = CrampedBackbone(20)
    worker = started(backbone)
    worker.start()
    fits, too_long = worker.submit([[1] * 10, [2] * 30])
    np.testing.assert_allclose(fits.result(TIMEOUT_S), expected([1] * 10))
    error = too_long.exception(TIMEOUT_S)
    assert isinstance(error, EngineError)
    assert "memory for this text alone (30 tokens)" in str(error)
    limit = counted(worker, "batch_token_limit")
    assert isinstance(worker.submit([[2] * 30])[0].exception(TIMEOUT_S), EngineError)
    assert counted(worker, "batch_token_limit") == limit, "what does not fit alone says nothing of others"
    assert worker.healthy


def test_a_text_whose_deadline_passed_never_reaches_the_device(started):
    backbone = ScriptedBackbone()
    worker = started(backbone)
    worker.start()
    late = worker.submit([[1], [2]], deadline=time.monotonic() - 1)
    in_time = worker.submit([[3]], deadline=time.monotonic() + 3600)
    for future in late:
        assert isinstance(future.exception(TIMEOUT_S), Unavailable)
    np.testing.assert_allclose(in_time[0].result(TIMEOUT_S), expected([3]))
    assert [text for batch in backbone.batches for text in batch] == [(3,)]
    assert worker.stats.expired_items == counted(worker, "worker_texts_total", result="expired") == 2


def test_expired_texts_make_room_for_others_and_are_told_so(started):
    backbone = ScriptedBackbone()
    backbone.may_go_on.clear()
    worker = started(backbone, max_queue_tokens=10)
    worker.start()
    running = worker.submit([[1]])
    assert backbone.entered.wait(TIMEOUT_S)
    expired = worker.submit([[2] * 6, [3] * 4], deadline=time.monotonic())
    fresh = worker.submit([[4] * 8])
    assert worker.queued_tokens == 9
    backbone.may_go_on.set()
    wait([*running, *fresh], TIMEOUT_S)
    assert all(isinstance(future.exception(TIMEOUT_S), Unavailable) for future in expired)
    assert [text for batch in backbone.batches for text in batch] == [(1,), (4,) * 8]


def test_ready_says_no_while_the_thread_is_down_and_yes_when_a_fresh_one_runs():
    may_restart = threading.Event()

    class Patient(RestartPolicy):
        def delay_s(self, now: float) -> float | None:
            may_restart.wait(TIMEOUT_S)
            return 0.0

    with LiveWorker() as live, httpx.Client(base_url=live.url) as client:
        live.worker._thread._policy = Patient()
        assert client.get("/ready").status_code == 200
        live.backbone.crash = SystemExit("pulled the plug")
        lost = client.post("/classify", json={"model": MODEL, "input": [[1, 2]]})
        assert lost.status_code == 500
        until(lambda: client.get("/ready").status_code == 503)
        live.backbone.crash = None
        may_restart.set()
        until(lambda: client.get("/ready").status_code == 200)
        assert client.post("/classify", json={"model": MODEL, "input": [[1, 2]]}).status_code == 200


def test_a_callback_that_ends_its_thread_costs_nobody_an_answer(started):
    """`SystemExit` in a callback of one answer reaches the worker's thread; the rest of the batch is told."""
    backbone = ScriptedBackbone()
    worker = started(backbone, restarts=RestartPolicy(first_backoff_s=0.001))
    futures = worker.submit([[1], [2], [3]])

    def leave(_: object) -> None:
        raise SystemExit

    futures[0].add_done_callback(leave)
    worker.start()
    np.testing.assert_allclose(futures[0].result(TIMEOUT_S), expected([1]))
    assert all(isinstance(future.exception(TIMEOUT_S), EngineError) for future in futures[1:])
    np.testing.assert_allclose(worker.base_rewards([[4]], TIMEOUT_S), [expected([4])])


def test_scopes_and_costs_reach_a_backbone_that_shares_prefixes(started):
    class Sharing(ScriptedBackbone):
        shares_prefixes = True

        def __init__(self) -> None:
            super().__init__()
            self.scopes: list[list[bytes]] = []

        def forward(self, batch: Sequence[Sequence[int]], scopes: Sequence[bytes] | None = None) -> torch.Tensor:
            self.scopes.append(list(scopes or ()))
            return super().forward(batch)

    backbone = Sharing()
    worker = started(backbone, 100)
    alike = [[*range(1, 41), 100 + place] for place in range(4)]
    futures = worker.submit(alike, scope=b"a") + worker.submit(alike[:1], scope=b"b")
    worker.start()
    wait(futures, TIMEOUT_S)
    assert [sorted(scopes) for scopes in backbone.scopes] == [[b"a"] * 4 + [b"b"]]
    assert (worker.stats.tokens, worker.stats.computed_tokens) == (5 * 41, 40 + 4 + 41)
    assert counted(worker, "shared_tokens_total") == 5 * 41 - 85


def test_the_thread_is_named_and_a_stopped_worker_leaves_none(started):
    worker = started(ScriptedBackbone())
    worker.start()
    worker.base_rewards([[1]], TIMEOUT_S)
    assert "metareward-worker" in {thread.name for thread in threading.enumerate()}
    before = threading.active_count()
    assert worker.stop(drain=True, timeout_s=TIMEOUT_S)
    assert threading.active_count() <= before - 2
