"""What tenants may use per minute: token buckets, shared by all replicas where there is a Redis."""

from __future__ import annotations

import time
from typing import Final

from service.errors import QuotaExceeded
from service.observability.metrics import Metrics
from service.store.records import Quotas
from service.store.shared import SharedCounters, Taken

_MINUTE_S: Final = 60.0
_UNLIMITED: Final = Quotas()


class TokenBucket:
    """A bucket that refills steadily. It keeps neither its limit nor its window: both may change between two calls."""

    __slots__ = ("_at", "_taken")

    def __init__(self) -> None:
        self._taken = 0.0
        self._at = 0.0

    def take(self, amount: float, now: float, *, limit: float, window_s: float) -> Taken:
        """Take `amount`, or nothing; see `SharedCounters.take`. `now` is a `time.monotonic()` reading."""
        rate = limit / window_s
        self._taken = max(0.0, self._taken - (now - self._at) * rate)
        self._at = now
        # Seconds are compared, not amounts: sums of floats leave crumbs that nobody should wait for.
        retry_after_s = (self._taken + min(amount, limit) - limit) / rate
        if retry_after_s > 1e-6:
            return Taken(allowed=False, retry_after_s=retry_after_s)
        self._taken += amount
        return Taken(allowed=True, retry_after_s=0.0)

    def give_back(self, amount: float) -> None:
        """Put back what was taken and not used; the bucket holds no more than when it is full."""
        self._taken = max(0.0, self._taken - amount)


class TenantLimits:
    """Charges tenants for requests and tokens. Lives on one event loop.

    Quotas are learned from the keys that are verified. Without shared counters, and while they do not answer, each
    process has buckets of its own, so that a tenant may use as many times its quota as there are processes.
    """

    def __init__(self, *, metrics: Metrics, shared: SharedCounters | None = None) -> None:
        self._metrics = metrics
        self._shared = shared
        self._quotas: dict[str, Quotas] = {}
        self._buckets: dict[tuple[str, str], TokenBucket] = {}

    def learn(self, tenant_id: str, quotas: Quotas) -> None:
        """Remember what a tenant may use. Only tenants with keys get here, so they need no bound."""
        self._quotas[tenant_id] = quotas

    async def charge_request(self, tenant_id: str) -> None:
        """Count one request.

        Raises:
            QuotaExceeded: It is one too many this minute.
        """
        await self._charge(tenant_id, "requests", 1, self._quotas.get(tenant_id, _UNLIMITED).requests_per_minute)
        self._metrics.tenant_requests.labels(tenant_id).inc()

    async def charge_tokens(self, tenant_id: str, tokens: int) -> None:
        """Take tokens that the engine may be about to compute; `settle_tokens` counts those that it did.

        Raises:
            QuotaExceeded: They are too many this minute.
        """
        await self._charge(tenant_id, "tokens", tokens, self._quotas.get(tenant_id, _UNLIMITED).tokens_per_minute)

    async def settle_tokens(self, tenant_id: str, *, charged: int, used: int) -> None:
        """Count the tokens that the engine computed, and give back the others that were charged."""
        if tenant_id and used:  # a warm-up is nobody's
            self._metrics.tenant_tokens.labels(tenant_id).inc(used)
        per_minute = self._quotas.get(tenant_id, _UNLIMITED).tokens_per_minute
        if per_minute is None or used >= charged:
            return
        shared = self._shared
        amount = charged - used
        if shared is None or not await shared.give_back(
            tenant_id, "tokens", amount, limit=per_minute, window_s=_MINUTE_S
        ):
            self._bucket(tenant_id, "tokens").give_back(amount)

    async def _charge(self, tenant_id: str, quota: str, amount: int, per_minute: int | None) -> None:
        if per_minute is None:
            return
        taken = None
        if self._shared is not None:
            taken = await self._shared.take(tenant_id, quota, amount, limit=per_minute, window_s=_MINUTE_S)
        if taken is None:
            bucket = self._bucket(tenant_id, quota)
            taken = bucket.take(amount, time.monotonic(), limit=per_minute, window_s=_MINUTE_S)
        if not taken.allowed:
            self._metrics.quota_refusals.labels(tenant_id, quota).inc()
            raise QuotaExceeded(
                quota, f"This tenant may use {per_minute} {quota} a minute and has used them.", taken.retry_after_s
            )

    def _bucket(self, tenant_id: str, quota: str) -> TokenBucket:
        return self._buckets.setdefault((tenant_id, quota), TokenBucket())
