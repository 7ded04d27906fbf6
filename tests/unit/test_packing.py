"""The planner alone: every text reads exactly its own tokens, shared ones once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.backbone import packing
from service.backbone.packing import MIN_SHARED_TOKENS, Plan, PrefixTree, common_tokens, encode

# Few ids and nested prefixes, so that texts often begin alike, repeat, or end inside one another.
_runs = st.lists(st.integers(0, 2), min_size=1, max_size=12)
_batches = st.lists(_runs, min_size=1, max_size=12)


def plan(texts: Sequence[Sequence[int]], *arguments: Any, **options: Any) -> Plan:
    return packing.plan([encode(text) for text in texts], *arguments, **options)


def rows_of(texts: Sequence[Sequence[int]], *arguments: Any, **options: Any) -> list[list[int]]:
    return packing.rows_of([encode(text) for text in texts], *arguments, **options)


def _read(plan_: Plan, texts: Sequence[Sequence[int]], index: int, known: int = 0) -> list[int]:
    """The tokens that text `index` reads: down its path, up to its last row."""
    tokens = list(texts[index][:known])
    for segment_index in plan_.path(plan_.segment_of[index]):
        segment = plan_.segments[segment_index]
        assert segment.start == len(tokens)
        tokens += texts[segment.text][segment.start : segment.stop]
    last = plan_.segments[plan_.segment_of[index]]
    assert plan_.last_rows[index] == last.row + last.tokens - 1
    return tokens


def _distinct_prefixes(texts: Sequence[Sequence[int]], groups: Sequence[object]) -> int:
    """What perfect sharing computes: the nodes of a token trie."""
    return len({(g, tuple(t[: i + 1])) for t, g in zip(texts, groups, strict=True) for i in range(len(t))})


@given(_batches, st.data())
def test_every_text_reads_its_own_tokens_and_shared_ones_are_computed_once(
    texts: list[list[int]], data: st.DataObject
) -> None:
    groups = data.draw(st.lists(st.sampled_from("ab"), min_size=len(texts), max_size=len(texts)))
    packed = plan(texts, groups, min_shared=1)
    for index, text in enumerate(texts):
        assert _read(packed, texts, index) == text
        path_texts = {packed.segments[s].text for s in packed.path(packed.segment_of[index])}
        assert {groups[t] for t in path_texts} == {groups[index]}
    assert packed.tokens == _distinct_prefixes(texts, groups)


@given(_batches, st.integers(2, 5))
def test_short_common_runs_are_not_worth_a_segment(texts: list[list[int]], min_shared: int) -> None:
    packed = plan(texts, min_shared=min_shared)
    for index, text in enumerate(texts):
        assert _read(packed, texts, index) == text
    children: dict[int, int] = {}
    for segment in packed.segments:
        children[segment.parent] = children.get(segment.parent, 0) + 1
    ends = set(packed.segment_of)
    for index, segment in enumerate(packed.segments):
        if index not in ends and children.get(index, 0) > 1:
            assert segment.stop >= min_shared  # its upper part may have become a segment of its own since


@given(_batches)
def test_rows_are_numbered_without_gaps_and_parents_come_first(texts: list[list[int]]) -> None:
    packed = plan(texts, min_shared=1)
    row = 0
    for index, segment in enumerate(packed.segments):
        assert segment.row == row
        assert segment.parent < index
        assert segment.tokens > 0
        row = segment.row + segment.tokens
    assert packed.tokens == row


@given(_runs, _batches)
def test_known_tokens_are_not_computed(known: list[int], endings: list[list[int]]) -> None:
    texts = [known + ending for ending in endings]
    packed = plan(texts, ["cached"] * len(texts), [len(known)] * len(texts), min_shared=1)
    for index, text in enumerate(texts):
        assert _read(packed, texts, index, len(known)) == text
    assert packed.tokens == _distinct_prefixes(endings, [0] * len(texts))


@given(_batches, st.data())
def test_a_growing_batch_costs_what_its_plan_computes(texts: list[list[int]], data: st.DataObject) -> None:
    groups = data.draw(st.lists(st.sampled_from([b"a", b"b"]), min_size=len(texts), max_size=len(texts)))
    tree = PrefixTree(min_shared=1)
    cost = 0
    for text, group in zip(texts, groups, strict=True):
        cost += len(text) - tree.shared_tokens(encode(text), group)
        tree.insert(encode(text), group)
    assert cost == plan(texts, groups, min_shared=1).tokens
    for text, group in zip(texts, groups, strict=True):
        tree.remove(encode(text), group)
    assert tree.shared_tokens(encode(texts[0]), groups[0]) == 0


@given(_batches, st.integers(1, 30), st.integers(1, 5), st.data())
def test_rows_hold_every_text_once_and_keep_to_their_size(
    texts: list[list[int]], max_tokens: int, min_shared: int, data: st.DataObject
) -> None:
    groups = data.draw(st.lists(st.sampled_from("ab"), min_size=len(texts), max_size=len(texts)))
    rows = rows_of(texts, groups, max_tokens, min_shared=min_shared)
    assert sorted(index for row in rows for index in row) == list(range(len(texts)))
    for row in rows:
        packed = plan([texts[i] for i in row], [groups[i] for i in row], min_shared=min_shared)
        assert len(row) == 1 or packed.tokens <= max_tokens


def test_a_common_run_that_is_not_shared_counts_in_every_row() -> None:
    texts = [[1] * (MIN_SHARED_TOKENS - 1) + [2 + i] for i in range(100)]
    assert [len(row) for row in rows_of(texts, None, 10 * MIN_SHARED_TOKENS)] == [10] * 10


def test_common_tokens_of_long_texts() -> None:
    left = list(range(3000))
    for at in (0, 1, 17, 1023, 1024, 2999):
        right = [*left[:at], 9999, *left[at + 1 :]]
        assert common_tokens(encode(left), encode(right)) == at
    assert common_tokens(encode(left), encode(left[:700])) == 700


def test_best_of_sixteen_computes_its_prompt_once() -> None:
    prompt = list(range(400))
    packed = plan([prompt + [1000 + i] * 100 for i in range(16)])
    assert packed.tokens == 400 + 16 * 100
    assert len(packed.segments) == 17
    assert all(segment.parent == 0 for segment in packed.segments[1:])


@pytest.mark.parametrize("count", [1, 2, 500])
def test_texts_that_grow_out_of_each_other(count: int) -> None:
    texts = [list(range(20 * (i + 1))) for i in range(count)]
    packed = plan(texts[::-1])
    assert packed.tokens == 20 * count
    assert [len(packed.path(packed.segment_of[count - 1 - i])) for i in range(count)] == list(range(1, count + 1))
