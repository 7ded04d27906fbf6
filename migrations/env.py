"""Alembic's entry: runs the steps on the connection that `service/store/migrate.py` opened.

It reads no ini file and sets up no logging: both belong to the program that migrates.
"""

from __future__ import annotations

from alembic import context

from service.store.tables import Base

connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    target_metadata=Base.metadata,
    # SQLite changes a table by building a new one.
    render_as_batch=connection.dialect.name == "sqlite",
    # Each step is done whole or not at all.
    transactional_ddl=True,
    transaction_per_migration=True,
)
with context.begin_transaction():
    context.run_migrations()
