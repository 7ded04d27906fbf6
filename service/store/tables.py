"""The tables. `migrations/` builds them; `metareward db check` compares the two.

The incarnation is the key that everything of a user hangs on: one sequence for the whole database gives every life
of every user a number of its own, so rows of an erased user can never become rows of the next one of that name.

Vectors are little-endian float64 bytes. Names that are compared or paged (`user_id`, `pair_id`) use the byte
order of their UTF-8 text (collation C), the same on both databases and in every locale.
"""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    DateTime,
    Dialect,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Text,
    TypeDecorator,
    UniqueConstraint,
    text,
    true,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

NAMING_CONVENTION = {
    "pk": "pk_%(table_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
}

# SQLite gives out numbers only to a column declared INTEGER.
IncarnationType = BigInteger().with_variant(Integer(), "sqlite")
NameType = Text().with_variant(Text(collation="C"), "postgresql")


class UtcDateTime(TypeDecorator[datetime]):
    """Aware datetimes in UTC on both databases; SQLite itself keeps no time zone."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """To UTC; a naive time is a bug of the caller."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a time without a time zone cannot be stored")
        return value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """From UTC."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Base(DeclarativeBase):
    """The metadata of every table."""

    metadata = MetaData(naming_convention=NAMING_CONVENTION)


class UserRow(Base):
    """One life of one user. Version 0 exists only inside the transaction that creates the user."""

    __tablename__ = "users"

    incarnation: Mapped[int] = mapped_column(IncarnationType, primary_key=True, autoincrement=True)
    tenant_id: Mapped[str] = mapped_column(NameType)
    user_id: Mapped[str] = mapped_column(NameType)
    version: Mapped[int] = mapped_column(BigInteger)
    checkpoint_id: Mapped[str] = mapped_column(Text)
    heads_id: Mapped[str] = mapped_column(Text)
    weights: Mapped[bytes] = mapped_column(LargeBinary)
    factor: Mapped[bytes | None] = mapped_column(LargeBinary)
    pairs: Mapped[int] = mapped_column(BigInteger)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    updated_at: Mapped[datetime] = mapped_column(UtcDateTime)
    # What made this version; NULL: an adapt.
    cause: Mapped[str | None] = mapped_column(Text)
    # Packed `Serials` of the evidence that counts; NULL: all of it, and there is none that does not.
    live: Mapped[bytes | None] = mapped_column(LargeBinary)
    next_serial: Mapped[int] = mapped_column(BigInteger, server_default=text("1"))
    # How the weights came to this checkpoint; NULL: a change solved for them.
    carried: Mapped[str | None] = mapped_column(Text)

    __table_args__ = (
        UniqueConstraint("tenant_id", "user_id"),
        CheckConstraint("version >= 0", name="version_not_negative"),
        {"sqlite_autoincrement": True},
    )


class PairRow(Base):
    """One statement of one user under one set of heads: base rewards, no text.

    A statement is a pair, a rating or a ranking; the table is named for the first. `diff` holds base rewards: of a
    ranking those of all texts, one behind the other. NULL in a column means what every row of the first versions meant:
    a pair of weight 1, without a tilt, said outright.

    `serial` numbers the user's statements in the order in which they came, the same under all heads; 0 is all those
    from before there were numbers. Sets of them tell what counted in which version; `live` tells what counts now.
    """

    __tablename__ = "pairs"

    incarnation: Mapped[int] = mapped_column(
        IncarnationType, ForeignKey("users.incarnation", ondelete="CASCADE"), primary_key=True
    )
    pair_id: Mapped[str] = mapped_column(NameType, primary_key=True)
    heads_id: Mapped[str] = mapped_column(Text, primary_key=True)
    tenant_id: Mapped[str] = mapped_column(NameType)
    content_key: Mapped[bytes] = mapped_column(LargeBinary)
    diff: Mapped[bytes] = mapped_column(LargeBinary)
    grade: Mapped[float | None] = mapped_column(Double)
    # Always 1, for the version before the last, which weighs pairs by it.
    strength: Mapped[float] = mapped_column(Double, default=1.0)
    event_time: Mapped[datetime] = mapped_column(UtcDateTime)
    kind: Mapped[str | None] = mapped_column(Text)
    weight: Mapped[float | None] = mapped_column(Double)
    tilt: Mapped[float | None] = mapped_column(Double)
    group_key: Mapped[bytes | None] = mapped_column(LargeBinary)
    ranks: Mapped[bytes | None] = mapped_column(LargeBinary)
    source: Mapped[str | None] = mapped_column(Text)
    serial: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    live: Mapped[bool] = mapped_column(Boolean, server_default=true())

    # The order in which the support set is chosen.
    __table_args__ = (Index(None, "incarnation", "heads_id", "event_time", "pair_id"),)


class PairSourceRow(Base):
    """What else is kept of a statement, where the deployment keeps it: its texts, say. Opaque here."""

    __tablename__ = "pair_sources"

    incarnation: Mapped[int] = mapped_column(
        IncarnationType, ForeignKey("users.incarnation", ondelete="CASCADE"), primary_key=True
    )
    pair_id: Mapped[str] = mapped_column(NameType, primary_key=True)
    tenant_id: Mapped[str] = mapped_column(NameType)
    payload: Mapped[bytes] = mapped_column(LargeBinary)


class VersionRow(Base):
    """An earlier version of a user, written when the next one takes its place. The present one is the user's row."""

    __tablename__ = "versions"

    incarnation: Mapped[int] = mapped_column(
        IncarnationType, ForeignKey("users.incarnation", ondelete="CASCADE"), primary_key=True
    )
    version: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    tenant_id: Mapped[str] = mapped_column(NameType)
    cause: Mapped[str | None] = mapped_column(Text)
    checkpoint_id: Mapped[str] = mapped_column(Text)
    heads_id: Mapped[str] = mapped_column(Text)
    # NULL: statements that they were made from have been deleted since.
    weights: Mapped[bytes | None] = mapped_column(LargeBinary)
    pairs: Mapped[int] = mapped_column(BigInteger)
    live: Mapped[bytes] = mapped_column(LargeBinary)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)


class IdempotencyRow(Base):
    """The answer to one request that carried a key, until it expires."""

    __tablename__ = "idempotency"

    incarnation: Mapped[int] = mapped_column(
        IncarnationType, ForeignKey("users.incarnation", ondelete="CASCADE"), primary_key=True
    )
    key: Mapped[str] = mapped_column(NameType, primary_key=True)
    tenant_id: Mapped[str] = mapped_column(NameType)
    body_hash: Mapped[bytes] = mapped_column(LargeBinary)
    answer: Mapped[bytes] = mapped_column(LargeBinary)
    expires_at: Mapped[datetime] = mapped_column(UtcDateTime, index=True)


class TenantRow(Base):
    """One tenant and its quotas; NULL is no limit. A tenant without a row has none either."""

    __tablename__ = "tenants"

    tenant_id: Mapped[str] = mapped_column(NameType, primary_key=True)
    requests_per_minute: Mapped[int | None] = mapped_column(BigInteger)
    tokens_per_minute: Mapped[int | None] = mapped_column(BigInteger)
    max_users: Mapped[int | None] = mapped_column(BigInteger)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)


class ApiKeyRow(Base):
    """One API key: its public id, and the SHA-256 of the key. The key itself is nowhere."""

    __tablename__ = "api_keys"

    key_id: Mapped[str] = mapped_column(NameType, primary_key=True)
    tenant_id: Mapped[str] = mapped_column(NameType, ForeignKey("tenants.tenant_id"), index=True)
    digest: Mapped[bytes] = mapped_column(LargeBinary, unique=True)
    role: Mapped[str] = mapped_column(Text)
    name: Mapped[str] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    expires_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    revoked_at: Mapped[datetime | None] = mapped_column(UtcDateTime)

    __table_args__ = (CheckConstraint("role IN ('score', 'adapt', 'admin')", name="role_known"),)


class ServingRecord(Base):
    """Which checkpoints serve: one row for the whole deployment."""

    __tablename__ = "serving"

    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    active: Mapped[str] = mapped_column(Text)
    previous: Mapped[str | None] = mapped_column(Text)
    shadow: Mapped[str | None] = mapped_column(Text)
    generation: Mapped[int] = mapped_column(BigInteger)
    changed_at: Mapped[datetime] = mapped_column(UtcDateTime)

    __table_args__ = (CheckConstraint("id = 1", name="one_row"),)
