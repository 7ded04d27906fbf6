"""The door: callers by their keys, quotas by tenant."""

from __future__ import annotations

import logging

from service.errors import ConfigurationError, Unavailable
from service.observability.metrics import Metrics
from service.operations.access import Access
from service.operations.authenticator import Authenticator
from service.operations.quotas import TenantLimits
from service.settings import Settings
from service.store.database import Database
from service.store.keys import KeyRepository

logger = logging.getLogger(__name__)


def require_a_key(settings: Settings, database: Database) -> None:
    """Refuse to serve where keys are needed and nobody has one. A database that is down is believed to have some.

    Raises:
        ConfigurationError: There is none; the message names the command that makes one.
    """
    if not settings.keys_required:
        return
    try:
        usable = KeyRepository(database).count_usable()
    except Unavailable as error:
        logger.warning("whether there is an API key is not known: %s", error)
        return
    if usable == 0:
        raise ConfigurationError(
            f"HOST {settings.host!r} (AUTH {settings.auth}) needs API keys, and this database has none that is good: "
            "make one with `metareward keys create --tenant default --role adapt`, or listen on 127.0.0.1 (loopback) "
            "without keys"
        )


def open_access(settings: Settings, database: Database, limits: TenantLimits, metrics: Metrics) -> Access:
    """The door of a server over `database`."""
    authenticator = Authenticator(
        repository=KeyRepository(database),
        metrics=metrics,
        trust_s=settings.auth_cache_s,
        stale_s=settings.auth_stale_s,
    )
    return Access(authenticator=authenticator, limits=limits, metrics=metrics, keys_required=settings.keys_required)
