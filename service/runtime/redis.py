"""The parts that share what replicas know through Redis. Imported only where there is a REDIS_URL."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from service.checkpoints import Checkpoint
from service.observability.metrics import Metrics
from service.settings import Settings
from service.store.redis_base_rewards import RedisBaseRewards
from service.store.redis_client import RedisClient, RedisKeys
from service.store.redis_quotas import RedisCounters
from service.store.redis_users import RedisUsers
from service.store.redis_writer import RedisWriter


@dataclass(frozen=True)
class RedisParts:
    """What the use cases share through one Redis, and what must be closed in the end.

    `base_rewards` gives the shared cache of a checkpoint.
    """

    client: RedisClient
    writer: RedisWriter
    base_rewards: Callable[[Checkpoint], RedisBaseRewards]
    users: RedisUsers
    counters: RedisCounters
    timeout_s: float

    async def close(self) -> None:
        """Send what is queued and close the connections. On the event loop that used them."""
        await self.writer.close(2 * self.timeout_s)
        await self.client.close()


def open_redis(settings: Settings, secret: bytes, metrics: Metrics) -> RedisParts:
    """The parts over the Redis of the settings. Nothing is connected: one that is down keeps nobody from starting.

    Raises:
        ConfigurationError: REDIS_URL cannot be read.
    """
    client = RedisClient(settings.redis_url.get_secret_value(), timeout_s=settings.redis_timeout_s, metrics=metrics)
    writer = RedisWriter(client, metrics)
    keys = RedisKeys(secret)

    def base_rewards(checkpoint: Checkpoint) -> RedisBaseRewards:
        return RedisBaseRewards(
            client,
            writer,
            heads_id=checkpoint.heads_id,
            heads=checkpoint.heads,
            ttl_s=settings.base_reward_cache_ttl_s,
        )

    return RedisParts(
        client=client,
        writer=writer,
        base_rewards=base_rewards,
        users=RedisUsers(
            client,
            writer,
            keys,
            metrics,
            ttl_s=settings.redis_user_ttl_s,
            stale_limit_s=settings.stale_limit_s,
            tombstone_ttl_s=settings.tombstone_ttl_s,
        ),
        counters=RedisCounters(client, keys),
        timeout_s=settings.redis_timeout_s,
    )
