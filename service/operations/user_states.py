"""The state of a user: from memory, the database, or the checkpoint's start."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from typing import Literal

from service.checkpoints import Checkpoint
from service.errors import Conflict, Unavailable
from service.mrm import Support, UserState, solve
from service.observability.metrics import Metrics
from service.operations.evidence import support_of
from service.store.caches import UserCache
from service.store.records import StoredUser
from service.store.users import UserRepository

Standing = Literal["adapted", "cold_start", "stale"]


@dataclass(frozen=True, slots=True)
class ResolvedUser:
    """What a score needs to know of a user.

    Attributes:
        state: Weights and posterior factor.
        standing: `adapted`; `cold_start` where the user is unknown and the start serves; `stale` where the database
            does not answer and a remembered state serves.
        version: The user's version, 0 for a cold start.
    """

    state: UserState
    standing: Standing
    version: int


class UserStates:
    """Resolves users. Lives on one event loop; the database is asked from threads.

    A remembered state is trusted for `revalidate_s`; after that the database is asked again, once for all callers.
    While the database does not answer, a remembered state serves until it is `stale_limit_s` old. A user who is not
    remembered gets an error then, never a silent cold start. Nobody waits to learn of an outage that is known: after
    a failed read the database is left alone for `pause_s`, then one read tries it again.
    """

    def __init__(
        self,
        *,
        repository: UserRepository,
        executor: Executor,
        cache: UserCache,
        checkpoint: Checkpoint,
        stale_limit_s: float,
        metrics: Metrics,
        revalidate_s: float = 1.0,
        pause_s: float = 1.0,
    ) -> None:
        self._repository = repository
        self._executor = executor
        self._cache = cache
        self._checkpoint = checkpoint
        self._stale_limit_s = stale_limit_s
        self._revalidate_s = revalidate_s
        self._pause_s = pause_s
        # The last failure of a read, unless one has succeeded since. Written by the threads that read.
        self._outage: tuple[float, Unavailable] | None = None
        self._retrying = False
        self._metrics = metrics
        self._start = solve(Support.empty(checkpoint.heads), checkpoint.start)
        self._reads: dict[tuple[str, str], asyncio.Future[StoredUser | None]] = {}

    @property
    def start(self) -> UserState:
        """The state of somebody who has not adapted."""
        return self._start

    async def resolve(self, tenant_id: str, user_id: str, min_version: int = 0) -> ResolvedUser:
        """The state of one user, at least at `min_version` (read-your-writes on any replica).

        Raises:
            Unavailable: The database does not answer and nothing is remembered.
            Conflict: The user has not reached `min_version`.
        """
        now = time.monotonic()
        entry = self._cache.get_fresh((tenant_id, user_id), now, self._revalidate_s)
        if entry is not None and _version(entry.user) >= min_version:
            self._metrics.user_cache.labels("memory", "hit").inc()
            return self._resolved(entry.user)
        self._metrics.user_cache.labels("memory", "miss").inc()
        try:
            user = await self._read(tenant_id, user_id)
            if _version(user) < min_version:
                # The read may have been another caller's, begun before that version was committed.
                user = await self._read(tenant_id, user_id)
        except Unavailable:
            stale = self._cache.get_stale((tenant_id, user_id), now, self._stale_limit_s)
            if stale is None or stale.user is None or stale.user.version < min_version:
                raise
            return self._resolved(stale.user, stale=True)
        if _version(user) < min_version:
            raise Conflict(f"min_version is {min_version}, but this user is at version {_version(user)}")
        return self._resolved(user)

    def publish(self, user: StoredUser) -> None:
        """Remember a user as just committed, unless something newer is remembered.

        A replayed answer may be older than the checkpoint: such weights are not this checkpoint's, and a read solves
        for them anew.
        """
        if user.checkpoint_id == self._checkpoint.checkpoint_id:
            self._cache.publish(user, time.monotonic())

    def publish_absent(self, tenant_id: str, user_id: str) -> None:
        """Remember that a user was just erased."""
        self._cache.publish_absent(tenant_id, user_id, time.monotonic())

    async def _read(self, tenant_id: str, user_id: str) -> StoredUser | None:
        """The user from the database, read once for all who ask meanwhile."""
        if self._retrying:
            self._refuse_in_outage(float("inf"))
        self._refuse_in_outage(self._pause_s)
        key = (tenant_id, user_id)
        reading = self._reads.get(key)
        if reading is None:
            began = time.monotonic()
            retries = self._retrying = self._outage is not None
            reading = asyncio.get_running_loop().run_in_executor(self._executor, self._load, tenant_id, user_id)
            self._reads[key] = reading

            def remember(done: asyncio.Future[StoredUser | None]) -> None:
                del self._reads[key]
                if retries:
                    self._retrying = False
                if done.cancelled() or done.exception() is not None:
                    return
                user = done.result()
                if user is None:
                    self._cache.publish_absent(tenant_id, user_id, began)
                else:
                    self._cache.publish(user, began)

            reading.add_done_callback(remember)
        # Shielded: a caller that leaves must not take the answer from the others.
        return await asyncio.shield(reading)

    def _refuse_in_outage(self, within_s: float) -> None:
        outage = self._outage
        if outage is not None and time.monotonic() - outage[0] < within_s:
            raise Unavailable(outage[1].message, outage[1].retry_after_s)

    def _load(self, tenant_id: str, user_id: str) -> StoredUser | None:
        # Reads that queued for a thread while others failed would each wait as long again.
        self._refuse_in_outage(self._pause_s)
        try:
            user = self._load_from_database(tenant_id, user_id)
        except Unavailable as error:
            self._outage = (time.monotonic(), error)
            raise
        self._outage = None
        return user

    def _load_from_database(self, tenant_id: str, user_id: str) -> StoredUser | None:
        user = self._repository.get(tenant_id, user_id)
        if user is None or user.checkpoint_id == self._checkpoint.checkpoint_id:
            return user
        # Adapted under another checkpoint. Pairs under the same heads are evidence for this one's start as well;
        # under other heads there are none, and the start it is.
        pairs = self._repository.pairs(tenant_id, user_id, self._checkpoint.heads_id)
        state = solve(support_of(pairs, self._checkpoint.heads), self._checkpoint.start)
        return replace(
            user,
            checkpoint_id=self._checkpoint.checkpoint_id,
            heads_id=self._checkpoint.heads_id,
            weights_K=state.weights_K,
            factor=state.factor,
            pairs=len(pairs),
        )

    def _resolved(self, user: StoredUser | None, *, stale: bool = False) -> ResolvedUser:
        if user is None:
            return ResolvedUser(self._start, "cold_start", 0)
        standing: Standing = "stale" if stale else "adapted" if user.pairs else "cold_start"
        return ResolvedUser(UserState(user.weights_K, user.factor), standing, user.version)


def _version(user: StoredUser | None) -> int:
    return 0 if user is None else user.version
