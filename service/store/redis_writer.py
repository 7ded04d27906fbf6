"""Writes to Redis that nobody waits for: one bounded queue, sent in pipelines."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from service.observability.metrics import Metrics
from service.store.redis_client import Command, RedisClient, RedisUnavailable

MAX_QUEUED_KEYS = 65_536
MAX_BATCH_KEYS = 1024


@dataclass(frozen=True, slots=True)
class _Write:
    command: Command
    keys: int
    lost: Callable[[], None] | None


class RedisWriter:
    """Sends what it is given some time soon. Lives on one event loop.

    Writes that say what to do if they are lost go first. The others are worth a computation at most: they are dropped
    while the queue is full or Redis is away.
    """

    def __init__(self, client: RedisClient, metrics: Metrics, max_queued_keys: int = MAX_QUEUED_KEYS) -> None:
        self._client = client
        self._metrics = metrics
        self._max_queued_keys = max_queued_keys
        self._urgent: deque[_Write] = deque()
        self._others: deque[_Write] = deque()
        self._queued_keys = 0
        self._sending: asyncio.Task[None] | None = None

    def put(self, command: Command, *, keys: int = 1, lost: Callable[[], None] | None = None) -> None:
        """Queue a command.

        Args:
            command: The command and its arguments.
            keys: How many keys it writes: the queue is bounded in keys.
            lost: Called once if the command is dropped, or if nobody knows whether Redis ran it.
        """
        if not self._client.up or self._queued_keys + keys > self._max_queued_keys:
            reason = "queue_full" if self._client.up else "circuit_open"
            self._metrics.redis_errors.labels("write", reason).inc()
            if lost is not None:
                lost()
            return
        (self._others if lost is None else self._urgent).append(_Write(command, keys, lost))
        self._queued_keys += keys
        if self._sending is None:
            self._sending = asyncio.get_running_loop().create_task(self._send())

    async def close(self, patience_s: float) -> None:
        """Send what is queued, for `patience_s` at most."""
        give_up_at = time.monotonic() + patience_s
        while self._sending is not None and (left_s := give_up_at - time.monotonic()) > 0:
            await asyncio.wait([self._sending], timeout=left_s)
        if self._sending is not None:
            self._sending.cancel()
            await asyncio.wait([self._sending], timeout=patience_s)

    async def _send(self) -> None:
        try:
            while batch := self._next_batch():
                try:
                    await self._client.pipeline("write", [write.command for write in batch])
                except RedisUnavailable:
                    for write in batch:
                        if write.lost is not None:
                            write.lost()
        finally:
            self._sending = None

    def _next_batch(self) -> list[_Write]:
        batch: list[_Write] = []
        keys = 0
        for queue in (self._urgent, self._others):
            while queue and (not batch or keys + queue[0].keys <= MAX_BATCH_KEYS):
                batch.append(queue.popleft())
                keys += batch[-1].keys
        self._queued_keys -= keys
        return batch
