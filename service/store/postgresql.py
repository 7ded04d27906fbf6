"""PostgreSQL: an engine whose connections never wait without end."""

from __future__ import annotations

import math
from typing import Any

import psycopg
from psycopg.pq import TransactionStatus
from sqlalchemy import URL, Connection, Engine, create_engine, event, text

from service.store.pool import pool_arguments

# The server ends a slow statement itself, and says so; only a server that stopped talking comes this far.
_GRACE_S = 1.0


class _PatientConnection(psycopg.Connection[Any]):
    """A connection that gives up on a server that stopped talking (paused, partitioned), and closes itself."""

    patience_s: float | None = None

    def wait(self, gen: Any, interval: float = 0.1, timeout: float | None = None) -> Any:
        """Wait for the server, `patience_s` at most unless the caller says otherwise."""
        try:
            return super().wait(gen, interval, self.patience_s if timeout is None else timeout)
        except psycopg.OperationalError as error:
            # Not an error that the server sent, and the answer is still owed: what it will be answering is unknown.
            if error.sqlstate is None and self.pgconn.transaction_status == TransactionStatus.ACTIVE:
                self.pgconn.finish()
            raise


def build_engine(
    url: URL, pool_size: int | None, connect_timeout_s: float, statement_timeout_s: float | None
) -> Engine:
    """An engine for `url`.

    Args:
        url: With the driver name ``postgresql+psycopg``.
        pool_size: Most connections; None for one connection per use.
        connect_timeout_s: Limit on connecting; psycopg waits at least 2 s.
        statement_timeout_s: Limit on one statement, and on a transaction that was left idle; None for none.
    """
    options = ["-c TimeZone=UTC"]
    if statement_timeout_s is not None:
        limit_ms = math.ceil(statement_timeout_s * 1000)
        # A replica that vanished in mid-transaction must not keep its row locks.
        options += [
            f"-c statement_timeout={limit_ms}",
            f"-c idle_in_transaction_session_timeout={limit_ms}",
        ]
    given = url.query.get("options", "")
    arguments = {
        "connect_timeout": max(1, math.ceil(connect_timeout_s)),
        "application_name": url.query.get("application_name", "metareward"),
        "options": " ".join([*options, given if isinstance(given, str) else " ".join(given)]).strip(),
    }
    engine = create_engine(
        url.difference_update_query(["options", "application_name", "connect_timeout"]),
        connect_args=arguments,
        hide_parameters=True,
        # A restarted server is noticed before a request pays for it.
        pool_pre_ping=pool_size is not None,
        **pool_arguments(pool_size, statement_timeout_s),
    )

    @event.listens_for(engine, "do_connect")
    def connect(dialect: Any, record: Any, args: list[Any], keywords: dict[str, Any]) -> _PatientConnection:
        connection = _PatientConnection.connect(*args, **keywords)
        if statement_timeout_s is not None:
            connection.patience_s = statement_timeout_s + _GRACE_S
        return connection

    return engine


_RIGHTS = text(
    "SELECT r.name || ' on ' || t.name FROM unnest(CAST(:tables AS text[])) AS t(name),"
    " unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) AS r(name)"
    " WHERE to_regclass(t.name) IS NOT NULL AND NOT has_table_privilege(t.name, r.name) ORDER BY 1"
)


def missing_rights(connection: Connection, tables: list[str]) -> list[str]:
    """Rights on tables that the current role lacks, as ``UPDATE on users``."""
    return list(connection.execute(_RIGHTS, {"tables": tables}).scalars())
