"""Users: reading them, changing what they said in one transaction, erasing them."""

from __future__ import annotations

import builtins
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from sqlalchemy import bindparam, delete, select

from service.store.changes import BY_NAME, Policy, Solve, change_user, require_finite, to_user
from service.store.database import Database
from service.store.export import evidence_page, export_user
from service.store.history import versions_page
from service.store.idempotency import purge_expired
from service.store.records import (
    Append,
    Change,
    ChangeOutcome,
    HeadsView,
    Idempotency,
    Replace,
    StoredEvidence,
    StoredUser,
    StoredVersion,
    UserExport,
)
from service.store.support import SupportSet, support_set
from service.store.tables import UserRow

_ERASE = (
    delete(UserRow)
    .where(UserRow.tenant_id == bindparam("tenant_id"), UserRow.user_id == bindparam("user_id"))
    .returning(UserRow.incarnation)
)


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
        history_versions: int = 20,
        clock: Callable[[], datetime] = _utc_now,
    ) -> None:
        self._database = database
        self._policy = Policy(support_limit, history_versions, timedelta(seconds=idempotency_ttl_s))
        self._clock = clock

    def get(self, tenant_id: str, user_id: str) -> StoredUser | None:
        """The user as last committed, or None."""
        with self._database.reading() as connection:
            row = connection.execute(BY_NAME, {"tenant_id": tenant_id, "user_id": user_id}).one_or_none()
        return None if row is None else to_user(row)

    def list(self, tenant_id: str, after: str | None, limit: int) -> builtins.list[StoredUser]:
        """Up to `limit` users in byte order of their ids, beginning behind `after`."""
        query = select(UserRow.__table__).where(UserRow.tenant_id == tenant_id)
        if after is not None:
            query = query.where(UserRow.user_id > after)
        with self._database.reading() as connection:
            return [to_user(row) for row in connection.execute(query.order_by(UserRow.user_id).limit(limit))]

    def support(self, tenant_id: str, user_id: str, view: HeadsView) -> builtins.list[StoredEvidence]:
        """The support set that a change under `view` would solve on now; empty for an unknown user."""
        return self.support_set(tenant_id, user_id, view).evidence

    def support_set(self, tenant_id: str, user_id: str, view: HeadsView) -> SupportSet:
        """`support`, and how much counts beyond it."""
        with self._database.snapshot() as connection:
            row = connection.execute(BY_NAME, {"tenant_id": tenant_id, "user_id": user_id}).one_or_none()
            if row is None:
                return SupportSet([], 0, 0)
            return support_set(connection, row.incarnation, view, self._policy.support_limit)

    def evidence(
        self, tenant_id: str, user_id: str, after: str | None, limit: int
    ) -> builtins.list[tuple[StoredEvidence, bytes | None]] | None:
        """Up to `limit` statements in byte order of their ids, beginning behind `after`, live or not.

        Each as measured with the heads of the user's weights, or else with others, and with what is retained of it.
        None for an unknown user.
        """
        with self._database.snapshot() as connection:
            row = connection.execute(BY_NAME, {"tenant_id": tenant_id, "user_id": user_id}).one_or_none()
            return None if row is None else evidence_page(connection, row, after, limit)

    def versions(
        self, tenant_id: str, user_id: str, before: int | None, limit: int
    ) -> builtins.list[StoredVersion] | None:
        """Up to `limit` kept versions below `before`, the newest (the present one) first; None for an unknown user."""
        with self._database.snapshot() as connection:
            row = connection.execute(BY_NAME, {"tenant_id": tenant_id, "user_id": user_id}).one_or_none()
            return None if row is None else versions_page(connection, row, before, limit)

    def export(self, tenant_id: str, user_id: str) -> UserExport | None:
        """All that is stored of the user, as of one moment; None for an unknown user."""
        with self._database.snapshot() as connection:
            row = connection.execute(BY_NAME, {"tenant_id": tenant_id, "user_id": user_id}).one_or_none()
            return None if row is None else export_user(connection, row)

    def change(
        self,
        tenant_id: str,
        user_id: str,
        change: Change,
        view: HeadsView,
        idempotency: Idempotency | None,
        solve: Solve,
    ) -> tuple[ChangeOutcome, StoredUser]:
        """Change what the user said, solve on the support set, and commit the next version: one transaction.

        Concurrent calls for one user run one after the other; none is lost.

        Args:
            tenant_id: Whose user.
            user_id: The user; `Append` and `Replace` make one who is unknown.
            change: What to change. Items whose id counts already are received, not stored.
            view: From where the solve looks; base rewards of items belong to its heads.
            idempotency: With a key seen before, the stored answer is returned and nothing is done.
            solve: From the support set (at most `support_limit` statements, the newest) to weights. It runs while the
                user is locked, and again if the transaction has to be repeated: quick, and without effects.

        Returns:
            The answer, and the user as committed.

        Raises:
            InvalidInput: Ids that stand for something else (``pairs[i].id``), or an idempotency key used with another
                body (``Idempotency-Key``).
            Conflict: The version to go back to is not kept (``version``).
            NotFound: No such user, or nothing stored under the ids to delete.
            EngineError: A base reward, or what `solve` returned, is not finite. Nothing is stored.
            QuotaExceeded: The user would be new, and the tenant may have no more.
            Unavailable: The database does not answer, or cannot take the write now.
        """
        if isinstance(change, Append | Replace):
            for item in change.items:
                require_finite("a base reward", item.base_rewards, item.grade, item.weight, item.tilt)
        return self._database.transaction(
            lambda connection: change_user(
                connection, self._policy, tenant_id, user_id, change, view, idempotency, solve, self._clock()
            )
        )

    def erase(self, tenant_id: str, user_id: str) -> int | None:
        """Delete the user and all that hangs on it: statements, versions, what is retained, kept answers.

        Returns:
            The incarnation that ended, or None if there was no such user.
        """
        name = {"tenant_id": tenant_id, "user_id": user_id}
        return self._database.transaction(lambda connection: connection.execute(_ERASE, name).scalar_one_or_none())

    def purge_expired(self) -> int:
        """Delete the expired answers of all users, and return how many they were. To be called now and then."""
        return self._database.transaction(lambda connection: purge_expired(connection, self._clock()))
