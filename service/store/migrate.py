"""The schema: bringing it up and down, and telling whether it is the one that this program needs."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection, Engine, text

from service.errors import ConfigurationError, Unavailable
from service.store import sqlite
from service.store.database import Database
from service.store.failures import translated
from service.store.tables import Base

# Any constant number will do, as long as every version of this program uses the same.
_ADVISORY_LOCK = 0x6D657461_72657761
_LOCK_WAIT_S = 60.0

_UPGRADE = "run `metareward db upgrade`"


def upgrade(database: Database, revision: str = "head") -> None:
    """Bring the schema up to `revision`. Safe to call from several replicas at once: one works, the rest wait.

    Raises:
        ConfigurationError: No such revision, or the database is of a newer version of this program.
        Unavailable: The database does not answer, or another replica did not finish in time.
    """
    with _migrating(database) as config:
        command.upgrade(config, revision)


def downgrade(database: Database, revision: str) -> None:
    """Bring the schema down to `revision` (``base`` removes every table). Data that it cannot hold is lost.

    Raises:
        ConfigurationError: No such revision.
        Unavailable: The database does not answer, or another replica did not finish in time.
    """
    with _migrating(database) as config:
        command.downgrade(config, revision)


def check(database: Database) -> list[str]:
    """What is wrong with the schema, a sentence each: an old or unknown revision, or tables unlike the models."""
    with database.reading() as connection:
        problem = _revision_problem(connection)
        if problem is not None:
            return [problem]
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        return [f"tables and models differ: {_describe(entry)}" for entry in compare_metadata(context, Base.metadata)]


def require_current(database: Database) -> None:
    """Refuse a database whose schema is not the one that this program needs.

    Raises:
        ConfigurationError: It is not; the message names the command that mends it.
        Unavailable: The database does not answer.
    """
    with database.reading() as connection:
        problem = _revision_problem(connection)
    if problem is not None:
        raise ConfigurationError(problem)


def _revision_problem(connection: Connection) -> str | None:
    scripts = ScriptDirectory.from_config(_config())
    wanted = scripts.get_current_head()
    found = MigrationContext.configure(connection).get_current_heads()
    if found == (wanted,):
        return None
    if not found:
        return f"the database is empty, this program needs schema revision {wanted}: {_UPGRADE}"
    if not {step.revision for step in scripts.walk_revisions()}.issuperset(found):
        return (
            f"the database has schema revision {', '.join(found)}, which this program does not know: "
            "it was upgraded by a newer version; install that one"
        )
    return f"the database has schema revision {', '.join(found)}, this program needs {wanted}: {_UPGRADE}"


def _describe(entry: Any) -> str:
    # A change to a column comes as a list of tuples, any other change as one tuple.
    parts = entry[0] if isinstance(entry, list) else entry
    return " ".join(str(part) for part in parts if part is not None)


def _config() -> Config:
    config = Config()
    # A percent sign in a path would be read as the start of an interpolation.
    config.set_main_option("script_location", str(_scripts_folder()).replace("%", "%%"))
    return config


def _scripts_folder() -> Path:
    """The folder of the migrations: an installed package, or beside the source in a checkout."""
    spec = importlib.util.find_spec("metareward_migrations")
    places = [Path(place) for place in (spec.submodule_search_locations or ())] if spec is not None else []
    for folder in (*places, Path(__file__).resolve().parents[2] / "migrations"):
        if (folder / "env.py").is_file():
            return folder
    raise ConfigurationError("the database migrations are not installed: install metareward again")


@contextmanager
def _migrating(database: Database) -> Iterator[Config]:
    engine = database.maintenance_engine()
    lock = _postgresql_lock if database.is_postgresql else _sqlite_lock
    try:
        with translated(), lock(engine) as connection:
            config = _config()
            config.attributes["connection"] = connection
            yield config
    except CommandError as error:
        raise ConfigurationError(f"the schema cannot be changed: {error}") from error
    finally:
        engine.dispose()


@contextmanager
def _sqlite_lock(engine: Engine) -> Iterator[Connection]:
    """All steps in one transaction that begins by taking the write lock."""
    with engine.connect().execution_options(**sqlite.WRITING) as connection, connection.begin():
        yield connection


@contextmanager
def _postgresql_lock(engine: Engine) -> Iterator[Connection]:
    """A connection to migrate on, while another one holds an advisory lock.

    The lock is polled for: a statement that waits for it holds a snapshot, and a step that builds an index
    concurrently would wait for that snapshot, for ever.
    """
    give_up_at = time.monotonic() + _LOCK_WAIT_S
    autocommit = engine.execution_options(isolation_level="AUTOCOMMIT")
    with autocommit.connect() as holder:
        ask = text("SELECT pg_try_advisory_lock(:key)").bindparams(key=_ADVISORY_LOCK)
        while not holder.execute(ask).scalar_one():
            if time.monotonic() > give_up_at:
                raise Unavailable("database: another process is changing the schema", 10.0)
            time.sleep(0.1)
        # Closing the unpooled connection that holds the lock releases it.
        with engine.connect() as connection:
            yield connection
