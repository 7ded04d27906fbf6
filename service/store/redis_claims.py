"""Who computes a text that Redis does not hold: one process, while the others wait for its answer. Never for long.

A claim is a key with its owner's token that expires within seconds. The owner renews it while it computes, so that one
who died is soon followed by another; whoever puts the entry, or fails to, takes its claim out.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final, Generic, TypeVar

from service.store.redis_client import RedisClient, RedisUnavailable
from service.store.redis_coalescer import Coalescer
from service.store.redis_writer import RedisWriter

Entry = TypeVar("Entry")

CLAIM_MS: Final = 3000
_RENEW_S: Final = 1.0
_MAX_KEYS: Final = 1024
# A text takes from milliseconds on a GPU to seconds on a CPU.
_FIRST_PAUSE_S: Final = 0.002
_LONGEST_PAUSE_S: Final = 0.05

# Scripts are given the keys of entries and find those of claims: to send both costs more than all else that they do.
ENTRY_PREFIX: Final = b"mr:b:"
_CLAIM_PREFIX: Final = b"mr:c:"
LUA_CLAIM_OF: Final = "local function claim_of(key) return 'mr:c:' .. string.sub(key, 6) end\n"
# For each key the entry, else 1 (the caller is to compute it) or 0 (somebody does).
_CLAIM: Final = (
    LUA_CLAIM_OF
    + """
local found = redis.call('MGET', unpack(KEYS))
for i = 1, #KEYS do
    if not found[i] then
        local claim = claim_of(KEYS[i])
        if redis.call('SET', claim, ARGV[1], 'NX', 'PX', ARGV[2]) then found[i] = 1
        else found[i] = redis.call('GET', claim) == ARGV[1] and 1 or 0 end
    end
end
return found
"""
)
_RENEW: Final = """
for i = 1, #KEYS do if redis.call('GET', KEYS[i]) == ARGV[1] then redis.call('PEXPIRE', KEYS[i], ARGV[2]) end end
"""
_RELEASE: Final = "for i = 1, #KEYS do if redis.call('GET', KEYS[i]) == ARGV[1] then redis.call('DEL', KEYS[i]) end end"


class RedisClaims(Generic[Entry]):
    """The claims of this process. Lives on one event loop; concurrent requests share round trips."""

    def __init__(
        self,
        client: RedisClient,
        writer: RedisWriter,
        *,
        heads_id: str,
        decode: Callable[[Sequence[bytes | None]], list[Entry | None]],
    ) -> None:
        """`decode` reads values of entries; None is one that makes no sense."""
        self._client = client
        self._writer = writer
        self._entry_prefix = ENTRY_PREFIX + heads_id.encode() + b":"
        self._claim_prefix = _CLAIM_PREFIX + heads_id.encode() + b":"
        self._decode = decode
        self.token = os.urandom(8)
        self._held: Counter[bytes] = Counter()
        self._renewing: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._coalescer: Coalescer[bytes, bytes | int] = Coalescer(self._ask, max_items=_MAX_KEYS)

    def request(self, keys: Sequence[bytes]) -> ClaimRequest[Entry]:
        """Ask, while the caller does something else, for what a request misses."""
        return ClaimRequest(self, keys)

    async def ask(self, keys: Sequence[bytes]) -> list[Entry | bool]:
        """The entry of each key, else whether the caller is to compute it. Where Redis does not answer, it is.

        What the caller is to compute is held until `drop`.
        """
        values: list[bytes | int] = []
        for begin in range(0, len(keys), _MAX_KEYS):
            values += await self._coalescer.ask(keys[begin : begin + _MAX_KEYS])
        decoded = self._decode([value if isinstance(value, bytes) else None for value in values])
        answers: list[Entry | bool] = []
        for key, value, entry in zip(keys, values, decoded, strict=True):
            own = value == 1
            if own:
                self._held[key] += 1
            # An entry that makes no sense is replaced by whoever comes upon it.
            answers.append(entry if entry is not None else own or isinstance(value, bytes))
        if self._held and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_RENEW_S, self._renew)
        return answers

    def settle(self, keys: Sequence[bytes]) -> None:
        """Entries of `keys` are being written, by a command that takes their claims out."""
        for key in keys:
            self._held.pop(key, None)

    def drop(self, keys: Sequence[bytes]) -> None:
        """A request will not compute `keys` any more, if it has not: let others."""
        dropped = []
        for key in keys:
            if key in self._held:
                self._held[key] -= 1
                if self._held[key] == 0:
                    del self._held[key]
                    dropped.append(self._claim_prefix + key)
        if dropped:
            self._writer.put(("EVAL", _RELEASE, len(dropped), *dropped, self.token), keys=len(dropped))

    async def _ask(self, keys: list[bytes]) -> list[bytes | int]:
        entries = [self._entry_prefix + key for key in keys]
        values: list[bytes | int] = await self._client.call(
            "claim", "EVAL", _CLAIM, len(keys), *entries, self.token, CLAIM_MS
        )
        return values

    def _renew(self) -> None:
        self._timer = None
        if self._held:
            self._renewing = asyncio.get_running_loop().create_task(self._renew_all())

    async def _renew_all(self) -> None:
        held = [self._claim_prefix + key for key in self._held]
        try:
            for begin in range(0, len(held), _MAX_KEYS):
                some = held[begin : begin + _MAX_KEYS]
                await self._client.call("claim", "EVAL", _RENEW, len(some), *some, self.token, CLAIM_MS)
        except RedisUnavailable:
            pass  # they expire, and others compute what this process computes: no harm but the work
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_RENEW_S, self._renew)


class ClaimRequest(Generic[Entry]):
    """What one request misses. `release` it in the end."""

    def __init__(self, claims: RedisClaims[Entry], keys: Sequence[bytes]) -> None:
        self._claims = claims
        self._keys = keys
        self._own: list[bytes] = []
        self._released = False
        self._asking = self._begin_to_ask(keys)

    async def answers(self) -> list[Entry | bool]:
        """See `SharedClaims.answers`."""
        # Shielded, because who stops asking may be given a claim nevertheless, and must give it back.
        return list(await asyncio.shield(self._asking))

    async def wait(self, indices: Sequence[int], patience_s: float) -> list[Entry | None]:
        """See `SharedClaims.wait`."""
        found: dict[int, Entry] = {}
        left = list(indices)
        give_up_at = time.monotonic() + patience_s
        pause_s = _FIRST_PAUSE_S
        while left and (left_s := give_up_at - time.monotonic()) > 0:
            await asyncio.sleep(min(pause_s, left_s))
            pause_s = min(1.5 * pause_s, _LONGEST_PAUSE_S)
            answers = await asyncio.shield(self._begin_to_ask([self._keys[i] for i in left]))
            still = []
            for i, answer in zip(left, answers, strict=True):
                if answer is False:
                    still.append(i)
                elif not isinstance(answer, bool):
                    found[i] = answer
            if len(still) < len(left):
                if len(found) + len(still) < len(indices):
                    break  # the caller is to compute some: those who wait for them shall not wait for the rest too
                pause_s = _FIRST_PAUSE_S  # they come
            left = still
        return [found.get(i) for i in indices]

    def release(self) -> None:
        """See `SharedClaims.release`."""
        self._released = True
        self._claims.drop(self._own)
        self._own = []

    def _begin_to_ask(self, keys: Sequence[bytes]) -> asyncio.Task[list[Entry | bool]]:
        return asyncio.get_running_loop().create_task(self._ask(keys))

    async def _ask(self, keys: Sequence[bytes]) -> list[Entry | bool]:
        try:
            answers = await self._claims.ask(keys)
        except RedisUnavailable:
            return [True] * len(keys)
        own = [key for key, answer in zip(keys, answers, strict=True) if answer is True]
        if self._released:  # the request has ended meanwhile
            self._claims.drop(own)
        else:
            self._own += own
        return answers
