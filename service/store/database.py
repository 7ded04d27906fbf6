"""Opening a database: PostgreSQL through psycopg 3, SQLite through the standard library.

Every wait has an end: connecting, waiting for a pooled connection, a statement (by the server's clock), and an
answer from a server that stopped talking (by ours).
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from sqlalchemy import URL, Connection, Engine, QueuePool, make_url, text
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from service.errors import ConfigurationError, Unavailable
from service.store import postgresql, sqlite
from service.store.failures import RETRY_AFTER_S, cause_of, is_contention, is_refusal, meaning, translated
from service.store.tables import Base

T = TypeVar("T")

# More losses in a row than this are a fault to report, not bad luck to wait out.
_ATTEMPTS = 5

_FIX = "set it to postgresql://user:password@host:5432/name or sqlite:///path/to/file.db"


class Database:
    """An open database: a pool of connections, and transactions that retry what is worth a retry.

    Build it with `open_database`. Safe to use from many threads.
    """

    def __init__(self, url: URL, *, pool_size: int, connect_timeout_s: float, statement_timeout_s: float) -> None:
        self._url = url
        self._connect_timeout_s = connect_timeout_s
        self._statement_timeout_s = statement_timeout_s
        self.is_postgresql = url.get_backend_name() == "postgresql"
        if self.is_postgresql:
            self.engine = postgresql.build_engine(url, pool_size, connect_timeout_s, statement_timeout_s)
            # One statement needs no transaction around it, and no round trips to open and close one.
            self._reading: Engine = self.engine.execution_options(isolation_level="AUTOCOMMIT")
        else:
            self.engine = sqlite.build_engine(url, pool_size, statement_timeout_s)
            self._reading = self.engine
        # SQLite has one writer. Threads of one process queue here, in order; its own waiting is polling.
        self._writer = None if self.is_postgresql else threading.Lock()
        self.closed = threading.Event()

    def __repr__(self) -> str:
        return f"Database({self._url.render_as_string(hide_password=True)})"

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A connection for one reading statement. Database errors inside become the project's errors."""
        with translated(), self._reading.connect() as connection:
            yield connection

    @contextmanager
    def snapshot(self) -> Iterator[Connection]:
        """A connection whose reading statements all see the database as of one moment."""
        with translated(), self.engine.connect() as connection:
            if self.is_postgresql:
                connection = connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
            with connection.begin():
                yield connection

    def transaction(self, work: Callable[[Connection], T]) -> T:
        """Run `work` in one writing transaction and commit it.

        A transaction that lost to another one (deadlock, serialisation, SQLite's lock) is rolled back and run
        again, so `work` must have no other effects. Any exception of `work` rolls back and passes through.

        Raises:
            Unavailable: The database does not answer, or the transaction kept losing.
        """
        give_up_at = time.monotonic() + self._statement_timeout_s
        attempt = 0
        while True:
            attempt += 1
            try:
                with self._one_writer(), self.engine.connect() as connection:
                    connection = connection.execution_options(**sqlite.WRITING)
                    with connection.begin():
                        return work(connection)
            except SQLAlchemyError as error:
                if not is_contention(error) or attempt == _ATTEMPTS or time.monotonic() > give_up_at:
                    raise meaning(error) from error
            # Two that collided must not come back in step; who lost more often waits longer.
            time.sleep(0.002 * 2**attempt * random.uniform(0.5, 1.5))

    @contextmanager
    def _one_writer(self) -> Iterator[None]:
        if self._writer is None:
            yield
            return
        if not self._writer.acquire(timeout=self._statement_timeout_s):
            raise Unavailable("database: too many writers at once", RETRY_AFTER_S)
        try:
            yield
        finally:
            self._writer.release()

    def maintenance_engine(self) -> Engine:
        """An engine of its own for schema changes: no time limit on statements, nothing pooled.

        The caller disposes of it. On SQLite foreign keys are not enforced there: rebuilding a table drops the
        old one, and a cascade would take the children along.
        """
        if self.is_postgresql:
            return postgresql.build_engine(self._url, None, self._connect_timeout_s, None)
        return sqlite.build_engine(self._url, None, sqlite.MAINTENANCE_WAIT_S)

    @property
    def connections_in_use(self) -> int:
        """Pooled connections that somebody works with at this moment."""
        pool = self.engine.pool
        return pool.checkedout() if isinstance(pool, QueuePool) else 0

    def ping(self) -> None:
        """Ask for a sign of life.

        Raises:
            Unavailable: There is none.
        """
        with self.reading() as connection:
            connection.execute(text("SELECT 1"))

    def missing_rights(self) -> list[str]:
        """What this role may not do and must: ``UPDATE on users`` ...; PostgreSQL only, whose roles differ."""
        if not self.is_postgresql:
            return []
        with self.reading() as connection:
            return postgresql.missing_rights(connection, sorted(Base.metadata.tables))

    def probe(self) -> None:
        """Connect once, at the start of a process, and say what is wrong.

        Raises:
            ConfigurationError: The server answers and refuses us: no such database or role, a wrong password.
            Unavailable: No server answers; the message names the driver's reason.
        """
        try:
            with self._reading.connect() as connection:
                connection.execute(text("SELECT 1"))
        except SQLAlchemyError as error:
            cause = cause_of(error)
            for secret in (self._url.password, self._url.query.get("password")):
                cause = cause.replace(str(secret), "***") if secret else cause
            if is_refusal(error):
                # Without the cause: a traceback must not show more than the message does.
                raise ConfigurationError(f"DATABASE_URL: the server refuses the connection: {cause}") from None
            problem = meaning(error)
            if isinstance(problem, Unavailable):
                raise Unavailable(f"{problem}: {cause}", problem.retry_after_s) from None
            raise problem from error

    def close(self) -> None:
        """Close every pooled connection, and tell who waits for the database that there is no need."""
        self.closed.set()
        self.engine.dispose()


def open_database(
    url: str, pool_size: int = 8, connect_timeout_s: float = 2.0, statement_timeout_s: float = 5.0
) -> Database:
    """Open the database behind `url`; connections are made on first use.

    Args:
        url: ``postgres://``, ``postgresql://``, ``postgresql+psycopg://`` or ``sqlite:///path``. The folder of an
            SQLite file is created.
        pool_size: Most connections at a time.
        connect_timeout_s: Limit on connecting (PostgreSQL; psycopg waits at least 2 s).
        statement_timeout_s: Limit on a statement, on waiting for a lock, and on waiting for a pooled connection.

    Raises:
        ConfigurationError: The URL names no database that this project speaks to.
    """
    parsed = _parse(url)
    if parsed.get_backend_name() == "sqlite":
        try:
            Path(str(parsed.database)).absolute().parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigurationError(
                f"the folder of the SQLite file cannot be made ({error.strerror}): "
                "name one in the database URL that this process may write to"
            ) from error
    return Database(
        parsed,
        pool_size=pool_size,
        connect_timeout_s=connect_timeout_s,
        statement_timeout_s=statement_timeout_s,
    )


def _parse(url: str) -> URL:
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        # Without the cause: its text may hold the password.
        raise ConfigurationError(f"the database URL cannot be read: {_FIX}") from None
    if parsed.drivername in ("postgres", "postgresql", "postgresql+psycopg"):
        return parsed.set(drivername="postgresql+psycopg")
    if parsed.drivername not in ("sqlite", "sqlite+pysqlite"):
        raise ConfigurationError(f"the database URL names the unsupported kind {parsed.drivername!r}: {_FIX}")
    if not parsed.database or parsed.database == ":memory:" or parsed.database.startswith("file:"):
        raise ConfigurationError(f"the database URL names no file, and users must outlive the process: {_FIX}")
    return parsed.set(drivername="sqlite+pysqlite")
