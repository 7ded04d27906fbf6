"""States of users in Redis, so that a replica need not ask the database for what another one knows.

Per user two keys, both from HMAC(secret, tenant, user): the entry (the row as it was in the database) and, after an
erase, the tombstone (the incarnation that was erased). Redis holds no names. The reasons are in docs/decisions/ (Redis
may vanish).
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import get_args

import numpy as np

from service.observability.metrics import Metrics
from service.store.records import Carried, StoredUser, Vector
from service.store.redis_client import Command, RedisClient, RedisKeys, RedisUnavailable
from service.store.redis_coalescer import Coalescer
from service.store.redis_writer import RedisWriter
from service.store.shared import SharedTombstone, SharedUser
from service.store.vectors import from_bytes, to_bytes

MAX_OWED = 10_000
_BATCH = 256

# An entry begins with the format, the incarnation and the version, the last two in 16 digits each: Lua compares
# numbers, and its string order depends on the locale. An entry that ends there is a floor: nothing older may be
# published, and readers find nothing.
_FORMAT = b"1"
_HEAD_BYTES = 33
# Then: lifetime in ms, created and updated in us since 1970, pairs, and the lengths of what follows: checkpoint_id,
# heads_id, weights, factor (-1 for none). What stands behind these says how a carried user came to the checkpoint; the
# version before, which knows of no carried users, finds nothing in such an entry.
_BODY = struct.Struct("<QqqIHHiq")
_HOW: dict[bytes, Carried | None] = {b"": None} | {how.encode(): how for how in get_args(Carried)}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)

_GET = """
local answers = {}
for i = 1, #KEYS, 2 do
  answers[#answers + 1] = redis.call('GET', KEYS[i])
  answers[#answers + 1] = redis.call('PTTL', KEYS[i])
  answers[#answers + 1] = redis.call('GET', KEYS[i + 1])
end
return answers
"""
_HELD = """
local held = redis.call('GETRANGE', KEYS[1], 0, 32)
local life, version
if #held == 33 and string.sub(held, 1, 1) == '1' then
  life, version = tonumber(string.sub(held, 2, 17)), tonumber(string.sub(held, 18, 33))
end
local erased = tonumber(redis.call('GET', KEYS[2]) or '')
local incarnation = tonumber(ARGV[1])
"""
_PUBLISH = (
    _HELD
    + """
if erased and erased >= incarnation then return 0 end
if life and version and (life > incarnation or (life == incarnation and version > tonumber(ARGV[2]))) then return 0 end
redis.call('SET', KEYS[1], ARGV[3], 'PX', ARGV[4])
return 1
"""
)
_ERASE = (
    _HELD
    + """
if not erased or erased <= incarnation then redis.call('SET', KEYS[2], ARGV[1], 'PX', ARGV[2]) end
if not life or life <= incarnation then redis.call('DEL', KEYS[1]) end
return 1
"""
)


class RedisUsers:
    """`SharedUsers` in Redis. Lives on one event loop; concurrent questions share one round trip.

    What could not be written is owed: kept here, and sent before Redis is trusted again. Of a commit that is not its
    state but a floor, which takes out what is older and cannot bring back anybody who was erased meanwhile.
    """

    def __init__(
        self,
        client: RedisClient,
        writer: RedisWriter,
        keys: RedisKeys,
        metrics: Metrics,
        *,
        ttl_s: float,
        stale_limit_s: float,
        tombstone_ttl_s: float,
        max_owed: int = MAX_OWED,
    ) -> None:
        self._client = client
        self._writer = writer
        self._keys = keys
        self._metrics = metrics
        self._ttl_s = ttl_s
        self._lifetime_ms = max(1, round(max(ttl_s, stale_limit_s) * 1000))
        self._tombstone_ms = max(1, round(tombstone_ttl_s * 1000))
        self._max_owed = max_owed
        self._owed_floors: dict[bytes, tuple[int, int]] = {}
        self._owed_tombstones: dict[bytes, int] = {}
        self._erasing: set[asyncio.Task[None]] = set()
        self._coalescer: Coalescer[bytes, _Found] = Coalescer(self._fetch, max_items=_BATCH)
        client.on_recovery(self._settle)

    @property
    def owed(self) -> int:
        """Entries and tombstones that Redis has yet to be told of."""
        return len(self._owed_floors) + len(self._owed_tombstones)

    async def get(self, tenant_id: str, user_id: str) -> SharedUser | SharedTombstone | None:
        """See `SharedUsers.get`."""
        try:
            found = (await self._coalescer.ask([self._keys.digest("user", tenant_id, user_id)]))[0]
        except RedisUnavailable:
            return None
        decoded = None if found.entry is None else decode_user(tenant_id, user_id, found.entry)
        if found.erased is not None and (decoded is None or found.erased >= decoded[0].incarnation):
            return SharedTombstone(found.erased)
        if decoded is None:
            return None
        user, lifetime_ms = decoded
        age_s = max(0, lifetime_ms - found.left_ms) / 1000
        return SharedUser(user, age_s, trusted=age_s <= self._ttl_s)

    def publish_read(self, user: StoredUser) -> None:
        """See `SharedUsers.publish_read`."""
        digest = self._keys.digest("user", user.tenant_id, user.user_id)
        self._writer.put(self._publish(digest, user.incarnation, user.version, encode_user(user, self._lifetime_ms)))

    def publish_committed(self, user: StoredUser) -> None:
        """See `SharedUsers.publish_committed`."""
        digest = self._keys.digest("user", user.tenant_id, user.user_id)
        command = self._publish(digest, user.incarnation, user.version, encode_user(user, self._lifetime_ms))
        self._writer.put(command, lost=lambda: self._owe_floor(digest, user.incarnation, user.version))

    def erase(self, tenant_id: str, user_id: str, incarnation: int | None) -> asyncio.Task[None]:
        """See `SharedUsers.erase`."""
        digest = self._keys.digest("user", tenant_id, user_id)
        task = asyncio.get_running_loop().create_task(self._erase(digest, incarnation))
        self._erasing.add(task)
        task.add_done_callback(self._erasing.discard)
        return task

    async def _erase(self, digest: bytes, incarnation: int | None) -> None:
        try:
            if incarnation is None:
                await self._client.call("erase", "DEL", _entry_key(digest))
            else:
                await self._client.call("erase", *self._tombstone(digest, incarnation))
        except RedisUnavailable:
            if incarnation is not None:
                self._owe_tombstone(digest, incarnation)

    async def _fetch(self, digests: list[bytes]) -> list[_Found]:
        unique = list(dict.fromkeys(digests))
        keys = [key for digest in unique for key in (_entry_key(digest), _tombstone_key(digest))]
        answers = await self._client.call("users", "EVAL", _GET, len(keys), *keys)
        found = {
            digest: _Found(answers[3 * i], answers[3 * i + 1], answers[3 * i + 2]) for i, digest in enumerate(unique)
        }
        return [found[digest] for digest in digests]

    def _publish(self, digest: bytes, incarnation: int, version: int, value: bytes) -> Command:
        keys = (_entry_key(digest), _tombstone_key(digest))
        return ("EVAL", _PUBLISH, 2, *keys, incarnation, version, value, self._lifetime_ms)

    def _tombstone(self, digest: bytes, incarnation: int) -> Command:
        return ("EVAL", _ERASE, 2, _entry_key(digest), _tombstone_key(digest), incarnation, self._tombstone_ms)

    def _owe_floor(self, digest: bytes, incarnation: int, version: int) -> None:
        self._owed_floors[digest] = max((incarnation, version), self._owed_floors.pop(digest, (0, 0)))
        self._bound_owed()

    def _owe_tombstone(self, digest: bytes, incarnation: int) -> None:
        self._owed_tombstones[digest] = max(incarnation, self._owed_tombstones.pop(digest, 0))
        self._bound_owed()

    def _bound_owed(self) -> None:
        """Forget the oldest: commits before erases."""
        while self.owed > self._max_owed:
            owed: dict[bytes, tuple[int, int]] | dict[bytes, int] = self._owed_floors or self._owed_tombstones
            del owed[next(iter(owed))]
            self._metrics.redis_errors.labels("recover", "queue_full").inc()

    async def _settle(self) -> None:
        """Send what is owed; more may come while some is sent."""
        while self.owed:
            tombstones = list(self._owed_tombstones.items())[:_BATCH]
            floors = list(self._owed_floors.items())[:_BATCH]
            commands = [self._tombstone(digest, incarnation) for digest, incarnation in tombstones]
            commands += [self._publish(digest, *at, _head(*at)) for digest, at in floors]
            await self._client.trial(commands)
            for digest, incarnation in tombstones:
                if self._owed_tombstones.get(digest) == incarnation:
                    del self._owed_tombstones[digest]
            for digest, at in floors:
                if self._owed_floors.get(digest) == at:
                    del self._owed_floors[digest]


class _Found:
    """What Redis holds under one digest."""

    __slots__ = ("entry", "erased", "left_ms")

    def __init__(self, entry: bytes | None, left_ms: int, tombstone: bytes | None) -> None:
        self.entry = entry
        self.left_ms = left_ms
        self.erased = int(tombstone) if tombstone is not None and tombstone.isdigit() else None


def _entry_key(digest: bytes) -> bytes:
    return b"mr:u:" + digest


def _tombstone_key(digest: bytes) -> bytes:
    return b"mr:t:" + digest


def _head(incarnation: int, version: int) -> bytes:
    return _FORMAT + b"%016d%016d" % (incarnation, version)


def encode_user(user: StoredUser, lifetime_ms: int) -> bytes:
    """A row as bytes, its names left out; `lifetime_ms` is the expiry that it is stored with."""
    parts = (user.checkpoint_id.encode(), user.heads_id.encode(), to_bytes(user.weights_K))
    factor = None if user.factor is None else to_bytes(user.factor)
    body = _BODY.pack(
        lifetime_ms,
        (user.created_at - _EPOCH) // _MICROSECOND,
        (user.updated_at - _EPOCH) // _MICROSECOND,
        user.pairs,
        len(parts[0]),
        len(parts[1]),
        len(parts[2]),
        -1 if factor is None else len(factor),
    )
    tail = (factor or b"") + (user.carried or "").encode()
    return _head(user.incarnation, user.version) + body + b"".join(parts) + tail


def decode_user(tenant_id: str, user_id: str, value: bytes) -> tuple[StoredUser, int] | None:
    """The row of an entry and its lifetime in ms; None for a floor and for what does not look like an entry."""
    if len(value) < _HEAD_BYTES + _BODY.size or value[:1] != _FORMAT or not value[1:_HEAD_BYTES].isdigit():
        return None
    lifetime_ms, created, updated, pairs, *lengths = _BODY.unpack_from(value, _HEAD_BYTES)
    parts = _split(value[_HEAD_BYTES + _BODY.size :], [max(0, length) for length in lengths])
    if parts is None or len(parts[2]) % 8 or len(parts[3]) % 8 or parts[4] not in _HOW:
        return None
    weights_K, factor = from_bytes(parts[2]), None if lengths[3] < 0 else from_bytes(parts[3])
    if not (_is_finite(weights_K) and (factor is None or _is_finite(factor))):
        return None
    try:
        user = StoredUser(
            tenant_id=tenant_id,
            user_id=user_id,
            incarnation=int(value[1:17]),
            version=int(value[17:33]),
            checkpoint_id=parts[0].decode(),
            heads_id=parts[1].decode(),
            weights_K=weights_K,
            factor=factor,
            pairs=pairs,
            created_at=_EPOCH + timedelta(microseconds=created),
            updated_at=_EPOCH + timedelta(microseconds=updated),
            carried=_HOW[parts[4]],
        )
    except (UnicodeDecodeError, OverflowError):
        return None
    return user, lifetime_ms


def _split(data: bytes, lengths: Sequence[int]) -> list[bytes] | None:
    """Consecutive parts of `data`, and what is behind them; None if there is not as much."""
    if sum(lengths) > len(data):
        return None
    parts = []
    for length in lengths:
        parts.append(data[:length])
        data = data[length:]
    return [*parts, data]


def _is_finite(vector: Vector) -> bool:
    return bool(np.isfinite(vector).all())
