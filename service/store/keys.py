"""API keys: looked up by the digest of what the caller sent; a key itself is never stored."""

from __future__ import annotations

import builtins
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, Row, bindparam, func, insert, or_, select, update

from service.errors import NotFound
from service.store.database import Database
from service.store.records import ApiKey, Quotas
from service.store.tables import ApiKeyRow, TenantRow
from service.store.tenants import make_tenant

_KEY = select(
    ApiKeyRow.__table__, TenantRow.requests_per_minute, TenantRow.tokens_per_minute, TenantRow.max_users
).join(TenantRow, TenantRow.tenant_id == ApiKeyRow.tenant_id)
_BY_DIGEST = _KEY.where(ApiKeyRow.digest == bindparam("digest"))
_INSERT = insert(ApiKeyRow)
# Revoked once is revoked then: a second call must not move the time.
_REVOKE = (
    update(ApiKeyRow)
    .where(ApiKeyRow.key_id == bindparam("which"))
    .values(revoked_at=func.coalesce(ApiKeyRow.revoked_at, bindparam("now")))
)
_USABLE = (
    select(func.count())
    .select_from(ApiKeyRow)
    .where(ApiKeyRow.revoked_at.is_(None), or_(ApiKeyRow.expires_at.is_(None), ApiKeyRow.expires_at > bindparam("now")))
)


def _utc_now() -> datetime:
    return datetime.now(UTC)


class KeyRepository:
    """Synchronous, safe to use from many threads; every method raises `Unavailable` without a database."""

    def __init__(self, database: Database, *, clock: Callable[[], datetime] = _utc_now) -> None:
        self._database = database
        self._clock = clock

    def create(
        self, *, tenant_id: str, key_id: str, digest: bytes, role: str, name: str, expires_at: datetime | None
    ) -> None:
        """Store a new key; its tenant is made if unknown."""

        def work(connection: Connection) -> None:
            now = self._clock()
            make_tenant(connection, tenant_id, now)
            row = {"tenant_id": tenant_id, "key_id": key_id, "digest": digest, "role": role, "name": name}
            connection.execute(_INSERT, {**row, "created_at": now, "expires_at": expires_at, "revoked_at": None})

        self._database.transaction(work)

    def find(self, digest: bytes) -> ApiKey | None:
        """The key with this SHA-256, with the quotas of its tenant; also one that was revoked or has expired."""
        with self._database.reading() as connection:
            row = connection.execute(_BY_DIGEST, {"digest": digest}).one_or_none()
        return None if row is None else _to_key(row)

    def list(self, tenant_id: str | None = None) -> builtins.list[ApiKey]:
        """Every key, or a tenant's, by tenant and age."""
        query = _KEY if tenant_id is None else _KEY.where(ApiKeyRow.tenant_id == tenant_id)
        order = (ApiKeyRow.tenant_id, ApiKeyRow.created_at, ApiKeyRow.key_id)
        with self._database.reading() as connection:
            return [_to_key(row) for row in connection.execute(query.order_by(*order))]

    def revoke(self, key_id: str) -> None:
        """Make a key useless, for good.

        Raises:
            NotFound: There is no such key.
        """
        parameters = {"which": key_id, "now": self._clock()}
        found = self._database.transaction(lambda connection: connection.execute(_REVOKE, parameters).rowcount)
        if not found:
            raise NotFound("no key has this id; `metareward keys list` shows them")

    def count_usable(self) -> int:
        """How many keys are neither revoked nor expired."""
        with self._database.reading() as connection:
            return connection.execute(_USABLE, {"now": self._clock()}).scalar_one()


def _to_key(row: Row[Any]) -> ApiKey:
    return ApiKey(
        key_id=row.key_id,
        tenant_id=row.tenant_id,
        role=row.role,
        name=row.name,
        created_at=row.created_at,
        expires_at=row.expires_at,
        revoked_at=row.revoked_at,
        quotas=Quotas(row.requests_per_minute, row.tokens_per_minute, row.max_users),
    )
