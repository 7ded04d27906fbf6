"""The caches inside one process."""

from __future__ import annotations

import timeit
from datetime import UTC, datetime

import numpy as np
import pytest

from service.store import BaseRewardCache, CachedBaseRewards, LruCache, StoredUser, UserCache

ADA = ("tenant", "ada")


def user(incarnation: int = 1, version: int = 1) -> StoredUser:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    return StoredUser(*ADA, incarnation, version, "c", "h", np.zeros(2), None, 0, now, now)


def rewards(value: float = 0.0) -> CachedBaseRewards:
    return CachedBaseRewards(np.full(2, value), truncated=False)


def test_the_least_recently_used_makes_room() -> None:
    cache: LruCache[str, int] = LruCache(2)
    cache.put("a", 1)
    cache.put("b", 2)
    assert cache.get("a") == 1
    cache.put("c", 3)
    assert (cache.get("a"), cache.get("b"), cache.get("c"), len(cache)) == (1, None, 3, 2)
    cache.put("a", 4)
    cache.put("d", 5)
    assert (cache.get("a"), cache.get("c")) == (4, None)


def test_a_cache_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        LruCache(0)


def test_an_entry_is_fresh_for_its_time_and_then_stale_for_another() -> None:
    cache = UserCache(10)
    cache.publish(user(), 100.0)
    fresh = cache.get_fresh(ADA, 101.0, ttl_s=1.0)
    assert fresh is not None
    assert fresh.user is not None
    assert cache.get_fresh(ADA, 101.1, ttl_s=1.0) is None
    assert cache.get_stale(ADA, 101.1, stale_limit_s=60.0) is fresh
    assert cache.get_stale(ADA, 160.1, stale_limit_s=60.0) is None


def test_known_absence_is_fresh_but_never_stale() -> None:
    cache = UserCache(10)
    cache.publish_absent(*ADA, 100.0)
    entry = cache.get_fresh(ADA, 100.5)
    assert entry is not None
    assert entry.user is None
    assert cache.get_stale(ADA, 100.5, stale_limit_s=60.0) is None
    assert cache.get_fresh(("tenant", "grace"), 100.5) is None


@pytest.mark.parametrize(
    ("first", "second", "kept"),
    [
        ((1, 1), (1, 2), (1, 2)),
        ((1, 2), (1, 1), (1, 2)),
        ((1, 9), (2, 1), (2, 1)),
        ((2, 1), (1, 9), (2, 1)),
    ],
)
def test_only_the_newer_is_published(first: tuple[int, int], second: tuple[int, int], kept: tuple[int, int]) -> None:
    cache = UserCache(10)
    cache.publish(user(*first), 1.0)
    cache.publish(user(*second), 1.5)
    entry = cache.get_fresh(ADA, 2.0, ttl_s=10.0)
    assert entry is not None
    assert entry.user is not None
    assert (entry.user.incarnation, entry.user.version) == kept


def test_reading_the_same_version_again_makes_it_fresh_again_but_never_older() -> None:
    cache = UserCache(10)
    cache.publish(user(), 1.0)
    cache.publish(user(), 5.0)
    assert cache.get_fresh(ADA, 5.5) is not None
    cache.publish(user(), 2.0)
    assert cache.get_fresh(ADA, 5.5) is not None


def test_a_read_that_began_before_an_adapt_does_not_hide_it() -> None:
    cache = UserCache(10)
    cache.publish(user(), 2.0)
    cache.publish_absent(*ADA, 1.0)
    entry = cache.get_fresh(ADA, 2.5)
    assert entry is not None
    assert entry.user is not None


def test_a_read_that_began_before_an_erase_does_not_bring_the_user_back() -> None:
    cache = UserCache(10)
    cache.publish_absent(*ADA, 2.0)
    cache.publish(user(), 1.0)
    entry = cache.get_fresh(ADA, 2.5)
    assert entry is not None
    assert entry.user is None
    cache.publish(user(2, 1), 3.0)
    entry = cache.get_fresh(ADA, 3.0)
    assert entry is not None
    assert entry.user is not None


def test_base_rewards_expire_by_age_not_by_use() -> None:
    cache = BaseRewardCache(10, max_age_s=5.0)
    key = b"k" * 32
    assert cache.get(key, 0.0) is None
    stored = rewards()
    cache.put(key, stored, 0.0)
    assert cache.get(key, 3.0) is stored
    assert cache.get(key, 5.0) is stored
    assert cache.get(key, 5.1) is None
    assert len(cache) == 0


def test_base_rewards_are_bounded_in_number() -> None:
    cache = BaseRewardCache(3, max_age_s=60.0)
    for i in range(10):
        cache.put(bytes([i]) * 32, rewards(i), 0.0)
    assert len(cache) == 3
    assert cache.get(bytes([9]) * 32, 0.0) is not None


def test_a_lookup_takes_about_a_microsecond() -> None:
    cache = BaseRewardCache(10_000, max_age_s=60.0)
    for i in range(10_000):
        cache.put(i.to_bytes(32, "big"), rewards(), 0.0)
    key = (5_000).to_bytes(32, "big")
    seconds = min(timeit.repeat(lambda: cache.get(key, 1.0), number=10_000, repeat=5)) / 10_000
    assert seconds < 10e-6  # ten times what it takes on an idle machine


def test_what_another_replica_knew_is_as_stale_as_the_database_made_it() -> None:
    cache = UserCache(10)
    cache.publish(user(), 100.0, confirmed_at=80.0)
    assert cache.get_fresh(ADA, 100.5) is not None
    assert cache.get_stale(ADA, 139.0, stale_limit_s=60.0) is not None
    assert cache.get_stale(ADA, 141.0, stale_limit_s=60.0) is None
    cache.publish(user(), 90.0)  # a read of the database that began before that
    entry = cache.get(ADA)
    assert entry is not None
    assert (entry.fetched_at, entry.confirmed_at) == (100.0, 90.0)


def test_known_absence_outweighs_what_was_confirmed_before() -> None:
    cache = UserCache(10)
    cache.publish_absent(*ADA, 100.0)
    cache.publish(user(), 110.0, confirmed_at=99.0)
    entry = cache.get(ADA)
    assert entry is not None
    assert entry.user is None
    cache.publish(user(2), 110.0, confirmed_at=101.0)
    entry = cache.get(ADA)
    assert entry is not None
    assert entry.user is not None


def test_an_erased_life_and_earlier_ones_are_dropped_and_later_ones_stay() -> None:
    cache = UserCache(10)
    cache.publish(user(2), 100.0)
    cache.drop_erased(*ADA, 1)
    assert cache.get(ADA) is not None
    cache.drop_erased(*ADA, 2)
    assert cache.get(ADA) is None
    cache.drop_erased(*ADA, 2)
