"""Which texts travel together, and to whom: policy alone."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from service.worker.balance import RecentPrefixes, WorkerLoad, belong_together, least_loaded, prefix_blocks
from service.worker.remote_parts import RemoteText
from service.worker.waiting import Waiting


def text(prompt: int, completion: int, *, scope: bytes = b"", tokens: int = 160, shared: int = 128) -> RemoteText:
    ids = [prompt] * shared + [1000 + completion] * (tokens - shared)
    return RemoteText(ids, scope, blocks=prefix_blocks(ids, scope))


def named(texts: list[RemoteText]) -> list[tuple[int, int]]:
    return [(text.token_ids[0], text.token_ids[-1] - 1000) for text in texts]


def test_texts_that_begin_alike_have_equal_blocks_up_to_where_they_differ_and_only_within_a_scope() -> None:
    a, b = (prefix_blocks([*range(100), last], b"s") for last in (1, 2))
    assert len(a) == 3
    assert a == b
    assert prefix_blocks([*range(96), *[7] * 64], b"s")[:4] == (*a, prefix_blocks([*range(96), *[7] * 64], b"s")[3])
    assert set(prefix_blocks([*range(100)], b"other")).isdisjoint(a)
    assert set(prefix_blocks([5, *range(1, 100)], b"s")).isdisjoint(a), "a block stands for all that is before it"
    assert prefix_blocks([1] * 31, b"") == ()
    assert len(prefix_blocks([1] * 100_000, b"")) == 128


def test_completions_of_one_prompt_belong_together_and_a_common_greeting_is_not_enough() -> None:
    assert belong_together(text(1, 1).blocks, text(1, 2, tokens=500).blocks)
    assert not belong_together(text(1, 1).blocks, text(2, 1).blocks)
    assert not belong_together(text(1, 1, shared=32, tokens=320).blocks, text(1, 2, shared=32, tokens=320).blocks)
    assert not belong_together((), ())


def test_what_a_worker_knows_is_bounded_and_the_ends_of_old_texts_go_first() -> None:
    recent = RecentPrefixes(max_blocks=6)
    first, second = text(1, 1).blocks, text(2, 1).blocks
    recent.note(first)
    assert recent.known_tokens(text(1, 9).blocks) == 128
    recent.note(second)
    assert len(recent) == 6
    assert recent.known_tokens(second) == 160
    assert recent.known_tokens(first) == 32
    recent.forget()
    assert recent.known_tokens(second) == 0


def test_a_prompt_goes_where_it_is_known_until_that_worker_is_much_more_loaded() -> None:
    loads = {name: WorkerLoad(10_000) for name in "ab"}
    blocks = text(1, 1).blocks
    loads["b"].recent.note(blocks)
    assert least_loaded(loads.items(), text(1, 2).blocks) == "b"
    assert least_loaded(loads.items(), text(2, 2).blocks) == "a"
    assert least_loaded(loads.items()) == "a"
    loads["b"].tokens = 500
    assert least_loaded(loads.items(), text(1, 2).blocks) == "b"
    loads["b"].tokens = 600
    assert least_loaded(loads.items(), text(1, 2).blocks) == "a"
    loads["a"].recent.note(blocks)  # and from then on it knows it too
    assert least_loaded(loads.items(), text(1, 3).blocks) == "a"


def test_completions_of_a_prompt_go_together_though_the_share_of_a_request_is_less() -> None:
    waiting = Waiting(max_batch_tokens=1000)
    waiting.add([text(prompt, completion) for prompt in (1, 2) for completion in range(4)])
    assert named(waiting.take(limit=200)) == [(1, 0), (1, 1), (1, 2), (1, 3)]
    assert named(waiting.take(limit=200)) == [(2, 0), (2, 1), (2, 2), (2, 3)]
    assert waiting.head() is None


def test_a_prompt_is_not_begun_where_its_completions_do_not_all_fit_but_would_alone() -> None:
    waiting = Waiting(max_batch_tokens=1000)
    waiting.add([text(1, 0), text(1, 1), text(1, 2), *(text(2, i) for i in range(5)), *(text(3, i) for i in range(9))])
    assert named(waiting.take(limit=1000)) == [(1, 0), (1, 1), (1, 2)]
    assert named(waiting.take(limit=1000)) == [*((2, i) for i in range(5)), (3, 0)], "nine fit nowhere whole"
    assert named(waiting.take(limit=1000)) == [(3, i) for i in range(1, 7)]


def test_single_texts_of_one_prompt_are_gathered_from_behind_others() -> None:
    waiting = Waiting(max_batch_tokens=1000)
    for i in range(4):
        waiting.add([text(1, i)])
        waiting.add([text(2, i)])
    assert named(waiting.take(limit=160)) == [(1, i) for i in range(4)]
    assert named(waiting.take(limit=160)) == [(2, i) for i in range(4)]


def test_a_large_job_does_not_keep_a_small_one_waiting() -> None:
    waiting = Waiting(max_batch_tokens=1000)
    waiting.add([text(i, 0) for i in range(100)])
    waiting.add([text(500, 0)])
    assert len(waiting.take(limit=1000)) == 6
    assert named(waiting.take(limit=1000))[0] == (500, 0)


def test_what_comes_back_is_first_and_travels_with_its_part_only() -> None:
    waiting = Waiting(max_batch_tokens=1000)
    waiting.add([text(1, 0)])
    halves = [[text(2, 0), text(2, 1)], [text(2, 2)]]
    for half in halves:
        part = object()
        for one in half:
            one.part = part
        waiting.put_back(half)
    assert [named(waiting.take(1000)) for _ in range(3)] == [[(2, 2)], [(2, 0), (2, 1)], [(1, 0)]]
    waiting.add([text(1, 0), text(1, 1)])
    gone = waiting.head()
    assert gone is not None
    gone.settled = True
    assert named(waiting.take_all()[1:]) == [(1, 1)]
    assert waiting.head() is None


@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.lists(st.tuples(st.integers(0, 3), st.integers(1, 400)), min_size=1)),
        max_size=30,
    ),
    st.integers(1, 600),
    st.integers(1, 600),
)
def test_every_text_goes_once_in_requests_of_one_scope_and_of_bounded_size(jobs, max_batch_tokens, limit) -> None:
    waiting = Waiting(max_batch_tokens)
    given_texts = []
    for scope, lengths in jobs:
        job = [text(prompt, 0, scope=bytes([scope]), tokens=n, shared=min(n, 64)) for prompt, n in lengths]
        waiting.add(job)
        given_texts += job
    taken = []
    while waiting.head() is not None:
        head = waiting.head()
        request = waiting.take(min(limit, max_batch_tokens))
        assert request[0] is head
        assert len({one.scope for one in request}) == 1
        assert len(request) == 1 or sum(one.tokens for one in request) <= max_batch_tokens
        taken += request
    assert len(taken) == len(given_texts)
    assert {id(one) for one in taken} == {id(one) for one in given_texts}
