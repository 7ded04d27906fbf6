"""The state of a user: from memory, the replicas' shared store, the database, or the checkpoint's start."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from typing import Final, Literal

from service.checkpoints import Checkpoint
from service.errors import Conflict, FieldIssue, InvalidInput, MetarewardError, Unavailable
from service.mrm import UserState
from service.observability.metrics import Metrics
from service.operations.carry import CarriedUser, Retained, carry_user
from service.operations.solving import Solver
from service.store.caches import LruCache, UserCache
from service.store.records import HeadsView, StoredUser
from service.store.shared import SharedTombstone, SharedUser, SharedUsers
from service.store.users import UserRepository

logger = logging.getLogger(__name__)

Standing = Literal["adapted", "cold_start", "stale", "population"]

NOBODYS_VERSION: Final = "is for a user; name one in user_id, or leave min_version out"

# Users whose retained texts are measured at a time, how long one who asks waits for that, and when what failed is tried
# again: a user's thousand texts take a small device longer than anybody waits for an answer.
_MEASURED_AT_ONCE: Final = 4
_MEASURING_PATIENCE_S: Final = 2.0
_MEASURE_AGAIN_S: Final = 30.0
_MOST_LEFT_OUT: Final = 10_000


@dataclass(frozen=True, slots=True)
class ResolvedUser:
    """What a score needs to know of a user.

    Attributes:
        state: Weights and posterior factor.
        standing: `adapted`; `cold_start` where the user is unknown and the start serves; `stale` where the database
            does not answer and a remembered state serves; `population` where nobody was asked for: the start again.
        version: The user's version, 0 for a cold start and for nobody.
        carried: How the weights came to this checkpoint, where they were not solved for it by a change; None where
            they were.
    """

    state: UserState
    standing: Standing
    version: int
    carried: str | None = None


@dataclass(frozen=True, slots=True)
class _Loaded:
    """What the database said; `carried` where it was solved anew for this checkpoint, `is_row` where it is the row."""

    user: StoredUser | None
    is_row: bool
    carried: CarriedUser | None = None


@dataclass(slots=True)
class _Read:
    """A read of the database for all who ask meanwhile: the thread's work, and its end on the event loop."""

    began: float
    work: Future[_Loaded]
    loaded: asyncio.Future[_Loaded]
    waiters: int = 0


class UserStates:
    """Resolves users. Lives on one event loop; the database is asked from threads.

    A remembered state is trusted for `revalidate_s`. After that the replicas' shared store is asked, where there is
    one and what it holds is young enough; then the database, once for all callers. While the database does not
    answer, a remembered or shared state serves until it is `stale_limit_s` old. A user who is not known gets an error
    then, never a silent cold start. Nobody waits to learn of an outage that is known: after a failed read the database
    is left alone for `pause_s`, then one read tries it again.
    """

    def __init__(
        self,
        *,
        repository: UserRepository,
        executor: Executor,
        cache: UserCache,
        checkpoint: Checkpoint,
        view: HeadsView,
        solver: Solver,
        stale_limit_s: float,
        metrics: Metrics,
        shared: SharedUsers | None = None,
        revalidate_s: float = 1.0,
        pause_s: float = 1.0,
        retained: Retained | None = None,
    ) -> None:
        self._repository = repository
        self._executor = executor
        self._cache = cache
        self._shared = shared
        self._checkpoint = checkpoint
        self._view = view
        self._solver = solver
        self._stale_limit_s = stale_limit_s
        self._revalidate_s = revalidate_s
        self._pause_s = pause_s
        # The last failure of a read, unless one has succeeded since. Written by the threads that read.
        self._outage: tuple[float, Unavailable] | None = None
        self._retrying = False
        self._metrics = metrics
        self._start = solver([], checkpoint).state
        self._reads: dict[tuple[str, str], _Read] = {}
        self._retained = retained
        # Carried users of whom something was left out, until it was tried to measure it.
        self._left_out: LruCache[tuple[str, str], CarriedUser] = LruCache(_MOST_LEFT_OUT)
        self._measuring: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._measure_turns = asyncio.Semaphore(_MEASURED_AT_ONCE)

    @property
    def view(self) -> HeadsView:
        """From where a solve looks at stored evidence: this checkpoint's heads."""
        return self._view

    @property
    def start(self) -> UserState:
        """The state of somebody who has not adapted."""
        return self._start

    async def resolve(
        self, tenant_id: str, user_id: str | None, min_version: int = 0, *, measure: bool = True
    ) -> ResolvedUser:
        """The state of one user, at least at `min_version` (read-your-writes on any replica).

        With `measure`, what was left out of a carried user's solve is measured where it is retained. None is nobody in
        particular: the start, from memory in any case.

        Raises:
            InvalidInput: A version of nobody was asked for.
            Unavailable: The database does not answer and nothing is remembered.
            Conflict: The user has not reached `min_version`.
        """
        if user_id is None:
            if min_version:
                raise InvalidInput([FieldIssue("min_version", NOBODYS_VERSION)])
            return ResolvedUser(self._start, "population", 0)
        now = time.monotonic()
        entry = self._cache.get_fresh((tenant_id, user_id), now, self._revalidate_s)
        if entry is not None and _version(entry.user) >= min_version:
            self._metrics.user_cache.labels("memory", "hit").inc()
            return self._resolved(entry.user)
        self._metrics.user_cache.labels("memory", "miss").inc()
        try:
            shared = None if self._shared is None else await self._ask_shared(self._shared, tenant_id, user_id)
            if shared is not None and shared.version >= min_version:
                return self._resolved(shared)
            user, began = await self._ask_database(tenant_id, user_id, measure=measure)
            if _version(user) < min_version and began < now:
                # The read was another caller's, and may have begun before that version was committed.
                user, _ = await self._ask_database(tenant_id, user_id, since=now, measure=measure)
        except Unavailable:
            stale = self._cache.get_stale((tenant_id, user_id), now, self._stale_limit_s)
            if stale is None or stale.user is None or stale.user.version < min_version:
                raise
            return self._resolved(stale.user, stale=True)
        if _version(user) < min_version:
            raise Conflict(f"min_version is {min_version}, but this user is at version {_version(user)}")
        return self._resolved(user)

    def publish(self, user: StoredUser, left_out: int = 0) -> None:
        """Remember a user as just committed, unless something newer is remembered.

        What the solve had to leave out (`left_out` statements) is measured behind the answer, as far as it is retained.

        A replayed answer may be older than the checkpoint: such weights are not this checkpoint's, and a read solves
        for them anew.
        """
        if user.checkpoint_id == self._checkpoint.checkpoint_id:
            self._cache.publish(user, time.monotonic())
            if left_out and self._retained is not None:
                self._measuring_of(self._retained, CarriedUser(user, left_out))
        else:
            self._cache.outdate(user)

    def forget(self, tenant_id: str, user_id: str) -> None:
        """Remember that a user was just erased."""
        self._left_out.drop((tenant_id, user_id))
        self._cache.publish_absent(tenant_id, user_id, time.monotonic())

    async def _ask_shared(self, shared: SharedUsers, tenant_id: str, user_id: str) -> StoredUser | None:
        """What another replica knows of a user, if it stands for the database; it is remembered either way."""
        began = time.monotonic()
        found = await shared.get(tenant_id, user_id)
        usable = isinstance(found, SharedUser) and found.user.checkpoint_id == self._checkpoint.checkpoint_id
        self._metrics.user_cache.labels("redis", "hit" if usable else "miss").inc()
        if isinstance(found, SharedTombstone):
            self._cache.drop_erased(tenant_id, user_id, found.incarnation)
        if not isinstance(found, SharedUser) or not usable:
            return None
        confirmed_at = began - found.age_s
        # While memory holds something newer, only the database can tell which is right.
        known = self._cache.get((tenant_id, user_id))
        if known is not None:
            if known.user is None and known.confirmed_at >= confirmed_at:
                return None
            if known.user is not None and _order(known.user) > _order(found.user):
                return None
        self._cache.publish(found.user, began if found.trusted else confirmed_at, confirmed_at)
        return found.user if found.trusted else None

    async def _ask_database(
        self, tenant_id: str, user_id: str, *, since: float = -math.inf, measure: bool
    ) -> tuple[StoredUser | None, float]:
        """The user from the database, in one read for all who ask meanwhile, and when that read began.

        One that began before `since` will not do.
        """
        key = (tenant_id, user_id)
        while (read := self._reads.get(key)) is not None and read.began < since:
            await asyncio.wait([read.loaded])
        if self._retrying:
            self._refuse_in_outage(math.inf)
        self._refuse_in_outage(self._pause_s)
        if read is None:
            read = self._begin_read(tenant_id, user_id)
        read.waiters += 1
        try:
            # Shielded: a caller that leaves must not take the answer from the others.
            loaded = await asyncio.shield(read.loaded)
            user = loaded.user
            if measure and self._retained is not None and user is not None:
                left = self._left_out.get(key)
                if left is not None and _order(left.user) == _order(user):
                    user = await self._measured(self._retained, left)
            return user, read.began
        finally:
            read.waiters -= 1
            # The last one that leaves takes along what waits for a thread: requests that come and go are not bounded.
            if read.waiters == 0 and read.work.cancel():
                self._forget_read(key, read)

    def _begin_read(self, tenant_id: str, user_id: str) -> _Read:
        key = (tenant_id, user_id)
        retries = self._retrying = self._outage is not None
        began = time.monotonic()
        known = self._cache.get(key)
        work = self._executor.submit(self._load, tenant_id, user_id, None if known is None else known.user)
        read = self._reads[key] = _Read(began, work, asyncio.wrap_future(work))

        def remember(done: asyncio.Future[_Loaded]) -> None:
            self._forget_read(key, read)
            if retries:
                self._retrying = False
            if done.cancelled() or done.exception() is not None:
                return
            loaded = done.result()
            self._remember(key, loaded, read.began)
            if loaded.carried is not None:
                self._metrics.left_out.inc(loaded.carried.left_out)
                if loaded.carried.left_out and self._retained is not None:
                    self._left_out.put(key, loaded.carried)

        read.loaded.add_done_callback(remember)
        return read

    def _remember(self, key: tuple[str, str], loaded: _Loaded, began: float) -> None:
        """Remember what the database said in a read that began then, and let other replicas know."""
        if loaded.user is None:
            self._cache.publish_absent(*key, began)
            return
        if loaded.carried is not None:
            self._metrics.carried_users.labels(loaded.user.carried).inc()
        self._cache.publish(loaded.user, began)
        if self._shared is not None and loaded.is_row:
            self._shared.publish_read(loaded.user)

    def _forget_read(self, key: tuple[str, str], read: _Read) -> None:
        if self._reads.get(key) is read:
            del self._reads[key]

    def _refuse_in_outage(self, within_s: float) -> None:
        outage = self._outage
        if outage is not None and time.monotonic() - outage[0] < within_s:
            raise Unavailable(outage[1].message, outage[1].retry_after_s)

    async def _measured(self, retained: Retained, carried: CarriedUser) -> StoredUser:
        """The user once what was left out is measured, or as carried where that takes long; it goes on then."""
        await asyncio.wait([self._measuring_of(retained, carried)], timeout=_MEASURING_PATIENCE_S)
        return self._known_as(carried.user) or carried.user

    def _measuring_of(self, retained: Retained, carried: CarriedUser) -> asyncio.Task[None]:
        key = (carried.user.tenant_id, carried.user.user_id)
        task = self._measuring.get(key)
        if task is None:
            task = self._measuring[key] = asyncio.create_task(self._measure(retained, carried))
            task.add_done_callback(lambda _: self._measuring.pop(key, None))
        return task

    def _known_as(self, user: StoredUser) -> StoredUser | None:
        """What is remembered of this version of a user."""
        known = self._cache.get((user.tenant_id, user.user_id))
        if known is None or known.user is None or _order(known.user) != _order(user):
            return None
        return known.user

    async def _measure(self, retained: Retained, carried: CarriedUser) -> None:
        key = (carried.user.tenant_id, carried.user.user_id)
        loop = asyncio.get_running_loop()

        def try_again() -> None:
            if self._known_as(carried.user) is not None:
                self._left_out.put(key, carried)

        try:
            async with self._measure_turns:
                self._left_out.drop(key)
                if not await retained.measure(carried):
                    return
                began = time.monotonic()
                # The row as well: the user may have changed meanwhile, or be gone.
                loaded = await loop.run_in_executor(self._executor, self._load_measured, retained, *key)
        except MetarewardError as error:
            logger.info("what is retained of a user could not be measured now: %s", error)
            loop.call_later(_MEASURE_AGAIN_S, try_again)
            return
        self._remember(key, loaded, began)

    def _load(self, tenant_id: str, user_id: str, known: StoredUser | None) -> _Loaded:
        # Reads that queued for a thread while others failed would each wait as long again.
        self._refuse_in_outage(self._pause_s)
        try:
            loaded = self._load_from_database(tenant_id, user_id, known)
        except Unavailable as error:
            self._outage = (time.monotonic(), error)
            raise
        self._outage = None
        return loaded

    def _load_from_database(self, tenant_id: str, user_id: str, known: StoredUser | None) -> _Loaded:
        row = self._repository.get(tenant_id, user_id)
        if row is None or row.checkpoint_id == self._checkpoint.checkpoint_id:
            return _Loaded(row, is_row=True)
        # What a user said decides, and the version says whether that changed: nobody is solved for twice.
        if known is not None and _order(known) == _order(row):
            return _Loaded(known, is_row=False)
        carried = self._carry(row)
        return _Loaded(carried.user, is_row=False, carried=carried)

    def _load_measured(self, retained: Retained, tenant_id: str, user_id: str) -> _Loaded:
        """The user of whom something was just measured, solved for anew; stored where they are of this checkpoint."""
        row = self._repository.get(tenant_id, user_id)
        if row is None:
            return _Loaded(None, is_row=True)
        carried = self._carry(row, measured=True)
        if row.checkpoint_id != self._checkpoint.checkpoint_id:
            return _Loaded(carried.user, is_row=False, carried=carried)
        return _Loaded(carried.user if retained.store(carried.user) else row, is_row=True)

    def _carry(self, row: StoredUser, *, measured: bool = False) -> CarriedUser:
        return carry_user(
            row, self._checkpoint, repository=self._repository, view=self._view, solver=self._solver, measured=measured
        )

    def _resolved(self, user: StoredUser | None, *, stale: bool = False) -> ResolvedUser:
        if user is None:
            return ResolvedUser(self._start, "cold_start", 0)
        standing: Standing = "stale" if stale else "adapted" if user.pairs else "cold_start"
        return ResolvedUser(UserState(user.weights_K, user.factor), standing, user.version, user.carried)


def _version(user: StoredUser | None) -> int:
    return 0 if user is None else user.version


def _order(user: StoredUser) -> tuple[int, int]:
    return user.incarnation, user.version
