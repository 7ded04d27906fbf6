"""Which keys each query sees, by every description of it, against a plain loop over tokens."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from service.backbone.executors.layout import (
    Run,
    alike,
    ends_of,
    first_pieces,
    key_rows,
    pages_of,
    runs_of,
    visible,
)
from service.backbone.packing import Plan, encode, plan

_KNOWN = ((7, 7, 8), (7, 9))


@st.composite
def _batches(draw: st.DrawFn) -> tuple[list[list[int]], Plan, list[int], list[int]]:
    """Texts that begin alike, some behind a prefix that is known."""
    texts, sources = [], []
    for source in draw(st.lists(st.sampled_from([-1, 0, 1]), min_size=1, max_size=8)):
        run = draw(st.lists(st.integers(0, 1), min_size=1, max_size=7))
        texts.append([*(_KNOWN[source] if source >= 0 else ()), *run])
        sources.append(source)
    known = [len(_KNOWN[source]) if source >= 0 else 0 for source in sources]
    return texts, plan([encode(text) for text in texts], sources, known, min_shared=1), sources, known


def _tokens_by_row(texts: list[list[int]], packed: Plan) -> list[int]:
    """Tokens of all rows of keys: of the two known prefixes, then of the batch."""
    own = [texts[s.text][position] for s in packed.segments for position in range(s.start, s.stop)]
    return [*_KNOWN[0], *_KNOWN[1], *own]


@given(_batches())
def test_each_query_sees_its_text_up_to_itself(batch: tuple[list[list[int]], Plan, list[int], list[int]]) -> None:
    texts, packed, sources, known = batch
    runs = runs_of(packed, sources, known)
    tokens = _tokens_by_row(texts, packed)
    mask = visible(runs, packed.tokens, [0, 3], 5, 5 + packed.tokens)
    for index, text in enumerate(texts):
        seen = np.flatnonzero(mask[packed.last_rows[index]])
        run = runs[packed.segment_of[index]]
        rows = key_rows([run], [0, 3], 5)
        assert sorted(rows) == list(seen)
        assert [tokens[row] for row in rows] == text
        half = len(text) // 2 + 1
        start = first_pieces(run.pieces, half)
        assert [tokens[row] for row in key_rows([Run(0, 1, tuple(start))], [0, 3], 5)] == text[:half]
    for segment in packed.segments:  # and each token before the last sees what comes before it, itself included
        for offset in range(segment.tokens):
            assert mask[segment.row + offset].sum() == segment.start + offset + 1


@given(_batches())
def test_ends_are_the_last_queries_alone(batch: tuple[list[list[int]], Plan, list[int], list[int]]) -> None:
    texts, packed, sources, known = batch
    ends, row_of_text = ends_of(packed, runs_of(packed, sources, known))
    assert [run.start for run in ends] == list(range(len(ends)))
    for index, text in enumerate(texts):
        assert ends[row_of_text[index]].keys == len(text)
        assert ends[row_of_text[index]].queries == 1


@given(_batches(), st.integers(1, 4))
def test_pages_hold_each_runs_keys_in_order(
    batch: tuple[list[list[int]], Plan, list[int], list[int]], page: int
) -> None:
    _, packed, sources, known = batch
    runs = runs_of(packed, sources, known)
    pages, tables = pages_of(runs, [0, 3], 5, page)
    by_page = pages.reshape(-1, page)
    for run, table in zip(runs, tables, strict=True):
        rows = by_page[table].ravel()[: run.keys]
        assert list(rows) == list(key_rows([run], [0, 3], 5))
    assert len({tuple(rows) for rows in by_page}) == len(by_page)


@given(_batches(), st.floats(0, 0.5), st.integers(1, 40))
def test_groups_are_of_like_shapes(
    batch: tuple[list[list[int]], Plan, list[int], list[int]], most_filling: float, most_keys: int
) -> None:
    _, packed, sources, known = batch
    runs = runs_of(packed, sources, known)
    groups = alike(runs, most_filling=most_filling, most_keys=most_keys)
    assert sorted(index for group in groups for index in group) == list(range(len(runs)))
    for group in groups:
        members = [runs[index] for index in group]
        longest = members[0].queries
        assert len({run.keys - run.queries for run in members}) == 1
        assert max(run.queries for run in members) == longest
        filling = longest * len(members) - sum(run.queries for run in members)
        assert filling <= most_filling * longest * len(members)
        assert len(members) == 1 or len(members) * members[0].keys <= most_keys
