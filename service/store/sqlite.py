"""SQLite: an engine whose commits are durable and whose writers lock first."""

from __future__ import annotations

import math
import sqlite3
import time
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event

from service.store.pool import pool_arguments

# The execution option that makes a transaction take the write lock at its beginning. A transaction that reads first
# and wants to write later cannot wait for the lock: what it has read may be outdated.
WRITING = {"metareward_writing": True}
# How long a starting replica waits for another one that is changing the schema.
MAINTENANCE_WAIT_S = 60.0


def build_engine(url: URL, pool_size: int | None, busy_timeout_s: float) -> Engine:
    """An engine for `url`.

    Args:
        url: With the path of a file.
        pool_size: Most connections; None for one connection per use and no foreign keys (schema changes).
        busy_timeout_s: Limit on waiting for another process's lock, and for a pooled connection.
    """
    engine = create_engine(
        url,
        # No isolation level: the driver's own BEGIN would be a deferred one, and none before schema changes.
        connect_args={"isolation_level": None, "check_same_thread": False, "timeout": busy_timeout_s},
        hide_parameters=True,
        **pool_arguments(pool_size, busy_timeout_s),
    )

    @event.listens_for(engine, "connect")
    def set_up(connection: sqlite3.Connection, record: Any) -> None:
        connection.execute(f"PRAGMA busy_timeout = {math.ceil(busy_timeout_s * 1000)}")
        _write_ahead(connection, time.monotonic() + busy_timeout_s)
        connection.execute("PRAGMA synchronous = FULL")  # an answered adapt survives the power cut
        connection.execute(
            "PRAGMA secure_delete = ON"
        )  # what is erased is overwritten, at the next checkpoint of the log
        connection.execute(f"PRAGMA foreign_keys = {'OFF' if pool_size is None else 'ON'}")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        writing = connection.get_execution_options().keys() >= WRITING.keys()
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writing else "BEGIN")

    return engine


def _write_ahead(connection: sqlite3.Connection, give_up_at: float) -> None:
    # The change of journal mode does not honour busy_timeout: two processes may open a new file at once.
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > give_up_at:
                raise
            time.sleep(0.01)
        else:
            return
