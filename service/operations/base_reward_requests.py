"""What a request for base rewards asked, found and cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from service.operations.texts import AnyText
from service.store.caches import CachedBaseRewards


@dataclass(frozen=True, slots=True)
class BaseRewards:
    """Base rewards of a request's texts.

    Attributes:
        rewards_BK: [B, K], in the order of the texts.
        keys: The text_key of each.
        truncated: Indices of the texts that were shortened to fit the backbone.
        tokens: Tokens that the engine computed for this request; 0 where everything was cached.
        lengths: Tokens of each text that was not cached, by its index.
        tokenise_s: Seconds of rendering and tokenising.
        engine_s: Seconds of waiting for the engine.
    """

    rewards_BK: npt.NDArray[np.float64]
    keys: Sequence[bytes]
    truncated: Sequence[int]
    tokens: int
    tokenise_s: float
    engine_s: float
    lengths: Mapping[int, int]


class TokenMeter(Protocol):
    """Whom tenants pay for what the engine computes."""

    async def charge_tokens(self, tenant_id: str, tokens: int) -> None:
        """Take `tokens`, what a request may cost at most.

        Raises:
            QuotaExceeded: They are too many this minute.
        """

    async def settle_tokens(self, tenant_id: str, *, charged: int, used: int) -> None:
        """Give back what was charged and not used."""


@dataclass(frozen=True, slots=True)
class LookedUp:
    """What `BaseRewardReader.look_up` found, for `complete`.

    Attributes:
        tenant_id: Who pays for what is missing.
        scope: Whose cache it is; empty where all tenants share one.
        texts: As given.
        truncate: Whether texts that are too long are shortened.
        keys: The text_key of each.
        entries: What the caches know of each.
        missing: Indices of the texts that the engine must compute.
        deadline: When the caller's request is given up, on the monotonic clock; None for never.
        metered: Whether the tenant pays for what is computed.
    """

    tenant_id: str
    scope: str
    texts: Sequence[AnyText]
    truncate: bool
    keys: Sequence[bytes]
    entries: list[CachedBaseRewards | None]
    missing: Sequence[int]
    deadline: float | None = None
    metered: bool = True


@dataclass(slots=True)
class Usage:
    """Tokens of one request that the engine took, and those of them that it has answered."""

    taken: int = 0
    answered: int = 0
