"""What the replicas of a server share, as the use cases see it. The `redis_*` modules implement it.

Every method answers in about REDIS_TIMEOUT_S at most, and none raises because the shared store is down: it then knows
nothing, and who asked goes to the database or the engine.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from service.store.caches import CachedBaseRewards
from service.store.records import StoredUser


class SharedClaims(Protocol):
    """What one request misses and asked to compute, so that replicas that miss the same compute it once."""

    async def answers(self) -> list[CachedBaseRewards | bool]:
        """For each key its entry, where there is one by now; else whether the caller is to compute it.

        False: another replica does. Where the shared store does not answer, everything is the caller's.
        """

    async def wait(self, indices: Sequence[int], patience_s: float) -> list[CachedBaseRewards | None]:
        """Entries of those keys that other replicas compute, within `patience_s`.

        None: the other one failed, or is too slow, or the shared store is down. The caller computes it then.
        """

    def release(self) -> None:
        """The request has ended: what it was to compute and did not put may be computed by others."""


class SharedBaseRewards(Protocol):
    """Base rewards by text key, shared between replicas."""

    async def get(self, keys: Sequence[bytes]) -> list[CachedBaseRewards | None]:
        """What is known of each key, in order."""

    def put(self, entries: Mapping[bytes, CachedBaseRewards]) -> None:
        """Share entries some time soon, or not at all."""

    def claim(self, keys: Sequence[bytes]) -> SharedClaims:
        """Begin to ask who computes what is missing; to be released. The question runs while the caller goes on."""


@dataclass(frozen=True, slots=True, eq=False)
class SharedUser:
    """A user as some replica read or committed it.

    Attributes:
        user: The row as it was in the database.
        age_s: How long ago, by the shared store's own clock.
        trusted: Whether that is recent enough to stand for the database.
    """

    user: StoredUser
    age_s: float
    trusted: bool


@dataclass(frozen=True, slots=True)
class SharedTombstone:
    """This life of the user, and every earlier one, was erased: only the database knows more."""

    incarnation: int


class SharedUsers(Protocol):
    """States of users, shared between replicas."""

    async def get(self, tenant_id: str, user_id: str) -> SharedUser | SharedTombstone | None:
        """What is known of a user; None for nothing."""

    def publish_read(self, user: StoredUser) -> None:
        """Share a row just read from the database, some time soon or not at all, unless a newer one is shared."""

    def publish_committed(self, user: StoredUser) -> None:
        """Share a row just committed. If that fails, older entries are taken out before this replica trusts any."""

    def erase(self, tenant_id: str, user_id: str, incarnation: int | None) -> asyncio.Task[None]:
        """Forget a user and refuse to learn of this life (and earlier ones) again; the task ends when that is done.

        If it fails it is made up for before this replica trusts the shared store again; the task does not raise.

        Args:
            tenant_id: Whose user.
            user_id: The user.
            incarnation: The life that was erased; None where the database knew of none: what is shared is dropped,
                and nothing is refused.
        """


@dataclass(frozen=True, slots=True)
class Taken:
    """The answer of a token bucket: whether it gave, and if not, in how many seconds it could."""

    allowed: bool
    retry_after_s: float


class SharedCounters(Protocol):
    """Token buckets shared between replicas."""

    async def take(
        self, tenant_id: str, quota: str, amount: float, *, limit: float, window_s: float, force: bool = False
    ) -> Taken | None:
        """Take `amount` from the bucket of a tenant's quota.

        A bucket holds `limit` at most and refills evenly, `limit` in `window_s`. An amount larger than that is given
        by a full bucket, which then owes the rest.

        Args:
            tenant_id: Whose bucket.
            quota: Which of theirs.
            amount: How much; at least 0.
            limit: What a full bucket holds, over 0.
            window_s: Seconds in which an empty bucket fills, over 0.
            force: Take it though the bucket is empty: for work whose amount is known only when it is done.

        Returns:
            The answer, or None where the shared store does not answer: count per process then.
        """

    async def give_back(self, tenant_id: str, quota: str, amount: float, *, limit: float, window_s: float) -> bool:
        """Put back what was taken and not used; a bucket that is full takes no more.

        Returns:
            Whether the shared store has it; where it does not answer, nothing is known of the bucket.
        """
