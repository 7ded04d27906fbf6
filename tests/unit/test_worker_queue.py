"""The queue's policy, without threads: what goes together, in which order, and that nobody is overtaken for long."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from service.backbone.packing import encode
from service.worker.batch_cost import BatchCost, PlainCost, SharedCost
from service.worker.queue import TURNS_PER_BATCH, Batch, FairQueue


@dataclass(frozen=True, eq=False)
class Waiting:
    job: int
    place: int
    ids: tuple[int, ...]
    scope: bytes = b""
    key: bytes = b""

    @property
    def tokens(self) -> int:
        return len(self.ids)


_numbers = itertools.count()


def job(texts: list[tuple[int, ...]], scope: bytes = b"", *, shared: bool = False) -> list[Waiting]:
    number = next(_numbers)
    return [Waiting(number, place, ids, scope, encode(ids) if shared else b"") for place, ids in enumerate(texts)]


def sizes(*lengths: int) -> list[tuple[int, ...]]:
    return [(1,) * length for length in lengths]


def prompts(prompt: int, tokens: int, completions: int, each: int, first: int = 0) -> list[tuple[int, ...]]:
    """Texts that share a prompt and nothing else."""
    return [(prompt,) * tokens + (1_000_000 + first + place,) * each for place in range(completions)]


def drain(queue: FairQueue[Waiting], budget: int, cost: type[BatchCost] = PlainCost, **options) -> list[Batch[Waiting]]:
    batches = []
    while len(queue):
        batches.append(queue.next_batch(budget, cost(), **options))
    return batches


texts = st.lists(
    st.tuples(st.integers(0, 2), st.sampled_from([0, 3, 20, 70]), st.integers(0, 3), st.integers(1, 40)).map(
        lambda drawn: (drawn[0],) * drawn[1] + (10 + drawn[2],) * drawn[3]
    ),
    min_size=1,
    max_size=6,
)
jobs = st.lists(st.tuples(texts, st.sampled_from([b"", b"a", b"b"])), max_size=10)
steps = st.lists(st.tuples(texts, st.sampled_from([b"", b"a", b"b"])) | st.none(), max_size=25)


@settings(max_examples=100, deadline=None)
@given(steps, st.integers(1, 200), st.booleans(), st.integers(2, 5))
def test_every_text_leaves_once_in_its_jobs_order_and_batches_keep_to_the_budget(drawn, budget, shared, every):
    queue: FairQueue[Waiting] = FairQueue()
    admitted: list[Waiting] = []
    asked: list[Waiting] = []
    left: list[Waiting] = []

    def take(item: Waiting) -> bool:
        asked.append(item)
        return item.place % every != every - 1

    def one_batch() -> None:
        cost: BatchCost = SharedCost() if shared else PlainCost()
        batch = queue.next_batch(budget, cost, take)
        again: BatchCost = SharedCost() if shared else PlainCost()
        computed = 0
        for item in batch.items:
            computed += again.of(item)
            again.add(item)
        assert batch.computed_tokens == computed
        assert batch.tokens == sum(item.tokens for item in batch.items)
        assert batch.jobs == len({item.job for item in batch.items})
        assert len(batch.items) <= 1 or computed <= budget
        left.extend(batch.items)
        assert queue.tokens == sum(item.tokens for item in set(admitted) - set(asked))
        assert len(queue) == len(admitted) - len(asked)

    for step in drawn:
        if step is None:
            one_batch()
        else:
            items = job(*step, shared=shared)
            queue.admit(items, step[1])
            admitted += items
    while len(queue):
        one_batch()
    assert Counter(asked) == Counter(admitted)
    assert set(left) == {item for item in admitted if item.place % every != every - 1}
    for number in {item.job for item in admitted}:
        places = [item.place for item in asked if item.job == number]
        assert places == sorted(places)
    assert (queue.tokens, queue.jobs) == (0, 0)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 60), st.lists(st.integers(1, 100), min_size=1, max_size=20))
def test_nobody_waits_longer_than_two_turns_of_everybody_else(scopes, rivals, length, others):
    """Rivals never run out of texts; whoever comes has his turn after each of theirs, twice at most, and one batch."""
    budget = 100
    queue: FairQueue[Waiting] = FairQueue()
    for number in range(scopes):
        for _ in range(rivals):
            queue.admit(job(sizes(*(others * 40)), str(number).encode()), str(number).encode())
    for _ in range(3):
        queue.next_batch(budget, PlainCost())
    (late,) = job(sizes(length), b"0")
    queue.admit([late], b"0")
    overtaken = batches = 0
    while True:
        batch = queue.next_batch(budget, PlainCost())
        batches += 1
        if late in batch.items:
            break
        overtaken += batch.computed_tokens
    turn, longest = budget // TURNS_PER_BATCH, max(*others, length)
    # His job saves for ceil(length / turn) turns of its own, his scope gives it one of `rivals + 1` of its turns.
    own_turns = -(-length // turn)
    assert overtaken <= own_turns * (rivals + 1) * scopes * (turn + longest) + 2 * budget


def test_a_job_of_thousands_does_not_keep_a_small_one_waiting():
    queue: FairQueue[Waiting] = FairQueue()
    queue.admit(job(sizes(*[100] * 4096)))
    queue.next_batch(8192, PlainCost())
    small = job(sizes(*[100] * 16))
    queue.admit(small)
    batch = queue.next_batch(8192, PlainCost())
    assert set(small) <= set(batch.items)
    assert batch.computed_tokens > 8192 - 100, "and the device is no less busy"


def test_scopes_share_alike_however_many_jobs_they_have():
    queue: FairQueue[Waiting] = FairQueue()
    for _ in range(50):
        queue.admit(job(sizes(*[10] * 100), b"many"), b"many")
    queue.admit(job(sizes(*[10] * 2000), b"one"), b"one")
    served: Counter[bytes] = Counter()
    for _ in range(30):
        served.update(item.scope for item in queue.next_batch(400, PlainCost()).items)
    assert abs(served[b"many"] - served[b"one"]) <= 20


def test_a_cheap_scope_does_not_pay_for_a_costly_one():
    """A tenant of long texts gets as many tokens, not as many texts."""
    queue: FairQueue[Waiting] = FairQueue()
    queue.admit(job(sizes(*[90] * 100), b"long"), b"long")
    queue.admit(job(sizes(*[10] * 900), b"short"), b"short")
    served: Counter[bytes] = Counter()
    for _ in range(40):
        for item in queue.next_batch(200, PlainCost()).items:
            served[item.scope] += item.tokens
    assert abs(served[b"long"] - served[b"short"]) <= 2 * 200


def test_a_lone_job_goes_in_its_own_order_whatever_its_lengths():
    queue: FairQueue[Waiting] = FairQueue()
    lengths = (3, 9, 1, 15, 40, 2, 20, 5)
    queue.admit(job(sizes(*lengths)))
    batches = [[item.tokens for item in batch.items] for batch in drain(queue, 20)]
    assert batches == [[3, 9, 1], [15], [40], [2], [20], [5]]


def test_short_texts_of_others_go_before_a_long_one_and_only_once():
    queue: FairQueue[Waiting] = FairQueue()
    (long,) = job(sizes(90))
    queue.admit([long])
    queue.admit(job(sizes(*[10] * 30)))
    first, second = queue.next_batch(100, PlainCost()), queue.next_batch(100, PlainCost())
    assert long not in first.items
    assert first.computed_tokens == 100
    assert second.items[0] is long
    assert second.computed_tokens == 100, "what room it leaves is used"


def test_long_texts_among_themselves_wait_for_nobody():
    queue: FairQueue[Waiting] = FairQueue()
    for _ in range(4):
        queue.admit(job(sizes(60)))
    assert [len(batch.items) for batch in drain(queue, 100)] == [1] * 4


def test_a_prompt_that_comes_in_single_requests_is_computed_once():
    queue: FairQueue[Waiting] = FairQueue()
    for place in range(16):
        for prompt in range(8):  # eight callers, each sending one sample per call
            queue.admit(job(prompts(prompt, 400, 1, 25, first=place), shared=True))
    batches = drain(queue, 1700, SharedCost)
    assert sum(batch.computed_tokens for batch in batches) == 8 * (400 + 16 * 25)
    assert max(len(batch.items) for batch in batches) == 32


def test_scopes_share_no_prefix():
    queue: FairQueue[Waiting] = FairQueue()
    for scope in (b"a", b"b"):
        queue.admit(job(prompts(0, 400, 4, 25), scope, shared=True), scope)
    (batch,) = drain(queue, 10_000, SharedCost)
    assert batch.computed_tokens == 2 * (400 + 4 * 25)


def test_riders_leave_half_of_a_batch_to_those_whose_turn_it_is():
    queue: FairQueue[Waiting] = FairQueue()
    for place in range(200):
        queue.admit(job(prompts(7, 100, 1, 50, first=place), shared=True))
        if place == 0:
            other = job([(3,) * 150], shared=True)
            queue.admit(other)
    batch = queue.next_batch(1000, SharedCost())
    assert other[0] in batch.items
    assert batch.computed_tokens > 1000 - 50


def test_copies_of_one_text_do_not_make_an_endless_batch():
    queue: FairQueue[Waiting] = FairQueue()
    queue.admit(job([(5,) * 100] * 500, shared=True))
    assert [len(batch.items) for batch in drain(queue, 300, SharedCost)] == [201, 201, 98]


@settings(max_examples=60, deadline=None)
@given(jobs, st.integers(1, 150), st.integers(2, 3))
def test_discarding_and_clearing_leave_nothing_behind(drawn, budget, every):
    queue: FairQueue[Waiting] = FairQueue()
    admitted = []
    for one, scope in drawn:
        items = job(one, scope, shared=True)
        queue.admit(items, scope)
        admitted += items
    gone = set(queue.next_batch(budget, SharedCost()).items)
    unwanted = {item for item in admitted if item not in gone and item.place % every == 0}
    assert queue.discard(unwanted.__contains__) == len(unwanted)
    rest = set(admitted) - gone - unwanted
    assert (len(queue), queue.tokens) == (len(rest), sum(item.tokens for item in rest))
    assert queue.jobs == len({item.job for item in rest})
    if budget % 2:
        assert {item for batch in drain(queue, budget, SharedCost) for item in batch.items} == rest
    else:
        assert set(queue.clear()) == rest
    assert (len(queue), queue.tokens, queue.jobs) == (0, 0, 0)


def test_a_batch_looks_at_what_it_takes_and_not_at_all_that_waits():
    """Ten thousand texts of a hundred tenants cost no more to serve than a few."""

    class Counting(SharedCost):
        asked = 0

        def of(self, item: Waiting) -> int:
            type(self).asked += 1
            return super().of(item)

    queue: FairQueue[Waiting] = FairQueue()
    for number in range(5_000):
        scope = str(number % 100).encode()
        queue.admit(job([(number % 50, *range(200)), (number % 50, *range(100))], scope, shared=True), scope)
    served = 0
    for _ in range(20):
        served += len(queue.next_batch(8192, Counting()).items)
    assert Counting.asked < 4 * served + 20 * 200


@settings(max_examples=60, deadline=None)
@given(jobs, st.integers(1, 6000), st.sampled_from([b"", b"a", b"b"]), st.integers(0, 3), st.integers(1, 4000))
def test_what_leaves_before_a_job_is_about_what_was_said(drawn, large, scope, done, tokens):
    budget = 512
    queue: FairQueue[Waiting] = FairQueue()
    for others, whose in drawn:
        queue.admit(job(others, whose), whose)
    queue.admit(job(sizes(*[50] * (large // 50 + 1)), b"a"), b"a")
    for _ in range(done):
        queue.next_batch(budget, PlainCost())
    new = job(sizes(*[20] * (tokens // 20), tokens % 20 + 1), scope)
    waiting, said = queue.tokens, queue.ahead_of(tokens, scope, budget)
    assert said <= waiting
    queue.admit(new, scope)
    before, left = 0, len(new)
    while left:
        batch = queue.next_batch(budget, PlainCost())
        own = sum(item.job == new[0].job for item in batch.items)
        left -= own
        before += batch.tokens - sum(item.tokens for item in batch.items if item.job == new[0].job)
    assert before <= said + 2 * budget
    queue.discard(lambda item: item.place % 2 == 0)
    assert queue.tokens == queue.ahead_of(10**9, b"a", budget) == sum(item.tokens for item in queue.clear())


def test_a_job_of_thousands_counts_for_a_turn_ahead_of_a_small_one_and_many_small_ones_in_full():
    queue: FairQueue[Waiting] = FairQueue()
    queue.admit(job(sizes(*[100] * 4096), b"a"), b"a")
    assert queue.ahead_of(300, b"b", 1024) == queue.ahead_of(300, b"a", 1024) == 300 + 1024 // TURNS_PER_BATCH
    for _ in range(100):
        queue.admit(job(sizes(300), b"b"), b"b")
    assert queue.ahead_of(300, b"b", 1024) >= 30_000
