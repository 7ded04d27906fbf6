"""Tenants and their quotas."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, Row, bindparam, func, select, update
from sqlalchemy.dialects import postgresql, sqlite

from service.errors import QuotaExceeded
from service.store.database import Database
from service.store.records import Quotas, Tenant
from service.store.tables import TenantRow, UserRow

# Somebody has to erase a user or raise the quota first.
_RETRY_AFTER_USERS_S = 3600.0

_TENANT = TenantRow.__table__
_MAKE = {
    dialect: insert(TenantRow).inline().on_conflict_do_nothing(index_elements=["tenant_id"])
    for dialect, insert in (("postgresql", postgresql.insert), ("sqlite", sqlite.insert))
}
_SET = update(TenantRow).where(TenantRow.tenant_id == bindparam("which"))
_LIST = select(_TENANT).order_by(TenantRow.tenant_id)
# Who is unlimited locks nothing: the row is found only where there is a limit.
_MAX_USERS = (
    select(TenantRow.max_users)
    .where(TenantRow.tenant_id == bindparam("tenant_id"), TenantRow.max_users.is_not(None))
    .with_for_update()
)
_USERS = select(func.count()).select_from(UserRow).where(UserRow.tenant_id == bindparam("tenant_id"))


def _utc_now() -> datetime:
    return datetime.now(UTC)


class TenantRepository:
    """Synchronous, safe to use from many threads; every method raises `Unavailable` without a database."""

    def __init__(self, database: Database, *, clock: Callable[[], datetime] = _utc_now) -> None:
        self._database = database
        self._clock = clock

    def set_quotas(self, tenant_id: str, **quotas: int | None) -> Tenant:
        """Set the named quotas (see `Quotas`; None lifts one) of a tenant, made if unknown; the others stay."""

        def work(connection: Connection) -> Tenant:
            make_tenant(connection, tenant_id, self._clock())
            if quotas:
                connection.execute(_SET, {"which": tenant_id, **quotas})
            return _to_tenant(connection.execute(select(_TENANT).where(TenantRow.tenant_id == tenant_id)).one())

        return self._database.transaction(work)

    def list(self) -> list[Tenant]:
        """Every tenant, in the order of their ids."""
        with self._database.reading() as connection:
            return [_to_tenant(row) for row in connection.execute(_LIST)]


def make_tenant(connection: Connection, tenant_id: str, now: datetime) -> None:
    """Make a tenant without limits, unless it is there."""
    unlimited = {"requests_per_minute": None, "tokens_per_minute": None, "max_users": None}
    connection.execute(_MAKE[connection.dialect.name], {"tenant_id": tenant_id, **unlimited, "created_at": now})


def check_max_users(connection: Connection, tenant_id: str) -> None:
    """Refuse the user that this transaction has just made, where the tenant may have no more.

    The tenant's row stays locked until the transaction ends, so that two new users are never counted side by side:
    the limit is exact.

    Raises:
        QuotaExceeded: There are too many now.
    """
    limit = connection.execute(_MAX_USERS, {"tenant_id": tenant_id}).scalar_one_or_none()
    # A statement of its own: on PostgreSQL it sees what was committed while this one waited for the lock.
    if limit is not None and connection.execute(_USERS, {"tenant_id": tenant_id}).scalar_one() > limit:
        raise QuotaExceeded(
            "users",
            f"This tenant may have {limit} users and has them; erase one, or ask for a larger quota.",
            _RETRY_AFTER_USERS_S,
        )


def _to_tenant(row: Row[Any]) -> Tenant:
    quotas = Quotas(row.requests_per_minute, row.tokens_per_minute, row.max_users)
    return Tenant(row.tenant_id, quotas, row.created_at)
