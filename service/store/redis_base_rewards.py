"""Base rewards in Redis: K numbers under a keyed digest, no text and no user."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from service.store.caches import CachedBaseRewards
from service.store.redis_claims import ENTRY_PREFIX, LUA_CLAIM_OF, ClaimRequest, RedisClaims
from service.store.redis_client import Command, RedisClient, RedisUnavailable
from service.store.redis_coalescer import Coalescer
from service.store.redis_writer import RedisWriter

# A value: format, flags, then K little-endian float64.
_FORMAT = 1
_TRUNCATED = 1
_MAX_KEYS = 2048

# One command for many keys costs the client library an eighth of a command each.
_PUT = (
    LUA_CLAIM_OF
    + """
for i = 1, #KEYS do
    redis.call('SET', KEYS[i], ARGV[i + 2], 'PX', ARGV[1])
    local claim = claim_of(KEYS[i])
    if redis.call('GET', claim) == ARGV[2] then redis.call('DEL', claim) end
end
"""
)


class BaseRewardCodec:
    """Base rewards of `heads` heads as bytes and back. What does not look like it is nothing."""

    def __init__(self, heads: int) -> None:
        self._entry = np.dtype([("format", "u1"), ("flags", "u1"), ("base_rewards_K", "<f8", (heads,))])

    def encode(self, entry: CachedBaseRewards) -> bytes:
        """The bytes of one entry."""
        rewards = np.ascontiguousarray(entry.base_rewards_K, dtype="<f8")
        return bytes((_FORMAT, _TRUNCATED if entry.truncated else 0)) + rewards.tobytes()

    def decode(self, values: Sequence[bytes | None]) -> list[CachedBaseRewards | None]:
        """The entries of values; None for one that is missing, of another format or length, or not finite."""
        size = self._entry.itemsize
        found = [i for i, value in enumerate(values) if value is not None and len(value) == size]
        decoded: list[CachedBaseRewards | None] = [None] * len(values)
        entries = np.frombuffer(b"".join([values[i] or b"" for i in found]), dtype=self._entry)
        rewards_BK = entries["base_rewards_K"].astype(np.float64)
        usable = (entries["format"] == _FORMAT) & (entries["flags"] <= _TRUNCATED) & np.isfinite(rewards_BK).all(axis=1)
        flags: list[int] = entries["flags"].tolist()
        for i, is_usable, rewards_K, flag in zip(found, usable.tolist(), rewards_BK, flags, strict=True):
            if is_usable:
                decoded[i] = CachedBaseRewards(rewards_K, bool(flag))
        return decoded


class RedisBaseRewards:
    """`SharedBaseRewards` in Redis. Lives on one event loop; concurrent questions share one MGET."""

    def __init__(self, client: RedisClient, writer: RedisWriter, *, heads_id: str, heads: int, ttl_s: float) -> None:
        self._client = client
        self._writer = writer
        self._prefix = ENTRY_PREFIX + heads_id.encode() + b":"
        self._ttl_ms = max(1, round(ttl_s * 1000))
        self._codec = BaseRewardCodec(heads)
        self._coalescer: Coalescer[bytes, bytes | None] = Coalescer(self._mget, max_items=_MAX_KEYS)
        self._claims: RedisClaims[CachedBaseRewards] = RedisClaims(
            client, writer, heads_id=heads_id, decode=self._codec.decode
        )

    async def get(self, keys: Sequence[bytes]) -> list[CachedBaseRewards | None]:
        """See `SharedBaseRewards.get`."""
        prefixed = [self._prefix + key for key in keys]
        values: list[bytes | None] = []
        try:
            for begin in range(0, len(keys), _MAX_KEYS):
                values += await self._coalescer.ask(prefixed[begin : begin + _MAX_KEYS])
        except RedisUnavailable:
            values += [None] * (len(keys) - len(values))
        return self._codec.decode(values)

    def put(self, entries: Mapping[bytes, CachedBaseRewards]) -> None:
        """See `SharedBaseRewards.put`."""
        items = list(entries.items())
        for begin in range(0, len(items), _MAX_KEYS):
            some = items[begin : begin + _MAX_KEYS]
            keys = [self._prefix + key for key, _ in some]
            values = [self._codec.encode(entry) for _, entry in some]
            command: Command = ("EVAL", _PUT, len(keys), *keys, self._ttl_ms, self._claims.token, *values)
            self._writer.put(command, keys=len(keys))
            self._claims.settle([key for key, _ in some])

    def claim(self, keys: Sequence[bytes]) -> ClaimRequest[CachedBaseRewards]:
        """See `SharedBaseRewards.claim`."""
        return self._claims.request(keys)

    async def _mget(self, keys: list[bytes]) -> list[bytes | None]:
        values: list[bytes | None] = await self._client.call("base_rewards", "MGET", *keys)
        return values
