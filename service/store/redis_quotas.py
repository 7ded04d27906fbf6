"""Token buckets in Redis: one count of what a tenant took, whichever replica gave it."""

from __future__ import annotations

import math

from service.store.redis_client import Command, RedisClient, RedisKeys, RedisUnavailable
from service.store.redis_coalescer import Coalescer
from service.store.shared import Taken

# Time is Redis's own. A clock that steps back refills nothing. A bucket that is full again is no longer kept.
_TAKE = """
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1000000
local amount, limit, rate = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[2]) / tonumber(ARGV[3])
local held = redis.call('HMGET', KEYS[1], 'level', 'at')
local level = limit
if held[1] and held[2] then
  level = math.min(limit, tonumber(held[1]) + math.max(0, now - tonumber(held[2])) * rate)
end
local needed = math.min(amount, limit)
if ARGV[4] == '0' and level < needed then
  return {0, string.format('%.6f', (needed - level) / rate)}
end
level = math.min(limit, level - amount)
redis.call('HSET', KEYS[1], 'level', string.format('%.17g', level), 'at', string.format('%.6f', now))
redis.call('PEXPIRE', KEYS[1], math.ceil((limit - level) / rate * 1000) + 1000)
return {1, '0'}
"""


class RedisCounters:
    """`SharedCounters` in Redis: buckets keyed by HMAC(secret, tenant, quota). Lives on one event loop.

    Usage: ``taken = await counters.take(tenant_id, "requests", 1, limit=600, window_s=60.0)``; None means that Redis
    does not answer, and the caller counts in its own process. Callers of one turn of the event loop share one
    round trip.
    """

    def __init__(self, client: RedisClient, keys: RedisKeys) -> None:
        self._client = client
        self._keys = keys
        self._coalescer: Coalescer[Command, Taken] = Coalescer(self._take, max_items=256)

    async def take(
        self, tenant_id: str, quota: str, amount: float, *, limit: float, window_s: float, force: bool = False
    ) -> Taken | None:
        """See `SharedCounters.take`."""
        if not (amount >= 0 and limit > 0 and window_s > 0 and math.isfinite(amount + limit + window_s)):
            raise ValueError("amount must be at least 0, limit and window_s positive, and all finite")
        return await self._change(tenant_id, quota, amount, limit, window_s, force=force)

    async def give_back(self, tenant_id: str, quota: str, amount: float, *, limit: float, window_s: float) -> bool:
        """See `SharedCounters.give_back`."""
        return await self._change(tenant_id, quota, -amount, limit, window_s, force=True) is not None

    async def _change(
        self, tenant_id: str, quota: str, amount: float, limit: float, window_s: float, *, force: bool
    ) -> Taken | None:
        key = b"mr:q:" + self._keys.digest("quota", tenant_id, quota)
        command = ("EVAL", _TAKE, 1, key, repr(amount), repr(limit), repr(window_s), "1" if force else "0")
        try:
            return (await self._coalescer.ask([command]))[0]
        except RedisUnavailable:
            return None

    async def _take(self, commands: list[Command]) -> list[Taken]:
        answers = await self._client.pipeline("quota", commands)
        return [Taken(bool(allowed), float(retry_after_s)) for allowed, retry_after_s in answers]
