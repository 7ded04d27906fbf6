"""What is written to Redis comes back bit by bit, and what makes no sense is nothing."""

from __future__ import annotations

from dataclasses import fields, replace
from datetime import UTC, datetime
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from service.store.caches import CachedBaseRewards
from service.store.records import Carried, StoredUser
from service.store.redis_base_rewards import BaseRewardCodec
from service.store.redis_client import RedisKeys
from service.store.redis_users import decode_user, encode_user

vectors = arrays(np.float64, st.integers(1, 20), elements=st.floats(allow_nan=False, allow_infinity=False))
moments = st.datetimes(datetime(2000, 1, 1), datetime(2200, 1, 1)).map(lambda moment: moment.replace(tzinfo=UTC))
users = st.builds(
    StoredUser,
    tenant_id=st.just("tenant"),
    user_id=st.just("ada"),
    incarnation=st.integers(1, 2**53),
    version=st.integers(1, 2**53),
    checkpoint_id=st.text(st.characters(exclude_categories=["Cs"]), max_size=40),
    heads_id=st.text(st.characters(exclude_categories=["Cs"]), max_size=40),
    weights_K=vectors,
    factor=st.none() | vectors,
    pairs=st.integers(0, 2**32 - 1),
    created_at=moments,
    updated_at=moments,
    carried=st.sampled_from([None, *get_args(Carried)]),
)
ADA = StoredUser(
    "tenant", "ada", 3, 7, "c", "h", np.arange(2.0), np.arange(3.0), 5, datetime(2026, 1, 1, tzinfo=UTC),
    datetime(2026, 1, 2, tzinfo=UTC),
)  # fmt: skip


@given(users, st.integers(1, 2**40))
def test_a_row_comes_back_as_it_was(user: StoredUser, lifetime_ms: int) -> None:
    value = encode_user(user, lifetime_ms)
    decoded = decode_user("tenant", "ada", value)
    assert decoded is not None
    again, lifetime_again = decoded
    assert lifetime_again == lifetime_ms
    for field in fields(StoredUser):
        ours, theirs = getattr(user, field.name), getattr(again, field.name)
        assert np.array_equal(ours, theirs) if isinstance(ours, np.ndarray) else ours == theirs, field.name


@given(st.binary(max_size=200))
def test_any_bytes_are_a_row_or_nothing(noise: bytes) -> None:
    value = encode_user(ADA, 1000)
    decode_user("tenant", "ada", noise)
    decode_user("tenant", "ada", value[:33] + noise)


def test_what_is_cut_altered_or_not_finite_is_no_row() -> None:
    value = encode_user(ADA, 1000)
    assert decode_user("tenant", "ada", value) is not None
    assert decode_user("tenant", "ada", value[:33]) is None, "a floor is no row"
    for bad in (b"", value[:-1], value + b"x", b"2" + value[1:], b"1" + b"x" * 32 + value[33:]):
        assert decode_user("tenant", "ada", bad) is None
    for broken in (replace(ADA, weights_K=np.array([np.nan])), replace(ADA, factor=np.array([np.inf]))):
        assert decode_user("tenant", "ada", encode_user(broken, 1000)) is None


@given(st.lists(st.tuples(st.lists(st.floats(-1e300, 1e300), min_size=3, max_size=3), st.booleans()), max_size=8))
def test_base_rewards_come_back_as_they_were(rows: list[tuple[list[float], bool]]) -> None:
    codec = BaseRewardCodec(3)
    entries = [CachedBaseRewards(np.array(row), truncated) for row, truncated in rows]
    values: list[bytes | None] = [codec.encode(entry) for entry in entries]
    assert all(value is not None and len(value) == 26 for value in values)
    decoded = codec.decode([None, *values, None])
    assert decoded[0] is decoded[-1] is None
    for entry, again in zip(entries, decoded[1:-1], strict=True):
        assert again is not None
        assert again.base_rewards_K.tolist() == entry.base_rewards_K.tolist()
        assert again.truncated is entry.truncated


@pytest.mark.parametrize(
    "bad",
    [
        b"",
        BaseRewardCodec(2).encode(CachedBaseRewards(np.zeros(2), False)),
        b"\x02\x00" + bytes(24),
        b"\x01\x02" + bytes(24),
        BaseRewardCodec(3).encode(CachedBaseRewards(np.array([0.0, np.nan, 0.0]), False)),
        BaseRewardCodec(3).encode(CachedBaseRewards(np.array([0.0, np.inf, 0.0]), True)),
    ],
)
def test_other_lengths_formats_and_numbers_are_misses_that_spoil_no_neighbour(bad: bytes) -> None:
    codec = BaseRewardCodec(3)
    good = codec.encode(CachedBaseRewards(np.arange(3.0), True))
    decoded = codec.decode([good, bad, good])
    assert decoded[1] is None
    for entry in (decoded[0], decoded[2]):
        assert entry is not None
        assert entry.base_rewards_K.tolist() == [0.0, 1.0, 2.0]


def test_digests_tell_every_split_of_the_same_letters_apart() -> None:
    keys = RedisKeys(b"secret")
    digests = {keys.digest(*parts) for parts in (("user", "ab", "c"), ("user", "a", "bc"), ("userab", "c"), ("u", "x"))}
    assert len(digests) == 4
    assert RedisKeys(b"another").digest("user", "ab", "c") not in digests
