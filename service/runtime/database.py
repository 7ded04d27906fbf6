"""Opening the database so that one that is down does not keep a replica from starting."""

from __future__ import annotations

import logging
import threading

from service.errors import Unavailable
from service.settings import Settings
from service.store import migrate
from service.store.database import Database, open_database

logger = logging.getLogger(__name__)

MIGRATION_RETRY_S = 2.0
# Beyond those of the threads that serve requests: for the two that look keys up and the one that answers /ready.
# Requests that wait for one user's row take every connection they can have; strangers must still be told from callers.
SPARE_CONNECTIONS = 3


def open_users_database(settings: Settings) -> Database:
    """The database of the settings, migrated or checked where it answers.

    Raises:
        ConfigurationError: The server refuses us, or its schema is not this version's.
    """
    database = open_database(
        settings.resolved_database_url,
        pool_size=settings.database_pool_size + SPARE_CONNECTIONS,
        connect_timeout_s=settings.database_timeout_s,
        statement_timeout_s=settings.database_timeout_s,
    )
    migrates = settings.embedded_database if settings.auto_migrate is None else settings.auto_migrate
    try:
        database.probe()
        if migrates:
            migrate.upgrade(database)
        else:
            migrate.require_current(database)
    except Unavailable as error:
        # A shared database that is down must not keep replicas from starting: they serve as soon as it is back.
        logger.warning("starting without the database: %s", error)
        if migrates:
            threading.Thread(target=_migrate_later, args=(database,), name="migrate", daemon=True).start()
    except BaseException:
        database.close()
        raise
    return database


def _migrate_later(database: Database) -> None:
    """Bring the schema up once the database is back."""
    while not database.closed.wait(MIGRATION_RETRY_S):
        try:
            migrate.upgrade(database)
        except Unavailable:
            continue
        except Exception:  # requests say what is missing; this thread is the only place to say why
            logger.exception("the database is back, but its schema cannot be brought up")
        else:
            logger.info("the database is back, and its schema is current")
        return
