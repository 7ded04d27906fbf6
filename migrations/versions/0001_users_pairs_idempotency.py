"""Users, their pairs and answered requests."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

# Written out, not imported: this step must stay what it was when it was first run.
INCARNATION = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
NAME = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "users",
        sa.Column("incarnation", INCARNATION, autoincrement=True, nullable=False),
        sa.Column("tenant_id", NAME, nullable=False),
        sa.Column("user_id", NAME, nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("checkpoint_id", sa.Text(), nullable=False),
        sa.Column("heads_id", sa.Text(), nullable=False),
        sa.Column("weights", sa.LargeBinary(), nullable=False),
        sa.Column("factor", sa.LargeBinary(), nullable=True),
        sa.Column("pairs", sa.BigInteger(), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("updated_at", TIME, nullable=False),
        sa.CheckConstraint("version >= 0", name=op.f("ck_users_version_not_negative")),
        sa.PrimaryKeyConstraint("incarnation", name=op.f("pk_users")),
        sa.UniqueConstraint("tenant_id", "user_id", name=op.f("uq_users_tenant_id_user_id")),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "pairs",
        sa.Column("incarnation", INCARNATION, nullable=False),
        sa.Column("pair_id", NAME, nullable=False),
        sa.Column("heads_id", sa.Text(), nullable=False),
        sa.Column("tenant_id", NAME, nullable=False),
        sa.Column("content_key", sa.LargeBinary(), nullable=False),
        sa.Column("diff", sa.LargeBinary(), nullable=False),
        sa.Column("strength", sa.Double(), nullable=False),
        sa.Column("event_time", TIME, nullable=False),
        sa.ForeignKeyConstraint(
            ["incarnation"], ["users.incarnation"], name=op.f("fk_pairs_incarnation_users"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("incarnation", "pair_id", "heads_id", name=op.f("pk_pairs")),
    )
    op.create_index(
        op.f("ix_pairs_incarnation_heads_id_event_time_pair_id"),
        "pairs",
        ["incarnation", "heads_id", "event_time", "pair_id"],
    )
    op.create_table(
        "idempotency",
        sa.Column("incarnation", INCARNATION, nullable=False),
        sa.Column("key", NAME, nullable=False),
        sa.Column("tenant_id", NAME, nullable=False),
        sa.Column("body_hash", sa.LargeBinary(), nullable=False),
        sa.Column("answer", sa.LargeBinary(), nullable=False),
        sa.Column("expires_at", TIME, nullable=False),
        sa.ForeignKeyConstraint(
            ["incarnation"],
            ["users.incarnation"],
            name=op.f("fk_idempotency_incarnation_users"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("incarnation", "key", name=op.f("pk_idempotency")),
    )
    op.create_index(op.f("ix_idempotency_expires_at"), "idempotency", ["expires_at"])


def downgrade() -> None:
    op.drop_table("idempotency")
    op.drop_table("pairs")
    op.drop_table("users")
