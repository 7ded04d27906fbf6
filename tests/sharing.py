"""Replicas that share a real Redis."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable

from operating import HEADS, Operations, told, toy_checkpoint, user_says
from redis_server import RedisServer

from service.observability.metrics import Metrics
from service.operations.said import PreferencePair
from service.operations.score import Scored, ScoreItem
from service.store import Database
from service.store.circuit import CircuitBreaker
from service.store.redis_base_rewards import RedisBaseRewards
from service.store.redis_client import RedisClient, RedisKeys
from service.store.redis_users import RedisUsers
from service.store.redis_writer import RedisWriter

RECOVERY_S = 20.0


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


class Replica(Operations):
    """The use cases of one server process over `database` and `server`. Memory is asked, but nothing in it is trusted
    unless told, so that every question reaches Redis."""

    def __init__(
        self,
        database: Database,
        server: RedisServer,
        *,
        timeout_s: float = 2.0,
        password: str | None = None,
        ttl_s: float = 30.0,
        stale_limit_s: float = 60.0,
        tombstone_ttl_s: float = 60.0,
        revalidate_s: float = 0.0,
        seed: int = 0,
        max_owed: int = 100,
    ) -> None:
        metrics = Metrics()
        url = server.url if password is None else f"redis://:{password}@127.0.0.1:{server.port}/0"
        circuit = CircuitBreaker(first_pause_s=0.05, max_pause_s=0.1)
        self.client = RedisClient(url, timeout_s=timeout_s, metrics=metrics, circuit=circuit)
        self.writer = RedisWriter(self.client, metrics)
        checkpoint = toy_checkpoint(seed)
        self.shared_users = RedisUsers(
            self.client,
            self.writer,
            RedisKeys(b"secret"),
            metrics,
            ttl_s=ttl_s,
            stale_limit_s=stale_limit_s,
            tombstone_ttl_s=tombstone_ttl_s,
            max_owed=max_owed,
        )
        super().__init__(
            database,
            checkpoint=checkpoint,
            revalidate_s=revalidate_s,
            stale_limit_s=stale_limit_s,
            shared_users=self.shared_users,
            shared_base_rewards=RedisBaseRewards(
                self.client, self.writer, heads_id=checkpoint.heads_id, heads=HEADS, ttl_s=60.0
            ),
            metrics=metrics,
        )

    async def __aenter__(self) -> Replica:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.writer.close(1.0)
        await self.client.close()
        self.executor.shutdown()

    async def scored(self, user: str = "ada", text: str = "x", min_version: int = 0) -> Scored:
        """The score of one text for one user."""
        item = ScoreItem(user, user_says("q"), [text], min_version=min_version)
        return (await self.score("t", [item], truncate=False, return_base_rewards=False)).results[0]

    async def adapted(self, user: str = "ada", chosen: str = "good") -> int:
        """The version after one more choice of a user."""
        pair = PreferencePair(user_says("p"), chosen, "bad", 1.0, None)
        return (await self.adapt("t", user, told([pair]), mode="append", truncate=False)).outcome.version

    async def settled(self) -> None:
        """Return when everything queued for Redis is there."""
        await self.writer.close(RECOVERY_S)

    async def trusts_redis(self) -> None:
        """Return when Redis is in use again."""
        await until(lambda: self.client.up)

    def counted(self, counter: str, **labels: str) -> float:
        """The sum of a counter's samples that have these labels."""
        return sum(
            sample.value
            for metric in self.metrics.registry.collect()
            for sample in metric.samples
            if sample.name == f"metareward_{counter}_total" and labels.items() <= sample.labels.items()
        )


async def until(condition: Callable[[], bool]) -> None:
    """Return once it holds."""
    give_up_at = time.monotonic() + RECOVERY_S
    while not condition():
        assert time.monotonic() < give_up_at, f"not so after {RECOVERY_S:g} s"
        await asyncio.sleep(0.01)
