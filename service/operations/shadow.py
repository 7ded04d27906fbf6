"""What another checkpoint would have answered: scored behind the answer, compared, and told as figures only."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

from service.backbone.protocol import Message
from service.errors import MetarewardError
from service.mrm.combine import preference_probability, rewards
from service.observability.metrics import Metrics
from service.operations.serving import ServedCheckpoint, Serving
from service.operations.texts import Text

logger = logging.getLogger(__name__)

# Requests that are compared at a time; beyond it they are not. Nobody waits for them, so they must not pile up.
_AT_ONCE: Final = 4
# Of a longer item so many completions are compared: pairs grow with the square.
_MOST_COMPLETIONS: Final = 64

Vector = npt.NDArray[np.float64]


class Asked(Protocol):
    """One item of a request to score."""

    @property
    def user_id(self) -> str | None:
        """Whose taste; None for nobody in particular."""

    @property
    def messages(self) -> Sequence[Message]:
        """The prompt."""

    @property
    def completions(self) -> Sequence[str]:
        """What was scored."""


@dataclass(slots=True)
class Agreement:
    """How two checkpoints answered the same items, since this process began to compare them.

    Attributes:
        items: Items compared.
        same_best: Of those, where both found the same completion best.
        pairs: Pairs of completions that both put in an order.
        same_order: Of those, where it was the same.
        probability_difference: Sum over all pairs of how far apart the probabilities of preference are.
        probabilities: How many pairs that is.
        dropped: Requests that were not compared, because others were.
        failed: Requests that the shadow could not score.
    """

    items: int = 0
    same_best: int = 0
    pairs: int = 0
    same_order: int = 0
    probability_difference: float = 0.0
    probabilities: int = 0
    dropped: int = 0
    failed: int = 0

    @property
    def best_share(self) -> float | None:
        """Share of the items with the same best completion."""
        return self.same_best / self.items if self.items else None

    @property
    def kendall_tau(self) -> float | None:
        """Pairs in the same order less those in the other, by all that both order."""
        return 2 * self.same_order / self.pairs - 1 if self.pairs else None

    @property
    def mean_probability_difference(self) -> float | None:
        """Mean over pairs of the absolute difference of probabilities."""
        return self.probability_difference / self.probabilities if self.probabilities else None


class Shadow:
    """Compares answers with those of `serving.shadow`. Lives on one event loop.

    It never delays or fails an answer: it begins after it, takes part of what the server has to spare, is given up
    where too much is under way, and costs tenants nothing.
    """

    def __init__(self, *, serving: Serving, metrics: Metrics) -> None:
        self._serving = serving
        self._metrics = metrics
        self._running: set[asyncio.Task[None]] = set()
        self._agreements: dict[tuple[str, str], Agreement] = {}

    def agreement(self, active: ServedCheckpoint, shadow: ServedCheckpoint) -> Agreement:
        """How two checkpoints agree so far."""
        return self._agreements.setdefault((active.checkpoint_id, shadow.checkpoint_id), Agreement())

    def offer(
        self,
        active: ServedCheckpoint,
        tenant_id: str,
        items: Sequence[Asked],
        rewards_of_items: Sequence[Sequence[float]],
        *,
        truncate: bool,
    ) -> None:
        """Compare, later, what `active` has just answered; nothing where there is no shadow."""
        shadow = self._serving.shadow
        if shadow is None or shadow is active:
            return
        compared = [(item, r) for item, r in zip(items, rewards_of_items, strict=True) if len(r) > 1]
        if not compared:
            return
        agreement = self.agreement(active, shadow)
        if len(self._running) >= _AT_ONCE:
            agreement.dropped += 1
            self._metrics.shadow_requests.labels("dropped").inc()
            return
        task = asyncio.create_task(self._compare(shadow, agreement, tenant_id, compared, truncate))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def close(self) -> None:
        """End what runs."""
        for task in self._running:
            task.cancel()
        if self._running:
            await asyncio.wait(self._running)

    async def _compare(
        self,
        shadow: ServedCheckpoint,
        agreement: Agreement,
        tenant_id: str,
        items: Sequence[tuple[Asked, Sequence[float]]],
        truncate: bool,
    ) -> None:
        try:
            for item, answered in items:
                texts = [
                    Text(item.messages, completion, f"completions[{i}]")
                    for i, completion in enumerate(item.completions[:_MOST_COMPLETIONS])
                ]
                base = await shadow.base_rewards.read(tenant_id, texts, truncate=truncate, metered=False)
                user = await shadow.users.resolve(tenant_id, item.user_id, measure=False)
                here_B = np.array(answered[:_MOST_COMPLETIONS], dtype=np.float64)
                self._add(agreement, here_B, rewards(base.rewards_BK, user.state))
        except MetarewardError as error:
            agreement.failed += 1
            self._metrics.shadow_requests.labels("failed").inc()
            logger.debug("the shadow could not score a request: %s", error)
        except Exception:
            agreement.failed += 1
            self._metrics.shadow_requests.labels("failed").inc()
            logger.exception("comparing with the shadow failed. This is a bug")
        else:
            self._metrics.shadow_requests.labels("compared").inc()

    def _add(self, agreement: Agreement, here_B: Vector, there_B: Vector) -> None:
        same_best = bool(here_B.argmax() == there_B.argmax())
        above = np.triu_indices(len(here_B), 1)
        signs_P = np.sign(here_B[:, None] - here_B)[above] * np.sign(there_B[:, None] - there_B)[above]
        same, other = int((signs_P > 0).sum()), int((signs_P < 0).sum())
        apart_P = np.abs(preference_probability(here_B) - preference_probability(there_B))[above]
        agreement.items += 1
        agreement.same_best += same_best
        agreement.pairs += same + other
        agreement.same_order += same
        agreement.probability_difference += float(apart_P.sum())
        agreement.probabilities += len(apart_P)
        self._metrics.shadow_best.labels("same" if same_best else "other").inc()
        self._metrics.shadow_pairs.labels("same").inc(same)
        self._metrics.shadow_pairs.labels("other").inc(other)
        self._metrics.shadow_difference.observe(float(apart_P.mean()))
