"""When an idle device waits for company: policy first, then a worker that waits no longer than it should."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import wait

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted_backbone import ScriptedBackbone

from service.worker.coalescing import CoalescingWindow
from service.worker.messages import BaseRewardHeads
from service.worker.worker import Worker

HEADS = BaseRewardHeads.of(np.eye(2, 3), np.zeros(2))
TIMEOUT_S = 30
AGES_S = 3600.0

batches = st.tuples(st.integers(1, 20), st.floats(0, 1), st.floats(0, 0.01), st.integers(0, 5), st.floats(0, 1))


def note(window: CoalescingWindow, drawn: tuple[int, float, float, int, float]) -> None:
    jobs, fill, waited_s, came, batch_s = drawn
    window.note(jobs=jobs, fill=fill, waited_s=waited_s, came=came, batch_s=batch_s)


def opened(max_s: float = 0.004) -> CoalescingWindow:
    window = CoalescingWindow(max_s)
    for _ in range(20):
        window.note(jobs=8, fill=0.2, waited_s=window.seconds, came=4, batch_s=0.05)
    assert window.seconds == max_s
    return window


@settings(max_examples=60, deadline=None)
@given(st.lists(batches), st.floats(0, 0.1))
def test_it_never_exceeds_its_bound(notes, max_s):
    window = CoalescingWindow(max_s)
    for drawn in notes:
        note(window, drawn)
        assert 0 <= window.seconds <= max_s


@settings(max_examples=60, deadline=None)
@given(st.lists(batches))
def test_whoever_comes_one_by_one_soon_waits_for_nobody_whatever_was_before(notes):
    window = CoalescingWindow(0.01)
    for drawn in notes:
        note(window, drawn)
    waits = 0
    for _ in range(20):
        waits += window.seconds > 0
        window.note(jobs=1, fill=0.01, waited_s=window.seconds, came=0, batch_s=0.01)
    assert window.seconds == 0
    assert waits <= 3


def test_light_traffic_does_not_open_it():
    window = CoalescingWindow(0.004)
    for _ in range(100):
        window.note(jobs=1, fill=0.9)
        window.note(jobs=2, fill=0.1)
        window.note(jobs=1, fill=0.1)
    assert window.seconds == 0


def test_full_batches_close_it():
    window = opened()
    for _ in range(20):
        window.note(jobs=8, fill=0.9)
    assert window.seconds < 0.0001


def test_it_closes_where_it_costs_more_than_it_saves():
    """Nine who wait 4 ms each for one who saves 6."""
    window = opened()
    for _ in range(20):
        window.note(jobs=10, fill=0.1, waited_s=0.004, came=1, batch_s=0.006)
    assert window.seconds < 0.0001


def test_those_who_were_there_are_expected_back():
    window = CoalescingWindow(0.004)
    assert window.enough_jobs == 2, "one caller is no company"
    window.expect(16)
    assert window.enough_jobs == 16


class Held(CoalescingWindow):
    """Open for good."""

    def __init__(self, jobs: int) -> None:
        super().__init__(AGES_S)
        self._wanted = jobs

    @property
    def seconds(self) -> float:
        return AGES_S

    @property
    def enough_jobs(self) -> int:
        return self._wanted


@pytest.fixture
def backbone() -> ScriptedBackbone:
    return ScriptedBackbone()


@pytest.fixture
def make(backbone: ScriptedBackbone) -> Iterator[Callable[..., Worker]]:
    made: list[Worker] = []

    def make(window: CoalescingWindow | None = None, **options: float) -> Worker:
        worker = Worker(backbone, HEADS, max_batch_tokens=20, max_queue_tokens=10_000, **options)
        if window is not None:
            worker._window = window
        worker.start()
        made.append(worker)
        return worker

    yield make
    for worker in made:
        assert worker.stop(drain=True, timeout_s=TIMEOUT_S)


def test_texts_of_callers_who_are_expected_go_together_once_the_last_has_come(make, backbone):
    worker = make(Held(jobs=3))
    futures = [*worker.submit([[1]]), *worker.submit([[2], [3]])]
    assert not wait(futures, 0.05).done
    futures += worker.submit([[4]])
    wait(futures, TIMEOUT_S)
    assert backbone.batches == [[(1,), (2,), (3,), (4,)]]


def test_a_batch_that_is_full_waits_for_nobody(make, backbone):
    worker = make(Held(jobs=100))
    futures = [*worker.submit([[1] * 15]), *worker.submit([[2] * 5])]
    assert not wait(futures, TIMEOUT_S).not_done
    assert len(backbone.batches) == 1


def test_what_waited_behind_a_full_batch_waits_for_nobody(make, backbone):
    worker = make(Held(jobs=100))
    futures = worker.submit([[1] * 15, [2] * 5, [3]])
    assert not wait(futures, TIMEOUT_S).not_done
    assert len(backbone.batches) == 2


def test_stopping_ends_the_wait(make):
    worker = make(Held(jobs=100))
    (future,) = worker.submit([[1]])
    assert worker.stop(drain=True, timeout_s=TIMEOUT_S)
    assert future.done()


def test_a_lone_sequential_client_never_opens_it(make, backbone):
    worker = make(max_window_s=AGES_S)
    for place in range(50):
        worker.base_rewards([[place + 1]], TIMEOUT_S)
    assert len(backbone.batches) == 50
    assert worker._window.seconds == 0
