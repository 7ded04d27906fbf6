"""Hot copies inside one process. Used from one event loop thread only, so nothing here locks.

Times are `time.monotonic()` readings that the caller passes in.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

from service.store.records import StoredUser, Vector

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class LruCache(Generic[K, V]):
    """A dictionary of at most `max_entries`; the least recently used entry makes room."""

    __slots__ = ("_entries", "_max_entries")

    def __init__(self, max_entries: int) -> None:
        if max_entries < 1:
            raise ValueError("max_entries must be at least 1")
        self._entries: OrderedDict[K, V] = OrderedDict()
        self._max_entries = max_entries

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: K) -> V | None:
        """The value, which is now the most recently used, or None."""
        value = self._entries.get(key)
        if value is not None:
            self._entries.move_to_end(key)
        return value

    def put(self, key: K, value: V) -> None:
        """Store `value` as the most recently used."""
        self._entries[key] = value
        self._entries.move_to_end(key)
        if len(self._entries) > self._max_entries:
            self._entries.popitem(last=False)

    def drop(self, key: K) -> None:
        """Remove the entry if there is one."""
        self._entries.pop(key, None)


@dataclass(frozen=True, slots=True, eq=False)
class CachedUser:
    """A user as known; None for a user known to be absent.

    Attributes:
        user: The row, or None.
        fetched_at: When it was last read, from wherever: how soon to look again.
        confirmed_at: When the database last said so: how stale it may be.
    """

    user: StoredUser | None
    fetched_at: float
    confirmed_at: float


class UserCache:
    """Users by (tenant, user). An entry never goes back to an earlier incarnation or version."""

    __slots__ = ("_entries",)

    def __init__(self, max_entries: int) -> None:
        self._entries: LruCache[tuple[str, str], CachedUser] = LruCache(max_entries)

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: tuple[str, str]) -> CachedUser | None:
        """The entry, however old; it may say that the user is absent."""
        return self._entries.get(key)

    def get_fresh(self, key: tuple[str, str], now: float, ttl_s: float = 1.0) -> CachedUser | None:
        """The entry if it was fetched within `ttl_s`; it may say that the user is absent."""
        entry = self._entries.get(key)
        return entry if entry is not None and now - entry.fetched_at <= ttl_s else None

    def get_stale(self, key: tuple[str, str], now: float, stale_limit_s: float) -> CachedUser | None:
        """The entry of a present user confirmed within `stale_limit_s`, for when the database does not answer.

        Old knowledge that a user is absent is not returned: it would be a silent cold start.
        """
        entry = self._entries.get(key)
        if entry is None or entry.user is None or now - entry.confirmed_at > stale_limit_s:
            return None
        return entry

    def publish(self, user: StoredUser, fetched_at: float, confirmed_at: float | None = None) -> None:
        """Store `user`, read or committed at `fetched_at`, unless the entry is newer.

        For a read, pass the time at which it *began*: what was committed and published since then is newer. For a
        read from elsewhere than the database, pass as `confirmed_at` when the database said so.
        """
        key = (user.tenant_id, user.user_id)
        confirmed_at = fetched_at if confirmed_at is None else confirmed_at
        entry = self._entries.get(key)
        if entry is not None:
            if entry.user is None:
                if entry.confirmed_at > confirmed_at:
                    return
            elif (entry.user.incarnation, entry.user.version) > (user.incarnation, user.version):
                return
            else:
                fetched_at = max(fetched_at, entry.fetched_at)
                confirmed_at = max(confirmed_at, entry.confirmed_at)
        self._entries.put(key, CachedUser(user, fetched_at, confirmed_at))

    def publish_absent(self, tenant_id: str, user_id: str, fetched_at: float) -> None:
        """Store that there was no such user at `fetched_at` (a read that began then, or an erase)."""
        key = (tenant_id, user_id)
        entry = self._entries.get(key)
        if entry is None or entry.confirmed_at <= fetched_at:
            self._entries.put(key, CachedUser(None, fetched_at, fetched_at))

    def outdate(self, user: StoredUser) -> None:
        """Forget what is older than `user`, who was committed with weights that are none of this cache's."""
        entry = self._entries.get((user.tenant_id, user.user_id))
        if entry is None:
            return
        if entry.user is None or (entry.user.incarnation, entry.user.version) < (user.incarnation, user.version):
            self._entries.drop((user.tenant_id, user.user_id))

    def drop_erased(self, tenant_id: str, user_id: str, incarnation: int) -> None:
        """Forget a user of whom this incarnation, and every earlier one, was erased."""
        entry = self._entries.get((tenant_id, user_id))
        if entry is not None and entry.user is not None and entry.user.incarnation <= incarnation:
            self._entries.drop((tenant_id, user_id))


@dataclass(frozen=True, slots=True, eq=False)
class CachedBaseRewards:
    """The base rewards [K] of one text, and whether it was cut to fit."""

    base_rewards_K: Vector
    truncated: bool


class BaseRewardCache:
    """Base rewards by content key (32 bytes), bounded in number and age. Holds no text and no user."""

    __slots__ = ("_entries", "_max_age_s")

    def __init__(self, max_entries: int, max_age_s: float) -> None:
        self._entries: LruCache[bytes, tuple[float, CachedBaseRewards]] = LruCache(max_entries)
        self._max_age_s = max_age_s

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: bytes, now: float) -> CachedBaseRewards | None:
        """The entry, unless there is none or it is too old."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        stored_at, rewards = entry
        if now - stored_at > self._max_age_s:
            self._entries.drop(key)
            return None
        return rewards

    def put(self, key: bytes, rewards: CachedBaseRewards, now: float) -> None:
        """Store an entry whose age counts from `now`."""
        self._entries.put(key, (now, rewards))
