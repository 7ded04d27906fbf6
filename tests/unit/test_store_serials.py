"""Sets of serials as intervals, against Python's own sets."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from service.store.serials import Serials

numbers = st.sets(st.integers(0, 40) | st.integers(10**6, 10**6 + 300))


def members(serials: Serials) -> set[int]:
    return {number for first, end in serials.ranges for number in range(first, end)}


@given(numbers, numbers)
def test_they_are_sets(left: set[int], right: set[int]) -> None:
    a, b = Serials.of(left), Serials.of(right)
    assert members(a) == left
    assert members(a | b) == left | right
    assert members(a - b) == left - right
    assert (a == b) is (left == right)
    assert all((number in a) is (number in left) for number in left | right)
    assert bool(a) is bool(left)
    for ranges in (a.ranges, (a | b).ranges, (a - b).ranges):
        assert all(first < end for first, end in ranges)
        assert all(one[1] < two[0] for one, two in pairwise(ranges))


@given(numbers)
def test_packed_they_come_back(wanted: set[int]) -> None:
    serials = Serials.of(wanted)
    assert Serials.unpack(serials.pack()) == serials


def test_what_only_grew_takes_few_bytes() -> None:
    assert Serials.below(0) == Serials.between(5, 5) == Serials()
    assert len(Serials.below(1_000_000).pack()) == 4
