"""Users: reading them, adapting them in one transaction, erasing them.

The order of locks and the reasons are in docs/decisions/ (the adapt transaction).
"""

from __future__ import annotations

import builtins
import math
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import numpy as np
from sqlalchemy import Connection, Row, bindparam, delete, select, update
from sqlalchemy.dialects import postgresql, sqlite

from service.errors import EngineError, Unavailable
from service.store.database import Database
from service.store.failures import RETRY_AFTER_S
from service.store.idempotency import keep_answer, kept_answer, purge_expired
from service.store.records import AdaptOutcome, Idempotency, NewPair, Solution, StoredPair, StoredUser
from service.store.support import count_pairs, forget_pairs, store_pairs, support_set
from service.store.tables import UserRow
from service.store.tenants import check_max_users
from service.store.vectors import from_bytes, to_bytes

Mode = Literal["append", "replace"]
Solve = Callable[[Sequence[StoredPair]], Solution]

# An erase between our insert and our lock takes the row away; it cannot do so for ever.
_LOCK_ATTEMPTS = 5

# Built once: building a statement takes SQLAlchemy longer than most databases take to run it.
_USER = UserRow.__table__
_BY_NAME = select(_USER).where(UserRow.tenant_id == bindparam("tenant_id"), UserRow.user_id == bindparam("user_id"))
_LOCKED = _BY_NAME.with_for_update()
_MAKE = {
    dialect: insert(UserRow).inline().on_conflict_do_nothing(index_elements=["tenant_id", "user_id"])
    for dialect, insert in (("postgresql", postgresql.insert), ("sqlite", sqlite.insert))
}
_WRITE = update(UserRow).where(UserRow.incarnation == bindparam("life"))


def _utc_now() -> datetime:
    return datetime.now(UTC)


class UserRepository:
    """The users of every tenant. Synchronous, safe to use from many threads.

    Every method raises `Unavailable` when the database does not answer in time.
    """

    def __init__(
        self,
        database: Database,
        support_limit: int,
        idempotency_ttl_s: float,
        *,
        clock: Callable[[], datetime] = _utc_now,
    ) -> None:
        self._database = database
        self._support_limit = support_limit
        self._idempotency_ttl = timedelta(seconds=idempotency_ttl_s)
        self._clock = clock

    def get(self, tenant_id: str, user_id: str) -> StoredUser | None:
        """The user as last committed, or None."""
        with self._database.reading() as connection:
            row = connection.execute(_BY_NAME, {"tenant_id": tenant_id, "user_id": user_id}).one_or_none()
        return None if row is None else _to_user(row)

    def list(self, tenant_id: str, after: str | None, limit: int) -> builtins.list[StoredUser]:
        """Up to `limit` users in byte order of their ids, beginning behind `after`."""
        query = select(_USER).where(UserRow.tenant_id == tenant_id)
        if after is not None:
            query = query.where(UserRow.user_id > after)
        with self._database.reading() as connection:
            return [_to_user(row) for row in connection.execute(query.order_by(UserRow.user_id).limit(limit))]

    def pairs(self, tenant_id: str, user_id: str, heads_id: str) -> builtins.list[StoredPair]:
        """The support set that an adapt under `heads_id` would see now; empty for an unknown user."""
        with self._database.reading() as connection:
            row = connection.execute(_BY_NAME, {"tenant_id": tenant_id, "user_id": user_id}).one_or_none()
        if row is None:
            return []
        with self._database.reading() as connection:
            return support_set(connection, row.incarnation, heads_id, self._support_limit)

    def adapt(
        self,
        tenant_id: str,
        user_id: str,
        pairs: Sequence[NewPair],
        mode: Mode,
        heads_id: str,
        checkpoint_id: str,
        idempotency: Idempotency | None,
        solve: Solve,
    ) -> tuple[AdaptOutcome, StoredUser]:
        """Store `pairs`, solve on the support set, and commit the next version: one transaction.

        Concurrent calls for one user run one after the other; none is lost.

        Args:
            tenant_id: Whose user.
            user_id: The user; made if unknown.
            pairs: Pairs whose id is stored already count as received, not as stored.
            mode: ``replace`` deletes the user's pairs first.
            heads_id: The heads that the differences of `pairs` belong to; the solve sees only such pairs.
            checkpoint_id: Written with the version.
            idempotency: With a key seen before, the stored answer is returned and nothing is done.
            solve: From the support set (at most `support_limit` pairs, the newest) to weights. It runs while the
                user is locked, and again if the transaction has to be repeated: quick, and without effects.

        Returns:
            The answer, and the user as committed.

        Raises:
            InvalidInput: Ids that stand for other pairs (``pairs[i].id``), or an idempotency key used with
                another body (``Idempotency-Key``).
            EngineError: A difference, or what `solve` returned, is not finite. Nothing is stored.
            QuotaExceeded: The user would be new, and the tenant may have no more.
            Unavailable: The database does not answer, or cannot take the write now.
        """
        for pair in pairs:
            _require_finite("a base reward difference", pair.diff_K, pair.strength)

        def work(connection: Connection) -> tuple[AdaptOutcome, StoredUser]:
            now = self._clock()
            row = self._lock(connection, tenant_id, user_id, heads_id, checkpoint_id, now)
            if idempotency is not None:
                answer = kept_answer(connection, row.incarnation, idempotency, now)
                if answer is not None:
                    return answer, _to_user(row)
            # Clocks of replicas differ. Under the lock time must not run backwards, or a later pair would be older.
            event_time = max(now, row.updated_at)
            if mode == "replace":
                forget_pairs(connection, row.incarnation)
            stored = store_pairs(connection, tenant_id, row.incarnation, pairs, heads_id, event_time)
            support = support_set(connection, row.incarnation, heads_id, self._support_limit)
            total = len(support)
            if total == self._support_limit:
                total = count_pairs(connection, row.incarnation, heads_id)

            solution = solve(support)
            _require_finite("the solve's result", solution.weights_K, solution.factor, *solution.report.values())
            user = StoredUser(
                tenant_id=tenant_id,
                user_id=user_id,
                incarnation=row.incarnation,
                version=row.version + 1,
                checkpoint_id=checkpoint_id,
                heads_id=heads_id,
                weights_K=from_bytes(to_bytes(solution.weights_K)),
                factor=None if solution.factor is None else from_bytes(to_bytes(solution.factor)),
                pairs=total,
                created_at=row.created_at,
                updated_at=event_time,
            )
            _write(connection, user)
            outcome = AdaptOutcome(
                user_id=user_id,
                incarnation=user.incarnation,
                version=user.version,
                checkpoint_id=checkpoint_id,
                weights=user.weights_K.tolist(),
                pairs_received=len(pairs),
                pairs_stored=stored,
                pairs_total=total,
                report=solution.report,
                replayed=False,
            )
            if idempotency is not None:
                expires_at = now + self._idempotency_ttl
                keep_answer(connection, tenant_id, user.incarnation, idempotency, outcome, expires_at)
            return outcome, user

        return self._database.transaction(work)

    def erase(self, tenant_id: str, user_id: str) -> int | None:
        """Delete the user and all that hangs on it: pairs, kept answers.

        Returns:
            The incarnation that ended, or None if there was no such user.
        """
        statement = (
            delete(UserRow)
            .where(UserRow.tenant_id == tenant_id, UserRow.user_id == user_id)
            .returning(UserRow.incarnation)
        )
        return self._database.transaction(lambda connection: connection.execute(statement).scalar_one_or_none())

    def purge_expired(self) -> int:
        """Delete the expired answers of all users, and return how many they were. To be called now and then."""
        return self._database.transaction(lambda connection: purge_expired(connection, self._clock()))

    def _lock(
        self,
        connection: Connection,
        tenant_id: str,
        user_id: str,
        heads_id: str,
        checkpoint_id: str,
        now: datetime,
    ) -> Row[Any]:
        """The user's row, made if missing and allowed, locked until the transaction ends."""
        name = {"tenant_id": tenant_id, "user_id": user_id}
        blank = {
            **name,
            "version": 0,
            "checkpoint_id": checkpoint_id,
            "heads_id": heads_id,
            "weights": b"",
            "factor": None,
            "pairs": 0,
            "created_at": now,
            "updated_at": now,
        }
        for _ in range(_LOCK_ATTEMPTS):
            connection.execute(_MAKE[connection.dialect.name], blank)
            row = connection.execute(_LOCKED, name).one_or_none()
            if row is not None:
                if row.version == 0:  # made just now
                    check_max_users(connection, tenant_id)
                return row
        raise Unavailable("database: the user is being erased again and again", RETRY_AFTER_S)


def _write(connection: Connection, user: StoredUser) -> None:
    connection.execute(
        _WRITE,
        {
            "life": user.incarnation,
            "version": user.version,
            "checkpoint_id": user.checkpoint_id,
            "heads_id": user.heads_id,
            "weights": to_bytes(user.weights_K),
            "factor": None if user.factor is None else to_bytes(user.factor),
            "pairs": user.pairs,
            "updated_at": user.updated_at,
        },
    )


def _to_user(row: Row[Any]) -> StoredUser:
    return StoredUser(
        tenant_id=row.tenant_id,
        user_id=row.user_id,
        incarnation=row.incarnation,
        version=row.version,
        checkpoint_id=row.checkpoint_id,
        heads_id=row.heads_id,
        weights_K=from_bytes(row.weights),
        factor=None if row.factor is None else from_bytes(row.factor),
        pairs=row.pairs,
        created_at=row.created_at,
        updated_at=row.updated_at,
    )


def _require_finite(what: str, *values: Any) -> None:
    for value in values:
        if value is None:
            continue
        if not (math.isfinite(value) if isinstance(value, float) else bool(np.isfinite(value).all())):
            raise EngineError(f"{what} is not finite: nothing was stored")
