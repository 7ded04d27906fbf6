"""Servers that want keys, for tests."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx

from benchmarks.server import ServerProcess
from service.operations.keys import Keys, Role
from service.store.tenants import TenantRepository


@dataclass
class Guarded:
    """A server that wants keys, a hand in its database, and the ids of its checkpoints, the active one first."""

    server: ServerProcess
    keys: Keys
    tenants: TenantRepository
    checkpoint_ids: tuple[str, ...] = ()

    def key(self, tenant: str = "acme", role: Role = "adapt", **options: Any) -> str:
        """A new key."""
        return self.keys.create(tenant, role, **options).secret

    @contextlib.contextmanager
    def client(self, key: str | None = None) -> Iterator[httpx.Client]:
        """A client that sends `key`."""
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        with httpx.Client(base_url=self.server.url, timeout=60.0, headers=headers) as client:
            yield client


AUTH_CACHE_S = 0.5
WORKER_KEY = "k" * 32
