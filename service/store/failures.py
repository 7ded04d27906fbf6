"""What a database failure means: which are worth a retry, which are the dependency's, which are ours.

No SQLAlchemy exception leaves the store, and no message of ours carries the URL or a value.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy.exc import (
    DataError,
    DBAPIError,
    IntegrityError,
    NotSupportedError,
    ProgrammingError,
    SQLAlchemyError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeout

from service.errors import MetarewardError, Unavailable

RETRY_AFTER_S = 1.0
# Somebody has to type a command first.
_RETRY_AFTER_UPGRADE_S = 10.0

_SERIALISATION_FAILURE = "40001"
_DEADLOCK = "40P01"
_UNDEFINED_TABLE = "42P01"
_UNDEFINED_COLUMN = "42703"
_TIMED_OUT = frozenset({"57014", "55P03", "25P03"})  # statement, lock, idle in transaction
_FORBIDDEN = "42501"
_READ_ONLY = "25006"
_REFUSED_CLASS = "28"  # invalid authorisation: role, password, pg_hba.conf
_REFUSED = frozenset({"3D000", _FORBIDDEN})  # no such database, no right to connect to it
# psycopg gives an error in connecting no SQLSTATE; what the server said is in its text.
_REFUSAL = re.compile(
    r"FATAL:\s+(?:(?:database|role) .* does not exist|.*authentication failed|no pg_hba\.conf entry"
    r"|pg_hba\.conf rejects|permission denied for database|role .* is not permitted to log in)|no password supplied"
)
# Faults in the statement or its values, not in the server.
_OURS = (DataError, IntegrityError, NotSupportedError, ProgrammingError)


def is_contention(error: SQLAlchemyError) -> bool:
    """Whether the transaction lost to another one, left no trace, and may simply run again."""
    if not isinstance(error, DBAPIError):
        return False
    original = error.orig
    if isinstance(original, sqlite3.OperationalError):
        # The low byte is the primary code: BUSY has several extended forms.
        return (original.sqlite_errorcode & 0xFF) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
    return getattr(original, "sqlstate", None) in (_SERIALISATION_FAILURE, _DEADLOCK)


def meaning(error: SQLAlchemyError) -> MetarewardError:
    """The project's error for a failure of the database or its driver."""
    if isinstance(error, PoolTimeout):
        return Unavailable("database: every connection is in use", RETRY_AFTER_S)
    if not isinstance(error, DBAPIError):
        return MetarewardError(f"database: {type(error).__name__}")
    if is_contention(error):
        return Unavailable("database: too many writers at once", RETRY_AFTER_S)
    original = error.orig
    if _schema_is_missing(original):
        # The command may come while this runs, and then the same request succeeds.
        return Unavailable(
            "database: tables or columns of this version are missing: run `metareward db upgrade`",
            _RETRY_AFTER_UPGRADE_S,
        )
    if getattr(original, "sqlstate", None) == _FORBIDDEN:
        return Unavailable("database: the role of DATABASE_URL lacks a right on a table", _RETRY_AFTER_UPGRADE_S)
    if getattr(original, "sqlstate", None) == _READ_ONLY:
        return Unavailable("database: it is read-only now", RETRY_AFTER_S)
    if getattr(original, "sqlstate", None) in _TIMED_OUT:
        return Unavailable("database: no answer within the time limit", RETRY_AFTER_S)
    if isinstance(error, _OURS):
        return MetarewardError(f"database: {type(original).__name__}")
    return Unavailable("database: not reachable", RETRY_AFTER_S)


def is_refusal(error: SQLAlchemyError) -> bool:
    """Whether the server answered and will not let us in: wrong database, role or password. Waiting mends none."""
    if not isinstance(error, DBAPIError):
        return False
    state = getattr(error.orig, "sqlstate", None)
    if state is not None:
        return bool(state.startswith(_REFUSED_CLASS) or state in _REFUSED)
    return _REFUSAL.search(str(error.orig)) is not None


def cause_of(error: SQLAlchemyError) -> str:
    """What the driver said, in one line: the server's own words where it spoke."""
    text = str(error.orig if isinstance(error, DBAPIError) else error).strip()
    refusal = _REFUSAL.search(text)
    lines = (text[refusal.start() :] if refusal is not None else text).splitlines()
    return lines[0].removeprefix("FATAL:").strip() if lines else type(error).__name__


def _schema_is_missing(original: BaseException | None) -> bool:
    if isinstance(original, sqlite3.OperationalError):
        return str(original).startswith(("no such table", "no such column"))
    return getattr(original, "sqlstate", None) in (_UNDEFINED_TABLE, _UNDEFINED_COLUMN)


@contextmanager
def translated() -> Iterator[None]:
    """Raise the project's errors for those of SQLAlchemy inside the block; the original stays as the cause."""
    try:
        yield
    except SQLAlchemyError as error:
        raise meaning(error) from error
