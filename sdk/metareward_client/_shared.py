"""Clients for functions that a framework calls by themselves: one of each kind for each server."""

from __future__ import annotations

import os
import threading

from metareward_client.async_client import AsyncClient
from metareward_client.client import Client

_making = threading.Lock()
_clients: dict[tuple[str | None, ...], Client] = {}
_async_clients: dict[tuple[str | None, ...], AsyncClient] = {}


def shared_client(base_url: str | None) -> Client:
    """The client of a server; None: METAREWARD_URL says which."""
    with _making:
        return _clients.get(_key(base_url)) or _clients.setdefault(_key(base_url), Client(base_url))


def shared_async_client(base_url: str | None) -> AsyncClient:
    """The same for asyncio; it has connections of its own for each event loop."""
    with _making:
        return _async_clients.get(_key(base_url)) or _async_clients.setdefault(_key(base_url), AsyncClient(base_url))


def _key(base_url: str | None) -> tuple[str | None, ...]:
    # A client reads the environment when it is made.
    return base_url, os.environ.get("METAREWARD_URL"), os.environ.get("METAREWARD_API_KEY")
