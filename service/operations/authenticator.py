"""Keys to callers, from memory or the database."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from service.errors import Overloaded, Unauthenticated, Unavailable
from service.observability import context
from service.observability.metrics import Metrics
from service.operations.keys import ApiKey, digest_of, is_well_formed
from service.operations.quotas import TokenBucket
from service.store.caches import LruCache
from service.store.keys import KeyRepository

# Keys that are remembered, good and refused ones each.
_MAX_REMEMBERED: Final = 10_000
# A key that is made while somebody already tries it works this much later.
_REFUSED_S: Final = 2.0
# What keys that were never seen here may cost the database.
_LOOKUPS_PER_S: Final = 100.0
_MAX_PENDING: Final = 64
_PATIENCE_S: Final = 2.0
_PAUSE_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class _Verified:
    key: ApiKey
    checked_at: float


class Authenticator:
    """Verifies keys by their digest. Lives on one event loop; the database is asked from threads of its own.

    A verified key is trusted for `trust_s` after its last look-up began, so a revoked one stops within that time; it is
    looked up again ahead of that, behind the request, so that no caller waits for it. While the database does not
    answer, verified keys stay good until the last look-up is `stale_s` old, and nobody waits to learn of an outage
    that is known. A key that is not remembered gets an error then, never a pass.

    Random keys are refused by their form or cost one look-up each; look-ups of keys never seen are bounded in rate and
    in number, and so is what is remembered of them. Only digests are compared: what a comparison's time tells of a
    SHA-256 brings nobody nearer to the key.
    """

    def __init__(
        self,
        *,
        repository: KeyRepository,
        metrics: Metrics,
        trust_s: float,
        stale_s: float,
        wall_clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._repository = repository
        self._metrics = metrics
        self._trust_s = trust_s
        self._stale_s = stale_s
        self._wall_clock = wall_clock
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="keys")
        self._verified: LruCache[bytes, _Verified] = LruCache(_MAX_REMEMBERED)
        self._refused: LruCache[bytes, tuple[float, ApiKey | None]] = LruCache(_MAX_REMEMBERED)
        self._lookups: dict[bytes, asyncio.Future[ApiKey | None]] = {}
        self._unseen = TokenBucket()
        self._outage_at: float | None = None

    async def verify(self, key: str) -> ApiKey:
        """The key as stored.

        Raises:
            Unauthenticated: It is unknown, revoked or expired.
            Unavailable: It is not remembered, and the database does not answer.
            Overloaded: It is not remembered, and too many such keys come at once.
        """
        if not is_well_formed(key):
            raise self._refusal("unknown")
        digest = digest_of(key)
        now = time.monotonic()
        known = self._verified.get(digest)
        if known is not None and now - known.checked_at <= self._trust_s:
            if now - known.checked_at > self._trust_s / 2 and digest not in self._lookups and not self._in_outage(now):
                self._begin(digest, now)
            return self._usable(known.key, "ok")
        refused = self._refused.get(digest)
        if refused is not None and now - refused[0] <= _REFUSED_S:
            raise self._refusal("unknown" if refused[1] is None else "revoked", refused[1])
        try:
            found = await self._look_up(digest, now, seen=known is not None)
        except (Unavailable, Overloaded):
            if known is not None and now - known.checked_at <= self._stale_s:
                return self._usable(known.key, "stale")
            self._metrics.authentications.labels("unavailable").inc()
            raise
        if found is None:
            raise self._refusal("unknown")
        return self._usable(found, "ok")

    def close(self) -> None:
        """Let the threads go; a look-up that hangs ends by the database's own time limit."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _look_up(self, digest: bytes, now: float, *, seen: bool) -> ApiKey | None:
        lookup = self._lookups.get(digest)
        if self._in_outage(now):
            raise Unavailable("API keys cannot be verified now.")
        if lookup is None:
            if not seen and (
                len(self._lookups) >= _MAX_PENDING
                or not self._unseen.take(1.0, now, limit=_LOOKUPS_PER_S, window_s=1.0).allowed
            ):
                raise Overloaded("Too many unknown API keys at once.")
            lookup = self._begin(digest, now)
        # Not cancelled with the one who waits: others may wait for it too, and its answer is remembered.
        await asyncio.wait([lookup], timeout=_PATIENCE_S)
        if not lookup.done():
            self._outage_at = time.monotonic()
            raise Unavailable("API keys cannot be verified now.")
        return lookup.result()

    def _in_outage(self, now: float) -> bool:
        """Whether to leave the database alone: it failed a moment ago, or somebody already tries it again."""
        return self._outage_at is not None and (now - self._outage_at < _PAUSE_S or bool(self._lookups))

    def _begin(self, digest: bytes, now: float) -> asyncio.Future[ApiKey | None]:
        lookup = asyncio.get_running_loop().run_in_executor(self._threads, self._repository.find, digest)
        self._lookups[digest] = lookup

        def remember(done: asyncio.Future[ApiKey | None]) -> None:
            del self._lookups[digest]
            if done.cancelled():
                return
            error = done.exception()
            if isinstance(error, Unavailable):
                self._outage_at = time.monotonic()
            if error is not None:
                return
            self._outage_at = None
            found = done.result()
            if found is not None and found.revoked_at is None:
                self._verified.put(digest, _Verified(found, now))
            else:
                self._verified.drop(digest)
                self._refused.put(digest, (time.monotonic(), found))

        lookup.add_done_callback(remember)
        return lookup

    def _usable(self, key: ApiKey, result: str) -> ApiKey:
        if key.revoked_at is not None:
            raise self._refusal("revoked", key)
        if key.expires_at is not None and key.expires_at <= self._wall_clock():
            raise self._refusal("expired", key)
        self._metrics.authentications.labels(result).inc()
        return key

    def _refusal(self, result: str, key: ApiKey | None = None) -> Unauthenticated:
        if key is not None:
            # The operator's log says whose key it is that somebody goes on using.
            context.tenant.set(key.tenant_id)
            context.key_id.set(key.key_id)
        self._metrics.authentications.labels(result).inc()
        if result == "unknown":
            return Unauthenticated("This API key is not known here. `metareward keys create` makes one.")
        return Unauthenticated(
            f"This API key {'was revoked' if result == 'revoked' else 'has expired'}. Get a new one."
        )
