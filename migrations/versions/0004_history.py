"""Versions to go back to, evidence of every kind, what is retained of it, and which checkpoints serve.

Every column is nullable or has a constant default, so that PostgreSQL rewrites no table and holds its locks for
milliseconds, and the version before may go on inserting rows without them.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

INCARNATION = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
NAME = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
TIME = sa.DateTime(timezone=True)
USERS = ("cause", "live", "next_serial", "carried")
PAIRS = ("kind", "weight", "tilt", "group_key", "ranks", "source", "serial", "live")
# The last part is what the version before cannot tell from a live plain pair, or would read wrongly.
DELETE_UNREADABLE = sa.text(
    "DELETE FROM pairs WHERE incarnation BETWEEN :first AND :last AND (NOT live OR kind IS NOT NULL"
    " OR source IS NOT NULL OR weight IS NOT NULL OR tilt IS NOT NULL OR group_key IS NOT NULL OR ranks IS NOT NULL)"
)
# What kept answers tell since, and the version before cannot read: it would answer 500 to a replacement sent again.
SINCE = ("cause", "pairs_deleted", "carried", "left_out", "exact", "stored_by_source")
SHORTEN_ANSWERS = {
    "postgresql": (
        "UPDATE idempotency SET answer ="
        " convert_to((convert_from(answer, 'UTF8')::jsonb - ARRAY[{names}])::text, 'UTF8')"
        " WHERE convert_from(answer, 'UTF8')::jsonb ?| ARRAY[{names}]"
    ),
    "sqlite": "UPDATE idempotency SET answer = CAST(json_remove(CAST(answer AS TEXT), {paths}) AS BLOB)",
}
# Rows of so many users are looked through at a time.
USERS_AT_ONCE = 10_000


def upgrade() -> None:
    _wait_briefly()
    op.add_column("users", sa.Column("cause", sa.Text(), nullable=True))
    op.add_column("users", sa.Column("live", sa.LargeBinary(), nullable=True))
    op.add_column("users", sa.Column("next_serial", sa.BigInteger(), server_default=sa.text("1"), nullable=False))
    op.add_column("users", sa.Column("carried", sa.Text(), nullable=True))
    op.add_column("pairs", sa.Column("kind", sa.Text(), nullable=True))
    op.add_column("pairs", sa.Column("weight", sa.Double(), nullable=True))
    op.add_column("pairs", sa.Column("tilt", sa.Double(), nullable=True))
    op.add_column("pairs", sa.Column("group_key", sa.LargeBinary(), nullable=True))
    op.add_column("pairs", sa.Column("ranks", sa.LargeBinary(), nullable=True))
    op.add_column("pairs", sa.Column("source", sa.Text(), nullable=True))
    op.add_column("pairs", sa.Column("serial", sa.BigInteger(), server_default=sa.text("0"), nullable=False))
    op.add_column("pairs", sa.Column("live", sa.Boolean(), server_default=sa.true(), nullable=False))
    op.create_table(
        "pair_sources",
        sa.Column("incarnation", INCARNATION, nullable=False),
        sa.Column("pair_id", NAME, nullable=False),
        sa.Column("tenant_id", NAME, nullable=False),
        sa.Column("payload", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["incarnation"], ["users.incarnation"], name=op.f("fk_pair_sources_incarnation_users"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("incarnation", "pair_id", name=op.f("pk_pair_sources")),
    )
    op.create_table(
        "versions",
        sa.Column("incarnation", INCARNATION, nullable=False),
        sa.Column("version", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("tenant_id", NAME, nullable=False),
        sa.Column("cause", sa.Text(), nullable=True),
        sa.Column("checkpoint_id", sa.Text(), nullable=False),
        sa.Column("heads_id", sa.Text(), nullable=False),
        sa.Column("weights", sa.LargeBinary(), nullable=True),
        sa.Column("pairs", sa.BigInteger(), nullable=False),
        sa.Column("live", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.ForeignKeyConstraint(
            ["incarnation"], ["users.incarnation"], name=op.f("fk_versions_incarnation_users"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("incarnation", "version", name=op.f("pk_versions")),
    )
    op.create_table(
        "serving",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("active", sa.Text(), nullable=False),
        sa.Column("previous", sa.Text(), nullable=True),
        sa.Column("shadow", sa.Text(), nullable=True),
        sa.Column("generation", sa.BigInteger(), nullable=False),
        sa.Column("changed_at", TIME, nullable=False),
        sa.CheckConstraint("id = 1", name=op.f("ck_serving_one_row")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_serving")),
    )


def downgrade() -> None:
    if op.get_bind().dialect.name == "sqlite":
        _delete_unreadable()
    else:
        with op.get_context().autocommit_block():
            _delete_unreadable()
    _wait_briefly()
    for table in ("serving", "versions", "pair_sources"):
        op.drop_table(table)
    for column in reversed(PAIRS):
        op.drop_column("pairs", column)
    for column in reversed(USERS):
        op.drop_column("users", column)


def _wait_briefly() -> None:
    """Whoever waits for the table's lock holds up all who come later: a backup that runs for hours must not."""
    if op.get_bind().dialect.name == "postgresql":
        op.execute("SET LOCAL lock_timeout = '2s'")


def _delete_unreadable() -> None:
    connection = op.get_bind()
    names, paths = (", ".join(f"'{prefix}{name}'" for name in SINCE) for prefix in ("", "$."))
    # Not through text(), which would take the colons of a cast for a parameter.
    connection.exec_driver_sql(SHORTEN_ANSWERS[connection.dialect.name].format(names=names, paths=paths))
    first, last = connection.execute(sa.text("SELECT min(incarnation), max(incarnation) FROM pairs")).one()
    if first is None:
        return
    for begin in range(first, last + 1, USERS_AT_ONCE):
        connection.execute(DELETE_UNREADABLE, {"first": begin, "last": begin + USERS_AT_ONCE - 1})
