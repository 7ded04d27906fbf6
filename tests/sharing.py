"""Replicas that share a real Redis."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from redis_server import RedisServer

from service.observability.metrics import Metrics
from service.store.circuit import CircuitBreaker
from service.store.redis_client import RedisClient


@contextlib.asynccontextmanager
async def replica_client(
    server: RedisServer, *, timeout_s: float = 2.0, password: str | None = None
) -> AsyncIterator[RedisClient]:
    """A client of `server` that forgives a slow machine and looks for a lost Redis often."""
    url = server.url if password is None else f"redis://:{password}@127.0.0.1:{server.port}/0"
    client = RedisClient(
        url, timeout_s=timeout_s, metrics=Metrics(), circuit=CircuitBreaker(first_pause_s=0.05, max_pause_s=0.1)
    )
    try:
        yield client
    finally:
        await client.close()
