"""The queue's policy, without threads: what is admitted, what goes together, in which order."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import Overloaded
from service.worker.queue import TokenQueue


@dataclass(frozen=True)
class Waiting:
    name: int
    tokens: int


requests = st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=6), max_size=12)


def fill(queue: TokenQueue[Waiting], sizes: list[list[int]]) -> list[Waiting]:
    """Admit each request that fits; the items of those that did, in order."""
    admitted: list[Waiting] = []
    for request in sizes:
        items = [Waiting(len(admitted) + position, tokens) for position, tokens in enumerate(request)]
        before = queue.tokens
        try:
            queue.admit(items)
        except Overloaded:
            assert queue.tokens == before
        else:
            admitted += items
    return admitted


@given(requests, st.integers(1, 200), st.integers(1, 100))
def test_every_admitted_item_leaves_once_in_order_and_within_the_budget(sizes, max_queue_tokens, max_batch_tokens):
    queue: TokenQueue[Waiting] = TokenQueue(max_queue_tokens)
    admitted = fill(queue, sizes)
    left: list[Waiting] = []
    while batch := queue.next_batch(max_batch_tokens):
        assert len(batch) == 1 or sum(item.tokens for item in batch) <= max_batch_tokens
        left += batch
        assert queue.tokens == sum(item.tokens for item in admitted[len(left) :])
    assert left == admitted
    assert (len(queue), queue.tokens) == (0, 0)


@given(requests, st.integers(1, 200))
def test_waiting_tokens_exceed_the_bound_only_by_one_request_that_met_an_empty_queue(sizes, max_queue_tokens):
    queue: TokenQueue[Waiting] = TokenQueue(max_queue_tokens)
    for request in sizes:
        was_empty, before = not len(queue), queue.tokens
        fits = was_empty or before + sum(request) <= max_queue_tokens
        admitted = fill(queue, [request])
        assert bool(admitted) == fits


@given(requests, st.integers(1, 100))
def test_a_batch_is_the_longest_run_that_fits(sizes, max_batch_tokens):
    queue: TokenQueue[Waiting] = TokenQueue(10**9)
    admitted = fill(queue, sizes)
    batch = queue.next_batch(max_batch_tokens)
    rest = admitted[len(batch) :]
    if rest:
        assert sum(item.tokens for item in batch) + rest[0].tokens > max_batch_tokens


@given(requests, st.integers(1, 100), st.integers(2, 4))
def test_dropped_items_cost_a_batch_nothing(sizes, max_batch_tokens, every):
    queue: TokenQueue[Waiting] = TokenQueue(10**9)
    admitted = fill(queue, sizes)
    asked: list[Waiting] = []

    def take(item: Waiting) -> bool:
        asked.append(item)
        return item.name % every != 0

    left: list[Waiting] = []
    while len(queue):
        left += queue.next_batch(max_batch_tokens, take)
    assert asked == admitted
    assert left == [item for item in admitted if item.name % every != 0]


def test_an_item_beyond_the_batch_budget_goes_alone():
    queue: TokenQueue[Waiting] = TokenQueue(1000)
    queue.admit([Waiting(0, 5), Waiting(1, 500), Waiting(2, 5)])
    assert [[item.name for item in queue.next_batch(100)] for _ in range(3)] == [[0], [1], [2]]


def test_overload_says_when_to_come_back_and_discarding_makes_room():
    queue: TokenQueue[Waiting] = TokenQueue(10)
    queue.admit([Waiting(0, 6), Waiting(1, 4)])
    with pytest.raises(Overloaded) as refused:
        queue.admit([Waiting(2, 1)], retry_after_s=7.0)
    assert refused.value.retry_after_s == 7.0
    assert queue.discard(lambda item: item.name == 0) == 1
    queue.admit([Waiting(2, 1)])
    assert [item.name for item in queue.clear()] == [1, 2]
    assert queue.tokens == 0
