"""The key between the REST layer and its workers."""

from __future__ import annotations

from service.errors import ConfigurationError
from service.settings import Settings, is_loopback

_SHORTEST_KEY = 32


def engine_key(settings: Settings, *, listens: bool = False) -> str:
    """ENGINE_API_KEY; empty where it may be.

    Args:
        settings: All of them.
        listens: Whether this process is the worker. A worker that others can reach needs a key.

    Raises:
        ConfigurationError: Too short, or missing where it is needed.
    """
    key = settings.engine_api_key.get_secret_value()
    if key and (len(key) < _SHORTEST_KEY or not key.isascii() or not key.isprintable() or " " in key):
        raise ConfigurationError(
            f"ENGINE_API_KEY must have at least {_SHORTEST_KEY} ASCII characters without spaces; "
            "make one with `openssl rand -hex 32`"
        )
    if listens and not key and not is_loopback(settings.host):
        raise ConfigurationError(
            f"HOST {settings.host!r}: without ENGINE_API_KEY a worker listens on loopback only; set the same key for "
            "worker and REST layer (`openssl rand -hex 32` makes one), or set HOST to 127.0.0.1"
        )
    return key
